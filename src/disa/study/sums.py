"""Sums that a long measurement adds up, in a file that an interrupted one goes on from."""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from disa.errors import DisaError, warn
from disa.files import write_whole

UNREADABLE = OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error
"""What NumPy and JSON raise for a file that is cut off, damaged, or of something else."""


class Sums:
    """Arrays by name. path: where they are kept, or None. digest: of what is measured; another one begins anew."""

    def __init__(self, path: Path | None, digest: str) -> None:
        self.path, self.digest = path, digest
        self.arrays, self.done = dict[str, np.ndarray](), list[str]()
        if path is not None and path.exists():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            with np.load(path, allow_pickle=False) as stored:
                about = json.loads(str(stored["about"]))
                arrays = {name: stored[name] for name in stored.files if name != "about"}
            digest, done = about["digest"], about["done"]
        except UNREADABLE as error:
            raise DisaError(f"{path} is no unfinished measurement: remove it to begin anew.") from error
        if digest != self.digest:
            warn(f"{path} is of another measurement: this one begins anew")
            return
        self.arrays, self.done = arrays, done

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def add(self, name: str, value: np.ndarray | float) -> None:
        """Add to a sum, which begins at 0."""
        self.arrays[name] = self.arrays.get(name, np.zeros(())) + value

    @contextlib.contextmanager
    def once(self, part: str) -> Iterator[bool]:
        """Whether a part is still to be measured. When it is left without an error, it is kept as done."""
        if part in self.done:
            yield False
            return
        before = dict(self.arrays)
        try:
            yield True
        except BaseException:
            self.arrays = before
            raise
        self.done.append(part)
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        about = np.array(json.dumps({"digest": self.digest, "done": self.done}))

        def write(file: IO[bytes]) -> None:
            np.savez(file, about=about, **self.arrays)  # pyright: ignore[reportArgumentType]

        write_whole(self.path, write, synced=False)

    def forget(self) -> None:
        """Remove the file: the measurement is finished."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)
