"""What the language model has read so far, of prompts and of the tokens that follow them.

Shapes: R rows (prompts: those of all images, then the unconditional ones, see `Request.prompts`), N of them that are
read together, P tokens of the longest prompt, L image tokens, E width of the language model, d of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disa.core.request import Prompts
from disa.models.language import causal, run
from disa.models.transformer import KVCache
from disa.runtime.tiles import sums_vary


@dataclass
class Reading:
    """Prompts that are read together, aligned at their ends, and what follows them, one token at a time.

    places: which of the R rows they are, rising; rows: the same on the device; rotation: cosines and sines
    [N, P + L, d]; mask: [N, 1, 1, P + L] of 0 and -inf where prompts differ in length; cache: room for all of it.
    """

    places: list[int]
    rows: Tensor
    rotation: tuple[Tensor, Tensor]
    mask: Tensor | None
    cache: KVCache

    def go_on(self, llm: Any, x: Tensor) -> Tensor:
        """The next token of each row: embeddings [N, 1, E] -> final hidden states [N, E]."""
        now = self.cache.length
        cos, sin = (angles[:, now : now + 1] for angles in self.rotation)
        mask = None if self.mask is None else self.mask[..., : now + 1]
        return run(llm, x, (cos, sin), mask, self.cache)[:, 0]

    def first(self, num_rows: int) -> Reading:
        """Those of the first of the R rows alone; keys and values are shared."""
        count = sum(place < num_rows for place in self.places)
        cos, sin = (angles[:count] for angles in self.rotation)
        mask = None if self.mask is None else self.mask[:count]
        return Reading(self.places[:count], self.rows[:count], (cos, sin), mask, self.cache.select(slice(count)))


def read(
    llm: Any, prompts: Prompts, embed: Callable[[Tensor, Tensor], Tensor], num_following: int
) -> tuple[list[Reading], Tensor]:
    """Read prompts, with room for the tokens that follow; and the last hidden state of each, [R, E].

    embed: ids [N, P] and rows [N] -> [N, P, E]. Where masked keys would change the order in which a kernel sums,
    prompts of equal length go together, so that no key is padding and an image does not depend on its batch.
    """
    device, lengths = llm.embed_tokens.weight.device, prompts.lengths.tolist()
    known = sorted(set(lengths)) if sums_vary(device) else [max(lengths)]
    found, hidden = list[Reading](), list[Tensor]()
    for width in known:
        places = [place for place, length in enumerate(lengths) if length == width or len(known) == 1]
        reading, last = _read(llm, prompts, embed, places, width, num_following)
        found.append(reading)
        hidden.append(last)
    return found, in_order(found, hidden)


def in_order(readings: list[Reading], hidden: list[Tensor]) -> Tensor:
    """What each of the readings gave, [R, E] in the order of the rows."""
    if len(readings) == 1:
        return hidden[0]
    return torch.cat(hidden)[torch.cat([reading.rows for reading in readings]).argsort()]


def _read(
    llm: Any, prompts: Prompts, embed: Callable[[Tensor, Tensor], Tensor], places: list[int], width: int, following: int
) -> tuple[Reading, Tensor]:
    """Those of some of the R rows, none of which is longer than `width`."""
    device, lengths = llm.embed_tokens.weight.device, prompts.lengths[places]
    lack = width - lengths[:, None]
    at = torch.arange(width + following) - lack  # places count from the first real token, and padding is before 0
    ids = prompts.ids[places].gather(1, at[:, :width].clamp(min=0)).to(device)
    rows, x = torch.tensor(places, device=device), embed(ids, torch.tensor(places))
    rotation = llm.rotary_emb(x, at.clamp(min=0).to(device))
    heads, d = llm.config.num_key_value_heads, rotation[0].shape[-1]
    cache = KVCache.empty(llm.config.num_hidden_layers, len(places), heads, width + following, x, d)
    mask, seen = None, causal(width, x)
    if bool(lack.any()):
        mask = x.new_zeros(len(places), 1, 1, width + following)
        mask = mask.masked_fill((at < 0)[:, None, None].to(device), float("-inf"))
        # Padding sees itself, so that it is a number, and nothing else does.
        seen = (seen + mask[..., :width]).masked_fill(torch.eye(width, dtype=torch.bool, device=device), 0)
    hidden = run(llm, x, tuple(angles[:, :width] for angles in rotation), seen, cache)
    return Reading(places, rows, rotation, mask, cache), hidden[:, -1]
