"""What a set of weights is, how it is drawn if not asked otherwise, where it is, and what its paper reports."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

from disa.codecs.binary import BinaryConfig
from disa.codecs.dc import DCConfig
from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.models.families import FAMILIES, Model
from disa.models.naming import NameMap


@dataclass(frozen=True)
class Spec:
    """What a set of weights is."""

    name: str
    """What reports, file names and messages call it."""
    family: str
    """One of `FAMILIES`."""
    architecture: Any
    """The family's configuration: such as `MARConfig`."""
    codec: VAEConfig | SmallVAEConfig | BinaryConfig | DCConfig | None = None
    """The autoencoder's configuration, or None where tokens are pixels."""


@dataclass(frozen=True)
class Defaults:
    """How a model is drawn if not asked otherwise, in plain values, under the names of the options of drawing."""

    num_ar_steps: int
    steps: str = "linear:50-5"
    """The annealed step policy."""
    original: str = "constant:100"
    """The step policy of the model's own paper, without annealing."""
    solver: str = "ddpm"
    grid: str = "clipped-950"
    temperature: float = 1.0
    """Scale of the noise that the solver adds."""
    guidance: float = 1.0
    """The scale; 1 is off."""
    ramp: str = "linear"
    """Guidance over AR steps: linear, constant or another of `disa.core.request.RAMPS`."""
    interval: tuple[float, float] = (0.0, 1.0)
    """The denoising times where guidance acts; 0 is data, 1 is noise."""
    progress: tuple[float, float] = (0.0, 1.0)
    """The AR steps where guidance acts; 0 is the first, 1 the last."""
    counts: str = "cosine"
    """How many tokens each AR step draws, in models that draw them in any order."""
    size: tuple[int, int] | None = None
    """Height and width of an image in pixels, or None for the architecture's own."""
    batch_size: int = 16
    rewrite: bool = False
    """Whether prompts are rewritten before they are drawn."""
    spending: str = "50-5@20"
    """Bounds and budget of adaptive policies that name none."""
    variance_by: str = "probe"
    """What the adaptive policy `variance` goes by."""
    quality: str = ""
    """The measure of `compare` that fits, if one ships."""


@dataclass(frozen=True)
class HubFile:
    """A file of a Hugging Face repository; with a `*` in its name, the files of that pattern together."""

    repo: str
    name: str


@dataclass(frozen=True)
class Assets:
    """Where files are. What is embedded is named as in the package's folder of weights."""

    weights: HubFile | None = None
    codec_weights: HubFile | None = None
    page: str = ""
    """Where upstream's download links are."""
    tokenizer: str = ""
    """Hub repository of the tokenizer, for models that draw from prompts."""
    embedded_tokenizer: str = ""
    embedded_codec: str = ""


@dataclass(frozen=True)
class Reported:
    """One row of a paper's table; None is what it does not say."""

    steps: str | None = None
    num_ar_steps: int | None = None
    fid: float | None = None
    geneval: float | None = None
    seconds_per_image: float | None = None
    seconds: float | None = None
    """Of a batch whose size the paper does not give."""


@dataclass(frozen=True)
class Paper:
    """What is reported for these weights, without annealing and with it."""

    original: Reported | None = None
    disa: Reported | None = None
    source: str = ""


@cache
def _official_names(family: str, architecture: Any) -> NameMap:
    """Made once: a checkpoint that does not fit is held against those of every preset."""
    return FAMILIES[family].official_names(architecture)


@dataclass(frozen=True)
class Preset:
    """A model by name."""

    spec: Spec
    defaults: Defaults
    assets: Assets = field(default_factory=Assets)
    about: str = ""
    """One line for people."""
    paper: Paper = field(default_factory=Paper)

    @property
    def name(self) -> str:
        """What it is called."""
        return self.spec.name

    def build(self) -> Model:
        """A model of this architecture, without weights."""
        return FAMILIES[self.spec.family].model(self.spec.architecture)

    def official_names(self) -> NameMap:
        """Our parameter names and the official ones."""
        return _official_names(self.spec.family, self.spec.architecture)

    @property
    def prompts(self) -> bool:
        """Whether it draws from prompts, not from labels."""
        return self.spec.architecture.capabilities.condition == "prompts"

    @property
    def any_size(self) -> bool:
        """Whether it can draw images of other sizes than its own."""
        return self.spec.architecture.capabilities.any_size

    @property
    def embedded(self) -> bool:
        """Whether the weights ship with the package, or are made with it: nothing is downloaded."""
        return self.assets.weights is None and not self.assets.page
