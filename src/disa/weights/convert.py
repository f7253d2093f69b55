"""Weights from one layout into another: official files, our folders, official names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.models.families import Model
from disa.models.registry import find_preset
from disa.models.spec import Preset
from disa.values import command, path
from disa.weights.autoencoders import CODEC
from disa.weights.config import changed, read_config
from disa.weights.folders import codec_files, load_folder, model_files, tensor_bytes, with_codec, write_folder
from disa.weights.load import load_codec, load_model
from disa.weights.shards import CONFIG, is_ours
from disa.weights.tokenizers import tokenizer_files


def convert(
    checkpoint: Path,
    model: str | None,
    out: Path,
    codec: Path | None = None,
    average: bool = True,
    official: bool = False,
    values: Mapping[str, Any] | None = None,
    name: str | None = None,
    weights_key: str | None = None,
) -> dict[str, int]:
    """Read, check and write weights as our folder, or under official names; returns the files and their bytes.

    checkpoint: a file or a folder of official weights, or a folder that `save_model` wrote, with its autoencoder and
    its tokenizer if it has them. model: the preset whose architecture it has; a folder of ours says it itself.
    values: other values of fields of the architecture or the defaults, as JSON has them. name: what the result is
    called. average: prefer the moving average; weights_key: the entry of the file to take. Raises DisaError.
    """
    checkpoint, out = path(checkpoint, "the checkpoint"), path(out, "the folder")
    codec = None if codec is None else path(codec, "vae")
    preset, network, inside = _read(checkpoint, model, average, values or {}, name, weights_key)
    codec = codec or inside
    loaded = None if codec is None else load_codec(preset, codec)
    preset = preset if loaded is None else with_codec(preset, loaded)
    if official:
        names = preset.official_names()
        files = {f"{preset.name}.safetensors": tensor_bytes(names.to_official(network.state_dict()))}
    else:
        files = model_files(preset, network.state_dict())
    if preset.prompts or is_ours(checkpoint):
        files |= tokenizer_files(checkpoint)
    if loaded is not None:
        files |= codec_files(loaded, CODEC)
    if checkpoint.is_file() and any((out / name).exists() and checkpoint.samefile(out / name) for name in files):
        raise DisaError(f"{checkpoint} would be replaced by what is read from it: choose another folder.")
    write_folder(out, files)
    return {file: len(content) for file, content in files.items()}


def next_steps(out: Path) -> str:
    """How to load what `convert` wrote, and what is not with it."""
    preset, _ = read_config(out / CONFIG)
    words, assets = ["--prompt", "a red circle"] if preset.prompts else [], preset.assets
    told = f"load it with: {command('disa', 'sample', '--model', path(out, 'the folder'), *words)}"
    if preset.spec.codec is not None and not assets.embedded_codec and not (out / CODEC).is_dir():
        place = f"{assets.codec_weights.repo} on the hub" if assets.codec_weights else "nowhere else"
        told += f"\nits autoencoder is not with it: convert with --vae, or it is looked for in {place}"
    return told


def _read(
    checkpoint: Path,
    model: str | None,
    average: bool,
    values: Mapping[str, Any],
    name: str | None,
    weights_key: str | None,
) -> tuple[Preset, Model, Path | None]:
    """What the weights are, the model, and the folder of an autoencoder that lies with them."""
    if os.path.isdir(checkpoint) and (is_ours(checkpoint) or ((checkpoint / CONFIG).is_file() and model is None)):
        if weights_key is not None:
            raise DisaError(f"{checkpoint} is a folder of one model: leave --weights-key out.")
        preset, network, inside = load_folder(checkpoint)
        if model not in (None, preset.name):
            find_preset(str(model))
            raise DisaError(f"{checkpoint} is a folder of {preset.name}, not of {model}.")
        asked = changed(preset, values, name)
        if asked.spec.architecture != preset.spec.architecture:
            raise DisaError(f"{checkpoint} holds weights of its own architecture: only defaults can be set anew.")
        return asked, network, inside
    if model is None:
        raise DisaError(f"{checkpoint} does not say which model it is of: give --model, one that `disa presets` lists.")
    asked = changed(find_preset(model), values, name)
    # Messages name the preset, which the user knows, and say what to set.
    network = load_model(changed(asked, {}, model), checkpoint, average, weights_key)
    return asked, network, None
