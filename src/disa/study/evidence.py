"""Why annealing works, measured on the images of a model: the three findings of DiSA (arXiv 2505.20297, section 3).

Of every AR step: how well its tokens can be predicted from z, how much they vary between draws from the same z, and how
straight their denoising paths are. All of this is done beside a generation, whose images stay those of `sample`.

Shapes: N images of a call, B of a batch, R rows, T tokens of an image in one AR step, L in all, C token channels,
D condition width, K AR steps, n evaluations along a path.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem
from disa.core.solve import Meter, solve
from disa.core.solver import Solver
from disa.core.solvers import grid_for, ode_solver
from disa.draw.inputs import Inputs
from disa.draw.preview import drawn_so_far, with_rest
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.models.layers import Swish
from disa.runtime.packing import Linear
from disa.runtime.surroundings import undisturbed
from disa.study.calibrate import BACKBONE
from disa.study.paths import straightness, variance
from disa.study.ranks import spearman

EXPECTED = {
    "error": -1,
    "r2": 1,
    "variance": -1,
    "relative_variance": -1,
    "straightness": -1,
    "relative_straightness": -1,
    "chord": 1,
}
"""The measurements, and whether the paper finds that they rise or fall with the AR step."""

FIRST_FIT_SEED = 1_000_000
SHOWN_IMAGES, SHOWN_SHARES = 4, (1 / 8, 1 / 4, 1 / 2, 3 / 4, 7 / 8)

Predict = Callable[[DenoisingProblem, SeededNoise], Tensor]
"""Tokens [R, *shape] of a problem, predicted without drawing them."""


@dataclass(frozen=True)
class Effort:
    """How much is spent on measuring."""

    draws: int = 100
    """Draws from the same z."""
    draw_steps: int = 25
    """Denoising steps of each of them."""
    varied: int = 16
    """Images whose tokens are drawn so often: the first ones."""
    path_steps: int = 50
    """Evaluations along a path."""
    fit_images: int = 256
    """Images that the MLP learns from, where one is needed."""

    def __post_init__(self) -> None:
        least = {"draws": 2, "draw_steps": 1, "varied": 1, "path_steps": 2, "fit_images": 5}
        for name, smallest in least.items():
            if (found := getattr(self, name)) < smallest:
                raise DisaError(f"{name} must be {smallest} or more to measure anything, found {found}.")


@dataclass(frozen=True)
class Curve:
    """A measurement in every AR step."""

    mean: list[float]
    """[K] over images."""
    low: list[float]
    """[K] the lower quartile between images."""
    high: list[float]
    """[K] the upper quartile."""

    @classmethod
    def of(cls, values: Sequence[Tensor]) -> Curve:
        """From one value per image [N] in each AR step, float64."""
        quartiles = torch.tensor([0.25, 0.75], dtype=torch.float64)
        low, high = torch.stack([value.quantile(quartiles) for value in values], dim=1).tolist()
        return cls([value.mean().item() for value in values], low, high)

    @property
    def correlation(self) -> float:
        """Spearman's, of the mean with the AR step; 0 where one of them is constant."""
        return spearman(range(len(self.mean)), self.mean)


@dataclass(frozen=True)
class Foresight:
    """What is there after `num_ar_steps` AR steps, gray elsewhere, and the same with the rest predicted.

    Images [up to 4, channels, height, width] in [0, 1].
    """

    num_ar_steps: int
    drawn: Tensor
    predicted: Tensor


@dataclass(frozen=True)
class Evidence:
    """What `measure` returns."""

    curves: dict[str, Curve]
    """By the names of `EXPECTED`. Error, variance and straightness (S) are squares of token values, the mean over
    channels; what is relative is divided by the variance of the tokens, as the error in R2."""
    token_variance: list[float]
    """[K] of drawn tokens about the mean of their AR step."""
    foresight: list[Foresight]
    samples: Samples
    """The images."""
    effort: Effort
    predictor: str
    """What tokens were predicted by."""
    evaluations: int
    """Made to measure, beside those that drew the images."""

    def report(self) -> dict[str, Any]:
        """Everything but images, for JSON."""
        drawn = self.samples.report()
        return {
            **{name: drawn[name] for name in ("settings", "labels", "prompts", "seeds") if name in drawn},
            "effort": asdict(self.effort),
            "predictor": self.predictor,
            "evaluations": self.samples.evaluations,
            "evaluations_to_measure": self.evaluations,
            "token_variance": self.token_variance,
            "curves": {
                name: asdict(curve) | {"correlation": curve.correlation, "expected": EXPECTED[name]}
                for name, curve in self.curves.items()
            },
        }


def work(sampler: Sampler, inputs: Inputs, settings: Settings, effort: Effort) -> list[float]:
    """About what each turn costs, in evaluations of the rows of a batch. `measure` tells of one per AR step of a
    batch, and one per draw from the same z."""
    learned = settings.num_turns(effort.fit_images) if learns(sampler) else 0
    drawing, varied = BACKBONE + settings.mean_steps, min(len(inputs), effort.varied)
    turns = [drawing] * learned
    for first in range(0, len(inputs), settings.batch_size):
        share = min(settings.batch_size, varied - first) / min(settings.batch_size, len(inputs) - first)
        draws = [effort.draw_steps * share] * (effort.draws if share > 0 else 0)
        turns += [drawing + effort.path_steps, *draws] * settings.num_ar_steps
    return turns


def check(sampler: Sampler, inputs: Inputs, settings: Settings, effort: Effort) -> None:
    """Find what is wrong before any work is done."""
    inputs.check_alike()
    sampler.start(inputs, settings)
    grid_for(settings.solver, sampler.model.process, effort.draw_steps)
    if len(inputs) < 2:
        raise DisaError("what is measured is compared between images: expected 2 or more, found 1.")


@undisturbed()
def measure(
    sampler: Sampler,
    inputs: Inputs,
    settings: Settings,
    effort: Effort | None = None,
    on_turn: Callable[[], None] = lambda: None,
) -> Evidence:
    """Draw the inputs as `sample` does, and measure every AR step of it. Raises DisaError.

    Predictability, as in the paper: for MAR and Harmon by an MLP from z to the token, learned from other images; for
    FlowAR and xAR by the field itself, in one evaluation at t = 1. Variance: between draws with the solver of the
    settings. Straightness: see `straightness`.
    """
    effort = effort or Effort()
    check(sampler, inputs, settings, effort)
    predict, evaluations = at_the_start, 0
    if learns(sampler):
        predict, evaluations = learn(sampler, inputs, settings, effort.fit_images, on_turn)
    method = _Method(predict, settings.solver, effort, on_turn)
    meter, measured = Meter(), [_Measured() for _ in range(settings.num_ar_steps)]
    shown: dict[int, list[tuple[Tensor, Tensor]]] = {k: [] for k in _shown(settings.num_ar_steps)}
    finished = list[Samples]()
    for turn in sampler.start(inputs, settings):
        on_turn()
        batch, step, noise = turn.batch, turn.step, turn.noise
        finished += [] if turn.samples is None else [turn.samples]
        varied = min(len(batch), max(0, effort.varied - batch[0]))
        problem = meter.on(step.problem)
        measured[step.ar_step].take(problem, step.tokens, noise, method, len(batch), varied)
        if step.ar_step + 1 in shown and batch[0] < SHOWN_IMAGES:
            shown[step.ar_step + 1].append(foresee(sampler, step.state, predict, noise, meter))
    foresight = [
        Foresight(k, *(torch.cat(images)[:SHOWN_IMAGES] for images in zip(*parts, strict=True)))
        for k, parts in shown.items()
    ]
    about = "an MLP on z, learned from other images" if learns(sampler) else "the field in one evaluation at t = 1"
    token_variance = [one.token_variance for one in measured]
    evaluations += meter.evaluations
    return Evidence(_curves(measured), token_variance, foresight, Samples.join(finished), effort, about, evaluations)


@dataclass(frozen=True)
class _Method:
    """How every AR step is measured. on_draw: called once per draw from the same z."""

    predict: Predict
    solver: Solver
    effort: Effort
    on_draw: Callable[[], None]


@dataclass
class _Measured:
    """What was measured in one AR step: a tensor [B] of each measurement, and tokens [B, T, C], batch by batch."""

    found: dict[str, list[Tensor]] = field(default_factory=lambda: defaultdict(list))
    tokens: list[Tensor] = field(default_factory=list)

    def take(
        self,
        problem: DenoisingProblem,
        drawn: Tensor,
        noise: SeededNoise,
        method: _Method,
        num_images: int,
        varied: int,
    ) -> None:
        """Measure a problem that is solved, but whose field is still valid. drawn: its tokens [R, *shape]."""
        tokens = drawn.cpu().double()
        error = (method.predict(problem, noise).cpu().double() - tokens).square()
        bends, chords = straightness(problem, noise.initial(problem), method.effort.path_steps)
        found = {"error": error, "straightness": bends, "chord": chords}
        if varied:
            rows = torch.nonzero(problem.image < varied).flatten()
            part = problem if varied == num_images else problem.select(rows)
            steps, draws = method.effort.draw_steps, method.effort.draws
            found["variance"] = variance(part, method.solver, steps, noise, draws, method.on_draw)
        for name, values in found.items():
            images = varied if name == "variance" else num_images
            self.found[name].append(values.cpu().double().reshape(images, -1).mean(1))
        self.tokens.append(tokens.reshape(num_images, -1, tokens.shape[-1]))

    @property
    def token_variance(self) -> float:
        """About the mean of each channel, over all tokens of all images."""
        return torch.cat(self.tokens).flatten(0, 1).var(0, correction=0).mean().item()

    def values(self) -> dict[str, Tensor]:
        """[N] of each measurement; fewer of the variance."""
        values = {name: torch.cat(parts) for name, parts in self.found.items()}
        share = {name: values[name] / self.token_variance for name in ("error", "variance", "straightness")}
        return values | {
            "r2": 1 - share["error"],
            "relative_variance": share["variance"],
            "relative_straightness": share["straightness"],
        }


def _curves(measured: list[_Measured]) -> dict[str, Curve]:
    values = [one.values() for one in measured]
    return {name: Curve.of([of_step[name] for of_step in values]) for name in EXPECTED}


def learns(sampler: Sampler) -> bool:
    """Whether predictions are made by an MLP, as the field itself says little of the data at its largest t."""
    return not sampler.model.process.shows_data_in_noise


def _shown(num_ar_steps: int) -> list[int]:
    """After how many AR steps the picture looks at an image."""
    return sorted({max(1, round(num_ar_steps * share)) for share in SHOWN_SHARES} - {num_ar_steps})


# -- predictability ------------------------------------------------------------------------------------------------


def at_the_start(problem: DenoisingProblem, noise: SeededNoise) -> Tensor:
    """[R, *shape] what a velocity field predicts in one evaluation at t = 1: x1 - v(x1, 1)."""
    return solve(problem, ode_solver(problem.process), 1, noise).tokens


class TokenMLP:
    """From condition vectors z [R, D] to tokens [R, C]: two hidden layers on standardised z, on the CPU.

    Learned from pairs z [N, L, D] and tokens [N, L, C] with the squared error; the last fifth of the images is held
    out, and the epoch that predicts them best is kept. The same pairs and seed give the same MLP.
    """

    width, epochs, batch_size, learning_rate, weight_decay = 256, 30, 512, 2e-3, 1e-2

    def __init__(self, z: Tensor, tokens: Tensor, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)
        learned = len(z) - max(1, len(z) // 5)
        self.mean, self.deviation = z[:learned].mean((0, 1)), z[:learned].std((0, 1)).clamp(min=1e-6)
        z = (z - self.mean) / self.deviation
        self.net = self._network(z.shape[-1], tokens.shape[-1], seed)
        held_out = z[learned:], tokens[learned:]
        pairs = z[:learned].flatten(0, 1), tokens[:learned].flatten(0, 1)
        best, kept = float("inf"), self.net.state_dict()
        for _ in self._epochs(*pairs, random):
            error = functional.mse_loss(self.net(held_out[0]), held_out[1]).item()
            if error < best:
                best, kept = error, {name: value.clone() for name, value in self.net.state_dict().items()}
        self.net.load_state_dict(kept)

    def __call__(self, problem: DenoisingProblem, noise: SeededNoise) -> Tensor:
        assert problem.condition is not None
        z = (problem.condition.float().cpu() - self.mean) / self.deviation
        return self.net(z).to(problem.device)

    def _network(self, condition_width: int, channels: int, seed: int) -> nn.Sequential:
        # Initialisation draws from the global generator; the caller's random state is put back afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return nn.Sequential(
                Linear(condition_width, self.width),
                Swish(),
                Linear(self.width, self.width),
                Swish(),
                Linear(self.width, channels),
            )

    def _epochs(self, z: Tensor, tokens: Tensor, random: torch.Generator) -> Iterator[None]:
        """Learn from z [M, D] and tokens [M, C]; a turn per epoch."""
        optimiser = torch.optim.AdamW(self.net.parameters(), self.learning_rate, weight_decay=self.weight_decay)
        rates = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, self.epochs)
        for _ in range(self.epochs):
            with torch.enable_grad():
                for rows in torch.randperm(len(z), generator=random).split(self.batch_size):
                    optimiser.zero_grad()
                    functional.mse_loss(self.net(z[rows]), tokens[rows]).backward()
                    optimiser.step()
            rates.step()
            yield


def learn(
    sampler: Sampler, inputs: Inputs, settings: Settings, num_images: int, on_turn: Callable[[], None] = lambda: None
) -> tuple[TokenMLP, int]:
    """A `TokenMLP` from images of other seeds, whose labels or prompts are those wanted, in turn; and the evaluations
    that drew them."""
    measured = set(inputs.seeds)
    seeds = islice((seed for seed in count(FIRST_FIT_SEED) if seed not in measured), num_images)
    pairs: dict[int, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    evaluations = 0
    for turn in sampler.start(inputs.with_seeds(seeds), settings, "latent"):
        on_turn()
        evaluations += turn.step.evaluations
        z, tokens = (_per_image(values, len(turn.batch)) for values in (turn.step.problem.condition, turn.step.tokens))
        pairs[turn.batch[0]].append((z, tokens))
    whole = [[torch.cat(values, dim=1) for values in zip(*batch, strict=True)] for batch in pairs.values()]
    z, tokens = (torch.cat(values) for values in zip(*whole, strict=True))
    return TokenMLP(z, tokens), evaluations


def _per_image(values: Tensor | None, num_images: int) -> Tensor:
    """[R, D] -> [B, T, D] on the CPU, float32."""
    assert values is not None
    return values.float().cpu().view(num_images, -1, values.shape[-1])


# -- the picture ---------------------------------------------------------------------------------------------------


def foresee(sampler: Sampler, state: Any, predict: Predict, noise: SeededNoise, meter: Meter) -> tuple[Tensor, Tensor]:
    """What is drawn so far, gray elsewhere, and the same with the rest predicted; the state stays as it is.

    meter: counts what predicting evaluates. Images [up to 4, channels, height, width] in [0, 1]. FlowAR's first scales
    are shown as they are, coarse.
    """
    drawn = drawn_so_far(sampler, state, slice(SHOWN_IMAGES))
    rest = with_rest(sampler.model, state, lambda problem: predict(meter.on(problem), noise), noise)
    return drawn.cpu(), sampler.decode(rest[:SHOWN_IMAGES]).cpu()
