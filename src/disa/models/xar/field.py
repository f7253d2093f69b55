"""The field of a cell: the transformer of xAR with the finished cells and guidance.

Shapes: R rows (images of a problem), N tokens per cell, D width; B' is R, or 2 R with guidance: conditional first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disa.core.problem import Counter, Evaluate, Field, Prediction, TimeGrid
from disa.errors import DisaError
from disa.models.heads import LOOKAHEAD_VALUES
from disa.models.transformer import KVCache


@dataclass(frozen=True)
class CellField(Field):
    """The velocity of a cell given those before it, with guidance inside the interval of time.

    model: an `XAR`; cache: [.., B', ..]; embedding: [num_halves R, D]. Valid until the generation poses its next
    problem, which writes to the same cache; `select` makes a copy that stays valid.
    """

    model: Any
    cell: int
    cache: KVCache
    embedding: Tensor
    num_halves: int
    scale: float
    interval: tuple[float, float]
    counter: Counter

    @property
    def num_rows(self) -> int:
        return len(self.embedding) // self.num_halves

    def select(self, rows: Tensor) -> CellField:
        both = torch.cat([rows + half * self.num_rows for half in range(self.num_halves)])
        return CellField(
            self.model, self.cell, self.cache.select(both), self.embedding[both], self.num_halves,
            self.scale, self.interval, self.counter,
        )  # fmt: skip

    def on(self, grid: TimeGrid) -> Evaluate:
        return _BoundCell(self, grid)


class _BoundCell:
    """A `CellField` on one grid."""

    def __init__(self, bound: CellField, grid: TimeGrid) -> None:
        self.field, self.model = bound, bound.model
        self.span, self.rotation = bound.model.span(bound.cell), bound.model.rotation(bound.embedding.device)
        self.num_halves = [bound.num_halves if acts else 1 for acts in grid.within(bound.interval)]
        times = torch.tensor(grid.network_times, dtype=torch.float32, device=bound.embedding.device)
        self.times = self.model.time_table(times)
        values = len(bound.embedding) * self.model.modulation.out_features
        self.lookahead = max(1, LOOKAHEAD_VALUES // values)
        self.first, self.modulations = -1, times

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        if self.field.cache.length != self.span.start:
            raise DisaError(f"the problem of AR step {self.field.cell} is over: its generation went on.")
        num_halves = self.num_halves[denoise_step]
        count = num_halves * self.field.num_rows
        self.field.counter.evaluations += count
        modulation = self._modulation(denoise_step)[:, None]
        cache = self.field.cache.select(slice(count))
        value = self.model.velocity(self.model.transform(x, modulation, self.span, self.rotation, cache))
        if num_halves == 2:
            conditional, unconditional = value.chunk(2)
            value = torch.lerp(unconditional, conditional, self.field.scale)
        return Prediction(value)

    def _modulation(self, denoise_step: int) -> Tensor:
        """Modulations [num_halves R, depth, 6, D], computed for a stretch of steps with as many halves."""
        if not 0 <= denoise_step - self.first < len(self.modulations) or self.first < 0:
            self.first, self.modulations = denoise_step, self.times  # the old stretch makes room for the new
            ahead = self.num_halves[denoise_step : denoise_step + self.lookahead]
            stretch = next((i for i, halves in enumerate(ahead) if halves != ahead[0]), len(ahead))
            times = self.times[denoise_step : denoise_step + stretch, None]
            self.modulations = self.model.modulations(times + self.field.embedding[: ahead[0] * self.field.num_rows])
        return self.modulations[denoise_step - self.first]
