"""Fit a probe, and measure how every score goes with the error of few denoising steps.

While images are drawn with the settings given, each AR step is solved again: from the noise that it began with, along
the probability-flow ODE, in many and in few steps. How far these end apart is the error of few steps; how far the first
prediction is from the end of the long path, that of predicting from z alone. Nothing of the drawing is changed.

Shapes: R rows, N rows of all images, D condition width, J shares of the AR steps, Q quantiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch as safetensors
import torch
from torch import Tensor

from disa.core.noise import SeededNoise
from disa.core.problem import ARStep, DenoisingProblem
from disa.core.solve import looking
from disa.core.solvers import ode_solver
from disa.core.spending import parse_spending
from disa.draw.inputs import Inputs
from disa.draw.resolve import facts
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.files import write_whole
from disa.policies.adaptive import COSTS, above, counts_between
from disa.policies.probe import ErrorModel, FittedProbe
from disa.policies.scores import SMALLEST, Probe, Score, features, learned_variance, spread_of_draws
from disa.runtime.surroundings import undisturbed
from disa.study.calibrate import gains
from disa.study.ranks import spearman
from disa.values import counted, whole_number

FEW, MORE, MANY = 4, 8, 20
"""Steps of the whole path."""
SHARES, QUANTILES, GROUPS = 16, 32, 10
NUDGED = 8
"""Images that show what an error of one AR step does to the whole."""
EVALUATIONS = MANY + MORE + FEW + COSTS["variance:draws"]
"""Of a row, to measure it."""
FEWEST_IMAGES = 8
ITERATIONS, TRIED = 600, 20


@dataclass(frozen=True)
class ProbeReport:
    """What `fit_probe` returns: the fitted probe, and how good it is on images that it did not learn from."""

    probe: FittedProbe
    r2: dict[str, float]
    """Of the probe's two predictions, which are logs of errors."""
    agreement: dict[str, tuple[float, float]]
    """Rank correlations of every score with the error of few steps: over all rows, and the mean over AR steps of that
    between the rows of one."""

    def report(self) -> dict[str, Any]:
        """For JSON."""
        lines = {
            name: {
                "slope": k.slope,
                "rank_correlation": self.agreement[name][0],
                "rank_correlation_within": self.agreement[name][1],
            }
            for name, k in self.probe.error_models.items()
        }
        known = next(iter(self.probe.error_models.values()))
        more = {"power": known.power, "importance": known.importance.tolist()}
        return dict(self.probe.about) | {"held_out_r2": self.r2, "scores": lines} | more


@dataclass(frozen=True)
class Rows:
    """What was measured of every row. All but the features are [N]; errors are mean squares."""

    features: Tensor
    """[N, D + 1] what a probe is fed."""
    few: Tensor
    """The error of few steps."""
    more: Tensor
    """The error of more steps."""
    prediction: Tensor
    """The error of predicting in one evaluation."""
    size: Tensor
    """Values of a row."""
    image: Tensor
    ar_step: Tensor
    scores: Mapping[str, Tensor]


@undisturbed()
def fit_probe(
    sampler: Sampler,
    inputs: Inputs,
    settings: Settings,
    seed: int = 0,
    on_turn: Callable[[], None] = lambda: None,
    own: Mapping[str, Score] | None = None,
) -> ProbeReport:
    """Draw the inputs and fit. own: further scores, such as a researcher's, by name. on_turn is called
    as often as `disa.study.calibrate.work` says. Raises DisaError."""
    if len(inputs) < FEWEST_IMAGES:
        found = counted(len(inputs), "image")
        raise DisaError(f"a probe is fitted on {FEWEST_IMAGES} images or more, found {found}.")
    seed = whole_number(seed, "the seed of a probe", 0, 2**63 - 1)
    inputs.check_alike()
    sampler.prepare()
    rows = measure(Run(sampler, inputs, settings, "latent"), on_turn, own or {})
    weights = importance(sampler, inputs, settings, rows, on_turn)
    return fit_rows(rows, weights, sampler, inputs, settings, seed)


def fit_rows(
    rows: Rows, weights: Tensor, sampler: Sampler, inputs: Inputs, settings: Settings, seed: int
) -> ProbeReport:
    """The same from what was measured; weights: [J] see `importance`.

    Half of the images is learned from, a quarter says when to stop, and a quarter how good the probe is.
    """
    learned, held = rows.image % 2 == 1, rows.image % 4 == 0
    targets = torch.stack([rows.few, rows.prediction], dim=1).clamp(min=SMALLEST).log().float()
    probe = _train(rows.features, targets, learned, ~learned & ~held, seed)
    predicted = probe(rows.features).detach().double()
    r2 = {name: _r2(predicted[held, i], targets[held, i]) for i, name in enumerate(("few_steps", "prediction"))}
    scores = {"mlp": predicted[:, 0], "variance:probe": predicted[:, 1], **rows.scores}
    few, more = (float(errors.mean().clamp(min=SMALLEST)) for errors in (rows.few, rows.more))
    power = min(max(math.log(few / more) / math.log(MORE / FEW), 0.5), 4.0)
    error_models, agreement = {}, {}
    for name, score in scores.items():
        slope, height = _line(score[~learned], rows.few[~learned])
        intercept = height + power * math.log(FEW)
        needs = intercept + slope * score + weights[rows.ar_step * SHARES // settings.num_ar_steps]
        error_models[name] = ErrorModel(
            slope,
            intercept,
            power,
            _threshold(needs, power, name, sampler),
            weights,
            _later(needs, rows.ar_step, settings.num_ar_steps),
        )
        agreement[name] = _agreement(score[held], rows.few[held], rows.ar_step[held])
    about = {
        "model": sampler.preset.name,
        "seed": seed,
        "images": len(inputs),
        "first_seed": inputs.seeds[0],
        "rows": len(rows.few),
        "num_ar_steps": settings.num_ar_steps,
        "measured_for": facts(settings, sampler),
    }
    return ProbeReport(FittedProbe(probe, error_models, about), r2, agreement)


# -- measuring -----------------------------------------------------------------------------------------------------


def measure(run: Run, on_turn: Callable[[], None], own: Mapping[str, Score]) -> Rows:
    """Every row of a run, image by image, whatever the batches are."""
    parts, num_ar_steps, images = [], run.settings.num_ar_steps, 0
    for turn in run:
        parts.append(_measure_turn(turn.step, turn.noise, images, own))
        images += 0 if turn.samples is None else len(turn.batch)
        on_turn()
    scores = {name: torch.cat([part.scores[name] for part in parts]) for name in parts[0].scores}
    columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "scores"}
    order = (columns["image"] * num_ar_steps + columns["ar_step"]).argsort(stable=True)
    return Rows(
        **{name: values[order] for name, values in columns.items()},
        scores={name: values[order] for name, values in scores.items()},
    )


@torch.no_grad()
def _measure_turn(step: ARStep, noise: SeededNoise, images: int, own: Mapping[str, Score]) -> Rows:
    problem = step.problem
    start = noise.initial(problem)
    first, end = _along(problem, start, MANY)
    few, more = (_along(problem, start, count)[1] for count in (FEW, MORE))
    scores: dict[str, Tensor] = {"variance:draws": spread_of_draws(problem)}
    if problem.process.learns_variance:
        scores["variance:head"] = learned_variance(problem)
    scores |= {name: score(problem) for name, score in own.items()}
    return Rows(
        features=features(problem).cpu(),
        few=_distance(few, end),
        more=_distance(more, end),
        prediction=_distance(first, end),
        image=problem.image.cpu() + images,
        ar_step=torch.full((problem.num_rows,), step.ar_step),
        size=torch.full((problem.num_rows,), math.prod(problem.shape)),
        scores={name: score.cpu().double() for name, score in scores.items()},
    )


def importance(sampler: Sampler, inputs: Inputs, settings: Settings, rows: Rows, on_turn: Callable[[], None]) -> Tensor:
    """[J] the log of what an error of one row in each J-th of the AR steps adds to that of the picture, from 0 on."""
    found = torch.tensor(gains(sampler, inputs.part(slice(NUDGED)), settings, on_turn), dtype=torch.float64)
    place = torch.arange(SHARES) * settings.num_ar_steps / SHARES
    first, last = place.floor().long(), ((place + settings.num_ar_steps / SHARES).ceil().long())
    sizes = torch.stack([rows.size[rows.ar_step == k].double().mean() for k in range(settings.num_ar_steps)])
    reached = (found * sizes).clamp(min=SMALLEST)
    log = torch.stack([reached[a:b].mean().log() for a, b in zip(first.tolist(), last.tolist(), strict=True)])
    return log - log.min()


def _along(problem: DenoisingProblem, start: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """The data predicted at the start [R, *shape], and the end of the probability-flow ODE from there."""
    solver = ode_solver(problem.process)
    grid = solver.plan(problem.process, num_steps)
    bound, looked = looking(problem, grid, (0,))
    end = solver.run(bound, problem, grid, start.clone(), torch.empty(0))
    return looked[0], end


def _distance(one: Tensor, other: Tensor) -> Tensor:
    """[R] mean squared difference."""
    return (one - other).cpu().double().square().flatten(1).mean(1)


# -- fitting -------------------------------------------------------------------------------------------------------


@torch.enable_grad()
def _train(inputs: Tensor, targets: Tensor, learned: Tensor, judged: Tensor, seed: int) -> Probe:
    """The probe that predicts targets [N, 2] from inputs [N, D + 1]: the best on the rows `judged` that was met while
    it learned from the rows `learned`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(inputs.shape[1])
    probe.mean.copy_(inputs[learned].mean(0))
    probe.scale.copy_(inputs[learned].std(0).clamp(min=1e-6))
    probe.output.bias.data.copy_(targets[learned].mean(0))
    probe.output.weight.data.zero_()
    optimiser = torch.optim.AdamW(probe.parameters(), lr=3e-3, weight_decay=0.1)
    random, places = torch.Generator().manual_seed(seed), torch.nonzero(learned).flatten()
    least, best = math.inf, probe.state_dict()
    for iteration in range(ITERATIONS):
        if iteration % TRIED == 0:
            with torch.no_grad():
                loss = float((probe(inputs[judged]) - targets[judged]).square().mean())
            if loss < least:
                least, best = loss, {name: value.clone() for name, value in probe.state_dict().items()}
        chosen = places[torch.randint(len(places), (256,), generator=random)]
        loss = (probe(inputs[chosen]) - targets[chosen]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    probe.load_state_dict(best)
    return probe.requires_grad_(False).eval()


def _line(score: Tensor, error: Tensor) -> tuple[float, float]:
    """Slope and height of the line from a score [N] to the log of the mean error of rows that score alike."""
    groups = [group for group in score.argsort().tensor_split(GROUPS) if len(group)]
    x = torch.stack([score[group].mean() for group in groups])
    y = torch.stack([error[group].mean().clamp(min=SMALLEST).log() for group in groups])
    spread = (x - x.mean()).square().sum()
    slope = max(float(((x - x.mean()) * (y - y.mean())).sum() / spread), 0.0) if spread > SMALLEST else 0.0
    return slope, float(y.mean() - slope * x.mean())


def _later(needs: Tensor, ar_step: Tensor, num_ar_steps: int) -> Tensor:
    """[J, Q] quantiles of the needs of the rows after the first 1/J, 2/J, ... of the AR steps, or of the last one."""
    first = [min(math.ceil((j + 1) / SHARES * num_ar_steps), num_ar_steps - 1) for j in range(SHARES)]
    places = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    return torch.stack([needs[ar_step >= k].quantile(places) for k in first])


def _threshold(needs: Tensor, power: float, name: str, sampler: Sampler) -> float:
    """The gain at which the rows would spend the preset's budget."""
    spending = parse_spending(sampler.preset.defaults.spending)
    assert spending.budget is not None
    counts = counts_between(spending.late, spending.early)
    low, high = float(needs.min()) - 40, float(needs.max()) + 40
    for _ in range(60):
        middle = (low + high) / 2
        spent = above(needs, counts, power, middle).double().mean() + COSTS.get(name, 0)
        low, high = (middle, high) if spent > spending.budget else (low, middle)
    return high


def _r2(predicted: Tensor, target: Tensor) -> float:
    return float(1 - (target - predicted).square().mean() / target.var(correction=0))


def _agreement(score: Tensor, error: Tensor, ar_step: Tensor) -> tuple[float, float]:
    """Rank correlations: over all rows, and the mean of those between the rows of one AR step."""
    inside = [spearman(score[ar_step == k].tolist(), error[ar_step == k].tolist()) for k in ar_step.unique()]
    return spearman(score.tolist(), error.tolist()), sum(inside) / len(inside)


def save(path: Path, probe: FittedProbe) -> Path:
    """Write a probe, as `mlp:50-5@20:FILE` reads it."""
    content = safetensors.save(probe.tensors(), probe.metadata())
    return write_whole(path, lambda file: file.write(content))
