"""What `torch.save` wrote, read without running anything of it, and without its tensors.

A pickle names functions and classes, and says what they are called with. Here every name becomes one of ours: those of
tensors become descriptions of where they lie in the file, any other a class of `Inert`, which keeps what it is given
and does nothing. So NumPy's numbers, paths, dates, a command line or somebody's own configuration beside the weights
are no obstacle, and code is never looked up. A file that names what only an attack needs is refused all the same.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from disa.errors import DisaError
from disa.weights.kinds import about_archive
from disa.weights.stored import Place, Stored, read_place, version_of

MOST_PICKLED = 128_000_000
"""Bytes of a checkpoint apart from its tensors."""
MOST_READS = 2_000_000
"""Pieces of the same: 30 000 tensors have as many."""
MOST_CLASSES = 10_000
MOST_DIRECTORY = 32_000_000
"""Bytes of the list of a zip file's entries: 200 000 of them."""
LONGEST_NAME, UNKNOWN = 60, -1

ATTACKS = {
    "os", "posix", "nt", "sys", "subprocess", "socket", "shutil", "pty", "runpy", "importlib", "ctypes", "commands",
    "webbrowser",
}  # fmt: skip
"""Modules that no description of a training needs."""
ATTACKING = {"eval", "exec", "execfile", "compile", "open", "__import__", "breakpoint"}
"""The same of Python's own functions."""
STORAGES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.qint8, "QUInt8Storage": torch.quint8, "QInt32Storage": torch.qint32,
}  # fmt: skip

MORE_THAN_ANY = "it holds more than any checkpoint beside its tensors"
LARGER_THAN_STORED = "a tensor is larger than what is stored of it"


class Inert(dict[Any, Any]):
    """What stands for an object of a kind that is not read: it keeps the entries and fields that it is given."""

    named = ""
    """The module and the name of what it stands for."""

    def __init__(self, *_args: Any, **_named: Any) -> None:
        super().__init__()

    @property
    def is_object(self) -> bool:
        """Whether it is no container: a module, or something without entries or fields that were kept."""
        return not self.named.startswith("collections.") and (not self or "_modules" in self)

    # Objects of any kind may be keys.
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __call__(self, *_args: Any, **_named: Any) -> Inert:
        """What a method would return."""
        return Inert()

    def append(self, _value: Any) -> None:
        """Lists of somebody's own are filled by this, or by the others."""

    extend = add = append


def read_zipped(path: Path) -> Any:
    """What `torch.save` wrote: its objects, with `Stored` for every tensor. Raises DisaError."""
    with _refusals(path), path.open("rb") as file:
        version = version_of(file)
        if _size_of_directory(file) > MOST_DIRECTORY:
            raise DisaError("it has more entries than any checkpoint")
        with zipfile.ZipFile(file) as archive:
            entries = {info.filename: info for info in archive.infolist()}
        folder = next((name.removesuffix("data.pkl") for name in entries if f"/{name}".endswith("/data.pkl")), None)
        if folder is None or f"{folder}constants.pkl" in entries:
            raise DisaError(about_archive(list(entries)))

        def place_of(name: str, size: int | None = None) -> Place:
            info = entries[folder + name]
            if info.compress_type != zipfile.ZIP_STORED:
                raise DisaError("it was packed anew: unpack it and save it by torch.save, which does not compress")
            if (size or 0) > info.file_size or info.header_offset + info.file_size > version[1]:
                raise ValueError(LARGER_THAN_STORED)
            return Place(path, version, info.header_offset, info.file_size if size is None else size, zipped=True)

        if order := entries.get(f"{folder}byteorder"):
            _check_order(read_place(file, place_of("byteorder", min(order.file_size, 6))) == b"little")
        pickled = place_of("data.pkl")
        if pickled.size > MOST_PICKLED:
            raise DisaError(MORE_THAN_ANY)
        content = io.BytesIO(read_place(file, pickled))
        return _Reader(content, lambda key, count, width: place_of(f"data/{key}", count * width)).load()


def read_legacy(path: Path) -> Any:
    """The same of the older form, without zip: several pickles, then every storage after its length."""
    with _refusals(path), path.open("rb") as file:
        version = version_of(file)
        found: dict[str, tuple[Place, int, int]] = {}

        def place_of(key: str, count: int, width: int) -> Place:
            return found.setdefault(key, (Place(path, version, UNKNOWN, count * width), count, width))[0]

        reader = _Reader(file, place_of)
        _magic, _protocol, system, content, keys = (reader.load() for _ in range(5))
        _check_order(system["little_endian"])
        for key in keys:
            place, count, width = found[key]
            if struct.unpack("<q", file.read(8)) != (count,):
                raise ValueError(LARGER_THAN_STORED)
            place.start = file.tell()
            if file.seek(count * width, io.SEEK_CUR) > version[1]:
                raise ValueError(LARGER_THAN_STORED)
        if any(place.start == UNKNOWN for place, _, _ in found.values()):
            raise ValueError(LARGER_THAN_STORED)
        return content


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Whatever goes wrong with a file of others is one line that says what it is."""
    try:
        yield
    except DisaError as error:
        raise DisaError(f"{path} was refused: {error}. Expected a whole PyTorch checkpoint of tensors.") from error
    except OSError as error:
        raise DisaError(f"{path} cannot be read: {error.strerror or error}.") from error
    except Exception as error:
        raise DisaError(f"{path} is damaged or cut off: expected a whole PyTorch checkpoint. Get it again.") from error


def _check_order(little: object) -> None:
    if little is not True:
        raise DisaError("it was written on a machine of another byte order")


def _size_of_directory(file: IO[bytes]) -> int:
    """What a zip file says at its end of the list of its entries: reading a longer one takes long."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - (1 << 16) - 98))
    tail = file.read()
    file.seek(0)
    end, large = tail.rfind(b"PK\5\6"), tail.rfind(b"PK\6\6")
    return max(
        struct.unpack_from("<I", tail, end + 12)[0] if large < 0 <= end <= len(tail) - 22 else 0,
        struct.unpack_from("<Q", tail, large + 40)[0] if 0 <= large <= len(tail) - 56 else 0,
    )


class _Bounded:
    """A file to unpickle, of which only so much is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.reads, self.bytes = file, MOST_READS, MOST_PICKLED

    def read(self, size: int) -> bytes:
        return self._counted(self.file.read(min(size, self.bytes + 1)))

    def readline(self) -> bytes:
        return self._counted(self.file.readline(self.bytes + 1))

    def _counted(self, found: bytes) -> bytes:
        self.reads, self.bytes = self.reads - 1, self.bytes - len(found)
        if self.reads < 0 or self.bytes < 0:
            raise DisaError(MORE_THAN_ANY)
        return found


class _Reader(pickle._Unpickler):  # type: ignore[name-defined]
    """Python's own machine: the one in C reserves whatever memory a file of ten bytes asks for.

    place_of: where a storage lies, from its key, the number of its elements and the bytes of one.
    """

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: IO[bytes], place_of: Callable[[str, int, int], Place]) -> None:
        super().__init__(_Bounded(file), encoding="utf-8", errors="replace")
        self.place_of = place_of
        self.classes: dict[str, Any] = {
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": _of_type,
        }

    def load(self) -> Any:
        """One of the pickles of a file; none refers to another."""
        self.memo = {}
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name; nothing is imported."""
        root, named = module.partition(".")[0], f"{module}.{name}"
        if root in ATTACKS or (root in ("builtins", "__builtin__") and name in ATTACKING):
            raise DisaError(f"it holds code ({named[:LONGEST_NAME]}), not only tensors")
        if root == "torch" and (dtype := _dtype_of(name)) is not None:
            return dtype
        if len(self.classes) > MOST_CLASSES:
            raise DisaError(MORE_THAN_ANY)
        return self.classes.setdefault(named, type("Inert", (Inert,), {"named": named[:LONGEST_NAME]}))

    def persistent_load(self, pid: Any) -> Any:
        """A storage; or a class with its source, which PyTorch wrote once."""
        if pid[0] != "storage":
            return pid[1]
        _, dtype, key, _, count, *view = pid
        if type(key) is not str or type(count) is not int or count < 0 or view not in ([], [None]):
            raise ValueError("a storage is not where it should be")
        if not isinstance(dtype, torch.dtype):
            return self._unusual()
        return Stored(self.place_of(key, count, dtype.itemsize), dtype, (count,), (1,))

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
        dtype, signs = getattr(storage, "dtype", None), rest[2:]
        return self._typed_tensor(storage, offset, shape, stride, *rest[:2], dtype, *signs)

    def _typed_tensor(self, storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Any:
        """rest: whether it is trained, hooks, the dtype and signs, of values that are to be conjugated or negated."""
        dtype = next((each for each in rest if isinstance(each, torch.dtype)), None)
        if not isinstance(storage, Stored) or dtype is None or any(rest[3:]):
            return self._unusual()
        stored = Stored(storage.place, dtype, tuple(shape), tuple(stride), offset)
        if not stored.fits():
            raise ValueError(LARGER_THAN_STORED)
        return stored

    def _unusual(self) -> Inert:
        return self.find_class("torch._utils", "_rebuild_unusual")()

    def load_build(self) -> None:
        """Fields of an object: only one of ours gets them. Those of Python's own dictionaries are not their entries."""
        fields, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert) and isinstance(fields, dict) and not target.named.startswith("collections."):
            target.update(fields)

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def load_setitems(self) -> None:
        self._fill(self.pop_mark())

    def load_dict(self) -> None:
        entries = self.pop_mark()
        self.stack.append({})
        self._fill(entries)

    def _fill(self, entries: list[Any]) -> None:
        """Entries of a dictionary under texts and numbers. Others are no names of weights, and may be objects that hold
        each other without end, or numbers of a million digits, which nobody can look up or show."""
        for key, value in zip(entries[::2], entries[1::2], strict=True):
            if isinstance(key, str | bytes | float | None) or (isinstance(key, int) and key.bit_length() <= 64):
                self.stack[-1][key] = value

    def load_additems(self) -> None:
        """What is in a set is not needed."""
        self.pop_mark()

    def load_bytearray8(self) -> None:
        """An array would be made as large as it says it is, before it is read."""
        self.stack.append(self.read(*struct.unpack("<Q", self.read(8))))

    def load_frozenset(self) -> None:
        self.pop_mark()
        self.stack.append(frozenset())


_Reader.dispatch = pickle._Unpickler.dispatch | {  # type: ignore[attr-defined]
    pickle.BUILD[0]: _Reader.load_build,
    pickle.SETITEM[0]: _Reader.load_setitem,
    pickle.SETITEMS[0]: _Reader.load_setitems,
    pickle.DICT[0]: _Reader.load_dict,
    pickle.ADDITEMS[0]: _Reader.load_additems,
    pickle.FROZENSET[0]: _Reader.load_frozenset,
    pickle.BYTEARRAY8[0]: _Reader.load_bytearray8,
}


def _first(tensor: Any, *_rest: Any) -> Any:
    return tensor


def _of_type(rebuild: Any, _kind: Any, arguments: tuple[Any, ...], *_rest: Any) -> Any:
    return rebuild(*arguments)


def _dtype_of(name: str) -> torch.dtype | None:
    """Of a kind of storage, or by its own name."""
    found = STORAGES.get(name, vars(torch).get(name))
    return found if isinstance(found, torch.dtype) else None
