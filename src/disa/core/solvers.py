"""Solvers go along a time grid with a field; `solve` draws the rows of a problem, whatever their step counts.

Shapes: R rows, n denoising steps. A state x is [R, *shape], float32 at both ends; flow solvers keep it in float64.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from disa.core.diffusion import CosineDiffusion
from disa.core.problem import DenoisingProblem, Evaluate, Noise, Prediction, Process, TimeGrid, Watch
from disa.errors import DisaError


class Solver(Protocol):
    """Goes from noise to data along a grid."""

    @property
    def grid(self) -> str | None:
        """The name of the grid, or None for what suits the process."""
        ...

    @property
    def takes(self) -> tuple[str, ...]:
        """What the process may predict: `noise`, `velocity` or both."""
        ...

    @property
    def stochastic(self) -> bool:
        """Whether `run` adds noise."""
        ...

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        """The grid of its evaluations: exactly `num_evaluations` of them are made. Raises DisaError."""
        ...

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        """x: [R, *shape] at the first level; noise: [n, R, *shape], or [0, ...] where the solver is deterministic."""
        ...


def solve(problem: DenoisingProblem, solver: Solver, steps: int | Tensor, noise: Noise) -> Tensor:
    """Tokens [R, *shape]. Rows with equal step counts are solved together, which changes no row."""
    if isinstance(steps, int):
        return _solve_rows(problem, solver, steps, noise)
    _check_counts(steps, problem)
    tokens = torch.empty(problem.num_rows, *problem.shape, device=problem.device)
    for count in steps.unique().tolist():
        rows = torch.nonzero(steps == count).flatten().to(problem.device)
        tokens[rows] = _solve_rows(problem.select(rows), solver, int(count), noise)
    return tokens


def watch(problem: DenoisingProblem, solver: Solver, watched: Watch, noise: Noise) -> tuple[Tensor, Tensor]:
    """Tokens [R, *shape] and the denoising steps of each row [R]; evaluations that were looked at are kept."""
    grid = grid_for_parts(solver, problem.process, watched.num_steps)
    num_evaluations, num_looks, stop = grid.num_evaluations, watched.num_looks, watched.stop(grid.num_evaluations)
    x, change = look(problem, solver, grid.part(0, stop, num_looks), noise)
    counts = watched.go_on(change).clamp(max=num_evaluations - stop)
    _check_counts(counts, problem)
    tokens = torch.empty_like(x)
    for count in counts.unique().tolist():
        rows = torch.nonzero(counts == count).flatten().to(problem.device)
        part, rest = problem.select(rows), grid.part(stop, num_evaluations, count)
        draws = noise.steps(part, num_looks + count)[num_looks:] if solver.stochastic else torch.empty(0)
        tokens[rows] = solver.run(part.field.on(rest), part, rest, x[rows], draws)
    return tokens, counts + num_looks


def _check_counts(counts: Tensor, problem: DenoisingProblem) -> None:
    if len(counts) != problem.num_rows:
        raise DisaError(f"the step policy gave {len(counts)} counts for {problem.num_rows} rows.")
    if int(counts.min()) < 1:
        raise DisaError(f"a row needs at least 1 denoising step, found {int(counts.min())}.")


def look(problem: DenoisingProblem, solver: Solver, first: TimeGrid, noise: Noise) -> tuple[Tensor, Tensor]:
    """Go along the first part of a grid: the state [R, *shape], and what its last evaluation changed [R]."""
    last = first.num_evaluations - 1
    evaluate, seen = seeing(problem, first, (last - 1, last))
    draws = noise.steps(problem, first.num_evaluations) if solver.stochastic else torch.empty(0)
    x = solver.run(evaluate, problem, first, noise.initial(problem).clone(), draws)
    return x, (seen[1] - seen[0]).square().flatten(1).mean(1)


def seeing(problem: DenoisingProblem, grid: TimeGrid, at: Sequence[int]) -> tuple[Evaluate, list[Tensor]]:
    """The field on a grid, and a list that the data predicted in the denoising steps `at`, [R, *shape], are put in."""
    evaluate, seen = problem.field.on(grid), list[Tensor]()

    def looking(x: Tensor, denoise_step: int) -> Prediction:
        said = evaluate(x, denoise_step)
        if denoise_step in at:
            seen.append(data_prediction(problem.process, x, said.value, float(grid.levels[denoise_step])))
        return said

    return looking, seen


def data_prediction(process: Process, x: Tensor, value: Tensor, level: float) -> Tensor:
    """The data that the network expects, from what it says (`value`) at x; all [R, *shape]."""
    if process.predicts == "noise":
        return x.sub(value, alpha=math.sqrt(1 - level)).div_(math.sqrt(level))
    return x.sub(value, alpha=level)


def grid_for_parts(solver: Solver, process: Process, num_steps: int) -> TimeGrid:
    """The same as `grid_for` where a part of the grid is to be gone along in steps of another size."""
    if not isinstance(solver, GridSolver):
        fitting = [name for name in SOLVERS if isinstance(made := make_solver(name), GridSolver)
                   and process.predicts in made.takes]  # fmt: skip
        raise DisaError(f"the solver {solver} cannot change the size of its steps on the way: "
                        f"choose {', '.join(fitting)}.")  # fmt: skip
    return grid_for(solver, process, num_steps)


def grid_for(solver: Solver, process: Process, num_steps: int) -> TimeGrid:
    """The grid that the solver goes along, or one clear error where solver, process and grid do not go together."""
    if process.predicts not in solver.takes:
        fitting = [name for name in SOLVERS if process.predicts in make_solver(name).takes]
        raise DisaError(f"the solver {solver} needs a model that predicts {' or '.join(solver.takes)}; "
                        f"this one predicts {process.predicts}: choose {', '.join(fitting)}.")  # fmt: skip
    return solver.plan(process, num_steps)


def _solve_rows(problem: DenoisingProblem, solver: Solver, num_steps: int, noise: Noise) -> Tensor:
    grid = grid_for(solver, problem.process, num_steps)
    draws = noise.steps(problem, grid.num_evaluations) if solver.stochastic else torch.empty(0)
    return solver.run(problem.field.on(grid), problem, grid, noise.initial(problem).clone(), draws)


class GridSolver:
    """What evaluates once at each time of the grid that it names: the base of most solvers."""

    grid: str

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        return process.grid(self.grid, num_steps)


# -- diffusion -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DDPM(GridSolver):
    """Ancestral sampling with the learned variance (Ho et al. 2020; Nichol and Dhariwal 2021, eq. 15).

    temperature scales the noise that is added, not the initial noise. Nothing is added at the last step.
    """

    grid: str = "clipped-950"
    temperature: float = 1.0
    takes = ("noise",)
    stochastic = True

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        last = grid.num_evaluations - 1 if grid.finishes else grid.num_evaluations
        for i, (keep, remove, log_middle, log_spread) in enumerate(_ddpm_coefficients(grid.levels.tobytes())):
            value, variance = evaluate(x, i)
            x = x.mul_(keep).add_(value, alpha=remove)
            if i < last and self.temperature:
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
    middle, spread = (high + low) / 4, (high - low) / 4
    return list(zip(keep.tolist(), remove.tolist(), middle.tolist(), spread.tolist(), strict=True))


@dataclass(frozen=True)
class DDIM(GridSolver):
    """Song et al. 2021, eq. 12; eta = 0 is deterministic and of order 1, eta = 1 adds as much noise as DDPM.

    DPM-Solver and DPM-Solver++ of order 1 are this update at eta = 0 (Lu et al. 2022): only their grid differs.
    """

    grid: str = "ddim-980"
    eta: float = 0.0
    takes = ("noise",)

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


# -- flow ----------------------------------------------------------------------------------------------------------


def precise(x: Tensor) -> Tensor:
    """In double precision, as the official flow samplers keep their state; MPS has none."""
    return x if x.device.type == "mps" else x.double()


@dataclass(frozen=True)
class Euler(GridSolver):
    """Straight steps along the velocity, of order 1: FlowAR's sampler, and what DDIM is for a flow."""

    grid: str = "uniform"
    takes = ("velocity",)
    stochastic = False

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        x = precise(x)
        for i, step in enumerate(np.diff(grid.levels).tolist()):
            x.add_(evaluate(x.float(), i).value, alpha=step)
        return x.float()


@dataclass(frozen=True)
class Heun:
    """Karras et al. 2022, algorithm 1, without churn: order 2, with n evaluations for n denoising steps.

    It goes along ceil(n / 2) intervals of the grid and evaluates at both ends of each, at t = 0 too; an odd n leaves an
    Euler step for the last interval. So the times are t0, t1, t1, t2, t2, ...
    """

    grid: str = "uniform"
    takes = ("velocity",)
    stochastic = False

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        base = process.grid(self.grid, (num_steps + 1) // 2)
        # Where the state is before and after each interval; both are evaluated, except for an Euler step's end.
        before = np.arange(base.num_evaluations)
        visited = np.stack([before, before + 1], axis=1).flatten()[: 2 * len(before) - num_steps % 2]
        network_times, times = np.append(base.network_times, 0.0), np.append(base.times, 0.0)
        levels = np.append(base.levels[visited], base.levels[-1])
        return TimeGrid(network_times[visited], levels, times[visited])

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        x, count = precise(x), grid.num_evaluations
        for i in range(0, count, 2):
            step = float(grid.levels[i + 1] - grid.levels[i])
            velocity = evaluate(x.float(), i).value.to(x.dtype)
            if i + 1 < count:
                ahead = x.add(velocity, alpha=step).float()
                velocity = velocity.add(evaluate(ahead, i + 1).value).mul_(0.5)
            x.add_(velocity, alpha=step)
        return x.float()


@dataclass(frozen=True)
class EulerMaruyama(GridSolver):
    """xAR's sampler: the reverse SDE with diffusion sqrt(2t), whose marginals are those of the flow (order 1/2).

    Its drift is v - t score = (2 - t) v + x, with score = ((t - 1) v - x) / t (Ma et al. 2024, eq. 4 and 9). The last
    step adds no noise, and a single one is Euler's. temperature scales what is added, not the initial noise.
    """

    grid: str = "xar-em"
    temperature: float = 1.0
    takes = ("velocity",)
    stochastic = True

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        if grid.num_evaluations == 1 and grid.finishes and grid.levels[0] == 1:
            return Euler().run(evaluate, problem, grid, x, noise)
        x, last = precise(x), grid.num_evaluations - 1 if grid.finishes else grid.num_evaluations
        for i, (t, step) in enumerate(zip(grid.levels.tolist(), np.diff(grid.levels).tolist(), strict=False)):
            velocity = evaluate(x.float(), i).value
            x.mul_(1 + step).add_(velocity, alpha=(2 - t) * step)
            if i < last:
                x.add_(noise[i], alpha=self.temperature * math.sqrt(-2 * t * step))
        return x.float()


# -- both ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Multistep:
    """DPM-Solver and DPM-Solver++ of order 2 or 3 through diffusers' `DPMSolverMultistepScheduler`.

    grid None is `logsnr` for a diffusion and `uniform` for a flow. The scheduler is fed predicted noise; for a flow
    DPM-Solver++ is fed predicted data, since noise does not give data at t = 1. The last step falls to order 1, as
    diffusers does for stability.
    """

    algorithm: str = "dpmsolver++"
    order: int = 2
    grid: str | None = None
    takes = ("noise", "velocity")
    stochastic = False

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        _diffusers_scheduler()
        grid = process.grid(self.grid or ("logsnr" if process.predicts == "noise" else "uniform"), num_steps)
        if process.predicts == "noise" and not (
            isinstance(process, CosineDiffusion) and np.array_equal(grid.network_times, grid.network_times // 1)
        ):
            raise DisaError(f"{self.algorithm} of order {self.order} needs a grid of whole timesteps, "
                            f"such as uniform or logsnr; {self.grid} is not one.")  # fmt: skip
        return grid

    def run(self, evaluate: Evaluate, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        if problem.process.predicts == "velocity":
            return self._run_flow(evaluate, grid, x)
        scheduler = self._scheduler(problem.process, grid)
        for i, timestep in enumerate(scheduler.timesteps):
            x = scheduler.step(evaluate(x, i).value, timestep, x, return_dict=False)[0]
        return x

    def _run_flow(self, evaluate: Evaluate, grid: TimeGrid, x: Tensor) -> Tensor:
        scheduler, levels = self._flow_scheduler(grid), grid.levels.tolist()
        for i, timestep in enumerate(scheduler.timesteps):
            velocity, t = evaluate(x, i).value, levels[i]
            share = -t if self.algorithm == "dpmsolver++" else 1 - t
            after = scheduler.step(x.add(velocity, alpha=share), timestep, x, return_dict=False)[0]
            # Order 1 is Euler for a flow; written so, it needs no log-SNR, which is infinite at t = 1.
            x = after if i else x.add(velocity, alpha=levels[1] - t)
        return x

    def _scheduler(self, process: Any, grid: TimeGrid) -> Any:
        scheduler = self._make(
            num_train_timesteps=process.num_timesteps, trained_betas=process.betas, prediction_type="epsilon"
        )
        scheduler.set_timesteps(timesteps=grid.network_times.astype(int).tolist())
        scheduler.sigmas[-1] = 0 if self.algorithm == "dpmsolver++" else 1e-9  # 0 itself is inf - inf in the other one
        return scheduler

    def _flow_scheduler(self, grid: TimeGrid) -> Any:
        """A scheduler whose sigmas are the times of the grid, in place of its own."""
        kind = "sample" if self.algorithm == "dpmsolver++" else "epsilon"
        scheduler = self._make(prediction_type=kind, use_flow_sigmas=True)
        scheduler.set_timesteps(grid.num_evaluations)
        scheduler.sigmas = torch.tensor(grid.levels, dtype=torch.float32)
        scheduler.timesteps = torch.arange(grid.num_evaluations)
        if self.algorithm != "dpmsolver++":
            scheduler.sigmas[-1].clamp_(min=1e-9)
        return scheduler

    def _make(self, **options: Any) -> Any:
        with warnings.catch_warnings():
            # diffusers plans to drop "dpmsolver".
            warnings.filterwarnings("ignore", ".*algorithm_types dpmsolver.*", FutureWarning)
            return _diffusers_scheduler()(
                algorithm_type=self.algorithm,
                solver_order=self.order,
                final_sigmas_type="zero" if self.algorithm == "dpmsolver++" else "sigma_min",
                lower_order_final=True,
                euler_at_final=True,
                **options,
            )


@lru_cache(maxsize=1)
def _diffusers_scheduler() -> Any:
    try:
        from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler  # heavy
    except ImportError as error:
        raise DisaError('this solver needs diffusers: pip install "disa[diffusers]".') from error
    return DPMSolverMultistepScheduler


SOLVERS: dict[str, Callable[..., Solver]] = {
    "ddpm": DDPM,
    "ddim": DDIM,
    "dpm-solver": lambda grid="dpm-950": DDIM(grid),
    "dpm-solver++": lambda grid="dpm-950": DDIM(grid),
    "dpm-solver-2": lambda grid=None: Multistep("dpmsolver", 2, grid),
    "dpm-solver-3": lambda grid=None: Multistep("dpmsolver", 3, grid),
    "dpm-solver++-2": lambda grid=None: Multistep("dpmsolver++", 2, grid),
    "dpm-solver++-3": lambda grid=None: Multistep("dpmsolver++", 3, grid),
    "euler": Euler,
    "heun": Heun,
    "euler-maruyama": EulerMaruyama,
}

WITH_TEMPERATURE = ("ddpm", "euler-maruyama")


def make_solver(name: str, grid: str | None = None, temperature: float = 1.0, eta: float | None = None) -> Solver:
    """The solver that `name` names, with its own grid unless one is given. Raises DisaError."""
    if name not in SOLVERS:
        raise DisaError(f"unknown solver {name!r}: expected one of {', '.join(SOLVERS)}.")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise DisaError(f"temperature must be 0 or more, found {temperature}.")
    if temperature != 1.0 and name not in WITH_TEMPERATURE:
        raise DisaError(f"temperature scales the noise that {' and '.join(WITH_TEMPERATURE)} add; {name} adds none. "
                        "Leave it out or use one of those.")  # fmt: skip
    options: dict[str, Any] = {} if grid is None else {"grid": grid}
    if name in WITH_TEMPERATURE:
        options["temperature"] = temperature
    if eta is not None:
        if name != "ddim":
            raise DisaError(f"eta belongs to ddim, not to {name}.")
        if not 0 <= eta <= 1:
            raise DisaError(f"eta must be 0 to 1, found {eta}.")
        options["eta"] = eta
    return SOLVERS[name](**options)
