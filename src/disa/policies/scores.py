"""Scores: a number per row that grows with the error to be expected of it.

Shapes: R rows, D condition width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from disa.core.problem import DenoisingProblem, Prediction
from disa.errors import DisaError
from disa.runtime.packing import Linear

Score = Callable[[DenoisingProblem], Tensor]
"""A number per row [R] that grows with the error to be expected."""


SMALLEST = 1e-12
"""The least error whose log is taken."""


def _two_looks(problem: DenoisingProblem, share: float, *signs: float) -> list[tuple[Tensor, Prediction]]:
    """For each sign of a noise that all rows have in common, two evaluations per row: of the noise alone, and of the
    data [R, *shape] predicted from it with the same noise at a share of the way there. What the second one said: the
    data that it predicts, and all else."""
    process, whole = problem.process, problem.process.grid("uniform", 20)
    stop = round(20 * share)
    parts = whole.part(0, stop, 1), whole.part(stop, stop + 1, 1)
    (far, far_level), (near, near_level) = ((problem.field.on(part), float(part.levels[0])) for part in parts)
    random = torch.Generator().manual_seed(0)
    common = torch.randn(problem.shape, generator=random, dtype=torch.float32).to(problem.device)
    looks = []
    for sign in signs:
        noise = (sign * common).expand(problem.num_rows, *problem.shape)
        x = process.noised(process.data(noise, far(noise, 0).value, far_level), noise, near_level)
        said = near(x, 0)
        looks.append((process.data(x, said.value, near_level), said))
    return looks


def _log_mean_square(x: Tensor) -> Tensor:
    """[R] of [R, *shape], on the CPU: MPS has no float64."""
    return x.cpu().double().square().flatten(1).mean(1).clamp_(min=SMALLEST).log_()


def spread_of_draws(problem: DenoisingProblem) -> Tensor:
    """[R] log of the variance between two short draws from opposite noise, two evaluations each."""
    (one, _), (other, _) = _two_looks(problem, 0.5, 1.0, -1.0)
    return _log_mean_square((one - other) / 2)


def learned_variance(problem: DenoisingProblem) -> Tensor:
    """[R] the head's own variance value, from low (-1) to high (1), near the data that it predicts; two evaluations."""
    ((_, said),) = _two_looks(problem, 0.9, 1.0)
    if said.variance is None:
        raise DisaError("this model learns no variance: choose variance:draws or variance:probe.")
    return said.variance.cpu().double().flatten(1).mean(1)


class Probe(nn.Module):
    """z -> the logs of two errors to be expected: of few denoising steps, and of the one-evaluation prediction.

    z is the condition of a row, its mean where a row is a group of tokens, beside the share of AR steps made.
    """

    def __init__(self, width: int, hidden: int = 16) -> None:
        super().__init__()
        self.mean, self.scale = (nn.Buffer(values) for values in (torch.zeros(width), torch.ones(width)))
        self.input, self.output = Linear(width, hidden), Linear(hidden, 2)

    def forward(self, z: Tensor) -> Tensor:
        """[R, D + 1] -> [R, 2]."""
        return self.output(self.input((z - self.mean) / self.scale, activation="gelu"))


def features(problem: DenoisingProblem) -> Tensor:
    """[R, D + 1] what a probe is fed."""
    if problem.condition is None:
        raise DisaError("this model says nothing of what its rows are conditioned on: choose variance:draws.")
    z = problem.condition.float()
    z = z.mean(1) if z.dim() > 2 else z
    return torch.cat([z, torch.full_like(z[:, :1], problem.ar_step / problem.num_ar_steps)], dim=1)


@dataclass(frozen=True, eq=False)
class Predicted:
    """The score that is one of the two outputs of a probe."""

    probe: Probe
    output: int

    def __call__(self, problem: DenoisingProblem) -> Tensor:
        """[R]."""
        return self.probe.to(problem.device)(features(problem))[:, self.output]
