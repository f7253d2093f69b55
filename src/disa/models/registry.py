"""The families and the presets by name."""

from __future__ import annotations

from difflib import get_close_matches

from disa.errors import DisaError
from disa.models.families import FAMILIES as FAMILIES
from disa.models.families import Model as Model
from disa.models.flowar import presets as flowar
from disa.models.harmon import presets as harmon
from disa.models.mar import presets as mar
from disa.models.spec import Preset
from disa.models.xar import presets as xar

_DIGITS = (mar.DIGITS, flowar.DIGITS, xar.DIGITS)
_PUBLISHED = (*mar.PUBLISHED, *flowar.PUBLISHED, *xar.PUBLISHED, *harmon.PUBLISHED)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*_DIGITS, *_PUBLISHED, harmon.SHAPES)}


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises DisaError, which tells the nearest name."""
    if name in PRESETS:
        return PRESETS[name]
    near = get_close_matches(name, PRESETS, n=1)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise DisaError(f"unknown model {name!r}: expected one of {', '.join(PRESETS)}, a folder, or a hub id.{hint}")
