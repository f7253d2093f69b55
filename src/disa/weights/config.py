"""`config.json`: a model's Spec and Defaults as JSON. Whatever is read is checked, field by field."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from disa.codecs.binary import BINARY, BinaryConfig
from disa.codecs.dc import DC, DCConfig
from disa.codecs.kl16 import VAEConfig
from disa.codecs.small import SMALL, SmallVAEConfig
from disa.core import texts
from disa.core.orders import CURVES
from disa.core.problem import Process
from disa.core.request import Guidance
from disa.core.solvers import grid_for, make_solver
from disa.core.spending import parse_spending
from disa.core.steps import DRAWN
from disa.errors import DisaError
from disa.models.families import FAMILIES
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Assets, Defaults, Preset, Spec
from disa.reading import json_in
from disa.values import named, shown
from disa.weights.fields import read_fields
from disa.weights.fitting import loading_command, preset_of
from disa.weights.shards import WEIGHTS

FORMAT = 2
LONGEST_FILE = 1 << 20
CODECS = {"kl16": VAEConfig, SMALL: SmallVAEConfig, BINARY: BinaryConfig, DC: DCConfig}
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
    _check_together(spec, defaults)
    assets = content.get("assets")
    known = PRESETS[assets].assets if isinstance(assets, str) and assets in PRESETS else Assets()
    same = PRESETS.get(spec.name)
    if same is not None and same.spec == spec:
        return Preset(spec, defaults, known, same.about, same.paper)
    return Preset(spec, defaults, known)


def read_config(path: Path) -> tuple[Preset, str | None]:
    """The model that a `config.json` describes, and the SHA-256 of its weights if it says one. Raises DisaError."""
    try:
        content = json_in(path, LONGEST_FILE)
    except ValueError as error:
        raise DisaError(
            f"{named(path.parent)} is not a model folder of disa ({path.name}: {error}): expected {WEIGHTS} and "
            f"{path.name}.{_of_weights(path.parent)}"
        ) from error
    if foreign := _foreign(content, path.parent):
        raise DisaError(f"{path.parent} {foreign}")
    try:
        return from_json(content), _read_hash(content.get("sha256"))
    except DisaError as error:
        raise DisaError(f"{named(path)} cannot be used: {error}") from error


def changed(preset: Preset, values: Mapping[str, Any], name: str | None = None) -> Preset:
    """The preset under another name and with other values, each of a field of its architecture or of its defaults.

    values: as JSON has them; `codec` is null, or an object as in `config.json`. Models that draw in a fixed number of
    AR steps follow their architecture, others draw one token in each at least. Raises DisaError.
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
    if "num_ar_steps" not in values:
        config = FAMILIES[preset.spec.family].config
        able = read_fields(config, content["architecture"], "architecture").capabilities
        own = able.num_tokens if able.one_by_one else able.num_ar_steps
        content["defaults"]["num_ar_steps"] = own or min(preset.defaults.num_ar_steps, able.num_tokens)
    return replace(from_json(content), assets=preset.assets)


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


def _read_codec(content: Any) -> VAEConfig | SmallVAEConfig | BinaryConfig | DCConfig | None:
    if content is None:
        return None
    kind = content.get("kind") if isinstance(content, dict) else None
    if not isinstance(kind, str) or kind not in CODECS:
        raise DisaError(f"codec is {shown(content)}: expected null or an object whose kind is {' or '.join(CODECS)}.")
    rest = {key: value for key, value in content.items() if key != "kind"}
    return read_fields(CODECS[kind], rest, "codec")


def _read_hash(found: Any) -> str | None:
    if found is None:
        return None
    if not isinstance(found, str):
        raise DisaError(f"sha256 is {shown(found)}: expected the hash of {WEIGHTS}.")
    return found


def _foreign(content: Any, folder: Path) -> str:
    """What a folder is, and how it is used, whose `config.json` is of another library or of an autoencoder."""
    if not isinstance(content, dict):
        return ""
    kind, model = content.get("_class_name"), content.get("model_type")
    if "library" not in content and isinstance(kind, str):
        if kind.startswith("Autoencoder"):
            return f"is an autoencoder of diffusers ({shown(kind)}), not a model: give it as --vae, beside a model."
        return f"is a model of diffusers ({shown(kind)}), not of disa.{_of_weights(folder)}"
    if "library" not in content and (isinstance(model, str) or "architectures" in content):
        return f"is a model of transformers ({shown(model)}), not of disa.{_of_weights(folder)}"
    if content.get("family") in (SMALL, BINARY):
        return "is an autoencoder of disa, not a model: give it as --vae, beside a model."
    return ""


def _of_weights(folder: Path) -> str:
    """A sentence on how weights in a folder that is not ours are used, if they are a preset's."""
    given = folder if any(folder.glob("*.safetensors")) else None
    for ending in ("*.pth", "*.pt", "*.ckpt", "*.bin"):
        given = given or next(iter(sorted(folder.glob(ending))), None)
    preset = None if given is None else preset_of(given)
    if given is None or preset is None:
        return ""
    return f" It has weights of {preset}: give `{loading_command(given, preset)}`."


def _check_together(spec: Spec, defaults: Defaults) -> None:
    """What single fields do not tell: whether the model can be drawn with these defaults. Raises DisaError."""
    able, model = spec.architecture.capabilities, FAMILIES[spec.family].model
    channels = spec.architecture.latent_channels if spec.codec is None else spec.codec.in_channels
    if channels not in (1, 3):
        raise DisaError(f"its images have {channels} channels: expected 1 or 3.")
    rows, columns = spec.architecture.latent_size
    stride = 1 if spec.codec is None else spec.codec.stride
    own, stride = (rows * stride, columns * stride), stride * getattr(spec.architecture, "patch_size", 1)
    size = defaults.size or own
    if size != own and not able.any_size:
        raise DisaError(f"defaults.size is {list(size)}: this model draws images of {list(own)} only.")
    if any(side % stride for side in size):
        raise DisaError(f"defaults.size is {list(size)}: expected multiples of {stride}.")
    if defaults.rewrite and able.condition != "prompts":
        raise DisaError("defaults.rewrite is true: this model draws from labels, there are no prompts to rewrite.")
    try:
        if able.num_ar_steps is not None:
            able.check_ar_steps(defaults.num_ar_steps)
        for text in (defaults.steps, defaults.original):
            _check_steps(text, defaults, model.process)
    except DisaError as error:
        raise DisaError(f"defaults: {error}") from error


def _check_steps(text: str, defaults: Defaults, process: Process) -> None:
    """A schedule must fit the grid; what goes by the model is looked at when it is drawn with."""
    if texts.is_adaptive(text):
        return
    counts = set(texts.parse(text).counts(defaults.num_ar_steps))
    for count in counts:
        grid_for(make_solver(defaults.solver, defaults.grid), process, count)


def _read_defaults(content: Any) -> Defaults:
    defaults = read_fields(Defaults, content, "defaults")
    try:
        Guidance(defaults.guidance, defaults.ramp, defaults.interval, defaults.progress)
        make_solver(defaults.solver, defaults.grid)
    except DisaError as error:
        raise DisaError(f"defaults: {error}") from error
    for name in ("steps", "original"):
        text = getattr(defaults, name)
        if text.startswith("table:") or "/" in text.removesuffix(DRAWN) or "\\" in text or ".safetensors" in text:
            raise DisaError(f"defaults.{name} is {shown(text)}: expected a step policy that reads no file.")
    if defaults.counts not in CURVES:
        raise DisaError(f"defaults.counts is {shown(defaults.counts)}: expected one of {', '.join(CURVES)}.")
    try:
        parse_spending(defaults.spending)
    except DisaError as error:
        raise DisaError(f"defaults.spending is {shown(defaults.spending)}: {error}") from error
    if defaults.variance_by not in VARIANCES:
        found = shown(defaults.variance_by)
        raise DisaError(f"defaults.variance_by is {found}: expected one of {', '.join(VARIANCES)}.")
    return defaults
