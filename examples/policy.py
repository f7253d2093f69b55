"""A step policy of your own: more denoising steps for the tokens whose condition is far from the others'.

    python examples/policy.py

A policy is called with the problem of every AR step and returns one count, or one per row. It may look at everything in
`disa.core.problem.DenoisingProblem`; what it evaluates is counted. docs/adaptive.md says how to give it a budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

import disa
from disa.core.problem import DenoisingProblem
from disa.core.steps import StepPolicy


@dataclass(frozen=True)
class Doubtful:
    """The half of an image's rows with the most unusual conditions gets `early` steps, the other half `late`."""

    early: int
    late: int

    def __call__(self, problem: DenoisingProblem) -> Tensor:
        assert problem.condition is not None
        z = problem.condition.view(int(problem.image.max()) + 1, -1, problem.condition.shape[-1])
        distance = (z - z.mean(1, keepdim=True)).norm(dim=-1)
        unusual = distance >= distance.median(1, keepdim=True).values
        return torch.where(unusual, self.early, self.late).flatten()


def main(policies: Sequence[str | StepPolicy]) -> None:
    sampler = disa.Sampler.from_pretrained("mar-digits", device="cpu")
    for policy in policies:
        out = sampler.sample(labels=[3, 5], seeds=[0, 1], steps=policy)
        print(f"{policy!s:32} {out.evaluations_per_row:5.1f} evaluations per row, {out.seconds:.2f} s")


if __name__ == "__main__":
    main(["constant:50", "linear:50-5", Doubtful(early=30, late=8)])
