"""Rows that go along grids of their own, replayed from graphs of one denoising step.

Rows are sorted by the number of steps that they make, so that those that still go on are the first ones. A graph is for
the first so many, a bucket; which time, numbers of the solver's formula and guidance each row has it reads from a table
on the device. Rows of a bucket that are done already are computed, and stay what they are.

Shapes: R rows, T steps of all grids together, c numbers of a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from disa.core.fields import FieldInRows, RaggedField
from disa.core.formulas import Formula
from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem, Prediction
from disa.core.ragged import Way
from disa.core.solve import Looked
from disa.core.solver import Solver, in_rows
from disa.runtime.graphs import Recording, Records, copy_all, nbytes
from disa.runtime.parts import apart, rebuilt

LEAST_CAPACITY = 1024
"""Steps that a table has room for at least: a larger one needs graphs of its own."""
TIME, GUIDED, NUMBERS = 0, 1, 2
"""Columns of the table; numbers are those from the last one on."""


def bucket(count: int, most: int) -> int:
    """The least of 1, 2, 3, 4, 6, 8, 12, 16, 24 ... that holds so many rows, or all there are."""
    power = 1 << (count - 1).bit_length()
    between = 3 * power // 4
    return min(between if power > 2 and count <= between else power, most)


class Course(NamedTuple):
    """A way, with the formula of its denoising steps, their numbers [n][c], and how many evaluations of a row each
    makes [n]."""

    way: Way
    formula: Formula
    numbers: Sequence[Sequence[float]]
    costs: Sequence[int]

    @property
    def length(self) -> int:
        return self.way.grid.num_evaluations


def courses_of(problem: DenoisingProblem, solver: Solver, ways: Sequence[Way]) -> tuple[Formula, list[Course]] | None:
    """The formula of a solver and the ways as courses, longest first; None where there is no such formula, or where the
    network is not told the time of each row."""
    field = problem.field.in_rows() if isinstance(problem.field, RaggedField) else None
    found = list[Course]()
    for way in sorted(ways, key=lambda way: -way.grid.num_evaluations):
        told = in_rows(solver, problem.process, way.grid)
        if field is None or told is None:
            return None
        formula, numbers = told
        found.append(Course(way, formula, numbers, field.costs(way.grid)))
    return found[0].formula, found


def capacity_for(courses: Sequence[Course]) -> int:
    """Room for the steps of all grids: a power of two, so that few sizes are met."""
    return max(LEAST_CAPACITY, 1 << (sum(course.length for course in courses) - 1).bit_length())


class RowSteps:
    """The graphs for problems that lie in one box, and the memory that they work on."""

    def __init__(
        self,
        recorded: Records,
        problem: DenoisingProblem,
        formula: Formula,
        noise: SeededNoise,
        courses: Sequence[Course],
    ) -> None:
        """problem: on the box. courses: some that it is for; others have the same formula and capacity."""
        rows, device, width = problem.num_rows, problem.device, NUMBERS + len(courses[0].numbers[0])
        self.recorded, self.problem, self.formula, self.noise = recorded, problem, formula, noise
        self.places = torch.zeros(4, rows, dtype=torch.int64, device=device)
        """Sorted rows, each one's first and last step in the table, and where each row is among the sorted ones."""
        self.table = torch.zeros(capacity_for(courses), width, dtype=torch.float32, device=device)
        self.denoise_step = torch.zeros((), dtype=torch.int64, device=device)
        self.x, self.before = (torch.zeros(rows, *problem.shape, dtype=torch.float32, device=device) for _ in range(2))
        sorted_field = problem.field.select(self.places[0])
        self.parts = [part.clone() for part in apart(sorted_field)[1]]
        self.sorted = replace(
            problem,
            field=rebuilt(sorted_field, iter(self.parts)),
            image=problem.image.clone(),
            position=problem.position.clone(),
        )
        self.field = cast(FieldInRows, cast(Any, self.sorted.field).in_rows())
        self.embedded = self.field.embedded(self.table[:, TIME])
        self.started = recorded(self._start, self._begun(), "the beginning of rows of their own")
        self.steps = dict[tuple[int, bool], Recording | None]()

    @property
    def size(self) -> int:
        """Bytes."""
        graphs = [self.started, *self.steps.values()]
        return nbytes([*self._begun(), self.places, self.table]) + sum(each.size for each in graphs if each is not None)

    def _begun(self) -> list[Tensor]:
        """What the beginning writes to."""
        own = self.sorted.image, self.sorted.position, self.embedded
        return [*self.parts, *own, self.x, self.before, self.denoise_step]

    def _start(self) -> list[Tensor]:
        order = self.places[0]
        copy_all(self.parts, apart(self.problem.field.select(order))[1])
        there = self.problem.places(order)
        x, embedded = self.noise.initial(there), self.field.embedded(self.table[:, TIME])
        copy_all(
            [self.sorted.image, self.sorted.position, self.embedded, self.x],
            [there.image, there.position, embedded, x if self.formula.scale == 1 else x * self.formula.scale],
        )
        self.before.zero_()
        self.denoise_step.zero_()
        return []

    def _step(self, count: int, guided: bool, said: Prediction | None = None) -> list[Tensor]:
        """One denoising step of the first rows. said: what the network says, where that is known."""
        first, last = self.places[1, :count], self.places[2, :count]
        place, x = first + self.denoise_step, self.x[:count]
        now = torch.minimum(place, last)
        numbers = self.table[now]
        if said is None:
            said = self.field(x, self.embedded[now], numbers[:, GUIDED] > 0 if guided else None)
        noise = None
        if self.formula.stochastic:
            rows = replace(self.sorted, image=self.sorted.image[:count], position=self.sorted.position[:count])
            noise = self.noise.added_in(rows, self.denoise_step)
        then, before = self.formula.step(x, self.before[:count], said, noise, numbers[:, NUMBERS:])
        goes_on = (place <= last).view(-1, *[1] * (x.dim() - 1))
        copy_all([x, self.before[:count]], [torch.where(goes_on, then, x), before])
        self.denoise_step.add_(1)
        return []

    def run(self, courses: Sequence[Course], looked: Looked | None = None) -> tuple[Tensor, int]:
        """Tokens [R, *shape] of all rows at the end of their courses, which are sorted, and the evaluations that were
        asked for beside those of a look."""
        self._tell(courses)
        if self.started is None:
            self._start()
        else:
            self.started.replay()
        known = looked.said if looked else ()
        for denoise_step in range(courses[0].length):
            here = [course for course in courses if course.length > denoise_step]
            if denoise_step < len(known):
                self._step(self.problem.num_rows, False, known[denoise_step].select(self.places[0]))
            else:
                count = sum(len(course.way.rows) for course in here)
                guided = any(course.costs[denoise_step] > 1 for course in here)
                self._replayed(bucket(count, self.problem.num_rows), guided)
        made = sum(sum(course.costs[len(known) :]) * len(course.way.rows) for course in courses)
        return self.x.index_select(0, self.places[3]), made

    def _tell(self, courses: Sequence[Course]) -> None:
        """Write to the device where each row goes, by two copies."""
        order = torch.cat([course.way.rows for course in courses])
        starts = [0, *accumulate(course.length for course in courses)]
        sizes = torch.tensor([len(course.way.rows) for course in courses])
        first = torch.tensor(starts[:-1]).repeat_interleave(sizes)
        last = torch.tensor([end - 1 for end in starts[1:]]).repeat_interleave(sizes)
        send(torch.stack([order, first, last, order.argsort()]), self.places)
        told = [
            (time, float(cost > 1), *numbers)
            for course in courses
            for time, cost, numbers in zip(
                course.way.grid.network_times.tolist(), course.costs, course.numbers, strict=True
            )
        ]
        send(torch.tensor(told, dtype=torch.float32), self.table[: len(told)])

    def _replayed(self, count: int, guided: bool) -> None:
        """A denoising step of the first rows, from its graph where it has one."""
        key = count, guided
        if key in self.steps:
            if (recording := self.steps[key]) is not None:
                recording.replay()
            else:
                self._step(*key)
            return
        state = [self.x, self.before, self.denoise_step]
        what = f"a denoising step of {count} rows"
        self.steps[key] = self.recorded(lambda: self._step(*key), state, what, changed=True)


def send(values: Tensor, target: Tensor) -> None:
    """Copy from the host without waiting: memory that the system may move would be waited for."""
    target.copy_(values.pin_memory() if target.device.type == "cuda" else values, non_blocking=True)
