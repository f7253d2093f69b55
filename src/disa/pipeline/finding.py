"""Where the parts of a model are: in disa's own layout, or in that of jadechoghari/mar.

That hub repository, to which MAR's authors link, has the weights of three models in one folder (`mar-base.safetensors`
and so on, under official names) beside their autoencoder (`kl16.safetensors`). A pipeline of its own chooses among them
by a `model_type` such as `mar_huge`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.models.registry import PRESETS, presets_from
from disa.models.spec import Preset
from disa.values import did_you_mean, either, shown, text
from disa.weights.shards import is_ours


def find_parts(name: str | Path, model_type: str | None, parts: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `Sampler.from_pretrained`. parts: those that are given. Raises DisaError."""
    folder = Path(name) if isinstance(name, Path) or (name not in PRESETS and Path(name).is_dir()) else None
    if folder is not None:
        there = {} if is_ours(folder) else _presets_in(folder)
    else:
        there = {each: PRESETS[each] for each in presets_from(str(name))}
    if model_type is None and (folder is None or not there):
        return {"name": name, **parts}
    if not there:
        raise DisaError(f"{name} is one model: leave model_type out.")
    preset = _chosen(name, there, model_type)
    if folder is None:
        return {"name": preset.name, **parts}
    if parts.get("checkpoint") is not None:
        raise DisaError(f"{folder} has the weights: leave the checkpoint out.")
    assert preset.assets.weights is not None
    found: dict[str, Any] = {"name": preset.name, "checkpoint": folder / preset.assets.weights.name}
    codec = preset.assets.codec_weights
    if codec is not None and (folder / codec.name).is_file():
        found["vae"] = folder / codec.name
    return found | {part: value for part, value in parts.items() if value is not None}


def _presets_in(folder: Path) -> dict[str, Preset]:
    """Those whose weights are in a folder under the name that they have on the hub."""
    files = {name: preset.assets.weights for name, preset in PRESETS.items()}
    return {name: PRESETS[name] for name, file in files.items() if file is not None and (folder / file.name).is_file()}


def _chosen(place: object, there: dict[str, Preset], model_type: str | None) -> Preset:
    if model_type is None and len(there) == 1:
        return next(iter(there.values()))
    types = [name.replace("-", "_") for name in there]
    if model_type is None:
        raise DisaError(f"{place} has several models: give {either(types)} as model_type.")
    wanted = text(model_type, "model_type")
    if wanted.replace("_", "-") not in there:
        near = did_you_mean(wanted, types)
        raise DisaError(f"{place} has no model of the type {shown(wanted)}: expected {either(types)}.{near}")
    return there[wanted.replace("_", "-")]
