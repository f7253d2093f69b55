"""How texts of the command line are read."""

from __future__ import annotations

from disa.errors import DisaError

MOST_NUMBERS = 1_000_000


def parse_numbers(text: str, what: str) -> list[int]:
    """`3`, `0-7` and `1,5,8-9` -> whole numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError as error:
            raise DisaError(f"{what} must be whole numbers like 3, 0-7 or 1,5,9; found {text!r}.") from error
        if not span:
            raise DisaError(f"{what} {part!r} is an empty range: write the smaller number first.")
        if span[-1] - span[0] >= MOST_NUMBERS:
            raise DisaError(f"{what} {part!r} is too long a range: draw at most {MOST_NUMBERS} at a time.")
        numbers += span
    return numbers


def parse_labels(text: str) -> list[int] | None:
    """As numbers; `none` for images without a class."""
    return None if text == "none" else parse_numbers(text, "labels")


def parse_box(text: str) -> list[int]:
    """`0,0,2,4` -> four edges."""
    try:
        return [int(edge) for edge in text.split(",")]
    except ValueError as error:
        raise DisaError(f"--box must be four whole numbers, top,left,bottom,right; found {text!r}.") from error
