"""What `disa tune` tries: on each axis of saving some ways, from the mildest on, of which a setting takes one or none.

| axis | its ways |
|---|---|
| steps | a plan that leaves 0.3 to 30 % of the error of one step, or the official solver with fewer steps |
| AR steps | 3/4 to 1/4 of them, in each order that the model knows |
| guidance | none in the first part of an image |
| reuse | what of the backbone is kept from one AR step to the next |

Which of them lose nothing differs from model to model, so all are measured. A way that a model does not take is left
out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from disa.core.plans import StepPlan
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.values import plain_number

ERRORS_LEFT = (0.003, 0.01, 0.03, 0.1, 0.3)
"""Of a plan, as shares of the error that one step in every AR step leaves."""
FEWER_STEPS = ((1.0, 0.1), (0.5, 0.1), (0.2, 0.05), (0.1, 0.05), (0.06, 0.02))
"""Early and late, as shares of the original's denoising steps."""
FEWER_AR_STEPS = (0.75, 0.5, 0.375, 0.25)
ORDERS: tuple[dict[str, Any], ...] = ({}, {"order": "checkerboard:3"}, {"order": "halton"})
GUIDED: tuple[dict[str, Any], ...] = ({"progress": "0.1-1"}, {"progress": "0.25-1"}, {"progress": "0.5-1"})
REUSED = ("residual:3", "residual:9", "tokens:2", "residual:9+tokens:2")


@dataclass(frozen=True)
class Way:
    """Some options, on one axis."""

    axis: str
    options: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, axis: str, options: Mapping[str, Any]) -> Way:
        return cls(axis, tuple(options.items()))


@dataclass(frozen=True)
class Mix:
    """A way on some axes, at most one on each."""

    ways: tuple[Way, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        return {name: value for way in self.ways for name, value in way.options}

    def __str__(self) -> str:
        """For people: a plan without the place of its file."""
        return " ".join(_steps(v) if n == "steps" else f"{_SHORT.get(n, n)} {v}" for n, v in self.options.items())


_SHORT = {"num_ar_steps": "AR steps", "progress": "guidance at"}


def _steps(text: str) -> str:
    return f"plan@{text.rpartition('@')[2]}" if text.startswith("plan:") else text


def ways_for(sampler: Sampler, base: Settings, plan: StepPlan | None) -> dict[str, list[Way]]:
    """The ways of each axis that the model takes under `base`, the original's settings, whose policy is a
    schedule; a list may be empty."""
    policy: Any = base.steps
    count = max(policy.counts(base.num_ar_steps))
    steps = [{"steps": text} for text in (_fewer(count) if plan is None else _planned(plan))]
    fewer = [max(2, round(share * base.num_ar_steps)) for share in FEWER_AR_STEPS]
    # Orders without fewer AR steps save nothing.
    ar_steps = [{"num_ar_steps": number} | order for number in dict.fromkeys(fewer) for order in ORDERS]
    guided = GUIDED if base.guidance.active else ()
    # Without guidance there is no residual.
    reused = [{"reuse": text} for text in REUSED if base.guidance.active or "residual" not in text]
    axes = {"steps": steps, "AR steps": ar_steps, "guidance": guided, "reuse": reused}
    return {axis: [Way.of(axis, way) for way in ways if _is_taken(sampler, base, way)] for axis, ways in axes.items()}


def _planned(plan: StepPlan) -> Iterator[str]:
    """The cheapest budgets that leave no more than so much error."""
    least, most = plan.bounds
    most = max(least, math.floor(10 * most) / 10)
    budgets = [least * (most / least) ** (i / 40) for i in range(41)]
    found = list[str]()
    for wanted in ERRORS_LEFT:
        fit = next((budget for budget in budgets if plan.left(plan.counts(budget)) <= wanted), most)
        found.append(f"{plan.source}@{plain_number(min(most, math.ceil(10 * fit) / 10))}")
    return iter(dict.fromkeys(found))


def _fewer(count: int) -> Iterator[str]:
    pairs = [tuple(max(1, round(share * count)) for share in shares) for shares in FEWER_STEPS]
    return iter(dict.fromkeys(f"linear:{early}-{late}" for early, late in pairs))


def _is_taken(sampler: Sampler, base: Settings, options: Mapping[str, Any]) -> bool:
    try:
        with warnings.catch_warnings(action="ignore"):
            sampler.settings(base, **options)
    except DisaError:
        return False
    return True


def ladders(axes: Mapping[str, Sequence[Way]]) -> list[list[Way]]:
    """The ways of each kind, from the mildest on: those that differ in how much is saved, and in nothing else."""
    kinds = dict[tuple[Any, ...], list[Way]]()
    for axis, ways in axes.items():
        for way in ways:
            options = dict(way.options)
            kind = way if axis == "reuse" else options.get("order")
            kinds.setdefault((axis, kind), []).append(way)
    return list(kinds.values())


def mixes(axes: Mapping[str, Sequence[Way]]) -> Iterator[Mix]:
    """Every choice of a way or none on each axis, but for `steps`, which every mix has."""
    choices = [[*([] if axis == "steps" else [None]), *ways] for axis, ways in axes.items()]
    for chosen in product(*choices):
        yield Mix(tuple(way for way in chosen if way is not None))
