"""A file's SHA-256 is recorded when it is first seen and checked from then on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.files import make_folder, write_json


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
    """Record the file's hash under `key`, or compare it with the one on record; equal size and time skip the work.

    It is for files that have proven to be good: a broken download that is got again must not count as changed.
    """
    record, stat = hash_record(), path.stat()
    seen = _read_record(record)
    entry = seen.get(key, {})
    if (entry.get("bytes"), entry.get("modified")) == (stat.st_size, stat.st_mtime_ns):
        return
    found, before = hash_file(path), entry.get("sha256")
    if before not in (None, found):
        raise DisaError(
            f"{path} is not the file that was first seen here: its SHA-256 is {found[:12]}..., it was "
            f"{before[:12]}.... If you replaced it on purpose, remove its entry from {record}."
        )
    _write_record(seen | {key: {"sha256": found, "bytes": stat.st_size, "modified": stat.st_mtime_ns}})


def forget(path: Path) -> None:
    """A file that we have written ourselves is new."""
    seen = _read_record(hash_record())
    if seen.pop(key_of(path), None):
        _write_record(seen)


def key_of(path: Path) -> str:
    """The key of a local file's hash."""
    return str(path.resolve())


def _write_record(seen: Mapping[str, Any]) -> None:
    record = hash_record()
    try:
        make_folder(record.parent)
        write_json(record, seen)
    except DisaError as error:
        warnings.warn(f"hashes of checkpoints could not be recorded: {error}", stacklevel=2)


def _read_record(record: Path) -> dict[str, dict[str, Any]]:
    """Hashes by key; what is no record any more counts as not seen."""
    try:
        content = json.loads(record.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: entry for key, entry in entries if isinstance(entry, dict) and isinstance(entry.get("sha256"), str)}
