"""MAR's published weights and the embedded ones, with the official settings.

Settings: MAR's README. Addresses are those that the upstream project states itself.
"""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.models.mar.config import MARConfig
from disa.models.spec import Assets, Defaults, HubFile, Paper, Preset, Reported, Spec

HUB = "jadechoghari/mar"
SOURCE = "MAR (arXiv 2406.11838) Table 4; DiSA (arXiv 2505.20297), as restated in XYZFlow Table 1"
KL16 = HubFile(HUB, "kl16.safetensors")
"""The autoencoder of every model that was trained on latents of MAR's."""

_BASE = Preset(
    Spec("mar-base", "mar", MARConfig(), VAEConfig()),
    Defaults(num_ar_steps=64, guidance=2.9),
    Assets(HubFile(HUB, "mar-base.safetensors"), KL16, page="https://github.com/LTH14/mar"),
    "MAR-B, 208 M parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:100", num_ar_steps=256, fid=2.31, seconds_per_image=0.650),
        disa=Reported("linear:50-5", num_ar_steps=64, fid=2.31, seconds_per_image=0.114),
        source=SOURCE,
    ),
)
_LARGE_ARCHITECTURE = MARConfig(
    encoder_width=1024,
    encoder_depth=16,
    encoder_heads=16,
    decoder_width=1024,
    decoder_depth=16,
    decoder_heads=16,
    head_width=1280,
    head_depth=8,
)
_LARGE = Preset(
    replace(_BASE.spec, name="mar-large", architecture=_LARGE_ARCHITECTURE),
    replace(_BASE.defaults, guidance=3.0),
    replace(_BASE.assets, weights=HubFile(HUB, "mar-large.safetensors")),
    "MAR-L, 479 M parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:100", num_ar_steps=256, fid=1.78, seconds_per_image=1.102),
        disa=Reported("linear:50-5", num_ar_steps=64, fid=1.77, seconds_per_image=0.215),
        source=SOURCE,
    ),
)
_HUGE_ARCHITECTURE = MARConfig(
    encoder_width=1280,
    encoder_depth=20,
    encoder_heads=16,
    decoder_width=1280,
    decoder_depth=20,
    decoder_heads=16,
    head_width=1536,
    head_depth=12,
)
_HUGE = Preset(
    replace(_BASE.spec, name="mar-huge", architecture=_HUGE_ARCHITECTURE),
    replace(_BASE.defaults, guidance=3.3),
    replace(_BASE.assets, weights=HubFile(HUB, "mar-huge.safetensors")),
    "MAR-H, 943 M parameters, ImageNet 256x256",
    Paper(
        original=Reported("constant:100", num_ar_steps=256, fid=1.55, seconds_per_image=1.957),
        disa=Reported("linear:50-5", num_ar_steps=64, fid=1.57, seconds_per_image=0.404),
        source=SOURCE,
    ),
)
_DIGITS_ARCHITECTURE = MARConfig(
    latent_size=(8, 8),
    latent_channels=8,
    encoder_width=128,
    encoder_depth=2,
    encoder_heads=4,
    decoder_width=128,
    decoder_depth=3,
    decoder_heads=4,
    num_classes=10,
    buffer_size=8,
    head_width=256,
    head_depth=4,
)
DIGITS = Preset(
    Spec("mar-digits", "mar", _DIGITS_ARCHITECTURE, SmallVAEConfig()),
    Defaults(num_ar_steps=32, batch_size=100, quality="digits"),
    Assets(embedded_codec="digits-vae"),
    "MAR, 2.7 M parameters, handwritten digits 32x32; ships with the package",
)

PUBLISHED = (_BASE, _LARGE, _HUGE)
