"""`straight`: the rows of a plan get their denoising steps by how straight their paths begin.

What the second evaluation of a row changes in the predicted data is what a step of order 2 changes against one of
order 1: the error estimate of an embedded pair (Fehlberg 1969), which costs no evaluation. A plan says, for bins of
that change, which error each number of steps leaves in a row. Steps go where the next one takes off most error, over
all AR steps and bins together; where bins do not differ enough, all rows of an AR step get the count of one.

Shapes: K AR steps, G stretches of them, B bins, N the most denoising steps of a course, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core.courses import stretch_of
from disa.core.problem import DenoisingProblem, Look
from disa.core.solver import NUM_LOOKS
from disa.core.steps import WithSolver
from disa.errors import warn

SMALLEST_CHANGE = 1e-12
"""The least change whose log is taken."""
HALVINGS = 80

Choice = int | tuple[int, ...]
"""What an AR step gets: as many denoising steps for all rows, or those of each bin [B], 2 or more."""


@dataclass(frozen=True)
class Bins:
    """The rows of a stretch by what their second evaluation changes."""

    edges: np.ndarray
    """[B - 1] between the bins: logs of changes, rising."""
    shares: np.ndarray
    """[B] of the rows."""
    errors: np.ndarray
    """[B, N - 1] the squared distance that 2, 3, ... N steps leave in a row."""


@dataclass(frozen=True)
class Straight(WithSolver):
    """The policy. Its solver is `plan.solver`."""

    choices: tuple[Choice, ...] = field(repr=False)
    """[K]."""
    edges: tuple[tuple[float, ...], ...] = field(repr=False)
    """[G] of the bins, [B - 1] each."""
    source: str
    """Its text."""
    plan: Any = field(compare=False, repr=False)
    """The `StepPlan` that it is of."""

    @property
    def measured_for(self) -> Mapping[str, Any]:
        return self.plan.measured_for

    def __call__(self, problem: DenoisingProblem) -> int | Look:
        k, num_ar_steps, known = problem.ar_step, problem.num_ar_steps, len(self.choices)
        if num_ar_steps != known and k == 0:
            warn(f"{self} was measured for {known} AR steps and is stretched to {num_ar_steps}")
        choice = self.choices[stretch_of(k, num_ar_steps, known)]
        if isinstance(choice, int):
            return choice
        edges = torch.tensor(self.edges[stretch_of(k, num_ar_steps, len(self.edges))], device=problem.device)
        counts = torch.tensor(choice, device=problem.device)
        return Look(lambda change: counts[torch.bucketize(log_change(change), edges)])

    def __str__(self) -> str:
        return self.source

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; the plan too, since its file can change."""
        return {"steps": str(self), "plan": self.plan.hash, "looks": self.plan.hash_of_looks}


def log_change(change: Tensor) -> Tensor:
    """[R] float32 logs of what evaluations changed [R]."""
    return change.float().clamp(min=SMALLEST_CHANGE).log()


def choices(
    errors: np.ndarray, costs: np.ndarray, weights: np.ndarray, bins: Sequence[Bins], total: float
) -> tuple[Choice, ...]:
    """[K] the choices that leave least error for evaluations of an image that cost `total` at most, in the mean.

    errors, costs: [K, N] of an image where all rows get the same; weights: [K] what makes the errors of a row those of
    an image; bins: [G].
    """
    own = [bins[stretch_of(k, len(costs), len(bins))] for k in range(len(costs))]
    every = [_Options(*each) for each in zip(errors, costs, weights.tolist(), own, strict=True)]

    def cost(price: float) -> float:
        return sum(options.best(price)[1] for options in every)

    low, high = -700.0, 700.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(np.exp(middle)) > total else (low, middle)
    chosen = [options.best(np.exp(high)) for options in every]
    left = total - sum(spent for _, spent in chosen)
    for k, options in enumerate(every):  # what the last halving could not pay for all AR steps, it pays for some
        choice, spent = options.best(np.exp(low))
        if 0 < spent - chosen[k][1] <= left:
            left -= spent - chosen[k][1]
            chosen[k] = choice, spent
    return tuple(choice for choice, _ in chosen)


class _Options:
    """What an AR step can get: errors and costs [N] of all rows alike, and bins whose errors `weight` makes those of
    an image."""

    def __init__(self, errors: np.ndarray, costs: np.ndarray, weight: float, bins: Bins) -> None:
        self.errors, self.costs = errors, costs
        self.of_bins = bins.errors * bins.shares[:, None] * weight
        self.costs_of_bins = costs[NUM_LOOKS - 1 :] * bins.shares[:, None]

    def best(self, price: float) -> tuple[Choice, float]:
        """The choice whose error and cost at a price are least together, and its cost."""
        alike = self.errors + price * self.costs
        apart = self.of_bins + price * self.costs_of_bins
        picked = apart.argmin(axis=1)
        if apart.min(axis=1).sum() < alike.min():
            counts = tuple((picked + NUM_LOOKS).tolist())
            return counts, float(self.costs_of_bins[range(len(picked)), picked].sum())
        count = int(alike.argmin())
        return count + 1, float(self.costs[count])
