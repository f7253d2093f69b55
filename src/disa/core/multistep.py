"""Solvers of order 2 and 3 through diffusers, which is imported when one of them plans, by nothing else here."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core.problem import Bound, DenoisingProblem, Grid, Process, TimeGrid
from disa.core.solver import NamedSolver
from disa.errors import DisaError


@dataclass(frozen=True)
class Multistep(NamedSolver):
    """DPM-Solver and DPM-Solver++ of order 2 or 3 through diffusers' `DPMSolverMultistepScheduler`.

    grid None is the even grid of the process: `logsnr` for a diffusion, `uniform` for a flow. The scheduler is fed
    predicted noise; for a flow DPM-Solver++ is fed predicted data, since noise does not give data at t = 1. The last
    step falls to order 1, as diffusers does for stability. A process that predicts noise must have `betas`, the [T]
    variances of its forward steps, and the grid must visit whole timesteps of it.
    """

    algorithm: str = "dpmsolver++"
    order: int = 2
    grid: Grid | None = None
    takes = ("noise", "velocity")
    stochastic = False
    structural = ("grid", "algorithm", "order")

    @property
    def name(self) -> str:
        return f"{self.algorithm.replace('dpmsolver', 'dpm-solver')}-{self.order}"

    def plan(self, process: Process, num_steps: int) -> TimeGrid:
        _diffusers_scheduler()
        grid = process.grid(self.grid or process.even_grid, num_steps)
        if process.predicts != "noise":
            return grid
        if getattr(process, "betas", None) is None:
            raise DisaError(f"{self.name} needs a diffusion of whole timesteps and their betas; choose another.")
        if not np.array_equal(grid.network_times, grid.network_times // 1):
            raise DisaError(
                f"{self.name} needs a grid of whole timesteps, such as uniform or logsnr; {self.grid} is not one."
            )
        return grid

    def run(self, bound: Bound, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
        if problem.process.predicts == "velocity":
            return self._run_flow(bound, grid, x)
        scheduler = self._scheduler(problem.process, grid)
        for i, timestep in enumerate(scheduler.timesteps):
            x = scheduler.step(bound(x, i).value, timestep, x, return_dict=False)[0]
        return x

    def _run_flow(self, bound: Bound, grid: TimeGrid, x: Tensor) -> Tensor:
        scheduler, levels = self._flow_scheduler(grid), grid.levels.tolist()
        for i, timestep in enumerate(scheduler.timesteps):
            velocity, t = bound(x, i).value, levels[i]
            share = -t if self.algorithm == "dpmsolver++" else 1 - t
            after = scheduler.step(x.add(velocity, alpha=share), timestep, x, return_dict=False)[0]
            # Order 1 is Euler for a flow; written so, it needs no log-SNR, which is infinite at t = 1.
            x = after if i else x.add(velocity, alpha=levels[1] - t)
        return x

    def _scheduler(self, process: Any, grid: TimeGrid) -> Any:
        betas = process.betas
        scheduler = self._make(num_train_timesteps=len(betas), trained_betas=betas, prediction_type="epsilon")
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
