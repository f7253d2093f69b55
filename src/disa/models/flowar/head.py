"""The head of FlowAR: a small transformer that draws the tokens of a scale together.

Shapes: R rows (images of a problem), L tokens of a scale, C token channels, W head width, H heads, d = W / H,
n denoising steps; P halves of the rows, conditional first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from disa.core.work import attention, product, ran
from disa.models.layers import TIME_FEATURES, embed_times
from disa.models.transformer import NORM_EPS, PARTS, GatedMLP, ModulatedBlock, RotaryAttention, Rotation, modulated
from disa.runtime.kernels import attend, swish
from disa.runtime.packing import Linear

HEAD_MLP_RATIO = 4.0


@dataclass(frozen=True)
class Memory:
    """What the head needs of the condition vectors at every denoising step, computed once.

    projected: [P, R, L, W]; pairs: [2, P, R, H, L, d] keys and values for each block, none without cross-attention.
    """

    projected: Tensor
    pairs: list[Tensor]

    def select(self, rows: Tensor) -> Memory:
        """The same for some rows."""
        return Memory(self.projected[:, rows], [pair[:, :, rows] for pair in self.pairs])

    def halves(self, count: int) -> Memory:
        """The first `count` halves as one batch: [1, count R, ...]."""
        projected = self.projected[:count].flatten(0, 1)[None]
        return Memory(projected, [pair[:, :count].flatten(1, 2)[:, None] for pair in self.pairs])


class CrossAttention(nn.Module):
    """Attention of the tokens to condition vectors, both normed, with the rotation of the same places."""

    def __init__(self, width: int, condition_width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)
        self.condition_norm = nn.RMSNorm(condition_width, eps=NORM_EPS)
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(condition_width, 2 * width, bias=False)
        self.proj = Linear(width, width)

    def remember(self, condition: Tensor, rotation: Rotation) -> Tensor:
        """[..., L, D] -> keys and values [2, ..., H, L, d]."""
        pair = self.key_value(self.condition_norm(condition)).unflatten(-1, (2, self.num_heads, -1))
        key, value = pair.movedim(-3, 0).transpose(-2, -3)
        return torch.stack([rotation.turn(key), value])

    def forward(self, x: Tensor, rotation: Rotation, pair: Tensor) -> Tensor:
        """x: [R, L, W], pair: [2, R, H, L, d]."""
        query = rotation.turn(self.query(self.norm(x)).unflatten(-1, (self.num_heads, -1)).transpose(1, 2))
        return self.proj(attend(query, pair[0], pair[1]).transpose(1, 2).flatten(2))


class CrossBlock(nn.Module):
    """Self-attention modulated by the time alone, cross-attention to the conditions, MLP modulated by both."""

    def __init__(self, width: int, condition_width: int, num_heads: int) -> None:
        super().__init__()
        self.modulation = Linear(width, PARTS // 2 * width)
        self.attn = RotaryAttention(width, num_heads, bias=False)
        self.cross = CrossAttention(width, condition_width, num_heads)
        self.mlp = GatedMLP(width, HEAD_MLP_RATIO)

    def forward(self, x: Tensor, timed: Tensor, mixed: Tensor, rotation: Rotation, pair: Tensor) -> Tensor:
        """x: [R, L, W]; modulations timed: [1 or R, 1, 3, W] and mixed: [R, L, 3, W]; pair: [2, R, H, L, d]."""
        gate, scale, shift = timed.unbind(2)
        x = torch.addcmul(x, gate, self.attn(modulated(x, shift, scale), rotation))
        x = x + self.cross(x, rotation, pair)
        gate, scale, shift = mixed.unbind(2)
        return torch.addcmul(x, gate, self.mlp(modulated(x, shift, scale)))

    def operations(self, rows: int, length: int, width: int) -> int:
        """Of a call with x [rows, length, width]."""
        attentions = 2 * attention(rows, length, length, width) + product(rows * length, width, 6 * width)
        return attentions + 3 * product(rows * length, width, self.mlp.out.in_features)


class FlowHead(nn.Module):
    """(x_t [R, L, C], t, condition vectors [R, L, D]) -> velocity [R, L, C]; the L tokens of a row see each other.

    Modulations by time and condition differ from token to token: those of all blocks at once would not fit into memory,
    so each is made when its block needs it.
    """

    def __init__(
        self, channels: int, condition_width: int, width: int, depth: int, num_heads: int, cross: bool
    ) -> None:
        super().__init__()
        self.width = width
        self.time_in = Linear(TIME_FEATURES, width)
        self.time_out = Linear(width, width)
        self.condition = Linear(condition_width, width)
        self.input = Linear(channels, width)
        self.blocks = nn.ModuleList(
            CrossBlock(width, condition_width, num_heads)
            if cross
            else ModulatedBlock(width, num_heads, HEAD_MLP_RATIO, bias=False)
            for _ in range(depth)
        )
        parts = [PARTS // 2 if cross else PARTS] * depth + [2]
        self.modulation = nn.ModuleList(Linear(width, count * width) for count in parts)
        self.output = Linear(width, channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, rotation: Rotation) -> Tensor:
        """x: [R, L, C], t: [R], condition: [R, L, D]."""
        times = self.time_table(t)
        h = self.input(x.to(times.dtype))
        return self.denoise(h, times, self.timed(times), self.remember(condition[None], rotation), rotation)

    def operations(self, length: int) -> int:
        """Of one evaluation of a row of `length` tokens, see `disa.core.work`."""
        modulations: Any = self.modulation
        blocks: Any = self.blocks
        made = sum(product(length, self.width, each.out_features) for each in modulations)
        made += sum(block.operations(1, length, self.width) for block in blocks)
        return made + product(length, self.input.in_features, self.width, self.output.out_features)

    def time_table(self, times: Tensor) -> Tensor:
        """[n] -> [n, W]."""
        return embed_times(times, self.time_in, self.time_out)

    def timed(self, times: Tensor) -> list[Tensor]:
        """Times [n, W] -> modulations [n, 1, 3, W] for each block; none without cross-attention."""
        times = swish(times)[:, None]
        return [block.modulation(times).unflatten(-1, (-1, self.width)) for block in self._crossing()]

    def remember(self, condition: Tensor, rotation: Rotation) -> Memory:
        """From [P, R, L, D]."""
        rows, depth = condition[..., 0].numel(), len(self._crossing())
        ran(0, product(rows, condition.shape[-1], (1 + 2 * depth) * self.width))
        pairs = [block.cross.remember(condition, rotation) for block in self._crossing()]
        return Memory(self.condition(condition), pairs)

    def denoise(self, h: Tensor, times: Tensor, timed: list[Tensor], memory: Memory, rotation: Rotation) -> Tensor:
        """h: [R, L, W] projected input, times: [1 or R, W], timed: [1 or R, 1, 3, W] each, memory: of one half."""
        mixed = swish(times[:, None] + memory.projected[0])
        for i, block in enumerate(self.blocks):
            modulation = self.modulation[i](mixed).unflatten(-1, (-1, self.width))
            if isinstance(block, CrossBlock):
                h = block(h, timed[i], modulation, rotation, memory.pairs[i][:, 0])
            else:
                h = block(h, modulation, rotation)
        shift, scale = self.modulation[-1](mixed).chunk(2, dim=-1)
        return self.output(modulated(h, shift, scale)).float()

    def _crossing(self) -> list[CrossBlock]:
        return [block for block in self.blocks if isinstance(block, CrossBlock)]
