"""What is known of files that were read before: a download is as it was, and a local file may change.

| file | first seen | seen again, unchanged | changed |
|---|---|---|---|
| from the hub | its SHA-256 is recorded | nothing is read again | refused |
| local | its size and time are recorded | - | a warning: training may have written it anew |
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from disa.errors import DisaError, warn
from disa.files import make_folder, write_json
from disa.reading import read_json

FROM_HUB = "hub:"
"""How the keys of downloaded files begin."""
LONGEST_WAIT = 10.0
LONGEST_RECORD = 1 << 28


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
    """Record what the file is under `key`, or compare it with what is on record; equal size and time skip the work.

    It is for files that have proven to be good: a broken download that is got again must not count as changed.
    """
    stat = path.stat()
    about: dict[str, Any] = {"bytes": stat.st_size, "modified": stat.st_mtime_ns}
    entry = _read_record(hash_record()).get(key, {})
    if about.items() <= entry.items():
        return
    if key.startswith(FROM_HUB):
        about["sha256"] = _same_hash(path, entry.get("sha256"))
    elif entry:
        warn(f"{path} was written anew since it was last read here.")
    _change_record(key, about)


def _same_hash(path: Path, before: Any) -> str:
    found = hash_file(path)
    if isinstance(before, str) and before != found:
        raise DisaError(
            f"{path} is not the file that was first seen here: its SHA-256 is {found[:12]}..., it was "
            f"{before[:12]}.... If you replaced it on purpose, remove its entry from {hash_record()}."
        )
    return found


def forget(path: Path) -> None:
    """A file that we have written ourselves is new."""
    if key_of(path) in _read_record(hash_record()):
        _change_record(key_of(path), None)


def key_of(path: Path) -> str:
    """The key of a local file."""
    return str(path.resolve())


def _change_record(key: str, about: dict[str, Any] | None) -> None:
    """Write an entry, or take it out; others that are written at the same time stay.

    The lock also keeps threads of one process apart, and works on Windows: `only_writer` does neither.
    """
    record = hash_record()
    try:
        make_folder(record.parent)
        with FileLock(f"{record}.lock", timeout=LONGEST_WAIT):
            seen = _read_record(record)
            seen.pop(key, None)
            write_json(record, seen if about is None else seen | {key: about})
    except (DisaError, OSError, NotImplementedError, Timeout) as error:
        warn(f"hashes of checkpoints could not be recorded: {error}")


def _read_record(record: Path) -> dict[str, dict[str, Any]]:
    """Entries by key; what is no record any more counts as not seen."""
    try:
        content = read_json(record, "the record of hashes", LONGEST_RECORD)
    except DisaError as error:
        if record.exists():
            warn(f"{error} It is begun anew: downloads are not held against what they were.")
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict)}
