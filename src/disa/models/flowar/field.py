"""The field of a scale: FlowAR's head with its conditions and guidance.

Shapes: R rows (images of a problem), L tokens of a scale, W head width, n denoising steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from disa.core.problem import Counter, Evaluate, Field, Prediction, TimeGrid
from disa.models.flowar.head import FlowHead, Memory
from disa.models.transformer import Rotation


@dataclass(frozen=True)
class FlowHeadField(Field):
    """A head with its conditions and guidance: velocity = unconditional + scale (conditional - unconditional).

    The unconditional half is there only where scale > 1, and evaluated only inside the interval of time.
    """

    head: FlowHead
    memory: Memory
    rotation: Rotation
    scale: float
    interval: tuple[float, float]
    counter: Counter

    def select(self, rows: Tensor) -> FlowHeadField:
        return replace(self, memory=self.memory.select(rows))

    def on(self, grid: TimeGrid) -> Evaluate:
        return _BoundHead(self, grid)


class _BoundHead:
    """A `FlowHeadField` on one grid: what depends on time alone is computed here, for all denoising steps."""

    def __init__(self, field: FlowHeadField, grid: TimeGrid) -> None:
        self.field, self.head = field, field.head
        available = len(field.memory.projected)
        self.num_halves = [available if acts else 1 for acts in grid.within(field.interval)]
        self.memory = {count: field.memory.halves(count) for count in set(self.num_halves)}
        times = torch.tensor(grid.network_times, dtype=torch.float32, device=field.memory.projected.device)
        self.times = self.head.time_table(times)
        self.timed = self.head.timed(self.times)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        count, now = self.num_halves[denoise_step], slice(denoise_step, denoise_step + 1)
        self.field.counter.evaluations += count * len(x)
        h = self.head.input(x.to(self.times.dtype)).repeat(count, 1, 1)
        timed = [modulation[now] for modulation in self.timed]
        velocity = self.head.denoise(h, self.times[now], timed, self.memory[count], self.field.rotation)
        if count == 2:
            conditional, unconditional = velocity.chunk(2)
            velocity = torch.lerp(unconditional, conditional, self.field.scale)
        return Prediction(velocity)
