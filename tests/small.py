"""Models so small that every test can afford them: ten classes, random weights.

The MAR has 16 tokens of 2x2 pixels. The BitDance draws 64 tokens in four squares, on the latents of the digits.
"""

import math
from copy import deepcopy
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn

from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.draw.sampler import Sampler
from disa.models.bitdance.config import BitDanceConfig
from disa.models.emigm.config import EMIGMConfig
from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.mar.names import official_names
from disa.models.nextstep.config import NextStepConfig
from disa.models.nextstep.model import NextStep
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Assets, Defaults, Preset, Spec
from disa.models.unipic.config import UniPicConfig
from disa.models.unipic.model import UniPic
from disa.runtime.packing import can_pack, pack
from disa.weights.build import build_model
from disa.weights.folders import save_model

Model = TypeVar("Model", bound=nn.Module)

EMBEDDED = {
    "mar": "mar-digits",
    "flowar": "flowar-digits",
    "xar": "xar-digits",
    "bitdance": "bitdance-digits",
    "harmon": "harmon-shapes",
}
"""The model of each family that ships."""

CONFIG = MARConfig(
    latent_size=(8, 8), latent_channels=1, patch_size=2, encoder_width=32, encoder_depth=1, encoder_heads=4,
    decoder_width=32, decoder_depth=2, decoder_heads=4, num_classes=10, buffer_size=4, head_width=32, head_depth=2,
)  # fmt: skip
PRESET = Preset(
    Spec("small", "mar", CONFIG),
    Defaults(num_ar_steps=4, steps="linear:4-2", original="constant:6", grid="uniform", guidance=2.0, batch_size=4),
    Assets(page="https://example.org/small"),
    "16 tokens",
)
BITDANCE_CONFIG = BitDanceConfig(
    latent_size=(8, 8), latent_channels=8, group_size=16, width=32, depth=1, num_heads=2, class_tokens=3,
    head_width=64, head_depth=2, head_modulations=1, num_classes=10,
)  # fmt: skip
BITDANCE = Preset(
    Spec("bitdance-digits", "bitdance", BITDANCE_CONFIG, SmallVAEConfig()),
    Defaults(num_ar_steps=4, steps="linear:4-2", original="constant:6", solver="euler-maruyama-ode", grid="bitdance",
             guidance=2.5, batch_size=4),
    Assets(page="https://example.org/bitdance", embedded_codec="digits-vae"),
    "64 tokens",
)  # fmt: skip

EMIGM = Preset(
    Spec("small-emigm", "emigm", EMIGMConfig(**vars(CONFIG))),
    Defaults(num_ar_steps=4, steps="linear:5-2", original="constant:6", solver="dpm-solver++-3s", grid="emigm",
             guidance=3.0, ramp="constant", progress=(0.3, 0.7), counts="exp", spending="9-2@5", batch_size=4),
    Assets(page="https://example.org/emigm"),
)  # fmt: skip
"""Of 16 tokens; the second and the third AR step are guided."""

CODEC = VAEConfig(
    latent_channels=1, block_widths=(8, 8), layers_per_block=1, norm_groups=4, encoder_attention_levels=()
)


NEXTSTEP_CONFIG = NextStepConfig(
    latent_size=(4, 6), latent_channels=3, vocab_size=300, llm_width=32, llm_hidden=48, llm_depth=2, llm_heads=4,
    llm_kv_heads=2, max_positions=400, head_width=32, head_depth=1, placeholder_id=299,
)  # fmt: skip
"""Of six tokens, 2x3."""
NEXTSTEP = Preset(
    Spec("small-nextstep", "nextstep", NEXTSTEP_CONFIG),
    Defaults(
        num_ar_steps=6, steps="linear:4-2", original="constant:6", solver="euler-maruyama-ode", grid="nextstep",
        guidance=3.0, ramp="constant", batch_size=3,
    ),
    Assets(page="https://example.org/nextstep"),
)  # fmt: skip


UNIPIC_CONFIG = UniPicConfig(
    latent_size=(4, 4), latent_channels=3, encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=48,
    decoder_depth=1, decoder_heads=2, num_classes=2, buffer_size=3, head_width=32, head_depth=1, vocab_size=300,
    llm_width=32, llm_hidden=48, llm_depth=2, llm_heads=4, llm_kv_heads=2, max_positions=400, placeholder_id=299,
)  # fmt: skip
UNIPIC = Preset(
    Spec("small-unipic", "unipic", UNIPIC_CONFIG),
    Defaults(num_ar_steps=4, steps="linear:4-2", original="constant:6", grid="full", guidance=3.0, ramp="constant",
             size=(4, 6), batch_size=3),
    Assets(page="https://example.org/unipic"),
)  # fmt: skip


def unipic(config: UniPicConfig = UNIPIC_CONFIG) -> UniPic:
    """With random weights."""
    model = randomised(UniPic(config))
    model.llm.embed_tokens.weight.mul_(5)
    return model


def nextstep(config: NextStepConfig = NEXTSTEP_CONFIG) -> NextStep:
    """With random weights."""
    model = randomised(NextStep(config))
    model.llm.embed_tokens.weight.mul_(5)
    return model


def shallow(name: str) -> Preset:
    """An embedded preset with one block of each kind, drawn in three AR steps."""
    own = PRESETS[name]
    less: dict[str, Any] = {each.name: 1 for each in fields(own.spec.architecture) if each.name.endswith("_depth")}
    less |= {
        "flowar": {"scales": (1, 2, 4)},
        "xar": {"latent_size": (4, 12), "cells": (1, 3)},
        "bitdance": {"latent_size": (1, 3), "head_modulations": 1},
    }.get(own.spec.family, {})
    return changed(own, architecture=replace(own.spec.architecture, **less), num_ar_steps=3)


def changed(preset: Preset, **values: Any) -> Preset:
    """The preset with other values of fields, each in the part of it that has such a field."""
    for part in ("spec", "defaults", "assets"):
        old = getattr(preset, part)
        own = {name: values.pop(name) for name in list(values) if hasattr(old, name)}
        preset = replace(preset, **{part: replace(old, **own)})
    return replace(preset, **values)


def weights(config: MARConfig = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """Of a `randomised` MAR, under our names."""
    return randomised(MAR(config), seed).state_dict()


def randomised(model: Model, seed: int = 0) -> Model:
    """The same model with every weight random, also those that training starts at zero; norm gains near 1."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=random)
            if "norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * values)
            else:
                parameter.copy_(values / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.1 * values)
    return model.requires_grad_(False).eval()


def packed(model: Model) -> Model:
    """A packed copy; skips the test where weights cannot be packed."""
    if not can_pack(torch.float32):
        pytest.skip("this build of PyTorch cannot pack weights")
    copy = deepcopy(model)
    assert pack(copy) is copy
    return copy


def official_weights(config: MARConfig = CONFIG, seed: int = 0) -> dict[str, Tensor]:
    """The same under official names."""
    return official_names(config).to_official(weights(config, seed))


def model(seed: int = 0) -> MAR:
    built = build_model(PRESET, weights(seed=seed), "the small model")
    assert isinstance(built, MAR)
    return built


def sampler(dtype: str = "fp32", seed: int = 0) -> Sampler:
    return Sampler(PRESET, model(seed), device="cpu", dtype=dtype)


def folder(path: Path, seed: int = 0, **values: Any) -> Path:
    """A folder that `disa sample --model` takes: mar-digits of another architecture, and of pixels."""
    return save_model(
        path, changed(find_preset("mar-digits"), architecture=CONFIG, codec=None, **values), weights(seed=seed)
    )
