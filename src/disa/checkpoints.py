"""Weights in and out: official `.pth` and `.ckpt`, hub files, and our folders (`model.safetensors` + `config.json`).

Files are data: nothing in them is executed, every tensor must be expected, of the right shape and finite, and
nothing is half loaded. A file's SHA-256 is recorded when it is first seen and checked from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from disa.errors import DisaError
from disa.files import make_folder, write_text, write_whole
from disa.models import vae
from disa.models.mar import MAR, MARConfig, official_names
from disa.models.naming import check_names
from disa.models.vae import LatentCodec
from disa.presets import PRESETS, HubFile, Preset, find_preset

WEIGHTS, CONFIG, CODEC = "model.safetensors", "config.json", "vae"
CODEC_WEIGHTS = "diffusion_pytorch_model.safetensors"

# -- reading files -------------------------------------------------------------------------------------------------


def read_tensors(path: Path, average: bool = True) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` file, or of a PyTorch checkpoint's `model_ema` (or `model`, or all of it).

    average: prefer the moving average, as official evaluations do. PyTorch files are read with `weights_only`.
    """
    if not path.is_file():
        raise DisaError(f"no checkpoint at {path}: expected a .safetensors, .pth or .ckpt file.")
    check_hash(str(path.resolve()), path)
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    order = ("model_ema", "model", "state_dict") if average else ("model", "model_ema", "state_dict")
    state = next((content[key] for key in order if isinstance(content.get(key), Mapping)), content)
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange or not state:
        what = f"{strange[0]!r} is {type(state[strange[0]]).__name__}" if strange else "it is empty"
        raise DisaError(f"{path} is not a checkpoint of tensors: {what}.")
    return dict(state)


def _read_safetensors(path: Path) -> Mapping[str, Any]:
    try:
        return load_file(path)
    except Exception as error:
        raise DisaError(f"{path} is not a whole .safetensors file ({_first_line(error)}). Get it again.") from error


def _read_pickle(path: Path) -> Mapping[str, Any]:
    try:
        # Official training checkpoints carry their command line, which is plain data.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = "it holds code, not only tensors" if "Unsupported" in str(error) else _first_line(error)
        raise DisaError(f"{path} was refused: {reason}. Expected a whole PyTorch checkpoint of tensors.") from error
    if not isinstance(content, Mapping):
        raise DisaError(f"{path} is not a checkpoint of tensors: it holds a {type(content).__name__}.")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:160]


def hash_file(path: Path) -> str:
    """SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_record() -> Path:
    """Where first-seen hashes are kept: `hashes.json` in $DISA_CACHE, or in the user's cache folder."""
    home = os.environ.get("DISA_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "disa"
    return Path(home) / "hashes.json"


def check_hash(key: str, path: Path) -> None:
    """Record the file's hash under `key`, or compare it with the one on record; equal size and time skip the work."""
    record = hash_record()
    try:
        seen = json.loads(record.read_text()) if record.exists() else {}
    except (OSError, ValueError):
        seen = {}
    stat = path.stat()
    entry = seen.get(key)
    if entry and (entry["bytes"], entry["modified"]) == (stat.st_size, stat.st_mtime_ns):
        return
    found = hash_file(path)
    if entry and entry["sha256"] != found:
        raise DisaError(
            f"{path} is not the file that was first seen here: its SHA-256 is {found[:12]}..., it was "
            f"{entry['sha256'][:12]}.... If you replaced it on purpose, remove its entry from {record}."
        )
    seen[key] = {"sha256": found, "bytes": stat.st_size, "modified": stat.st_mtime_ns}
    try:
        make_folder(record.parent)
        write_text(record, json.dumps(seen, indent=1) + "\n")
    except DisaError as error:
        warnings.warn(f"the hash of {path} could not be recorded: {error}", stacklevel=2)


def download(file: HubFile, page: str) -> Path:
    """A hub file, from the local cache if it is there."""
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(file.repo, file.name))
    except Exception as error:
        raise DisaError(
            f"could not get {file.name} from the hub repository {file.repo} ({_first_line(error)}). "
            f"Give a local file instead; upstream's download links are on {page}."
        ) from error
    check_hash(f"hub:{file.repo}/{file.name}", path)
    return path


# -- building models -----------------------------------------------------------------------------------------------


def build_mar(config: MARConfig, state: Mapping[str, Tensor], source: str) -> MAR:
    """A model from a state dict under our names or the official ones; built on the meta device, nothing is copied."""
    state = dict(state) if "token_in.weight" in state else _translated(state, config)
    with torch.device("meta"):
        model = MAR(config)
    _check_tensors(state, model, source)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _translated(state: Mapping[str, Tensor], config: MARConfig) -> dict[str, Tensor]:
    """From official names; where they do not fit, say which preset they would fit."""
    try:
        return official_names(config).from_official(state)
    except DisaError as error:
        raise DisaError(f"{error}{_size_hint(state)}") from error


def _size_hint(state: Mapping[str, Tensor]) -> str:
    """If the tensors fit another preset, say which."""
    sizes = {name: tuple(value.shape) for name, value in state.items()}
    for preset in PRESETS.values():
        with torch.device("meta"):
            shapes = official_names(preset.architecture).to_official(MAR(preset.architecture).state_dict())
        if sizes == {name: tuple(value.shape) for name, value in shapes.items()}:
            return f" It is a checkpoint of {preset.name}."
    return ""


def _check_tensors(state: Mapping[str, Tensor], model: nn.Module, source: str) -> None:
    """Names, shapes and finiteness, before anything is loaded."""
    expected = model.state_dict()
    check_names(set(expected), set(state))
    wrong = [name for name, value in expected.items() if value.shape != state[name].shape]
    if wrong:
        name, official = wrong[0], _as_official(state, model)
        raise DisaError(
            f"{source} does not fit this model: {len(wrong)} tensors have another shape; {name} should be "
            f"{tuple(expected[name].shape)}, found {tuple(state[name].shape)}.{_size_hint(official)}"
        )
    for name, value in state.items():
        if not value.is_floating_point() or not torch.isfinite(value).all():
            raise DisaError(f"{source} is damaged: {name} holds values that are not finite numbers.")


def _as_official(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    try:
        return official_names(model.config).to_official(state) if isinstance(model, MAR) else {}
    except (DisaError, RuntimeError):
        return {}


def load_mar(preset: Preset, checkpoint: Path | None = None) -> MAR:
    """The preset's model from a file, from the package, or from the hub."""
    if checkpoint is None and preset.embedded:
        with resources.as_file(resources.files("disa.tiny") / "weights" / f"{preset.name}.safetensors") as path:
            return build_mar(preset.architecture, _read_safetensors(path), f"the embedded {preset.name}")
    path = checkpoint or download(_hub_file(preset), preset.page)
    return build_mar(preset.architecture, read_tensors(path), str(path))


def _hub_file(preset: Preset) -> HubFile:
    if preset.weights is None:
        raise DisaError(f"{preset.name} has no weights on the hub: give a checkpoint.")
    return preset.weights


def load_codec(preset: Preset, path: Path | None = None) -> LatentCodec:
    """The KL-16 autoencoder from `kl16.ckpt`, its safetensors form, or a diffusers folder; else from the hub."""
    if preset.codec is None:
        raise DisaError(f"{preset.name} has no autoencoder: its tokens are pixels.")
    if path is None:
        if preset.codec_weights is None:
            raise DisaError("this model needs an autoencoder: give one with vae=FILE (kl16.ckpt).")
        path = download(preset.codec_weights, preset.page)
    path = path / CODEC_WEIGHTS if path.is_dir() else path
    state = read_tensors(path)
    with torch.device("meta"):
        network = vae.build(preset.codec)
    if not set(state) <= set(network.state_dict()):
        state = vae.from_official(state, preset.codec)
    _check_tensors(state, network, str(path))
    network.load_state_dict(state, assign=True)
    return LatentCodec(network.requires_grad_(False).eval())


# -- our own folders -----------------------------------------------------------------------------------------------


def save_model(folder: Path, name: str, config: MARConfig, state: Mapping[str, Tensor]) -> Path:
    """Write `model.safetensors` (our names) and `config.json` (architecture, preset, hash) into `folder`."""
    make_folder(folder)
    sha256 = _write_tensors(folder / WEIGHTS, state)
    about = {
        "library": "disa", "family": "mar", "preset": name, "architecture": asdict(config), "sha256": sha256,
    }  # fmt: skip
    write_text(folder / CONFIG, json.dumps(about, indent=1) + "\n")
    return folder


def _write_tensors(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a whole .safetensors file and return its SHA-256."""
    content = save({key: value.contiguous() for key, value in state.items()}, {"format": "pt"})
    write_whole(path, lambda file: file.write(content))
    return hashlib.sha256(content).hexdigest()


def save_codec(folder: Path, codec: LatentCodec) -> Path:
    """Write a diffusers `AutoencoderKL` folder."""
    make_folder(folder)
    _write_tensors(folder / CODEC_WEIGHTS, codec.model.state_dict())
    write_text(folder / CONFIG, codec.model.to_json_string())
    return folder


def load_folder(folder: Path) -> tuple[Preset, MAR, Path | None]:
    """A folder that `save_model` wrote: its preset (with the folder's architecture), model, and autoencoder folder."""
    try:
        about = json.loads((folder / CONFIG).read_text())
        architecture = about["architecture"]
        config = MARConfig(**architecture | {"latent_size": tuple(architecture["latent_size"])})
        name, sha256 = about["preset"], about["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DisaError(
            f"{folder} is not a model folder of disa ({_first_line(error)}): expected {WEIGHTS} and {CONFIG}."
        ) from error
    path = folder / WEIGHTS
    if not path.is_file() or hash_file(path) != sha256:
        raise DisaError(f"{path} is not the file that {CONFIG} describes: its SHA-256 differs. Copy the folder again.")
    preset = replace(find_preset(name), architecture=config)
    codec = folder / CODEC if (folder / CODEC).is_dir() else None
    return preset, build_mar(config, _read_safetensors(path), str(path)), codec


def download_folder(repo: str) -> Path:
    """A hub repository in our layout."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        raise DisaError(f"could not get the hub repository {repo} ({_first_line(error)}).") from error


def convert(
    checkpoint: Path, model: str, out: Path, codec: Path | None = None, average: bool = True, official: bool = False
) -> dict[str, int]:
    """Read, check and write weights as our folder, or under official names; returns the files and their bytes."""
    preset = find_preset(model)
    source = checkpoint / WEIGHTS if checkpoint.is_dir() else checkpoint
    state = build_mar(preset.architecture, read_tensors(source, average), str(source)).state_dict()
    loaded = None if codec is None else load_codec(preset, codec)
    if official:
        renamed = official_names(preset.architecture).to_official(state)
        make_folder(out)
        _write_tensors(out / f"{model}.safetensors", renamed)
    else:
        save_model(out, model, preset.architecture, state)
    if loaded is not None:
        save_codec(out / CODEC, loaded)
    return {str(path.relative_to(out)): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
