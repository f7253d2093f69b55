"""Writing whole files or none: a temporary neighbour is written first and renamed when it is complete."""

import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from disa.errors import DisaError

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}")


def make_folder(path: Path) -> Path:
    """Create `path` (and parents) if needed and prove that it can be written to, before any work is done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise DisaError(f"cannot write to the folder {path}: {error.strerror or error}. Choose another one.") from error
    return path


def clear_unfinished(folder: Path) -> None:
    """Remove the temporary files of a process that was killed while it wrote into this folder."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[IO[bytes]], object], *, synced: bool = True) -> Path:
    """Call `write(file)` on a temporary file beside `path` and rename it: `path` is old, new or absent, not partial.

    synced: wait for the disk, so that this holds after a power failure too; it takes milliseconds.
    """
    # The name is known before the file exists: whatever interrupts what follows, the file is found and removed.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            if synced:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        # torch.save turns what the disk says into an error of its own.
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise DisaError(f"could not write {path}: {reason.strerror or reason}. Nothing was changed.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, whole or not at all."""
    return write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, content: Any) -> Path:
    """Write `content` as indented JSON, whole or not at all."""
    return write_text(path, json.dumps(content, indent=1) + "\n")
