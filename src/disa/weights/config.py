"""`config.json`: a model's Spec and Defaults as JSON. Whatever is read is checked, field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SmallVAEConfig
from disa.core.request import Guidance
from disa.core.solvers import make_solver
from disa.core.spending import parse_spending
from disa.errors import DisaError
from disa.models.families import FAMILIES
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Assets, Defaults, Preset, Spec
from disa.reading import json_in
from disa.values import named, shown
from disa.weights.fields import read_fields

FORMAT = 2
CODECS = {"kl16": VAEConfig, "small-vae": SmallVAEConfig}
LONGEST_FILE = 1 << 20
VARIANCES = ("draws", "head", "probe")


def to_json(preset: Preset) -> dict[str, Any]:
    """What `config.json` says of a model, apart from the hash of its weights.

    "assets" names the preset whose autoencoder and tokenizer are taken where the folder has none: a file must not be
    able to name other places.
    """
    spec, codec = preset.spec, preset.spec.codec
    kinds = {kind: name for name, kind in CODECS.items()}
    return {
        "library": "disa",
        "format": FORMAT,
        "name": spec.name,
        "family": spec.family,
        "architecture": asdict(spec.architecture),
        "codec": None if codec is None else {"kind": kinds[type(codec)], **asdict(codec)},
        "defaults": asdict(preset.defaults),
        "assets": _name_of(preset.assets),
    }


def from_json(content: Any) -> Preset:
    """The reverse of `to_json`, and of the first format, which only names a preset and gives the architecture.

    Keys beside the known ones are ignored: tools of the hub add some. Within the parts an unknown key is refused: it
    could change every image. Raises DisaError, which names the field.
    """
    if not isinstance(content, dict):
        raise DisaError(f"expected a JSON object, found a {type(content).__name__}.")
    content = content if "format" in content else _upgraded(content)
    if content["format"] != FORMAT:
        raise DisaError(f"format is {shown(content['format'])}, this version of disa reads {FORMAT}: update disa.")
    if missing := [key for key in ("name", "family", "architecture", "codec", "defaults") if key not in content]:
        raise DisaError(f"{missing[0]} is missing.")
    family = content["family"]
    if not isinstance(family, str) or family not in FAMILIES:
        raise DisaError(f"family is {shown(family)}: expected one of {', '.join(FAMILIES)}.")
    architecture = read_fields(FAMILIES[family].config, content["architecture"], "architecture")
    spec = Spec(_read_name(content["name"]), family, architecture, _read_codec(content["codec"]))
    if spec.codec is not None and spec.codec.latent_channels != spec.architecture.latent_channels:
        raise DisaError(
            f"architecture.latent_channels is {spec.architecture.latent_channels}, but codec.latent_channels is "
            f"{spec.codec.latent_channels}: they must be equal."
        )
    defaults = _read_defaults(content["defaults"])
    assets = content.get("assets")
    known = PRESETS[assets].assets if isinstance(assets, str) and assets in PRESETS else Assets()
    same = PRESETS.get(spec.name)
    if same is not None and same.spec == spec:
        return Preset(spec, defaults, known, same.about, same.paper)
    return Preset(spec, defaults, known)


def read_config(path: Path) -> tuple[Preset, str]:
    """The model that a `config.json` describes, and the SHA-256 of its weights. Raises DisaError."""
    try:
        content = json_in(path, LONGEST_FILE)
    except ValueError as error:
        raise DisaError(
            f"{named(path.parent)} is not a model folder of disa ({path.name}: {error}): "
            f"expected model.safetensors and {path.name}."
        ) from error
    try:
        return from_json(content), str(content.get("sha256"))
    except DisaError as error:
        raise DisaError(f"{named(path)} cannot be used: {error}") from error


def changed(preset: Preset, values: Mapping[str, Any], name: str | None = None) -> Preset:
    """The preset under another name and with other values, each of a field of its architecture or of its defaults.

    values: as JSON has them; `codec` is null, or an object as in `config.json`. Models that draw in a fixed number of
    AR steps follow their architecture. Raises DisaError.
    """
    content = to_json(preset)
    for key, value in values.items():
        part = next((content[part] for part in ("architecture", "defaults") if key in content[part]), None)
        if key == "codec":
            content["codec"] = value
        elif part is None:
            known = [*content["architecture"], *content["defaults"], "codec"]
            raise DisaError(f"{preset.spec.family} models have no {key!r}: expected one of {', '.join(known)}.")
        else:
            part[key] = value
    content["name"] = preset.name if name is None else name
    found = from_json(content)
    fixed = getattr(found.spec.architecture, "num_ar_steps", None)
    if fixed is not None and "num_ar_steps" not in values:
        content["defaults"]["num_ar_steps"] = fixed
        found = from_json(content)
    return replace(found, assets=preset.assets)


def parse_values(texts: list[str]) -> dict[str, Any]:
    """`["num_classes=7", "solver=ddim"]` -> values by name; a value is JSON, or else a text. Raises DisaError."""
    values = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise DisaError(f"expected FIELD=VALUE, such as num_classes=7, found {text!r:.80}.")
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    return values


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """The first format in the words of this one."""
    if "preset" not in content:
        raise DisaError("it is not of a model that disa wrote: it has no format and no preset.")
    preset = find_preset(content["preset"] if isinstance(content["preset"], str) else shown(content["preset"]))
    written = {key: content[key] for key in ("architecture", "family") if key in content}
    return {**to_json(preset), "assets": preset.name, **written}


def _name_of(assets: Assets) -> str | None:
    """The preset that has these assets."""
    if assets == Assets():
        return None
    return next((name for name, preset in PRESETS.items() if preset.assets == assets), None)


def _read_name(name: Any) -> str:
    """Names become parts of file names."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise DisaError(f"name is {shown(name)}: expected up to 100 letters, digits, dots, dashes and underscores.")
    return name


def _read_codec(content: Any) -> VAEConfig | SmallVAEConfig | None:
    if content is None:
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in CODECS:
        raise DisaError(f"codec is {shown(content)}: expected null or an object whose kind is {' or '.join(CODECS)}.")
    rest = {key: value for key, value in content.items() if key != "kind"}
    return read_fields(CODECS[kind], rest, "codec")


def _read_defaults(content: Any) -> Defaults:
    defaults = read_fields(Defaults, content, "defaults")
    try:
        Guidance(defaults.guidance, defaults.ramp, defaults.interval)
        make_solver(defaults.solver, defaults.grid)
    except DisaError as error:
        raise DisaError(f"defaults: {error}") from error
    for name in ("steps", "original"):
        text = getattr(defaults, name)
        if text.startswith("table:") or "/" in text or "\\" in text or ".safetensors" in text:
            raise DisaError(f"defaults.{name} is {shown(text)}: expected a step policy that reads no file.")
    try:
        parse_spending(defaults.spending)
    except DisaError as error:
        raise DisaError(f"defaults.spending is {shown(defaults.spending)}: {error}") from error
    if defaults.variance_by not in VARIANCES:
        found = shown(defaults.variance_by)
        raise DisaError(f"defaults.variance_by is {found}: expected one of {', '.join(VARIANCES)}.")
    return defaults
