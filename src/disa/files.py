"""Writing whole files or none, alone or together, whatever ends the process and when.

A process may be killed between any two lines. Each order of writing leaves a valid state at every one of them:

- A file (`write_whole`): it is written under a temporary name, synced, and renamed. Its path is old, then new.
- Files that belong together, as weights and config.json or a table and its plot (`write_together`): all are written
  under temporary names; a journal that lists them is put beside them; those that tell of the others are removed; the
  others are renamed; those that tell of them are renamed; the journal goes. Killed before the journal, all is old.
  Killed after it, all is new: whoever reads or writes there next does the rest of the renaming.
- Files that each stand alone (`write_each`): all are written, then each is renamed; some of them are new.

A temporary file is locked while its process lives. So the next run into a folder clears what a killed process left
(`make_folder`), never what another one is writing, and no file of the user: their names are of a kind of our own.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any

from disa.errors import DisaError
from disa.reading import json_in
from disa.values import named

JOURNAL = ".unfinished.disa"
LONGEST_JOURNAL = 1 << 20
PATIENCE = 2.0
"""Seconds to wait for a process that puts its files in their places."""
_TEMPORARY = re.compile(
    r"\..+\.[0-9a-f]{8}\.disa"
    # as they were called before
    r"|\..+\.(png|jsonl?|safetensors|pt)\.(?=\d*[a-f])[0-9a-f]{8}"
)
_renaming, _taking = threading.RLock(), threading.Lock()
_holds: weakref.WeakValueDictionary[tuple[int, int], Hold] = weakref.WeakValueDictionary()


# -- folders -------------------------------------------------------------------------------------------------------


def make_folder(path: Path) -> Path:
    """Create `path` (and parents) if needed and prove that it can be written to, before any work is done.

    What a killed process left there is finished or cleared.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        finish_writing(path)
        clear_unfinished(path)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise DisaError(
            f"cannot write to the folder {named(path)}: {error.strerror or error}. Choose another one."
        ) from error
    return path


def clear_unfinished(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote into this folder, but for those that a
    journal lists, here or in a folder around this one: they are renamed when that is finished."""
    for path in folder.glob(".*"):
        if not _TEMPORARY.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            continue
        with suppress(OSError), path.open("rb") as file:
            if os.name == "nt":  # Windows removes nothing that is open, by us or by another process
                file.close()
            # A journal may have come until it was locked.
            if (file.closed or _lock(file.fileno())) and path.name not in _listed(folder):
                path.unlink()


class Hold:
    """The right to write a run into a folder, as long as this object is kept."""

    def __init__(self, descriptor: int | None) -> None:
        if descriptor is not None:
            weakref.finalize(self, os.close, descriptor)

    def __enter__(self) -> Hold:
        return self

    def __exit__(self, *_: object) -> None: ...


def only_writer(folder: Path) -> Hold:
    """Keep other processes from writing a run into this folder at the same time; callers in one process share it.

    Nothing is left in the folder, and the right ends with the process. Where a file system knows no locks, nobody is
    kept from anything. Raises DisaError.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return Hold(None)
    about = os.fstat(descriptor)
    key = about.st_dev, about.st_ino
    with _taking:  # threads that ask at the same time share one
        if (hold := _holds.get(key)) is not None:
            os.close(descriptor)
            return hold
        hold, deadline = Hold(descriptor), time.monotonic() + PATIENCE
        while _lock(descriptor) is False:
            if time.monotonic() > deadline:
                raise DisaError(f"another process writes into {folder}: wait until it ends, or choose another folder.")
            time.sleep(0.02)
        _holds[key] = hold
        return hold


def is_written(folder: Path) -> bool:
    """Whether another process has the right to write a run into this folder, as far as can be told."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        return _lock(descriptor) is False
    finally:
        os.close(descriptor)


def _lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file or folder until it is closed, by whatever; False where another process holds it, None where it
    cannot be told."""
    try:
        from fcntl import LOCK_EX, LOCK_NB, flock
    except ImportError:  # Windows removes nothing that is open
        return True
    try:
        flock(descriptor, LOCK_EX | (0 if wait else LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


# -- one file ------------------------------------------------------------------------------------------------------


class _Part:
    """A file under a temporary name, locked until it has its own."""

    def __init__(self, path: Path, token: str = "") -> None:
        # The name is known before the file exists: whatever interrupts what follows, the file is found and removed.
        self.path, self.temporary = path, _temporary(path, token or secrets.token_hex(4))
        self._descriptor: int | None = None

    def write(self, write: Callable[[IO[bytes]], object], *, synced: bool = True) -> None:
        """Call `write(file)`. Raises DisaError where that is not possible."""
        try:
            self._create()
            with open(self.temporary, "r+b") as file:
                write(file)
                file.flush()
                if synced:
                    os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            # torch.save turns what the disk says into an error of its own.
            reason = error if isinstance(error, OSError) else error.__context__
            if not isinstance(reason, OSError):
                raise
            raise _unwritten(self.path, reason) from error

    def place(self, so_far: str = "Nothing was changed.") -> None:
        """Give it its own name. so_far: what is said where that is not possible. Raises DisaError."""
        if os.name == "nt":  # Windows renames nothing that is open
            self.close()
        try:
            os.replace(self.temporary, self.path)
        except OSError as error:
            raise _unwritten(self.path, error, so_far) from error

    def close(self) -> None:
        """Nobody writes it any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def discard(self) -> None:
        """Remove what has not got its own name."""
        self.close()
        self.temporary.unlink(missing_ok=True)

    def _create(self) -> None:
        while True:
            self._descriptor = os.open(self.temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            _lock(self._descriptor, wait=True)
            if self.temporary.exists():
                return
            self.close()  # it was taken for one that nobody writes, before it was locked


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, synced: bool = True) -> Path:
    """Call `write(file)` on a temporary file beside `path` and rename it: `path` is old, new or absent, not partial.

    synced: wait for the disk, so that this holds after a power failure too; it takes milliseconds. A link is replaced,
    what it points to stays.
    """
    part = _Part(path)
    try:
        part.write(write, synced=synced)
        part.place()
    finally:
        part.discard()
    if synced:
        _sync(path.parent)
    return path


def write_each(files: Mapping[Path, bytes], then: Callable[[], object] = lambda: None) -> None:
    """Write files that each stand alone: all under temporary names, then `then()`, then each gets its own name.

    Where there is no room for all, none is written. After a power failure some may be partial. It is for a process
    that is the `only_writer`: there may be too many to keep them all open, and locked.
    """
    parts = [_Part(path) for path in files]
    try:
        for part, content in zip(parts, files.values(), strict=True):
            part.write(lambda file, content=content: file.write(content), synced=False)
            part.close()
        then()
        for count, part in enumerate(parts):
            part.place(f"{count} of {len(parts)} files were written before.")
    finally:
        for part in parts:
            part.discard()


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all."""
    return write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> Path:
    """Write `content` as indented JSON, whole or not at all."""
    return write_whole(path, lambda file: file.write(json_bytes(content)))


def json_bytes(content: Any) -> bytes:
    """Indented JSON, as files have it."""
    return f"{json.dumps(content, indent=1)}\n".encode()


def _temporary(path: Path, token: str) -> Path:
    return path.with_name(f".{path.name[:40]}.{token}.disa")


def _unwritten(path: Path, reason: OSError, so_far: str = "Nothing was changed.") -> DisaError:
    return DisaError(f"could not write {path}: {reason.strerror or reason}. {so_far}")


def _sync(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where that can be asked for."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# -- files that belong together ------------------------------------------------------------------------------------


def write_together(folder: Path, files: Mapping[str, bytes], telling: Mapping[str, bytes]) -> None:
    """Write files by their names below `folder`: all of them become new, or none.

    telling: those that tell of the others, as config.json of weights and a plot of a table. At no moment does one of
    them stand beside others than its own. Raises DisaError.
    """
    contents, token = {**files, **telling}, secrets.token_hex(4)
    make_folder(folder)
    with _renaming, only_writer(folder):
        finish_writing(folder)
        for place in {(folder / name).parent for name in contents} - {folder}:
            make_folder(place)
        parts = [_Part(folder / name, token) for name in contents]
        try:
            for part, content in zip(parts, contents.values(), strict=True):
                part.write(lambda file, content=content: file.write(content))
            write_json(folder / JOURNAL, {"token": token, "files": list(files), "telling": list(telling)})
            finish_writing(folder)
        finally:
            for part in parts:
                part.close()
            if not (folder / JOURNAL).exists():
                for part in parts:
                    part.discard()


def finish_writing(folder: Path) -> None:
    """Do what is left of a `write_together` that was killed when everything was written, into this folder or into one
    around it with files in this one. Raises DisaError."""
    around = [place for name, place in _listed(folder).items() if os.path.lexists(folder / name)]
    for place in dict.fromkeys([*around, folder]):
        _finish(place)


def _finish(folder: Path) -> None:
    if not (folder / JOURNAL).exists():
        return
    with _renaming, only_writer(folder):
        plan = _read_journal(folder / JOURNAL)
        if plan is None:
            return
        try:
            files, telling = plan
            for temporary, path in telling:
                if temporary.exists():
                    path.unlink(missing_ok=True)
            for temporary, path in files + telling:
                with suppress(FileNotFoundError):
                    os.replace(temporary, path)
            for place in {path.parent for _, path in files + telling}:
                _sync(place)
            (folder / JOURNAL).unlink(missing_ok=True)
        except OSError as error:
            raise DisaError(
                f"{folder} holds files that are written but not in their places yet ({error.strerror or error}): "
                "make it possible to write there, and try again."
            ) from error


def _listed(folder: Path) -> dict[str, Path]:
    """Names of temporary files that journals list, in this folder and in all around it, and where each journal is."""
    places = dict.fromkeys([*folder.absolute().parents, *Path(os.path.realpath(folder)).parents, folder])
    plans = ((place, _read_journal(place / JOURNAL)) for place in places)
    return {temporary.name: place for place, plan in plans if plan for part in plan for temporary, _ in part}


def _read_journal(path: Path) -> tuple[list[tuple[Path, Path]], list[tuple[Path, Path]]] | None:
    """Temporary files and their own names. What is no journal of ours is left alone: a folder may come from anywhere,
    and must not be able to name places outside of it."""
    with suppress(ValueError, KeyError, TypeError):
        plan = json_in(path, LONGEST_JOURNAL)
        token, names = str(plan["token"]), [list(map(str, plan[part])) for part in ("files", "telling")]
        places = [PurePosixPath(name) for part in names for name in part]
        if re.fullmatch(r"[0-9a-f]{8}", token) and not any(p.is_absolute() or ".." in p.parts for p in places):
            files, telling = (
                [(_temporary(path.parent / name, token), path.parent / name) for name in part] for part in names
            )
            return files, telling
    return None
