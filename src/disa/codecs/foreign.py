"""KL autoencoders as others write them, in the words of ours: names of tensors, and diffusers' `config.json`.

| found | taken |
|---|---|
| `module.`, `first_stage_model.`, `vae.` or the like before every name of the autoencoder | what stands behind it |
| `loss.` and `model_ema.` of its training, and other models beside a prefix | left out |
| `query`, `key`, `value`, `proj_attn` of diffusers before 0.17 | the names of today |
| projections of attention as 1x1 convolutions or as linear maps | whatever the network has |
| no `quant_conv` or no `post_quant_conv` | a network without |
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from disa.codecs.kl16 import VAEConfig
from disa.errors import DisaError
from disa.values import number, shown, whole_number

FIRST = "encoder.conv_in.weight"
"""By which the autoencoder is found: every one has it, under official names and diffusers'."""
OF_TRAINING = ("loss.", "model_ema.", "discriminator.", "perceptual_loss.", "lpips.")
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
PROJECTIONS = re.compile(r".*\.(to_[qkv]|to_out\.0|attn(_1|\.\d+)\.(q|k|v|proj_out))\.weight")
SCALING = ("scale", "shift", "means", "deviations")
OPTIONAL = ("quant_conv", "post_quant_conv")
MOST_LEVELS = 8


def plain_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The autoencoder's tensors alone, and what stood before their names. Raises DisaError where there are several."""
    prefixes = sorted({name.removesuffix(FIRST) for name in state if f".{name}".endswith(f".{FIRST}")})
    if len(prefixes) > 1:
        prefixes = ["first_stage_model."] if "first_stage_model." in prefixes else prefixes
    if len(prefixes) > 1:
        found = " and ".join(repr(prefix) for prefix in prefixes[:3])
        raise DisaError(f"it holds several autoencoders, under {found}: save the one that is meant alone.")
    prefix = prefixes[0] if prefixes else ""
    named = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    found = {}
    for name, value in named.items():
        if name.startswith(OF_TRAINING):
            continue
        for old, new in OLD_NAMES.items():
            name = name.replace(old, new)
        found[name] = value
    return found, prefix


def is_official(state: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of MAR and latent diffusion, not diffusers'."""
    return not any(name.startswith(("encoder.down_blocks.", "encoder.mid_block.")) for name in state)


def fitted(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Projections of attention in the shape that the network has them in; all else as it is."""
    return {
        name: value.reshape(expected[name])
        if PROJECTIONS.fullmatch(name) and name in expected and _plane(value.shape) == _plane(expected[name])
        else value
        for name, value in state.items()
    }


def _plane(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(shape[:2]) if len(shape) == 2 or tuple(shape[2:]) == (1, 1) else tuple(shape)


def config_of(said: Mapping[str, Any], ours: VAEConfig) -> VAEConfig:
    """What diffusers' `config.json` says of an `AutoencoderKL`; what it leaves out is as diffusers has it, but for the
    scale of the latents, which is `ours`. Raises DisaError, which names the field."""
    if said.get("_class_name", "AutoencoderKL") != "AutoencoderKL":
        raise DisaError(f"its class is {shown(said['_class_name'])}: expected AutoencoderKL.")
    for name, expected in {"act_fn": "silu", "mid_block_add_attention": True}.items():
        if said.get(name, expected) != expected:
            raise DisaError(f"{name} is {shown(said[name])}: expected {expected!r}.")
    widths = _list(said, "block_out_channels", [64])
    if len(widths) > MOST_LEVELS:
        raise DisaError(f"block_out_channels has {len(widths)} entries: expected {MOST_LEVELS} at most.")
    channels = whole_number(said.get("latent_channels", 4), "latent_channels", 1, 4096)
    in_channels = whole_number(said.get("in_channels", 3), "in_channels", 1, 4096)
    if said.get("out_channels", 3) != in_channels:
        raise DisaError(f"out_channels is {shown(said.get('out_channels', 3))}, but in_channels is {in_channels}.")
    down = _list(said, "down_block_types", ["DownEncoderBlock2D"])
    up = _list(said, "up_block_types", ["UpDecoderBlock2D"])
    if set(up) != {"UpDecoderBlock2D"} or not set(down) <= {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}:
        raise DisaError("its blocks are of other types than DownEncoderBlock2D, with attention or without.")
    scale = said.get("scaling_factor")
    return VAEConfig(
        latent_channels=channels,
        block_widths=tuple(whole_number(width, "block_out_channels", 1, 1 << 16) for width in widths),
        layers_per_block=whole_number(said.get("layers_per_block", 1), "layers_per_block", 1, 16),
        in_channels=in_channels,
        scale=ours.scale if scale is None else number(scale, "scaling_factor", least=1e-30, most=1 << 24),
        norm_groups=whole_number(said.get("norm_num_groups", 32), "norm_num_groups", 1, 4096),
        encoder_attention_levels=tuple(level for level, kind in enumerate(down) if kind.startswith("Attn")),
        shift=number(said.get("shift_factor") or 0.0, "shift_factor"),
        means=_statistics(said, "latents_mean", channels),
        deviations=_statistics(said, "latents_std", channels),
        quant_conv=said.get("use_quant_conv", True) is not False,
        post_quant_conv=said.get("use_post_quant_conv", True) is not False,
    )


def config_in(state: Mapping[str, Tensor], ours: VAEConfig) -> VAEConfig:
    """`ours` with the channels, the levels and the optional layers that tensors under plain names tell of."""
    known = dict[str, Any]()
    for name, field in (("decoder.conv_in.weight", "latent_channels"), (FIRST, "in_channels")):
        if name in state and len(state[name].shape) == 4:
            known[field] = int(state[name].shape[1])
    known |= {name: any(each.startswith(f"{name}.") for each in state) for name in OPTIONAL}
    levels = {
        int(match[2]) for match in (re.match(r"encoder\.down(_blocks)?\.(\d{1,2})\.", name) for name in state) if match
    }
    depth, have = len(levels), len(ours.block_widths)
    if depth and depth != have:
        widths = (ours.block_widths * math.ceil(depth / have))[:depth]
        known |= {"block_widths": widths, "encoder_attention_levels": ()}
    return replace(ours, **known)


def check_same_shape(found: VAEConfig, ours: VAEConfig, model: str) -> None:
    """An autoencoder must be of the architecture that a model has; its scaling may be its own. Raises DisaError, which
    says what differs: what matters most first."""
    if found.latent_channels != ours.latent_channels:
        raise DisaError(
            f"it makes latents of {found.latent_channels} channels, {model} draws latents of {ours.latent_channels}: "
            "give the autoencoder that the model was trained with."
        )
    if found.stride != ours.stride:
        raise DisaError(
            f"its latents are {found.stride} times smaller than images, those of {model} {ours.stride} times: "
            "give the autoencoder that the model was trained with."
        )
    for field in fields(VAEConfig):
        here, there = getattr(found, field.name), getattr(ours, field.name)
        if field.name not in (*SCALING, *OPTIONAL) and here != there:
            raise DisaError(f"its {field.name} is {_told(here)}, that of {model}'s autoencoder is {_told(there)}.")


def told_scaling(config: VAEConfig) -> str:
    """Scale and shift in a message."""
    more = " and statistics of every channel" if config.means or config.deviations else ""
    return f"scale {config.scale:g}, shift {config.shift:g}{more}"


def same_scaling(one: VAEConfig, other: VAEConfig) -> bool:
    """Whether latents are scaled alike."""
    return all(getattr(one, name) == getattr(other, name) for name in SCALING)


def _told(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _list(said: Mapping[str, Any], name: str, default: list[Any]) -> list[Any]:
    found = said.get(name, default)
    if not isinstance(found, list | tuple) or not found:
        raise DisaError(f"{name} is {shown(found)}: expected a list of one or more.")
    return list(found)


def _statistics(said: Mapping[str, Any], name: str, channels: int) -> tuple[float, ...]:
    """One number for each channel, or none."""
    found = said.get(name)
    if found is None:
        return ()
    if not isinstance(found, list | tuple) or len(found) != channels:
        raise DisaError(f"{name} is {shown(found)}: expected one number for each of {channels} channels.")
    return tuple(number(value, name) for value in found)
