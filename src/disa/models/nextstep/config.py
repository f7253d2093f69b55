"""What a NextStep is built from."""

from __future__ import annotations

import math
from dataclasses import dataclass

from disa.core.capabilities import Capabilities
from disa.errors import DisaError
from disa.models.language import SHORT_PROMPT, check_language
from disa.values import one_of

POSITIONS = ("none", "in-order", "by-place")


@dataclass(frozen=True)
class NextStepConfig:
    """Architecture; the defaults are NextStep-1's."""

    latent_size: tuple[int, int] = (64, 64)
    """Rows and columns of the latent image."""
    latent_channels: int = 16
    patch_size: int = 2
    """Latent positions along one side of a token."""
    vocab_size: int = 152_064
    llm_width: int = 5120
    llm_hidden: int = 13_824
    llm_depth: int = 48
    llm_heads: int = 40
    llm_kv_heads: int = 8
    rope_base: float = 1_000_000.0
    llm_norm_eps: float = 1e-5
    max_positions: int = 131_072
    head_width: int = 1536
    head_depth: int = 12
    norm_tokens: bool = True
    """Whether a token that was drawn is normed over its channels."""
    norm_source: bool = True
    """Whether the tokens of a picture that is edited are."""
    placeholder_id: int = 151_669
    """The text token that stands where a token of a picture comes."""
    positions: str = "none"
    """What the head is told of a token's place: nothing, the place that its number has in rows of `positions_side`
    (NextStep-1), or its own row and column (NextStep-1.1)."""
    positions_side: int = 32
    """Rows and columns of the table of positions."""

    def __post_init__(self) -> None:
        one_of(self.positions, POSITIONS, "positions")
        if any(side % self.patch_size for side in self.latent_size):
            raise DisaError(f"latents of {self.latent_size} cannot be cut into patches of {self.patch_size}.")
        check_language(self, self.num_tokens)
        if self.positions != "none" and self.llm_width % 4:
            raise DisaError(f"llm_width = {self.llm_width} must be a multiple of 4 for a table of positions.")
        self.check_places(self.grid)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of tokens."""
        return self.latent_size[0] // self.patch_size, self.latent_size[1] // self.patch_size

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def token_channels(self) -> int:
        return self.latent_channels * self.patch_size**2

    @property
    def condition_width(self) -> int:
        """Of the vectors that the head is conditioned on."""
        return self.llm_width

    def check_places(self, grid: tuple[int, int]) -> None:
        """The table of positions, if there is one, must have a place for every token. Raises DisaError."""
        side = self.positions_side
        fits = {"none": True, "in-order": math.prod(grid) <= side**2, "by-place": max(grid) <= side}
        if not fits[self.positions]:
            raise DisaError(f"an image of {grid[0]}x{grid[1]} tokens has more places than a table of {side}x{side}.")

    def num_image_tokens(self, grid: tuple[int, int] | None = None) -> int:
        """Places that an image takes in the language model; grid: None for the model's own."""
        return math.prod(grid or self.grid)

    def values_drawn(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers of one image that an AR step draws."""
        return self.token_channels

    def working_values(self, num_tokens: int, most_drawn: int) -> int:
        """Numbers that one image takes at the widest point of its drawing, about, without guidance."""
        places, width = num_tokens + SHORT_PROMPT, self.llm_width * self.llm_kv_heads // self.llm_heads
        return 2 * self.llm_depth * places * width + SHORT_PROMPT * (12 * self.llm_width + 3 * self.llm_hidden)

    @property
    def capabilities(self) -> Capabilities:
        most = max(self.num_tokens, self.max_positions - SHORT_PROMPT)
        return Capabilities(
            "NextStep", "prompts", self.num_tokens, any_size=True, one_by_one=True, edits=True, most_tokens=most
        )
