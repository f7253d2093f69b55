"""A bound field from a function, for tests that know what a network would say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from disa.core.problem import Prediction, TimeGrid


@dataclass(frozen=True)
class Said:
    """evaluate: what is said at (x, denoise_step)."""

    evaluate: Callable[[Tensor, int], Prediction]
    costs: Sequence[int]

    @classmethod
    def on(cls, grid: TimeGrid, evaluate: Callable[[Tensor, int], Prediction], cost: int = 1) -> Said:
        """The same cost in every denoising step."""
        return cls(evaluate, [cost] * grid.num_evaluations)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        return self.evaluate(x, denoise_step)
