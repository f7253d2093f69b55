"""The velocity network of a scale: FlowAR's head with its conditions.

Shapes: R rows (images of a problem), P halves of them, L tokens of a scale, W head width, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from disa.core.problem import Prediction, TimeGrid
from disa.models.flowar.head import FlowHead, Memory
from disa.models.guided import BoundNetwork, Network, network_times
from disa.models.transformer import Rotation


@dataclass(frozen=True)
class FlowHeadNetwork(Network):
    """A head with its conditions, as its memory of them."""

    head: FlowHead
    memory: Memory
    rotation: Rotation

    @property
    def num_halves(self) -> int:
        return len(self.memory.projected)

    def select(self, rows: Tensor) -> FlowHeadNetwork:
        return replace(self, memory=self.memory.select(rows))

    def on(self, grid: TimeGrid, num_halves: Sequence[int]) -> BoundNetwork:
        return _BoundHead(self, grid, num_halves)


class _BoundHead:
    """A `FlowHeadNetwork` on one grid: what depends on time alone is computed here, for all denoising steps."""

    def __init__(self, network: FlowHeadNetwork, grid: TimeGrid, num_halves: Sequence[int]) -> None:
        self.head, self.rotation, self.num_halves = network.head, network.rotation, num_halves
        self.memory = {count: network.memory.halves(count) for count in set(num_halves)}
        self.times = self.head.time_table(network_times(grid, network.memory.projected.device))
        self.timed = self.head.timed(self.times)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        count, now = self.num_halves[denoise_step], slice(denoise_step, denoise_step + 1)
        h = self.head.input(x.to(self.times.dtype)).repeat(count, 1, 1)
        timed = [modulation[now] for modulation in self.timed]
        velocity = self.head.denoise(h, self.times[now], timed, self.memory[count], self.rotation)
        return Prediction(velocity.unflatten(0, (count, -1)))
