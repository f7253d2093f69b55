"""Diffusion heads: what BitDance's shares, and that of MAR, Harmon, eMIGM and NextStep, an MLP with adaptive norms.

Shapes: R rows, P halves of them (conditional first), N tokens of a row where it has several, C token channels, W head
width, D condition width, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.core.flow import FlowLoss
from disa.core.problem import Prediction, TimeGrid
from disa.core.work import product
from disa.models.guided import (
    LOOKAHEAD_VALUES,
    BoundNetwork,
    Lookahead,
    Network,
    RaggedNetwork,
    Together,
    network_times,
)
from disa.models.layers import TIME_FEATURES, embed_times
from disa.runtime.fused import gated_linear, modulated_linear
from disa.runtime.kernels import swish
from disa.runtime.packing import Linear
from disa.runtime.tiles import padding

NORM_EPS = 1e-6


class ResidualBlock(nn.Module):
    """Modulated layer norm, two linear layers, gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.fc1 = Linear(width, width)
        self.fc2 = Linear(width, width)

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        norm = self.norm.weight, self.norm.bias
        hidden = modulated_linear(self.fc1, h, norm, shift, scale, NORM_EPS, "swish")
        return gated_linear(self.fc2, h, gate, hidden)

    @property
    def operations(self) -> int:
        """Of one row."""
        return product(1, self.fc1.in_features, self.fc1.out_features, self.fc2.out_features)


class ModulatedHead(nn.Module):
    """Blocks between two linear layers, modulated by what time and condition say.

    The modulations of all blocks and of the output layer depend on time and condition alone, so they are one
    linear layer, which is evaluated for many denoising steps at once. A head says one value or several parts.
    """

    group_size = 1
    """Tokens of a row."""

    def __init__(
        self, channels: int, condition_width: int, width: int, blocks: Iterable[nn.Module], modulations: int, parts: int
    ) -> None:
        super().__init__()
        self.width, self.parts = width, parts
        self.time_in = Linear(TIME_FEATURES, width)
        self.time_out = Linear(width, width)
        self.condition = Linear(condition_width, width)
        self.input = Linear(channels, width)
        self.blocks = nn.ModuleList(blocks)
        self.modulation = Linear(width, modulations * width)
        self.output = Linear(width, parts * channels)

    def said(self, output: Tensor) -> Prediction:
        """The parts of an output [..., C or 2 C]."""
        return Prediction(*output.chunk(self.parts, dim=-1))

    @property
    def operations(self) -> int:
        """Of one evaluation of one row, see `disa.core.work`."""
        blocks: Any = self.blocks
        own = product(self.group_size, self.input.in_features, self.width)
        own += product(self.group_size, self.width, self.modulation.out_features)
        own += product(self.group_size, self.width, self.output.out_features)
        return own + sum(block.operations for block in blocks)

    def time_table(self, times: Tensor) -> Tensor:
        """[n] -> [n, W]."""
        return embed_times(times, self.time_in, self.time_out)

    def denoise(self, h: Tensor, modulation: Tensor) -> Tensor:
        """h: [R N, W] projected input, modulation: [R N, modulations W] -> the parts beside each other, [R N, ...]."""
        raise NotImplementedError


class DiffusionHead(ModulatedHead):
    """(x_t [R, C], t, condition [R, D]) -> noise [R, C] and variance value [R, C] (MAR, section 3.2 and appendix).

    A head without variance says the value alone.
    """

    def __init__(self, channels: int, condition_width: int, width: int, depth: int, variance: bool = True) -> None:
        blocks = (ResidualBlock(width) for _ in range(depth))
        super().__init__(channels, condition_width, width, blocks, 3 * depth + 2, 2 if variance else 1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Prediction:
        """x: [R, C], t: [R], condition: [R, D]."""
        modulation = self.modulation(swish(self.time_table(t) + self.condition(condition)))
        return self.said(self.denoise(self.input(x), modulation).float())

    def denoise(self, h: Tensor, modulation: Tensor) -> Tensor:
        """h: [R, W] projected input, modulation: [R, (3 depth + 2) W] -> value, variance beside it: [R, C or 2 C]."""
        parts = modulation.view(len(h), -1, self.width).unbind(1)
        for i, block in enumerate(self.blocks):
            h = block(h, *parts[3 * i : 3 * i + 3])
        shift, scale = parts[-2:]
        return modulated_linear(self.output, h, (None, None), shift, scale, NORM_EPS)


class VelocityHead(DiffusionHead):
    """(x_t [R, C], time from 0 (noise) to 1 [R], condition [R, E]) -> noise - data [R, C]."""

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__(channels, condition_width, width, depth, variance=False)

    def said(self, output: Tensor) -> Prediction:
        return Prediction(-output)

    def loss(
        self, objective: FlowLoss, start: Tensor, condition: Tensor, t: Tensor, noise: Tensor, weight: Tensor
    ) -> Tensor:
        """Squared error of the velocity, a scalar: the mean over rows of weights [R].

        start, noise: [R, C], condition: [R, E], t: [R] from 1 (noise) to 0; officially 1 - t is the sigmoid of a
        standard normal number.
        """
        said = self(objective.noised(start, t[:, None], noise), 1 - t, condition)
        return (objective.error(said.value, start, noise) * weight).sum() / (weight.sum() + 1e-8)


@dataclass(frozen=True)
class ConditionedHead(Network):
    """A head with its conditions [P, R, (N,) W], already projected."""

    head: Any
    condition: Tensor

    @property
    def num_halves(self) -> int:
        return len(self.condition)

    def select(self, rows: Tensor) -> Self:
        return replace(self, condition=self.condition[:, rows])

    def on(self, grid: TimeGrid, num_halves: Sequence[int]) -> BoundNetwork:
        return BoundHead(self, grid, num_halves)


@dataclass(frozen=True)
class HeadNetwork(ConditionedHead, RaggedNetwork):
    """A `DiffusionHead` whose conditions are [P, R, W]."""

    @classmethod
    def of(cls, head: DiffusionHead, *conditions: Tensor) -> HeadNetwork:
        """Project the conditions of each half [R, D] once for all denoising steps."""
        return cls(head, torch.stack([head.condition(half) for half in conditions]))

    def on_each(self, rows: Tensor, grids: Sequence[TimeGrid], together: list[Together]) -> BoundNetwork:
        return _BoundHeadEach(self.select(rows), grids, together)

    def embedded(self, network_times: Tensor) -> Tensor:
        return self.head.time_table(network_times)

    def at(self, x: Tensor, times: Tensor, num_halves: int) -> Prediction:
        h = self.head.input(x.to(self.condition.dtype)).repeat(num_halves, 1)
        modulation = self.head.modulation(swish(times + self.condition[:num_halves, : len(x)]).flatten(0, 1))
        return self.head.said(self.head.denoise(h, modulation).float().unflatten(0, (num_halves, -1)))


class BoundHead:
    """A `ConditionedHead` on one grid."""

    def __init__(self, network: ConditionedHead, grid: TimeGrid, num_halves: Sequence[int]) -> None:
        self.head, self.num_halves, self.condition = network.head, num_halves, network.condition
        self.times = self.head.time_table(network_times(grid, self.condition.device))
        values = self.condition.shape[:-1].numel() * self.head.modulation.out_features
        self.modulation = Lookahead(num_halves, values)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        num_halves, modulation = self.num_halves[denoise_step], self.modulation.at(denoise_step, self._modulations)
        h = self.head.input(x.reshape(-1, x.shape[-1]).to(self.condition.dtype))
        h = h if num_halves == 1 else h.repeat(num_halves, 1)
        said = _in_a_tile(self.head, h, modulation).unflatten(0, (num_halves, *x.shape[:-1]))
        return self.head.said(said)

    def _modulations(self, stretch: slice, num_halves: int) -> Tensor:
        """[stretch, rows of a tile, ...] modulations of all blocks. What fills a tile is what comes after it."""
        mixed = swish(self.times[stretch, None] + self.condition[:num_halves].flatten(0, -2))
        count = mixed.shape[1]
        # The tokens of a row see each other: a tile is not filled with a part of one.
        lack = padding(count, (1,), mixed.device) if self.head.group_size == 1 else 0
        computed = self.head.modulation(_padded(mixed.flatten(0, 1), lack))
        return computed.unfold(0, count + lack, count).transpose(1, 2)


def _in_a_tile(head: ModulatedHead, h: Tensor, modulation: Tensor) -> Tensor:
    """What a head makes of h [R, W], padded once to the rows of modulation [R', ...], so that no layer has to do it."""
    return head.denoise(_padded(h, len(modulation) - len(h)), modulation)[: len(h)]


def _padded(rows: Tensor, lack: int) -> Tensor:
    """[R, W] and so many rows of zeros."""
    return F.pad(rows, (0, 0, 0, lack)) if lack else rows


class _BoundHeadEach:
    """A `HeadNetwork` whose rows go along grids of their own."""

    def __init__(self, network: HeadNetwork, grids: Sequence[TimeGrid], together: list[Together]) -> None:
        self.head, self.together, self.condition = network.head, together, network.condition
        device = self.condition.device
        self.times = self.head.time_table(torch.cat([network_times(grid, device) for grid in grids]))
        self.first = torch.tensor([0, *(grid.num_evaluations for grid in grids)], device=device).cumsum(0)
        self.ahead: dict[int, Tensor] = {}

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        h = self.head.input(x.to(self.condition.dtype))
        h = torch.cat([h, h[self.together[denoise_step].guided]])
        if denoise_step not in self.ahead:
            self.ahead = {}  # the old ones make room for the new
            self.ahead = self._modulations(denoise_step)
        return self.head.said(_in_a_tile(self.head, h, self.ahead[denoise_step]).float())

    def _modulations(self, denoise_step: int) -> dict[int, Tensor]:
        """[rows of a tile, ...] of a denoising step and of some more. What fills a tile is what comes after it."""
        mixed, room = [self._mixed(denoise_step)], LOOKAHEAD_VALUES // self.head.modulation.out_features
        for step in range(denoise_step + 1, len(self.together)):
            if sum(map(len, mixed)) + len(mixed[-1]) > room:
                break
            mixed.append(self._mixed(step))
        sizes = [len(each) + padding(len(each), (1,), each.device) for each in mixed]
        ends = [sum(map(len, mixed[:place])) + size for place, size in enumerate(sizes)]
        rows = torch.cat(mixed)
        computed = self.head.modulation(swish(_padded(rows, max(0, max(ends) - len(rows)))))
        parts = (computed[end - size : end] for end, size in zip(ends, sizes, strict=True))
        return dict(enumerate(parts, denoise_step))

    def _mixed(self, denoise_step: int) -> Tensor:
        """[count + G, W] time and condition of each row."""
        now = self.together[denoise_step]
        times = self.times[self.first[now.grids] + denoise_step]
        mixed = times + self.condition[0, : now.count]
        return torch.cat([mixed, times[now.guided] + self.condition[1, now.guided]]) if len(now.guided) else mixed
