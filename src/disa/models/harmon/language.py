"""The language model of Harmon: Qwen2 of transformers, on our leaves. It is imported when a model is built.

Shapes: R rows, T tokens, F tokens that may follow, E width of the language model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from disa.core.work import attention, product, ran
from disa.errors import DisaError
from disa.models.harmon.config import HarmonConfig
from disa.models.layers import Swish
from disa.runtime.kernels import attend, cos_and_sin
from disa.runtime.packing import adopt


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


class Rotary(nn.Module):
    """Cosines and sines [R, T, head width] of rotary positions [R, T]; it has no buffers to be lost or rounded."""

    def __init__(self, head_width: int, base: float) -> None:
        super().__init__()
        self.head_width, self.base = head_width, base

    def forward(self, x: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.head_width, 2, device=x.device).float() / self.head_width
        angles = positions[:, :, None].float() * (1.0 / self.base**exponents)
        cos, sin = cos_and_sin(torch.cat([angles, angles], dim=-1))
        return cos.to(x.dtype), sin.to(x.dtype)


def language_model(config: HarmonConfig) -> Any:
    """Qwen2 without its output layer, on our leaves, which do not let a row depend on the number of rows."""
    try:
        from transformers import Qwen2Config, Qwen2Model
    except ImportError as error:
        raise DisaError('Harmon needs transformers: pip install "disa[harmon]".') from error
    register_attention()
    arguments: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.llm_width,
        "intermediate_size": config.llm_hidden,
        "num_hidden_layers": config.llm_depth,
        "num_attention_heads": config.llm_heads,
        "num_key_value_heads": config.llm_kv_heads,
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.llm_norm_eps,
        "hidden_act": "silu",
        "attn_implementation": "disa",
    }
    model: Any = Qwen2Model(Qwen2Config(**arguments))
    model.rotary_emb = Rotary(config.llm_width // config.llm_heads, config.rope_base)
    for layer in model.layers:
        layer.mlp.act_fn = Swish()
    return adopt(model)


def register_attention() -> None:
    """Tell transformers of the attention that `language_model` asks for."""
    from transformers import AttentionInterface

    AttentionInterface.register("disa", _attention)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Grouped-query attention as transformers asks for it: [R, heads, T, d] -> [R, T, heads, d]."""
    _say(module, query, key)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return attend(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _say(module: Any, query: Tensor, key: Tensor) -> None:
    """Count what the layer of the attention computes in this call."""
    rows, heads, length, size = query.shape
    width, hidden = module.config.hidden_size, module.config.intermediate_size
    made = product(rows * length, width, (heads + 2 * key.shape[1]) * size) + product(
        rows * length, heads * size, width
    )
    made += attention(rows, length, key.shape[2], heads * size) + 3 * product(rows * length, width, hidden)
    ran(rows * length, made)


def causal(count: int, like: Tensor) -> Tensor:
    """[1, 1, T, T] of 0 and -inf."""
    return like.new_full((count, count), float("-inf")).triu(1)[None, None]


def empty_cache() -> Any:
    from transformers import DynamicCache

    return DynamicCache()
