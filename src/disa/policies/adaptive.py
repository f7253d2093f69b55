"""Step policies by a score: each row gets denoising steps by the error that is still to be expected of it.

A score says of every row how much it needs, and its `ErrorModel` turns that into the log of the error after one
denoising step, as it reaches the whole image. The error after n steps is taken to be that over n^power. Steps go where
the next one takes off most, so that between early and late the marginal gain is equal everywhere: the least total error
for what is spent.

Shapes: B images, N rows per image, R = B N rows, D condition width, J different counts, Q quantiles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core.problem import DenoisingProblem, Process
from disa.core.solver import Solver
from disa.core.solvers import grid_for, num_evaluations
from disa.core.spending import Spending, parse_spending
from disa.core.steps import Remembering
from disa.core.steps import named as steps_named
from disa.errors import DisaError
from disa.models.spec import Preset
from disa.policies import frequency
from disa.policies.frequency import ByFrequency
from disa.policies.probe import ErrorModel, FittedProbe
from disa.policies.scores import Score, learned_variance, spread_of_draws
from disa.values import counted, either, named, number, one_of, path, shown, whole_number
from disa.weights.package import in_package

NUM_COUNTS = 8
"""Different counts at most: rows are denoised in as many groups, and small groups are slow."""
COSTS = {"variance:draws": 4, "variance:head": 2}
"""Evaluations of a row that a score makes itself; a probe is not the denoising network and makes none."""


# -- spending ------------------------------------------------------------------------------------------------------


def counts_between(late: int, early: int) -> Tensor:
    """[J] counts from late to early in equal ratios."""
    return torch.tensor(sorted(set(np.geomspace(late, early, NUM_COUNTS).round().astype(int).tolist())))


def without_waste(counts: Tensor, makes: Callable[[int], int]) -> Tensor:
    """The counts, lowered to the fewest from the first on that make as many evaluations.

    makes: asked denoising steps -> evaluations; an official grid makes as many of 7 as of 6.
    """
    first = int(counts[0])
    made = [makes(count) for count in range(first, int(counts[-1]) + 1)]
    return torch.tensor(sorted({first + made.index(made[count - first]) for count in counts.tolist()}))


def marginal_gains(counts: Tensor, power: float) -> Tensor:
    """[J - 1] log of what each further denoising step takes off an error of n^-power, from one count to the next."""
    errors = counts.double() ** -power
    return (-errors.diff() / counts.diff()).log()


def above(need: Tensor, counts: Tensor, power: float, threshold: float) -> Tensor:
    """Counts [...] for needs [...]: as high as a further step still gains more than the threshold."""
    return counts[(need[..., None] + marginal_gains(counts, power) > threshold).sum(-1)]


def within(need: Tensor, counts: Tensor, power: float, room: Tensor, later: Tensor, rows_to_come: int) -> Tensor:
    """Counts [B, N] for needs [B, N] that gain most within room [B] steps per image, those of later rows included.

    later: [Q] what the needs of the rows to come are expected to be. Every row gets the smallest count in any case.
    """
    gain, cost = marginal_gains(counts, power), counts.diff().double()
    share = rows_to_come / len(later)
    all_needs = torch.cat([need, later.expand(len(need), -1)], dim=1)
    weight = torch.ones(need.shape[1] + len(later), dtype=torch.float32)
    weight[need.shape[1] :] = share
    weight = weight.double()
    order = (all_needs[:, :, None] + gain).flatten(1).argsort(dim=1, descending=True, stable=True)
    spent = (weight[:, None] * cost).flatten()[order].cumsum(dim=1)
    free = room - counts[0] * (need.shape[1] + rows_to_come)
    taken = torch.zeros_like(order, dtype=torch.bool).scatter(1, order, spent <= free[:, None])
    return counts[taken.view(*all_needs.shape, len(cost))[:, : need.shape[1]].sum(-1)]


# -- policies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Adaptive(Remembering):
    """A policy by a score."""

    score: Score = field(compare=False, repr=False)
    cost: int
    """Evaluations of a row that the score makes itself; guidance makes each of them two."""
    error_model: ErrorModel = field(compare=False, repr=False)
    spending: Spending
    name: str = "adaptive"
    file: str = ""
    """Where the probe is from; empty for that of the package."""
    measured_for: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    makes: Callable[[int], int] = field(default=int, compare=False, repr=False)
    """From denoising steps asked for to evaluations made, see `fitted_to`."""
    probe: str = ""
    """The hash of the fitted probe; empty where there is none."""

    def begin(self) -> _Spender:
        """The policy for one generation, which knows what each image has spent."""
        return _Spender(self)

    def __call__(self, problem: DenoisingProblem) -> Tensor:
        return self.begin()(problem)

    def __str__(self) -> str:
        return f"{self.name}:{self.spending}" + (f":{self.file}" if self.file else "")

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; the probe too, since its file can change."""
        return {"steps": str(self), "probe": self.probe}

    @cached_property
    def counts(self) -> Tensor:
        """[J] what a row may get."""
        return without_waste(counts_between(self.spending.late, self.spending.early), self.makes)

    def fitted_to(self, solver: Solver, process: Process) -> Adaptive:
        """The same with counts that suit the grid of a solver. Raises DisaError where they do not go together."""
        self._check(solver, process)
        return replace(self, makes=partial(num_evaluations, solver, process))

    def _check(self, solver: Solver, process: Process) -> None:
        spending, least = self.spending, self.spending.late + self.cost
        if spending.budget is not None and spending.budget < least:
            what = f"late and the {self.cost} evaluations of its score" if self.cost else "late"
            raise DisaError(
                f"the budget of {self} is too small: expected {least} steps per row or more, which are "
                f"{what}, found {spending.budget:g}."
            )
        if self.score is learned_variance and not process.learns_variance:
            raise DisaError(
                f"{self} needs a model that learns its variance, which one that predicts "
                f"{process.predicts} does not: choose variance:draws or variance:probe."
            )
        for count in self.counts.tolist():
            grid_for(solver, process, count)


class _Spender:
    """An `Adaptive` during one generation."""

    def __init__(self, policy: Adaptive) -> None:
        self.policy, self.spent = policy, torch.zeros(1, dtype=torch.float64)
        self.total: float | None = None

    def __call__(self, problem: DenoisingProblem) -> Tensor:
        """[R]."""
        policy, model, budget = self.policy, self.policy.error_model, self.policy.spending.budget
        need = model.need(policy.score(problem), problem.ar_step / problem.num_ar_steps)
        if budget is None:
            return above(need, policy.counts, model.power, model.threshold)
        to_come = problem.rows_to_come
        if to_come is None:
            raise DisaError(
                f"{policy} spends a budget over an image, but this model does not say how many rows are "
                "still to come: leave @ out."
            )
        order = problem.image.cpu().argsort(stable=True)
        need = need[order].view(int(problem.image.max()) + 1, -1)
        rows = need.shape[1]
        if self.total is None:
            self.total = budget * (rows + to_come)
        room = self.total - self.spent - policy.cost * (rows + to_come)
        counts = within(need, policy.counts, model.power, room, model.to_come(problem), to_come)
        self.spent = self.spent + counts.sum(1) + policy.cost * rows
        return torch.empty_like(order).scatter(0, order, counts.flatten())


_TEXT = re.compile(
    r"(?P<form>mlp|variance)(?::(?P<by>draws|head|probe))?(?::(?P<early>[0-9]+)-(?P<late>[0-9]+))?"
    r"(?::?@(?P<budget>[0-9]+(?:\.[0-9]+)?))?(?::(?P<file>(?![0-9]+-[0-9]|@).+))?"
)


def parse(text: str, preset: Preset, weights: Callable[[], str]) -> Adaptive | ByFrequency:
    """The policy that a text such as `mlp:50-5@20`, `variance:draws`, `mlp:50-5@20:FILE` or `frequency:50-5` names.

    weights: the hash of the model's, which takes a while and is asked for last. Raises DisaError.
    """
    if steps_named(text) == "frequency":
        return frequency.parse(text, preset)
    found = _TEXT.fullmatch(text.strip())
    if found is None or (found["by"] and found["form"] != "variance"):
        raise DisaError(
            f"unknown adaptive policy {shown(text)}: expected mlp or variance (:draws, :head or "
            ":probe), then bounds, budget and file, as in mlp:50-5@20:FILE."
        )
    spending = parse_spending(preset.defaults.spending)
    if found["early"]:
        spending = Spending(whole_number(found["early"], "early"), whole_number(found["late"], "late"))
    if found["budget"]:
        spending = replace(spending, budget=number(found["budget"], "the budget of an adaptive policy"))
    probe = find_probe(None if found["file"] is None else path(found["file"], "a probe"), preset, weights)
    name = f"variance:{found['by'] or preset.defaults.variance_by}" if found["form"] == "variance" else found["form"]
    return policy(name, probe, spending, found["file"] or "")


def policy(name: str, probe: FittedProbe, spending: Spending, file: str = "") -> Adaptive:
    """The policy by one of the scores that disa has; file: where the probe is from. Raises DisaError."""
    own = scores(probe)
    one_of(name, own, "score")
    if name not in probe.error_models:
        known = either(map(shown, probe.error_models))
        raise DisaError(f"the probe knows nothing of {name}: it was fitted for {known}.")
    return Adaptive(
        own[name],
        COSTS.get(name, 0),
        probe.error_models[name],
        spending,
        name,
        file,
        probe.measured_for,
        probe=probe.hash,
    )


def scores(probe: FittedProbe) -> dict[str, Score]:
    """Every score by name."""
    return {
        "mlp": probe.predicted(0),
        "variance:draws": spread_of_draws,
        "variance:head": learned_variance,
        "variance:probe": probe.predicted(1),
    }


def find_probe(path: Path | None, preset: Preset, weights: Callable[[], str]) -> FittedProbe:
    """The probe in a file, or that of the package, if it was fitted for weights of that hash. Raises DisaError."""
    shipped = in_package(f"{preset.name}-probe.safetensors")
    if path is None and not shipped.is_file():
        raise DisaError(
            f"adaptive policies need a probe, and none ships for {preset.name}: make one with "
            f"`disa fit-probe --model {preset.name}`, then name it as in mlp:50-5@20:FILE."
        )
    probe = FittedProbe.read(path or shipped)
    which = named(path or shipped.name)
    expected, found = weights(), probe.measured_for.get("weights")
    if found != expected:
        of = probe.measured_for.get("model")
        raise DisaError(
            f"the probe {which} was fitted for other weights: expected {preset.name} with hash {expected[:12]}, "
            f"found {named(of)} with {named(found)[:12]}. Fit one with `disa fit-probe`."
        )
    width = preset.spec.architecture.condition_width
    if probe.width != width:
        raise DisaError(
            f"the probe {which} is fed {counted(probe.width, 'value')} of each row, but {preset.name} says "
            f"{width}: fit one with `disa fit-probe`."
        )
    return probe
