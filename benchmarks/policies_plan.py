"""What `policies.py` draws: every kind of policy with the parameters that make the evaluations of a budget."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tables import RESULTS, ROOT

from disa.core.steps import Annealed, Schedule
from disa.core.texts import parse
from disa.draw.inputs import Inputs
from disa.draw.prompts import slug
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.files import make_folder, write_json
from disa.policies import adaptive
from disa.study.calibrate import FIRST_SEED, NUM_IMAGES, calibrate, costs_of

BUDGETS = {
    "mar-digits": (0.2, 0.1, 0.05, 0.025),
    "harmon-shapes": (0.2, 0.1, 0.05, 0.025),
    "bitdance-digits": (0.2, 0.1, 0.05),
}
BUDGETS_OF_FLOWS = (0.7, 0.4, 0.2, 0.1)
SOLVERS = {
    "noise": (("ddpm", None), ("ddim", "uniform"), ("dpm-solver++-2", None)),
    "velocity": (("euler", "uniform"), ("heun", "uniform"), ("euler-maruyama", None), ("dpm-solver++-2", None)),
}
SOLVER_BUDGETS = (0.2, 0.1)
MOST, TRIALS = 400, 3
"""Denoising steps of the longest schedule that is looked at; how often an adaptive budget is corrected."""
TABLES = RESULTS / "tables"


def inputs_of(sampler: Sampler, count: int, first: int = 0) -> Inputs:
    """Seeds with the labels, or held-out captions, in turn."""
    seeds = list(range(first, first + count))
    if not sampler.preset.prompts:
        return Inputs(seeds, labels=[seed % sampler.model.config.num_classes for seed in seeds])
    from disa.tiny.scenes import held_out_captions

    return Inputs(seeds, prompts=held_out_captions(count, seed=first))


@dataclass(frozen=True)
class Point:
    """A policy at a budget. share: of the original setting's evaluations, None for that setting itself. version: a hash
    of what is read to draw it: weights, table, probe."""

    kind: str
    steps: str
    version: str
    share: float | None = None
    solver: str | None = None
    grid: str | None = None

    @property
    def key(self) -> str:
        return slug("-".join(str(part) for part in (self.kind, self.steps, self.solver, self.grid, self.version)))


class Costs:
    """Evaluations per row of schedules: counted for two of them on one image, and known from the grids for all."""

    counted = (4, 10)

    def __init__(self, sampler: Sampler, solver: str | None = None, grid: str | None = None) -> None:
        settings = sampler.settings(solver=solver, grid=grid)
        one = inputs_of(sampler, 1)
        drawn = [
            sampler.sample(inputs=one, settings=settings, steps=f"constant:{n}", output_type="latent")
            for n in self.counted
        ]
        self.rows = drawn[0].rows
        evaluations = np.array([[step.evaluations for step in samples.trace] for samples in drawn]).T
        self.table = costs_of(sampler, settings, np.arange(1, MOST + 1), evaluations, self.counted)

    def of(self, schedule: Schedule) -> float:
        return sum(self.table[k, n - 1] for k, n in enumerate(schedule.counts(len(self.table)))) / self.rows

    def nearest(self, family: Callable[[int], str], wanted: float) -> str:
        """The member of a family, which grows with its number, that is closest to a cost."""
        texts = dict.fromkeys(family(number) for number in range(1, MOST + 1))
        return min(texts, key=lambda text: abs(self.of(_schedule(text)) - wanted))


def _schedule(text: str) -> Schedule:
    policy = parse(text)
    assert isinstance(policy, Schedule)
    return policy


def _families(preset_steps: str) -> dict[str, Callable[[int], str]]:
    """Schedules that grow with a number, early / late as in the paper's for this model."""
    own = _schedule(preset_steps)
    assert isinstance(own, Annealed)

    def late(early: int) -> int:
        return max(1, round(early * own.late / own.early))

    return {
        "constant": lambda n: f"constant:{n}",
        "two-stage": lambda n: f"two-stage:{n}-{late(n)}",
        "linear": lambda n: f"linear:{n}-{late(n)}",
        "cosine": lambda n: f"cosine:{n}-{late(n)}",
        "reversed": lambda n: f"linear:{late(n)}-{n}",
    }


@dataclass(frozen=True)
class Kinds:
    """What is drawn beside fixed schedules with the official solver."""

    adaptive: bool = True
    solvers: bool = True


def plan(sampler: Sampler, shares: Sequence[float], kinds: Kinds) -> list[Point]:
    """Every point of a model at these budgets, of the kinds that are wanted. `linear` is as close to a budget
    as it can be, everything else as close to `linear`."""
    preset, costs = sampler.preset, Costs(sampler)
    families, weights = _families(preset.defaults.steps), sampler.weights_hash
    whole = costs.of(_schedule(preset.defaults.original))
    probe = adaptive.find_probe(None, preset, lambda: weights)
    points = [Point("original", preset.defaults.original, _hash(weights))]
    linear = {share: costs.nearest(families["linear"], share * whole) for share in shares}
    for (share, text), path in zip(linear.items(), _calibrated(sampler, linear), strict=True):
        spent = costs.of(_schedule(text))
        for kind, family in families.items():
            points.append(Point(kind, costs.nearest(family, spent), _hash(weights), share))
        text = f"table:{path.relative_to(ROOT)}"
        points.append(Point("calibrated", text, _hash(weights, path.read_text()), share))
        for kind, text in _adaptive(sampler, spent) if kinds.adaptive else ():
            points.append(Point(kind, text, _hash(weights, probe.metadata()), share))
    for n in (2, 1):
        text = f"constant:{n}"
        points.append(Point("constant", text, _hash(weights), round(costs.of(_schedule(text)) / whole, 4)))
    for solver, grid in SOLVERS[sampler.model.process.predicts] if kinds.solvers else ():
        other = Costs(sampler, solver, grid)
        for share in SOLVER_BUDGETS:
            for kind in ("constant", "linear"):
                text = other.nearest(families[kind], share * whole)
                points.append(Point(kind, text, _hash(weights), share, solver, grid))
    return list({point.key: point for point in points}.values())


def _hash(*read: Any) -> str:
    return hashlib.sha256(repr(read).encode()).hexdigest()[:8]


def _adaptive(sampler: Sampler, wanted: float) -> Iterator[tuple[str, str]]:
    """The adaptive policies that can keep to so many evaluations per row."""
    for name in ("mlp", "variance:draws", "variance:head", "variance:probe"):
        with contextlib.suppress(DisaError):
            yield name, _corrected(sampler, name, wanted)


def _corrected(sampler: Sampler, name: str, wanted: float) -> str:
    """An adaptive policy whose budget makes so many evaluations per row, on other seeds. Raises DisaError."""

    def text_of(budget: float) -> str:
        early, late = round(2.5 * budget), max(1, round(budget / 4))
        return f"{name}:{early}-{late}@{budget:.4g}"

    budget, trial = wanted, inputs_of(sampler, NUM_IMAGES, FIRST_SEED)
    for _ in range(TRIALS):
        made = sampler.sample(inputs=trial, steps=text_of(budget), output_type="latent").evaluations_per_row
        budget *= wanted / made
    sampler.settings(steps=text_of(budget))
    return text_of(budget)


def _calibrated(sampler: Sampler, linear: dict[float, str]) -> list[Path]:
    """Tables that may make the evaluations of a policy for each share, measured if that was not done before."""
    paths = {share: TABLES / f"{sampler.preset.name}-{share:g}.json" for share in linear}
    if not all(_is_made_for(path, sampler, linear[share]) for share, path in paths.items()):
        inputs = inputs_of(sampler, NUM_IMAGES, FIRST_SEED)
        found = calibrate(sampler, inputs, sampler.settings(), list(linear.values()))
        make_folder(TABLES)
        for path, table in zip(paths.values(), found, strict=True):
            write_json(path, table.report())
    return list(paths.values())


def _is_made_for(path: Path, sampler: Sampler, budget: str) -> bool:
    content = json.loads(path.read_text()) if path.exists() else {}
    return content.get("asked_budget") == budget and content["measured_for"].get("weights") == sampler.weights_hash
