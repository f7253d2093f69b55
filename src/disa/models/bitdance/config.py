"""What a BitDance is built from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from disa.core.capabilities import Capabilities
from disa.errors import DisaError
from disa.models.cells import CellConfig
from disa.models.transformer import check_heads

HEAD_WIDTH_PER_HEAD = 64
"""Of the attention among the tokens that are drawn together."""


@dataclass(frozen=True)
class BitDanceConfig(CellConfig):
    """Architecture."""

    latent_size: tuple[int, int] = (16, 16)
    """Rows and columns of the latent image, and so of tokens."""
    latent_channels: int = 32
    """Bits of a token."""
    group_size: int = 1
    """Tokens that an AR step draws."""
    squares: bool = True
    """Whether these are a square of the image; else they follow each other in raster order."""
    width: int = 768
    depth: int = 24
    num_heads: int = 12
    class_tokens: int = 64
    """Tokens before those of the image that hold the class."""
    head_width: int = 768
    head_depth: int = 6
    head_modulations: int = 2
    """Layers that modulate the blocks of the head, each so many blocks in a row."""
    num_classes: int = 1000

    def __post_init__(self) -> None:
        if self.squares and math.prod(self.cell_size) != self.group_size:
            raise DisaError(f"group_size = {self.group_size} tokens are no square.")
        (rows, columns), (down, across) = self.latent_size, self.cell_size
        if rows % down or columns % across or self.num_tokens % self.group_size:
            raise DisaError(f"latents of {self.latent_size} tokens cannot be cut into groups of {self.group_size}.")
        check_heads(self.width, self.num_heads)
        if self.head_depth % self.head_modulations:
            raise DisaError(f"head_modulations = {self.head_modulations} must divide head_depth = {self.head_depth}.")
        if self.group_size > 1 and self.head_width % HEAD_WIDTH_PER_HEAD:
            raise DisaError(f"head_width = {self.head_width} must be a multiple of {HEAD_WIDTH_PER_HEAD} for groups.")

    @property
    def cell_size(self) -> tuple[int, int]:
        """A square of tokens, or one token."""
        side = math.isqrt(self.group_size) if self.squares else 1
        return side, side

    @property
    def num_ar_steps(self) -> int:
        """One AR step per group."""
        return self.num_tokens // self.group_size

    @property
    def prefix(self) -> int:
        """Places before the first token that is fed: those of the class, and what asks for the first group."""
        return self.class_tokens + self.group_size - 1

    @property
    def num_places(self) -> int:
        """Places of a sequence: the last group is not fed."""
        return self.prefix + self.num_tokens - self.group_size

    @property
    def head_parts(self) -> int:
        """Modulation values of a block of the head: scale, shift and gate, of its attention too if it has one."""
        return 3 if self.group_size == 1 else 6

    @property
    def hidden(self) -> int:
        """Of the MLPs of the transformer."""
        return 256 * math.ceil(int(8 * self.width / 3) / 256)

    def values_drawn(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers of one image that an AR step draws, at most."""
        return self.group_size * self.latent_channels

    def working_values(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers that one image takes at the widest point of its drawing, about, without guidance."""
        cached = 2 * self.depth * self.width * self.num_places
        return cached + max(12 * self.prefix * self.width, 16 * self.group_size * self.head_width)

    @property
    def capabilities(self) -> Capabilities:
        group = "token" if self.group_size == 1 else "group"
        return Capabilities(
            "BitDance", "labels", self.num_tokens, self.num_classes, num_ar_steps=self.num_ar_steps, group=group
        )
