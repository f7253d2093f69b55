"""`solve` draws the rows of a problem as a plan says, and counts the evaluations that it makes.

Shapes: R rows, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

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
    ways: Ways | None = None,
) -> Solution:
    """Draw every row in its own number of denoising steps. plan: whatever `Plan.of` takes. ways: how rows get from
    noise to tokens, where that is not computed as it is asked.

    Rows are evaluated together where they can be, which changes no row. After a look each row goes on in its own
    number of steps, from what is known by then. Raises DisaError.
    """
    plan, solver, ways = Plan.of(plan), at_ar_step(solver, problem), ways or Plainly(noise)
    if plan.look is not None:
        return _solve_with_look(problem, solver, plan.look, ways)
    assert plan.counts is not None
    if isinstance(plan.counts, int):
        tokens, made = ways.along(problem, solver, grid_for(solver, problem.process, plan.counts))
        return Solution(tokens, plan.counts, made)
    own = ways_of(plan.counts, problem, solver)
    # Rows that all get one count go along one grid, from the graph of a whole loop where there is one.
    together = len(own) == 1
    tokens, made = ways.along(problem, solver, own[0].grid) if together else ways.along_each(problem, solver, own)
    return Solution(tokens, plan.counts, made)


@dataclass(frozen=True, eq=False)
class Looked:
    """What a look found: of every row the state that it begins with [R, *shape], what the network said in the first
    evaluations, and what the last of these changed in the predicted data [R], as a mean square."""

    start: Tensor
    said: Sequence[Prediction]
    change: Tensor
    evaluations: int
    """Made for all rows together."""


class Ways(Protocol):
    """How the rows of a problem get from noise to tokens [R, *shape], and how many evaluations that makes."""

    def along(self, problem: DenoisingProblem, solver: Solver, grid: TimeGrid) -> tuple[Tensor, int]:
        """All along one grid."""
        ...

    def look(self, problem: DenoisingProblem, solver: WalkingSolver) -> Looked:
        """The first evaluations of all."""
        ...

    def along_each(
        self, problem: DenoisingProblem, solver: Solver, ways: Sequence[Way], looked: Looked | None = None
    ) -> tuple[Tensor, int]:
        """Along grids of their own; all rows are in one of the ways. looked: what is known of them, whose evaluations
        are not counted again."""
        ...


class Plainly(Ways):
    """Every step is computed as it is asked for."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise

    def along(self, problem: DenoisingProblem, solver: Solver, grid: TimeGrid) -> tuple[Tensor, int]:
        return from_noise(problem, solver, grid, self.noise)

    def look(self, problem: DenoisingProblem, solver: WalkingSolver) -> Looked:
        return look_along(problem, solver, self.noise)

    def along_each(
        self, problem: DenoisingProblem, solver: Solver, ways: Sequence[Way], looked: Looked | None = None
    ) -> tuple[Tensor, int]:
        start = looked.start if looked else self.noise.initial(problem)
        return go_along_each(problem, solver, ways, start.clone(), self.noise, looked.said if looked else ())


def _solve_with_look(problem: DenoisingProblem, solver: Solver, look: Look, ways: Ways) -> Solution:
    if not isinstance(solver, Looking):
        raise DisaError(
            f"the solver {describe(solver)} cannot look at rows before they get their counts: choose that of a plan."
        )
    looked = ways.look(problem, solver.looked)
    counts = _after(look, looked.change)
    tokens, made = ways.along_each(problem, solver.looked, ways_of(counts, problem, solver.looked), looked)
    return Solution(tokens, counts, looked.evaluations + made)


def _after(look: Look, change: Tensor) -> Tensor:
    """[R] denoising steps of each row that was looked at."""
    counts = Plan.of(look.go_on(change)).counts
    if counts is None:
        raise DisaError("a look is followed by counts, found another look.")
    counts = torch.full((len(change),), counts) if isinstance(counts, int) else counts
    if (least := int(counts.min())) < NUM_LOOKS:
        raise DisaError(f"a row that was looked at makes {NUM_LOOKS} denoising steps or more, found {least}.")
    return counts


def ways_of(counts: Tensor, problem: DenoisingProblem, solver: Solver) -> list[Way]:
    """The rows of every count, and the grid that they go along; indices are on the host. Raises DisaError."""
    if len(counts) != problem.num_rows:
        rows = counted(problem.num_rows, "row")
        raise DisaError(f"the step policy gave {counted(len(counts), 'count')} for {rows}.")
    counts = counts.cpu()
    return [
        Way(torch.nonzero(counts == count).flatten(), grid_for(solver, problem.process, count))
        for count in counts.unique().tolist()
    ]


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
    """The same where some rows go along one grid and others along another one; all rows are in one of the ways."""
    ways = [Way(way.rows.to(problem.device), way.grid) for way in ways]
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


def look_along(problem: DenoisingProblem, looked: WalkingSolver, noise: Noise) -> Looked:
    """The first evaluations of the solver of a look from noise."""
    process, start = problem.process, noise.initial(problem)
    grid = grid_for(looked, process, NUM_LOOKS)
    bound, added = problem.field.on(grid), _added(problem, looked, grid, noise)
    walk, said, data = looked.walk(process, grid, start.clone(), added), list[Prediction](), list[Tensor]()
    asked, _ = advance(walk)
    while asked is not None:
        x, denoise_step = asked
        said.append(bound(x, denoise_step))
        data.append(process.data(x, said[-1].value, float(grid.levels[denoise_step])))
        asked, _ = advance(walk, said[-1])
    change = (data[-1] - data[-2]).square().flatten(1).mean(1)
    return Looked(start, said, change, sum(bound.costs) * problem.num_rows)


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
