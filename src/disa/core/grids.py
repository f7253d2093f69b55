"""What all grids share: those of a caller's own, whose answers are checked, and how evaluations make intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from disa.core.problem import TimeGrid
from disa.errors import DisaError
from disa.values import shown, takes


def own_grid(grid: Callable[[Any, int], Any], process: Any, num_steps: int) -> TimeGrid:
    """What a grid of a caller's own makes, in float64. Raises DisaError where that is no grid."""
    if not callable(grid) or not takes(grid, 2):
        raise DisaError(f"a grid is a name, or a function from a process and a number of steps, found {shown(grid)}.")
    found = grid(process, num_steps)
    if not isinstance(found, TimeGrid):
        raise DisaError(f"a grid of one's own answers with a TimeGrid, found {shown(found)}.")
    parts = {"network_times": found.network_times, "levels": found.levels, "times": found.times}
    try:
        arrays = {name: np.array(value, dtype=np.float64) for name, value in parts.items()}
    except (TypeError, ValueError) as error:
        raise DisaError("the times and levels of a TimeGrid must be arrays of numbers.") from error
    shapes = [array.shape for array in arrays.values()]
    count = len(arrays["times"]) if arrays["times"].ndim else 0
    if not count or shapes != [(count,), (count + 1,), (count,)]:
        raise DisaError(f"a TimeGrid has [n] network_times, [n + 1] levels and [n] times, found {shapes}.")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise DisaError("the times and levels of a TimeGrid must be finite numbers.")
    return replace(found, **arrays)


def singlestep_orders(num_evaluations: int) -> list[int]:
    """The orders of the intervals of a solver of order 3 whose evaluations all count for one interval: as many 3 as go,
    and smaller ones last (DPM-Solver-fast, Lu et al. 2022, arXiv 2206.00927). They sum to the number of evaluations.
    """
    threes, rest = divmod(num_evaluations, 3)
    return [3] * threes + [rest] if rest else [3] * (threes - 1) + [2, 1] if threes else []
