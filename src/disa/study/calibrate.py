"""Where denoising steps pay: the error curve of every AR step, and the counts that spend a budget of evaluations best.

Errors are measured along paths that a long reference draws: every AR step is solved again with each count of a ladder,
from the same state and on the same noise. A stochastic solver with few steps is given sums of the reference's noise, as
a path of Brownian motion would be; each sum is standard normal, so its distribution stays what it is, and the mean
squared distance of such pairs bounds the squared Wasserstein distance of the two distributions from above.

Shapes: N images, B of a batch, R rows, K AR steps, S counts of the ladder, n denoising steps, T of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core import texts
from disa.core.allocate import allocate, between, pooled
from disa.core.counts import denoising_steps
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, DenoisingProblem, Grid, Noise, Process, TimeGrid
from disa.core.solve import solve
from disa.core.solver import AtARStep, Solver
from disa.core.solvers import grid_for
from disa.core.steps import Constant, Schedule, StepPolicy, Table, fresh
from disa.draw.inputs import Inputs
from disa.draw.resolve import facts
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime import fused
from disa.runtime.surroundings import undisturbed
from disa.values import many, number, plain_number, shown

LADDER = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 25, 32, 40, 50, 64, 80, 100)
NUM_IMAGES, FIRST_SEED = 16, 100_000
"""Images that are measured by default, on seeds that reports of quality leave alone."""
GAIN_STEPS, NUDGE = 8, 0.1
"""Denoising steps of the paths that are disturbed, and the disturbance, beside latents of about unit variance."""
BACKBONE = 8.0
"""Evaluations that take about as long as the backbone in an AR step: for telling how long it all takes."""
SMALLEST_GAIN = 1e-6
"""Of an image that does not show the disturbance at all, such as where it is black before and after."""


@dataclass(frozen=True)
class Curves:
    """What was measured."""

    counts: list[int]
    """[S] of the ladder."""
    errors: list[list[float]]
    """[K, S] squared distance from the reference, summed over the tokens of an image, mean over images."""
    evaluations: list[list[float]]
    """[K, S] made for an image."""
    gains: list[float]
    """[K] squared change of the picture for each unit of squared error in an AR step."""


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` returns."""

    table: Table
    curves: Curves
    budget: float
    """Evaluations of an image that were allowed."""
    evaluations: float
    """Evaluations of an image that the table makes."""
    evaluations_per_row: float
    error: float
    """The error that the curves expect of the table."""
    about: dict[str, Any]

    def report(self) -> dict[str, Any]:
        """The table with its provenance, as `disa.table` reads it."""
        return {
            "counts": list(self.table.values),
            "measured_for": dict(self.table.measured_for),
            "budget": self.budget,
            "evaluations": self.evaluations,
            "evaluations_per_row": self.evaluations_per_row,
            "error": self.error,
            "curves": vars(self.curves),
            **self.about,
        }


@undisturbed()
def calibrate(
    sampler: Sampler,
    inputs: Inputs,
    settings: Settings,
    budgets: Sequence[str | float] | str | float,
    reference: int = 200,
    on_turn: Callable[[], None] = lambda: None,
) -> list[Calibration]:
    """Measure on the images of the inputs, drawn with these settings, and spend each of the budgets.

    budgets: shares of the evaluations of the preset's original policy (`0.3`), evaluations per row (`20`), or policies
    that make as many (`linear:50-5`). reference: denoising steps that count as no error. on_turn is called
    once per entry of `work`. Raises DisaError.
    """
    inputs.check_alike()
    reference = denoising_steps(reference, "the reference")
    counts = ladder(sampler, settings, reference)
    asked = many(budgets, lambda budget, _: check_budget(sampler, settings, budget, counts[-1]), "budgets")
    sampler.prepare()
    affordable = [read_budget(sampler, inputs, settings, budget) for budget in asked]
    curves = measure(sampler, inputs, settings, counts, reference, on_turn)
    about = {
        "model": sampler.preset.name,
        "num_ar_steps": settings.num_ar_steps,
        "reference": reference,
        "num_images": len(inputs),
        **inputs.numbers(),
    }
    every = np.arange(1, counts[-1] + 1)
    made = [grid_for(settings.solver, sampler.model.process, int(count)).num_evaluations for count in every]
    known = [made[count - 1] for count in counts]
    weights = np.exp(pooled(np.log(curves.gains)))
    errors = np.stack([between(known, row, made) for row in pooled(np.array(curves.errors))]) * weights[:, None]
    costs = costs_of(sampler, settings, every, np.array(curves.evaluations), counts)
    found = []
    for budget, (allowed, num_rows) in zip(asked, affordable, strict=True):
        chosen = allocate(errors, costs, allowed)
        table = Table(tuple(int(every[i]) for i in chosen), "", facts(settings, sampler))
        evaluations, _ = _made(sampler, inputs, settings, table)
        error = float(errors[range(len(chosen)), chosen].sum())
        own = about | {"asked_budget": budget if isinstance(budget, str) else plain_number(budget)}
        found.append(Calibration(table, curves, allowed, evaluations, evaluations / num_rows, error, own))
    return found


# -- the budget ----------------------------------------------------------------------------------------------------


def check_budget(sampler: Sampler, settings: Settings, budget: Any, longest: int) -> float | str:
    """A budget as a number, or as the text of a policy, before anything is drawn. Raises DisaError.

    longest: denoising steps of a row that are measured; what would take more cannot be spent.
    """
    large = f"the budget {shown(budget)} is more than {longest} denoising steps of each row take, which is"
    if isinstance(budget, str) and not _is_number(budget):
        policy = sampler.settings(settings, steps=budget).steps
        counts = policy.counts(settings.num_ar_steps) if isinstance(policy, Schedule) else [1]
        if sum(counts) > longest * len(counts):
            raise DisaError(f"{large} the most that is measured: spend less.")
        return budget
    found = number(budget, "a budget")
    if found <= 0:
        raise DisaError(f"a budget must be above 0, found {shown(budget)}.")
    most = grid_for(settings.solver, sampler.model.process, longest).num_evaluations
    most *= 2 if settings.guidance.active else 1
    if found > max(1, most):
        raise DisaError(f"{large} the most that is measured, {most} evaluations: spend less.")
    return found


def _is_number(text: str) -> bool:
    """Whether it is meant as a number, be it infinite."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def read_budget(sampler: Sampler, inputs: Inputs, settings: Settings, budget: float | str) -> tuple[float, float]:
    """Evaluations of an image that a budget allows, and rows of an image; counted on one image, nothing is derived."""
    fewest, rows = _made(sampler, inputs, settings, Constant(1))
    if isinstance(budget, str):
        allowed, _ = _made(sampler, inputs, settings, budget)
    elif budget > 1:
        allowed = budget * rows
    else:
        allowed = budget * _made(sampler, inputs, settings, sampler.preset.defaults.original)[0]
    if allowed < fewest:
        raise DisaError(
            f"the budget {budget} is {allowed / rows:.3g} evaluations per row, and one denoising step takes "
            f"{fewest / rows:.3g}: expected at least that."
        )
    return allowed, rows


def _made(sampler: Sampler, inputs: Inputs, settings: Settings, policy: str | Schedule) -> tuple[int, int]:
    """Evaluations and rows of the first image under a policy, counted while it is drawn."""
    samples = sampler.start(inputs.part(slice(1)), settings, "latent", steps=policy).result()
    return samples.evaluations, samples.rows


def ladder(sampler: Sampler, settings: Settings, reference: int) -> list[int]:
    """The counts to be measured: up to twice what the original policy has, and to half of the reference."""
    original = texts.parse(sampler.preset.defaults.original).counts(settings.num_ar_steps)
    longest = min(2 * max(original), reference // 2)
    if longest < 2:
        raise DisaError(f"a reference needs 4 denoising steps or more to measure others by, found {reference}.")
    for count in (*LADDER, reference):
        if count <= longest or count == reference:
            grid_for(settings.solver, sampler.model.process, count)
    return [count for count in LADDER if count <= longest]


# -- measuring -----------------------------------------------------------------------------------------------------


def work(inputs: Inputs, settings: Settings, evaluations: float) -> list[float]:
    """How often `calibrate` calls `on_turn`, and `fit_probe`: both draw the inputs, then measure their gains. Of each
    about what it costs. evaluations: of a row while it is drawn and measured."""
    drawn, num_ar_steps = settings.num_turns(len(inputs)), settings.num_ar_steps
    gained = (num_ar_steps + 1) * num_ar_steps
    return [BACKBONE + evaluations] * drawn + [BACKBONE + GAIN_STEPS] * gained


def measure(
    sampler: Sampler,
    inputs: Inputs,
    settings: Settings,
    counts: list[int],
    reference: int,
    on_turn: Callable[[], None],
) -> Curves:
    """Errors, evaluations and gains of every AR step. The paths are drawn by the policy of the settings."""
    shape, size = (settings.num_ar_steps, len(counts)), settings.batch_size
    errors, evaluations = np.zeros(shape), np.zeros(shape)
    for batch in Run(sampler, inputs, settings, "latent").batches_of:
        part = inputs.part(batch)
        noise = SeededNoise(part.seeds, sampler.device, fused.normals)
        ruler = Ruler(fresh(settings.steps), settings.solver, counts, reference, noise, errors, evaluations)
        for _ in Run(sampler, part, replace(settings, steps=ruler), "latent"):
            on_turn()
    number = len(inputs)
    return Curves(
        counts,
        (errors / number).tolist(),
        (evaluations / number).tolist(),
        gains(sampler, inputs.part(slice(size)), settings, on_turn),
    )


@dataclass(frozen=True)
class Ruler:
    """A policy that answers as another does; before, it solves the problem with every count and with the reference.

    It adds what it measures to `errors` and `evaluations` [K, S].
    """

    policy: StepPolicy
    solver: Solver
    counts: list[int]
    reference: int
    noise: Noise
    errors: np.ndarray
    evaluations: np.ndarray

    def __call__(self, problem: DenoisingProblem) -> Any:
        right = solve(problem, self.solver, self.reference, self.noise).tokens
        for i, count in enumerate(self.counts):
            noise = Summed.of(self.noise, problem.process, self.solver, count, self.reference)
            solution = solve(problem, self.solver, count, noise)
            self.errors[problem.ar_step, i] += (solution.tokens - right).cpu().double().square().sum().item()
            self.evaluations[problem.ar_step, i] += solution.evaluations
        return self.policy(problem)


@dataclass(frozen=True)
class Summed:
    """Noise of n denoising steps out of that of T and some of its own."""

    noise: Noise
    weights: Tensor
    """[n, draws], rows orthonormal."""

    @classmethod
    def of(cls, noise: Noise, process: Process, solver: Solver, count: int, reference: int) -> Summed:
        return cls(noise, _weights(process, solver, count, reference))

    def orders(self, num_tokens: int) -> Tensor:
        return self.noise.orders(num_tokens)

    def initial(self, problem: DenoisingProblem) -> Tensor:
        return self.noise.initial(problem)

    def added(self, problem: DenoisingProblem, num_steps: int) -> Tensor:
        draws = self.noise.added(problem, self.weights.shape[1])
        return torch.tensordot(self.weights.to(draws), draws, dims=1)


@cache
def _weights(process: Process, solver: Solver, count: int, reference: int) -> Tensor:
    """How the noise over each coarse step is made of that over the fine ones, in shares of their time.

    Where a fine step is cut, its noise x becomes that of the pieces: p x + (1 - p p^T) y, p the roots of their shares
    and y noise of their own.
    """
    coarse, fine = (grid_for(solver, process, number) for number in (count, reference))
    # The last step of a diffusion starts at time 0 and has a length too.
    ends = np.unique(np.concatenate([coarse.times, fine.times, [-1e-3]]))[::-1]
    lengths, middles = -np.diff(ends), (ends[:-1] + ends[1:]) / 2
    within, of = _roots(coarse, lengths, middles), _roots(fine, lengths, middles).T
    own = within @ (np.eye(len(lengths)) - of @ of.T)
    return torch.from_numpy(np.concatenate([within @ of, own], axis=1)).float()


def _roots(grid: TimeGrid, lengths: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """[n, pieces] the root of each piece's share of a step's time."""
    step = np.searchsorted(-grid.times, -middles, side="right") - 1
    inside = lengths * (step == np.arange(grid.num_evaluations)[:, None])
    return np.sqrt(inside / inside.sum(axis=1, keepdims=True))


def gains(sampler: Sampler, inputs: Inputs, settings: Settings, on_turn: Callable[[], None]) -> list[float]:
    """[K] what a small disturbance of the tokens of an AR step does to the picture, everything else the same.

    Squared change of the picture, whose values are from 0 to 1, for a unit of squared disturbance: more where what is
    drawn later follows it, less where it is drawn over or hardly seen. The geometric mean over images, so that a few
    that become another image do not decide. Raises DisaError.
    """
    if settings.rewrite and inputs.prompts is not None:
        inputs = replace(inputs, prompts=sampler.rewrite(inputs.prompts, inputs.seeds))
        settings = replace(settings, rewrite=False)

    def pictures(solver: Solver) -> Tensor:
        together = replace(settings, steps=Constant(GAIN_STEPS), solver=solver, batch_size=len(inputs))
        images = Run(sampler, inputs, together).result(on_turn).images
        assert isinstance(images, Tensor)
        return images.double()

    others = SeededNoise(inputs.seeds, sampler.device, fused.normals).branch(0)
    undisturbed, found = pictures(settings.solver), []
    for ar_step in range(settings.num_ar_steps):
        nudged = Nudged(settings.solver, ar_step, others)
        change = (pictures(nudged) - undisturbed).square().flatten(1).sum(1)
        found.append((change / nudged.squares[-1]).clamp(min=SMALLEST_GAIN).log().mean().exp().item())
    return found


@dataclass
class Nudged(AtARStep):
    """A solver whose tokens are disturbed in one AR step."""

    solver: Solver
    ar_step: int
    noise: Noise
    squares: list[Tensor] = field(default_factory=list)
    """Of every batch [B] sums of the squared disturbances of each image."""

    def at(self, ar_step: int, num_ar_steps: int) -> Nudged:
        own = self.solver
        return replace(self, solver=own.at(ar_step, num_ar_steps)) if isinstance(own, AtARStep) else self

    @property
    def grid(self) -> Grid | None:
        return self.solver.grid

    @property
    def takes(self) -> tuple[str, ...]:
        return self.solver.takes

    @property
    def stochastic(self) -> bool:
        return self.solver.stochastic

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        return self.solver.plan(process, num_steps)

    def run(self, bound: Bound, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        tokens = self.solver.run(bound, problem, grid, x, noise)
        if problem.ar_step != self.ar_step:
            return tokens
        nudge = NUDGE * self.noise.initial(problem)
        self.squares.append(torch.bincount(problem.image.cpu(), nudge.cpu().double().square().flatten(1).sum(1)))
        return tokens + nudge


# -- curves --------------------------------------------------------------------------------------------------------


def costs_of(
    sampler: Sampler, settings: Settings, every: np.ndarray, evaluations: np.ndarray, counts: Sequence[int]
) -> np.ndarray:
    """[K, len(every)] evaluations of an image at counts that were not measured, from those that were.

    A grid says how many evaluations a count makes and how many of them guidance can double; what was counted says how
    often each is made in an AR step.
    """
    grids = [grid_for(settings.solver, sampler.model.process, int(count)) for count in every]
    shares = np.array([[grid.num_evaluations, sum(grid.within(settings.guidance.interval))] for grid in grids])
    at = np.searchsorted(every, counts)
    per_share = np.linalg.lstsq(shares[at], evaluations.T, rcond=None)[0]
    return (shares @ per_share).T.round(6)
