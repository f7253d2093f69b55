"""How many denoising steps each AR step gets: the annealing schedules of DiSA (arXiv 2505.20297) and their text form.

A step policy is called with a `DenoisingProblem` and answers with a plan. A schedule is the policy that knows only
k and K, so it also works in a loop of your own: `disa.linear(50, 5).at(k, K)`.
"""

from __future__ import annotations

import contextlib
import json
import math
import operator
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from disa.errors import DisaError

if TYPE_CHECKING:
    from torch import Tensor

    from disa.core.problem import DenoisingProblem, Look, Plan


class StepPolicy(Protocol):
    """Denoising steps for a problem: one whole number for all rows, an int64 tensor [R], a `Look` or a `Plan`.

    What it evaluates with `problem.field` is counted. It may be shared by many generations: what remembers between AR
    steps is a `Remembering`.
    """

    def __call__(self, problem: DenoisingProblem) -> int | Tensor | Look | Plan: ...


class Remembering:
    """The base of policies that remember between AR steps: each generation asks for one of its own."""

    def begin(self) -> StepPolicy:
        """The policy for one generation."""
        raise NotImplementedError


def of(steps: Any) -> Any:
    """A policy from what a caller gave: a policy, a number of denoising steps, or a list of one number per AR step.

    Raises DisaError.
    """
    if callable(steps):
        return steps
    with contextlib.suppress(TypeError):
        return Constant(operator.index(steps))
    try:
        return Table(tuple(operator.index(count) for count in steps))
    except TypeError as error:
        raise DisaError(
            f"steps must be a policy, its text, a whole number or a list of them, found {steps!r:.80}."
        ) from error


def fresh(policy: StepPolicy) -> StepPolicy:
    """The policy for one generation."""
    return policy.begin() if isinstance(policy, Remembering) else policy


def describe(part: object) -> str:
    """How reports name a policy, a solver or a grid: its `str()` where its class defines that, else `module:name` of
    the function or class, with plain fields and arguments, or the line of a function without a name of its own.

    So the text never tells where an object lies in memory.
    """
    if isinstance(part, partial):
        given = [*map(_told, part.args), *(f"{name}={_told(value)}" for name, value in part.keywords.items())]
        return describe(part.func) + (f"({', '.join(given)})" if given else "")
    if type(part).__str__ is not object.__str__:
        return str(part)
    named: Any = part if hasattr(part, "__qualname__") else type(part)
    text = f"{named.__module__}:{named.__qualname__}"
    if is_dataclass(part) and named is type(part):
        return text + f"({', '.join(f'{each.name}={_told(getattr(part, each.name))}' for each in fields(part))})"
    line = getattr(getattr(part, "__code__", None), "co_firstlineno", None)
    return f"{text}@{line}" if "<" in text and line else text


def _told(value: object) -> str:
    """A plain value as it is; anything else by its type."""
    plain = isinstance(value, bool | int | float | str | None) or (isinstance(value, tuple) and len(str(value)) < 200)
    return repr(value) if plain else type(value).__qualname__


@dataclass(frozen=True)
class Schedule:
    """A policy that depends on k and K alone. Subclasses define `at`; `str()` gives the text that `parse` reads."""

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        """Denoising steps of AR step k = 0..K-1. Raises DisaError outside of these."""
        raise NotImplementedError

    def counts(self, num_ar_steps: int) -> list[int]:
        """[K] denoising steps of every AR step."""
        return [self.at(k, num_ar_steps) for k in range(num_ar_steps)]

    def __call__(self, problem: DenoisingProblem) -> int:
        return self.at(problem.ar_step, problem.num_ar_steps)


@dataclass(frozen=True)
class Constant(Schedule):
    """`num_steps` everywhere."""

    num_steps: int

    def __post_init__(self) -> None:
        _check_counts([self.num_steps])

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        _check_place(ar_step, num_ar_steps)
        return self.num_steps

    def __str__(self) -> str:
        return f"constant:{self.num_steps}"


@dataclass(frozen=True)
class Annealed(Schedule):
    """From `early` to `late` steps; early < late is legal and is the reversed schedule.

    A count is late + int(share * (early - late)), in double precision and truncated, as the official code rounds. With
    a single AR step linear and cosine give `early`; two-stage gives `late`, as its official formula does.
    """

    early: int
    late: int
    name = "annealed"

    def __post_init__(self) -> None:
        _check_counts([self.early, self.late])

    def share(self, ar_step: int, last: int) -> float:
        """1 at the first AR step, 0 at the last."""
        raise NotImplementedError

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        _check_place(ar_step, num_ar_steps)
        return self.late + int(self.share(ar_step, num_ar_steps - 1) * (self.early - self.late))

    def __str__(self) -> str:
        return f"{self.name}:{self.early}-{self.late}"


class Linear(Annealed):
    """A straight line from early to late: the paper's default."""

    name = "linear"

    def share(self, ar_step: int, last: int) -> float:
        return (last - ar_step) / last if last else 1.0


class Cosine(Annealed):
    """Half a cosine from early to late."""

    name = "cosine"

    def share(self, ar_step: int, last: int) -> float:
        return (math.cos(math.pi * ar_step / last) + 1) / 2 if last else 1.0


class TwoStage(Annealed):
    """Early steps in the first half of the AR steps, late steps after."""

    name = "two-stage"

    def share(self, ar_step: int, last: int) -> float:
        return 1.0 if ar_step < last / 2 else 0.0


@dataclass(frozen=True)
class Table(Schedule):
    """One count per AR step. With another number of AR steps the table is resampled at equal shares of the run."""

    values: tuple[int, ...]
    source: str = ""
    """The file that it was read from, if any."""
    measured_for: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """The settings that the counts were chosen for; empty where nothing was measured."""

    def __post_init__(self) -> None:
        if not self.values:
            raise DisaError(f"the {self} holds no counts: expected one per AR step.")
        _check_counts(list(self.values))

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        _check_place(ar_step, num_ar_steps)
        if num_ar_steps == len(self.values):
            return self.values[ar_step]
        if ar_step == 0:
            warnings.warn(f"{self} has {len(self.values)} counts and is resampled to {num_ar_steps}", stacklevel=2)
        place = ar_step / max(1, num_ar_steps - 1) * (len(self.values) - 1)
        below = min(int(place), len(self.values) - 1)
        above = min(below + 1, len(self.values) - 1)
        return round(self.values[below] + (place - below) * (self.values[above] - self.values[below]))

    def __str__(self) -> str:
        return f"table:{self.source}" if self.source else f"table of {len(self.values)}"

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; the counts too, since a list has no name and a file can change."""
        return {"steps": str(self), "counts": list(self.values)}


def constant(num_steps: int) -> Constant:
    """The same number of denoising steps in every AR step."""
    return Constant(num_steps)


def linear(early: int, late: int) -> Linear:
    """DiSA's default: a straight line from `early` to `late`."""
    return Linear(early, late)


def cosine(early: int, late: int) -> Cosine:
    """Half a cosine from `early` to `late`."""
    return Cosine(early, late)


def two_stage(early: int, late: int) -> TwoStage:
    """`early` in the first half of the AR steps, `late` after."""
    return TwoStage(early, late)


def table(path: str | Path) -> Table:
    """Read counts from JSON: a list, or an object with a list under `counts`, such as `disa calibrate` writes."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DisaError(f"cannot read the table {path}: {error}. Expected JSON with one count per AR step.") from error
    values = content.get("counts") if isinstance(content, dict) else content
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise DisaError(f'the table {path} must be a list of whole numbers or {{"counts": [...]}}.')
    measured_for = content.get("measured_for", {}) if isinstance(content, dict) else {}
    if not isinstance(measured_for, dict):
        raise DisaError(f"the table {path} must say what it was measured for as an object, found {measured_for!r}.")
    return Table(tuple(values), str(path), measured_for)


_ANNEALED: dict[str, type[Annealed]] = {kind.name: kind for kind in (TwoStage, Linear, Cosine)}
FORMS = "constant:N, two-stage:50-5, linear:50-5, cosine:50-5 or table:FILE (with a model also mlp, variance, straight)"


def parse(text: str) -> Schedule:
    """The policy that `text` names, such as `linear:50-5`."""
    name, _, rest = text.partition(":")
    if name == "table" and rest:
        return table(rest)
    try:
        numbers = [int(number) for number in rest.split("-")]
        if name == "constant":
            (num_steps,) = numbers
            return Constant(num_steps)
        early, late = numbers
        return _ANNEALED[name](early, late)
    except (ValueError, KeyError) as error:
        raise DisaError(f"unknown step policy {text!r}: expected {FORMS}.") from error


def _check_place(ar_step: int, num_ar_steps: int) -> None:
    if num_ar_steps < 1:
        raise DisaError(f"a schedule needs at least 1 AR step, found {num_ar_steps}.")
    if not 0 <= ar_step < num_ar_steps:
        raise DisaError(f"AR steps count from 0: expected 0 to {num_ar_steps - 1}, found {ar_step}.")


def _check_counts(counts: list[int]) -> None:
    if min(counts) < 1:
        raise DisaError(f"a row needs at least 1 denoising step, found {min(counts)}.")
