"""FlowAR's published weights and the embedded ones, with the official settings."""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.models.flowar.config import FlowARConfig
from disa.models.mar.presets import KL16
from disa.models.spec import Assets, Defaults, Paper, Preset, Reported, Spec

SOURCE = "DiSA (arXiv 2505.20297), as restated in XYZFlow Table 1"

_DEFAULTS = Defaults(
    num_ar_steps=5,
    steps="linear:25-15",
    original="constant:25",
    solver="euler",
    grid="flowar-split",
    guidance=4.2,
    interval=(0.0, 0.9),
    spending="25-8@20",
)
_SMALL_ARCHITECTURE = FlowARConfig(
    width=768, encoder_depth=6, decoder_depth=6, num_heads=12, head_width=1024, head_depth=2
)
_SMALL = Preset(
    Spec("flowar-small", "flowar", _SMALL_ARCHITECTURE, VAEConfig()),
    _DEFAULTS,
    Assets(codec_weights=KL16, page="https://huggingface.co/OliverRen/FlowAR"),
    "FlowAR-S, 170 M parameters, ImageNet 256x256",
    Paper(original=Reported("constant:25", fid=3.70, seconds_per_image=0.024), source=SOURCE),
)
_LARGE_ARCHITECTURE = FlowARConfig(
    width=1024, encoder_depth=8, decoder_depth=8, num_heads=16, head_width=1024, head_depth=12, cross=True
)
_LARGE = Preset(
    replace(_SMALL.spec, name="flowar-large", architecture=_LARGE_ARCHITECTURE),
    replace(_DEFAULTS, guidance=2.4),
    _SMALL.assets,
    "FlowAR-L, 589 M parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:25", fid=1.90, seconds_per_image=0.124),
        disa=Reported("linear:25-15", fid=1.90, seconds_per_image=0.082),
        source=SOURCE,
    ),
)
_HUGE_ARCHITECTURE = FlowARConfig(
    width=1536,
    encoder_depth=15,
    decoder_depth=15,
    num_heads=16,
    head_width=1536,
    head_depth=12,
    head_heads=24,
    cross=True,
)
_HUGE = Preset(
    replace(_SMALL.spec, name="flowar-huge", architecture=_HUGE_ARCHITECTURE),
    replace(
        _DEFAULTS,
        steps="linear:50-15",
        original="constant:50",
        guidance=2.4,
        interval=(0.0, 0.7),
        spending="50-15@32",
    ),
    _SMALL.assets,
    "FlowAR-H, 1.9 B parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:50", fid=1.67, seconds_per_image=0.423),
        disa=Reported("linear:50-15", fid=1.69, seconds_per_image=0.164),
        source=SOURCE,
    ),
)
_DIGITS_ARCHITECTURE = FlowARConfig(
    scales=(1, 2, 4, 8),
    latent_channels=8,
    width=128,
    encoder_depth=1,
    decoder_depth=2,
    num_heads=4,
    num_classes=10,
    head_width=128,
    head_depth=3,
    head_heads=2,
)
DIGITS = Preset(
    Spec("flowar-digits", "flowar", _DIGITS_ARCHITECTURE, SmallVAEConfig()),
    replace(_DEFAULTS, num_ar_steps=4, guidance=1.5, batch_size=100, quality="digits"),
    Assets(embedded_codec="digits-vae"),
    "FlowAR, 1.9 M parameters, handwritten digits 32x32; ships with the package",
)

PUBLISHED = (_SMALL, _LARGE, _HUGE)
