"""What a solver is: it goes along a time grid with a field. Its text says which one, such as `ddim@uniform:eta=0.5`.

Shapes: R rows, n denoising steps. A state x is [R, *shape], float32 at both ends; flow solvers keep it in float64.
"""

from __future__ import annotations

from collections.abc import Generator, Hashable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeGuard

from torch import Tensor

from disa.core.formulas import Formula
from disa.core.problem import Bound, DenoisingProblem, Grid, Prediction, Process, TimeGrid
from disa.core.steps import describe
from disa.values import number, plain_number


class Solver(Protocol):
    """Goes from noise to data along a grid."""

    @property
    def grid(self) -> Grid | None:
        """The grid, or None for what suits the process."""
        ...

    @property
    def takes(self) -> tuple[str, ...]:
        """What the process may predict: `noise`, `velocity` or both."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether `run` adds noise."""
        ...

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        """The grid of its evaluations: each denoising step of it is evaluated once. Raises DisaError."""
        ...

    def run(self, bound: Bound, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        """x: [R, *shape] at the first level; noise: [n, R, *shape], or [0, ...] where the solver is deterministic."""
        ...


Walk = Generator[tuple[Tensor, int], Prediction, Tensor]
"""A way along a grid that asks for what the network says: it yields x and the denoising step, is sent the prediction,
and returns the end."""


class Walking:
    """The base of solvers that ask once for each denoising step, in order: who drives them chooses what is evaluated
    together."""

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        """x, which it may change, and noise: as in `Solver.run`."""
        raise NotImplementedError

    def way(self, grid: TimeGrid) -> Hashable:
        """What its walk along a grid follows from beside the process, so that two that are equal go alike."""
        return self

    def in_rows(self, process: Process, grid: TimeGrid) -> tuple[Formula, Sequence[Sequence[float]]] | None:
        """The formula of its denoising steps, and the numbers of each [n]; None where it has no such form, or for this
        process."""
        return None

    def run(self, bound: Bound, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        """The whole way by itself."""
        return finished(self.walk(problem.process, grid, x, noise), bound)


def finished(walk: Walk, bound: Bound, said: Sequence[Prediction] = ()) -> Tensor:
    """Where a walk ends. said: answers to what it asks first, which are known."""
    asked, end = advance(walk)
    while asked is not None:
        denoise_step = asked[1]
        asked, end = advance(walk, said[denoise_step] if denoise_step < len(said) else bound(*asked))
    assert end is not None
    return end


def advance(walk: Walk, said: Prediction | None = None) -> tuple[tuple[Tensor, int] | None, Tensor | None]:
    """What a walk asks next, or where it ends; said: the answer to what it asked last."""
    try:
        return (next(walk) if said is None else walk.send(said)), None
    except StopIteration as stopped:
        return None, stopped.value


def walks(solver: Solver) -> TypeGuard[Walking]:
    """Whether a solver goes as its walk does: one with a `run` of its own may not."""
    return isinstance(solver, Walking) and type(solver).run is Walking.run


def in_rows(solver: Any, process: Process, grid: TimeGrid) -> tuple[Formula, Sequence[Sequence[float]]] | None:
    """`Walking.in_rows` of a solver that goes as the class says which has it; else None."""

    def home(name: str) -> type:
        return next(each for each in type(solver).__mro__ if name in vars(each))

    return solver.in_rows(process, grid) if walks(solver) and home("walk") is home("in_rows") else None


class AtARStep:
    """The base of solvers that go otherwise in each AR step."""

    def at(self, ar_step: int, num_ar_steps: int) -> Solver:
        """The solver of AR step k of K."""
        raise NotImplementedError


def at_ar_step(solver: Solver, problem: DenoisingProblem) -> Solver:
    """The solver of the problem's AR step."""
    return solver.at(problem.ar_step, problem.num_ar_steps) if isinstance(solver, AtARStep) else solver


NUM_LOOKS = 2
"""Evaluations before a row gets its count: one more than a solver of order 1 has to make."""


class WalkingSolver(Solver, Protocol):
    """A solver that is a `Walking`."""

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk: ...


class Looking:
    """The base of solvers that can begin before they know a row's number of denoising steps."""

    @property
    def looked(self) -> WalkingSolver:
        """The solver of rows that were looked at: from `NUM_LOOKS` denoising steps on, the times of the first
        `NUM_LOOKS` and all updates between them are the same for every number of steps. Raises DisaError."""
        raise NotImplementedError


class NamedSolver:
    """The base of the solvers that disa has: frozen dataclasses whose options are their fields beside the grid.

    `str()` is the text that `parse_solver` reads: the name, `@` and the grid unless that is None, then `:` and the
    options that are not at their defaults.
    """

    kind: ClassVar[str]
    takes: ClassVar[tuple[str, ...]]
    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """What `SOLVERS` calls it."""
        return self.kind

    @classmethod
    def options(cls) -> dict[str, float]:
        """The options and their defaults."""
        own: dict[str, Any] = {field.name: field.default for field in fields(cls)}
        return {name: default for name, default in own.items() if name != "grid"}

    def __str__(self) -> str:
        values = vars(self)
        grid = "" if values["grid"] is None else f"@{describe(values['grid'])}"
        given = [f"{name}={plain_number(values[name])}" for name, own in self.options().items() if values[name] != own]
        return self.name + grid + (f":{','.join(given)}" if given else "")


class GridSolver(NamedSolver):
    """What evaluates once at each time of the grid that it names: the base of most solvers."""

    grid: Any
    """A `Grid`, or None for the even one of the process."""

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        return process.grid(process.even_grid if self.grid is None else self.grid, num_steps)


def precise(x: Tensor) -> Tensor:
    """In double precision, as the official flow samplers keep their state; as it is on a device that has none."""
    try:
        return x.double()
    except (TypeError, RuntimeError):
        return x


def read_option(solver: NamedSolver, name: str, most: float | None = None) -> None:
    """Make an option of a solver that is being made a number, 0 or more. Raises DisaError."""
    object.__setattr__(solver, name, number(getattr(solver, name), name, 0, most))
