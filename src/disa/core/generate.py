"""The one autoregressive loop."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from disa.core.problem import ARModel, ARState, ARStep, Noise, Watch
from disa.core.request import Request
from disa.core.solvers import Solver, solve, watch
from disa.core.steps import StepPolicy, fresh


@torch.no_grad()
def generate_steps(
    model: ARModel, request: Request, policy: StepPolicy, solver: Solver, noise: Noise
) -> Iterator[ARStep]:
    """Draw a batch, one `ARStep` a turn; after the last, `model.finish(step.state)` gives the latents."""
    state: ARState = model.begin(request, noise)
    policy = fresh(policy)
    for ar_step in range(request.num_ar_steps):
        before, started = state.counter.evaluations, time.perf_counter()
        problem = model.pose(state)
        posed = _now(problem.device)
        asked = policy(problem)
        if isinstance(asked, Watch):
            tokens, steps = watch(problem, solver, asked, noise)
        else:
            tokens, steps = solve(problem, solver, asked, noise), asked
        solved = _now(problem.device)
        model.accept(state, tokens)
        made = state.counter.evaluations - before
        backbone = posed - started + time.perf_counter() - solved
        yield ARStep(ar_step, problem, steps, tokens, made, backbone, solved - posed, state)


def _now(device: torch.device) -> float:
    """The time, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
