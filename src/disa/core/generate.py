"""The one autoregressive loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from disa.core.problem import ARModel, ARStep, Noise
from disa.core.request import Request
from disa.core.solve import Meter, solve
from disa.core.solver import Solver
from disa.core.steps import StepPolicy, fresh

Clock = Callable[[torch.device], float]
"""From a device to seconds on the scale of `time.perf_counter`; a fair one first waits until the device is done."""


def wall_clock(device: torch.device) -> float:
    """The time without waiting for the device."""
    return time.perf_counter()


@torch.no_grad()
def generate_steps(
    model: ARModel, request: Request, policy: StepPolicy, solver: Solver, noise: Noise, clock: Clock = wall_clock
) -> Iterator[ARStep]:
    """Draw a batch, one `ARStep` a turn; after the last, `model.finish(step.state)` gives the latents.

    What the policy evaluates is counted with what the solver does.
    """
    state = model.begin(request, noise)
    policy = fresh(policy)
    for ar_step in range(request.num_ar_steps):
        started = time.perf_counter()
        problem = model.pose(state)
        posed, meter = clock(problem.device), Meter()
        solution = solve(problem, solver, policy(meter.on(problem)), noise)
        solved = clock(problem.device)
        model.accept(state, solution.tokens)
        backbone = posed - started + time.perf_counter() - solved
        made = meter.evaluations + solution.evaluations
        yield ARStep(ar_step, problem, solution.steps, solution.tokens, made, backbone, solved - posed, state)
