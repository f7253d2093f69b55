"""BitDance's head, which predicts the tokens themselves, as a velocity network.

Shapes: R rows (groups of tokens), N tokens of a row, T = R N of all of them, C token channels, W head width, D width of
conditions, n denoising steps; P halves of the rows, conditional first. Where a row is a token it has no N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from disa.core.problem import Prediction, TimeGrid
from disa.core.work import attention, product
from disa.models.bitdance.config import HEAD_WIDTH_PER_HEAD, BitDanceConfig
from disa.models.guided import BoundNetwork, Lookahead, Network, network_times
from disa.models.layers import TIME_FEATURES, Attention, embed_times
from disa.runtime.fused import gated_linear, modulated_linear, modulated_norm
from disa.runtime.kernels import swish
from disa.runtime.packing import Linear

NORM_EPS = 1e-6
TIME_SCALE = 1000
"""What the network is fed at the data."""
LEAST_TIME = 0.05
"""The velocity divides by the time that is left, but by no less than this."""


class GatedMLP(nn.Module):
    """Two linear layers, the first gated by a SiLU of half of it (Shazeer 2020)."""

    def __init__(self, width_in: int, hidden: int, width: int, bias: bool = True) -> None:
        super().__init__()
        self.w1 = Linear(width_in, 2 * hidden, bias=bias)
        self.w2 = Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(gated(self.w1(x)))

    def operations(self, rows: int) -> int:
        """Of so many rows of x."""
        own = product(rows, self.w1.in_features, self.w1.out_features)
        return own + product(rows, self.w2.in_features, self.w2.out_features)


def gated(x: Tensor) -> Tensor:
    """[..., 2 E] -> [..., E]."""
    gate, value = x.chunk(2, dim=-1)
    return swish(gate) * value


class HeadBlock(nn.Module):
    """Modulated layer norm, gated MLP, gate; before it likewise attention among the tokens of a row, if these are
    several, without places."""

    def __init__(self, width: int, group_size: int) -> None:
        super().__init__()
        self.group_size = group_size
        if group_size > 1:
            self.attn_norm = nn.LayerNorm(width, eps=NORM_EPS)
            self.attn = Attention(width, width // HEAD_WIDTH_PER_HEAD)
        self.norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = GatedMLP(width, int(1.5 * width), width)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor, gate: Tensor, *more: Tensor) -> Tensor:
        """All [T, W]; more: the same three once more for the MLP where there is attention."""
        if more:
            norm = self.attn_norm.weight, self.attn_norm.bias
            normed = modulated_norm(h, *norm, shift, scale, NORM_EPS, False).unflatten(0, (-1, self.group_size))
            h = torch.addcmul(h, gate, self.attn(normed).flatten(0, 1))
            scale, shift, gate = more
        norm = self.norm.weight, self.norm.bias
        hidden = gated(modulated_linear(self.mlp.w1, h, norm, shift, scale, NORM_EPS))
        return gated_linear(self.mlp.w2, h, gate, hidden)

    @property
    def operations(self) -> int:
        """Of the tokens of one row."""
        count, width = self.group_size, self.mlp.w1.in_features
        attended = product(count, width, 4 * width) + attention(1, count, count, width) if count > 1 else 0
        return attended + self.mlp.operations(count)


class DataHead(nn.Module):
    """(x_t, t, condition) -> the data. What modulates the blocks and the output is one linear layer, as in MAR."""

    def __init__(self, c: BitDanceConfig) -> None:
        super().__init__()
        self.width, self.group_size, self.parts = c.head_width, c.group_size, c.head_parts
        self.sharing = c.head_depth // c.head_modulations
        self.time_in = Linear(TIME_FEATURES, c.head_width)
        self.time_out = Linear(c.head_width, c.head_width)
        self.condition = Linear(c.width, c.head_width)
        self.input = Linear(c.latent_channels, c.head_width)
        self.blocks = nn.ModuleList(HeadBlock(c.head_width, c.group_size) for _ in range(c.head_depth))
        self.modulation = Linear(c.head_width, (c.head_parts * c.head_modulations + 2) * c.head_width)
        self.output = Linear(c.head_width, c.latent_channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x: [R, (N,) C]; t: [R], 0 for noise to 1 for data; condition: [R, (N,) D]. The data predicted, like x."""
        times = self.time_table(t.float() * TIME_SCALE).repeat_interleave(self.group_size, dim=0)
        mixed = times + self.condition(condition.reshape(len(times), -1))
        h = self.input(x.reshape(len(times), -1).to(mixed.dtype))
        return self.denoise(h, self.modulation(swish(mixed))).float().view_as(x)

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
        """h: [T, W] projected input, modulation: [T, parts W] -> [T, C]."""
        parts = modulation.view(len(h), -1, self.width).unbind(1)
        for i, block in enumerate(self.blocks):
            first = i // self.sharing * self.parts
            h = block(h, *parts[first : first + self.parts])
        scale, shift = parts[-2:]
        return modulated_linear(self.output, h, (None, None), shift, scale, NORM_EPS)


@dataclass(frozen=True)
class DataNetwork(Network):
    """A head with its conditions [P, R, N, W], already projected."""

    head: DataHead
    condition: Tensor

    @property
    def num_halves(self) -> int:
        return len(self.condition)

    def select(self, rows: Tensor) -> DataNetwork:
        return replace(self, condition=self.condition[:, rows])

    def on(self, grid: TimeGrid, num_halves: Sequence[int]) -> BoundNetwork:
        return _BoundData(self, grid, num_halves)


class _BoundData:
    """A `DataNetwork` on one grid."""

    def __init__(self, network: DataNetwork, grid: TimeGrid, num_halves: Sequence[int]) -> None:
        self.head, self.condition, self.num_halves = network.head, network.condition, num_halves
        self.times = self.head.time_table(network_times(grid, self.condition.device))
        self.left = [max(1 - fed / TIME_SCALE, LEAST_TIME) for fed in grid.network_times.tolist()]
        self.modulation = Lookahead(num_halves, self.condition.shape[:3].numel() * self.head.modulation.out_features)

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        """The velocity noise - data, as both follow from x and the data predicted."""
        num_halves, modulation = self.num_halves[denoise_step], self.modulation.at(denoise_step, self._modulations)
        h = self.head.input(x.reshape(-1, x.shape[-1]).to(self.condition.dtype)).repeat(num_halves, 1)
        data = self.head.denoise(h, modulation).float().view(num_halves, *x.shape)
        return Prediction((x - data) / self.left[denoise_step])

    def _modulations(self, stretch: slice, num_halves: int) -> Tensor:
        """[stretch, P T, ...]."""
        return self.head.modulation(swish(self.times[stretch, None] + self.condition[:num_halves].flatten(0, 2)))
