"""disa: diffusion step annealing for models that draw images as groups of continuous tokens.

    import disa
    sampler = disa.Sampler.load("mar-digits")
    out = sampler.sample(labels=[3, 5], seeds=[0, 1], steps="linear:50-5")

    steps = disa.linear(50, 5)                    # in a loop of your own
    for k in range(K): x = denoise(z, num_steps=steps.at(k, K))

What is named here is imported when it is first used, so that `import disa` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disa.core.steps import constant as constant
    from disa.core.steps import cosine as cosine
    from disa.core.steps import linear as linear
    from disa.core.steps import two_stage as two_stage
    from disa.core.texts import parse as parse
    from disa.core.texts import table as table
    from disa.draw.inputs import Inputs as Inputs
    from disa.draw.sampler import Sampler as Sampler
    from disa.draw.samples import Samples as Samples
    from disa.draw.settings import Settings as Settings
    from disa.errors import DisaError as DisaError
    from disa.models.registry import PRESETS as PRESETS
    from disa.pipeline.pipeline import Pipeline as Pipeline

__version__ = "0.2.0"

_HOMES = {
    "errors": ("DisaError",),
    "models.registry": ("PRESETS",),
    "draw.inputs": ("Inputs",),
    "draw.sampler": ("Sampler",),
    "draw.samples": ("Samples",),
    "draw.settings": ("Settings",),
    "pipeline.pipeline": ("Pipeline",),
    "core.steps": ("constant", "cosine", "linear", "two_stage"),
    "core.texts": ("parse", "table"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "PRESETS",
    "DisaError",
    "Inputs",
    "Pipeline",
    "Sampler",
    "Samples",
    "Settings",
    "__version__",
    "constant",
    "cosine",
    "linear",
    "parse",
    "table",
    "two_stage",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'disa' has no attribute {name!r}")
    return getattr(import_module(f"disa.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
