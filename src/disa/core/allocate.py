"""Curves of error over evaluations, and the choice of counts that spends a budget on them best.

Shapes: K AR steps, S counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from disa.errors import DisaError


def pooled(curves: np.ndarray) -> np.ndarray:
    """[K, ...] the mean of every AR step and its neighbours within a tenth of all: they are alike, and a few images say
    little of one alone.
    """
    reach, num_ar_steps = len(curves) // 10, len(curves)
    return np.stack([curves[max(0, k - reach) : k + reach + 1].mean(axis=0) for k in range(num_ar_steps)])


def between(known: Sequence[int], errors: Sequence[float], wanted: Sequence[int]) -> np.ndarray:
    """Errors at numbers of evaluations that were not measured, from those that were: straight lines between them, both
    axes logarithmic. Evaluations, not counts: a count that adds none to its grid takes no error away.
    """
    places, first = np.unique(known, return_index=True)
    measured = np.maximum(np.take(errors, first), np.finfo(float).tiny)
    return np.exp(np.interp(np.log(wanted), np.log(places), np.log(measured)))


def allocate(errors: np.ndarray, costs: np.ndarray, budget: float) -> list[int]:
    """[K] one choice per AR step, of errors and costs [K, S], whose total costs at most `budget` and whose total error
    is small: greedy on the lower convex hulls, the steepest fall of error per cost first (Fox 1966).

    At every budget that the totals along the way reach, until the first fall that cannot be paid, no other choice at
    that cost or less has a smaller error, whether the curves are convex or not. At budgets between, the error is above
    the smallest by less than that first fall. Raises DisaError where the cheapest choices cost too much.
    """
    hulls = [_hull(*pair) for pair in zip(errors, costs, strict=True)]
    chosen = [hull[0] for hull in hulls]
    spent = sum(costs[k, i] for k, i in enumerate(chosen))
    if spent > budget:
        raise DisaError(f"the budget {budget:g} is below the cheapest choice, which takes {spent:g}.")
    falls = [
        ((errors[k, i] - errors[k, j]) / (costs[k, j] - costs[k, i]), k, j)
        for k, hull in enumerate(hulls)
        for i, j in pairwise(hull)
    ]
    closed = set()
    for _, k, j in sorted(falls, key=lambda fall: -fall[0]):
        price = costs[k, j] - costs[k, chosen[k]]
        if k in closed or spent + price > budget:
            closed.add(k)
            continue
        chosen[k], spent = j, spent + price
    return chosen


def _hull(errors: np.ndarray, costs: np.ndarray) -> list[int]:
    """Corners of the lower convex hull, from the cheapest choice to that of the smallest error."""
    hull: list[int] = []
    for j in np.lexsort((errors, costs)).tolist():
        if hull and errors[j] >= errors[hull[-1]]:
            continue
        while len(hull) > 1 and _above(errors, costs, hull[-2], hull[-1], j):
            hull.pop()
        hull.append(j)
    return hull


def _above(errors: np.ndarray, costs: np.ndarray, i: int, middle: int, j: int) -> bool:
    """Whether the middle point lies on or above the line from i to j."""
    rise = (errors[middle] - errors[i]) * (costs[j] - costs[i])
    return rise >= (errors[j] - errors[i]) * (costs[middle] - costs[i])
