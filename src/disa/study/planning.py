"""Make a plan: times, updates and counts for every AR step, measured on the states that the model itself draws.

Passes over the AR steps of some images, each a drawing by the settings given:

1. *spread*: where the original sampler adds noise, how much its draws of one row vary, beside the ends of paths that
   add none: networks are not exact, and the two differ by up to a third. Rows begin with noise scaled to match.
2. *paths*: the probability-flow ODE in many small steps, from which the error of every single step follows (times.py);
   the best times for every n by dynamic programming.
3. *updates*: along these times, the weights of each update that come nearest to the path, by least squares, where the
   state is what the updates before it made of it.
4. *errors*: on the other half of the images, how far each course ends from the path, and of courses that begin alike
   (looks.py) how far each row does, by what its second evaluation changes.
5. *gains*: how far an error in an AR step moves the picture (calibrate.py).

What a pass has measured is a sum over rows, kept in a file after every batch: an interrupted work goes on there.

Shapes: K AR steps, G stretches of them, N the most denoising steps of a course, R rows, M draws of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core.allocate import pooled
from disa.core.courses import CalibratedSolver, Course, stretch_of
from disa.core.multistep import Update, updates
from disa.core.noise import SeededNoise
from disa.core.plans import StepPlan
from disa.core.problem import DenoisingProblem
from disa.core.solve import look_along, solve
from disa.core.solver import NUM_LOOKS, Solver
from disa.core.steps import StepPolicy, fresh
from disa.draw.inputs import Inputs
from disa.draw.resolve import facts
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings, digest
from disa.errors import DisaError
from disa.runtime import fused
from disa.runtime.surroundings import undisturbed
from disa.study.calibrate import BACKBONE, GAIN_STEPS, check_budget, gains, read_budget
from disa.study.choosing import FITTED, OWN, SOLVERS, Judged, chosen
from disa.study.looks import by_change, looked_ways, told_look
from disa.study.sums import Sums
from disa.study.times import NUM_TIMES, Candidates, best_ways, energy_distances, nearest_weights, with_nothing_before

MOST = 12
"""Denoising steps of the longest course."""
DEFAULT_BUDGET = 0.1
"""Of the evaluations that the original policy makes."""
VARIED = 4
"""Draws of one row that say how much draws vary."""
ORIGINAL = 100.0
"""Evaluations of a row that an original makes, about: for telling how long it all takes."""
SCALES = 1.1, 1.0, 0.85, 0.7, 0.55
"""Of the noise that paths begin with, which are tried."""
MOST_STRETCHES, DRAWS = 8, 2
NUM_IMAGES, FIRST_SEED = 32, 100_000
"""Images that are measured by default, on seeds that reports of quality leave alone: half to fit, half to judge."""
LOOKED = "looked at"
"""The kind of courses, with fitted updates, that rows go along after a look."""
GAINED = 8
"""Images that are disturbed."""


@dataclass(frozen=True, eq=False)
class Planning:
    """What `make_plan` is about."""

    sampler: Sampler
    settings: Settings
    fitting: Inputs
    judging: Inputs
    candidates: Candidates
    original: Settings
    """The settings with the original's number of denoising steps."""
    most: int
    sums: Sums
    on_turn: Callable[[], None]

    @property
    def num_stretches(self) -> int:
        return min(self.settings.num_ar_steps, MOST_STRETCHES)

    def start(self, problem: DenoisingProblem, noise: SeededNoise) -> Tensor:
        """[R, *shape] what rows begin with."""
        return noise.initial(problem) * self.spread

    def path(self, problem: DenoisingProblem, noise: SeededNoise) -> tuple[list[Tensor], list[Tensor]]:
        """What short courses are to follow."""
        return self.candidates.path(problem, self.start(problem, noise))

    @cached_property
    def spread(self) -> float:
        """What noise is scaled by so that the ends of paths vary as much as draws of the original sampler: one number
        for all AR steps, since single ones have few rows."""
        if not self.original.solver.stochastic:
            return 1.0
        variances = np.array([self.sums[f"spread {g}"] for g in range(self.num_stretches)]).T
        original, *paths = np.maximum(variances, np.finfo(float).tiny)
        ratios = [np.log(path / original).mean() for path in paths]
        if not ratios[0] > ratios[-1]:  # nothing varies
            return 1.0
        # They fall from the largest scale to the smallest; beyond these none is taken.
        return round(float(np.interp(0.0, ratios[::-1], SCALES[::-1])), 4)

    def stretch(self, problem: DenoisingProblem) -> int:
        return stretch_of(problem.ar_step, problem.num_ar_steps, self.num_stretches)


@undisturbed()
def make_plan(
    sampler: Sampler,
    inputs: Inputs,
    settings: Settings,
    budget: str | float = DEFAULT_BUDGET,
    most: int = MOST,
    keep: Path | None = None,
    on_turn: Callable[[], None] = lambda: None,
) -> StepPlan:
    """A plan measured on the images of the inputs, drawn with these settings.

    budget: what `--steps plan` spends when it names none, as `calibrate` takes it; more than the plan can spend is all
    that it can. most: denoising steps of the longest course. keep: a file for what has been measured so far, from which
    an interrupted work goes on. on_turn is called once per entry of `work`. Raises DisaError.
    """
    if len(inputs) < 4:
        raise DisaError(f"a plan is measured on 4 images or more, found {len(inputs)}.")
    inputs.check_alike()
    asked = check_budget(sampler, settings, budget, most)
    sampler.prepare()
    allowed, num_rows = read_budget(sampler, inputs, settings, asked)
    about = {"seeds": inputs.seeds, "inputs": inputs.numbers(), "most": most, **facts(settings, sampler)}
    original = sampler.settings(settings, steps=sampler.defaults.original)
    half, candidates = len(inputs) // 2, candidates_for(sampler, original)
    parts = inputs.part(slice(half)), inputs.part(slice(half, len(inputs)))
    # What is kept is kept by batches, so that their size counts here.
    sums = Sums(keep, digest(about | {"steps": str(settings.steps), "batch": settings.batch_size}))
    most = min(most, len(candidates))
    planning = Planning(sampler, settings, *parts, candidates, original, most, sums, on_turn)
    measure_spread(planning)
    ways = find_times(planning)
    courses = fit_updates(planning, ways)
    judged = judge(planning, courses)
    content = chosen(courses, judged, measured_gains(planning), allowed / num_rows)
    content["looks"] = [told_look(own, sums[f"looked {g}"]) for g, own in enumerate(courses[LOOKED])]
    return StepPlan(content | told(planning, about))


def candidates_for(sampler: Sampler, original: Settings) -> Candidates:
    """The path that a model's short courses are to follow, and its times. original: settings by its original policy."""
    longest = max(original.steps.counts(original.num_ar_steps))
    return Candidates.of(sampler.model.process, original.solver, longest)


def work(settings: Settings, num_images: int, most: int = MOST) -> list[float]:
    """How often `make_plan` calls `on_turn`; of each about what it costs, in evaluations of a row."""
    half, size, num_ar_steps = num_images // 2, settings.batch_size, settings.num_ar_steps
    turns = [-(-count // size) * num_ar_steps for count in (half, half, half, num_images - half)]
    backbone, every, own = BACKBONE + settings.mean_steps, most * (most + 1) / 2, len(FITTED) + len(SOLVERS) + 2
    costs = [
        (ORIGINAL + NUM_TIMES * len(SCALES)) * VARIED,
        NUM_TIMES * DRAWS,
        (NUM_TIMES + (len(FITTED) + 1) * every) * DRAWS,
        (NUM_TIMES + own * every) * DRAWS,
    ]
    passes = [backbone + cost for cost, number in zip(costs, turns, strict=True) for _ in range(number)]
    return passes + [BACKBONE + GAIN_STEPS] * ((num_ar_steps + 1) * num_ar_steps)


# -- passes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visiting:
    """A policy that answers as another does; before, it shows the problem with draws of noise for its rows."""

    policy: StepPolicy
    noises: list[SeededNoise]
    visit: Callable[[DenoisingProblem, list[SeededNoise]], None]

    def __call__(self, problem: DenoisingProblem) -> Any:
        self.visit(problem, self.noises)
        return self.policy(problem)


def visiting(
    planning: Planning, name: str, inputs: Inputs, visit: Callable[[DenoisingProblem, list[SeededNoise]], None]
) -> None:
    """Draw the inputs and show every AR step's problem; what `visit` adds to the sums is kept after each batch."""
    sampler, settings = planning.sampler, planning.settings
    for batch in Run(sampler, inputs, settings, "latent").batches_of:
        part = inputs.part(batch)
        noise = SeededNoise(part.seeds, sampler.device, fused.normals)
        policy = Visiting(fresh(settings.steps), [noise, *(noise.branch(i) for i in range(1, DRAWS))], visit)
        with planning.sums.once(f"{name} {batch[0]}") as missing:
            turns: Iterator[Any] = iter(range(settings.num_ar_steps))
            if missing:
                turns = Run(sampler, part, replace(settings, steps=policy), "latent")
            for _ in turns:
                planning.on_turn()


def measure_spread(planning: Planning) -> None:
    """How much draws of a row vary: those of the original sampler, and ends of paths from noise of several scales."""
    sums, original, candidates = planning.sums, planning.original, planning.candidates

    def visit(problem: DenoisingProblem, noises: list[SeededNoise]) -> None:
        if not original.solver.stochastic:
            return
        counts, every = original.steps(problem), [noises[0].branch(DRAWS + i) for i in range(VARIED)]
        drawn = [torch.stack([solve(problem, original.solver, counts, noise).tokens for noise in every])]
        starts = [noise.initial(problem) for noise in every]
        drawn += [torch.stack([candidates.path(problem, start * s)[0][-1] for start in starts]) for s in SCALES]
        variances = [x.cpu().double().var(0).sum().item() for x in drawn]
        sums.add(f"spread {planning.stretch(problem)}", np.array(variances))

    visiting(planning, "spread", planning.fitting, visit)


def find_times(planning: Planning) -> dict[str, list[list[list[int]]]]:
    """By kind [G][N][n] the places, among the candidates, of the times that courses of n steps visit."""
    candidates, sums = planning.candidates, planning.sums

    def visit(problem: DenoisingProblem, noises: list[SeededNoise]) -> None:
        paths, stretch = [planning.path(problem, noise) for noise in noises], planning.stretch(problem)
        for states, data in paths:
            sums.add(f"moments {stretch}", candidates.moments(states, data))
        states, data = (torch.stack([torch.stack(path[i]).flatten(2) for path in paths], dim=1) for i in (0, 1))
        added = torch.stack([noise.added(problem, 1)[0] for noise in noises]).flatten(2)
        sums.add(f"energies {stretch}", candidates.errors_with_noise(states, data, added))

    visiting(planning, "paths", planning.fitting, visit)
    ways: dict[str, list[list[list[int]]]] = {kind: [] for kind in (*FITTED, *SOLVERS, LOOKED)}
    for stretch in range(planning.num_stretches):
        moments, energies = sums[f"moments {stretch}"], sums[f"energies {stretch}"]
        own, nearest = (candidates.errors(moments, fitted) for fitted in (False, True))
        plain, fitted = (best_ways(errors, planning.most) for errors in (own, nearest))
        with_noise = best_ways(with_nothing_before(np.sqrt(np.maximum(energies, 0))), planning.most)
        looked = looked_ways(nearest, planning.most)
        for kind, found in zip(ways, (plain, fitted, plain, with_noise, looked), strict=True):
            ways[kind].append(found)
    return ways


def fit_updates(planning: Planning, ways: dict[str, list[list[list[int]]]]) -> dict[str, list[list[Course]]]:
    """By kind [G][N] the courses along these times."""
    candidates, sums = planning.candidates, planning.sums

    def visit(problem: DenoisingProblem, noises: list[SeededNoise]) -> None:
        stretch = planning.stretch(problem)
        for noise in noises:
            start = planning.start(problem, noise)
            states, _ = candidates.path(problem, start)
            for kind in (*FITTED, LOOKED):
                for way in ways[kind][stretch]:
                    products = fit_along(problem, start, candidates, way, states)
                    sums.add(f"products {kind} {stretch} {len(way)}", products)

    visiting(planning, "updates", planning.fitting, visit)
    courses: dict[str, list[list[Course]]] = {kind: [] for kind in ways}
    for kind, stretches in ways.items():
        for stretch, found in enumerate(stretches):
            courses[kind].append([])
            for way in found:
                grid = candidates.part(way)
                by = updates(candidates.process, grid, SOLVERS.get(kind, 0.0))
                if kind in (*FITTED, LOOKED):
                    by = fitted_updates(sums[f"products {kind} {stretch} {len(way)}"], by)
                courses[kind][-1].append(Course(tuple(grid.times.tolist()), tuple(by)))
    return courses


def fit_along(
    problem: DenoisingProblem, start: Tensor, candidates: Candidates, way: list[int], states: list[Tensor]
) -> np.ndarray:
    """[n, 4, 4] for each step of a course from start [R, *shape] the inner products of state, predicted data, those of
    the step before, and where the path is after the step. Steps are made with the weights that fit these rows."""
    grid = candidates.part(way)
    bound, levels, x, before = problem.field.on(grid), grid.levels.tolist(), start, torch.zeros_like(start)
    found = []
    for i, update in enumerate(updates(candidates.process, grid)):
        data = candidates.process.data(x, bound(x, i).value, levels[i])
        target = states[way[i + 1] if i + 1 < len(way) else -1]
        parts = torch.stack([x, data, before, target]).flatten(1).cpu().double()
        found.append((parts @ parts.T).numpy())
        keep, now, then, _ = fitted_updates(found[-1][None], (update,), first=not i)[0]
        x, before = x * keep + data * now + before * then, data
    return np.stack(found)


def fitted_updates(products: np.ndarray, prior: Sequence[Update], first: bool = True) -> list[Update]:
    """The updates of n steps that fit inner products [n, 4, 4] best, held to those of the solver."""
    used = np.array([2 if first and not i else 3 for i in range(len(prior))])
    weights = nearest_weights(products[:, :3, :3], products[:, :3, 3], np.array(prior)[:, :3], used)
    return [Update(keep, now, before, 0.0) for keep, now, before in weights.round(7).tolist()]


def judge(planning: Planning, courses: dict[str, list[list[Course]]]) -> Judged:
    """The errors of all courses, and of the settings' own solver, on images that nothing was fitted to."""
    sums, own = planning.sums, planning.settings.solver
    calibrated = {
        kind: CalibratedSolver(tuple(map(tuple, stretches)), spread=planning.spread)
        for kind, stretches in courses.items()
    }
    looked = calibrated.pop(LOOKED)
    solvers: dict[str, Solver] = {OWN: own, **calibrated}

    def visit(problem: DenoisingProblem, noises: list[SeededNoise]) -> None:
        stretch, k = planning.stretch(problem), problem.ar_step
        ends = [planning.path(problem, noise)[0][-1] for noise in noises]
        right = torch.stack(ends).flatten(2)
        sums.add(f"count {stretch}", float(problem.num_rows))
        sums.add(f"rows {k}", float(problem.num_rows))
        for kind, solver in solvers.items():
            apart, energy, squares, costs = (np.zeros(planning.most) for _ in range(4))
            for n in range(1, planning.most + 1):
                solved = [solve(problem, solver, n, noise) for noise in noises]
                found = torch.stack([each.tokens for each in solved]).flatten(2)
                apart[n - 1] = (found - right).square().sum().item() / len(noises)
                distances = energy_distances(found, right)
                energy[n - 1], squares[n - 1] = distances.sum().item(), distances.square().sum().item()
                costs[n - 1] = solved[0].evaluations
            sums.add(f"apart {kind} {stretch}", apart)
            sums.add(f"energy {kind} {stretch}", energy)
            sums.add(f"squares {kind} {stretch}", squares)
            sums.add(f"costs {kind} {k}", costs)
        look(problem, noises, ends)

    def look(problem: DenoisingProblem, noises: list[SeededNoise], ends: list[Tensor]) -> None:
        solver = looked.at(problem.ar_step, problem.num_ar_steps)
        for noise, end in zip(noises, ends, strict=True):
            every = [solve(problem, looked, n, noise).tokens for n in range(NUM_LOOKS, planning.most + 1)]
            squares = torch.stack([(tokens - end).square().flatten(1).sum(1) for tokens in every])
            change = look_along(problem, solver, noise).change
            sums.add(f"looked {planning.stretch(problem)}", by_change(change, squares.cpu().double().numpy()))

    visiting(planning, "errors", planning.judging, visit)
    stretches, every = range(planning.num_stretches), range(planning.settings.num_ar_steps)

    def means(name: str, kind: str) -> np.ndarray:
        return np.stack([sums[f"{name} {kind} {g}"] / sums[f"count {g}"] for g in stretches])

    number, counts = len(planning.judging), np.array([sums[f"count {g}"] for g in stretches])[:, None]
    energy = {kind: means("energy", kind) for kind in solvers}
    spread = {kind: np.maximum(means("squares", kind) - energy[kind] ** 2, 0) for kind in solvers}
    return Judged(
        {kind: means("apart", kind) for kind in solvers},
        energy,
        {kind: np.sqrt(squares / counts) for kind, squares in spread.items()},
        {kind: np.stack([sums[f"costs {kind} {k}"] for k in every]) / number for kind in solvers},
        np.array([float(sums[f"rows {k}"]) for k in every]) / number,
    )


def measured_gains(planning: Planning) -> np.ndarray:
    """[K] the squared change of the picture for each unit of squared error."""
    with planning.sums.once("gains") as missing:
        if missing:
            inputs = planning.fitting.part(slice(min(GAINED, len(planning.fitting))))
            planning.sums.add("gains", np.array(gains(planning.sampler, inputs, planning.settings, planning.on_turn)))
        else:
            for _ in range((planning.settings.num_ar_steps + 1) * planning.settings.num_ar_steps):
                planning.on_turn()
    return np.exp(pooled(np.log(planning.sums["gains"])))


def told(planning: Planning, about: dict[str, Any]) -> dict[str, Any]:
    """What a plan says of how it was made."""
    measured_for = {
        name: value for name, value in facts(planning.settings, planning.sampler).items() if name != "solver"
    }
    return {
        "measured_for": measured_for,
        "model": planning.sampler.preset.name,
        "spread": planning.spread,
        "measured_with": about,
    }
