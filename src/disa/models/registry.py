"""The families and the presets by name."""

from __future__ import annotations

from disa.errors import DisaError
from disa.models.families import FAMILIES as FAMILIES
from disa.models.families import Model as Model
from disa.models.flowar import presets as flowar
from disa.models.harmon import presets as harmon
from disa.models.mar import presets as mar
from disa.models.spec import Preset
from disa.models.xar import presets as xar
from disa.values import did_you_mean, shown

_DIGITS = (mar.DIGITS, flowar.DIGITS, xar.DIGITS)
_PUBLISHED = (*mar.PUBLISHED, *flowar.PUBLISHED, *xar.PUBLISHED, *harmon.PUBLISHED)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*_DIGITS, *_PUBLISHED, harmon.SHAPES)}


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises DisaError, which tells the nearest name."""
    if name in PRESETS:
        return PRESETS[name]
    raise DisaError(
        f"unknown model {shown(name)}: expected one of {', '.join(PRESETS)}, a folder, or a hub id."
        f"{did_you_mean(name, PRESETS)}"
    )
