"""Prompts of UniPic: Harmon's, and those about a picture that is edited."""

from __future__ import annotations

from copy import copy

from disa.models.harmon.text import Text as HarmonText
from disa.models.prompting import PromptText

REPEAT = "Repeat this image."
"""The unconditional prompt where a picture is edited."""


class Text(HarmonText):
    """Qwen's tokenizer. A picture has as many tokens as the image that is drawn."""

    edits = False

    def for_grid(self, grid: tuple[int, int], picture: tuple[int, int] | None = None) -> PromptText:
        found = copy(self)
        found.edits = picture is not None
        return found

    def to_draw(self, prompt: str, num_image_tokens: int) -> list[int]:
        if self.edits:
            return self.about_image(prompt, num_image_tokens, num_image_tokens)
        return super().to_draw(prompt, num_image_tokens)

    def unconditional(self, negative_prompt: str | None, num_image_tokens: int) -> list[int]:
        if self.edits:
            return self.to_draw(negative_prompt or REPEAT, num_image_tokens)
        return super().unconditional(negative_prompt, num_image_tokens)
