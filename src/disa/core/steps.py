"""How many denoising steps each AR step gets: the annealing schedules of DiSA (arXiv 2505.20297) and their text form.

A step policy is called with a `DenoisingProblem` and answers with a plan. A schedule is the policy that knows only
k and K, so it also works in a loop of your own: `disa.linear(50, 5).at(k, K)`.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

from disa.core.counts import MOST_AR_STEPS, ar_steps, denoising_steps
from disa.errors import DisaError, warn
from disa.values import counted, many, shown, takes, whole_number

if TYPE_CHECKING:
    from torch import Tensor

    from disa.core.problem import DenoisingProblem, Look, Plan


DRAWN = "/drawn"
"""The end of the text of a schedule that goes by the share of the image that is drawn."""


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
    """A policy from what a caller gave.

    | given | policy |
    |---|---|
    | what can be called with a problem | itself |
    | a whole number, as `disa.values` has it | `Constant` |
    | a list, tuple, range, array, tensor or iterator of whole numbers | `Table`, one count per AR step |

    Refused, with one DisaError: classes, functions that do not take one argument, and everything else. Texts beside
    whole numbers are read by `disa.core.texts`.
    """
    if callable(steps):
        return _checked(steps)
    alone = not hasattr(steps, "__iter__") or getattr(steps, "ndim", 1) == 0
    if not alone and not isinstance(steps, str | bytes | bytearray | dict | set | frozenset):
        return Table(steps)
    with contextlib.suppress(DisaError):
        steps = whole_number(steps, "steps")
    if type(steps) is not int:
        raise DisaError(f"steps must be a policy, its text, a whole number or a list of them, found {shown(steps)}.")
    return Constant(steps)


def _checked(policy: Any) -> Any:
    """A policy that can be called with a problem."""
    name = shown(getattr(policy, "__name__", policy))
    if isinstance(policy, type):
        raise DisaError(f"steps must be a policy, found the class {name}: give one of its objects.")
    if not takes(policy, 1):
        raise DisaError(f"a step policy is called with one argument, the problem: {name} takes others.")
    return policy


class WithSolver:
    """The base of policies that come with a solver, `plan.solver`."""

    plan: Any


def is_planned(steps: Any) -> bool:
    """Whether steps come with a solver, as an object or by their text."""
    return named(steps) in ("plan", "straight") if isinstance(steps, str) else isinstance(steps, WithSolver)


def named(text: str) -> str:
    """What a text of steps or of a solver begins with: the name."""
    return re.split("[:@]", text)[0].strip()


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

    def along(self, share: float) -> int:
        """Denoising steps where a share of the way from the first AR step (0) to the last (1) is made."""
        raise DisaError(f"the step policy {describe(self)} goes by AR steps alone.")

    def over_drawn(self) -> OverDrawn:
        """The same over the share of the image that is drawn."""
        return OverDrawn(self)

    def counts(self, num_ar_steps: int) -> list[int]:
        """[K] denoising steps of every AR step."""
        return [denoising_steps(self.at(k, num_ar_steps)) for k in range(ar_steps(num_ar_steps))]

    def __call__(self, problem: DenoisingProblem) -> int:
        return self.at(problem.ar_step, problem.num_ar_steps)


@dataclass(frozen=True)
class Constant(Schedule):
    """`num_steps` everywhere."""

    num_steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_steps", denoising_steps(self.num_steps))

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        _place(ar_step, num_ar_steps)
        return self.num_steps

    def along(self, share: float) -> int:
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
        object.__setattr__(self, "early", denoising_steps(self.early))
        object.__setattr__(self, "late", denoising_steps(self.late))

    def share(self, ar_step: float, last: float) -> float:
        """1 at the first AR step, 0 at the last."""
        raise NotImplementedError

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        return self._between(*_place(ar_step, num_ar_steps))

    def along(self, share: float) -> int:
        return self._between(share, 1)

    def _between(self, ar_step: float, last: float) -> int:
        return self.late + int(self.share(ar_step, last) * (self.early - self.late))

    def __str__(self) -> str:
        return f"{self.name}:{self.early}-{self.late}"


class Linear(Annealed):
    """A straight line from early to late: the paper's default."""

    name = "linear"

    def share(self, ar_step: float, last: float) -> float:
        return (last - ar_step) / last if last else 1.0


class Cosine(Annealed):
    """Half a cosine from early to late."""

    name = "cosine"

    def share(self, ar_step: float, last: float) -> float:
        return (math.cos(math.pi * ar_step / last) + 1) / 2 if last else 1.0


class TwoStage(Annealed):
    """Early steps in the first half of the AR steps, late steps after."""

    name = "two-stage"

    def share(self, ar_step: float, last: float) -> float:
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
        given: Iterable[Any] = islice(iter(self.values), MOST_AR_STEPS + 1)
        values = tuple(many(list(given), denoising_steps, "numbers of denoising steps"))
        object.__setattr__(self, "values", values)
        if not values:
            raise DisaError(f"the {self} holds no counts: expected one per AR step.")
        if len(values) > MOST_AR_STEPS:
            raise DisaError(f"a table has at most {MOST_AR_STEPS} counts, one per AR step: found more.")

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        ar_step, last = _place(ar_step, num_ar_steps)
        if last == len(self.values) - 1:
            return self.values[ar_step]
        if ar_step == 0:
            held = counted(len(self.values), "count")
            warn(f"{self} has {held} and is resampled to {last + 1}")
        return self.along(ar_step / max(1, last))

    def along(self, share: float) -> int:
        place = share * (len(self.values) - 1)
        below = min(int(place), len(self.values) - 1)
        above = min(below + 1, len(self.values) - 1)
        return round(self.values[below] + (place - below) * (self.values[above] - self.values[below]))

    def __str__(self) -> str:
        return f"table:{self.source}" if self.source else f"table of {len(self.values)}"

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; the counts too, since a list has no name and a file can change."""
        return {"steps": str(self), "step_counts": list(self.values)}


@dataclass(frozen=True)
class OverDrawn(Schedule):
    """A schedule over the share of the image that is drawn: early where nothing is, late where nearly all is.

    Under counts that draw half of the image in the last AR steps, a schedule over AR steps would give that half few
    denoising steps. Where an AR step draws one of K groups, the share is k / K.
    """

    schedule: Schedule
    shares: tuple[float, ...] = field(default=(), compare=False, repr=False)
    """[K] what is drawn before each AR step, for those who ask before anything is drawn; k / K if empty."""

    def at(self, ar_step: int, num_ar_steps: int) -> int:
        place, _ = _place(ar_step, num_ar_steps)
        return self.along(self.shares[place] if len(self.shares) == num_ar_steps else place / num_ar_steps)

    def along(self, share: float) -> int:
        return self.schedule.along(share)

    def __call__(self, problem: DenoisingProblem) -> int:
        if problem.known is None:
            raise DisaError(f"{self} goes by the share of the image that is drawn, which this model does not say.")
        return self.along(problem.known)

    def __str__(self) -> str:
        return f"{describe(self.schedule)}{DRAWN}"

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; the counts of a table, too."""
        own = self.schedule.to_json() if isinstance(self.schedule, Table) else {}
        return own | {"steps": str(self)}


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


def _place(ar_step: Any, num_ar_steps: Any) -> tuple[int, int]:
    """k and K - 1 of a caller. Raises DisaError."""
    last, place = ar_steps(num_ar_steps) - 1, whole_number(ar_step, "an AR step")
    if not 0 <= place <= last:
        raise DisaError(f"AR steps count from 0: expected 0 to {last}, found {shown(place)}.")
    return place, last
