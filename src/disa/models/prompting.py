"""Prompts as token ids: what every family's tokenizer has to do, which says itself how its language model is asked.

transformers is imported when a tokenizer is loaded.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, Self

from disa.errors import DisaError, warn
from disa.values import did_you_mean, first_line, shown

LONGEST_TOKEN = 128
"""Characters: a prompt that must be too long is not read."""
MOST_SHOWN = 5
MOST_PADDING = 512
"""Tables have some rows more than their tokenizer has tokens, for a round number: Qwen2.5's has 270."""


class PromptText:
    """A tokenizer that fits a checkpoint, and what a family asks its language model with.

    vocab_size: rows of the checkpoint's table. longest: positions that the language model has. Raises DisaError where
    they do not fit.
    """

    needed: ClassVar[Sequence[str]] = ()
    """Texts that must be one token each."""
    reserved: ClassVar[Sequence[str]] = ()
    """Texts that mean something to the language model: they may not stand in a prompt."""
    stops: ClassVar[Sequence[str]] = ()
    """Texts that end what the language model writes."""

    def __init__(self, tokenizer: Any, vocab_size: int, longest: int, source: str = "the tokenizer") -> None:
        self.tokenizer, self.longest = tokenizer, longest
        for token in self.needed:
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
        self.stop_ids = [ids[0] for ids in map(self._ids, self.stops) if len(ids) == 1]

    @classmethod
    def load(cls, source: str | Path, vocab_size: int, longest: int) -> Self:
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

    # -- what the language model is asked ----------------------------------------------------------------------------

    image_token: int
    """What stands in `to_describe` for each token of an image."""

    def for_grid(self, grid: tuple[int, int], picture: tuple[int, int] | None = None) -> PromptText:
        """The same for images of so many rows and columns of tokens; picture: those of one that prompts are about."""
        return self

    def to_draw(self, prompt: str, num_image_tokens: int) -> list[int]:
        """Token ids that ask for an image of so many tokens."""
        raise NotImplementedError

    def unconditional(self, negative_prompt: str | None, num_image_tokens: int) -> list[int]:
        """Token ids that ask for any image, which guidance leads away from; or for the negative prompt's."""
        raise NotImplementedError

    def to_describe(self, prompt: str, num_image_tokens: int) -> list[int]:
        """Token ids that ask about an image: the image token stands so many times."""
        raise DisaError("this model does not write about images: choose one that does, such as harmon-0.5b.")

    def to_rewrite(self, prompt: str) -> list[int]:
        """Token ids that ask for a prompt that says more."""
        raise DisaError("this model does not rewrite prompts: leave rewrite out.")

    # -- words -----------------------------------------------------------------------------------------------

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
            return self._checked(self.decode(ids))
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

    def _fitted(self, ids: list[int], num_following: int) -> list[int]:
        """Token ids, if so many places are left behind them. Raises DisaError."""
        room = self.longest - num_following
        if len(ids) > room:
            raise DisaError(f"the prompt is too long: expected at most {room} tokens, found {len(ids)}. Shorten it.")
        return ids

    def _checked(self, prompt: str) -> str:
        """Neither too long, nor empty, nor with a string that has a meaning. Raises DisaError."""
        if len(prompt) > LONGEST_TOKEN * self.longest:
            raise DisaError(f"the prompt is too long: {len(prompt)} characters. Shorten it.")
        if not prompt.strip():
            raise DisaError("a prompt is empty: expected words.")
        wrong = [token for token in self.reserved if token in prompt]
        if wrong:
            raise DisaError(f"a prompt may not hold {wrong[0]}: it has a meaning of its own. Take it out.")
        return prompt.strip()

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


class FixedLength(PromptText):
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
