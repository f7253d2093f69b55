"""What paths show of one problem: how much draws from the same z vary, and how straight denoising paths are.

Shapes: R rows, n evaluations along a path.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem
from disa.core.solve import solve
from disa.core.solver import Solver, precise

# -- variance ------------------------------------------------------------------------------------------------------


def variance(
    problem: DenoisingProblem,
    solver: Solver,
    num_steps: int,
    noise: SeededNoise,
    draws: int,
    on_draw: Callable[[], None] = lambda: None,
) -> Tensor:
    """[R, *shape] unbiased variance between `draws` draws from the same z, float64; each has a branch of the noise."""
    mean = squares = precise(torch.zeros((), device=problem.device))
    for number in range(draws):
        # Welford's recurrence: no draw is kept, and nothing cancels.
        tokens = precise(solve(problem, solver, num_steps, noise.branch(number)).tokens)
        off = tokens - mean
        mean = mean + off / (number + 1)
        squares = squares + off * (tokens - mean)
        on_draw()
    return squares / (draws - 1)


# -- straightness --------------------------------------------------------------------------------------------------


def straightness(problem: DenoisingProblem, start: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Of the deterministic paths from the noise start [R, *shape], per token: S, and chord over path length.

    S = E_t ||(x1 - x0) - v(x_t, t)||^2 (Liu et al. 2023), t uniform, with the velocity v of the probability-flow ODE,
    so that S is 0 where a path is straight and gone along evenly; the mean over channels. Paths are followed in the
    coordinates of a flow (`Process.flow_grid`), since in any other time or scale even that of a single datum bends.
    Euler's steps along v, which are DDIM's for a diffusion, begin at the largest trained t (0.93 for a cosine, 1 for a
    flow), and x1 - x0 is the mean velocity from there on.
    """
    process = problem.process
    grid, t = process.flow_grid(num_steps)
    bound, levels = problem.field.on(grid), grid.levels.tolist()
    x = precise(start) / process.flow_scale(levels[0])
    total, squares, length = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x[..., 0])
    for i, step in enumerate((-np.diff(t)).tolist()):
        state = x * process.flow_scale(levels[i])
        velocity = process.velocity(state, bound(state.float(), i).value.to(x.dtype), levels[i])
        x = x - step * velocity
        total += step * velocity
        squares += step * velocity.square()
        length += step * velocity.norm(dim=-1)
    mean = total / t[0]
    return (squares / t[0] - mean.square()).mean(-1), total.norm(dim=-1) / length
