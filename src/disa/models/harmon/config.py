"""What a Harmon is built from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from disa.core.capabilities import Capabilities
from disa.models.language import SHORT_PROMPT, check_language
from disa.models.mar.config import MARConfig


@dataclass(frozen=True)
class HarmonConfig(MARConfig):
    """Architecture: MAR's, whose classes are not used, and the language model's."""

    vocab_size: int = 151_936
    llm_width: int = 896
    llm_hidden: int = 4864
    llm_depth: int = 24
    llm_heads: int = 14
    llm_kv_heads: int = 2
    rope_base: float = 1_000_000.0
    llm_norm_eps: float = 1e-6
    max_positions: int = 32_768
    tied: bool = True
    """Whether the language model's table of tokens is its output layer, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_language(self, self.num_image_tokens())

    def num_image_tokens(self, grid: tuple[int, int] | None = None) -> int:
        """Places that an image takes in the language model, buffer included; grid: None for the model's own."""
        return math.prod(grid or self.grid) + self.buffer_size

    def working_values(self, num_tokens: int, most_drawn: int) -> int:
        following = num_tokens + self.buffer_size
        language = following * (12 * self.llm_width + 3 * self.llm_hidden + following)
        return max(super().working_values(num_tokens, most_drawn), language)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            "Harmon",
            "prompts",
            self.num_tokens,
            vocab_size=self.vocab_size,
            any_size=True,
            keeps_tokens=True,
            reuses=("residual",),
            describes=True,
            most_tokens=max(self.num_tokens, self.max_positions - self.buffer_size - SHORT_PROMPT),
        )

    @classmethod
    def from_official(cls, arguments: dict) -> Self:
        """From `mar_config`, arguments of the official MAR class, and `llm_config`, those of Qwen2's configuration."""
        llm = arguments["llm_config"]
        return cls(
            **vars(MARConfig.from_official(arguments["mar_config"])),
            vocab_size=llm["vocab_size"],
            llm_width=llm["hidden_size"],
            llm_hidden=llm["intermediate_size"],
            llm_depth=llm["num_hidden_layers"],
            llm_heads=llm["num_attention_heads"],
            llm_kv_heads=llm["num_key_value_heads"],
            rope_base=llm["rope_theta"],
            llm_norm_eps=llm["rms_norm_eps"],
            max_positions=llm["max_position_embeddings"],
            tied=llm["tie_word_embeddings"],
        )
