"""Courses: when the network is asked in n denoising steps, and what is made of its answers, for each part of an image.

A course is a grid of its own with a linear multistep method of its own. `disa calibrate` finds them; a `StepPlan` in
plans.py holds them with the errors that they leave.

Shapes: R rows, n denoising steps, G stretches of the AR steps, N the most denoising steps of a course.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor

from disa.core.formulas import Formula
from disa.core.multistep import Update, along, in_rows
from disa.core.problem import Process, TimeGrid
from disa.core.solver import AtARStep, Looking, Walk, Walking
from disa.errors import DisaError
from disa.values import counted, number


@dataclass(frozen=True)
class Course:
    """n denoising steps."""

    times: tuple[float, ...]
    """[n] falling, from 1 (noise) to 0 (data), as in `TimeGrid.times`."""
    updates: tuple[Update, ...]
    """[n] the first has nothing before it."""

    def __post_init__(self) -> None:
        falling = all(a > b for a, b in pairwise(self.times))
        if not self.times or len(self.times) != len(self.updates) or not falling:
            raise DisaError(f"a course has falling times and an update for each, found {self.times}.")
        if not 0 <= self.times[-1] <= self.times[0] <= 1:
            raise DisaError(f"times go from 1 (noise) to 0 (data), found {self.times[0]:g} to {self.times[-1]:g}.")
        if self.updates[0].before:
            raise DisaError("the first update of a course has nothing before it: its third number must be 0.")

    @cached_property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        return any(update.spread for update in self.updates)


@dataclass(frozen=True)
class CalibratedSolver(Walking, Looking, AtARStep):
    """The solver that goes by the courses of a plan: in each AR step other times and updates.

    Asked without an AR step (`plan`, `stochastic`), it answers for all of them, or as in the first one.
    """

    stretches: tuple[tuple[Course, ...], ...] = field(repr=False)
    """[G][N] the courses of each stretch of the AR steps, of 1, 2, ... N denoising steps."""
    source: str = "plan"
    """Its text, `plan` or `plan:FILE`."""
    plan_hash: str = ""
    measured_for: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    spread: float = 1.0
    """What the noise is scaled by that a row begins with, as it was measured: below 1 draws vary less."""
    temperature: float = 1.0
    """A further scale of that noise."""
    looks: tuple[tuple[Course, ...], ...] = field(default=(), repr=False)
    """[G][N] the same where from two denoising steps on all begin alike; empty where that was not measured."""
    here: int | None = None
    """The stretch of the AR step that it is for, see `at`."""
    grid = None
    takes = ("noise", "velocity")

    def __post_init__(self) -> None:
        object.__setattr__(self, "temperature", number(self.temperature, "temperature", 0))

    def __str__(self) -> str:
        return self.source

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; the plan too, since its file can change."""
        told = {"solver": self.source, "plan": self.plan_hash}
        return told if self.temperature == 1 else told | {"temperature": self.temperature}

    @property
    def stochastic(self) -> bool:
        chosen = self.stretches if self.here is None else self.stretches[self.here : self.here + 1]
        return any(course.stochastic for courses in chosen for course in courses)

    @property
    def looked(self) -> CalibratedSolver:
        if not self.looks:
            raise DisaError(f"{self.source} holds no courses for looking at rows: make one with `disa calibrate`.")
        return replace(self, stretches=self.looks, looks=())

    def at(self, ar_step: int, num_ar_steps: int) -> CalibratedSolver:
        return replace(self, here=stretch_of(ar_step, num_ar_steps, len(self.stretches)))

    def course(self, num_steps: int) -> Course:
        """The one of so many denoising steps. Raises DisaError where the plan goes no further."""
        courses = self.stretches[self.here or 0]
        if num_steps > len(courses):
            most = counted(len(courses), "denoising step")
            raise DisaError(f"{self.source} goes up to {most} of a row, found {num_steps}: ask for fewer.")
        return courses[num_steps - 1]

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        return process.grid_at(np.array(self.course(num_steps).times))

    def way(self, grid: TimeGrid) -> Hashable:
        course = self.course(grid.num_evaluations)
        return course.times, course.updates, self.spread * self.temperature, self.stochastic

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        updates = self.course(grid.num_evaluations).updates
        scale = self.spread * self.temperature
        x = x if scale == 1 else x.mul_(scale)
        return along(process, grid.levels.tolist(), x, noise, updates)

    def in_rows(self, process: Process, grid: TimeGrid) -> tuple[Formula, Sequence[Sequence[float]]] | None:
        updates = self.course(grid.num_evaluations).updates
        return in_rows(process, grid.levels.tolist(), updates, self.stochastic, self.spread * self.temperature)


def stretch_of(ar_step: int, num_ar_steps: int, num_stretches: int) -> int:
    """Which of the stretches, of about equally many AR steps, holds AR step k of K."""
    return min(ar_step * num_stretches // num_ar_steps, num_stretches - 1)
