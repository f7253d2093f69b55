"""What the name of a model means: a preset, a folder, or a repository of the hub.

| given | taken as |
|---|---|
| "mar-base" | the preset; a warning says so where a model's folder of that name lies here |
| "./mar-base", "mar-base/", "~/mar-base", Path("mar-base") | the folder |
| "owner/name" | the folder of that name, or else the repository of the hub |
| "owner/name@revision" | the same at a branch, a tag or a commit |
| a file | refused, with the command that takes it |
| "LTH14/mar" and other projects of presets, their addresses too | refused, with their presets |
| all else | refused, with the nearest preset |
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from disa.errors import DisaError, warn
from disa.models.registry import PRESETS, find_preset, presets_from
from disa.models.spec import Preset
from disa.values import LONGEST_NAME, command, did_you_mean, path, shown, text
from disa.weights.fitting import loading_command, preset_of
from disa.weights.hub import REPOSITORY, download_folder
from disa.weights.shards import CONFIG, WEIGHTS, is_ours

WHAT = "the name of a model"
ADDRESS = re.compile(r"(https?://)?(www\.)?(huggingface\.co|hf\.co|github\.com)/(?=.)")


def find_model(name: str | os.PathLike[str], checkpoint: Path | None = None) -> Preset | Path:
    """The preset of that name, or a folder on this machine. checkpoint: other weights, which need a preset.

    Raises DisaError.
    """
    if not isinstance(name, os.PathLike):
        name = text(name, WHAT)
        if name in PRESETS:
            if checkpoint is None and (Path(name) / CONFIG).is_file():
                told = "{0} is the preset of that name, not the folder here: for the folder give ./{0}"
                warn(told.format(name))
            return PRESETS[name]
        if not name.strip():
            return find_preset(name)
    place = path(name, WHAT)
    if os.path.isdir(place) and checkpoint is None:
        return place
    if len(str(place)) > LONGEST_NAME:
        raise DisaError(f"there is no folder {shown(str(place))}.")
    if checkpoint is not None:
        raise DisaError(_beside_checkpoint(name, place, checkpoint))
    if os.path.exists(place):
        raise DisaError(_of_file(place))
    if isinstance(name, os.PathLike) or name.startswith((".", "/", "~")) or name.endswith("/"):
        also = f" The preset is named {place}." if str(place) in PRESETS else ""
        raise DisaError(f"there is no folder {place}.{also}")
    bare = ADDRESS.sub("", name)
    if presets_from(bare) or "/" not in name:
        return find_preset(bare)
    if bare != name and REPOSITORY.fullmatch(bare):
        raise DisaError(f"{name} is an address: give {bare} instead.")
    if name.count("/") > 1 and "@" not in name:
        raise DisaError(f"there is no folder {name}.")
    return download_folder(name)


def _beside_checkpoint(name: str | os.PathLike[str], place: Path, checkpoint: Path) -> str:
    """Why what was named beside a checkpoint is no preset."""
    needed = "a checkpoint needs the name of its model, one that `disa presets` lists"
    if os.path.isdir(place):
        own = f"{place} is a folder with weights of its own: leave {checkpoint} out, or name a preset"
        return f"{needed}; {own}."
    if presets_from(str(name)):
        find_preset(str(name))
    near = did_you_mean(name, PRESETS)
    return f"{needed}; found {shown(name)}.{near}"


def _of_file(place: Path) -> str:
    """What to do with a file that was given for a model."""
    if not place.is_file():
        return f"{place} is neither a folder nor a file."
    if is_ours(place.parent) and (place.parent / WEIGHTS).is_file():
        told = command("disa", "sample", "--model", place.parent)
        return f"{place} is a file of a model: give its folder, as in `{told}`."
    if preset := preset_of(place):
        return f"{place} is a file, not a model. It has weights of {preset}: give `{loading_command(place, preset)}`."
    told = loading_command(place, next(iter(PRESETS)))
    return f"{place} is a file, not a model: give it as a checkpoint of its preset, as in `{told}`."
