"""One generation of MAR under way.

Shapes: as in `model.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from disa.core.request import Request
from disa.core.reuse import Turn
from disa.models.kept import Pairs
from disa.models.layers import Block


@dataclass(frozen=True)
class Positions:
    """The position tables for one grid of tokens. encoder, decoder: [P + L, D]; head: [L, D]."""

    encoder: Tensor
    decoder: Tensor
    head: Tensor


@dataclass
class MARState:
    """One generation under way. tokens: [B, L, C]; orders: [B, L]; the lists hold one index tensor per AR step, and
    scales [K] its guidance."""

    request: Request
    tokens: Tensor
    orders: Tensor
    num_masked: list[int]
    visible: list[Tensor]
    drawn: list[Tensor]
    embedding: Tensor
    positions: Positions
    scales: list[float]
    turns: list[Turn]
    ar_step: int = 0
    residual: Tensor | None = None
    """[B, L, D] unconditional less conditional vectors, of the tokens of later AR steps."""
    kept: Pairs = field(default_factory=list)
    """Keys and values of every block, for AR steps that compute new tokens alone."""

    @property
    def turn(self) -> Turn:
        """What this AR step computes; where guidance does not act, nothing unconditional."""
        return self.turns[self.ar_step]

    @property
    def wanted(self) -> Tensor:
        """[B, N + N'] the tokens whose condition vectors this AR step computes: its own, then those of AR steps for
        which it keeps the difference between the halves."""
        return torch.cat([self.drawn[self.ar_step], *self.later], dim=1)

    @property
    def later(self) -> list[Tensor]:
        """[B, N'] the tokens of each of those AR steps."""
        return [self.drawn[k] for k in self.turn.ahead]


def room_for_pairs(blocks: Sequence[Block], turns: Sequence[Turn], batch: int, num_places: int, like: Tensor) -> Pairs:
    """Memory for what AR steps keep of all blocks for the next, on the device and in the type of `like`; none where
    they keep nothing."""
    halves = max((turn.num_halves for turn in turns if turn.keeps), default=0)
    sizes = [(block.attn.num_heads, block.attn.qkv.in_features) for block in blocks if halves]
    return [like.new_zeros(2, halves * batch, heads, num_places, width // heads) for heads, width in sizes]
