"""Data that are Gaussian, for which network, ODE and path are known exactly.

For data ~ N(m, s^2) the state at level abar is N(sqrt(abar) m, v) with v = abar s^2 + 1 - abar, the noise to predict is
sqrt(1 - abar) (x - sqrt(abar) m) / v, and the probability-flow ODE keeps (x - sqrt(abar) m) / sqrt(v) constant.
For a flow the same holds with 1 - t in place of sqrt(abar) and t in place of sqrt(1 - abar), and the velocity is the
derivative of that path.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from disa.core.diffusion import CosineDiffusion
from disa.core.flow import FlowMatching
from disa.core.problem import Bound, DenoisingProblem, Field, Prediction, TimeGrid
from disa.core.solver import Solver
from fields import Said

MEAN = torch.tensor([0.5, -1.0, 0.2, 2.0], dtype=torch.float64)
DEVIATION = torch.tensor([0.3, 1.0, 0.7, 1.7], dtype=torch.float64)
SHAPE = tuple(MEAN.shape)
PROCESS, FLOW = CosineDiffusion(), FlowMatching()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def spread(abar: float) -> Tensor:
    """Standard deviation of the state at a level."""
    return (abar * DEVIATION**2 + 1 - abar).sqrt()


def state_at(abar: float, unit: Tensor) -> Tensor:
    """Where the exact ODE takes the point that stands at `unit` standard deviations."""
    return math.sqrt(abar) * MEAN + spread(abar) * unit


def exact_noise(x: Tensor, abar: float) -> Tensor:
    return math.sqrt(1 - abar) * (x - math.sqrt(abar) * MEAN) / spread(abar) ** 2


def flow_spread(t: float) -> Tensor:
    """Standard deviation of the state of a flow."""
    return ((1 - t) ** 2 * DEVIATION**2 + t**2).sqrt()


def flow_state(t: float, unit: Tensor) -> Tensor:
    """Where the exact ODE of a flow takes the point that stands at `unit` standard deviations."""
    return (1 - t) * MEAN + flow_spread(t) * unit


def exact_velocity(x: Tensor, t: float) -> Tensor:
    return (t - (1 - t) * DEVIATION**2) * (x - (1 - t) * MEAN) / flow_spread(t) ** 2 - MEAN


def levels_at(process: CosineDiffusion, network_times: np.ndarray) -> np.ndarray:
    """abar at what the network is fed: whole timesteps, or the continuous time of the grids emigm and dpm-950."""
    if (network_times % 1 == 0).all():
        return process.alpha_bar[network_times.astype(int)]
    if network_times[0] > 950:
        return np.exp(np.interp(network_times, np.arange(996) * 1000 / 996, np.log(process.alpha_bar[:996])))
    knots = 0.95 * np.arange(1, 952) / 951
    return np.exp(np.interp(network_times / 1000, knots, np.log(process.alpha_bar[:951])))


@dataclass
class GaussianField(Field):
    """The exact network. variance: its variance output, if it has one. states: what it was called with."""

    process: CosineDiffusion | FlowMatching = PROCESS
    variance: float | None = None
    states: list[Tensor] = field(default_factory=list)

    def on(self, grid: TimeGrid) -> Bound:
        if isinstance(self.process, FlowMatching):
            levels, exact = grid.times, exact_velocity
        else:
            levels, exact = levels_at(self.process, grid.network_times), exact_noise

        def evaluate(x: Tensor, denoise_step: int) -> Prediction:
            self.states.append(x.clone())
            value = exact(x.double(), float(levels[denoise_step])).to(x.dtype)
            return Prediction(value, None if self.variance is None else torch.full_like(x, self.variance))

        return Said.on(grid, evaluate)

    def made(self) -> int:
        """Rows that it was called with, in all calls together."""
        return sum(map(len, self.states))

    def select(self, rows: Tensor) -> GaussianField:
        return self


def problem_of(
    field: Field, num_rows: int, ar_step: int = 0, process: CosineDiffusion | FlowMatching = PROCESS
) -> DenoisingProblem:
    rows = torch.arange(num_rows)
    return DenoisingProblem(field, process, SHAPE, torch.zeros_like(rows), rows, ar_step, ar_step + 1)


def run(
    solver: Solver, grid: TimeGrid, unit: Tensor, noise: Tensor | None = None, field: GaussianField | None = None
) -> Tensor:
    """The end of the solver's path from `unit` standard deviations off the mean."""
    field = field or GaussianField()
    problem = problem_of(field, len(unit), process=field.process)
    noise = torch.empty(0) if noise is None else noise
    start = (flow_state if field.process is FLOW else state_at)(float(grid.levels[0]), unit)
    return solver.run(field.on(grid), problem, grid, start, noise)


def root_mean_square(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def orders(errors: list[float]) -> np.ndarray:
    """Measured order of convergence where the number of steps doubles from one error to the next."""
    return np.log2(np.array(errors[:-1]) / np.array(errors[1:]))


UNIT = normal(64, 4)


def errors_at_the_end(
    solver: Solver, counts: list[int], process: CosineDiffusion | FlowMatching = PROCESS
) -> list[float]:
    """Of paths from UNIT along the solver's own grid."""
    exact, errors = flow_state if isinstance(process, FlowMatching) else state_at, []
    for num_steps in counts:
        grid = solver.plan(process, num_steps)
        end = run(solver, grid, UNIT, field=GaussianField(process))
        errors.append(root_mean_square(end.double() - exact(float(grid.levels[-1]), UNIT)))
    return errors


def check_moments(samples: Tensor, mean: Tensor, square: Tensor) -> None:
    """Mean, variance and correlation within 4.5 standard errors."""
    n = len(samples)
    assert ((samples.mean(0) - mean).abs() < 4.5 * (square / n).sqrt()).all()
    assert ((samples.var(0) / square - 1).abs() < 4.5 * math.sqrt(2 / n)).all()
    correlation = torch.corrcoef(samples.T) - torch.eye(samples.shape[1])
    assert correlation.abs().max() < 4.5 / math.sqrt(n)
