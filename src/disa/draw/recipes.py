"""Recipes: options of drawing that belong together, with what they were measured to keep and to save. `disa tune`
writes them; `--recipe fast` or `--recipe FILE` draws by one, and options that are given beside it are the ones that
count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from disa.core.steps import DRAWN, is_planned
from disa.draw.loaded import Loaded
from disa.draw.settings import Settings
from disa.errors import DisaError, warn
from disa.files import json_bytes
from disa.models.registry import PRESETS
from disa.reading import LONGEST_JSON, read_bounded, read_json
from disa.values import command, named, path, shown
from disa.weights.package import in_package

FORMAT = 1
RECIPE = "recipe.json"
"""The name of its file in the folder of a model, and in that which `disa tune` writes."""
FAST, NONE = "fast", "none"
_WITH_FILE = re.compile(rf"(table|plan|straight)\s*:\s*(.+?)\s*(@[0-9.e-]+|{DRAWN})?", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a recipe file holds, see `read_recipe`."""

    settings: Settings
    """The options that it gives; None where it leaves one to the model."""
    source: str
    content: Mapping[str, Any]
    """As JSON has it: also what it was measured for (`model`, `weights`) and what was found (`measured`)."""

    def under(self, given: Settings) -> Settings:
        """The options given, and the recipe's for all others. Steps that are given leave the recipe's solver out where
        one of the two is a plan's, which has its own."""
        own = self.settings
        if given.steps is not None and given.solver is None and (is_planned(given.steps) or is_planned(own.steps)):
            own = replace(own, solver=None, **dict.fromkeys(parts_of("solver")))
        if given.solver is not None:  # with another solver, the parts of the recipe's say nothing
            own = replace(own, **dict.fromkeys(parts_of("solver")))
        theirs = {each.name: getattr(given, each.name) for each in fields(given)} | {"recipe": None}
        return replace(own, **{name: value for name, value in theirs.items() if value is not None})

    def files(self) -> dict[str, bytes]:
        """Its file and those that it names, by their names in one folder. Raises DisaError."""
        told, files = dict[str, Any](), dict[str, bytes]()
        for name, value in self.settings.given().items():
            found = _WITH_FILE.fullmatch(value) if isinstance(value, str) else None
            told[name] = value
            if found is not None:
                place = Path(found[2])
                content = read_bounded(place, LONGEST_JSON, f"what {self.source} names")
                own = place.name if files.get(place.name, content) == content else f"{name}-{place.name}"
                told[name], files[own] = f"{found[1]}:{own}{found[3] or ''}", content
        return files | {RECIPE: json_bytes({**self.content, "settings": told})}


def parts_of(whole: str) -> list[str]:
    """The options that are part of another one."""
    return [each.name for each in fields(Settings) if each.metadata["part_of"] == whole]


def with_recipe(settings: Settings, loaded: Loaded) -> Settings:
    """Settings with the options of the recipe that they name, or that the model was loaded with. Raises DisaError."""
    wanted = settings.recipe or loaded.recipe
    if wanted is None or wanted == NONE:
        return replace(settings, recipe=None)
    recipe = find_recipe(wanted, loaded)
    about = {"model": loaded.preset.name, "weights": loaded.weights_hash}
    if others := [name for name, here in about.items() if recipe.content.get(name, here) != here]:
        long = 12 if others[0] == "weights" else None  # of a hash, enough to tell it by
        theirs, here = recipe.content[others[0]][:long], about[others[0]][:long]
        warn(f"{recipe.source} was measured for {others[0]} {theirs} (here {here}): it may not fit")
    return recipe.under(settings)


def find_recipe(name: str, loaded: Loaded) -> Recipe:
    """`fast`, the recipe that came with a model's folder or with the package, which has some for published models, too;
    or one of a file. Raises DisaError."""
    if name != FAST:
        return read_recipe(path(name, "a recipe"))
    model = loaded.preset.name
    names = [model, *([loaded.preset.spec.family] if model in PRESETS else [])]
    shipped = [in_package(f"{each}-{FAST}.json") for each in names]
    for place in (loaded.folder and loaded.folder / RECIPE, *shipped):
        if place and place.is_file():
            return replace(read_recipe(place), source=FAST)
    tune = command("disa", "tune", "--model", model, "--out", Path("tuned"))
    raise DisaError(f"{model} has no recipe {FAST}: make one with `{tune}`, and draw with --recipe tuned/{RECIPE}.")


def read_recipe(file: Path) -> Recipe:
    """A recipe from a JSON file, or from the one in a folder. Raises DisaError.

    | part | taken | refused |
    |---|---|---|
    | `format` | 1 | absent, later ones |
    | `settings` | an object of options by name, as `Settings.given` has them | unknown ones, bad values, `recipe` |
    | `model`, `weights` | texts, or absent | all else |
    | anything else | not looked at | |

    Tables and plans that it names lie beside it, unless their path is whole.
    """
    place = file / RECIPE if file.is_dir() else file
    content = read_json(place, "the recipe")
    try:
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = shown(content.get("format") if isinstance(content, dict) else content)
            raise DisaError(f"expected an object of format {FORMAT}, found {found}")
        given = content.get("settings")
        if not isinstance(given, dict) or "recipe" in given:
            raise DisaError("expected its options under `settings`, without another recipe")
        if wrong := [name for name in ("model", "weights") if not isinstance(content.get(name, ""), str)]:
            raise DisaError(f"{wrong[0]} must be a text")
        settings = Settings.of(**{name: _beside(value, place.parent) for name, value in given.items()})
    except DisaError as error:
        raise DisaError(f"{named(place)} is no recipe that `disa tune` wrote: {str(error).rstrip('.')}.") from error
    return Recipe(settings, named(file), content)


def _beside(value: Any, folder: Path) -> Any:
    """An option whose text names a file, with the whole path of that."""
    found = _WITH_FILE.fullmatch(value) if isinstance(value, str) else None
    return value if found is None else f"{found[1]}:{folder / path(found[2], 'a file')}{found[3] or ''}"
