"""The one autoregressive loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch

from disa.core.problem import ARModel, ARStep, Moment, Moments, Noise
from disa.core.request import Request
from disa.core.solve import Meter, solve
from disa.core.solver import Solver
from disa.core.steps import StepPolicy, fresh
from disa.core.work import Work

Clock = Callable[[], Moment]
"""What time it is; a fair clock tells when the device is done with the work that it was given before."""


@torch.no_grad()
def generate_steps(
    model: ARModel,
    request: Request,
    policy: StepPolicy,
    solver: Solver,
    noise: Noise,
    clock: Clock = time.perf_counter,
) -> Iterator[ARStep]:
    """Draw a batch, one `ARStep` a turn; after the last, `model.finish(step.state)` gives the latents.

    What the policy evaluates is counted with what the solver does, and what `begin` computes with the first AR step.
    """
    with (work := Work()):
        state = model.begin(request, noise)
    policy = fresh(policy)
    for ar_step in range(request.num_ar_steps):
        started = clock()
        with work:
            problem = model.pose(state)
        posed, meter = clock(), Meter()
        solution = solve(problem, solver, policy(meter.on(problem)), noise)
        solved = clock()
        with work:
            model.accept(state, solution.tokens)
        moments = Moments(started, posed, solved, clock())
        made = meter.evaluations + solution.evaluations
        operations = work.operations + made * problem.operations
        yield ARStep(ar_step, problem, solution.steps, solution.tokens, made, moments, state, work.tokens, operations)
        work = Work()
