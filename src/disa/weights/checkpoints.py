"""Weights in and out: official `.pth` and `.ckpt`, hub files, and our folders (`model.safetensors` + `config.json`).

Files are data: nothing in them is executed, every tensor must be expected, of the right shape and finite, and
nothing is half loaded. A file's SHA-256 is recorded when it is first seen and checked from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from disa.codecs import kl16 as vae
from disa.codecs.kl16 import KL16Codec, LatentCodec
from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig
from disa.errors import DisaError
from disa.files import make_folder, write_json, write_text, write_whole
from disa.models.naming import check_names
from disa.models.registry import PRESETS, Model, find_preset
from disa.models.spec import HubFile, Preset

WEIGHTS, CONFIG, CODEC, TOKENIZER = "model.safetensors", "config.json", "vae", "tokenizer"
CODEC_WEIGHTS = "diffusion_pytorch_model.safetensors"
DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
LONGEST_NAME = 200

Layout = Mapping[str, tuple[int, ...]]
"""The name and shape of every tensor."""

# -- reading files -------------------------------------------------------------------------------------------------


def read_tensors(path: Path, average: bool = True) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` file, or of a PyTorch checkpoint's `model_ema` (or `model`, or all of it).

    average: prefer the moving average, as official evaluations do. PyTorch files are read with `weights_only`. Of a
    folder all `.safetensors` files are read, in which large models are shared out.
    """
    if not path.exists():
        raise DisaError(f"no checkpoint at {path}: expected a .safetensors, .pth or .ckpt file.")
    content: Mapping[str, Any] = {}
    for file in _files(path):
        part = _read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
        if twice := set(content) & set(part):
            raise DisaError(f"{path} holds more than one checkpoint: {min(twice)} is in several of its files.")
        content = part if file == path else {**content, **part}
    order = ("model_ema", "model", "state_dict") if average else ("model", "model_ema", "state_dict")
    state = next((content[key] for key in order if isinstance(content.get(key), Mapping)), content)
    if not state:
        raise DisaError(f"{path} is not a checkpoint: it is empty.")
    for name, value in state.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_NAME:
            raise DisaError(f"{path} is not a checkpoint of named tensors: one is called {name!r:.40}.")
        if not _is_plain(value):
            kind = "unusual tensor" if isinstance(value, Tensor) else type(value).__name__
            raise DisaError(f"{path} is not a checkpoint of plain tensors: {name!r} is of type {kind}.")
    return dict(state)


def _files(path: Path) -> list[Path]:
    """The file itself, or the .safetensors files of a folder that disa has not written."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files or _is_ours(path):
        raise DisaError(f"{path} is a folder: expected a file. A folder that disa wrote is given as the model itself.")
    return files


def _is_ours(folder: Path) -> bool:
    """Whether disa wrote this folder."""
    try:
        return json.loads((folder / CONFIG).read_text())["library"] == "disa"
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with values: not sparse, nested, quantised or on the meta device."""
    return (
        isinstance(value, Tensor)
        and not (value.is_nested or value.is_quantized)
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except Exception as error:
        raise DisaError(f"{path} is not a whole .safetensors file ({_first_line(error)}). Get it again.") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        # Official training checkpoints carry their command line, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # PyTorch's own message advises to load the file unsafely.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"it holds code ({code[1]}), not only tensors" if code else "it is damaged or of another kind"
        raise DisaError(f"{path} was refused: {reason}. Expected a whole PyTorch checkpoint of tensors.") from error
    if not isinstance(content, Mapping):
        raise DisaError(f"{path} is not a checkpoint of named tensors: it holds a {type(content).__name__}.")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def hash_file(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DisaError(f"{path} cannot be read: {error.strerror or error}.") from error


def hash_record() -> Path:
    """Where first-seen hashes are kept: `hashes.json` in $DISA_CACHE, or in the user's cache folder."""
    home = os.environ.get("DISA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disa"
    return Path(home) / "hashes.json"


def check_hash(key: str, path: Path) -> None:
    """Record the file's hash under `key`, or compare it with the one on record; equal size and time skip the work.

    It is for files that have proven to be good: a broken download that is got again must not count as changed.
    """
    record, stat = hash_record(), path.stat()
    seen = _read_record(record)
    entry = seen.get(key, {})
    if (entry.get("bytes"), entry.get("modified")) == (stat.st_size, stat.st_mtime_ns):
        return
    found, before = hash_file(path), entry.get("sha256")
    if before not in (None, found):
        raise DisaError(
            f"{path} is not the file that was first seen here: its SHA-256 is {found[:12]}..., it was "
            f"{before[:12]}.... If you replaced it on purpose, remove its entry from {record}."
        )
    _write_record(seen | {key: {"sha256": found, "bytes": stat.st_size, "modified": stat.st_mtime_ns}})


def _forget(path: Path) -> None:
    """A file that we have written ourselves is new."""
    seen = _read_record(hash_record())
    if seen.pop(_key(path), None):
        _write_record(seen)


def _key(path: Path) -> str:
    return str(path.resolve())


def _write_record(seen: Mapping[str, Any]) -> None:
    record = hash_record()
    try:
        make_folder(record.parent)
        write_json(record, seen)
    except DisaError as error:
        warnings.warn(f"hashes of checkpoints could not be recorded: {error}", stacklevel=2)


def _read_record(record: Path) -> dict[str, dict[str, Any]]:
    """Hashes by key; what is no record any more counts as not seen."""
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)}


def _locate(path: Path | None, hub: HubFile | None, page: str, missing: str) -> tuple[str, Path]:
    """The key of a file's hash, and the file: the given one, or the hub's, from the local cache if it is there."""
    if path is not None:
        return _key(path), path
    if hub is None:
        raise DisaError(missing)
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if "*" in hub.name:
            return f"hub:{hub.repo}", Path(snapshot_download(hub.repo, allow_patterns=[hub.name]))
        return f"hub:{hub.repo}/{hub.name}", Path(hf_hub_download(hub.repo, hub.name))
    except Exception as error:
        raise DisaError(
            f"could not get {hub.name} from the hub repository {hub.repo} ({_first_line(error)}). "
            f"Give a local file instead; upstream's download links are on {page}."
        ) from error


# -- building models -----------------------------------------------------------------------------------------------


def build_model(preset: Preset, state: Mapping[str, Tensor], source: str) -> Model:
    """A model from a state dict under our names or the official ones; built on the meta device, nothing is copied."""
    with torch.device("meta"):
        model = preset.build()
    names = preset.official_names()
    official = not set(state) & (set(names.parts) - names.official)
    state = names.known(state) if official else state
    try:
        _check_layout(state, _layout(preset, official), source)
    except DisaError as error:
        raise DisaError(f"{error}{_size_hint(state, official)}") from error
    _check_values(state, source)
    model.load_state_dict(names.from_official(state) if official else state, assign=True)
    return model.requires_grad_(False).eval()


def _layout(preset: Preset, official: bool) -> Layout:
    """What a checkpoint of this architecture holds, under official names or ours."""
    with torch.device("meta"):
        state = preset.build().state_dict()
    return _shapes(preset.official_names().to_official(state) if official else state)


def _shapes(state: Mapping[str, Tensor]) -> Layout:
    return {name: tuple(value.shape) for name, value in state.items()}


def _size_hint(state: Mapping[str, Tensor], official: bool) -> str:
    """If the tensors fit another preset, say which. Names come first: they cost less than building a model."""
    found = _shapes(state)

    def fits(preset: Preset) -> bool:
        names = preset.official_names()
        return set(found) == (names.official if official else set(names.parts)) and found == _layout(preset, official)

    fitting = [name for name, preset in PRESETS.items() if fits(preset)]
    return f" It is a checkpoint of {fitting[0]}: load it as that." if fitting else ""


def _check_layout(state: Mapping[str, Tensor], expected: Layout, source: str) -> None:
    """Names and shapes, before any tensor is looked at."""
    try:
        check_names(set(expected), set(state))
    except DisaError as error:
        raise DisaError(f"{source}: {error}") from error
    found = _shapes(state)
    wrong = [name for name, shape in expected.items() if found[name] != shape]
    if wrong:
        raise DisaError(
            f"{source} does not fit this model: {len(wrong)} of its tensors {'have' if len(wrong) > 1 else 'has'} "
            f"another shape; {wrong[0]} should be {expected[wrong[0]]}, found {found[wrong[0]]}."
        )


def _check_values(state: Mapping[str, Tensor], source: str) -> None:
    for name, value in state.items():
        if value.dtype not in DTYPES:
            raise DisaError(f"{source}: expected floating-point tensors, but {name} is {str(value.dtype)[6:]}.")
        if not torch.isfinite(value).all():
            raise DisaError(f"{source} is damaged: {name} holds values that are not finite numbers. Get it again.")


def load_model(preset: Preset, checkpoint: Path | None = None, average: bool = True) -> Model:
    """The preset's model from a file, from the package, or from the hub."""
    if checkpoint is None and preset.embedded:
        return build_model(preset, _embedded(preset.name), f"the embedded {preset.name}")
    missing = f"{preset.name} has no weights on the hub: give a checkpoint."
    key, path = _locate(checkpoint, preset.assets.weights, preset.assets.page, missing)
    model = build_model(preset, read_tensors(path, average), str(path))
    for file in _files(path):
        check_hash(key if file == path else f"{key}/{file.name}", file)
    return model


def ships(name: str) -> bool:
    """Whether weights of that name are in the package."""
    return in_package(f"{name}.safetensors").is_file()


def in_package(name: str) -> Path:
    """The place of a file or folder of that name among the weights in the package, there or not."""
    return Path(str(resources.files("disa.tiny"))) / "weights" / name


def _embedded(name: str) -> Mapping[str, Any]:
    """Weights that ship with the package."""
    if not ships(name):
        raise DisaError(f"the weights of {name} do not ship yet: make them with `disa train {name} --out FOLDER`.")
    return _read_safetensors(in_package(f"{name}.safetensors"))


def tokenizer_source(preset: Preset) -> Path | str:
    """The preset's tokenizer: a folder in the package, or a hub id."""
    if preset.assets.embedded_tokenizer:
        return in_package(preset.assets.embedded_tokenizer)
    return preset.assets.tokenizer


def load_codec(preset: Preset, path: Path | None = None) -> LatentCodec:
    """The preset's autoencoder: KL-16 from `kl16.ckpt`, its safetensors form, a diffusers folder or the hub; the small
    one from the package or a folder that disa wrote."""
    if preset.spec.codec is None:
        raise DisaError(f"{preset.name} has no autoencoder: its tokens are pixels.")
    path = path / CODEC_WEIGHTS if path is not None and path.is_dir() else path
    if isinstance(preset.spec.codec, SmallVAEConfig):
        return _load_small(preset.spec.codec, preset.assets.embedded_codec, path)
    missing = "this model needs an autoencoder: give one with vae=FILE (kl16.ckpt)."
    key, path = _locate(path, preset.assets.codec_weights, preset.assets.page, missing)
    state = read_tensors(path)
    try:
        with torch.device("meta"):
            network = vae.build(preset.spec.codec)
    except ImportError as error:
        raise DisaError('the autoencoder needs diffusers: pip install "disa[diffusers]".') from error
    if not set(state) <= set(network.state_dict()):
        try:
            state = vae.from_official(state, preset.spec.codec)
        except DisaError as error:
            raise DisaError(f"{path}: {error}") from error
    _check_layout(state, _shapes(network.state_dict()), str(path))
    _check_values(state, str(path))
    check_hash(key, path)
    network.load_state_dict(state, assign=True)
    return KL16Codec(network.requires_grad_(False).eval())


def _load_small(config: SmallVAEConfig, name: str, path: Path | None) -> LatentCodec:
    state, source = (_embedded(name), name) if path is None else (read_tensors(path), str(path))
    with torch.device("meta"):
        network = SmallVAE(config)
    _check_layout(state, _shapes(network.state_dict()), source)
    _check_values(state, source)
    network.load_state_dict(state, assign=True)
    return SmallCodec(network.requires_grad_(False).eval())


# -- our own folders -----------------------------------------------------------------------------------------------


def save_model(folder: Path, preset: Preset, state: Mapping[str, Tensor]) -> Path:
    """Write `model.safetensors` (our names) and `config.json` (architecture, preset, hash) into `folder`."""
    make_folder(folder)
    sha256 = _write_tensors(folder / WEIGHTS, state)
    about = {
        "library": "disa", "family": preset.spec.family, "preset": preset.name,
        "architecture": asdict(preset.spec.architecture), "sha256": sha256,
    }  # fmt: skip
    write_json(folder / CONFIG, about)
    return folder


def _write_tensors(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a whole .safetensors file and return its SHA-256."""
    content = save({key: value.contiguous() for key, value in state.items()}, {"format": "pt"})
    write_whole(path, lambda file: file.write(content))
    _forget(path)
    return hashlib.sha256(content).hexdigest()


def save_codec(folder: Path, codec: LatentCodec) -> Path:
    """Write an autoencoder: a diffusers `AutoencoderKL` folder, or the small one in the same layout."""
    make_folder(folder)
    _write_tensors(folder / CODEC_WEIGHTS, codec.model.state_dict())
    write_text(folder / CONFIG, codec.about())
    return folder


def load_folder(folder: Path) -> tuple[Preset, Model, Path | None]:
    """A folder that `save_model` wrote: its preset (with the folder's architecture), model, and autoencoder folder."""
    try:
        about = json.loads((folder / CONFIG).read_text())
        name, sha256 = str(about["preset"]), about["sha256"]
        preset = find_preset(name)
        architecture = _read_architecture(type(preset.spec.architecture), about["architecture"])
        preset = replace(preset, spec=replace(preset.spec, architecture=architecture))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DisaError(
            f"{folder} is not a model folder of disa ({_first_line(error)}): expected {WEIGHTS} and {CONFIG}."
        ) from error
    path = folder / WEIGHTS
    if not path.is_file() or hash_file(path) != sha256:
        raise DisaError(f"{path} is not the file that {CONFIG} describes: its SHA-256 differs. Copy the folder again.")
    codec = folder / CODEC if (folder / CODEC).is_dir() else None
    return preset, build_model(preset, _read_safetensors(path), str(path)), codec


def _read_architecture(kind: type, fields: dict[str, Any]) -> Any:
    """An architecture from JSON; its values must have the types of the default's, and numbers must be positive.

    Raises ValueError, KeyError or TypeError where the fields are not those of an architecture.
    """
    default, hints = asdict(kind()), get_type_hints(kind)
    config = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
    for name, value in asdict(config).items():
        several = isinstance(default[name], tuple)
        if isinstance(value, tuple) != several or (several and not _fits(value, get_args(hints[name]))):
            raise ValueError(f"{name} is {value!r}")
        expected = type(default[name][0] if several else default[name])
        numbers = (int, float) if expected is float else (expected,)
        for number in value if several else (value,):
            if type(number) not in numbers or (expected is not bool and number <= 0):
                raise ValueError(f"{name} is {value!r}")
    return config


def _fits(value: tuple[Any, ...], kinds: tuple[Any, ...]) -> bool:
    """Whether a tuple has the length that its type says; `...` is one or more."""
    return bool(value) if kinds[-1] is Ellipsis else len(value) == len(kinds)


def download_folder(repo: str) -> Path:
    """A hub repository in our layout."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise DisaError(
            f"there is no folder {repo}, and no hub repository of that name could be got ({_first_line(error)})."
        ) from error


def convert(
    checkpoint: Path, model: str, out: Path, codec: Path | None = None, average: bool = True, official: bool = False
) -> dict[str, int]:
    """Read, check and write weights as our folder, or under official names; returns the files and their bytes.

    checkpoint: a file or a folder of official weights, or a folder that `save_model` wrote, with its autoencoder and
    its tokenizer if it has them.
    """
    preset = find_preset(model)
    tokenizer = checkpoint / TOKENIZER
    if checkpoint.is_dir() and (_is_ours(checkpoint) or not list(checkpoint.glob("*.safetensors"))):
        preset, network, inside = load_folder(checkpoint)
        if preset.name != model:
            raise DisaError(f"{checkpoint} is a folder of {preset.name}, not of {model}.")
        codec = codec or inside
    else:
        network = load_model(preset, checkpoint, average)
    loaded = None if codec is None else load_codec(preset, codec)
    if official:
        files = [f"{model}.safetensors"]
        make_folder(out)
        _write_tensors(out / files[0], preset.official_names().to_official(network.state_dict()))
    else:
        files = [WEIGHTS, CONFIG]
        save_model(out, preset, network.state_dict())
        files += _copy_tokenizer(tokenizer, out / TOKENIZER)
    if loaded is not None:
        files += [f"{CODEC}/{CODEC_WEIGHTS}", f"{CODEC}/{CONFIG}"]
        save_codec(out / CODEC, loaded)
    return {name: (out / name).stat().st_size for name in files}


def _copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy a tokenizer's files, if there are any; returns their names in the folder around `target`."""
    files = sorted(path for path in source.glob("*") if path.is_file())
    if files:
        make_folder(target)
    for path in files:
        content = path.read_bytes()
        write_whole(target / path.name, lambda file, content=content: file.write(content))
    return [f"{TOKENIZER}/{path.name}" for path in files]
