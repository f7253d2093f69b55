"""Solvers go along a time grid with a field; `solve` draws the rows of a problem, whatever their step counts.

Shapes: R rows, n denoising steps. A state x is [R, *shape] in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from disa.diffusion import CosineDiffusion
from disa.errors import DisaError
from disa.problem import DenoisingProblem, Evaluate, Noise, Process, TimeGrid


class Solver(Protocol):
    """Goes from noise to data along a grid."""

    grid: str
    takes: str
    """What the process must predict: `noise` or `velocity`."""
    stochastic: bool

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        """x: [R, *shape] at the first level; noise: [n, R, *shape], or [0, ...] where the solver is deterministic."""
        ...


def solve(problem: DenoisingProblem, solver: Solver, steps: int | Tensor, noise: Noise) -> Tensor:
    """Tokens [R, *shape]. Rows with equal step counts are solved together, which changes no row."""
    if isinstance(steps, int):
        return _solve_rows(problem, solver, steps, noise)
    if len(steps) != problem.num_rows:
        raise DisaError(f"the step policy gave {len(steps)} counts for {problem.num_rows} rows.")
    tokens = torch.empty(problem.num_rows, *problem.shape, device=problem.device)
    for count in steps.unique().tolist():
        rows = torch.nonzero(steps == count).flatten().to(problem.device)
        tokens[rows] = _solve_rows(problem.select(rows), solver, int(count), noise)
    return tokens


def grid_for(solver: Solver, process: Process, num_steps: int) -> TimeGrid:
    """The grid that the solver goes along, or one clear error where solver, process and grid do not go together."""
    if solver.takes != process.predicts:
        raise DisaError(f"the solver {solver} needs a model that predicts {solver.takes}; "
                        f"this one predicts {process.predicts}.")  # fmt: skip
    grid = process.grid(solver.grid, num_steps)
    if isinstance(solver, Multistep):
        solver.check(process, grid)
    return grid


def _solve_rows(problem: DenoisingProblem, solver: Solver, num_steps: int, noise: Noise) -> Tensor:
    grid = grid_for(solver, problem.process, num_steps)
    draws = noise.steps(problem, grid.num_evaluations) if solver.stochastic else torch.empty(0)
    return solver.run(problem.field.on(grid.network_times), problem, grid, noise.initial(problem).clone(), draws)


@dataclass(frozen=True)
class DDPM:
    """Ancestral sampling with the learned variance (Ho et al. 2020; Nichol and Dhariwal 2021, eq. 15).

    temperature scales the noise that is added, not the initial noise. Nothing is added at the last step.
    """

    grid: str = "clipped-950"
    temperature: float = 1.0
    takes = "noise"
    stochastic = True

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        rows = _ddpm_coefficients(grid.levels.tobytes())
        for i, (keep, remove, log_middle, log_spread) in enumerate(rows):
            value, variance = evaluate(x, i)
            x = x.mul_(keep).add_(value, alpha=remove)
            if i + 1 < len(rows) and self.temperature:
                deviation = _deviation(variance, log_middle, log_spread, x)
                x.addcmul_(deviation, noise[i], value=self.temperature)
        return x


def _deviation(variance: Tensor | None, log_middle: float, log_spread: float, x: Tensor) -> Tensor:
    """Standard deviation between its two bounds: exp of a line in the network's variance value (-1 low, 1 high)."""
    value = torch.full_like(x, -1.0) if variance is None else variance
    return value.mul(log_spread).add_(log_middle).exp_()


@lru_cache(maxsize=4096)
def _ddpm_coefficients(levels: bytes) -> list[tuple[float, float, float, float]]:
    """Per step: factors of x and of the predicted noise in the posterior mean, and the log deviation's line.

    The two products of the textbook form are merged in float64: at small abar they nearly cancel.
    """
    abar = np.frombuffer(levels)
    now, then = abar[:-1], abar[1:]
    alpha = now / then
    beta, noise_share = 1 - alpha, 1 - now
    from_start, from_state = np.sqrt(then) * beta / noise_share, (1 - then) * np.sqrt(alpha) / noise_share
    keep = from_start / np.sqrt(now) + from_state
    remove = -from_start * np.sqrt(noise_share) / np.sqrt(now)
    posterior = beta * (1 - then) / noise_share
    with np.errstate(divide="ignore"):
        low, high = np.log(posterior), np.log(beta)
    if len(low) > 1:
        low[-1] = low[-2]
    middle, spread = (high + low) / 4, (high - low) / 4
    return list(zip(keep.tolist(), remove.tolist(), middle.tolist(), spread.tolist(), strict=True))


@dataclass(frozen=True)
class DDIM:
    """Song et al. 2021, eq. 12; eta = 0 is deterministic and of order 1, eta = 1 adds as much noise as DDPM.

    DPM-Solver and DPM-Solver++ of order 1 are this update at eta = 0 (Lu et al. 2022): only their grid differs.
    """

    grid: str = "ddim-980"
    eta: float = 0.0
    takes = "noise"

    @property
    def stochastic(self) -> bool:
        return self.eta != 0

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        for i, (keep, remove, deviation) in enumerate(_ddim_coefficients(grid.levels.tobytes(), self.eta)):
            value = evaluate(x, i).value
            x = x.mul_(keep).add_(value, alpha=remove)
            if deviation:
                x.add_(noise[i], alpha=deviation)
        return x


@lru_cache(maxsize=4096)
def _ddim_coefficients(levels: bytes, eta: float) -> list[tuple[float, float, float]]:
    """Per step: factors of x, of the predicted noise, and of fresh noise."""
    abar = np.frombuffer(levels)
    now, then = abar[:-1], abar[1:]
    deviation = eta * np.sqrt((1 - then) / (1 - now) * (1 - now / then))
    keep = np.sqrt(then / now)
    remove = np.sqrt(np.maximum(1 - then - deviation**2, 0)) - keep * np.sqrt(1 - now)
    return list(zip(keep.tolist(), remove.tolist(), deviation.tolist(), strict=True))


@dataclass(frozen=True)
class Multistep:
    """DPM-Solver and DPM-Solver++ of order 2 or 3 through diffusers' `DPMSolverMultistepScheduler`.

    It is fed the predicted noise only. Its last step falls to order 1, as diffusers does for stability.
    """

    algorithm: str = "dpmsolver++"
    order: int = 2
    grid: str = "uniform"
    takes = "noise"
    stochastic = False

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        scheduler = self._scheduler(problem.process, grid)
        for i, timestep in enumerate(scheduler.timesteps):
            x = scheduler.step(evaluate(x, i).value, timestep, x, return_dict=False)[0]
        return x

    def check(self, process: Process, grid: TimeGrid) -> None:
        """diffusers must be there, and the grid one of whole timesteps."""
        _diffusers_scheduler()
        if not isinstance(process, CosineDiffusion) or not np.array_equal(grid.network_times, grid.network_times // 1):
            raise DisaError(f"{self.algorithm} of order {self.order} needs a grid of whole timesteps, "
                            f"such as uniform or logsnr; {self.grid} is not one.")  # fmt: skip

    def _scheduler(self, process: Any, grid: TimeGrid) -> Any:
        scheduler = _diffusers_scheduler()(
            num_train_timesteps=process.num_timesteps,
            trained_betas=process.betas,
            algorithm_type=self.algorithm,
            solver_order=self.order,
            prediction_type="epsilon",
            final_sigmas_type="zero" if self.algorithm == "dpmsolver++" else "sigma_min",
            lower_order_final=True,
            euler_at_final=True,
        )
        scheduler.set_timesteps(timesteps=grid.network_times.astype(int).tolist())
        scheduler.sigmas[-1] = 0 if self.algorithm == "dpmsolver++" else 1e-9  # 0 itself is inf - inf in the other one
        return scheduler


@lru_cache(maxsize=1)
def _diffusers_scheduler() -> Any:
    try:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler  # heavy
    except ImportError as error:
        raise DisaError('this solver needs diffusers: pip install "disa[diffusers]".') from error
    return DPMSolverMultistepScheduler


SOLVERS: dict[str, Callable[..., Any]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "dpm-solver": lambda grid="dpm-950": DDIM(grid),
    "dpm-solver++": lambda grid="dpm-950": DDIM(grid),
    "dpm-solver-2": lambda grid="uniform": Multistep("dpmsolver", 2, grid),
    "dpm-solver-3": lambda grid="uniform": Multistep("dpmsolver", 3, grid),
    "dpm-solver++-2": lambda grid="uniform": Multistep("dpmsolver++", 2, grid),
    "dpm-solver++-3": lambda grid="uniform": Multistep("dpmsolver++", 3, grid),
}


def make_solver(name: str, grid: str | None = None, temperature: float = 1.0, eta: float | None = None) -> Solver:
    """The solver that `name` names, with its own grid unless one is given."""
    if name not in SOLVERS:
        raise DisaError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise DisaError(f"temperature must be 0 or more, found {temperature}.")
    if temperature != 1.0 and name != "ddpm":
        raise DisaError(f"temperature scales the noise that ddpm adds; {name} adds none. Leave it out or use ddpm.")
    options: dict[str, Any] = {} if grid is None else {"grid": grid}
    if name == "ddpm":
        options["temperature"] = temperature
    if eta is not None:
        if name != "ddim":
            raise DisaError(f"eta belongs to ddim, not to {name}.")
        if not 0 <= eta <= 1:
            raise DisaError(f"eta must be 0 to 1, found {eta}.")
        options["eta"] = eta
    return SOLVERS[name](**options)
