"""Prompts of NextStep: plain words, and the size of the image that is to follow."""

from __future__ import annotations

from copy import copy

from disa.models.prompting import PromptText

AREA, BEGIN, END = "<|image_area|>", "<|begin_of_image|>", "<|end_of_image|>"
PLACE = "<|image_placeholder|>"


class Text(PromptText):
    """The tokenizer of a checkpoint."""

    needed = reserved = (AREA, BEGIN, END, PLACE)
    grid: tuple[int, int]
    picture: tuple[int, int] | None = None

    def for_grid(self, grid: tuple[int, int], picture: tuple[int, int] | None = None) -> PromptText:
        found = copy(self)
        found.grid, found.picture = grid, picture
        return found

    def to_draw(self, prompt: str, num_image_tokens: int) -> list[int]:
        return self._asked(self._checked(prompt), num_image_tokens)

    def unconditional(self, negative_prompt: str | None, num_image_tokens: int) -> list[int]:
        return self._asked("" if negative_prompt is None else self._checked(negative_prompt), num_image_tokens)

    def _asked(self, words: str, num_image_tokens: int) -> list[int]:
        """Token ids of words, after a picture that they are about, and of the beginning of an image."""
        if self.picture is not None:
            rows, columns = self.picture
            words = f"{AREA}{rows}*{columns}{BEGIN}{PLACE * (rows * columns)}{END}{words}"
        begins = self._ids(f"{AREA}{self.grid[0]}*{self.grid[1]}{BEGIN}")
        return self._fitted([*self.tokenizer.encode(words), *begins], num_image_tokens)
