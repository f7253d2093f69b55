"""BitDance's head, which predicts the tokens themselves, as a velocity network.

Shapes: R rows (groups of tokens), N tokens of a row, T = R N of all of them, C token channels, W head width, D width of
conditions, n denoising steps; P halves of the rows, conditional first. Where a row is a token it has no N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from disa.core.problem import Prediction, TimeGrid
from disa.core.work import attention, product
from disa.models.bitdance.config import HEAD_WIDTH_PER_HEAD, BitDanceConfig
from disa.models.guided import BoundNetwork
from disa.models.heads import BoundHead, ConditionedHead, ModulatedHead
from disa.models.layers import Attention
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


class DataHead(ModulatedHead):
    """(x_t, t, condition) -> the data."""

    def __init__(self, c: BitDanceConfig) -> None:
        blocks = (HeadBlock(c.head_width, c.group_size) for _ in range(c.head_depth))
        modulations = c.head_parts * c.head_modulations + 2
        super().__init__(c.latent_channels, c.width, c.head_width, blocks, modulations, 1)
        self.group_size, self.block_parts = c.group_size, c.head_parts
        self.sharing = c.head_depth // c.head_modulations

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """x: [R, (N,) C]; t: [R], 0 for noise to 1 for data; condition: [R, (N,) D]. The data predicted, like x."""
        times = self.time_table(t.float() * TIME_SCALE).repeat_interleave(self.group_size, dim=0)
        mixed = times + self.condition(condition.reshape(len(times), -1))
        h = self.input(x.reshape(len(times), -1).to(mixed.dtype))
        return self.denoise(h, self.modulation(swish(mixed))).float().view_as(x)

    def denoise(self, h: Tensor, modulation: Tensor) -> Tensor:
        parts = modulation.view(len(h), -1, self.width).unbind(1)
        for i, block in enumerate(self.blocks):
            first = i // self.sharing * self.block_parts
            h = block(h, *parts[first : first + self.block_parts])
        scale, shift = parts[-2:]
        return modulated_linear(self.output, h, (None, None), shift, scale, NORM_EPS)


class DataNetwork(ConditionedHead):
    """A `DataHead` with its conditions [P, R, N, W]."""

    def on(self, grid: TimeGrid, num_halves: Sequence[int]) -> BoundNetwork:
        return _BoundData(self, grid, num_halves)


class _BoundData(BoundHead):
    """A `DataNetwork` on one grid."""

    def __init__(self, network: DataNetwork, grid: TimeGrid, num_halves: Sequence[int]) -> None:
        super().__init__(network, grid, num_halves)
        self.left = [max(1 - fed / TIME_SCALE, LEAST_TIME) for fed in grid.network_times.tolist()]

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        """The velocity noise - data, as both follow from x and the data predicted."""
        data = super().__call__(x, denoise_step).value.float()
        return Prediction((x - data) / self.left[denoise_step])
