"""Files to tensors: official `.pth` and `.ckpt`, and `.safetensors`. Files are data, nothing in them is executed."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from disa.errors import DisaError
from disa.values import first_line

CONFIG = "config.json"
LONGEST_NAME = 200
AVERAGE_FIRST = ("model_ema", "model", "state_dict")
LAST_FIRST = ("model", "model_ema", "state_dict")


def read_tensors(path: Path, average: bool = True) -> dict[str, Tensor]:
    """Every tensor of a `.safetensors` file, or of a PyTorch checkpoint's `model_ema` (or `model`, or all of it).

    average: prefer the moving average, as official evaluations do. PyTorch files are read with `weights_only`. Of a
    folder all `.safetensors` files are read, in which large models are shared out. Raises DisaError.
    """
    content = read_content(path)
    order = AVERAGE_FIRST if average else LAST_FIRST
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


def read_content(path: Path) -> Mapping[str, Any]:
    """All that a checkpoint holds, tensors or not. Raises DisaError."""
    if not path.exists():
        raise DisaError(f"no checkpoint at {path}: expected a .safetensors, .pth or .ckpt file.")
    content: Mapping[str, Any] = {}
    for file in files_of(path):
        part = read_safetensors(file) if file.suffix == ".safetensors" else _read_pickle(file)
        if twice := set(content) & set(part):
            raise DisaError(f"{path} holds more than one checkpoint: {min(twice)} is in several of its files.")
        content = part if file == path else {**content, **part}
    return content


def files_of(path: Path) -> list[Path]:
    """The file itself, or the .safetensors files of a folder that disa has not written. Raises DisaError."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.safetensors"))
    if not files or is_ours(path):
        raise DisaError(f"{path} is a folder: expected a file. A folder that disa wrote is given as the model itself.")
    return files


def is_ours(folder: Path) -> bool:
    """Whether disa wrote this folder."""
    try:
        return json.loads((folder / CONFIG).read_text())["library"] == "disa"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def read_safetensors(path: Path) -> Mapping[str, Any]:
    """The tensors of one whole file. Raises DisaError."""
    try:
        return load_file(path)
    except Exception as error:
        raise DisaError(f"{path} is not a whole .safetensors file ({first_line(error)}). Get it again.") from error


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


def _is_plain(value: object) -> bool:
    """Whether it is a dense tensor with values: not sparse, nested, quantised or on the meta device."""
    return (
        isinstance(value, Tensor)
        and not (value.is_nested or value.is_quantized)
        and value.layout is torch.strided
        and value.device.type == "cpu"
    )
