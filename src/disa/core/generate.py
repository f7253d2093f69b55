"""The one autoregressive loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from disa.core.problem import ARModel, ARStep, DenoisingProblem, Moment, Moments, Noise
from disa.core.request import Request
from disa.core.solve import Meter, Plainly, solve
from disa.core.solver import Solver
from disa.core.steps import StepPolicy, fresh
from disa.core.work import Work

Clock = Callable[[], Moment]
"""What time it is; a fair clock tells when the device is done with the work that it was given before."""


class Drawing(Plainly):
    """One generation under way: what the loop asks for, computed as it is asked. A runtime may compute it otherwise,
    with the same results."""

    def __init__(self, model: ARModel, request: Request, noise: Noise) -> None:
        super().__init__(noise)
        self.model = model
        self.state: Any = model.begin(request, noise)

    def pose(self) -> DenoisingProblem:
        """The problem of the next AR step."""
        return self.model.pose(self.state)

    def accept(self, tokens: Tensor) -> None:
        """Take in the tokens of the problem posed last."""
        self.model.accept(self.state, tokens)

    def close(self) -> None:
        """The generation is over."""


@torch.no_grad()
def generate_steps(
    model: ARModel,
    request: Request,
    policy: StepPolicy,
    solver: Solver,
    noise: Noise,
    clock: Clock = time.perf_counter,
    begin: Callable[[ARModel, Request, Noise], Drawing] = Drawing,
) -> Iterator[ARStep]:
    """Draw a batch, one `ARStep` a turn; after the last, `model.finish(step.state)` gives the latents.

    What the policy evaluates is counted with what the solver does, and what the model's `begin` computes with the first
    AR step. begin: how it is computed.
    """
    with (work := Work()):
        drawing = begin(model, request, noise)
    try:
        policy = fresh(policy)
        for ar_step in range(request.num_ar_steps):
            started = clock()
            with work:
                problem = drawing.pose()
            posed, meter = clock(), Meter()
            solution = solve(problem, solver, policy(meter.on(problem)), noise, drawing)
            solved = clock()
            with work:
                drawing.accept(solution.tokens)
            moments, made = Moments(started, posed, solved, clock()), meter.evaluations + solution.evaluations
            told = solution.steps, solution.tokens, made, moments, drawing.state
            step = ARStep(ar_step, problem, *told, work.tokens, work.operations + made * problem.operations)
            del problem, solution, meter, told  # what nobody holds may be written over
            yield step
            del step
            work = Work()
    finally:
        drawing.close()
