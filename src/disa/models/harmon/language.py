"""What the language model of Harmon keeps of prompts.

Shapes: R rows, T tokens, F tokens that may follow, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Prefix:
    """Prompts that the language model has read together.

    rows: [R] which of the B' they are; lengths: [R] real tokens; width: of the longest; mask: [R or 1, 1, F, width + F]
    of 0 and -inf, what the F tokens that may follow see; cache: keys and values, [R, heads, width, d] in every layer.
    """

    places: list[int]
    rows: Tensor
    lengths: Tensor
    width: int
    mask: Tensor
    cache: Any

    def first(self, count: int) -> Prefix:
        """The first prompts alone; the keys and values are views, and what is added to them is not added here."""
        cache = copy(self.cache)
        cache.layers = [copy(layer) for layer in cache.layers]
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:count], layer.values[:count]
        return Prefix(
            self.places[:count], self.rows[:count], self.lengths[:count], self.width, self.mask[:count], cache
        )

    def parts(self) -> tuple[Hashable, list[Tensor]]:
        """See `disa.runtime.parts.Parted`."""
        pairs = [each for layer in self.cache.layers for each in (layer.keys, layer.values)]
        return (tuple(self.places), self.width), [self.rows, self.lengths, self.mask, *pairs]

    def with_parts(self, parts: Sequence[Tensor]) -> Prefix:
        """See `disa.runtime.parts.Parted`."""
        made, pairs = self.first(len(self.places)), iter(parts[3:])
        for layer in made.cache.layers:
            layer.keys, layer.values = next(pairs), next(pairs)
        return replace(made, rows=parts[0], lengths=parts[1], mask=parts[2])


def conditional(prefixes: list[Prefix], num_images: int) -> list[Prefix]:
    """The same prefixes without the unconditional prompts, which are the last rows of each."""
    counts = [sum(place < num_images for place in prefix.places) for prefix in prefixes]
    return [prefix.first(count) for prefix, count in zip(prefixes, counts, strict=True) if count]


def empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()
