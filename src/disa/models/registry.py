"""Name -> architecture, official settings, the paper's numbers and where the weights are.

Settings and numbers: MAR's README and Table 4, DiSA's README and figures as restated in XYZFlow Table 1. Addresses are
those that the upstream projects state themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.core.request import Guidance
from disa.errors import DisaError
from disa.models.flowar import names as flowar
from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR
from disa.models.harmon import names as harmon
from disa.models.harmon.config import HarmonConfig
from disa.models.harmon.model import Harmon
from disa.models.mar import names as mar
from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.naming import NameMap
from disa.models.xar import names as xar
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR

Model = MAR | FlowAR | XAR | Harmon


@dataclass(frozen=True)
class Family:
    """What the models of one paper share: how they are built from an architecture, and their official names."""

    model: Callable[[Any], Model]
    official_names: Callable[[Any], NameMap]


FAMILIES = {
    "mar": Family(MAR, mar.official_names),
    "flowar": Family(FlowAR, flowar.official_names),
    "xar": Family(XAR, xar.official_names),
    "harmon": Family(Harmon, harmon.official_names),
}


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository; with a `*` in its name, the files of that pattern together."""

    repo: str
    name: str


@dataclass(frozen=True)
class Preset:
    """A model by name. original, steps: the undistilled setting and DiSA's, as `--steps` reads them.

    codec: the autoencoder, or None where tokens are pixels. embedded_codec: the name of its weights in the package,
    where it is a small one. quality: which measure of `compare` fits, if any ships.
    token_grid: rows and columns of tokens to draw if not asked otherwise, where they are not the architecture's own.
    tokenizer, embedded_tokenizer: its hub repository, or its folder in the package, for models that draw from prompts.
    rewrite: whether its prompts are rewritten before they are drawn, if not asked otherwise.
    spending, variance_by: bounds and budget of adaptive policies that name none, and what plain `variance` goes by.
    """

    name: str
    architecture: Any
    num_ar_steps: int
    guidance: Guidance
    about: str
    family: str = "mar"
    steps: str = "linear:50-5"
    original: str = "constant:100"
    solver: str = "ddpm"
    grid: str = "clipped-950"
    temperature: float = 1.0
    codec: VAEConfig | SmallVAEConfig | None = None
    embedded_codec: str = "digits-vae"
    weights: HubFile | None = None
    codec_weights: HubFile | None = None
    page: str = ""
    batch_size: int = 16
    quality: str = ""
    token_grid: tuple[int, int] | None = None
    tokenizer: str = ""
    embedded_tokenizer: str = ""
    rewrite: bool = False
    spending: str = "50-5@20"
    variance_by: str = "probe"
    paper: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> Model:
        """A model of this architecture, without weights."""
        return FAMILIES[self.family].model(self.architecture)

    def official_names(self) -> NameMap:
        """Our parameter names and the official ones."""
        return FAMILIES[self.family].official_names(self.architecture)

    @property
    def prompts(self) -> bool:
        """Whether it draws from prompts, not from labels."""
        return self.architecture.capabilities.condition == "prompts"

    @property
    def any_size(self) -> bool:
        """Whether it can draw images of other sizes than its own."""
        return self.architecture.capabilities.any_size

    @property
    def embedded(self) -> bool:
        """Whether the weights ship with the package, or are made with it: nothing is downloaded."""
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
        latent_size=(8, 8), latent_channels=8,
        encoder_width=128, encoder_depth=2, encoder_heads=4, decoder_width=128, decoder_depth=3, decoder_heads=4,
        num_classes=10, buffer_size=8, head_width=256, head_depth=4,
    ),
    num_ar_steps=32,
    guidance=Guidance(1.0),
    about="MAR, 2.7 M parameters, handwritten digits 32x32; ships with the package",
    codec=SmallVAEConfig(),
    batch_size=100,
    quality="digits",
)  # fmt: skip

FLOWAR_PAGE = "https://huggingface.co/OliverRen/FlowAR"

_FLOWAR_SMALL = Preset(
    name="flowar-small",
    family="flowar",
    architecture=FlowARConfig(
        width=768, encoder_depth=6, decoder_depth=6, num_heads=12, head_width=1024, head_depth=2,
    ),
    num_ar_steps=5,
    guidance=Guidance(4.2, interval=(0.0, 0.9)),
    about="FlowAR-S, 170 M parameters, ImageNet 256x256",
    steps="linear:25-15",
    spending="25-8@20",
    original="constant:25",
    solver="euler",
    grid="flowar-split",
    codec=VAEConfig(),
    codec_weights=HubFile(MAR_HUB, "kl16.safetensors"),
    page=FLOWAR_PAGE,
    paper={"original": {"steps": "constant:25", "fid": 3.70, "seconds_per_image": 0.024}},
)  # fmt: skip
_FLOWAR_LARGE = replace(
    _FLOWAR_SMALL,
    name="flowar-large",
    architecture=FlowARConfig(
        width=1024, encoder_depth=8, decoder_depth=8, num_heads=16, head_width=1024, head_depth=12, cross=True,
    ),
    guidance=Guidance(2.4, interval=(0.0, 0.9)),
    about="FlowAR-L, 589 M parameters, ImageNet 256x256",
    paper={
        "original": {"steps": "constant:25", "fid": 1.90, "seconds_per_image": 0.124},
        "disa": {"steps": "linear:25-15", "fid": 1.90, "seconds_per_image": 0.082},
    },
)  # fmt: skip
_FLOWAR_HUGE = replace(
    _FLOWAR_SMALL,
    name="flowar-huge",
    architecture=FlowARConfig(
        width=1536, encoder_depth=15, decoder_depth=15, num_heads=16,
        head_width=1536, head_depth=12, head_heads=24, cross=True,
    ),
    guidance=Guidance(2.4, interval=(0.0, 0.7)),
    about="FlowAR-H, 1.9 B parameters, ImageNet 256x256",
    steps="linear:50-15",
    spending="50-15@32",
    original="constant:50",
    paper={
        "original": {"steps": "constant:50", "fid": 1.67, "seconds_per_image": 0.423},
        "disa": {"steps": "linear:50-15", "fid": 1.69, "seconds_per_image": 0.164},
    },
)  # fmt: skip
_FLOWAR_DIGITS = Preset(
    name="flowar-digits",
    family="flowar",
    architecture=FlowARConfig(
        scales=(1, 2, 4, 8), latent_channels=8, width=128, encoder_depth=1, decoder_depth=2, num_heads=4,
        num_classes=10, head_width=128, head_depth=3, head_heads=2,
    ),
    num_ar_steps=4,
    guidance=Guidance(1.5, interval=(0.0, 0.9)),
    about="FlowAR, 1.9 M parameters, handwritten digits 32x32; ships with the package",
    steps="linear:25-15",
    spending="25-8@20",
    original="constant:25",
    solver="euler",
    grid="flowar-split",
    codec=SmallVAEConfig(),
    batch_size=100,
    quality="digits",
)  # fmt: skip

XAR_PAGE = "https://huggingface.co/OliverRen/xAR"

_XAR_BASE = Preset(
    name="xar-base",
    family="xar",
    architecture=XARConfig(),
    num_ar_steps=4,
    guidance=Guidance(2.7),
    about="xAR-B, 172 M parameters, ImageNet 256x256",
    steps="linear:50-15",
    spending="50-15@32",
    original="constant:50",
    solver="euler-maruyama",
    grid="xar-em",
    codec=VAEConfig(),
    codec_weights=HubFile(MAR_HUB, "kl16.safetensors"),
    page=XAR_PAGE,
    paper={
        "original": {"steps": "constant:50", "fid": 1.67, "seconds_per_image": 0.130},
        "disa": {"steps": "linear:50-15", "fid": 1.68, "seconds_per_image": 0.084},
    },
)
_XAR_LARGE = replace(
    _XAR_BASE,
    name="xar-large",
    architecture=XARConfig(width=1024, encoder_depth=16, decoder_depth=16, num_heads=16),
    guidance=Guidance(2.3),
    about="xAR-L, 608 M parameters, ImageNet 256x256",
    paper={
        "original": {"steps": "constant:50", "fid": 1.28, "seconds_per_image": 0.394},
        "disa": {"steps": "linear:50-15", "fid": 1.23, "seconds_per_image": 0.255},
    },
)
_XAR_HUGE = replace(
    _XAR_BASE,
    name="xar-huge",
    architecture=XARConfig(width=1280, encoder_depth=20, decoder_depth=20, num_heads=16),
    guidance=Guidance(2.2),
    about="xAR-H, 1.1 B parameters, ImageNet 256x256",
    paper={
        "original": {"steps": "constant:50", "fid": 1.24, "seconds_per_image": 0.896},
        "disa": {"steps": "linear:50-15", "fid": 1.23, "seconds_per_image": 0.578},
    },
)
_XAR_DIGITS = Preset(
    name="xar-digits",
    family="xar",
    architecture=XARConfig(
        latent_size=(8, 8), latent_channels=8, width=128, encoder_depth=3, decoder_depth=3, num_heads=4,
        num_classes=10,
    ),
    num_ar_steps=4,
    guidance=Guidance(2.5),
    about="xAR, 1.9 M parameters, handwritten digits 32x32; ships with the package",
    steps="linear:50-15",
    spending="50-15@32",
    original="constant:50",
    solver="euler-maruyama",
    grid="xar-em",
    codec=SmallVAEConfig(),
    batch_size=100,
    quality="digits",
)  # fmt: skip

HARMON_PAGE = "https://github.com/wusize/Harmon"
HARMON_HUB = {"0.5b": "wusize/Harmon-0_5B", "1.5b": "wusize/Harmon-1_5B"}

_HARMON_SMALL = Preset(
    name="harmon-0.5b",
    family="harmon",
    architecture=HarmonConfig(),
    num_ar_steps=64,
    guidance=Guidance(3.0, "constant"),
    about="Harmon 0.5B: Qwen2.5-0.5B and MAR-B, text to image 512x512 and image to text",
    codec=VAEConfig(),
    weights=HubFile(HARMON_HUB["0.5b"], "*.safetensors"),
    codec_weights=HubFile(MAR_HUB, "kl16.safetensors"),
    page=HARMON_PAGE,
    batch_size=4,
    token_grid=(32, 32),
    tokenizer=HARMON_HUB["0.5b"],
)
_HARMON_LARGE = replace(
    _HARMON_SMALL,
    name="harmon-1.5b",
    architecture=HarmonConfig(
        encoder_width=1280, encoder_depth=20, encoder_heads=16,
        decoder_width=1280, decoder_depth=20, decoder_heads=16, head_width=1536, head_depth=12,
        llm_width=1536, llm_hidden=8960, llm_depth=28, llm_heads=12, llm_kv_heads=2,
    ),
    about="Harmon 1.5B: Qwen2.5-1.5B and MAR-H, text to image 512x512 and image to text",
    weights=HubFile(HARMON_HUB["1.5b"], "*.safetensors"),
    tokenizer=HARMON_HUB["1.5b"],
    # GenEval overall and the seconds of a batch of unknown size, read from rounded ticks of the paper's figure.
    paper={
        "original": {"num_ar_steps": 64, "steps": "constant:100", "geneval": 0.73, "seconds": 40.0},
        "disa": {"num_ar_steps": 64, "geneval": 0.74, "seconds": 8.1},
    },
)  # fmt: skip

SHAPES_CODEC = SmallVAEConfig(in_channels=3, latent_channels=16, eighth_width=96, linear=True)
_HARMON_SHAPES = Preset(
    name="harmon-shapes",
    family="harmon",
    architecture=HarmonConfig(
        latent_size=(6, 6), latent_channels=16,
        encoder_width=128, encoder_depth=2, encoder_heads=4, decoder_width=128, decoder_depth=3, decoder_heads=4,
        num_classes=1, buffer_size=8, head_width=192, head_depth=3,
        vocab_size=64, llm_width=128, llm_hidden=384, llm_depth=3, llm_heads=4, llm_kv_heads=2, max_positions=256,
    ),
    num_ar_steps=24,
    guidance=Guidance(1.5, "constant"),
    temperature=0.9,
    rewrite=True,
    about="Harmon, 2.4 M parameters, captioned shapes 48x48, text to image and image to text",
    codec=SHAPES_CODEC,
    embedded_codec="shapes-vae",
    batch_size=100,
    quality="shapes",
    embedded_tokenizer="shapes-tokenizer",
)  # fmt: skip

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _DIGITS, _FLOWAR_DIGITS, _XAR_DIGITS, _BASE, _LARGE, _HUGE,
        _FLOWAR_SMALL, _FLOWAR_LARGE, _FLOWAR_HUGE, _XAR_BASE, _XAR_LARGE, _XAR_HUGE,
        _HARMON_SMALL, _HARMON_LARGE, _HARMON_SHAPES,
    )
}  # fmt: skip


def find_preset(name: str) -> Preset:
    """The preset of that name."""
    if name not in PRESETS:
        raise DisaError(f"unknown model {name!r}: expected one of {', '.join(PRESETS)}, a folder, or a hub id.")
    return PRESETS[name]
