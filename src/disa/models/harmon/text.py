"""Prompts of Harmon: its chat template. The strings are those the published weights were trained with."""

from __future__ import annotations

from typing import Any

from disa.models.prompting import FixedLength as FixedLength
from disa.models.prompting import PromptText

USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
DRAW, UNCONDITIONAL = "Generate an image: {}", "Generate an image."
DESCRIBE = "Describe the image in detail."
REWRITE = "Describe in detail: {}"
"""Ours: the published weights were not trained to rewrite prompts."""
IMAGE = "<image>"
STOP = ("<|im_end|>", "<|endoftext|>")
RESERVED = ("<|im_start|>", *STOP, IMAGE)


class Text(PromptText):
    """Qwen's tokenizer. The image token is added where it has none, as officially."""

    needed = (RESERVED[0], STOP[0], IMAGE)
    reserved = RESERVED
    stops = STOP

    def __init__(self, tokenizer: Any, vocab_size: int, longest: int, source: str = "the tokenizer") -> None:
        if len(tokenizer.encode(IMAGE, add_special_tokens=False)) != 1:
            tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        super().__init__(tokenizer, vocab_size, longest, source)
        self.image_token = self._ids(IMAGE)[0]

    def to_draw(self, prompt: str, num_image_tokens: int) -> list[int]:
        return self._asked(USER + DRAW + ASSISTANT, num_image_tokens, prompt)

    def unconditional(self, negative_prompt: str | None, num_image_tokens: int) -> list[int]:
        if negative_prompt is not None:
            return self.to_draw(negative_prompt, num_image_tokens)
        return self._asked(USER + UNCONDITIONAL + ASSISTANT, num_image_tokens)

    def to_describe(self, prompt: str, num_image_tokens: int) -> list[int]:
        return self.about_image(prompt, num_image_tokens, 1)

    def about_image(self, prompt: str, num_image_tokens: int, num_following: int) -> list[int]:
        """Token ids of a prompt after an image that it is about."""
        return self._asked(USER + IMAGE * num_image_tokens + "\n{}" + ASSISTANT, num_following, prompt)

    def to_rewrite(self, prompt: str) -> list[int]:
        return self._asked(USER + REWRITE + ASSISTANT, 1, prompt)

    def _asked(self, template: str, num_following: int, prompt: str | None = None) -> list[int]:
        """Token ids of a template with a prompt in it, if there is one."""
        text = template if prompt is None else template.format(self._checked(prompt))
        return self._fitted(self._ids(text), num_following)
