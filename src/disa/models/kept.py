"""Keys and values of tokens that are kept from one AR step to the next.

Shapes: B' images with their unconditional halves, S places of tokens, n tokens of a call, m that they attend to,
H heads, d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Pairs = list[Tensor]
"""Keys and values of each block, by its number: [2, B', H, S, d]. They are allocated once, and written in place."""


@dataclass(frozen=True)
class Keeping:
    """How the blocks of an encoder or a decoder keep keys and values in one call."""

    pairs: Pairs
    first: int
    """The number of the first block."""
    num_places: int
    places: Tensor
    """[B', n] of the tokens of the call."""
    renews: bool = False
    """Whether all other tokens have keys and values still; else the tokens attend to each other alone."""
    seen: Tensor | None = None
    """[B', m] the places that are attended to then; None for all."""

    def block(self, number: int) -> KeptBlock:
        """The same for one of the blocks, from 0."""
        return KeptBlock(self, self.first + number)

    def _index(self, places: Tensor, pair: Tensor) -> Tensor:
        """Places [B', n] as an index into a pair [2, B', H, S, d]."""
        return places[None, :, None, :, None].expand(2, -1, pair.shape[2], -1, pair.shape[4])

    def through(self, number: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep [B', H, n, d] of a block; returns what is attended to, [B', H, m, d]."""
        now = torch.stack([key, value])
        pair = self.pairs[number][:, : len(key)].scatter_(3, self._index(self.places, now), now)
        if not self.renews:
            return key, value
        key, value = pair if self.seen is None else pair.gather(3, self._index(self.seen, pair))
        return key, value


@dataclass(frozen=True)
class KeptBlock:
    """What one block is given."""

    keeping: Keeping
    number: int

    def __call__(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep keys and values [B', H, n, d]; returns what is attended to."""
        return self.keeping.through(self.number, key, value)

    def num_keys(self, length: int) -> int:
        """How many tokens are attended to where so many are computed."""
        if not self.keeping.renews:
            return length
        return self.keeping.num_places if self.keeping.seen is None else self.keeping.seen.shape[1]
