"""What a checkpoint would fit that does not fit the model it was given for: another preset, or other values."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.layout import Layout, shapes
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.values import command
from disa.weights.build import layout
from disa.weights.read import find, read_content
from disa.weights.shards import shard_of

OFFICIAL_ARGUMENTS = {
    "class_num": "num_classes",
    "diffloss_w": "head_width",
    "diffloss_d": "head_depth",
    "buffer_size": "buffer_size",
    "vae_embed_dim": "latent_channels",
    "patch_size": "patch_size",
}
"""Whole numbers on the official command line of MAR and eMIGM, and ours."""
COUNTS = ("num_classes", "buffer_size")
"""Fields whose tables have some more rows than they say."""
MOST_CHANGES = 3


def what_fits(preset: Preset, path: Path, weights_key: str | None = None) -> Callable[[Layout, bool], str]:
    """The hint for `build_model`: one sentence that says how to load the checkpoint at `path`, or nothing."""
    entry = ["--weights-key", weights_key] if weights_key else []

    def hint(found: Layout, official: bool) -> str:
        if name := _fitting_preset(found, official):
            return f" It is a checkpoint of {name}: load it as that."
        values = _fitting_values(preset, _arguments(path), found, official)
        if not values:
            return shard_of(path)
        options = [word for name, value in values.items() for word in ("--set", f"{name}={_as_json(value)}")]
        told = command("disa", "convert", path, "--model", preset.name, *entry, *options, "--name", "NAME")
        return f" It fits after `{told}`."

    return hint


def preset_of(path: Path) -> str | None:
    """The preset whose weights are at a path, if there is one."""
    try:
        found = shapes(find(path).state)
    except DisaError:
        return None
    return _fitting_preset(found, official=False) or _fitting_preset(found, official=True)


def loading_command(path: Path, preset: str) -> str:
    """What to paste to draw with a preset's weights at a path."""
    words = ["--prompt", "a red circle"] if PRESETS[preset].prompts else []
    return command("disa", "sample", "--model", preset, "--checkpoint", path, *words)


def _fitting_preset(found: Layout, official: bool) -> str | None:
    """Names come first: they cost less than building a model. What a preset passes over may be there."""

    def fits(preset: Preset) -> bool:
        names = preset.official_names()
        own = {name: shape for name, shape in found.items() if not (official and names.ignored(name))}
        return set(own) == (names.official if official else set(names.parts)) and own == layout(preset, official)

    return next((name for name, preset in PRESETS.items() if fits(preset)), None)


def _fitting_values(preset: Preset, arguments: Mapping[str, Any], found: Layout, official: bool) -> dict[str, Any]:
    """Other values of the architecture with which the checkpoint fits; empty where none are found.

    Those of the checkpoint's own command line come first; then field after field, what lowers the number of tensors
    that do not fit the most.
    """
    if not found.keys() & layout(preset, official).keys():
        return {}
    own = asdict(preset.spec.architecture)
    values = {name: value for name, value in arguments.items() if name in own and own[name] != value}
    best, plain = _misfits(preset, values, found, official), _misfits(preset, {}, found, official) or {}
    if best is None or len(best) > len(plain):
        values, best = {}, plain
    for _ in range(MOST_CHANGES):
        base, before = values, len(best)
        for change in list(_candidates({**own, **base}, best)):
            misfits = _misfits(preset, {**base, **change}, found, official)
            if misfits is not None and len(misfits) < len(best):
                best, values = misfits, {**base, **change}
            if not best:
                break
        if len(best) in (0, before):
            break
    return values if not best else {}


_Sizes = tuple[int, ...] | None


def _misfits(
    preset: Preset, values: Mapping[str, Any], found: Layout, official: bool
) -> dict[str, tuple[_Sizes, _Sizes]] | None:
    """By name: expected and found shape of each tensor that does not fit; None where nothing can be built."""
    try:
        architecture = replace(preset.spec.architecture, **values)
        expected = layout(replace(preset, spec=replace(preset.spec, architecture=architecture)), official)
    except (DisaError, RuntimeError, ValueError):
        return None
    return {
        name: (expected.get(name), found.get(name))
        for name in set(expected) | set(found)
        if expected.get(name) != found.get(name)
    }


def _candidates(own: Mapping[str, Any], misfits: Mapping[str, tuple[_Sizes, _Sizes]]) -> Iterator[dict[str, Any]]:
    """Single changes that would make some size of a tensor what it is."""
    sizes = {
        (before, after)
        for expected, found in misfits.values()
        if expected and found and len(expected) == len(found)
        for before, after in zip(expected, found, strict=True)
        if before != after
    }
    seen = set[tuple[str, int]]()
    for name in (*COUNTS, *(name for name in own if name not in COUNTS)):
        value = own.get(name)
        if type(value) is not int:
            continue
        for before, after in sorted(sizes)[:4]:
            wanted = value + after - before if name in COUNTS else after * value // before
            exact = name in COUNTS or (value > 1 and not before % value and not after * value % before)
            if exact and wanted > 0 and (name, wanted) not in seen:
                seen.add((name, wanted))
                yield {name: wanted}


def _arguments(path: Path) -> dict[str, Any]:
    """What a training checkpoint's own command line says of the architecture, under our names."""
    said = read_content(path).get("args")
    if not isinstance(said, Mapping):
        return {}
    values: dict[str, Any] = {
        ours: said[name] for name, ours in OFFICIAL_ARGUMENTS.items() if type(said.get(name)) is int and said[name] > 0
    }
    if type(shared := said.get("use_unsup_cfg")) is bool:
        values["shares_mask_token"] = shared
    side, stride = said.get("img_size"), said.get("vae_stride")
    if type(side) is int and type(stride) is int and stride > 0 and side >= stride:
        values["latent_size"] = (side // stride,) * 2
    return values


def _as_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
