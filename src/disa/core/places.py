"""Where the tokens of an image are, in the order in which they are drawn.

Shapes: B images, L tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from disa.core.constants import constant
from disa.core.orders import Order


def ordered(order: Order, random: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, L] places on a grid of tokens, from the last to be drawn to the first.

    random: [B, L] a uniformly random order of each image, laid out likewise.
    """
    if order.name == "raster":
        return torch.arange(random.shape[1], device=random.device).flip(0).repeat(len(random), 1)
    if order.name == "halton":
        return _moved(_on(random.device, halton(grid)), random[:, -1], grid).flip(1)
    if order.name == "checkerboard":
        stages = _on(random.device, stages_of(grid, order.stages).tolist())
        return random.gather(1, stages[random].argsort(dim=1, descending=True, stable=True))
    return random


def _on(device: torch.device, places: Sequence[int]) -> Tensor:
    """Whole numbers [L] on a device, which follow from the grid and the order."""
    return constant(("places", *places, device), lambda: torch.tensor(places).to(device, non_blocking=True))


def stages_of(grid: tuple[int, int], num_stages: int) -> np.ndarray:
    """[L] the stage of each place of a checkerboard, from 0: by how often 2 divides its row + column.

    The last stage is where that is odd, half of the image; the one before where it is even, but not a multiple of 4,
    and so on.
    """
    diagonal = np.add.outer(np.arange(grid[0]), np.arange(grid[1])).flatten()
    powers = 2 ** np.arange(1, num_stages)
    return num_stages - 1 - (diagonal[:, None] % powers == 0).sum(axis=1)


@lru_cache(maxsize=64)
def halton(grid: tuple[int, int]) -> tuple[int, ...]:
    """[L] places of a grid in the order in which points of the Halton sequence first fall into them."""
    rows, columns = grid
    seen, first, count = np.empty(0, dtype=np.int64), 1, 4 * rows * columns
    while True:
        index = np.arange(first, first + count)
        row, column = ((_inverse(index, base) * side).astype(np.int64) for base, side in ((2, rows), (3, columns)))
        together = np.concatenate([seen, row * columns + column])
        _, at = np.unique(together, return_index=True)
        seen = together[np.sort(at)]
        if len(seen) == rows * columns:
            return tuple(seen.tolist())
        first += count


def _inverse(index: np.ndarray, base: int) -> np.ndarray:
    """The digits of numbers in a base, mirrored behind the point: [0, 1)."""
    found, scale = np.zeros(len(index)), 1.0
    while index.any():
        scale /= base
        found += scale * (index % base)
        index = index // base
    return found


def _moved(places: Tensor, by: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, L] places [L], moved around a grid so that place 0 comes to `by` [B]."""
    rows, columns = grid
    row = (places // columns + by[:, None] // columns) % rows
    column = (places % columns + by[:, None] % columns) % columns
    return row * columns + column
