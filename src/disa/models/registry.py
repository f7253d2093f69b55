"""The families and the presets by name."""

from __future__ import annotations

from disa.errors import DisaError
from disa.models.bitdance import presets as bitdance
from disa.models.emigm import presets as emigm
from disa.models.families import FAMILIES as FAMILIES
from disa.models.families import Model as Model
from disa.models.flowar import presets as flowar
from disa.models.harmon import presets as harmon
from disa.models.mar import presets as mar
from disa.models.nextstep import presets as nextstep
from disa.models.spec import Assets, Preset
from disa.models.unipic import presets as unipic
from disa.models.xar import presets as xar
from disa.values import did_you_mean, either, shown

_DIGITS = (mar.DIGITS, flowar.DIGITS, xar.DIGITS, bitdance.DIGITS)
_PUBLISHED = (
    *mar.PUBLISHED,
    *flowar.PUBLISHED,
    *xar.PUBLISHED,
    *harmon.PUBLISHED,
    *bitdance.PUBLISHED,
    *nextstep.PUBLISHED,
    *unipic.PUBLISHED,
    *emigm.PUBLISHED,
)
PRESETS: dict[str, Preset] = {preset.name: preset for preset in (*_DIGITS, *_PUBLISHED, harmon.SHAPES)}


def find_preset(name: str) -> Preset:
    """The preset of that name. Raises DisaError, which tells the nearest name."""
    if isinstance(name, str) and name in PRESETS:
        return PRESETS[name]
    if presets := presets_from(name):
        give = "that name" if len(presets) == 1 else "one of these names"
        raise DisaError(f"{name} is where the weights of {either(presets)} come from: give {give}.")
    raise DisaError(
        f"unknown model {shown(name)}: expected one that `disa presets` lists, a folder, or a hub id."
        f"{did_you_mean(name, PRESETS)}"
    )


def presets_from(project: str) -> list[str]:
    """The presets whose weights come from a project such as LTH14/mar, whatever its revision."""
    wanted = str(project).partition("@")[0].rstrip("/").casefold()
    return [
        name
        for name, preset in PRESETS.items()
        if wanted.count("/") == 1 and wanted in [place.casefold() for place in _projects(preset.assets)]
    ]


def _projects(assets: Assets) -> list[str]:
    """Where weights are, and where their page is."""
    return ["/".join(assets.page.split("/")[-2:]), *([assets.weights.repo] if assets.weights else [])]
