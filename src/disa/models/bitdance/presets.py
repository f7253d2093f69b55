"""BitDance's published weights for ImageNet, with the official settings."""

from __future__ import annotations

from dataclasses import replace

from disa.codecs.binary import BinaryConfig
from disa.models.bitdance.config import BitDanceConfig
from disa.models.spec import Assets, Defaults, HubFile, Paper, Preset, Reported, Spec

HUB = "shallowdream204/BitDance-ImageNet"
SOURCE = "BitDance's README (FID of 50 000 images)"


def _preset(name: str, file: str, architecture: BitDanceConfig, guidance: float, about: str, fid: float) -> Preset:
    """One set of weights. The annealed steps are disa's choice: there is no annealing in the paper."""
    return Preset(
        Spec(name, "bitdance", architecture, BinaryConfig()),
        Defaults(
            num_ar_steps=architecture.num_ar_steps,
            original="constant:100",
            solver="euler-maruyama-ode",
            grid="bitdance",
            guidance=guidance,
        ),
        Assets(HubFile(HUB, f"{file}.pt"), HubFile(HUB, "ae_d16c32.pt"), "https://github.com/shallowdream204/BitDance"),
        f"BitDance-{about}, ImageNet 256x256",
        Paper(Reported("constant:100", architecture.num_ar_steps, fid=fid), source=SOURCE),
    )


_BASE = BitDanceConfig()
_LARGE = BitDanceConfig(width=1024, depth=32, num_heads=16, head_width=1024, head_depth=8)
_HUGE = BitDanceConfig(width=1280, depth=40, num_heads=20, head_width=1280, head_depth=12, head_modulations=3)
PUBLISHED = (
    _preset("bitdance-base", "BitDance_B_1X", _BASE, 3.2, "B-1x, 242 M parameters", 1.68),
    _preset("bitdance-base-4x", "BitDance_B_4X", replace(_BASE, group_size=4), 3.9, "B-4x, 260 M parameters", 1.69),
    _preset("bitdance-base-16x", "BitDance_B_16X", replace(_BASE, group_size=16), 6.1, "B-16x, 260 M parameters", 1.91),
    _preset("bitdance-large", "BitDance_L_1X", _LARGE, 4.0, "L-1x, 527 M parameters", 1.31),
    _preset("bitdance-huge", "BitDance_H_1X", _HUGE, 4.55, "H-1x, 1.0 B parameters", 1.24),
)

DIGITS_CODEC = BinaryConfig(latent_channels=8, block_widths=(32, 32, 64), layers_per_block=1, in_channels=1)
_DIGITS = BitDanceConfig((8, 8), 8, width=128, depth=4, num_heads=4, class_tokens=4, num_classes=10)
_DIGITS = replace(_DIGITS, head_width=160, head_depth=3, head_modulations=1)
DIGITS = Preset(
    Spec("bitdance-digits", "bitdance", _DIGITS, DIGITS_CODEC),
    replace(PUBLISHED[0].defaults, num_ar_steps=64, guidance=2.0, batch_size=100, quality="digits"),
    Assets(embedded_codec="digits-bits"),
    "BitDance, 1.7 M parameters, handwritten digits 32x32; ships with the package",
)
