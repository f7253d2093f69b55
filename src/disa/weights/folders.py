"""Our folders: `model.safetensors`, `config.json` and, in folders of their own, an autoencoder and a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from disa.codecs.base import LatentCodec
from disa.errors import DisaError
from disa.files import make_folder, write_json, write_text, write_whole
from disa.models.families import Model
from disa.models.spec import Preset
from disa.values import first_line
from disa.weights.build import build_model
from disa.weights.config import read_config, to_json
from disa.weights.load import CODEC_WEIGHTS
from disa.weights.read import read_safetensors
from disa.weights.shards import CONFIG
from disa.weights.trust import forget, hash_file

WEIGHTS, CODEC, TOKENIZER = "model.safetensors", "vae", "tokenizer"


def save_model(folder: Path, preset: Preset, state: Mapping[str, Tensor]) -> Path:
    """Write `model.safetensors` (our names) and `config.json` (spec, defaults, hash) into `folder`."""
    make_folder(folder)
    sha256 = write_tensors(folder / WEIGHTS, state)
    write_json(folder / CONFIG, {**to_json(preset), "sha256": sha256})
    return folder


def save_codec(folder: Path, codec: LatentCodec) -> Path:
    """Write an autoencoder: a diffusers `AutoencoderKL` folder, or the small one in the same layout."""
    make_folder(folder)
    write_tensors(folder / CODEC_WEIGHTS, codec.model.state_dict())
    write_text(folder / CONFIG, codec.about())
    return folder


def write_tensors(path: Path, state: Mapping[str, Tensor]) -> str:
    """Write a whole .safetensors file and return its SHA-256."""
    content = save({key: value.contiguous() for key, value in state.items()}, {"format": "pt"})
    write_whole(path, lambda file: file.write(content))
    forget(path)
    return hashlib.sha256(content).hexdigest()


def load_folder(folder: Path) -> tuple[Preset, Model, Path | None]:
    """A folder that `save_model` wrote: what its `config.json` says, its model, and its autoencoder's folder.

    Raises DisaError.
    """
    preset, sha256 = read_config(folder / CONFIG)
    path = folder / WEIGHTS
    if not path.is_file() or hash_file(path) != sha256:
        raise DisaError(f"{path} is not the file that {CONFIG} describes: its SHA-256 differs. Copy the folder again.")
    try:
        model = build_model(preset, read_safetensors(path), str(path))
    except (RuntimeError, ValueError, OverflowError) as error:
        raise DisaError(
            f"{folder / CONFIG} describes a model that cannot be built ({first_line(error)}): check its architecture."
        ) from error
    codec = folder / CODEC if (folder / CODEC).is_dir() else None
    return preset, model, codec
