"""Batches of captioned scenes, and the tokenizer of their words.

Scenes are drawn when they are asked for: a millisecond each, so that training never sees one twice and keeps none.
transformers is imported when a tokenizer is made. Shapes: B images, T tokens of a text, L tokens of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.core.request import Prompts
from disa.errors import DisaError
from disa.models.harmon.model import IGNORED
from disa.models.harmon.text import ASSISTANT, DESCRIBE, DRAW, RESERVED, STOP, UNCONDITIONAL, USER, Text
from disa.tiny.captions import COLOURS, PLURALS, SHAPES, VOCABULARY, describe, in_order_of, parse, phrase
from disa.tiny.scenes import IMAGE_SIZE, Scene, Split, draw, facts, scene_at

Captioned = tuple[Scene, str]

UNKNOWN = "<unk>"
_NUM_SCENES = 2**31


def scenes(count: int, split: Split, random: torch.Generator) -> list[Captioned]:
    """Scenes with captions, chosen at random among two thousand million."""
    chosen = torch.randint(_NUM_SCENES, (count,), generator=random)
    return [scene_at(index, split) for index in chosen.tolist()]


def told(drawn: Sequence[Captioned], share: float, random: torch.Generator) -> list[Captioned]:
    """The same scenes, a share of them with captions that tell everything."""
    seed, chosen = int(torch.randint(_NUM_SCENES, (), generator=random)), torch.rand(len(drawn), generator=random)
    words = np.random.default_rng(seed)
    return [
        (scene, phrase(facts(scene), words) if which < share else caption)
        for (scene, caption), which in zip(drawn, chosen.tolist(), strict=True)
    ]


def pictures(drawn: Sequence[Captioned]) -> Tensor:
    """Images [B, 3, 48, 48] in [-1, 1]."""
    pixels = np.stack([draw(scene) for scene, _ in drawn])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def shown(drawn: Sequence[Captioned], grid: tuple[int, int]) -> Tensor:
    """[B, L] what each token of a grid is part of: 0 is the background, 1 the first of SHAPES."""
    labels = torch.zeros(len(drawn), *grid, dtype=torch.int64)
    for image, (scene, _) in zip(labels, drawn, strict=True):
        for thing in scene.objects:
            left, top, right, bottom = (round(edge * grid[0] / IMAGE_SIZE) for edge in thing.cell)
            image[top:bottom, left:right] = 1 + SHAPES.index(thing.shape)
    return labels.flatten(1)


def tokenizer() -> Any:
    """A token for each word and sign of the captions and of the chat template; upper case does not matter."""
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise DisaError('prompts need transformers: pip install "disa[harmon]".') from error
    template = " ".join((USER, ASSISTANT, DRAW.format(""), UNCONDITIONAL, DESCRIBE))
    for reserved in RESERVED:
        template = template.replace(reserved, " ")
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(template))} | set(VOCABULARY)
    ids = {word: i for i, word in enumerate((UNKNOWN, *RESERVED, *sorted(words)))}
    base = Tokenizer(models.WordLevel(ids, UNKNOWN))
    base.normalizer, base.pre_tokenizer = normalizer, splitter
    return PreTrainedTokenizerFast(
        tokenizer_object=base,
        unk_token=UNKNOWN,
        eos_token=STOP[0],
        additional_special_tokens=list(RESERVED),
        clean_up_tokenization_spaces=False,
    )


def prompts_to_draw(text: Text, drawn: Sequence[Captioned], dropped: Tensor, num_image_tokens: int) -> Prompts:
    """The captions as prompts, the unconditional one where `dropped` [B] is true."""
    empty = text.unconditional(None, num_image_tokens)
    return Prompts.of(
        [
            empty if drop else text.to_draw(caption, num_image_tokens)
            for (_, caption), drop in zip(drawn, dropped.tolist(), strict=True)
        ]
    )


def answers(text: Text, drawn: Sequence[Captioned], num_image_tokens: int) -> tuple[Tensor, Tensor, int]:
    """Ids and targets [B, T] of the question what an image shows, and of all there is to say; and the image's token."""
    asked = text.to_describe(DESCRIBE, num_image_tokens)
    told = [describe(facts(scene)) for scene, _ in drawn]
    return *_answered(text, [asked] * len(drawn), told), text.image_token


def rewritings(text: Text, drawn: Sequence[Captioned], random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids and targets [B, T] of the captions, and of all that a scene could show of which they are true.

    Shapes and colours have changed places, in both: a word is to be repeated because it stands in the caption, and not
    because it goes with another. These texts therefore have combinations that are held out; no picture does.
    """
    words = np.random.default_rng(int(torch.randint(_NUM_SCENES, (), generator=random)))
    pairs = [_renamed(caption, _completed(scene, caption), words) for scene, caption in drawn]
    return _answered(text, [text.to_rewrite(caption) for caption, _ in pairs], [told for _, told in pairs])


def _completed(scene: Scene, caption: str) -> str:
    """All there is to say about the scene; but where the caption leaves open how two objects lie, the first is put to
    the left or above, so that colours and sizes are repeated in the order in which they are read."""
    known, stated = facts(scene), parse(caption)
    ordered = in_order_of(stated, known)
    assert ordered is not None
    return describe(known if stated.relation else replace(ordered, relation=known.relation))


def _renamed(caption: str, answer: str, random: np.random.Generator) -> tuple[str, str]:
    """The same texts with shapes and colours in other places."""
    shapes, colours = random.permutation(SHAPES).tolist(), random.permutation(COLOURS).tolist()
    other = dict(zip(SHAPES, shapes, strict=True)) | dict(zip(COLOURS, colours, strict=True))
    other |= {PLURALS[old]: PLURALS[new] for old, new in zip(SHAPES, shapes, strict=True)}
    asked, told = (" ".join(other.get(word, word) for word in words.split()) for words in (caption, answer))
    return asked, told


def _answered(text: Text, asked: Sequence[list[int]], answers: Sequence[str]) -> tuple[Tensor, Tensor]:
    told = [text.tokenizer.encode(f"{answer}{STOP[0]}", add_special_tokens=False) for answer in answers]
    together = Prompts.of([[*question, *answer] for question, answer in zip(asked, told, strict=True)])
    place, start = torch.arange(together.ids.shape[1]), torch.tensor([[len(question)] for question in asked])
    learned = (place >= start) & (place < together.lengths[:, None])
    return together.ids, together.ids.masked_fill(~learned, IGNORED)
