"""Files of a bounded size, and JSON that nobody vouches for: tables, configurations, records."""

from __future__ import annotations

import json
import math
import os
import stat
from collections import Counter
from pathlib import Path
from typing import IO, Any

from disa.errors import DisaError
from disa.values import named, shown

LONGEST_JSON, DEEPEST_JSON, BLOCK = 8 << 20, 64, 1 << 20


def read_bounded(path: Path, most: int, what: str = "the file") -> bytes:
    """The content of a file of at most so many bytes; what: how messages call it. Raises DisaError."""
    try:
        return bytes_in(path, most)
    except ValueError as error:
        raise DisaError(f"cannot read {what} {named(path)}: {error}.") from error


def read_json(path: Path, what: str, longest: int = LONGEST_JSON) -> Any:
    """The content of a JSON file, see `parse_json`; what: how messages call it. Raises DisaError."""
    try:
        return json_in(path, longest)
    except ValueError as error:
        raise DisaError(f"cannot read {what} {named(path)}: {error}.") from error


def json_in(path: Path, longest: int = LONGEST_JSON) -> Any:
    """The same, where the caller says what file it is. Raises ValueError, which tells in a few words what is wrong."""
    return parse_json(bytes_in(path, longest))


def bytes_in(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes. Refused: more, and folders, pipes and devices, which may never
    end. Raises ValueError, which tells in a few words what is wrong."""
    try:
        with open(path, "rb", opener=_without_waiting) as file:
            mode = os.fstat(file.fileno()).st_mode
            if not stat.S_ISREG(mode):
                raise ValueError(f"it is a {'folder' if stat.S_ISDIR(mode) else 'pipe or a device'}, not a file")
            content = _first_bytes(file, most + 1)
    except IsADirectoryError as error:
        raise ValueError("it is a folder, not a file") from error
    except FileNotFoundError as error:
        raise ValueError("it is not there") from error
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    if len(content) > most:
        raise ValueError(f"it is longer than {most >> 20} MiB")
    return content


def _first_bytes(file: IO[bytes], count: int) -> bytes:
    """At most so many, block by block: to read them at once would take memory for all of them, however short the file
    is."""
    parts = list[bytes]()
    while count > 0 and (part := file.read(min(count, BLOCK))):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def _without_waiting(path: str, flags: int) -> int:
    # A pipe that nobody writes to would keep the call for ever.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says: in UTF-8, with a byte order mark or not, UTF-16 or UTF-32. Raises ValueError, which tells
    in a few words what is wrong.

    Refused beside what is no JSON: NaN and infinity, a key twice in one object, whole numbers of over 100 digits,
    halves of surrogate pairs, and more than `DEEPEST_JSON` lists and objects within each other.
    """
    if not text.strip():
        raise ValueError("it is empty")
    try:
        content = json.loads(
            text, parse_constant=_finite, parse_float=_finite, parse_int=_whole, object_pairs_hook=_each_once
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON ({error.msg} in line {error.lineno}, column {error.colno})") from error
    _check_parts(content)
    return content


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds the number {shown(text)[1:-1]}, which is not finite")
    return value


def _whole(text: str) -> int:
    if len(text) > 100:
        raise ValueError("it holds a number of over 100 digits")
    return int(text)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((key, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it says {shown(key)} twice in one object")
    return found


def _check_parts(content: Any) -> None:
    """Bounds on depth, and texts that can be written down."""
    level, depth = [content], 0
    while level := [part for part in level if isinstance(part, dict | list | str)]:
        depth += 1
        if depth > DEEPEST_JSON + 1:
            raise ValueError("it is nested too deeply")
        below: list[Any] = []
        for part in level:
            if isinstance(part, str):
                _check_text(part)
            elif isinstance(part, dict):
                below += [*part, *part.values()]
            else:
                below += part
        level = below


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"it holds half of a character, {shown(text)}") from error
