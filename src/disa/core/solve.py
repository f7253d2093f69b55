"""`solve` draws the rows of a problem as a plan says, and counts the evaluations that it makes.

Shapes: R rows, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from disa.core.problem import Bound, DenoisingProblem, Field, Look, Noise, Plan, Prediction, TimeGrid
from disa.core.ragged import Way, go_together
from disa.core.solver import Solver, at_ar_step
from disa.core.solvers import grid_for, grid_for_parts
from disa.errors import DisaError
from disa.values import counted


@dataclass(frozen=True, eq=False)
class Solution:
    """What `solve` returns."""

    tokens: Tensor
    """[R, *shape]."""
    steps: int | Tensor
    """Denoising steps of all rows, or of each [R]."""
    evaluations: int
    """Made for all rows together; guidance counts two."""


def solve(problem: DenoisingProblem, solver: Solver, plan: Plan | Look | int | Tensor, noise: Noise) -> Solution:
    """Draw every row in its own number of denoising steps. plan: whatever `Plan.of` takes.

    Rows are evaluated together where they can be, which changes no row. After a look each row goes on from where the
    look ended, in its own number of steps. Raises DisaError.
    """
    plan, solver = Plan.of(plan), at_ar_step(solver, problem)
    if plan.look is not None:
        return _solve_with_look(problem, solver, plan.look, noise)
    assert plan.counts is not None
    if isinstance(plan.counts, int):
        grid = grid_for(solver, problem.process, plan.counts)
        tokens, made = go_along(problem, solver, grid, noise.initial(problem).clone(), noise)
        return Solution(tokens, plan.counts, made)
    ways = [Way(rows, grid_for(solver, problem.process, count)) for count, rows in _groups(plan.counts, problem)]
    tokens, made = go_along_each(problem, solver, ways, noise.initial(problem).clone(), noise)
    return Solution(tokens, plan.counts, made)


def _solve_with_look(problem: DenoisingProblem, solver: Solver, look: Look, noise: Noise) -> Solution:
    grid = grid_for_parts(solver, problem.process, look.num_steps)
    num_evaluations, stop = grid.num_evaluations, look.stop(grid.num_evaluations)
    x, change, evaluations = look_along(problem, solver, grid.part(0, stop, look.num_looks), noise)
    counts = _after(look, change).clamp(max=num_evaluations - stop)
    ways = [Way(rows, grid.part(stop, num_evaluations, count)) for count, rows in _groups(counts, problem)]
    tokens, made = go_along_each(problem, solver, ways, x, noise, look.num_looks)
    return Solution(tokens, counts + look.num_looks, evaluations + made)


def _after(look: Look, change: Tensor) -> Tensor:
    """[R] evaluations of each row after a look."""
    counts = Plan.of(look.go_on(change)).counts
    if counts is None:
        raise DisaError("a look is followed by counts, found another look.")
    return torch.full((len(change),), counts) if isinstance(counts, int) else counts


def _groups(counts: Tensor, problem: DenoisingProblem) -> list[tuple[int, Tensor]]:
    """Every count, and the rows that have it."""
    if len(counts) != problem.num_rows:
        rows = counted(problem.num_rows, "row")
        raise DisaError(f"the step policy gave {counted(len(counts), 'count')} for {rows}.")
    return [(count, torch.nonzero(counts == count).flatten().to(problem.device)) for count in counts.unique().tolist()]


def go_along(
    problem: DenoisingProblem, solver: Solver, grid: TimeGrid, x: Tensor, noise: Noise, first: int = 0
) -> tuple[Tensor, int]:
    """From x [R, *shape] along a grid, and how many evaluations that makes. first: denoising steps made before."""
    bound = problem.field.on(grid)
    return solver.run(bound, problem, grid, x, _added(problem, solver, grid, noise, first)), _made(bound, problem)


def go_along_each(
    problem: DenoisingProblem,
    solver: Solver,
    ways: Sequence[Way],
    x: Tensor,
    noise: Noise,
    first: int = 0,
) -> tuple[Tensor, int]:
    """The same where some rows (indices [R']) go along one grid and others along another one; all rows are in one."""
    if len(ways) == 1:
        return go_along(problem, solver, ways[0][1], x, noise, first)

    def added(way: Way) -> Tensor:
        return _added(problem.places(way.rows), solver, way.grid, noise, first)

    if (together := go_together(problem, solver, ways, x, added)) is not None:
        return together
    tokens, evaluations = torch.empty_like(x), 0
    for rows, grid in ways:
        tokens[rows], made = go_along(problem.select(rows), solver, grid, x[rows], noise, first)
        evaluations += made
    return tokens, evaluations


def look_along(problem: DenoisingProblem, solver: Solver, first: TimeGrid, noise: Noise) -> tuple[Tensor, Tensor, int]:
    """Go along the first part of a grid: the state [R, *shape], what its last evaluation changed in the predicted data
    [R], as a mean square, and how many evaluations that makes."""
    last = first.num_evaluations - 1
    bound, looked = looking(problem, first, (last - 1, last))
    x = solver.run(bound, problem, first, noise.initial(problem).clone(), _added(problem, solver, first, noise, 0))
    return x, (looked[1] - looked[0]).square().flatten(1).mean(1), _made(bound, problem)


def looking(problem: DenoisingProblem, grid: TimeGrid, at: Sequence[int]) -> tuple[Bound, list[Tensor]]:
    """The field on a grid, and a list that the data predicted in the denoising steps `at`, [R, *shape], are put in."""
    bound = _Looking(problem, grid, problem.field.on(grid), at)
    return bound, bound.looked


class _Looking:
    """A bound field that keeps the data predicted in some denoising steps."""

    def __init__(self, problem: DenoisingProblem, grid: TimeGrid, bound: Bound, at: Sequence[int]) -> None:
        self.process, self.grid, self.bound, self.at = problem.process, grid, bound, at
        self.costs, self.looked = bound.costs, list[Tensor]()

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        said = self.bound(x, denoise_step)
        if denoise_step in self.at:
            self.looked.append(self.process.data(x, said.value, float(self.grid.levels[denoise_step])))
        return said


def _added(problem: DenoisingProblem, solver: Solver, grid: TimeGrid, noise: Noise, first: int) -> Tensor:
    """The noise of a solver's denoising steps [n, R, *shape]; empty where it adds none."""
    if not solver.stochastic:
        return torch.empty(0)
    return noise.added(problem, first + grid.num_evaluations)[first:]


def _made(bound: Bound, problem: DenoisingProblem) -> int:
    """Evaluations of all rows along the whole grid."""
    return sum(bound.costs) * problem.num_rows


# -- evaluations outside of a solver -------------------------------------------------------------------------------


@dataclass
class Meter:
    """Counts the evaluations of the problems that it is put on, where they are made."""

    evaluations: int = 0

    def on(self, problem: DenoisingProblem) -> DenoisingProblem:
        """The same problem, whose evaluations are counted."""
        return replace(problem, field=_Metered(problem.field, self))


@dataclass(frozen=True)
class _Metered(Field):
    field: Field
    meter: Meter

    def on(self, grid: TimeGrid) -> Bound:
        return _BoundMetered(self.field.on(grid), self.meter)

    def select(self, rows: Tensor) -> Field:
        return _Metered(self.field.select(rows), self.meter)


class _BoundMetered:
    def __init__(self, bound: Bound, meter: Meter) -> None:
        self.bound, self.meter, self.costs = bound, meter, bound.costs

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        self.meter.evaluations += self.costs[denoise_step] * len(x)
        return self.bound(x, denoise_step)
