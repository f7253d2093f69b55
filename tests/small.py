"""A MAR so small that every test can afford it: 16 tokens of 2x2 pixels, ten classes, random weights."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from disa.codecs.kl16 import VAEConfig
from disa.core.request import Guidance
from disa.draw.sampler import Sampler
from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.mar.names import official_names
from disa.models.registry import PRESETS, Preset, find_preset
from disa.runtime.packing import can_pack, pack
from disa.weights.checkpoints import build_model, save_model

Model = TypeVar("Model", bound=nn.Module)

CONFIG = MARConfig(
    latent_size=(8, 8), latent_channels=1, patch_size=2, encoder_width=32, encoder_depth=1, encoder_heads=4,
    decoder_width=32, decoder_depth=2, decoder_heads=4, num_classes=10, buffer_size=4, head_width=32, head_depth=2,
)  # fmt: skip
PRESET = Preset(
    name="small", architecture=CONFIG, num_ar_steps=4, guidance=Guidance(2.0), about="16 tokens",
    steps="linear:4-2", original="constant:6", grid="uniform", page="https://example.org/small", batch_size=4,
)  # fmt: skip

CODEC = VAEConfig(
    latent_channels=1, block_widths=(8, 8), layers_per_block=1, norm_groups=4, encoder_attention_levels=()
)


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


def folder(path: Path, seed: int = 0) -> Path:
    """A folder that `disa sample --model` takes; it says that it is mar-digits, of another architecture."""
    return save_model(path, replace(find_preset("mar-digits"), architecture=CONFIG), weights(seed=seed))


def without_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """This model draws pixels, so the `mar-digits` that its folder names must not have an autoencoder."""
    monkeypatch.setitem(PRESETS, "mar-digits", replace(find_preset("mar-digits"), codec=None))
