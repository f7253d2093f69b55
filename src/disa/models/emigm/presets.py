"""eMIGM's published weights, with the official settings for 16 AR steps.

Settings and sizes are those of eMIGM's evaluation scripts. The annealed steps are disa's choice: the paper has none.
"""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.dc import DCConfig
from disa.codecs.kl16 import VAEConfig
from disa.models.emigm.config import EMIGMConfig
from disa.models.mar.presets import KL16
from disa.models.spec import Assets, Defaults, HubFile, Preset, Spec

HUB = "GSAI-ML/eMIGM"
PAGE = "https://github.com/ML-GSAI/eMIGM"
DC_AE = HubFile("mit-han-lab/dc-ae-f32c32-in-1.0-diffusers", "diffusion_pytorch_model.safetensors")

# Guidance acts where the mask time after an AR step, about 1 - (k + 1) / K, is in an interval, without its lower end:
# (0.1, 0.3] for most. These ends hold for the same of 16 AR steps, and in proportion for other numbers.
_EARLY, _MIDDLE, _LATE = (0.6, 0.75), (0.65, 0.82), (0.72, 0.88)
_256 = Defaults(
    num_ar_steps=16,
    steps="linear:8-4",
    original="constant:8",
    solver="dpm-solver++-3s",
    grid="emigm",
    guidance=4.0,
    ramp="constant",
    progress=_LATE,
    counts="exp",
    spending="8-4@6",
)
_512 = replace(_256, progress=_MIDDLE)


def _preset(size: str, side: int, architecture: EMIGMConfig, parameters: str, defaults: Defaults, about: str) -> Preset:
    name = f"emigm-{size}" if side == 256 else f"emigm-{size}-{side}"
    weights = HubFile(HUB, f"{side}_model/eMIGM_{size}_{side}_checkpoint.pth")
    codec, codec_weights = (VAEConfig(), KL16) if side == 256 else (DCConfig(), DC_AE)
    return Preset(
        Spec(name, "emigm", architecture, codec),
        defaults,
        Assets(weights, codec_weights, PAGE),
        f"eMIGM-{about}, {parameters} parameters, ImageNet {side}x{side}",
    )


def _sized(width: int, depth: int, heads: int, head_width: int, head_depth: int) -> EMIGMConfig:
    return EMIGMConfig(
        encoder_width=width,
        encoder_depth=depth,
        encoder_heads=heads,
        decoder_width=width,
        decoder_depth=depth,
        decoder_heads=heads,
        head_width=head_width,
        head_depth=head_depth,
    )


def _of_512(architecture: EMIGMConfig, head_depth: int) -> EMIGMConfig:
    return replace(architecture, latent_channels=32, head_width=1280, head_depth=head_depth)


_XSMALL = _sized(448, 10, 8, 1024, 3)
_SMALL = _sized(512, 12, 8, 1024, 3)
_BASE = EMIGMConfig()
_LARGE = _sized(1024, 16, 16, 1280, 8)
_HUGE = _sized(1280, 20, 16, 1536, 12)
PUBLISHED = (
    _preset("xsmall", 256, _XSMALL, "69 M", _256, "XS"),
    _preset("small", 256, _SMALL, "97 M", _256, "S"),
    _preset("base", 256, _BASE, "208 M", _256, "B"),
    _preset("large", 256, _LARGE, "478 M", _256, "L"),
    _preset("huge", 256, _HUGE, "942 M", replace(_256, progress=_EARLY), "H"),
    _preset("xsmall", 512, _of_512(_XSMALL, 6), "105 M", _512, "XS"),
    _preset("small", 512, _of_512(_SMALL, 6), "132 M", _512, "S"),
    _preset("base", 512, _of_512(_BASE, 8), "244 M", _512, "B"),
    _preset("large", 512, _of_512(_LARGE, 8), "478 M", _512, "L"),
)
