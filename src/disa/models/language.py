"""The language model that Harmon and NextStep draw with: Qwen2 of transformers, on our leaves. It is imported when a
model is built.

Shapes: R rows, T tokens, E width of the language model.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from disa.core.capabilities import check_ids
from disa.core.request import Prompts
from disa.core.work import attention, product, ran
from disa.errors import DisaError
from disa.models.layers import Swish
from disa.models.transformer import KVCache
from disa.runtime.kernels import attend, cos_and_sin
from disa.runtime.packing import adopt

LAYER = (
    *(f"self_attn.{name}_proj.{leaf}" for name in "qkv" for leaf in ("weight", "bias")),
    "self_attn.o_proj.weight",
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
)
"""Names of the tensors of a layer."""


SHORT_PROMPT = 16
"""Positions that are left for a prompt beside the largest image."""


class LanguageConfig(Protocol):
    """What a language model is built from."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def llm_width(self) -> int: ...

    @property
    def llm_hidden(self) -> int: ...

    @property
    def llm_depth(self) -> int: ...

    @property
    def llm_heads(self) -> int: ...

    @property
    def llm_kv_heads(self) -> int: ...

    @property
    def rope_base(self) -> float: ...

    @property
    def llm_norm_eps(self) -> float: ...

    @property
    def max_positions(self) -> int: ...


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


def check_language(config: LanguageConfig, num_image_tokens: int) -> None:
    """Whether there is such a language model, with places for an image of so many tokens. Raises DisaError."""
    width, heads, own = config.llm_width, config.llm_heads, config.llm_kv_heads
    if width % (2 * heads):
        raise DisaError(f"llm_heads = {heads} must divide llm_width = {width} into even numbers of channels.")
    if heads % own:
        raise DisaError(f"llm_kv_heads = {own} must divide llm_heads = {heads}.")
    if config.max_positions <= num_image_tokens:
        raise DisaError(
            f"max_positions = {config.max_positions} must be more than the {num_image_tokens} places of an "
            "image: a prompt needs some, too."
        )


def check_prompts(config: LanguageConfig, prompts: Prompts, num_following: int) -> None:
    """Ids must be in the vocabulary, and what follows a prompt must have positions left. Raises DisaError."""
    check_ids(prompts, config.vocab_size)
    check_positions(config, int(prompts.lengths.max()), num_following)


def check_positions(config: LanguageConfig, longest: int, num_following: int) -> None:
    """What follows the longest prompt must have positions left. Raises DisaError."""
    if longest + num_following > config.max_positions:
        room = config.max_positions - num_following
        raise DisaError(f"a prompt may have at most {room} tokens here, found {longest}: shorten it.")


def language_model(config: LanguageConfig, attention: str = "disa") -> Any:
    """Qwen2 without its output layer, on our leaves, which do not let a row depend on the number of rows.

    attention: `disa`, or `disa-grouped` where tokens are run one at a time.
    """
    try:
        from transformers import Qwen2Config, Qwen2Model
    except ImportError as error:
        raise DisaError('a language model needs transformers: pip install "disa[harmon]".') from error
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
        "attn_implementation": attention,
    }
    model: Any = Qwen2Model(Qwen2Config(**arguments))
    model.rotary_emb = Rotary(config.llm_width // config.llm_heads, config.rope_base)
    for layer in model.layers:
        layer.mlp.act_fn = Swish()
    return adopt(model)


class WithLanguageModel(nn.Module):
    """A model with a language model inside; it can be unpickled in a process that has built none."""

    llm: Any

    @property
    def layers_in_turn(self) -> nn.ModuleList:
        """Layers with most of the weights, of one shape, which run one after the other."""
        return self.llm.layers

    def __setstate__(self, state: Any) -> None:
        register_attention()
        super().__setstate__(state)


def register_attention() -> None:
    """Tell transformers of the attention that `language_model` asks for."""
    from transformers import AttentionInterface

    AttentionInterface.register("disa", _attention)
    AttentionInterface.register("disa-grouped", _attention_in_groups)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any
) -> tuple[Tensor, None]:
    """Grouped-query attention as transformers asks for it: [R, heads, T, d] -> [R, T, heads, d]."""
    _say(module, query, key)
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    return attend(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


def _attention_in_groups(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **more: Any
) -> tuple[Tensor, None]:
    """The same. The heads that share keys and values are the queries of one, so that these are not copied for a single
    token."""
    rows, heads, length, width = query.shape
    if length > 1:
        return _attention(module, query, key, value, attention_mask, **more)
    _say(module, query, key)
    grouped = query.reshape(rows, key.shape[1], -1, width)
    mask = None if attention_mask is None else attention_mask.expand(-1, -1, grouped.shape[2], -1)
    return attend(grouped, key, value, mask).reshape(rows, 1, heads, width), None


def _say(module: Any, query: Tensor, key: Tensor) -> None:
    """Count what the layer of the attention computes in this call."""
    rows, heads, length, size = query.shape
    width, hidden = module.config.hidden_size, module.config.intermediate_size
    made = product(rows * length, width, (heads + 2 * key.shape[1]) * size)
    made += product(rows * length, heads * size, width)
    made += attention(rows, length, key.shape[2], heads * size) + 3 * product(rows * length, width, hidden)
    ran(rows * length, made)


class KeyValues:
    """Where a layer of transformers writes keys and values: a cache that was allocated once."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Write [R, heads, T, d] behind what is kept; returns all of the layer."""
        return self.cache.put(layer, key, value)


def run(llm: Any, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache) -> Tensor:
    """Embeddings [R, T, E] after what the cache keeps -> final hidden states; they are kept, too.

    rotation: see `Rotary`; mask: [R or 1, 1, T, keys] added to the scores.
    """
    written = KeyValues(cache)
    for layer in llm.layers:
        x = layer(x, attention_mask=mask, position_embeddings=rotation, past_key_values=written)
    cache.advance(x.shape[1])
    return llm.norm(x)


def causal(count: int, like: Tensor) -> Tensor:
    """[1, 1, T, T] of 0 and -inf."""
    return like.new_full((count, count), float("-inf")).triu(1)[None, None]
