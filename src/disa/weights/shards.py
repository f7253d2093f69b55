"""Which files the weights of a folder, or of an index of shards, are in.

| given | read |
|---|---|
| a file | it |
| `*.index.json` with a `weight_map` | the files that it lists, which lie beside it |
| a folder with such an index | the files that it lists |
| any other folder | all its `.safetensors`, or else its `*model*.bin`, or else its only `.pth`, `.pt` or `.ckpt` |
| a folder that disa wrote | refused: it is a model by itself |
"""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote

from disa.errors import DisaError
from disa.reading import json_in
from disa.values import counted, either, shown
from disa.weights import kinds

CONFIG, WEIGHTS = "config.json", "model.safetensors"
BESIDE = ("optimizer", "optim", "scheduler", "rng", "random_states", "training_args", "scaler", "trainer_state")
"""How the names of files begin that trainers put beside their weights."""
FOLDERS = {
    ".metadata": "a distributed checkpoint: make one file of it with "
    "`python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} weights.pth`",
    "zero_to_fp32.py": "a checkpoint of DeepSpeed: make one file of it with its zero_to_fp32.py",
    "data.pkl": "a PyTorch checkpoint that was unpacked: get it again as one file",
    "saved_model.pb": "a model of TensorFlow",
    "flax_model.msgpack": "a model of Flax",
    "tf_model.h5": "a model of TensorFlow",
}
"""Folders of other kinds, by a file in them."""
MOST_SHOWN = 6


def files_of(path: Path) -> list[Path]:
    """The files with the weights. Raises DisaError."""
    if not os.path.isdir(path):  # says so of what is no path at all too
        return _listed(path) if kinds.kind_of(path) == kinds.INDEX else [path]
    if is_ours(path):
        raise DisaError(f"{path} is a folder: expected a file. A folder that disa wrote is given as the model itself.")
    try:
        files = sorted(file for file in path.iterdir() if not file.is_dir())
    except OSError as error:
        raise DisaError(f"{path} cannot be read: {error.strerror or error}.") from error
    for index in [file for file in reversed(files) if file.name.endswith(".index.json")]:
        if kinds.kind_of(index) == kinds.INDEX and _map(index):
            return _listed(index)
    return _of_folder(path, files)


def _of_folder(path: Path, files: list[Path]) -> list[Path]:
    if found := [file for file in files if file.suffix.lower() == ".safetensors"]:
        return found
    others = [file for file in files if file.name.lower().endswith(kinds.ENDINGS) and not file.name.startswith(BESIDE)]
    if found := [file for file in others if file.suffix == ".bin" and "model" in file.name]:
        return found
    if len(others) == 1:
        return others
    if others:
        names = either(file.name for file in others[:MOST_SHOWN])
        raise DisaError(f"{path} is a folder: expected a file. It has {len(others)} checkpoints: give {names}.")
    what = next((FOLDERS[file.name] for file in files if file.name in FOLDERS), "a folder without weights")
    raise DisaError(f"{path} is a folder: expected a file. It is {what.format(path=quote(str(path)))}.")


def shard_of(path: Path) -> str:
    """What to do where a file is one shard of several and the others lie beside it; nothing otherwise."""
    first, _, rest = path.stem.rpartition("-of-")
    start = first.rpartition("-")[0]
    several = first and rest.isdigit() and len(list(path.parent.glob(f"*-of-{rest}{path.suffix}"))) > 1
    return f" It is one of {counted(int(rest), 'file')} of {start}: give their folder." if several else ""


def _map(index: Path) -> dict[str, str]:
    try:
        found = json_in(index, kinds.LONGEST_INDEX)["weight_map"]
    except (ValueError, KeyError, TypeError) as error:
        raise DisaError(f"{index} is no index of weights: it is damaged. Get it again.") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise DisaError(f"{index} is no index of weights: expected file names in its weight_map.")
    return found


def _listed(index: Path) -> list[Path]:
    names = sorted(set(_map(index).values()))
    if not names:
        raise DisaError(f"{index} lists no files: give the folder or a file with weights.")
    if outside := [name for name in names if name != Path(name).name or name in ("", ".", "..") or "\0" in name]:
        raise DisaError(f"{index} lists {shown(outside[0])}, which is no file beside it: get it again.")
    files = [index.parent / name for name in names]
    if missing := [file for file in files if not file.exists()]:
        raise DisaError(
            f"{index} lists {counted(len(files), 'file')}, of which {len(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} not there: get {missing[0].name} too."
        )
    return files


def is_ours(folder: Path) -> bool:
    """Whether disa wrote this folder."""
    try:
        return json_in(folder / CONFIG)["library"] == "disa"
    except (ValueError, KeyError, TypeError):
        return False
