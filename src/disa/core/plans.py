"""Plans: courses for every part of an image, with what they cost and the error that they leave. `disa calibrate` makes
them; `plan:FILE@8.5` spends 8.5 evaluations per row where they take most error off, and `straight:FILE@8.5` gives rows
of one AR step different counts.

Shapes: K AR steps, G stretches of them, N the most denoising steps of a course.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from disa.core.allocate import allocate
from disa.core.counts import MOST_AR_STEPS, denoising_steps
from disa.core.courses import CalibratedSolver, Course, stretch_of
from disa.core.multistep import Update
from disa.core.solver import NUM_LOOKS
from disa.core.steps import Table, WithSolver, named
from disa.core.straight import Bins, Straight, choices
from disa.errors import DisaError
from disa.reading import read_json
from disa.values import number, path, plain_number, shown

FORMAT = 1
MOST_STEPS_OF_A_COURSE, MOST_BINS = 1000, 100
_TEXT = re.compile(
    r"(?:plan|straight)(?:\s*:\s*(?P<file>.+?))?(?:@(?P<budget>[0-9]+(?:\.[0-9]+)?(?:e-[0-9]+)?))?", re.DOTALL
)


@dataclass(frozen=True, eq=False)
class StepPlan:
    """What a plan file holds."""

    content: Mapping[str, Any]
    """As JSON has it, see `read_plan`."""
    source: str = "plan"
    """Its text without a budget: `plan`, or `plan:FILE`."""

    @cached_property
    def solver(self) -> CalibratedSolver:
        """The solver that goes by its courses."""
        stretches = tuple(tuple(map(_course, stretch)) for stretch in self.content["stretches"])
        looks = tuple(
            courses[:1] + tuple(map(_course, look["courses"]))  # with one step there is nothing to look at
            for courses, look in (zip(stretches, self.looks, strict=True) if self.looks else ())
        )
        own = dict(self.measured_for)
        return CalibratedSolver(stretches, self.source, self.hash, own, spread=self.spread, looks=looks)

    @property
    def looks(self) -> Sequence[Mapping[str, Any]]:
        """[G] what each stretch has for looking at rows; empty where the file has nothing."""
        return self.content.get("looks", [])

    @property
    def measured_for(self) -> Mapping[str, Any]:
        return self.content.get("measured_for", {})

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that decides an image whose rows are not looked at."""
        told = {name: self.content[name] for name in ("stretches", "costs", "gains", "rows")} | {"spread": self.spread}
        return _hash(told)

    @cached_property
    def hash_of_looks(self) -> str:
        """SHA-256 of what is for looking at rows."""
        return _hash(self.looks)

    @cached_property
    def errors(self) -> np.ndarray:
        """[K, N] the squared error of an image that each number of denoising steps leaves in each AR step, as it
        reaches the picture."""
        of_stretches = [[course["error"] for course in stretch] for stretch in self.content["stretches"]]
        num_ar_steps = len(self.content["rows"])
        of_rows = [of_stretches[stretch_of(k, num_ar_steps, len(of_stretches))] for k in range(num_ar_steps)]
        return np.array(of_rows, dtype=float) * self.weights[:, None]

    @property
    def weights(self) -> np.ndarray:
        """[K] what makes the errors of a row those of an image, as they reach the picture."""
        return np.array(self.content["gains"], dtype=float) * np.array(self.content["rows"], dtype=float)

    @cached_property
    def costs(self) -> np.ndarray:
        """[K, N] evaluations of an image."""
        return np.array(self.content["costs"], dtype=float)

    @property
    def spread(self) -> float:
        """What the noise is scaled by that a row begins with; 1 where the file does not say."""
        return float(self.content.get("spread", 1.0))

    def per_row(self, counts: Sequence[int]) -> float:
        """Evaluations per row that such counts make."""
        made = self.costs[range(len(counts)), np.array(counts) - 1]
        return float(made.sum() / sum(self.content["rows"]))

    def affordable(self, budget: float) -> float:
        """The budget, or the nearest one that can be spent."""
        least, most = self.bounds
        return min(max(budget, least), most)

    @property
    def bounds(self) -> tuple[float, float]:
        """The fewest and the most evaluations per row."""
        least, most = (float(self.costs[:, place].sum() / sum(self.content["rows"])) for place in (0, -1))
        return least, most

    def counts(self, budget: float) -> list[int]:
        """[K] denoising steps that leave the least error for so many evaluations per row. Raises DisaError."""
        # A count that is dearer and no better is never chosen.
        return [i + 1 for i in allocate(self.errors, self.costs, self._total(budget))]

    def _total(self, budget: float) -> float:
        """Evaluations of an image. Raises DisaError for a budget that cannot be spent."""
        least, most = self.bounds
        if not least * (1 - 1e-9) <= budget <= most * (1 + 1e-9):
            found = f"{self.source} spends {least:.3g} to {most:.3g} evaluations per row"
            raise DisaError(f"{found}, found {budget:g}: choose a budget between.")
        return budget * sum(self.content["rows"]) * (1 + 1e-9)

    def left(self, counts: Sequence[int]) -> float:
        """The error that such counts leave, as a share of that of one denoising step everywhere."""
        return float(self.errors[range(len(counts)), np.array(counts) - 1].sum() / self.errors[:, 0].sum())

    def steps(self, budget: float | None = None) -> Planned:
        """The policy that spends so many evaluations per row, or those that the plan was made for."""
        return Planned(tuple(self.counts(self._spent(budget))), self._text(budget), self.measured_for, self)

    def straight(self, budget: float | None = None) -> Straight:
        """The policy that spends it by row. Raises DisaError where the plan has nothing for looking at rows."""
        text = self._text(budget).replace("plan", "straight", 1)
        if not self.looks:
            raise DisaError(f"{text} looks at rows, which its plan has nothing for: make one with `disa calibrate`.")
        parts = ("edges", "shares", "errors")
        bins = [Bins(*(np.array(look[part], dtype=float) for part in parts)) for look in self.looks]
        chosen = choices(self.errors, self.costs, self.weights, bins, self._total(self._spent(budget)))
        edges = tuple(tuple(each.edges.tolist()) for each in bins)
        return Straight(chosen, edges, text, self)

    def _spent(self, budget: float | None) -> float:
        return float(self.content["budget"]) if budget is None else budget

    def _text(self, budget: float | None) -> str:
        return self.source if budget is None else f"{self.source}@{plain_number(budget)}"


@dataclass(frozen=True)
class Planned(Table, WithSolver):
    """The counts of a plan at a budget; its solver is `plan.solver`."""

    plan: StepPlan = field(kw_only=False, default=None, compare=False, repr=False)  # pyright: ignore[reportAssignmentType]

    def __str__(self) -> str:
        return self.source

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; the plan too, since its file can change."""
        return super().to_json() | {"plan": self.plan.hash}


def _hash(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def plan_parts(text: str) -> tuple[Path | None, float | None]:
    """The file and the budget in `plan:FILE@8.5` or `straight:FILE@8.5`, each of which may be left out. Raises
    DisaError."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise DisaError(f"expected a plan like plan@8.5 or plan:FILE@8.5, found {shown(text)}.")
    file = None if found["file"] is None else path(found["file"].strip(), "a plan")
    return file, None if found["budget"] is None else number(found["budget"], "the budget of a plan", 0)


def parse_plan(text: str, shipped: Path | None = None) -> tuple[StepPlan, float | None]:
    """The plan and the budget that a text names; shipped: the file where it names none. Raises DisaError."""
    file, budget = plan_parts(text)
    if file is None and shipped is None:
        raise DisaError(
            f"{shown(text)} takes the plan that comes with a model, and there is none here: name a file, as in "
            "plan:FILE@8.5, which `disa calibrate` makes."
        )
    return read_plan(file or shipped, "plan" if file is None else f"plan:{file}"), budget  # pyright: ignore[reportArgumentType]


def planned(text: str, shipped: Path | None = None) -> Planned | Straight:
    """The policy that a text such as `plan@8.5` or `straight:FILE@8.5` names; shipped: as `parse_plan` takes it. Raises
    DisaError."""
    plan, budget = parse_plan(text, shipped)
    return plan.straight(budget) if named(text) == "straight" else plan.steps(budget)


def read_plan(file: Path, source: str) -> StepPlan:
    """A plan from a JSON file, as `disa calibrate` writes it. Raises DisaError.

    | part | taken | refused |
    |---|---|---|
    | `format` | 1 | absent, later ones |
    | `stretches` | 1 to K lists of 1 to 1000 courses, all equally long, of 1, 2, 3, ... denoising steps | all else |
    | a course | `times` from 1 to 0, `updates` of four numbers each, `error` of 0 or more | other lengths, not finite |
    | `gains`, `rows` | [K] numbers above 0 | other lengths |
    | `costs` | [K][N] numbers above 0, which do not fall | other lengths |
    | `budget` | a number above 0 | all else |
    | `spread` | a number from 0.01 to 10, or absent for 1 | all else |
    | `looks` | a list of as many objects as stretches, or absent | all else |
    | a look's `courses` | of 2, 3, ... steps, as many as a stretch has, which begin alike | all else |
    | a look's `edges`, `shares`, `errors` | [B - 1] rising, [B] from 0 on, [B][N - 1] from 0 on | other lengths |
    | `measured_for` | an object or absent | all else |
    """
    content = read_json(file, "the plan")
    try:
        _check(content)
        found = StepPlan(content, source)
        assert found.solver
    except (DisaError, KeyError, TypeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error).rstrip(".")
        raise DisaError(f"{shown(str(file))} is no plan that `disa calibrate` wrote: {what}.") from error
    return found


def _check(content: Any) -> None:
    """Raises DisaError or KeyError for what is no plan."""
    if not isinstance(content, dict):
        raise DisaError(f"expected an object, found {shown(content)}")
    if content["format"] != FORMAT:
        raise DisaError(f"expected format {FORMAT}, found {shown(content['format'])}: a newer disa may read it")
    if not isinstance(content.get("measured_for", {}), dict):
        raise DisaError(f"measured_for must be an object, found {shown(content['measured_for'])}")
    if not 0.01 <= _number(content.get("spread", 1.0), "the spread", 0) <= 10:
        raise DisaError(f"the spread must be from 0.01 to 10, found {shown(content['spread'])}")
    rows = _numbers(content["rows"], "rows", MOST_AR_STEPS)
    _numbers(content["gains"], "gains", len(rows), len(rows))
    _number(content["budget"], "the budget", 0)
    stretches = _list(content["stretches"], "stretches", len(rows))
    lengths = {len(_list(stretch, "a stretch", MOST_STEPS_OF_A_COURSE)) for stretch in stretches}
    if len(lengths) != 1:
        raise DisaError(f"every stretch must hold equally many courses, found {sorted(lengths)}")
    for look in _list(content["looks"], "looks", len(stretches), len(stretches)) if "looks" in content else ():
        _check_look(look, max(lengths))
    for costs in _list(content["costs"], "costs", len(rows), len(rows)):
        made = _numbers(costs, "costs", max(lengths), max(lengths))
        if sorted(made) != made:
            raise DisaError("costs must not fall with the number of denoising steps")
    for stretch in stretches:
        for place, course in enumerate(stretch, 1):
            _check_course(course, place)
            _number(course["error"], "an error", 0)


def _check_course(course: Any, num_steps: int) -> None:
    if not isinstance(course, dict):
        raise DisaError(f"a course must be an object, found {shown(course)}")
    _list(course["times"], "times", num_steps, num_steps)
    _list(course["updates"], "updates", num_steps, num_steps)


def _check_look(look: Any, most: int) -> None:
    """Raises DisaError or KeyError for what is nothing to look by, in a plan of so many denoising steps at most."""
    if not isinstance(look, dict):
        raise DisaError(f"a look must be an object, found {shown(look)}")
    courses = _list(look["courses"], "the courses of a look", most - 1, max(most - 1, 1))
    for place, course in enumerate(courses, NUM_LOOKS):
        _check_course(course, place)
    begun = [(course["times"][:NUM_LOOKS], course["updates"][: NUM_LOOKS - 1]) for course in courses]
    if begun.count(begun[0]) != len(begun):
        raise DisaError("the courses of a look must begin alike")
    shares = [_number(each, "a share", 0) for each in _list(look["shares"], "shares", MOST_BINS)]
    edges = [_number(each, "an edge") for each in _list(look["edges"], "edges", len(shares) - 1, len(shares) - 1)]
    if sorted(edges) != edges:
        raise DisaError("the edges of a look must rise")
    for errors in _list(look["errors"], "the errors of a look", len(shares), len(shares)):
        for each in _list(errors, "errors", most - 1, most - 1):
            _number(each, "an error", 0)


def _list(value: Any, what: str, most: int, least: int = 1) -> list[Any]:
    if not isinstance(value, list) or not least <= len(value) <= most:
        found = f"a list of {len(value)}" if isinstance(value, list) else shown(value)
        wanted = f"{least}" if least == most else f"{least} to {most}"
        raise DisaError(f"{what} must be a list of {wanted}, found {found}")
    return value


def _number(value: Any, what: str, least: float | None = None) -> float:
    """No text of one: what is read from the content later is calculated with as it is."""
    if isinstance(value, str):
        raise DisaError(f"{what} must be a number, found {shown(value)}")
    return number(value, what, least)


def _numbers(value: Any, what: str, most: int, least: int = 1) -> list[float]:
    found = [_number(each, what, 0) for each in _list(value, what, most, least)]
    if not all(found):
        raise DisaError(f"{what} must be above 0")
    return found


def _course(told: Mapping[str, Any]) -> Course:
    updates = [[_number(each, "an update") for each in _list(update, "an update", 4, 4)] for update in told["updates"]]
    denoising_steps(len(updates))
    return Course(tuple(_number(t, "a time") for t in told["times"]), tuple(Update(*update) for update in updates))
