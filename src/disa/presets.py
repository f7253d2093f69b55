"""Name -> architecture, official settings, the paper's numbers and where the weights are.

Settings and numbers: MAR's README and Table 4, DiSA's README and figures as restated in XYZFlow Table 1. Addresses are
those that the upstream projects state themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from disa.errors import DisaError
from disa.models.mar import MARConfig
from disa.models.vae import VAEConfig
from disa.problem import Guidance


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository."""

    repo: str
    name: str


@dataclass(frozen=True)
class Preset:
    """A model by name. original, steps: the undistilled setting and DiSA's, as `--steps` reads them.

    codec: the autoencoder, or None where tokens are pixels. quality: which measure of `compare` fits, if any ships.
    """

    name: str
    architecture: MARConfig
    num_ar_steps: int
    guidance: Guidance
    about: str
    family: str = "mar"
    steps: str = "linear:50-5"
    original: str = "constant:100"
    solver: str = "ddpm"
    grid: str = "clipped-950"
    temperature: float = 1.0
    codec: VAEConfig | None = None
    weights: HubFile | None = None
    codec_weights: HubFile | None = None
    page: str = ""
    batch_size: int = 16
    quality: str = ""
    paper: Mapping[str, Any] = field(default_factory=dict)

    @property
    def embedded(self) -> bool:
        """Whether the weights ship with the package."""
        return self.weights is None and not self.page


MAR_HUB = "jadechoghari/mar"
MAR_PAGE = "https://github.com/LTH14/mar"

_BASE = Preset(
    name="mar-base",
    architecture=MARConfig(),
    num_ar_steps=64,
    guidance=Guidance(2.9),
    about="MAR-B, 208 M parameters, ImageNet 256x256",
    codec=VAEConfig(),
    weights=HubFile(MAR_HUB, "mar-base.safetensors"),
    codec_weights=HubFile(MAR_HUB, "kl16.safetensors"),
    page=MAR_PAGE,
    paper={
        "original": {"num_ar_steps": 256, "steps": "constant:100", "fid": 2.31, "seconds_per_image": 0.650},
        "disa": {"num_ar_steps": 64, "steps": "linear:50-5", "fid": 2.31, "seconds_per_image": 0.114},
    },
)
_LARGE = replace(
    _BASE,
    name="mar-large",
    architecture=MARConfig(
        encoder_width=1024, encoder_depth=16, encoder_heads=16,
        decoder_width=1024, decoder_depth=16, decoder_heads=16, head_width=1280, head_depth=8,
    ),
    guidance=Guidance(3.0),
    about="MAR-L, 479 M parameters, ImageNet 256x256",
    weights=HubFile(MAR_HUB, "mar-large.safetensors"),
    paper={
        "original": {"num_ar_steps": 256, "steps": "constant:100", "fid": 1.78, "seconds_per_image": 1.102},
        "disa": {"num_ar_steps": 64, "steps": "linear:50-5", "fid": 1.77, "seconds_per_image": 0.215},
    },
)  # fmt: skip
_HUGE = replace(
    _BASE,
    name="mar-huge",
    architecture=MARConfig(
        encoder_width=1280, encoder_depth=20, encoder_heads=16,
        decoder_width=1280, decoder_depth=20, decoder_heads=16, head_width=1536, head_depth=12,
    ),
    guidance=Guidance(3.3),
    about="MAR-H, 943 M parameters, ImageNet 256x256",
    weights=HubFile(MAR_HUB, "mar-huge.safetensors"),
    paper={
        "original": {"num_ar_steps": 256, "steps": "constant:100", "fid": 1.55, "seconds_per_image": 1.957},
        "disa": {"num_ar_steps": 64, "steps": "linear:50-5", "fid": 1.57, "seconds_per_image": 0.404},
    },
)  # fmt: skip
_DIGITS = Preset(
    name="mar-digits",
    architecture=MARConfig(
        latent_size=(32, 32), latent_channels=1, patch_size=4,
        encoder_width=128, encoder_depth=2, encoder_heads=4, decoder_width=128, decoder_depth=3, decoder_heads=4,
        num_classes=10, buffer_size=8, head_width=256, head_depth=4,
    ),
    num_ar_steps=32,
    guidance=Guidance(1.5),
    about="MAR, 2 M parameters, handwritten digits 32x32; ships with the package",
    batch_size=100,
    quality="digits",
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (_DIGITS, _BASE, _LARGE, _HUGE)}


def find_preset(name: str) -> Preset:
    """The preset of that name."""
    if name not in PRESETS:
        raise DisaError(f"unknown model {name!r}: expected one of {', '.join(PRESETS)}, a folder, or a hub id.")
    return PRESETS[name]
