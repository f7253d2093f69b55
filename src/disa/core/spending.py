"""Bounds and budget of an adaptive policy, as in `50-5@20`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from disa.core.counts import MOST_STEPS
from disa.errors import DisaError
from disa.values import number, plain_number, shown, whole_number

MOST_EARLY = 1000
"""Every count up to `early` is held against the grid."""
_TEXT = re.compile(r"([0-9]+)-([0-9]+)@([0-9]+(?:\.[0-9]+)?)")


@dataclass(frozen=True)
class Spending:
    """Bounds and budget of an adaptive policy. Raises DisaError."""

    early: int
    """The most denoising steps of a row."""
    late: int
    """The fewest."""
    budget: float | None = None
    """The mean over the rows of an image, with the evaluations of a score; None where a threshold decides."""

    def __post_init__(self) -> None:
        early, late = (whole_number(getattr(self, name), name) for name in ("early", "late"))
        if not 1 <= late <= early:
            found = f"{shown(early)}-{shown(late)}"
            raise DisaError(f"an adaptive policy is bounded by early >= late >= 1, found {found}.")
        if early > MOST_EARLY:
            found = shown(early)
            raise DisaError(f"an adaptive policy gives a row at most {MOST_EARLY} denoising steps, found {found}.")
        object.__setattr__(self, "early", early)
        object.__setattr__(self, "late", late)
        if self.budget is not None:
            object.__setattr__(self, "budget", number(self.budget, "the budget of an adaptive policy", 0, MOST_STEPS))

    def __str__(self) -> str:
        return f"{self.early}-{self.late}" + ("" if self.budget is None else f"@{plain_number(self.budget)}")


def parse_spending(text: str) -> Spending:
    """`50-5@20` -> bounds and budget. Raises DisaError."""
    found = _TEXT.fullmatch(text)
    if found is None:
        raise DisaError(f"expected EARLY-LATE@BUDGET like 50-5@20, found {shown(text)}.")
    early, late, budget = found.groups()
    return Spending(whole_number(early, "early"), whole_number(late, "late"), number(budget, "the budget"))
