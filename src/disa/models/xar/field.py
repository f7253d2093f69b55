"""The velocity network of a cell: the transformer of xAR with the finished cells.

Shapes: R rows (images of a problem), P halves of them, N tokens per cell, D width, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from disa.core.problem import Prediction, TimeGrid
from disa.errors import DisaError
from disa.models.guided import BoundNetwork, Lookahead, Network, network_times
from disa.models.transformer import KVCache, Rotation


@dataclass(frozen=True)
class CellNetwork(Network):
    """The transformer with the keys and values of the cells before one, and the classes of its rows.

    model: an `XAR`; cache: its first P R rows are those of embedding [P, R, D]; rotation: of all L tokens. Valid until
    the generation poses its next problem, which writes to the same cache; `select` makes a copy that stays valid.
    """

    model: Any
    cell: int
    cache: KVCache
    embedding: Tensor
    rotation: Rotation

    @property
    def num_halves(self) -> int:
        return len(self.embedding)

    def select(self, rows: Tensor) -> CellNetwork:
        num_halves, num_rows, _ = self.embedding.shape
        both = torch.cat([rows + half * num_rows for half in range(num_halves)])
        return replace(self, cache=self.cache.select(both), embedding=self.embedding[:, rows])

    def on(self, grid: TimeGrid, num_halves: Sequence[int]) -> BoundNetwork:
        return _BoundCell(self, grid, num_halves)


class _BoundCell:
    """A `CellNetwork` on one grid."""

    def __init__(self, network: CellNetwork, grid: TimeGrid, num_halves: Sequence[int]) -> None:
        self.network, self.model, self.num_halves = network, network.model, num_halves
        device, rows = network.embedding.device, network.embedding.shape[:2].numel()
        self.span, self.rotation = self.model.span(network.cell), network.rotation
        self.times = self.model.time_table(network_times(grid, device))
        self.modulation = Lookahead(num_halves, rows * self.model.modulation.out_features)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        if self.network.cache.length != self.span.start:
            raise DisaError(f"the problem of AR step {self.network.cell} is over: its generation went on.")
        num_halves = self.num_halves[denoise_step]
        modulation = self.modulation.at(denoise_step, self._modulations)[:, None]
        cache = self.network.cache.select(slice(num_halves * len(x)))
        hidden = self.model.transform(x, modulation, self.span, self.rotation, cache)
        return Prediction(self.model.velocity(hidden).unflatten(0, (num_halves, -1)))

    def _modulations(self, stretch: slice, num_halves: int) -> Tensor:
        """[stretch, num_halves R, depth, 6, D]."""
        condition = self.times[stretch, None] + self.network.embedding[:num_halves].flatten(0, 1)
        return self.model.block_modulations(condition)
