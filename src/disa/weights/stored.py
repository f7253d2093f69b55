"""Tensors of a file that are described before they are read: only what a model needs is read, and it is owned.

Nothing stays mapped: a file that is written anew while its weights are in use changes no picture and ends no process.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.values import counted

MOST_HEADER = 12_000_000
"""Bytes of a header of `.safetensors`: that of a model of 30 000 tensors has 5 million."""
MOST_ELEMENTS, MOST_AXES = 1 << 60, 64
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32,
    "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip
"""The dtypes that PyTorch has had for long; others are described, and refused where they are needed."""
ROUNDED = {torch.float64, torch.float32, torch.float16, torch.bfloat16}


@dataclass
class Place:
    """Some bytes of a file. zipped: the header of a zip entry stands before them, whose length only the file says."""

    path: Path
    version: tuple[int, ...]
    """What tells the file from one that has taken its place."""
    start: int
    size: int
    zipped: bool = False


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. stride and offset count elements; dtype: its name where PyTorch may have none."""

    place: Place
    dtype: torch.dtype | str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def outline(self) -> Tensor:
        """The same without values."""
        return torch.empty(self.shape, device="meta")

    @property
    def span(self) -> int:
        """Elements from the first one to the last, in the file."""
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    def fits(self) -> bool:
        """Whether the file holds all of it. An empty tensor needs nothing."""
        if not _are_sizes(*self.shape, *self.stride, self.offset) or len(self.shape) != len(self.stride):
            return False
        if len(self.shape) > MOST_AXES or math.prod(self.shape) > MOST_ELEMENTS:
            return False
        width = self.dtype.itemsize if isinstance(self.dtype, torch.dtype) else 0
        return 0 in self.shape or (self.offset + self.span) * width <= self.place.size


def _are_sizes(*numbers: Any) -> bool:
    return all(type(number) is int and 0 <= number <= MOST_ELEMENTS for number in numbers)


def version_of(file: IO[bytes]) -> tuple[int, ...]:
    """What tells an open file from one of the same name and another content."""
    about = os.fstat(file.fileno())
    return about.st_ino, about.st_size, about.st_mtime_ns


def read_stored(state: Mapping[str, Tensor | Stored], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """The tensors of a state dict, whose names stay in their order. Raises DisaError.

    dtype: what those of `ROUNDED` become, each as it is read, so that no more is held than all of them take in it.
    """
    files: dict[Path, list[str]] = {}
    for name, value in state.items():
        if isinstance(value, Stored):
            files.setdefault(value.place.path, []).append(name)
    found: dict[str, Tensor] = {}
    for path, names in files.items():
        try:
            with path.open("rb") as file:
                found |= {name: _rounded(_read(file, name, state[name]), dtype) for name in names}
        except OSError as error:
            raise DisaError(f"{path} cannot be read: {error.strerror or error}.") from error
    return {name: found[name] if isinstance(value, Stored) else value for name, value in state.items()}


def _rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or tensor.dtype not in ROUNDED else tensor.to(dtype)


def _read(file: IO[bytes], name: str, stored: Any) -> Tensor:
    place, dtype = stored.place, stored.dtype
    if version_of(file) != place.version:
        raise DisaError(f"{place.path} changed while it was read: try again when it is written.")
    if not isinstance(dtype, torch.dtype):
        raise DisaError(f"{place.path}: {name} is {dtype}, a kind of numbers that PyTorch does not have.")
    if 0 in stored.shape:
        return torch.empty(stored.shape, dtype=dtype)
    content = torch.empty(stored.span * dtype.itemsize, dtype=torch.uint8)
    file.seek(_start(file, place) + stored.offset * dtype.itemsize)
    if file.readinto(memoryview(content.numpy())) != len(content):  # type: ignore[attr-defined]
        raise DisaError(f"{place.path} is cut off: {name} is not all there. Get it again.")
    return content.view(dtype).as_strided(stored.shape, stored.stride)


def read_place(file: IO[bytes], place: Place) -> bytes:
    """All that lies there."""
    file.seek(_start(file, place))
    return file.read(place.size)


def _start(file: IO[bytes], place: Place) -> int:
    if not place.zipped:
        return place.start
    file.seek(place.start)
    name, extra = struct.unpack("<26xHH", file.read(30).ljust(30, b"\0"))
    return place.start + 30 + name + extra


# -- .safetensors --------------------------------------------------------------------------------------------------


def index_safetensors(path: Path) -> dict[str, Stored]:
    """The tensors of a whole `.safetensors` file, see `open_safetensors`. Raises DisaError."""
    return open_safetensors(path)[0]


def open_safetensors(path: Path) -> tuple[dict[str, Stored], dict[str, Any]]:
    """What a whole `.safetensors` file holds, where all bytes belong to one tensor each; and what it says of itself.

    Raises DisaError.
    """
    with path.open("rb") as file:
        version = version_of(file)
        length = int.from_bytes(file.read(8), "little")
        if length > MOST_HEADER and 8 + length <= version[1]:
            raise _not_whole(path, f"its header has {length} bytes, more than any model's")
        header = file.read(min(length, MOST_HEADER))
    if 8 + length > version[1]:
        raise _not_whole(path, f"its header says {counted(length, 'byte')}, the file has {version[1]}")
    try:
        entries = json.loads(header)
        said = dict(entries.pop("__metadata__", None) or {})
        body = version[1] - 8 - length
        found = {name: _entry(path, version, 8 + length, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        raise _not_whole(path, "its header is damaged") from error
    end = 0
    for name, stored in sorted(found.items(), key=lambda entry: (entry[1].place.start, entry[1].place.size)):
        if stored.place.start != 8 + length + end:
            raise _not_whole(path, f"the bytes of {name!r:.40} are not where they belong")
        end += stored.place.size
    if end != body:
        raise _not_whole(path, f"its tensors have {counted(end, 'byte')}, the file has {body} for them")
    return found, said


def _entry(path: Path, version: tuple[int, ...], start: int, entry: Mapping[str, Any]) -> Stored:
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    if not _are_sizes(*shape, begin, end) or len(shape) > MOST_AXES:
        raise ValueError("no sizes")
    dtype = DTYPES.get(entry["dtype"], str(entry["dtype"])[:20])
    if isinstance(dtype, torch.dtype) and math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError("other sizes")
    steps = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    return Stored(Place(path, version, start + begin, end - begin), dtype, shape, steps)


def _not_whole(path: Path, reason: str) -> DisaError:
    return DisaError(f"{path} is not a whole .safetensors file: {reason}. Get it again.")
