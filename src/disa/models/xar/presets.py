"""xAR's published weights and the embedded ones, with the official settings."""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.models.mar.presets import KL16
from disa.models.spec import Assets, Defaults, Paper, Preset, Reported, Spec
from disa.models.xar.config import XARConfig

SOURCE = "DiSA (arXiv 2505.20297), as restated in XYZFlow Table 1"

_BASE = Preset(
    Spec("xar-base", "xar", XARConfig(), VAEConfig()),
    Defaults(
        num_ar_steps=4,
        steps="linear:50-15",
        original="constant:50",
        solver="euler-maruyama",
        grid="xar-em",
        guidance=2.7,
        spending="50-15@32",
    ),
    Assets(codec_weights=KL16, page="https://huggingface.co/OliverRen/xAR"),
    "xAR-B, 172 M parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:50", fid=1.67, seconds_per_image=0.130),
        disa=Reported("linear:50-15", fid=1.68, seconds_per_image=0.084),
        source=SOURCE,
    ),
)
_LARGE_ARCHITECTURE = XARConfig(width=1024, encoder_depth=16, decoder_depth=16, num_heads=16)
_LARGE = Preset(
    replace(_BASE.spec, name="xar-large", architecture=_LARGE_ARCHITECTURE),
    replace(_BASE.defaults, guidance=2.3),
    _BASE.assets,
    "xAR-L, 608 M parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:50", fid=1.28, seconds_per_image=0.394),
        disa=Reported("linear:50-15", fid=1.23, seconds_per_image=0.255),
        source=SOURCE,
    ),
)
_HUGE_ARCHITECTURE = XARConfig(width=1280, encoder_depth=20, decoder_depth=20, num_heads=16)
_HUGE = Preset(
    replace(_BASE.spec, name="xar-huge", architecture=_HUGE_ARCHITECTURE),
    replace(_BASE.defaults, guidance=2.2),
    _BASE.assets,
    "xAR-H, 1.1 B parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:50", fid=1.24, seconds_per_image=0.896),
        disa=Reported("linear:50-15", fid=1.23, seconds_per_image=0.578),
        source=SOURCE,
    ),
)
_DIGITS_ARCHITECTURE = XARConfig(
    latent_size=(8, 8),
    latent_channels=8,
    width=128,
    encoder_depth=3,
    decoder_depth=3,
    num_heads=4,
    num_classes=10,
)
DIGITS = Preset(
    Spec("xar-digits", "xar", _DIGITS_ARCHITECTURE, SmallVAEConfig()),
    replace(_BASE.defaults, guidance=2.5, batch_size=100, quality="digits"),
    Assets(embedded_codec="digits-vae"),
    "xAR, 1.9 M parameters, handwritten digits 32x32; ships with the package",
)

PUBLISHED = (_BASE, _LARGE, _HUGE)
