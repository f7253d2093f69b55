"""Numbers, texts and paths that a caller gives, checked in one place, and how messages show them.

| expected | taken | refused |
|---|---|---|
| a whole number | int; NumPy's and PyTorch's, with no or one element; 4.0; "4" | True, 4.5, nan, "four", None |
| a number | the same and int, float of any of these; "0.5", "1e-3" | True, nan, infinity, 1e39, "half", None |
| true or false | bool, NumPy's and PyTorch's; 0 and 1 | "true", 2, None |
| a text | str, NumPy's str | bytes, half of a surrogate pair, NUL, None |
| whole numbers by their texts (`spans`) | `3`, `5-9` | an empty range, signs, more than a million |
| one of some names | str that is one of them | all else, with the nearest name |
| many of them | one alone; a list, tuple, range, array, tensor or iterator of one dimension | a dict, a set, bytes |
| a path | str or `os.PathLike`; a leading ~ is the home folder, where there is one | "", NUL, bytes, numbers |

Every function raises DisaError, in one voice: what must be what, and what was found.
"""

from __future__ import annotations

import inspect
import math
import operator
import os
import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from disa.errors import DisaError

T = TypeVar("T")

ROUNDING = 1e-3
"""How far numbers may leave their range by arithmetic in half precision."""
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127
"""The largest number in float32."""
LONGEST_SHOWN = 80
LONGEST_NAME = 200
MOST_NUMBERS = 1_000_000
"""Of labels or seeds at a time."""
LONGEST_NUMBER = 100
"""Digits of a number in a text: reading a million of them takes a second."""
_RANGE = re.compile(r"(\d{1,30})(?:-(\d{1,30}))?", re.ASCII)


def whole_number(value: Any, what: str, least: int | None = None, most: int | None = None) -> int:
    """A whole number within bounds."""
    found = _whole(value)
    if found is None or (least is not None and found < least) or (most is not None and found > most):
        raise DisaError(f"{what} must be a whole number{_bounds(least, most)}, found {shown(value)}.")
    return found


def number(value: Any, what: str, least: float | None = None, most: float | None = None) -> float:
    """A number within bounds that is finite in float32, too, as which tensors take it."""
    found = _number(value)
    too_large = found is not None and abs(found) > LARGEST_FLOAT
    if found is None or too_large or (least is not None and found < least) or (most is not None and found > most):
        finite = "finite " if too_large or (isinstance(value, float) and not math.isfinite(value)) else ""
        raise DisaError(f"{what} must be a {finite}number{_bounds(least, most)}, found {shown(value)}.")
    return found


def truth(value: Any, what: str) -> bool:
    """True or false."""
    with suppress(TypeError, ValueError, RuntimeError):
        if not isinstance(value, str) and value in (True, False):
            return bool(value)
    raise DisaError(f"{what} must be true or false, found {shown(value)}.")


def text(value: Any, what: str) -> str:
    """A text that can be written down."""
    if not isinstance(value, str):
        raise DisaError(f"{what} must be a text, found {shown(value)}.")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = shown(value[error.start : error.start + 1])
        raise DisaError(f"{what} holds half of a character, {found} at place {error.start}: write it anew.") from error
    if "\0" in value:
        raise DisaError(f"{what} holds a NUL character at place {value.index(chr(0))}: leave it out.")
    return str(value)


def one_of(value: Any, known: Iterable[str], what: str) -> str:
    """One of some names."""
    names = list(known)
    if isinstance(value, str) and value in names:
        return str(value)
    raise DisaError(f"unknown {what} {shown(value)}: expected {either(names)}.{did_you_mean(value, names)}")


def path(value: Any, what: str) -> Path:
    """A path, of something that is there or not."""
    given = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(given, str) or not given.strip() or "\0" in given:
        raise DisaError(f"{what} must be a path, found {shown(given)}.")
    # As a shell does it: ./~x is no home, and neither is ~x where there is no user x.
    return Path(os.path.expanduser(given))


def many(values: Any, read: Callable[[Any, str], T], what: str) -> list[T]:
    """One value or many, each as `read` has it: `many(labels, whole_number, "labels")`."""
    if isinstance(values, str) or not hasattr(values, "__iter__") or getattr(values, "ndim", 1) == 0:
        return [read(values, what)]
    if isinstance(values, dict | set | frozenset | bytes | bytearray):
        raise DisaError(f"{what} must be in a list, found {shown(values)}.")
    return [read(value, f"each of the {what}") for value in values]


def spans(parts: list[str], what: str, where: str = "") -> list[int]:
    """The whole numbers of texts such as `3` and `5-9`: none is made before all are read. Raises DisaError."""
    found, too_many = list[range](), f"there are too many {what}{where}: expected at most {MOST_NUMBERS} at a time."
    if len(parts) > MOST_NUMBERS:
        raise DisaError(too_many)
    for part in parts:
        ends = _RANGE.fullmatch(part.strip())
        if ends is None:
            raise DisaError(f"{what} must be whole numbers like 3, 0-7 or 1,5,9; found {shown(part)}{where}.")
        first, last = int(ends[1]), int(ends[2] or ends[1])
        if last < first:
            raise DisaError(f"{what} {shown(part)}{where} is an empty range: write the smaller number first.")
        found.append(range(first, last + 1))
    if sum(span.stop - span.start for span in found) > MOST_NUMBERS:
        raise DisaError(too_many)
    return [number for span in found for number in span]


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether it can be called with so many arguments; a function that does not say what it takes is trusted."""
    try:
        inspect.signature(function).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:
        return True
    return True


# -- how messages show them ----------------------------------------------------------------------------------------


def shown(value: Any) -> str:
    """A value in a message: on one line, short, and quickly, whatever it is."""
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and getattr(value, "ndim", 0):
        return f"{_a(type(value).__name__)} of shape {tuple(value.shape)}"
    if isinstance(value, dict | list | tuple | set | frozenset):
        parts = value.values() if isinstance(value, dict) else value
        # Python's own text of what is nested deeply would not end well.
        if len(value) > 4 or any(isinstance(part, dict | list | tuple | set | frozenset) for part in parts):
            return f"{_a(type(value).__name__)} of {counted(len(value), 'entry', 'entries')}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**30:
        return "a number of over 30 digits"
    if isinstance(value, str | bytes):
        value = value[: LONGEST_SHOWN + 1]
    try:
        told = " ".join(repr(value).split())
    except Exception:  # an object of someone else's may fail in any way
        told = _a(type(value).__name__)
    if " at 0x" in told:  # where an object lies in memory says nothing
        told = _a(type(value).__name__)
    told = told.encode("utf-8", "backslashreplace").decode()
    return told if len(told) <= LONGEST_SHOWN else f"{told[: LONGEST_SHOWN - 3]}..."


def plain_number(value: float) -> str:
    """The shortest text that reads as the same number."""
    return str(int(value)) if value == int(value) else repr(float(value))


def named(path: Any) -> str:
    """A path in a message: as it is, its end where it is long, on one line."""
    told = " ".join(str(path).encode("utf-8", "backslashreplace").decode().split())
    return told if len(told) <= LONGEST_NAME else f"...{told[3 - LONGEST_NAME :]}"


def percent(part: float, whole: float) -> str:
    """A share, such as 69%."""
    return f"{part / whole:.0%}" if whole else "-"


def counted(count: int, what: str, several: str = "") -> str:
    """`1 image`, `2 images`; `several` where it is not made with an s."""
    return f"{count} {what if count == 1 else several or what + 's'}"


def either(names: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    *first, last = list(names) or ["none, there are none"]
    return f"{', '.join(first)} or {last}" if first else last


def did_you_mean(value: Any, known: Iterable[str]) -> str:
    """A sentence to add to a message, with a space before it, where a name is near; nothing otherwise."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_SHOWN:
        return ""
    names = {name.casefold(): name for name in known}
    near = get_close_matches(value.casefold(), names, n=1)
    return f" Did you mean {names[near[0]]}?" if near else ""


def command(*words: str | Path) -> str:
    """A command to paste into a shell; a path in it is a path, and neither an option, a preset, a hub id nor a home."""
    return shlex.join(_pasted(word) if isinstance(word, Path) else word for word in words)


def first_line(error: BaseException) -> str:
    """What an error of others says, short enough for a message of ours, and not cut within a word."""
    said = " ".join(((str(error).strip() or type(error).__name__).splitlines() or [""])[0].split())
    if len(said) <= 2 * LONGEST_SHOWN:
        return said.rstrip(".")
    return said[: 2 * LONGEST_SHOWN].rsplit(" ", 1)[0].rstrip(".,;:") + " ..."


def _pasted(place: Path) -> str:
    return str(place) if place.is_absolute() or str(place).startswith(".") else f"./{place}"


def _whole(value: Any) -> int | None:
    if type(value) is int:
        return value
    value = _alone(value)
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        return _parsed(int, value)
    with suppress(TypeError, ValueError, RuntimeError):
        return operator.index(value)
    found = _number(value)
    return int(found) if found is not None and found.is_integer() else None


def _number(value: Any) -> float | None:
    value = _alone(value)
    if isinstance(value, bool | bytes | bytearray) or value is None:
        return None
    with suppress(TypeError, ValueError, OverflowError, RuntimeError):
        found = _parsed(float, value) if isinstance(value, str) else float(value)
        if found is not None and math.isfinite(found):
            return found
    return None


def _alone(value: Any) -> Any:
    """The one element of an array or tensor that has one, as Python has it; anything else as it is."""
    if hasattr(value, "item") and getattr(value, "size", None) is not None:
        with suppress(Exception):
            return value.item()
    return value


def _parsed(kind: Callable[[str], T], value: str) -> T | None:
    """int and float also read `1_000` and digits of other scripts, which nobody writes on purpose."""
    if len(value) > LONGEST_NUMBER or "_" in value or not value.isascii():
        return None
    with suppress(ValueError):
        return kind(value)
    return None


def _bounds(least: float | None, most: float | None) -> str:
    if least is not None and most is not None:
        return f" from {least:g} to {most}" if isinstance(most, int) else f" from {least:g} to {most:g}"
    if least is not None:
        return f", {least:g} or more"
    return "" if most is None else f", {most:g} or less"


def _a(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
