"""How many denoising steps a row may get, and how many AR steps there may be: whole numbers within bounds."""

from __future__ import annotations

from typing import Any

from disa.errors import DisaError
from disa.values import shown, whole_number

MOST_STEPS = 10_000
"""Denoising steps of a row. No grid in use has more than 1 000; a slip of the keyboard would never end."""
MOST_AR_STEPS = 1 << 18
"""One for every pixel of 512x512."""


def denoising_steps(value: Any, what: str = "a number of denoising steps") -> int:
    """A count of denoising steps, of whatever kind of whole number. Raises DisaError."""
    count = whole_number(value, what)
    if count < 1:
        raise DisaError(f"a row needs at least 1 denoising step, found {shown(count)}.")
    if count > MOST_STEPS:
        raise DisaError(f"a row gets at most {MOST_STEPS} denoising steps, found {shown(count)}.")
    return count


def ar_steps(value: Any) -> int:
    """A number of AR steps. Raises DisaError."""
    count = whole_number(value, "the number of AR steps", most=MOST_AR_STEPS)
    if count < 1:
        raise DisaError(f"a schedule needs at least 1 AR step, found {shown(count)}.")
    return count
