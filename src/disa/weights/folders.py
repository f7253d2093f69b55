"""Our folders: `model.safetensors`, `config.json` and, in folders of their own, an autoencoder and a tokenizer."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from disa.codecs.base import LatentCodec
from disa.errors import DisaError, warn
from disa.files import finish_writing, json_bytes, write_together
from disa.models.families import Model
from disa.models.prompting import PromptText
from disa.models.spec import Preset
from disa.values import first_line
from disa.weights.autoencoders import CODEC, CODEC_WEIGHTS
from disa.weights.build import build_model
from disa.weights.config import read_config, to_json
from disa.weights.read import index_whole
from disa.weights.shards import CONFIG, WEIGHTS, is_ours
from disa.weights.tokenizers import SEEN, TOKENIZER, tokenizer_files
from disa.weights.trust import forget, hash_file


def save_model(folder: Path, preset: Preset, state: Mapping[str, Tensor]) -> Path:
    """Write `model.safetensors` (our names) and `config.json` (spec, defaults, hash) into `folder`."""
    return write_folder(folder, model_files(preset, state))


def save_codec(folder: Path, codec: LatentCodec) -> Path:
    """Write an autoencoder: a diffusers `AutoencoderKL` folder, or the small one in the same layout."""
    files = codec_files(codec)
    write_together(folder, {CODEC_WEIGHTS: files[CODEC_WEIGHTS]}, {CONFIG: files[CONFIG]})
    return folder


def write_folder(folder: Path, files: Mapping[str, bytes], telling: Mapping[str, bytes] | None = None) -> Path:
    """Write the files of a model together, in place of a model that is there; telling: what else tells of them.

    Refused where that would replace a model that disa did not write, or where the new one would be taken with an
    autoencoder or a tokenizer of another. Raises DisaError.
    """
    finish_writing(folder)
    if CONFIG in files:
        _check_place(folder, files)
    for name in files:
        forget(folder / name)
    told = {name: files[name] for name in (CONFIG,) if name in files} | dict(telling or {})
    write_together(folder, {name: content for name, content in files.items() if name not in told}, told)
    return folder


def _check_place(folder: Path, files: Mapping[str, bytes]) -> None:
    for name in (CONFIG, WEIGHTS):
        if (folder / name).exists() and not is_ours(folder):
            raise DisaError(f"{folder / name} was not written by disa: choose another folder.")
    for path in (folder / CODEC / CODEC_WEIGHTS, *sorted((folder / TOKENIZER).glob(SEEN))):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            raise DisaError(
                f"{path} is there already, and would be taken for the new model's: remove {path.parent}, or choose "
                "another folder."
            )


def model_files(preset: Preset, state: Mapping[str, Tensor]) -> dict[str, bytes]:
    """What `model.safetensors` and `config.json` of a model hold."""
    content = tensor_bytes(state)
    about = {**to_json(preset), "sha256": hashlib.sha256(content).hexdigest()}
    return {WEIGHTS: content, CONFIG: json_bytes(about)}


def codec_files(codec: LatentCodec, folder: str = "") -> dict[str, bytes]:
    """What the files of an autoencoder hold; folder: in which of the model's they lie."""
    place = f"{folder}/" if folder else ""
    content = tensor_bytes(codec.model.state_dict())
    return {f"{place}{CODEC_WEIGHTS}": content, f"{place}{CONFIG}": codec.about().encode()}


def text_files(text: PromptText) -> dict[str, bytes]:
    """What the files of a tokenizer that was read hold."""
    with tempfile.TemporaryDirectory() as folder:
        text.save(Path(folder) / TOKENIZER)
        return tokenizer_files(Path(folder))


def with_codec(preset: Preset, codec: LatentCodec) -> Preset:
    """The preset as it is with this autoencoder, which may scale latents in its own way."""
    return replace(preset, spec=replace(preset.spec, codec=codec.own(preset.spec.codec)))


def tensor_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A .safetensors file."""
    return save({key: value.contiguous() for key, value in state.items()}, {"format": "pt"})


def load_folder(folder: Path, dtype: torch.dtype | None = None) -> tuple[Preset, Model, Path | None]:
    """A folder that `save_model` wrote: what its `config.json` says, its model, and its autoencoder's folder.

    dtype: what values become as they are read; None leaves them. Raises DisaError.
    """
    finish_writing(folder)
    preset, sha256 = read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file():
        raise DisaError(f"{path} is missing: {CONFIG} describes a model, but its weights are not there.")
    if sha256 is None:
        warn(f"{folder / CONFIG} has no sha256: whether {WEIGHTS} is whole is not known")
    elif hash_file(path) != sha256:
        raise DisaError(f"{path} is not the file that {CONFIG} describes: its SHA-256 differs. Copy the folder again.")
    try:
        model = build_model(preset, index_whole(path), str(path), dtype=dtype)
    except (RuntimeError, ValueError, OverflowError) as error:
        raise DisaError(
            f"{folder / CONFIG} describes a model that cannot be built ({first_line(error)}): check its architecture."
        ) from error
    codec = folder / CODEC if (folder / CODEC).is_dir() else None
    return preset, model, codec
