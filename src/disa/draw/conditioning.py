"""What a model is told to draw: classes, or prompts as token ids, which a language model may rewrite first.

A conditioner is chosen by what a family's capabilities say that it takes. It keeps nothing of any one drawing.

Shapes: B images of a batch, N of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from disa.core.capabilities import Capabilities
from disa.core.noise import SeededNoise
from disa.core.request import Prompts
from disa.draw.inputs import Inputs
from disa.errors import DisaError, warn
from disa.models.families import FAMILIES
from disa.models.harmon.text import DESCRIBE
from disa.models.prompting import PromptText
from disa.models.spec import Preset
from disa.values import number, whole_number
from disa.weights.tokenizers import find_tokenizer

if TYPE_CHECKING:
    from disa.draw.settings import Settings


@dataclass(frozen=True)
class Condition:
    """What a batch is drawn from, as a model takes it."""

    labels: Tensor | None = None
    prompts: Prompts | None = None
    rewritten: list[str] | None = None
    """[B] the prompts that are drawn, where they are not those that were asked for."""


class Conditioner(Protocol):
    """Labels or prompts to what a model takes."""

    @property
    def hash(self) -> str | None:
        """Of what turns the one into the other; None where nothing does, or it was not read yet."""
        ...

    def check(self, inputs: Inputs, settings: Settings, token_grid: tuple[int, int] | None) -> None:
        """Find what cannot be drawn, before any work. Raises DisaError."""
        ...

    def condition(self, inputs: Inputs, settings: Settings, token_grid: tuple[int, int] | None) -> Condition:
        """What a batch of B images is drawn from."""
        ...


class LabelConditioner:
    """Class indices."""

    hash = None

    def __init__(self, name: str, capabilities: Capabilities) -> None:
        self.name, self.capabilities = name, capabilities

    def check(self, inputs: Inputs, settings: Settings, token_grid: tuple[int, int] | None) -> None:
        if inputs.prompts is not None:
            raise DisaError(f"{self.name} draws from labels: give labels, and no prompts.")
        if inputs.negative_prompt is not None:
            raise DisaError(f"{self.name} draws from labels: leave the negative prompt out.")
        self.capabilities.check_labels(inputs.labels or ())

    def condition(self, inputs: Inputs, settings: Settings, token_grid: tuple[int, int] | None) -> Condition:
        return Condition(labels=None if inputs.labels is None else torch.tensor(inputs.labels))


@dataclass(frozen=True)
class Writing:
    """How a language model writes."""

    temperature: float | None = None
    """None takes the likeliest token every time; above 0, tokens are drawn by the seed of each text."""
    max_tokens: int = 1024
    repetition_penalty: float = 1.0
    """Above 1, tokens that a text already has become less likely."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "max_tokens", whole_number(self.max_tokens, "max_tokens"))
        if self.max_tokens < 1:
            raise DisaError(f"a text has at least one token, found max_tokens={self.max_tokens}.")
        for name in ("temperature", "repetition_penalty"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, number(value, name))

    def chooser(self, seeds: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """Logits [B, vocabulary] -> the next token of each text [B]; a new one for every batch of texts."""
        if self.temperature is None:
            return penalised(lambda logits: logits.argmax(-1), self.repetition_penalty)
        return penalised(sampled(seeds, self.temperature), self.repetition_penalty)


REWRITING = Writing(temperature=1.0, max_tokens=256)


class PromptConditioner:
    """Prompts, through the tokenizer of a model's language model; and what the language model writes itself."""

    def __init__(self, preset: Preset, model: Any, tokenizer: PromptText | Path | str | None) -> None:
        self.preset, self.model, self._text = preset, model, tokenizer

    @property
    def has_tokenizer(self) -> bool:
        """Whether a tokenizer was given, or the model's own was read already."""
        return self._text is not None

    @property
    def hash(self) -> str | None:
        """The tokenizer's, once it was read."""
        return self._text.hash if isinstance(self._text, PromptText) else None

    @property
    def text(self) -> PromptText:
        """The tokenizer, read at first use."""
        if not isinstance(self._text, PromptText):
            config = self.model.config
            source, kind = find_tokenizer(self._text, self.preset), FAMILIES[self.preset.spec.family].text
            assert kind is not None
            self._text = kind.load(source, config.vocab_size, config.max_positions)
        return self._text

    def check(self, inputs: Inputs, settings: Settings, token_grid: tuple[int, int] | None) -> None:
        if inputs.prompts is None:
            raise DisaError(f"{self.preset.name} draws from prompts: give prompts, and no labels.")
        if inputs.negative_prompt is not None and not settings.guidance.active:
            warn("the negative prompt says nothing where guidance is 1, which is off")
        text, plain, count = self._for(inputs, token_grid)
        for prompt in dict.fromkeys(inputs.prompts):
            text.to_draw(prompt, count)
        for each in (text, plain):
            each.unconditional(inputs.negative_prompt, count)
        text.warn_of_unknown([*inputs.prompts, *([inputs.negative_prompt] if inputs.negative_prompt else [])])

    def _for(self, inputs: Inputs, token_grid: tuple[int, int] | None) -> tuple[PromptText, PromptText, int]:
        """What asks for the images, with the picture that is edited and without it, and their number of tokens."""
        config, picture = self.model.config, None
        grid = token_grid or config.grid
        if inputs.source is not None:
            rows, columns = (side // config.patch_size for side in inputs.source.shape[2:])
            picture = rows, columns
        return self.text.for_grid(grid, picture), self.text.for_grid(grid), config.num_image_tokens(token_grid)

    def condition(self, inputs: Inputs, settings: Settings, token_grid: tuple[int, int] | None) -> Condition:
        prompts = inputs.prompts or []
        # What is kept has decided what a rewritten prompt would decide.
        rewritten = self.rewrite(prompts, inputs.seeds) if settings.rewrite and inputs.known is None else None
        text, plain, count = self._for(inputs, token_grid)
        asked, guidance = [text.to_draw(prompt, count) for prompt in rewritten or prompts], settings.guidance
        empty = [text] * guidance.active + [plain] * guidance.three_way
        rows = [each.unconditional(inputs.negative_prompt, count) for each in empty for _ in prompts]
        return Condition(prompts=Prompts.of([*asked, *rows]), rewritten=rewritten)

    def rewrite(self, prompts: Sequence[str], seeds: Sequence[int], writing: Writing = REWRITING) -> list[str]:
        """What the language model makes of prompts [N] when it is asked to say more; the prompt itself where nothing
        usable comes of it. A rewritten prompt follows from its own prompt and seed alone."""
        text, texts = self.text, list(prompts)
        asked = [text.to_rewrite(prompt) for prompt in texts]
        for length in {len(ids) for ids in asked}:
            rows = [i for i, ids in enumerate(asked) if len(ids) == length]
            ids = torch.tensor([asked[i] for i in rows])
            choose = writing.chooser([seeds[i] for i in rows])
            turns = list(self.model.answer(ids, choose, text.stop_ids, writing.max_tokens))
            for i, answer in zip(rows, torch.stack(turns, dim=1).tolist(), strict=True):
                texts[i] = text.usable(answer) or texts[i]
        return texts

    def describe(
        self,
        latents: Tensor,
        token_grid: tuple[int, int] | None,
        seeds: Sequence[int],
        prompt: str = DESCRIBE,
        writing: Writing | None = None,
    ) -> Iterator[Tensor]:
        """Token ids [B] of a text about each image [B, C, H, W], one turn a token."""
        writing, text = writing or Writing(), self.text
        text.warn_of_unknown([prompt])
        ids = torch.tensor(text.to_describe(prompt, self.model.config.num_image_tokens(token_grid)))
        choose = writing.chooser(seeds)
        return self.model.describe(latents, ids, text.image_token, choose, text.stop_ids, writing.max_tokens)


def sampled(seeds: Sequence[int], temperature: float = 1.0) -> Callable[[Tensor], Tensor]:
    """Choose token i of text b by a number that follows from (seeds[b], i): logits [B, vocabulary] -> ids [B]."""
    if not temperature > 0:
        raise DisaError(f"the temperature of a text must be above 0, found {temperature}; leave it out to be greedy.")
    noise, turn = SeededNoise(seeds), 0

    def choose(logits: Tensor) -> Tensor:
        nonlocal turn
        share = (logits.cpu().double() / temperature).softmax(-1).cumsum(-1)
        chosen = torch.searchsorted(share, noise.uniform(turn)[:, None] * share[:, -1:])[:, 0]
        turn += 1
        return chosen.clamp(max=logits.shape[-1] - 1).to(logits.device)

    return choose


def penalised(choose: Callable[[Tensor], Tensor], penalty: float) -> Callable[[Tensor], Tensor]:
    """Choose after the scores of what a text already holds were made worse (Keskar et al. 2019): positive ones divided
    by the penalty, negative ones multiplied. 1 changes nothing."""
    if not penalty > 0:
        raise DisaError(f"the penalty for repetition must be above 0, found {penalty}; 1 is none.")
    written: list[Tensor] = []

    def choosing(logits: Tensor) -> Tensor:
        if written:
            past = torch.stack(written, dim=1)
            scores = logits.gather(1, past)
            logits = logits.scatter(1, past, torch.where(scores < 0, scores * penalty, scores / penalty))
        written.append(choose(logits))
        return written[-1]

    return choosing
