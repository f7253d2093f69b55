"""How texts of the command line are read.

| labels and seeds | |
|---|---|
| `3`, `0-7`, `1,5,8-9` | whole numbers and ranges |
| `@FILE` | a file of them: text, parted by commas, spaces or lines; a JSON list; an array of .npy |
| `none` | labels alone: no class |

At most a million of them; a file of at most 32 MiB.
"""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from disa.errors import DisaError
from disa.reading import parse_json, read_bounded
from disa.values import MOST_NUMBERS, path, shown, spans, whole_number

LARGEST_FILE = 32 << 20
NUMPY = b"\x93NUMPY"


def parse_numbers(text: str, what: str) -> list[int]:
    """Labels or seeds. Raises DisaError."""
    if text.startswith("@"):
        return _in_file(path(text[1:], f"the file of {what}"), what)
    return spans(text.split(","), what)


def parse_labels(text: str) -> list[int] | None:
    """As numbers; `none` for images without a class."""
    return None if text == "none" else parse_numbers(text, "labels")


def parse_box(text: str) -> list[int]:
    """`0,0,2,4` -> four edges."""
    try:
        top, left, bottom, right = (whole_number(edge, "an edge") for edge in text.split(","))
    except (ValueError, DisaError) as error:
        raise DisaError(f"--box must be four whole numbers, top,left,bottom,right; found {shown(text)}.") from error
    return [top, left, bottom, right]


def _in_file(file: Path, what: str) -> list[int]:
    content, where = read_bounded(file, LARGEST_FILE), f" in {file}"
    if content.startswith(NUMPY):
        return _whole(_array(content, file), what, where)
    try:
        words = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DisaError(
            f"{file} is no text: expected {what} as text, as a JSON list or as an array of .npy."
        ) from error
    if not words.strip():
        raise DisaError(f"{file} holds no {what}: expected at least one.")
    if not words.lstrip().startswith("["):
        return spans([part for part in re.split(r"[\s,]+", words) if part], what, where)
    try:
        return _whole(parse_json(words), what, where)
    except ValueError as error:
        raise DisaError(f"{file} begins as a JSON list and is none: expected one of {what}.") from error


def _whole(values: list[Any], what: str, where: str) -> list[int]:
    if not 0 < len(values) <= MOST_NUMBERS:
        raise DisaError(f"there are {len(values)} {what}{where}: expected 1 to {MOST_NUMBERS} at a time.")
    return [whole_number(value, f"each of the {what}{where}") for value in values]


def _array(content: bytes, file: Path) -> list[Any]:
    import numpy as np  # heavy

    try:
        array = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        raise DisaError(f"{file} is not a whole array of numbers: write it again.") from error
    if array.ndim != 1:
        raise DisaError(f"{file} holds {shown(array)}: expected one dimension.")
    return array.tolist()
