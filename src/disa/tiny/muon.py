"""Muon: momentum whose matrices are made orthogonal, so that all directions of a weight are learned equally fast.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon), with steps as long as those of AdamW, as in Liu et al.
2025 (arXiv 2502.16982). `torch.optim.Muon` always computes in bfloat16, which a processor without instructions for it
is slow at, and one matrix at a time (docs/LOG.md). Shapes: N matrices, R rows, C columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5: repeated, the polynomial takes singular values from 0.005 to 1 to between 0.68 and 1.16."""
REPEATS = 5
LENGTH = 0.2
"""Root mean square of an update over the learning rate: what it is with AdamW."""


class Muon(torch.optim.Optimizer):
    """For matrices alone. A group's are of one shape; "parts" matrices lie below each other in each of them. dtype: of
    the products that make updates orthogonal."""

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "parts": 1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update from the gradients, which every matrix has."""
        for group in self.param_groups:
            weights: list[Tensor] = group["params"]
            gradients = torch.stack([weight.grad for weight in weights if weight.grad is not None])
            state = self.state[weights[0]]
            if not state:
                state["momentum"] = torch.zeros_like(gradients)
            state["momentum"].lerp_(gradients, 1 - group["momentum"])
            ahead = gradients.lerp(state["momentum"], group["momentum"])
            matrices = ahead.view(len(weights) * group["parts"], -1, ahead.shape[2])
            updates = orthogonal(matrices, self.dtype).reshape(ahead.shape)
            length = LENGTH * math.sqrt(max(matrices.shape[1:]))
            for weight, update in zip(weights, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * length)


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """[N, R, C] with the singular vectors of `matrices`, singular values near 1 (Newton-Schulz); dtype: of products."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT, dtype).mT
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(dtype)
    for _ in range(REPEATS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)
