"""First weights from which a small masked transformer learns within hundreds of iterations instead of thousands.

Trained from small random tables, attention first has to find out where tokens are. Here positions begin as sinusoids of
row and column, half of the heads begin by comparing like with like, so that they look nearby, and values begin by
passing through: mimetic initialisation (Trockman and Kolter 2023, arXiv 2305.09828), for half of the heads, because
what is told by the buffer is far from everything. Shapes: P buffer tokens, L tokens, D width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from disa.models.layers import Attention, Block
from disa.models.mar.model import MAR

POSITION_SCALE = 0.5
"""Standard deviation of the position tables."""
VALUE_SCALE = 0.4
"""What the values of a token add to it where it attends to itself alone."""


@torch.no_grad()
def look_nearby(model: MAR, seed: int) -> None:
    """Set positions and attention of encoder and decoder, in place; other weights stay."""
    random = torch.Generator().manual_seed(seed)
    for table in (model.encoder_positions, model.decoder_positions):
        buffer = table.shape[1] - model.config.num_tokens
        table[0, :buffer] = POSITION_SCALE * torch.randn(table[0, :buffer].shape, generator=random)
        table[0, buffer:] = POSITION_SCALE * math.sqrt(2) * grid_sinusoids(model.config.grid, table.shape[2])
    for stack in (model.encoder, model.decoder):
        for block in stack:
            assert isinstance(block, Block)
            _pass_what_is_alike(block.attn, random)


def grid_sinusoids(grid: tuple[int, int], width: int) -> Tensor:
    """[L, D] in [-1, 1]: half of the channels for the row, half for the column, a wave of two sides' length first."""
    axes = []
    for side in grid:
        frequencies = math.pi / side * 2 ** torch.linspace(0, math.log2(side), width // 4)
        angles = torch.arange(side)[:, None] * frequencies
        axes.append(torch.cat([angles.cos(), angles.sin()], dim=1))
    rows, columns = axes
    return torch.cat([rows.repeat_interleave(grid[1], 0), columns.repeat(grid[0], 1)], dim=1)


def _pass_what_is_alike(attention: Attention, random: torch.Generator) -> None:
    query, key, value = attention.qkv.weight.chunk(3)
    width = query.shape[1]
    for head in range(attention.num_heads // 2):
        rows = slice(head * width // attention.num_heads, (head + 1) * width // attention.num_heads)
        query[rows] = key[rows] = _orthonormal(width, rows.stop - rows.start, random).T
    through = _orthonormal(width, width, random)
    value.copy_(math.sqrt(VALUE_SCALE) * through)
    attention.proj.weight.copy_(math.sqrt(VALUE_SCALE) * through.T)


def _orthonormal(width: int, count: int, random: torch.Generator) -> Tensor:
    """[D, count] orthonormal columns."""
    return nn.init.orthogonal_(torch.empty(width, count), generator=random)
