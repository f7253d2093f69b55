"""A preset's model, autoencoder and tokenizer: from a file, from the package, or from the hub."""

from __future__ import annotations

from pathlib import Path

import torch

from disa import values
from disa.codecs import kl16
from disa.codecs.base import LatentCodec
from disa.codecs.kl16 import KL16Codec, VAEConfig
from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig
from disa.errors import DisaError
from disa.layout import check_layout, shapes
from disa.models.families import Model
from disa.models.spec import Preset
from disa.weights.build import build_model, check_values
from disa.weights.fitting import what_fits
from disa.weights.hub import locate
from disa.weights.package import in_package, read_embedded
from disa.weights.read import find, read_tensors
from disa.weights.shards import files_of
from disa.weights.trust import check_hash

CODEC_WEIGHTS = "diffusion_pytorch_model.safetensors"


def load_model(
    preset: Preset, checkpoint: Path | str | None = None, average: bool = True, weights_key: str | None = None
) -> Model:
    """The preset's model from a file, from the package, or from the hub.

    average: prefer the moving average of a checkpoint that has both. weights_key: the entry of a checkpoint to take.
    Raises DisaError.
    """
    if weights_key is not None and checkpoint is None and preset.embedded:
        raise DisaError(f"{preset.name} is in the package: give a checkpoint with the weights key, or leave it out.")
    if checkpoint is None and preset.embedded:
        return build_model(preset, read_embedded(preset.name), f"the embedded {preset.name}")
    missing = f"{preset.name} has no weights on the hub: give a checkpoint."
    given = None if checkpoint is None else values.path(checkpoint, "the checkpoint")
    key, path = locate(given, preset.assets.weights, preset.assets.page, missing)
    names = preset.official_names()
    weights = find(path, average, weights_key, names.official | names.parts.keys())
    model = build_model(preset, weights.state, weights.source, what_fits(preset, path, weights_key), weights.otherwise)
    weights.say()
    for file in files_of(path):
        check_hash(key if file == path else f"{key}/{file.name}", file)
    return model


def load_codec(preset: Preset, path: Path | None = None) -> LatentCodec:
    """The preset's autoencoder: KL-16 from `kl16.ckpt`, its safetensors form, a diffusers folder or the hub; the small
    one from the package or a folder that disa wrote. Raises DisaError."""
    if preset.spec.codec is None:
        raise DisaError(f"{preset.name} has no autoencoder: its tokens are pixels.")
    path = path / CODEC_WEIGHTS if path is not None and path.is_dir() else path
    if isinstance(preset.spec.codec, SmallVAEConfig):
        return _load_small(preset.spec.codec, preset.assets.embedded_codec, path)
    return _load_kl16(preset.spec.codec, preset, path)


def tokenizer_source(preset: Preset) -> Path | str:
    """The preset's tokenizer: a folder in the package, or a hub id."""
    if preset.assets.embedded_tokenizer:
        return in_package(preset.assets.embedded_tokenizer)
    return preset.assets.tokenizer


def _load_kl16(config: VAEConfig, preset: Preset, path: Path | None) -> LatentCodec:
    key, path = locate(path, preset.assets.codec_weights, preset.assets.page, _missing_codec("kl16.ckpt"))
    state = read_tensors(path)
    try:
        with torch.device("meta"):
            network = kl16.build(config)
    except ImportError as error:
        raise DisaError('the autoencoder needs diffusers: pip install "disa[diffusers]".') from error
    if not set(state) <= set(network.state_dict()):
        try:
            state = kl16.from_official(state, config)
        except DisaError as error:
            raise DisaError(f"{path}: {error}") from error
    check_layout(state, shapes(network.state_dict()), str(path))
    check_values(state, str(path))
    check_hash(key, path)
    network.load_state_dict(state, assign=True)
    return KL16Codec(network.requires_grad_(False).eval())


def _load_small(config: SmallVAEConfig, embedded: str, path: Path | None) -> LatentCodec:
    if path is None and not embedded:
        raise DisaError(_missing_codec("a folder that disa wrote"))
    state, source = (read_embedded(embedded), embedded) if path is None else (read_tensors(path), str(path))
    with torch.device("meta"):
        network = SmallVAE(config)
    check_layout(state, shapes(network.state_dict()), source)
    check_values(state, source)
    network.load_state_dict(state, assign=True)
    return SmallCodec(network.requires_grad_(False).eval())


def _missing_codec(example: str) -> str:
    return f"this model needs an autoencoder: give one with vae=FILE ({example})."
