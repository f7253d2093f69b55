"""The diffusion process of MAR, Harmon, UniPic and eMIGM heads: noise levels, named time grids, and the training loss.

x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise (Ho et al. 2020), t = 0..T-1, cosine abar (Nichol and Dhariwal 2021).
Levels of a grid are abar, in float64: at large t, 1 / sqrt(abar) multiplies every rounding error.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from disa.core.grids import own_grid, singlestep_orders
from disa.core.problem import Grid, Prediction, TimeGrid
from disa.errors import DisaError
from disa.values import did_you_mean, shown

LAST_TRAINED = 950
"""Largest timestep that the official training of MAR and its annealed sampler visit, of 1000."""


@dataclass(frozen=True)
class CosineDiffusion:
    """T timesteps with the cosine abar of improved DDPM; the network predicts noise and a variance interpolation."""

    num_timesteps: int = 1000
    max_beta: float = 0.999
    """The largest variance of a forward step: it bounds the last ones, where abar would fall to 0."""
    trained_of_1000: int = LAST_TRAINED
    """The largest timestep that training and clean grids visit, were there 1000."""
    predicts = "noise"
    learns_variance = True
    shows_data_in_noise = False
    even_grid = "logsnr"

    @property
    def last_trained(self) -> int:
        """The largest timestep that training and clean grids visit."""
        return self.trained_of_1000 * self.num_timesteps // 1000

    @cached_property
    def betas(self) -> np.ndarray:
        """[T] variances of the forward steps, at most `max_beta`."""

        def alpha_bar(t: float) -> float:
            return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

        steps = self.num_timesteps
        return np.array(
            [min(1 - alpha_bar((i + 1) / steps) / alpha_bar(i / steps), self.max_beta) for i in range(steps)]
        )

    @cached_property
    def alpha_bar(self) -> np.ndarray:
        """[T] share of signal variance left at each timestep."""
        return np.cumprod(1 - self.betas)

    def grid(self, name: Grid, num_steps: int) -> TimeGrid:
        """The named grid for `num_steps` denoising steps. Official grids may hold fewer: see `GRIDS`."""
        return _grid(self, name, num_steps) if isinstance(name, str) else own_grid(name, self, num_steps)

    def grid_at(self, times: np.ndarray) -> TimeGrid:
        """Timesteps are whole: the nearest ones. Raises DisaError where two fall together or one is not there."""
        timesteps = np.round(times * self.num_timesteps).astype(int)
        if (np.diff(timesteps) >= 0).any() or not 0 <= timesteps[-1] <= timesteps[0] < self.num_timesteps:
            raise DisaError(f"expected falling times, a {self.num_timesteps}th or more apart, found {times.tolist()}.")
        return _on_timesteps(self, timesteps.tolist())

    def scales(self, level: float) -> tuple[float, float]:
        """sqrt(abar) and sqrt(1 - abar)."""
        return math.sqrt(level), math.sqrt(1 - level)

    def data(self, x: Tensor, value: Tensor, level: float) -> Tensor:
        """(x - sqrt(1 - abar) noise) / sqrt(abar)."""
        alpha, sigma = self.scales(level)
        return x.sub(value, alpha=sigma).div_(alpha)

    def noised(self, data: Tensor, noise: Tensor, level: float) -> Tensor:
        """sqrt(abar) data + sqrt(1 - abar) noise."""
        alpha, sigma = self.scales(level)
        return alpha * data + sigma * noise

    def flow_grid(self, num_steps: int) -> tuple[TimeGrid, np.ndarray]:
        """The trained timesteps nearest to even t = sqrt(1 - abar) / (sqrt(abar) + sqrt(1 - abar)), and that t [n + 1].

        It begins at the largest trained timestep, where t is 0.93. Two timesteps may fall together, so there may be
        fewer than `num_steps`.
        """
        abar = self.alpha_bar[: self.last_trained + 1]
        t = np.sqrt(1 - abar) / (np.sqrt(abar) + np.sqrt(1 - abar))
        wanted = np.linspace(t[-1], 0, num_steps + 1)[:-1]
        timesteps = np.unique(np.interp(wanted, t, np.arange(len(t))).round().astype(int))[::-1]
        return _on_timesteps(self, timesteps.tolist()), np.append(t[timesteps], 0.0)

    def flow_scale(self, level: float) -> float:
        """sqrt(abar) + sqrt(1 - abar)."""
        return sum(self.scales(level))

    def velocity(self, x: Tensor, value: Tensor, level: float) -> Tensor:
        """The predicted noise less the predicted data."""
        alpha, sigma = self.scales(level)
        return value - (x - sigma * value) / alpha


@lru_cache(maxsize=4096)
def _grid(process: CosineDiffusion, name: str, num_steps: int) -> TimeGrid:
    plain = name.replace("_", "-")
    if plain not in GRIDS:
        raise DisaError(f"unknown grid {shown(name)}: expected one of {', '.join(GRIDS)}.{did_you_mean(name, GRIDS)}")
    if num_steps < 1:
        raise DisaError(f"a row needs at least 1 denoising step, found {num_steps}.")
    if plain in OF_1000 and process.num_timesteps != 1000:
        raise DisaError(
            f"the official grid {plain} is for a process of 1000 timesteps, found {process.num_timesteps}: "
            "choose uniform or logsnr."
        )
    return GRIDS[plain](process, num_steps)


def _on_timesteps(process: CosineDiffusion, timesteps: list[int]) -> TimeGrid:
    """Descending integer timesteps, then the clean end (abar = 1)."""
    whole = np.array(timesteps)
    network_times = whole.astype(np.float64)
    return TimeGrid(network_times, np.append(process.alpha_bar[whole], 1.0), network_times / process.num_timesteps)


def _spaced(process: CosineDiffusion, num_steps: int, largest: int) -> TimeGrid:
    """The official respacing: a float stride over the whole range, rounded half to even, then clipped and merged."""
    if num_steps > process.num_timesteps:
        raise DisaError(f"at most {process.num_timesteps} denoising steps fit this grid, found {num_steps}.")
    stride = 1.0 if num_steps == 1 else (process.num_timesteps - 1) / (num_steps - 1)
    # The official code accumulates the stride; multiplying instead rounds differently for some counts.
    position, taken = 0.0, set()
    for _ in range(num_steps):
        taken.add(min(round(position), largest))
        position += stride
    return _on_timesteps(process, sorted(taken, reverse=True))


def _clipped(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    if num_steps == 1:
        return _uniform(process, 1)
    return _spaced(process, num_steps, LAST_TRAINED)


def _full(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    if num_steps == 1:
        return _on_timesteps(process, [process.num_timesteps - 1])
    return _spaced(process, num_steps, process.num_timesteps - 1)


def _ddim(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    """The smallest integer stride with exactly n entries, in a range that shrinks until one exists; clipped at 980."""
    if num_steps == 1:
        return _uniform(process, 1)
    if num_steps > process.num_timesteps:
        raise DisaError(f"at most {process.num_timesteps} denoising steps fit this grid, found {num_steps}.")
    for length in range(process.num_timesteps, 0, -1):
        for stride in range(1, length):
            timesteps = range(0, length, stride)
            if len(timesteps) == num_steps:
                return _on_timesteps(process, sorted({min(t, 980) for t in timesteps}, reverse=True))
            if len(timesteps) < num_steps:
                break
    raise DisaError(f"the ddim-980 grid has no spacing for {num_steps} denoising steps.")


def _dpm(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    """n equal intervals of continuous time from 0.95 down to 1/951, float32, as the official DPM-Solver visits them."""
    if num_steps > process.num_timesteps:
        raise DisaError(f"at most {process.num_timesteps} denoising steps fit the dpm-950 grid, found {num_steps}.")
    table = 0.5 * np.log(process.alpha_bar[: LAST_TRAINED + 1])
    first, last = LAST_TRAINED / 1000, 1 / (LAST_TRAINED + 1)
    times = np.linspace(first, last, num_steps + 1)
    knots = np.linspace(0, first, LAST_TRAINED + 2)[1:]
    levels = np.exp(2 * np.interp(times, knots, table))
    return TimeGrid((times[:-1].astype(np.float32) * np.float32(1000)).astype(np.float64), levels, times[:-1])


def _uniform(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    """Exactly n distinct timesteps, evenly from the largest trained one to 0 (n = 1 visits only the largest)."""
    largest = process.last_trained
    if num_steps > largest + 1:
        raise DisaError(f"at most {largest + 1} denoising steps fit the uniform grid, found {num_steps}.")
    return _on_timesteps(process, np.linspace(largest, 0, num_steps).round().astype(int).tolist())


def _logsnr(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    """Exactly n distinct timesteps, as evenly as integers allow in log-SNR between the largest trained one and 0."""
    largest = process.last_trained
    if num_steps > largest + 1:
        raise DisaError(f"at most {largest + 1} denoising steps fit the logsnr grid, found {num_steps}.")
    snr = np.log(process.alpha_bar[: largest + 1] / (1 - process.alpha_bar[: largest + 1]))
    wanted = np.linspace(snr[-1], snr[0], num_steps)
    timesteps = np.interp(wanted, snr[::-1], np.arange(largest + 1)[::-1]).round().astype(int)
    for i in range(1, num_steps):  # keep them distinct: first downwards, then lift what fell below its floor
        timesteps[i] = min(timesteps[i], timesteps[i - 1] - 1)
    floor = np.arange(num_steps)[::-1]
    return _on_timesteps(process, np.maximum(timesteps, floor).tolist())


# -- eMIGM's grid --------------------------------------------------------------------------------------------------

LEAST_HALF_SNR = -5.1
"""Log of alpha / sigma below which eMIGM's sampler has no knots."""


class _Knots(NamedTuple):
    """[N] in float32, as the official sampler computes: near the data that moves all its times by up to 5e-5."""

    times: Tensor
    """From 1/N to 1."""
    log_alpha: Tensor

    def log_alpha_at(self, times: Tensor) -> Tensor:
        return _between(times, self.times, self.log_alpha)

    def half_snr_at(self, times: Tensor) -> Tensor:
        """Log of alpha / sigma."""
        log_alpha = self.log_alpha_at(times)
        return log_alpha - 0.5 * torch.log(1 - torch.exp(2 * log_alpha))

    def times_of(self, half_snr: Tensor) -> Tensor:
        log_alpha = -0.5 * torch.logaddexp(torch.zeros(1), -2 * half_snr)
        return _between(log_alpha, self.log_alpha.flip(0), self.times.flip(0))


def _between(x: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Values at x along straight lines between rising knots."""
    right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
    start, end = knots[right - 1], knots[right]
    return values[right - 1] + (x - start) * (values[right] - values[right - 1]) / (end - start)


@lru_cache(maxsize=8)
def _knots(process: CosineDiffusion) -> _Knots:
    log_alpha = 0.5 * np.cumsum(np.log(1 - process.betas))
    log_alpha = log_alpha[log_alpha - 0.5 * np.log(1 - np.exp(2 * log_alpha)) >= LEAST_HALF_SNR]
    times = torch.linspace(0, 1, len(log_alpha) + 1)[1:]
    return _Knots(times, torch.from_numpy(log_alpha).float())


def _emigm(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    """Intervals that are even in the log-SNR, and inside of each as many times as its order asks for, evenly too.

    Timestep i of the N = 996 that have knots is fed as 1000 i / N; the end is not quite clean.
    """
    if num_steps > process.num_timesteps:
        raise DisaError(f"at most {process.num_timesteps} denoising steps fit the emigm grid, found {num_steps}.")
    knots, orders = _knots(process), singlestep_orders(num_steps)
    ends = knots.half_snr_at(knots.times[[-1, 0]])
    outer = knots.times_of(torch.linspace(float(ends[0]), float(ends[1]), len(orders) + 1))
    snr, times = knots.half_snr_at(outer), list[Tensor]()
    for i, order in enumerate(orders):
        start, end = float(snr[i]), float(snr[i + 1])
        inner = knots.half_snr_at(knots.times_of(torch.linspace(start, end, order + 1)))
        shares = (inner[1:order] - inner[0]) / (inner[-1] - inner[0])
        times += [outer[i : i + 1], knots.times_of(snr[i] + shares * (snr[i + 1] - snr[i]))]
    visited = torch.cat(times)
    levels = torch.exp(2 * knots.log_alpha_at(torch.cat([visited, outer[-1:]])))
    fed = ((visited - 1.0 / len(knots.times)) * 1000).double().numpy()
    return TimeGrid(fed, levels.double().numpy(), fed / 1000)


GRIDS: dict[str, Callable[[CosineDiffusion, int], TimeGrid]] = {
    "clipped-950": _clipped,
    "full": _full,
    "ddim-980": _ddim,
    "dpm-950": _dpm,
    "emigm": _emigm,
    "uniform": _uniform,
    "logsnr": _logsnr,
}
"""Official: clipped-950 (MAR's annealed sampler; 50 asked steps make 48), full (MAR's original one), ddim-980, dpm-950,
emigm. Clean, with exactly n evaluations for every n >= 1: uniform, logsnr, dpm-950."""

OF_1000 = ("clipped-950", "ddim-980", "dpm-950", "emigm")
"""Official grids that name timesteps of a process of 1000."""


class LossTerms(NamedTuple):
    """Per row [R]: mean squared error of the noise, variational term in bits, and their sum."""

    mse: Tensor
    variational: Tensor

    @property
    def loss(self) -> Tensor:
        return self.mse + self.variational


class TrainingLoss:
    """The hybrid loss of improved DDPM (Nichol and Dhariwal 2021, eq. 16): noise MSE + a learned-variance KL.

    Timesteps run up to the last that the official training visits: 950 for MAR and Harmon, whose coefficients up to
    there equal those of the full process.
    """

    def __init__(self, process: CosineDiffusion, device: torch.device | str | None = None) -> None:
        abar = process.alpha_bar
        before = np.append(1.0, abar[:-1])
        variance = process.betas * (1 - before) / (1 - abar)
        columns = {
            "signal": np.sqrt(abar),
            "noise": np.sqrt(1 - abar),
            "from_start": process.betas * np.sqrt(before) / (1 - abar),
            "from_state": (1 - before) * np.sqrt(1 - process.betas) / (1 - abar),
            "log_low": np.log(np.append(variance[1], variance[1:])),
            "log_high": np.log(process.betas),
        }
        self.num_timesteps = process.last_trained + 1
        self.table = torch.tensor(np.stack(list(columns.values())), dtype=torch.float32, device=device)

    def noised(self, start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t [R, C] from x_0 [R, C] at timesteps t [R]."""
        signal, sigma = self.table[:2, t, None]
        return signal * start + sigma * noise

    def terms(self, prediction: Prediction, start: Tensor, t: Tensor, noise: Tensor) -> LossTerms:
        """Loss terms of a prediction made at `noised(start, t, noise)`; start, noise: [R, C], t: [R]."""
        signal, sigma, from_start, from_state, log_low, log_high = self.table[:, t, None]
        state = signal * start + sigma * noise
        share = (prediction.variance + 1) / 2 if prediction.variance is not None else torch.zeros_like(start)
        log_variance = share * log_high + (1 - share) * log_low
        guess = (state - sigma * prediction.value.detach()) / signal
        true_mean = from_start * start + from_state * state
        mean = from_start * guess + from_state * state
        kl = _gaussian_kl(true_mean, log_low, mean, log_variance)
        likelihood = _discretised_nll(start, mean, 0.5 * log_variance)
        variational = torch.where(t == 0, likelihood.mean(1), kl.mean(1)) / math.log(2)
        return LossTerms((noise - prediction.value).square().mean(1), variational)


def _gaussian_kl(mean_1: Tensor, log_1: Tensor, mean_2: Tensor, log_2: Tensor) -> Tensor:
    """KL(N1 || N2) of diagonal Gaussians, elementwise, in nats."""
    return 0.5 * (log_2 - log_1 - 1 + (log_1 - log_2).exp() + (mean_1 - mean_2).square() * (-log_2).exp())


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation that the official likelihood uses."""
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _discretised_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Negative log-likelihood of x under a Gaussian integrated over bins of 2/255, open at -1 and 1; in nats."""
    centred, inverse = x - mean, (-log_scale).exp()
    upper, lower = _normal_cdf(inverse * (centred + 1 / 255)), _normal_cdf(inverse * (centred - 1 / 255))
    inside = torch.where(x > 0.999, 1 - lower, upper - lower)
    return -torch.where(x < -0.999, upper, inside).clamp(min=1e-12).log()
