"""DPM-Solver++ of order 2 with one evaluation per denoising step: each also uses what the one before it expected.

Shapes: R rows, n denoising steps. A state x is [R, *shape].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from torch import Tensor

from disa.core.formulas import Formula, Multistep
from disa.core.problem import Grid, Process, TimeGrid
from disa.core.solver import GridSolver, Walk, Walking, read_option
from disa.errors import DisaError


class Update(NamedTuple):
    """One denoising step, x' = keep x + now D + before D_previous + spread z.

    D is the data expected at x, D_previous that of the step before, z standard normal noise.
    """

    keep: float
    now: float
    before: float
    spread: float


def updates(process: Process, grid: TimeGrid, eta: float = 0.0) -> tuple[Update, ...]:
    """The n steps of DPM-Solver++ 2M along a grid (Lu et al. 2022, algorithm 2), in float64; raises DisaError.

    eta is how much of the reverse SDE's noise is added, as a share of its variance: 0 is the ODE, 1 is
    SDE-DPM-Solver++ 2M (the same paper, on diffusion SDEs). A step falls to order 1 where there is nothing to
    extrapolate from or to: the first one, the one after pure noise, and the one that ends at the data.
    """
    return _updates(np.array([process.scales(level) for level in grid.levels.tolist()]).tobytes(), eta)


@lru_cache(maxsize=4096)
def _updates(scales: bytes, eta: float) -> tuple[Update, ...]:
    """From alpha and sigma at each level, [n + 1, 2] float64."""
    at = np.frombuffer(scales).reshape(-1, 2)
    table = updates_between(np.concatenate([[NOTHING_BEFORE], at[:-2]]), at[:-1], at[1:], eta)
    if not np.isfinite(table).all():
        raise DisaError("dpm-solver++-2 goes from noise to data: only the first level may be noise, the last one data.")
    return tuple(Update(*row) for row in table.tolist())


NOTHING_BEFORE = 0.0, 1.0
"""Alpha and sigma of a step before the first one: from pure noise nothing is extrapolated."""


def updates_between(before: np.ndarray, now: np.ndarray, then: np.ndarray, eta: float = 0.0) -> np.ndarray:
    """[..., 4] the updates of steps from alpha and sigma `now` to `then`, after one that began `before`, each [..., 2].

    With h the step in log(alpha / sigma) and q = exp(-h), the data keep the weight alpha' (1 - q^(1 + eta)) in all;
    half of it, by h / h_previous, goes along the line from D_previous to D. q is 0 from pure noise and to the data.
    """
    alpha, sigma, last_alpha, last_sigma = now[..., 0], now[..., 1], before[..., 0], before[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        q = then[..., 1] * alpha / (then[..., 0] * sigma)
        h, h_previous = -np.log(q), -np.log(sigma * last_alpha / (alpha * last_sigma))
        slope = np.where(np.isfinite(h) & (h_previous > 0), h / h_previous, 0.0)
        data = then[..., 0] * (1 - q ** (1 + eta))
        correction = data * slope / 2
        keep = then[..., 1] / sigma * q**eta
        spread = then[..., 1] * np.sqrt(np.maximum(1 - q ** (2 * eta), 0))
    return np.stack([keep, data + correction, 0 - correction, spread], axis=-1)


def along(process: Process, levels: Sequence[float], x: Tensor, noise: Tensor, by: Sequence[Update]) -> Walk:
    """From x, which it changes, by n updates; levels: [n + 1] of a grid, and noise [n, R, *shape] is read where an
    update has a spread."""
    previous = x
    for i, (level, update) in enumerate(zip(levels[:-1], by, strict=True)):
        said = yield x, i
        data = process.data(x, said.value, level)
        x = x.mul_(update.keep).add_(data, alpha=update.now)
        if update.before:
            x.add_(previous, alpha=update.before)
        if update.spread:
            x.add_(noise[i], alpha=update.spread)
        previous = data
    return x


def in_rows(
    process: Process, levels: Sequence[float], by: Sequence[Update], stochastic: bool, scale: float = 1.0
) -> tuple[Formula, Sequence[Sequence[float]]] | None:
    """The same as a formula and the numbers of each step, of a process that predicts noise."""
    if process.predicts != "noise":
        return None
    scales = [process.scales(level) for level in levels[:-1]]
    numbers = [(alpha, -sigma, *update) for (alpha, sigma), update in zip(scales, by, strict=True)]
    return Multistep(stochastic, scale), numbers


@dataclass(frozen=True)
class DPMSolverPlusPlus(Walking, GridSolver):
    """DPM-Solver++ 2M (Lu et al. 2022) of every process, and SDE-DPM-Solver++ 2M at eta = 1; see `updates`."""

    grid: Grid | None = None
    eta: float = 0.0
    kind = "dpm-solver++-2"
    takes = ("noise", "velocity")

    def __post_init__(self) -> None:
        read_option(self, "eta", 1)

    @property
    def stochastic(self) -> bool:
        return self.eta != 0

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        grid = super().plan(process, num_steps)
        updates(process, grid, self.eta)
        return grid

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        return along(process, grid.levels.tolist(), x, noise, updates(process, grid, self.eta))

    def in_rows(self, process: Process, grid: TimeGrid) -> tuple[Formula, Sequence[Sequence[float]]] | None:
        return in_rows(process, grid.levels.tolist(), updates(process, grid, self.eta), self.stochastic)
