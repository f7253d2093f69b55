"""Files to tensors: official `.pth` and `.ckpt`, and `.safetensors`. Files are data, nothing in them is executed.

What a file is, is told in `kinds`; how it is read, in `stored` and `pickled`; what of it the weights are, in `entries`.

| dtype of a tensor | what happens |
|---|---|
| float32, float64, bfloat16, float16 | read as it is; a sampler computes in its own |
| float8 | refused: such files leave out what their values are to be multiplied by |
| whole numbers, true or false, complex numbers | refused |
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from disa.errors import DisaError, warn
from disa.weights import kinds
from disa.weights.entries import LONGEST_NAME, find_weights, option
from disa.weights.pickled import Inert, read_legacy, read_zipped
from disa.weights.shards import files_of
from disa.weights.stored import Stored, index_safetensors, read_stored


@dataclass(frozen=True)
class Weights:
    """The weights of a file, not read yet."""

    state: Mapping[str, Stored]
    path: Path
    source: str
    """What a message calls them."""
    note: str
    """What was chosen, where there was a choice."""
    otherwise: str
    """What to do where their values are no numbers."""

    def say(self) -> None:
        """Warn of what was chosen."""
        if self.note:
            warn(f"{self.path}: {self.note}.")


def read_tensors(path: Path, average: bool = True, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of the weights of a file or a folder, see `find`. Raises DisaError."""
    weights = find(path, average, key)
    weights.say()
    return read_stored(weights.state)


def find(path: Path, average: bool = True, key: str | None = None, known: Collection[str] = ()) -> Weights:
    """Which tensors of a file are the weights, see `entries`.

    average: prefer the moving average, as official evaluations do. key: the entry to take. known: the names that they
    may have. Of a folder, or of an index of shards, all shards are read. Raises DisaError.
    """
    content = read_content(path)
    try:
        found = find_weights(content, average, key, known)
    except DisaError as error:
        raise DisaError(f"{path} {error}") from error
    _check(path, found.state)
    other = f", or take another of its entries with {option(found.others[0])}" if found.others else ""
    source = f"{path} ({found.key})" if found.others else str(path)
    return Weights(found.state, path, source, found.note, f"Get it again{other}.")


def read_content(path: Path) -> Mapping[str, Any]:
    """All that a checkpoint holds: `Stored` for tensors, `Inert` for objects of other kinds. Raises DisaError."""
    content: dict[str, Any] = {}
    files = files_of(path)
    for file in files:
        part = _read(file)
        if not isinstance(part, Mapping) or (isinstance(part, Inert) and part.is_object):
            raise DisaError(f"{file} is not a checkpoint of named tensors: it holds {_about(part)}.")
        if twice := content.keys() & part.keys():
            raise DisaError(
                f"{path} holds more than one checkpoint: {min(map(str, twice))} is in several of its files. Give one "
                f"of them, such as {file}."
            )
        content = {**content, **part}
    return content


def _read(file: Path) -> Any:
    match kinds.kind_of(file):
        case kinds.SAFETENSORS:
            return index_safetensors(file)
        case kinds.ZIPPED:
            return read_zipped(file)
        case kinds.LEGACY:
            return read_legacy(file)
        case _:
            raise DisaError(f"{file} is an index of other files: give it alone.")


def _about(content: Any) -> str:
    if isinstance(content, Stored):
        return "a Tensor"
    if isinstance(content, Inert):
        return f"a whole object ({content.named}), which is code. Save its state_dict() by torch.save"
    return f"a {type(content).__name__}"


def _check(path: Path, state: Mapping[Any, Any]) -> None:
    """Plain tensors under plain names. Raises DisaError."""
    if all(isinstance(value, Mapping) and not value for value in state.values()):
        raise DisaError(f"{path} is not a checkpoint: it is empty.")
    for name, value in state.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > LONGEST_NAME:
            raise DisaError(f"{path} is not a checkpoint of named tensors: one is called {name!r:.40}.")
        if not isinstance(value, Stored):
            unusual = isinstance(value, Inert) and value.named.startswith("torch._utils._rebuild")
            kind = "unusual tensor" if unusual else value.named if isinstance(value, Inert) else type(value).__name__
            raise DisaError(f"{path} is not a checkpoint of plain tensors: {name!r} is of type {kind}.")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one whole `.safetensors` file. Raises DisaError."""
    return read_stored(index_whole(path))


def index_whole(path: Path) -> dict[str, Stored]:
    """The same, not read yet."""
    if kinds.kind_of(path) != kinds.SAFETENSORS:
        raise DisaError(f"{path} is not a whole .safetensors file: it is a checkpoint of another kind. Get it again.")
    return index_safetensors(path)
