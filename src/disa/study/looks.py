"""What a plan needs for looking at rows: courses that all begin alike, and the errors of rows by what their second
evaluation changes.

Shapes: F candidate times, N the most denoising steps of a course, B bins, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from disa.core.courses import Course
from disa.core.solver import NUM_LOOKS
from disa.core.straight import log_change
from disa.study.times import best_ways

BINS = 4
FEW = 4
"""Counts up to this one say where the second evaluation is: what most rows get, and what suffers most from a wrong one.
"""
FINE = np.linspace(-24.0, 8.0, 321)
"""Edges between which logs of changes are counted, until it is known where bins end."""


def looked_ways(errors: np.ndarray, most: int) -> list[list[int]]:
    """For each n = 1..most the times [n] with the least sum of errors of which, from n = 2 on, the second is the same:
    that which costs least over the counts up to `FEW`, in the mean of logs. errors: as `best_ways` takes them."""
    ways, least = best_ways(errors, most), np.inf
    for second in range(1, errors.shape[0]):
        begun = errors.copy()
        begun[0, 0, :second], begun[0, 0, second + 1 :] = np.inf, np.inf
        tried = best_ways(begun, most)[1:]
        sums = np.array([_sum(begun, way) for way in tried])
        with np.errstate(divide="ignore"):
            mean = np.log(sums[: FEW - 1]).mean()
        if mean < least and np.isfinite(sums).all():  # from a late one there are no n times to the end
            least, ways = mean, [[0], *tried]
    return ways


def _sum(errors: np.ndarray, way: list[int]) -> float:
    """The sum of the errors of a course's steps; infinite where it cannot be."""
    then = [*way[1:], errors.shape[0]]
    return float(sum(errors[way[max(n - 1, 0)], i, j] for n, (i, j) in enumerate(zip(way, then, strict=True))))


def by_change(change: Tensor, squares: np.ndarray) -> np.ndarray:
    """[len(FINE) + 1, N] of rows whose second evaluation changes so much: how many there are, and the sums of their
    squared distances after 2, 3, ... N steps. change: [R]; squares: [N - 1, R]."""
    places = np.searchsorted(FINE, log_change(change).cpu().numpy())
    found = np.zeros((len(FINE) + 1, len(squares) + 1))
    np.add.at(found, places, np.concatenate([np.ones((1, len(places))), squares]).T)
    return found


def told_look(courses: Sequence[Course], found: np.ndarray) -> dict[str, Any]:
    """What a plan file says of a stretch. courses: [N]; found: sums of `by_change`.

    The bins hold about equally many rows. A row of a higher one has no smaller error, and more steps leave no more:
    what says otherwise is chance of a few rows, and the nearest that does not, by least squares, is taken instead.
    """
    from scipy.optimize import isotonic_regression  # heavy

    held = found[:, 0].cumsum() / found[:, 0].sum()
    ends = np.unique(np.searchsorted(held, np.arange(1, BINS) / BINS))
    ends = ends[held[ends] < 1]
    parts = np.split(found, ends + 1)
    bins = np.stack([part.sum(axis=0) for part in parts])
    errors = bins[:, 1:] / bins[:, :1]
    errors = np.stack([isotonic_regression(each, weights=bins[:, 0]).x for each in errors.T], axis=1)
    return {
        "courses": [
            {"times": list(c.times), "updates": [list(u) for u in c.updates]} for c in courses[NUM_LOOKS - 1 :]
        ],
        "edges": FINE[ends].tolist(),
        "shares": (bins[:, 0] / bins[:, 0].sum()).tolist(),
        "errors": np.minimum.accumulate(errors, axis=1).tolist(),
    }
