"""The files of an autoencoder, wherever one is given: a file, a folder of diffusers or of disa, a pipeline's folder.

| given | read |
|---|---|
| a file | it, and the `config.json` beside it where it is called as diffusers calls it |
| a folder with `vae/` in it | that folder |
| a folder | `diffusion_pytorch_model`: the .safetensors, its shards, the .bin, its shards, or a variant such as fp16 |
| a folder with one other file of weights | that file |
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from disa.errors import DisaError
from disa.reading import json_in
from disa.values import either, shown
from disa.weights.shards import CONFIG

STEM = "diffusion_pytorch_model"
CODEC_WEIGHTS = f"{STEM}.safetensors"
CODEC = "vae"
FORMS = tuple(
    re.escape(STEM) + variant + shard + ending
    for variant in ("", r"\.fp16", r"\.[\w-]+?")
    for ending in (r"\.safetensors", r"\.bin")
    for shard in ("", r"-\d{5}-of-\d{5}")
)
"""What diffusers calls the weights, in the order in which they are taken."""
WEIGHTS = re.compile(r".+\.(safetensors|bin|ckpt|pth|pt)", re.IGNORECASE)


class Files(NamedTuple):
    """An autoencoder's weights, together in all of the files, and what `config.json` says, if there is one."""

    weights: list[Path]
    config: dict[str, Any] | None = None


def find_files(place: Path) -> Files:
    """The files of the autoencoder at a place. Raises DisaError."""
    try:
        return _find(place)
    except OSError as error:
        raise DisaError(f"cannot look into {error.filename or place}: {error.strerror or error}.") from error


def _find(place: Path) -> Files:
    if not place.is_dir():
        named = any(re.fullmatch(form, place.name) for form in FORMS)
        return Files([place], _config(place.parent) if named else None)
    inside = place / CODEC
    folder = inside if inside.is_dir() and not list(place.glob(f"{STEM}*")) else place
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    for form in FORMS:
        if found := [name for name in names if re.fullmatch(form, name)]:
            return Files(_of_one_variant(folder, found), _config(folder))
    others = [name for name in names if WEIGHTS.fullmatch(name)]
    if len(others) == 1:
        return Files([folder / others[0]], _config(folder))
    if others:
        raise DisaError(f"{folder} holds several files of weights: give one, {either(others[:4])}.")
    raise DisaError(f"there is no autoencoder in {folder}: expected {CODEC_WEIGHTS}.")


def _of_one_variant(folder: Path, names: list[str]) -> list[Path]:
    first = re.sub(r"-\d{5}-of.*", "", names[0])
    return [folder / name for name in names if name == names[0] or ("-of-" in name and name.startswith(f"{first}-"))]


def _config(folder: Path) -> dict[str, Any] | None:
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        if isinstance(said := json_in(path), dict):
            return said
        raise ValueError(f"it is {shown(said)}, not an object")
    except ValueError as error:
        raise DisaError(f"{path} cannot be used: {error}. It should say what the autoencoder is.") from error
