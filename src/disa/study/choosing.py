"""The plan, from what was measured: of several kinds of courses the best, and what it costs.

Shapes: K AR steps, G stretches of them, N the most denoising steps of a course.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from disa.core.courses import Course, stretch_of
from disa.core.plans import FORMAT, StepPlan

FITTED = ("fitted, plain times", "fitted, own times")
"""Updates that are fitted, on times that are best for steps of DPM-Solver++ 2M, or for fitted steps."""
EXACT, NOISY = "dpm-solver++-2", "dpm-solver++-2:eta=1"
SOLVERS = {EXACT: 0.0, NOISY: 1.0}
"""Solvers on their own best times, and how much noise they add."""
BEST = "fitted"
"""For every stretch and number of denoising steps the best of all that add no noise."""
OWN = "own"
"""The solver and the grid of the settings, with as many denoising steps."""


@dataclass(frozen=True, eq=False)
class Judged:
    """How far courses end from the path."""

    apart: dict[str, np.ndarray]
    """By kind [G, N] the squared distance of a row; where the kind adds noise it says little."""
    energy: dict[str, np.ndarray]
    """By kind [G, N] the energy distance of a row."""
    doubt: dict[str, np.ndarray]
    """By kind [G, N] the standard error of that."""
    costs: dict[str, np.ndarray]
    """By kind [K, N] evaluations of an image: guidance may act at the times of one kind and not at another's."""
    rows: np.ndarray
    """[K] of an image."""


def chosen(
    courses: Mapping[str, Sequence[Sequence[Course]]], judged: Judged, gains: np.ndarray, budget: float
) -> dict[str, Any]:
    """The content of the plan of the kind that leaves the least error at a budget, in evaluations per row.

    courses: by kind [G][N]. gains: [K] what an error of an AR step does to the picture.
    """
    names, num_ar_steps = (*FITTED, EXACT), len(judged.rows)
    better = np.argmin([judged.apart[kind] for kind in names], axis=0)
    of_ar_steps = better[[stretch_of(k, num_ar_steps, len(better)) for k in range(num_ar_steps)]]
    apart, energy, doubt = (
        by_kind | {BEST: _picked(by_kind, names, better)} for by_kind in (judged.apart, judged.energy, judged.doubt)
    )
    costs = judged.costs | {BEST: _picked(judged.costs, names, of_ar_steps)}
    mixed = [[courses[names[which]][g][n] for n, which in enumerate(row)] for g, row in enumerate(better)]
    kinds = {BEST: mixed} | {kind: courses[kind] for kind in SOLVERS}
    plans = {}
    for kind, stretches in kinds.items():
        errors = energy[kind] if SOLVERS.get(kind) else apart[kind]
        content = {
            "format": FORMAT,
            "solver": kind,
            "num_ar_steps": num_ar_steps,
            "stretches": [
                [_told(course, float(errors[g, n])) for n, course in enumerate(found)]
                for g, found in enumerate(stretches)
            ],
            "gains": gains.tolist(),
            "rows": judged.rows.tolist(),
            "costs": np.maximum.accumulate(costs[kind], axis=1).tolist(),
        }
        plans[kind] = StepPlan(content)
    spent = {kind: plan.affordable(budget) for kind, plan in plans.items()}
    # Noise makes estimates doubtful: what adds some is chosen where it is better beyond doubt.
    left = {kind: _left(plan, energy[kind] + 2 * doubt[kind], spent[kind]) for kind, plan in plans.items()}
    best = min(left, key=lambda kind: left[kind])
    errors = {kind: {"apart": apart[kind].tolist(), "energy": energy[kind].tolist()} for kind in (*kinds, OWN)}
    return dict(plans[best].content) | {"budget": spent[best], "errors": errors, "left": left}


def _picked(by_kind: Mapping[str, np.ndarray], names: Sequence[str], which: np.ndarray) -> np.ndarray:
    """[..., N] of several kinds the one that `which` [..., N] says by its place among the names."""
    return np.take_along_axis(np.stack([by_kind[name] for name in names]), which[None], axis=0)[0]


def _left(plan: StepPlan, energy: np.ndarray, budget: float) -> float:
    """The energy distance of an image, as it reaches the picture, that a plan leaves at a budget."""
    counts, num_ar_steps = plan.counts(budget), len(plan.content["rows"])
    weights = np.array(plan.content["gains"]) * np.array(plan.content["rows"])
    stretches = [stretch_of(k, num_ar_steps, len(energy)) for k in range(num_ar_steps)]
    return float(sum(weights[k] * energy[stretches[k], counts[k] - 1] for k in range(num_ar_steps)))


def _told(course: Course, error: float) -> dict[str, Any]:
    updates = [list(update) for update in course.updates]
    return {"times": list(course.times), "updates": updates, "error": max(error, 0.0)}
