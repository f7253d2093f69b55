"""Prompts of Harmon: chat template and tokenizer.

transformers is imported when a tokenizer is loaded. The strings are those the published weights were trained with.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

from disa.errors import DisaError, warn
from disa.values import did_you_mean, first_line, shown

USER, ASSISTANT = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
DRAW, UNCONDITIONAL = "Generate an image: {}", "Generate an image."
DESCRIBE = "Describe the image in detail."
REWRITE = "Describe in detail: {}"
"""Ours: the published weights were not trained to rewrite prompts."""
IMAGE = "<image>"
STOP = ("<|im_end|>", "<|endoftext|>")
RESERVED = ("<|im_start|>", *STOP, IMAGE)
LONGEST_TOKEN = 128
"""Characters: a prompt that must be too long is not read."""
MOST_SHOWN = 5
MOST_PADDING = 512
"""Tables have some rows more than their tokenizer has tokens, for a round number: Qwen2.5's has 270."""


class Text:
    """A tokenizer that fits a checkpoint.

    vocab_size: rows of the checkpoint's table. longest: positions that the language model has. The image token is
    added where the tokenizer has none, as officially. Raises DisaError where they do not fit.
    """

    def __init__(self, tokenizer: Any, vocab_size: int, longest: int, source: str = "the tokenizer") -> None:
        self.tokenizer, self.longest = tokenizer, longest
        if len(tokenizer.encode(IMAGE, add_special_tokens=False)) != 1:
            tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
        for token in (RESERVED[0], STOP[0], IMAGE):
            if len(tokenizer.encode(token, add_special_tokens=False)) != 1:
                raise DisaError(
                    f"{source} does not fit this checkpoint: expected {token} to be one token of it. "
                    "Give the tokenizer of the checkpoint's language model."
                )
        fewest = max(1, vocab_size - MOST_PADDING)
        if not fewest <= len(tokenizer) <= vocab_size:
            raise DisaError(
                f"{source} does not fit this checkpoint: expected {fewest} to {vocab_size} tokens, found "
                f"{len(tokenizer)}. Give the tokenizer of the checkpoint's language model."
            )
        self.image_token = self._ids(IMAGE)[0]
        self.stop_ids = [ids[0] for ids in map(self._ids, STOP) if len(ids) == 1]

    @classmethod
    def load(cls, source: str | Path, vocab_size: int, longest: int) -> Text:
        """From a folder with a tokenizer in it, or a hub id."""
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise DisaError('prompts need transformers: pip install "disa[harmon]".') from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(source))
        except Exception as error:
            raise DisaError(
                f"no tokenizer could be read from {source} ({first_line(error)}): expected a folder with "
                "tokenizer.json, or the hub id of one."
            ) from error
        return cls(tokenizer, vocab_size, longest, str(source))

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the tokenizer, or of its vocabulary where that is all that can be seen of it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        content = json.dumps(sorted(self.tokenizer.get_vocab().items())) if backend is None else backend.to_str()
        return sha256(content.encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write a folder that `load` reads."""
        self.tokenizer.save_pretrained(str(folder))

    def to_draw(self, prompt: str, num_image_tokens: int) -> list[int]:
        """Token ids that ask for an image of so many tokens, buffer included."""
        return self._asked(USER + DRAW + ASSISTANT, num_image_tokens, prompt)

    def unconditional(self, negative_prompt: str | None, num_image_tokens: int) -> list[int]:
        """Token ids that ask for any image, which guidance leads away from; or for the negative prompt's."""
        if negative_prompt is not None:
            return self.to_draw(negative_prompt, num_image_tokens)
        return self._asked(USER + UNCONDITIONAL + ASSISTANT, num_image_tokens)

    def to_describe(self, prompt: str, num_image_tokens: int) -> list[int]:
        """Token ids that ask about an image: the image token stands so many times."""
        return self._asked(USER + IMAGE * num_image_tokens + "\n{}" + ASSISTANT, 1, prompt)

    def to_rewrite(self, prompt: str) -> list[int]:
        """Token ids that ask for a prompt that says more."""
        return self._asked(USER + REWRITE + ASSISTANT, 1, prompt)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids up to the first stop token."""
        text = []
        for token in ids:
            if token in self.stop_ids:
                break
            text.append(token)
        return self.tokenizer.decode(text).strip()

    def usable(self, ids: Iterable[int]) -> str:
        """The same if it can be a prompt; else nothing."""
        with contextlib.suppress(DisaError):
            return _checked(self.decode(ids))
        return ""

    def pieces(self, ids: Iterable[int]) -> Iterator[str]:
        """The same piece by piece, as the ids come; together they are `decode` of all."""
        seen, told = [], ""
        for token in ids:
            if token in self.stop_ids:
                break
            seen.append(token)
            text = self.decode(seen)
            # A character of several bytes may be on its way.
            if text.startswith(told) and not text.endswith("\ufffd"):
                yield text[len(told) :]
                told = text
        yield self.decode(seen).removeprefix(told)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _asked(self, template: str, num_following: int, prompt: str | None = None) -> list[int]:
        """Token ids of a template with a prompt in it, if there is one."""
        if prompt is not None and len(prompt) > LONGEST_TOKEN * self.longest:
            raise DisaError(f"the prompt is too long: {len(prompt)} characters. Shorten it.")
        ids = self._ids(template if prompt is None else template.format(_checked(prompt)))
        room = self.longest - num_following
        if len(ids) > room:
            raise DisaError(f"the prompt is too long: expected at most {room} tokens, found {len(ids)}. Shorten it.")
        return ids

    def warn_of_unknown(self, prompts: Iterable[str]) -> None:
        """Warn once of all words and signs in prompts that say nothing to the model."""
        if self.tokenizer.unk_token_id is None:
            return
        found = dict.fromkeys(piece for prompt in prompts for piece in self._unknown(prompt))
        words = [piece for piece in found if any(c.isalnum() for c in piece)]
        signs = [piece for piece in found if piece not in words]
        known = [word for word in self.tokenizer.get_vocab() if word.isalpha()]
        told = [_named("word", words, known), _named("sign", signs, ())]
        if found:
            listed = " and ".join(part for part in told if part)
            warn(f"the model does not know {listed}, and goes by the rest")

    def _unknown(self, prompt: str) -> list[str]:
        """The pieces of a prompt that the tokenizer does not have."""
        unknown = self.tokenizer.unk_token_id
        if not self.tokenizer.is_fast:
            return [word for word in prompt.split() if unknown in self._ids(word)]
        read = self.tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
        places = zip(read["input_ids"], read["offset_mapping"], strict=True)
        return [prompt[start:end] for token, (start, end) in places if token == unknown]


class FixedLength(Text):
    """Stands in for a tokenizer where only speed matters: every prompt is so many tokens."""

    def __init__(self, num_tokens: int) -> None:
        if num_tokens < 1:
            raise DisaError(f"a prompt has at least one token, found {num_tokens}.")
        self.num_tokens = num_tokens

    @cached_property
    def hash(self) -> str:
        return f"fixed length {self.num_tokens}"

    def warn_of_unknown(self, prompts: Iterable[str]) -> None:
        pass

    def to_draw(self, prompt: str, num_image_tokens: int) -> list[int]:
        return [0] * self.num_tokens

    def unconditional(self, negative_prompt: str | None, num_image_tokens: int) -> list[int]:
        # What the official one is in Qwen's tokens, or less.
        return [0] * min(self.num_tokens, 12)


def _named(kind: str, pieces: Sequence[str], known: Collection[str]) -> str:
    """`the word 'cat'`, `the signs ',' and '!'`: the first of them, each with what may be meant."""
    if not pieces:
        return ""
    told = []
    for piece in pieces[:MOST_SHOWN]:
        near = did_you_mean(piece, known).strip() if len(piece) > 2 else ""
        told.append(f"{shown(piece)} ({near[0].lower()}{near[1:]})" if near else shown(piece))
    more = [] if len(pieces) <= MOST_SHOWN else [f"{len(pieces) - MOST_SHOWN} more"]
    *first, last = told + more
    return f"the {kind}{'s' if len(pieces) > 1 else ''} {', '.join(first)}{' and ' if first else ''}{last}"


def _checked(prompt: str) -> str:
    """Neither empty nor with a string that means something to the template."""
    if not prompt.strip():
        raise DisaError("a prompt is empty: expected words.")
    wrong = [token for token in RESERVED if token in prompt]
    if wrong:
        raise DisaError(f"a prompt may not hold {wrong[0]}: it has a meaning of its own. Take it out.")
    return prompt.strip()
