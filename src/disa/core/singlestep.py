"""DPM-Solver++ of order 3 with up to three evaluations per interval, none of which is used in another interval.

Shapes: R rows, n denoising steps. A state x is [R, *shape].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from disa.core.grids import singlestep_orders
from disa.core.problem import Grid, Process, TimeGrid
from disa.core.solver import GridSolver, Walk, Walking
from disa.errors import DisaError


class Stage(NamedTuple):
    """From the start x of an interval to a place inside of it, or its end: keep x + now D + change (D_latest - D).

    D is the data expected at x, D_latest that at the last evaluation before this place.
    """

    keep: float
    now: float
    change: float


def intervals(process: Process, grid: TimeGrid) -> tuple[tuple[Stage, ...], ...]:
    """The stages of every interval, as many as its order, in float64; raises DisaError.

    An interval that ends at the data is of order 1: the log-SNR is infinite there, and nothing lies between.
    """
    levels = grid.levels.tolist()
    return _intervals(np.array([process.scales(level) for level in levels]).tobytes())


@lru_cache(maxsize=4096)
def _intervals(scales: bytes) -> tuple[tuple[Stage, ...], ...]:
    """From alpha and sigma at each level, [n + 1, 2] float64."""
    at = np.frombuffer(scales).reshape(-1, 2)
    count, clean = len(at) - 1, at[-1, 1] == 0
    orders = [*singlestep_orders(count - 1), 1] if clean else singlestep_orders(count)
    starts = np.cumsum([0, *orders]).tolist()
    found = tuple(_stages(at[start : start + order + 1]) for start, order in zip(starts, orders, strict=False))
    if not np.isfinite(np.concatenate(found)).all():
        raise DisaError("dpm-solver++-3s goes from noise that holds some data to the data, and stands still nowhere.")
    return found


def _stages(at: np.ndarray) -> tuple[Stage, ...]:
    """Of one interval, from alpha and sigma at its start, inside and at its end, [order + 1, 2].

    h [order] are the steps in log(alpha / sigma) from the start to each place. Order 2 is algorithm 1 of DPM-Solver++
    (Lu et al. 2022, arXiv 2211.01095), order 3 is algorithm 2 of DPM-Solver (arXiv 2206.00927) with data in place of
    noise. It is 3 where the second place inside is at two thirds of h, as it is on grids that are even in the log-SNR.
    """
    (alpha, sigma), order = at[0], len(at) - 1
    change = np.zeros(order)
    with np.errstate(divide="ignore", invalid="ignore"):
        h = -np.log(at[1:, 1] * alpha / (at[1:, 0] * sigma))
        keep, now = at[1:, 1] / sigma, at[1:, 0] * -np.expm1(-h)
        if order == 2:
            change[1] = now[1] * h[1] / (2 * h[0])
        elif order == 3:
            second = at[1:, 0] * (np.expm1(-h) / h + 1)
            change[1:] = second[1] * h[1] / h[0], second[2] * h[2] / h[1]
    return tuple(Stage(*row) for row in np.stack([keep, now, change], axis=1).tolist())


@dataclass(frozen=True)
class SinglestepDPMSolverPlusPlus(Walking, GridSolver):
    """DPM-Solver++ 3S: eMIGM's sampler on its own grid. It goes from interval to interval, along as many times of the
    grid in each as its order says; n evaluations of any number make intervals of order 3, and one or two smaller ones.
    """

    grid: Grid | None = None
    kind = "dpm-solver++-3s"
    takes = ("noise",)
    stochastic = False

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        grid = super().plan(process, num_steps)
        intervals(process, grid)
        return grid

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        levels, i = grid.levels.tolist(), 0
        for stages in intervals(process, grid):
            start, data = x, list[Tensor]()
            for stage in stages:
                said = yield x, i
                data.append(process.data(x, said.value, levels[i]))
                x = start.mul(stage.keep).add_(data[0], alpha=stage.now)
                if stage.change:
                    x.add_(data[-1] - data[0], alpha=stage.change)
                i += 1
        return x
