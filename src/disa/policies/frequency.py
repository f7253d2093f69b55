"""`frequency`: tokens whose conditions change most from channel to channel get the early count, the others the late.

What is still to be drawn in detail is told from the spectrum of a condition vector along its channels (GtR,
arXiv 2510.17171): the score is the sum of |DFT(z)|, higher frequencies weighted up to twice.

Shapes: B images, N rows per image, R = B N rows, D condition width.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from disa.core.problem import DenoisingProblem, Process
from disa.core.solver import Solver
from disa.core.solvers import grid_for
from disa.core.spending import Spending, parse_spending
from disa.core.steps import Remembering
from disa.errors import DisaError
from disa.models.spec import Preset
from disa.runtime.kernels import linear
from disa.values import shown, whole_number

SHARE = 0.1
"""Of the tokens of an image, that get the early count."""


@lru_cache(maxsize=8)
def waves(width: int) -> Tensor:
    """[2 F, D] cosines, then sines, of the frequencies 1 to F = D / 2."""
    frequency, channel = torch.arange(1, width // 2 + 1).double(), torch.arange(width).double()
    angles = 2 * math.pi / width * frequency[:, None] * channel
    return torch.cat([angles.cos(), angles.sin()]).float()


def detail(z: Tensor) -> Tensor:
    """[R, D] -> [R] the weighted sum of the spectrum, a row's own whatever is computed beside it."""
    parts = linear(z.float(), waves(z.shape[1]).to(z.device)).unflatten(1, (2, -1))
    half = parts.shape[2]
    weight = 1 + torch.arange(1, half + 1, device=z.device) / half
    return (parts.square().sum(1).sqrt() * weight).sum(1)


@dataclass(frozen=True)
class ByFrequency(Remembering):
    """The policy: in each image a tenth of the tokens gets the early count."""

    spending: Spending

    def begin(self) -> _Chooser:
        """The policy for one generation, which knows how many tokens were drawn."""
        return _Chooser(self)

    def __call__(self, problem: DenoisingProblem) -> Tensor:
        return self.begin()(problem)

    def __str__(self) -> str:
        return f"frequency:{self.spending.early}-{self.spending.late}"

    def fitted_to(self, solver: Solver, process: Process) -> ByFrequency:
        """The same, whose counts the grid of a solver must have. Raises DisaError."""
        for count in (self.spending.early, self.spending.late):
            grid_for(solver, process, count)
        return self


class _Chooser:
    """A `ByFrequency` during one generation."""

    def __init__(self, policy: ByFrequency) -> None:
        self.policy, self.drawn = policy, 0

    def __call__(self, problem: DenoisingProblem) -> Tensor:
        """[R]."""
        z, spending = problem.condition, self.policy.spending
        if z is None or z.dim() != 2:
            raise DisaError(f"{self.policy} chooses among the tokens of an AR step: this model draws them as one row.")
        order = problem.image.argsort(stable=True)
        rows = len(order) // (int(problem.image.max()) + 1)
        before, self.drawn = self.drawn, self.drawn + rows
        # So that few tokens at a time make a tenth of the image, too.
        chosen = int(SHARE * self.drawn) - int(SHARE * before)
        rank = detail(z)[order].view(-1, rows).argsort(dim=1, descending=True, stable=True)
        counts = torch.full_like(rank, spending.late).scatter_(1, rank[:, :chosen], spending.early)
        return torch.empty_like(order).scatter_(0, order, counts.flatten())


def parse(text: str, preset: Preset) -> ByFrequency:
    """The policy that `frequency` or `frequency:50-5` names. Raises DisaError."""
    found = re.fullmatch(r"frequency(?::([0-9]+)-([0-9]+))?", text.strip())
    if found is None:
        raise DisaError(f"unknown step policy {shown(text)}: expected frequency or frequency:50-5.")
    if preset.spec.architecture.capabilities.in_order:
        raise DisaError(f"frequency chooses among the tokens of an AR step: {preset.name} draws them as one row.")
    own = parse_spending(preset.defaults.spending)
    ends = [whole_number(end, "a number of denoising steps") for end in found.groups() if end] or [own.early, own.late]
    return ByFrequency(Spending(*ends))
