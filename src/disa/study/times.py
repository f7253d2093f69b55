"""Which times n denoising steps should visit: the error of one step from any time to any later one, measured along
paths that the model itself draws, and the best way through these steps by dynamic programming.

Paths are those of the original sampler where it adds no noise, else of the probability-flow ODE in many small steps.
Where a step is deterministic, its error is the distance of its end from the path's: both began with the same noise.
Every such step ends at a sum of states and predicted data, so its error follows from their inner products alone: these
are all that is kept. Where a step adds noise, its ends are compared with those of the paths as distributions, by their
energy distance.

Shapes: F candidate times and the end, so states [F + 1] and predicted data [F]; R rows, M draws of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from disa.core.multistep import NOTHING_BEFORE, Update, updates, updates_between
from disa.core.problem import DenoisingProblem, Process, TimeGrid
from disa.core.solver import Solver
from disa.core.solvers import DDIM, Euler

NUM_TIMES = 40
CANDIDATES = {"noise": ("logsnr", "uniform"), "velocity": ("uniform", "shifted-0.33")}
"""By what a process predicts: grids that are even in different measures. Their times together are tried."""
RIDGE = 1e-3
"""How far fitted weights are held to those of the solver, as a share of what the data say."""
NOISE_OF_A_STEP = 1.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """The times that are tried, and the path along all of them that short ones are to follow."""

    process: Process
    grid: TimeGrid
    by: tuple[Update, ...]
    """[F] the updates of that path."""

    @classmethod
    def of(cls, process: Process, original: Solver, num_steps: int) -> Candidates:
        """The path of a model's original sampler, of so many denoising steps, where that is one of order 1 without
        noise: so that images are the original's. Else that of the probability-flow ODE, at about `NUM_TIMES` times."""
        if isinstance(original, Euler | DDIM) and not original.stochastic:
            grid = original.plan(process, num_steps)
            at = np.array([process.scales(level) for level in grid.levels.tolist()])
            by = updates_between(np.broadcast_to(NOTHING_BEFORE, at[1:].shape), at[:-1], at[1:])
            return cls(process, grid, tuple(Update(*update) for update in by.tolist()))
        named = [process.grid(name, NUM_TIMES * 5 // 8).times for name in CANDIDATES[process.predicts]]
        grid = process.grid_at(np.unique(np.concatenate(named).round(4))[::-1])
        return cls(process, grid, updates(process, grid))

    def __len__(self) -> int:
        return self.grid.num_evaluations

    def part(self, places: Sequence[int]) -> TimeGrid:
        """The grid that visits some of the times."""
        return self.process.grid_at(self.grid.times[list(places)])

    @cached_property
    def scales(self) -> np.ndarray:
        """[F + 1, 2] alpha and sigma."""
        return np.array([self.process.scales(level) for level in self.grid.levels.tolist()])

    def path(self, problem: DenoisingProblem, start: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """States [F + 1] and predicted data [F] from start [R, *shape], each of that shape."""
        bound, levels, x = problem.field.on(self.grid), self.grid.levels.tolist(), start
        states, data = [x], list[Tensor]()
        for i, update in enumerate(self.by):
            data.append(self.process.data(x, bound(x, i).value, levels[i]))
            x = x * update.keep + data[i] * update.now
            x = x + data[i - 1] * update.before if update.before else x
            states.append(x)
        return states, data

    # -- errors of single steps ----------------------------------------------------------------------------------

    def moments(self, states: list[Tensor], data: list[Tensor]) -> np.ndarray:
        """[2 F + 1, 2 F + 1] inner products of all states and predicted data, summed over rows, float64."""
        every = torch.stack([*states, *data]).flatten(1).cpu().double()
        return (every @ every.T).numpy()

    def errors(self, moments: np.ndarray, fitted: bool) -> np.ndarray:
        """[F, F, F + 1] the error of a step of order 2 from time i to j whose step before began at p, as a distance;
        infinite unless p < i < j, but for the first step, from i = p = 0, of order 1.

        fitted: with the weights that fit best, instead of those of DPM-Solver++ 2M.
        """
        count = len(self)
        p, i, j = np.nonzero(np.ones((count, count, count + 1), dtype=bool))
        some = (j > i) & ((p < i) | ((p == 0) & (i == 0)))
        p, i, j = p[some], i[some], j[some]
        before = np.where((i == 0)[:, None], NOTHING_BEFORE, self.scales[p])
        weights = updates_between(before, self.scales[i], self.scales[j])[:, :3]
        parts = np.stack([i, count + 1 + i, count + 1 + p], axis=1)
        products, target = moments[parts[:, :, None], parts[:, None, :]], moments[parts, j[:, None]]
        if fitted:
            weights = nearest_weights(products, target, weights, np.where(i == 0, 2, 3))
        end = moments[j, j]
        squares = np.einsum("ta,tab,tb->t", weights, products, weights) - 2 * (weights * target).sum(1) + end
        found = np.full((count, count, count + 1), np.inf)
        found[p, i, j] = np.sqrt(np.maximum(squares, 0))
        return found

    def errors_with_noise(self, states: Tensor, data: Tensor, noise: Tensor) -> np.ndarray:
        """[F, F + 1] the energy distance, summed over rows, of the ends of steps with fresh noise from time i to j from
        those of the paths; infinite unless i < j. states [F + 1, M, R, D], data [F, M, R, D], noise [M, R, D]."""
        count = len(self)
        found = np.full((count, count + 1), np.inf)
        for i in range(count):
            then = self.scales[i + 1 :]
            now = np.broadcast_to(self.scales[i], then.shape)
            steps = updates_between(np.broadcast_to(NOTHING_BEFORE, then.shape), now, then, NOISE_OF_A_STEP)
            for j, (keep, toward, _, spread) in enumerate(steps.tolist(), i + 1):
                end = keep * states[i] + toward * data[i] + spread * noise
                found[i, j] = energy_distances(end, states[j]).sum().item()
        return found


def nearest_weights(products: np.ndarray, target: np.ndarray, prior: np.ndarray, used: np.ndarray) -> np.ndarray:
    """[..., 3] least squares: the weights of three parts whose sum is nearest to a target, held to a prior.

    products [..., 3, 3] and target [..., 3]: inner products of the parts with each other and with the target. used:
    [...] how many of the parts there are; the others get weight 0.
    """
    there = np.arange(3) < used[..., None]
    both = there[..., :, None] & there[..., None, :]
    diagonal = np.einsum("...ii->...i", products)
    held = np.where(both, products, 0) + np.eye(3) * np.where(there, RIDGE * diagonal + 1e-12, 1.0)[..., None, :]
    off = np.where(there, target - np.einsum("...ab,...b->...a", products, np.where(there, prior, 0)), 0)
    return np.where(there, prior + np.linalg.solve(held, off[..., None])[..., 0], 0)


def energy_distances(one: Tensor, other: Tensor) -> Tensor:
    """[R] the energy distance between draws [M, R, D] and [M, R, D] of each row, without bias: it may be below 0.

    2 E|a - b| - E|a - a'| - E|b - b'| (Székely and Rizzo 2013), over pairs of different draws: a draw of one and the
    same draw of the other may have noise in common. M >= 2.
    """
    draws = len(one)
    a, b = one.transpose(0, 1).double(), other.transpose(0, 1).double()
    apart = draws * (draws - 1)

    def mean(x: Tensor, y: Tensor) -> Tensor:
        distances = torch.cdist(x, y)
        return (distances.sum((1, 2)) - distances.diagonal(dim1=1, dim2=2).sum(1)) / apart

    return 2 * mean(a, b) - mean(a, a) - mean(b, b)


# -- the best way --------------------------------------------------------------------------------------------------


def best_ways(errors: np.ndarray, most: int) -> list[list[int]]:
    """For each n = 1..most the times [n] that n steps visit with the least sum of errors, by dynamic programming.

    errors: [F, F, F + 1] of a step from i to j after one from p, see `Candidates.errors`; a step to F ends at the data.
    """
    count = len(errors)
    most = min(most, count)
    least, came = np.full((count, count + 1), np.inf), list[np.ndarray]()
    least[0] = errors[0, 0]
    inner = errors.copy()
    inner[0, 0] = np.inf
    ways = []
    for n in range(1, most + 1):
        ways.append(_way(least, came))
        if n < most:
            through = least[:, :count, None] + inner
            came.append(through.argmin(axis=0))
            least = through.min(axis=0)
    return ways


def _way(least: np.ndarray, came: list[np.ndarray]) -> list[int]:
    """[n] backwards from the end; least: [F, F + 1] of the last step, came: for every step but the first, where the
    step before it began."""
    i, j = int(least[:, -1].argmin()), least.shape[1] - 1
    visited = [i]
    for before in reversed(came):
        i, j = int(before[i, j]), i
        visited.append(i)
    return visited[::-1]


def with_nothing_before(errors: np.ndarray) -> np.ndarray:
    """[F, F, F + 1] of errors [F, F + 1] that do not depend on the step before."""
    count = len(errors)
    found = np.broadcast_to(errors, (count, count, count + 1)).copy()
    earlier = np.arange(count)[:, None] < np.arange(count)
    earlier[0, 0] = True
    found[~earlier] = np.inf
    return found
