"""A preset's model and autoencoder: from files, from the package, or from the hub."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa import values
from disa.codecs import dc, foreign, kl16
from disa.codecs.base import LatentCodec
from disa.codecs.binary import BINARY, BinaryAE, BinaryCodec, BinaryConfig
from disa.codecs.dc import DCCodec, DCConfig
from disa.codecs.kl16 import KL16Codec, VAEConfig
from disa.codecs.small import SMALL, SmallCodec, SmallVAE, SmallVAEConfig
from disa.errors import DisaError, warn
from disa.layout import check_layout, shapes
from disa.models.families import Model
from disa.models.spec import Preset
from disa.weights.autoencoders import Files, find_files
from disa.weights.build import build_model, check_values
from disa.weights.fields import read_fields
from disa.weights.fitting import what_fits
from disa.weights.hub import locate
from disa.weights.package import read_embedded
from disa.weights.read import find, read_tensors
from disa.weights.shards import files_of
from disa.weights.trust import check_hash

OWN: dict[type, tuple[str, Any, Any]] = {
    SmallVAEConfig: (SMALL, SmallVAE, SmallCodec),
    BinaryConfig: (BINARY, BinaryAE, BinaryCodec),
}
"""The autoencoders that are built here: what they are called, their networks and their codecs."""
EXAMPLES = {VAEConfig: "kl16.ckpt", BinaryConfig: "ae_d16c32.pt", DCConfig: "the folder dc-ae-f32c32-in-1.0-diffusers"}
"""What a user may have of the others."""


def load_model(
    preset: Preset,
    checkpoint: Path | str | None = None,
    average: bool = True,
    weights_key: str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """The preset's model from a file, from the package, or from the hub.

    average: prefer the moving average of a checkpoint that has both. weights_key: the entry of a checkpoint to take.
    dtype: what values become as they are read, one tensor after the other; None leaves them. Raises DisaError.
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
    hint = what_fits(preset, path, weights_key)
    model = build_model(preset, weights.state, weights.source, hint, weights.otherwise, dtype)
    weights.say()
    for file in files_of(path):
        check_hash(key if file == path else f"{key}/{file.name}", file)
    return model


def load_codec(preset: Preset, path: Path | None = None) -> LatentCodec:
    """The preset's autoencoder: KL-16 in any form that `find_files` knows, or the hub's; the binary one and the DC-AE
    likewise; the small one from the package or a folder that disa wrote. Raises DisaError."""
    config, assets = preset.spec.codec, preset.assets
    if config is None:
        raise DisaError(f"{preset.name} has no autoencoder: its tokens are pixels.")
    if path is None and assets.embedded_codec:
        state = {name: value.float() for name, value in read_embedded(assets.embedded_codec).items()}
        return _own(config, state, assets.embedded_codec)
    if isinstance(config, SmallVAEConfig):
        if path is None:
            raise DisaError(_missing_codec("a folder that disa wrote"))
        return _load_small(preset.name, config, path)
    example = EXAMPLES[type(config)]
    key, path = locate(path, assets.codec_weights, assets.page, _missing_codec(example))
    files = find_files(path)
    state = _together(files)
    try:
        if isinstance(config, BinaryConfig):
            _check_said(config, files.config, preset.name)
            codec = _own(config, foreign.plain_names(state)[0], "it")
        elif isinstance(config, DCConfig):
            codec = _dc(config, foreign.plain_names(state)[0], files.config or {})
        else:
            codec = _kl16(preset.name, config, state, files.config, path)
    except DisaError as error:
        raise DisaError(f"{path} cannot be used: {error}") from error
    for file in files.weights:
        check_hash(key if file == path else f"{key}/{file.name}", file)
    return codec


def _together(files: Files) -> dict[str, Tensor]:
    """The tensors of all files."""
    return {name: value for file in files.weights for name, value in read_tensors(file).items()}


def _kl16(
    model: str, config: VAEConfig, state: Mapping[str, Tensor], said: dict[str, Any] | None, path: Path
) -> LatentCodec:
    """A KL-16 of tensors under any names. config: the model's; said: the autoencoder's own, if it has one."""
    for kind, (name, *_) in OWN.items():
        if said is not None and said.get("family") == name:
            what = "small" if kind is SmallVAEConfig else "binary"
            raise DisaError(f"it is a {what} autoencoder of disa, {model} needs a KL-16 such as kl16.ckpt.")
    state, prefix = foreign.plain_names(state)
    if foreign.FIRST not in state:
        raise DisaError(
            f"it holds no KL autoencoder ({foreign.FIRST} is missing), {model} needs one such as kl16.ckpt."
        )
    found = foreign.config_in(state, config) if said is None else foreign.config_of(said, config)
    foreign.check_same_shape(found, config, model)
    try:
        with torch.device("meta"):
            network = kl16.build(found)
    except ImportError as error:
        raise DisaError('the autoencoder needs diffusers: pip install "disa[diffusers]".') from error
    expected = shapes(network.state_dict())
    if foreign.is_official(state):
        state = kl16.from_official(foreign.fitted(state, kl16.official_layout(found)), found)
    state = foreign.fitted(state, expected)
    check_layout(state, expected, "it", f"the autoencoder of {model}")
    check_values(state, "it")
    network.load_state_dict(state, assign=True)
    if prefix:
        warn(f"the autoencoder in {path} stands under {prefix}*: all else in it is left out")
    if not foreign.same_scaling(found, config):
        own, usual = foreign.told_scaling(found), foreign.told_scaling(config)
        warn(f"the autoencoder {path} has its own {own}; {model} had {usual}")
    return KL16Codec(network.requires_grad_(False).eval())


def _dc(config: DCConfig, state: Mapping[str, Tensor], said: dict[str, Any]) -> LatentCodec:
    """A DC-AE of diffusers' tensors. said: its own `config.json`, if it has one."""
    dc.check_said(config, said)
    with torch.device("meta"):
        network = dc.build(config)
    counters = {name for name in network.state_dict() if name.endswith(".num_batches_tracked")}
    state = {name: value for name, value in state.items() if name not in counters}
    expected = {name: size for name, size in shapes(network.state_dict()).items() if name not in counters}
    check_layout(state, expected, "it", "the autoencoder of this model")
    check_values(state, "it")
    # Counters of training do not change what is computed.
    network.load_state_dict(state | {name: torch.tensor(0) for name in counters}, assign=True)
    return DCCodec(network.requires_grad_(False).eval())


def _load_small(model: str, config: SmallVAEConfig, path: Path) -> LatentCodec:
    files = find_files(path)
    state, said = _together(files), files.config
    if foreign.FIRST in foreign.plain_names(state)[0]:
        raise DisaError(f"{path} is a KL autoencoder, {model} needs a small one that `disa train` makes.")
    try:
        _check_said(config, said, model)
    except DisaError as error:
        raise DisaError(f"{path} cannot be used: {error}") from error
    return _own(config, state, str(path))


def _check_said(config: Any, said: dict[str, Any] | None, model: str) -> None:
    """What `config.json` says of an autoencoder of this kind must be what the model has. Raises DisaError."""
    if said is None or said.get("family") != OWN[type(config)][0]:
        return
    found = asdict(read_fields(type(config), said.get("architecture"), "architecture"))
    for name, ours in asdict(config).items():
        if found[name] != ours:
            raise DisaError(f"it does not fit {model}: its {name} is {found[name]}, the model's is {ours}.")


def _own(config: Any, state: Mapping[str, Tensor], source: str) -> LatentCodec:
    _, network_of, codec_of = OWN[type(config)]
    with torch.device("meta"):
        network = network_of(config)
    check_layout(state, shapes(network.state_dict()), source, "the autoencoder of this model")
    check_values(state, source)
    network.load_state_dict(state, assign=True)
    return codec_of(network.requires_grad_(False).eval())


def _missing_codec(example: str) -> str:
    return f"this model needs an autoencoder: give one with vae=FILE ({example})."
