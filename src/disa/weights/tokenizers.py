"""Where a model's tokenizer is, and its files, which a model's folder has in `tokenizer/` and the hub's beside weights.

| given | taken |
|---|---|
| a folder | its `tokenizer/` if there is one, or the folder itself |
| a file, such as tokenizer.json | its folder |
| owner/name, owner/name@revision | what the hub has |
"""

from __future__ import annotations

import os
from pathlib import Path

from disa.errors import DisaError
from disa.models.spec import Preset
from disa.reading import json_in
from disa.values import path, shown
from disa.weights.hub import REPOSITORY, download_tokenizer
from disa.weights.package import in_package
from disa.weights.shards import CONFIG, is_ours

TOKENIZER = "tokenizer"
SEEN = "[!.]*"
"""Files that are not hidden: those are no tokenizer's, and may be what a killed process left."""
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "*.tiktoken")
"""A folder with one of these has a tokenizer."""
BESIDE = (
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.json",
    "*.jinja", "generation_config.json",
)  # fmt: skip
CLASS = "tokenizer_class"


def find_tokenizer(source: Path | str | None, preset: Preset) -> Path:
    """The folder of a tokenizer; the preset's if none is given. Raises DisaError."""
    assets = preset.assets
    if source is None and assets.embedded_tokenizer:
        return in_package(assets.embedded_tokenizer)
    given = source or assets.tokenizer
    if not given:
        raise DisaError(f"{preset.name} needs a tokenizer: give the folder or the hub id of one.")
    place = path(given, "the tokenizer")
    if os.path.isdir(place):
        return tokenizer_in(place) or place
    if os.path.isfile(place):
        return place.parent
    if isinstance(given, str) and REPOSITORY.fullmatch(given):
        return download_tokenizer(given)
    raise DisaError(f"no tokenizer at {shown(str(given))}: expected a folder with tokenizer.json, or a hub id.")


def tokenizer_in(weights: Path) -> Path | None:
    """The folder of the tokenizer that lies with weights: in `tokenizer/`, or beside them.

    With a file lies what is in its folder if that is one model's, as a configuration tells.
    """
    folder = weights if weights.is_dir() else weights.parent
    if not weights.is_dir() and not (folder / CONFIG).is_file():
        return None
    if (folder / TOKENIZER).is_dir():
        return folder / TOKENIZER
    return folder if any(any(folder.glob(name)) for name in VOCABULARIES) else None


def tokenizer_files(weights: Path) -> dict[str, bytes]:
    """What the files of the tokenizer that lies with weights hold, if one does, by their names in a model's folder."""
    source = tokenizer_in(weights)
    if source is None:
        return {}
    # A folder of its own is taken whole; beside weights are other files, too.
    names = (SEEN,) if source.name == TOKENIZER else (*VOCABULARIES, *BESIDE, *_told_by_config(source))
    files = sorted({file for name in names for file in source.glob(name) if file.is_file()})
    return {f"{TOKENIZER}/{file.name}": file.read_bytes() for file in files}


def _told_by_config(folder: Path) -> list[str]:
    """The model's own configuration, where nothing else tells the kind of its tokenizer."""
    try:
        told = json_in(folder / "tokenizer_config.json")
    except ValueError:
        told = None
    return [] if is_ours(folder) or (isinstance(told, dict) and told.get(CLASS)) else [CONFIG]
