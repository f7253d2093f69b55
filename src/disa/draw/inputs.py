"""What is to be drawn: seeds with labels or prompts, and how lists of them go together.

Shapes: N images of a call, C latent channels, H x W latents, h x w tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from disa.draw.tensors import latents_of, mask_of
from disa.errors import DisaError
from disa.values import counted, many, text, whole_number

MOST_IMAGES = 10_000_000
"""Of one call: more is a mistake in a number."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What is to be drawn, an image per seed. A class method for each way in which lists are paired."""

    seeds: list[int]
    """[N] whole numbers from 0 to 2^64 - 1."""
    labels: list[int] | None = None
    """[N] class indices; None for images without a class, or where there are prompts."""
    prompts: list[str] | None = None
    """[N] texts, for models that draw from words."""
    negative_prompt: str | None = None
    """What guidance leads away from; None, or no words, for the model's own unconditional prompt."""
    known: Tensor | None = None
    """[N or 1, C, H, W] latents that are kept where `mask` is false; given in any form that `latents_of` takes."""
    mask: Tensor | None = None
    """[N or 1, h, w] booleans over tokens: true where one is drawn. None to draw everything. See `mask_of`."""
    source: Tensor | None = None
    """[N or 1, C, H, W] latents of a picture that is drawn anew as prompts say, for models that edit."""

    def __post_init__(self) -> None:
        for name, read in (("seeds", whole_number), ("labels", whole_number), ("prompts", text)):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, many(values, read, name))
        if self.negative_prompt is not None:
            negative = text(self.negative_prompt, "the negative prompt")
            object.__setattr__(self, "negative_prompt", negative if negative.strip() else None)
        if not self.seeds:
            raise DisaError("nothing to draw: give at least one seed.")
        for what, values in (("label", self.labels), ("prompt", self.prompts)):
            if values is not None and len(values) != len(self.seeds):
                raise DisaError(f"expected a {what} per seed, found {len(values)} and {len(self.seeds)}.")
        if self.labels is not None and self.prompts is not None:
            raise DisaError("a model draws from labels or from prompts: found both.")
        if (self.known is None) != (self.mask is None):
            raise DisaError("known latents and a mask of tokens to draw go together: give both or neither.")
        for name, of in (("known", latents_of), ("mask", mask_of), ("source", latents_of)):
            if (value := getattr(self, name)) is None:
                continue
            object.__setattr__(self, name, value := of(value))
            if len(value) not in (1, len(self.seeds)):
                raise DisaError(f"expected {name} for 1 image or {len(self.seeds)}, found {len(value)}.")

    def __len__(self) -> int:
        return len(self.seeds)

    def __repr__(self) -> str:
        what = "prompts" if self.prompts is not None else "labels" if self.labels is not None else "no labels"
        return f"Inputs({counted(len(self), 'image')} from {what}, first seed {self.seeds[0]})"

    # -- pairing -------------------------------------------------------------------------------------------------

    @classmethod
    def paired(cls, seeds: Any = 0, labels: Any = None, prompts: Any = None, **more: Any) -> Inputs:
        """One to one; a single label, prompt or seed is repeated. more: the other fields. Raises DisaError."""
        given, what = _given(labels, prompts)
        chosen = many(seeds, whole_number, "seeds")
        if given is None:
            return cls(chosen, **more)
        count = max(len(given), len(chosen))
        if not given or not chosen:
            raise DisaError(f"nothing to draw: give at least one {what} and one seed.")
        if {len(given), len(chosen)} - {1, count}:
            raise DisaError(
                f"{what}s and seeds are paired one to one, but there are {len(given)} and {len(chosen)}: "
                f"give as many of both, a single one of either, or a number of images per {what}."
            )
        values = given * (count // len(given))
        return cls(chosen * (count // len(chosen)), **{f"{what}s": values}, **more)

    @classmethod
    def in_turn(cls, seeds: Any, labels: Any = None, prompts: Any = None, **more: Any) -> Inputs:
        """An image per seed: labels or prompts are taken in turn. Raises DisaError where there are more than seeds."""
        given, what = _given(labels, prompts)
        chosen = many(seeds, whole_number, "seeds")
        if given is None:
            return cls(chosen, **more)
        if not given or not chosen:
            raise DisaError(f"nothing to draw: give at least one {what} and one seed.")
        if what == "prompt" and len(given) > len(chosen):
            raise DisaError(f"{counted(len(given), what)} need as many seeds or more, found {len(chosen)}.")
        return cls(chosen, **{f"{what}s": [given[i % len(given)] for i in range(len(chosen))]}, **more)

    @classmethod
    def each(
        cls,
        count: int,
        labels: Any = None,
        prompts: Any = None,
        seeds: Any = None,
        first_seed: int = 0,
        **more: Any,
    ) -> Inputs:
        """`count` images of each label or prompt, those of one together. Raises DisaError.

        seeds: one per image; or `count`, the same for every label or prompt. None: from first_seed on; for labels one
        per image, so that no two classes share their noise, and more images of each leave those that there are as they
        are; for prompts the same `count` for each, as GenEval's protocol has it.
        """
        given, what = _given(labels, prompts)
        if not given:
            raise DisaError("nothing to draw: a number of images of each needs labels or prompts.")
        count = whole_number(count, f"the number of images per {what}", 1)
        total = count * len(given)
        if total > MOST_IMAGES:
            raise DisaError(f"at most {MOST_IMAGES} images at a time, found {total}.")
        if seeds is None:
            seeds = range(first_seed, first_seed + count)
            if what == "label":
                seeds = [first_seed + j * len(given) + i for i in range(len(given)) for j in range(count)]
        chosen = many(seeds, whole_number, "seeds")
        if len(chosen) not in (count, total):
            also = f" or {total}, one per image" if total != count else ""
            images, wanted = counted(count, "image"), counted(count, "seed")
            raise DisaError(f"{images} per {what} need {wanted}{also}, found {len(chosen)}.")
        values = [value for value in given for _ in range(count)]
        return cls(chosen * (total // len(chosen)), **{f"{what}s": values}, **more)

    @classmethod
    def listed(
        cls, count: int | None = None, labels: Any = None, prompts: Any = None, seeds: Any = None, **more: Any
    ) -> Inputs:
        """As a command asks: `count` images of `each` label or prompt, or lists that are `paired` one to one, with
        seed 0 where none is given. Raises DisaError."""
        if count is None:
            return cls.paired(0 if seeds is None else seeds, labels, prompts, **more)
        return cls.each(count, labels, prompts, seeds, **more)

    # -- parts ---------------------------------------------------------------------------------------------------

    def part(self, chosen: slice | Sequence[int]) -> Inputs:
        """Some of the images, by a slice or by their places."""
        places = range(len(self))[chosen] if isinstance(chosen, slice) else many(chosen, whole_number, "places")
        if wrong := [place for place in places if not 0 <= place < len(self)]:
            raise DisaError(f"there are {counted(len(self), 'image')}, from place 0 on: found place {wrong[0]}.")
        labels, prompts = (values and [values[i] for i in places] for values in (self.labels, self.prompts))
        seeds = [self.seeds[i] for i in places]
        known, mask, source = (
            value if value is None or len(value) == 1 else value[list(places)]
            for value in (self.known, self.mask, self.source)
        )
        return replace(self, seeds=seeds, labels=labels, prompts=prompts, known=known, mask=mask, source=source)

    def with_seeds(self, seeds: Iterable[int]) -> Inputs:
        """The same labels or prompts, in turn, for other seeds."""
        chosen = list(seeds)
        return replace(self.part([i % len(self) for i in range(len(chosen))]), seeds=chosen)

    def check_alike(self) -> None:
        """Refuse images with different numbers of tokens to draw: their AR steps do not compare. Raises DisaError."""
        counts = set() if self.mask is None else set(self.mask.flatten(1).sum(1).tolist())
        if len(counts) > 1:
            raise DisaError(
                f"images that are measured together have equally many tokens to draw, found {min(counts)} "
                f"to {max(counts)}: measure them apart."
            )

    def numbers(self) -> dict[str, Any]:
        """Labels or prompts, and seeds, for JSON."""
        if self.prompts is None:
            return {"labels": self.labels, "seeds": self.seeds}
        negative = {} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt}
        return {"prompts": self.prompts, **negative, "seeds": self.seeds}


def _given(labels: Any, prompts: Any) -> tuple[list[Any] | None, str]:
    """Labels or prompts as a list, and which of the two they are; None where there are neither."""
    if labels is not None and prompts is not None:
        raise DisaError("a model draws from labels or from prompts: found both.")
    if prompts is None:
        return (None if labels is None else many(labels, whole_number, "labels")), "label"
    return many(prompts, text, "prompts"), "prompt"
