"""`solve` draws the rows of a problem as a plan says, and counts the evaluations that it makes.

Shapes: R rows, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from disa.core.problem import Bound, DenoisingProblem, Field, Look, Noise, Plan, Prediction, TimeGrid
from disa.core.ragged import Way, go_together
from disa.core.solver import NUM_LOOKS, Looking, Solver, Walking, WalkingSolver, advance, at_ar_step, finished
from disa.core.solvers import grid_for
from disa.core.steps import describe
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


def solve(
    problem: DenoisingProblem,
    solver: Solver,
    plan: Plan | Look | int | Tensor,
    noise: Noise,
    along: Callable[[DenoisingProblem, Solver, TimeGrid], tuple[Tensor, int]] | None = None,
) -> Solution:
    """Draw every row in its own number of denoising steps. plan: whatever `Plan.of` takes. along: what takes the place
    of `from_noise` where all rows go along one grid.

    Rows are evaluated together where they can be, which changes no row. After a look each row goes on in its own
    number of steps, from what is known by then. Raises DisaError.
    """
    plan, solver = Plan.of(plan), at_ar_step(solver, problem)
    if plan.look is not None:
        return _solve_with_look(problem, solver, plan.look, noise)
    assert plan.counts is not None
    if isinstance(plan.counts, int):
        grid = grid_for(solver, problem.process, plan.counts)
        tokens, made = along(problem, solver, grid) if along else from_noise(problem, solver, grid, noise)
        return Solution(tokens, plan.counts, made)
    ways = [Way(rows, grid_for(solver, problem.process, count)) for count, rows in _groups(plan.counts, problem)]
    tokens, made = go_along_each(problem, solver, ways, noise.initial(problem).clone(), noise)
    return Solution(tokens, plan.counts, made)


def _solve_with_look(problem: DenoisingProblem, solver: Solver, look: Look, noise: Noise) -> Solution:
    if not isinstance(solver, Looking):
        raise DisaError(
            f"the solver {describe(solver)} cannot look at rows before they get their counts: choose that of a plan."
        )
    looked = solver.looked
    start = noise.initial(problem)
    said, change, evaluations = look_along(problem, looked, start, noise)
    counts = _after(look, change)
    ways = [Way(rows, grid_for(looked, problem.process, count)) for count, rows in _groups(counts, problem)]
    tokens, made = go_along_each(problem, looked, ways, start.clone(), noise, said)
    return Solution(tokens, counts, evaluations + made)


def _after(look: Look, change: Tensor) -> Tensor:
    """[R] denoising steps of each row that was looked at."""
    counts = Plan.of(look.go_on(change)).counts
    if counts is None:
        raise DisaError("a look is followed by counts, found another look.")
    counts = torch.full((len(change),), counts) if isinstance(counts, int) else counts
    if (least := int(counts.min())) < NUM_LOOKS:
        raise DisaError(f"a row that was looked at makes {NUM_LOOKS} denoising steps or more, found {least}.")
    return counts


def _groups(counts: Tensor, problem: DenoisingProblem) -> list[tuple[int, Tensor]]:
    """Every count, and the rows that have it."""
    if len(counts) != problem.num_rows:
        rows = counted(problem.num_rows, "row")
        raise DisaError(f"the step policy gave {counted(len(counts), 'count')} for {rows}.")
    return [(count, torch.nonzero(counts == count).flatten().to(problem.device)) for count in counts.unique().tolist()]


def from_noise(problem: DenoisingProblem, solver: Solver, grid: TimeGrid, noise: Noise) -> tuple[Tensor, int]:
    """Tokens [R, *shape] of all rows, that go along one grid, and how many evaluations that makes."""
    return go_along(problem, solver, grid, noise.initial(problem).clone(), noise)


def go_along(
    problem: DenoisingProblem, solver: Solver, grid: TimeGrid, x: Tensor, noise: Noise, said: Sequence[Prediction] = ()
) -> tuple[Tensor, int]:
    """From x [R, *shape] along a grid, and how many evaluations that makes. said: what a `Walking` solver was answered
    before, in its first denoising steps."""
    bound, added = problem.field.on(grid), _added(problem, solver, grid, noise)
    made = sum(bound.costs[len(said) :]) * problem.num_rows
    if isinstance(solver, Walking) and said:
        return finished(solver.walk(problem.process, grid, x, added), bound, said), made
    return solver.run(bound, problem, grid, x, added), made


def go_along_each(
    problem: DenoisingProblem,
    solver: Solver,
    ways: Sequence[Way],
    x: Tensor,
    noise: Noise,
    said: Sequence[Prediction] = (),
) -> tuple[Tensor, int]:
    """The same where some rows (indices [R']) go along one grid and others along another one; all rows are in one."""
    if len(ways) == 1:
        return go_along(problem, solver, ways[0].grid, x, noise, said)

    def added(way: Way) -> Tensor:
        return _added(problem.places(way.rows), solver, way.grid, noise)

    if (together := go_together(problem, solver, ways, x, added, said)) is not None:
        return together
    tokens, evaluations = torch.empty_like(x), 0
    for rows, grid in ways:
        known = [each.select(rows) for each in said]
        tokens[rows], made = go_along(problem.select(rows), solver, grid, x[rows], noise, known)
        evaluations += made
    return tokens, evaluations


def look_along(
    problem: DenoisingProblem, looked: WalkingSolver, start: Tensor, noise: Noise
) -> tuple[list[Prediction], Tensor, int]:
    """What the network says in the first evaluations of the solver of a look from start [R, *shape], what the last of
    these changed in the predicted data [R], as a mean square, and how many evaluations that makes."""
    process = problem.process
    grid = grid_for(looked, process, NUM_LOOKS)
    bound, added = problem.field.on(grid), _added(problem, looked, grid, noise)
    walk, said, data = looked.walk(process, grid, start.clone(), added), [], []
    asked, _ = advance(walk)
    while asked is not None:
        x, denoise_step = asked
        said.append(bound(x, denoise_step))
        data.append(process.data(x, said[-1].value, float(grid.levels[denoise_step])))
        asked, _ = advance(walk, said[-1])
    return said, (data[-1] - data[-2]).square().flatten(1).mean(1), sum(bound.costs) * problem.num_rows


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


def _added(problem: DenoisingProblem, solver: Solver, grid: TimeGrid, noise: Noise) -> Tensor:
    """The noise of a solver's denoising steps [n, R, *shape]; empty where it adds none."""
    return noise.added(problem, grid.num_evaluations) if solver.stochastic else torch.empty(0)


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
