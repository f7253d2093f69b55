"""Leaves that the models share: linear layers with packed CPU weights, attention, the ViT block, time embedding.

Shapes: B images, L tokens, D width, H heads, n times.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MIN_ROWS = 16
"""Below 12 rows CPU libraries choose kernels that sum in another order, so that a token's value would depend on how
many tokens are computed beside it. Fewer rows are padded, see `in_tiles` and `benchmarks/invariance.py`."""

TILES = (1024, 256, 64)
"""Into how many rows at a time a number that is not round is divided."""

QUERY_TILE = 16
"""Queries that the CPU's fused attention takes at a time; half-filled tiles are summed in another order."""


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x). On a CPU the fused kernel rounds the end of a thread's share differently from its body."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.is_grad_enabled():
        return F.silu(x)
    return x / (-x).exp().add_(1)


_ACTIVATIONS = {None: lambda x: x, "gelu": F.gelu, "swish": swish}


class Linear(nn.Linear):
    """A linear layer, optionally followed by `gelu` or `swish`, whose rows do not depend on each other's number."""

    def forward(self, input: Tensor, activation: str | None = None) -> Tensor:
        return _ACTIVATIONS[activation](linear(input, self.weight, self.bias))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` whose rows do not depend on each other's number."""
    return in_tiles(lambda rows: F.linear(rows, weight, bias), x)


def table(count: int, width: int) -> nn.Embedding:
    """`count` vectors of `width`, without values as yet, like `torch.empty`.

    On the meta device PyTorch's own normal values would import its symbolic shapes: a second, and 70 MiB.
    """
    return nn.Embedding.from_pretrained(torch.empty(count, width), freeze=False)


def adopt(model: nn.Module) -> nn.Module:
    """Turn the plain linear layers of a foreign model into `Linear`, which keeps its promise and can be packed."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


class PackedLinear(nn.Module):
    """A `Linear` whose weight is laid out for oneDNN: inference on a CPU only.

    PyTorch's own fp32 path reaches less than half of this on AVX-512 machines that are not Intel's. The activation is
    fused where oneDNN is good at it.
    """

    fused = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    """Without AVX-512 oneDNN's gelu takes several times as long as PyTorch's."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        self.bias = linear.bias

    def forward(self, x: Tensor, activation: str | None = None) -> Tensor:
        name, after = (activation or "none", None) if self.fused else ("none", activation)

        def apply(rows: Tensor) -> Tensor:
            return torch.ops.mkldnn._linear_pointwise(rows, self.packed, self.bias, name, [], "none")

        return _ACTIVATIONS[after](in_tiles(apply, x))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "weight"] = self.packed.to_dense()


def can_pack(dtype: torch.dtype) -> bool:
    """Whether this build of PyTorch and this CPU have the oneDNN kernels that `pack` needs for weights of `dtype`."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return there and (dtype == torch.float32 or (dtype == torch.bfloat16 and has_fast_bf16()))


def has_fast_bf16() -> bool:
    """Whether this CPU computes in bfloat16; without such instructions it is many times slower than float32."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack(model: nn.Module) -> nn.Module:
    """Replace every `Linear` of an inference model on the CPU by its packed form, one at a time to save memory."""
    parents = [module for module in model.modules() if type(module) is not Linear]  # naming a layer keeps it alive
    for parent in parents:
        for name in [name for name, child in parent.named_children() if type(child) is Linear]:
            setattr(parent, name, PackedLinear(getattr(parent, name)))
    return model


def in_tiles(apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`apply` to x [..., D] in inference on a CPU: to a tile of its rows after the other; elsewhere at once.

    apply: [R, D] -> [R, E], each row on its own. oneDNN prepares kernels for every number of rows that a layer meets,
    and keeps them, 0.7 MiB; every AR step has a number of its own, but tiles have few.
    """
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return apply(x)
    num_rows = x.numel() // x.shape[-1]
    sizes = tiles(num_rows)
    if sizes == (num_rows,):
        return apply(x)
    rows, out, start = x.reshape(num_rows, -1), None, 0
    for size in sizes:
        tile = rows[start : start + size]
        done = apply(tile if len(tile) == size else F.pad(tile, (0, 0, 0, size - len(tile))))
        out = done.new_empty(num_rows, done.shape[1]) if out is None else out
        out[start : start + size] = done[: len(tile)]
        start += size
    assert out is not None
    return out.view(*x.shape[:-1], -1)


@lru_cache(maxsize=4096)
def tiles(num_rows: int) -> tuple[int, ...]:
    """How many rows are computed at once; the last may be padded. Multiples of 16 up to 256, and of 32 beyond, are not
    divided: they are few, or come again in every AR step."""
    if num_rows % (MIN_ROWS if num_rows <= 256 else 2 * MIN_ROWS) == 0:
        return (num_rows,)
    sizes, left = list[int](), num_rows
    for size in TILES:
        sizes += [size] * (left // size)
        left %= size
    return (*sizes, left + -left % MIN_ROWS)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values, all with bias."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        """x: [B, L, D] -> [B, L, D], or [B, W, D] for the token indices `wanted` [B, W] only."""
        batch, length, width = x.shape
        query, key, value = (
            self.qkv(x).view(batch, length, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        )
        if wanted is not None:
            query = query.gather(2, wanted[:, None, :, None].expand(-1, self.num_heads, -1, query.shape[-1]))
        return self.proj(attend(query, key, value).transpose(1, 2).reshape(batch, -1, width))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of [B, H, L, d] tensors; mask: [L, L] or [B or 1, 1, L, keys], added to the scores.

    On a CPU the fused kernel gives a few queries other bits from thread to thread, so they are padded to whole
    tiles; and it computes bf16 no faster than fp32, where two matrix products are over twice as fast.
    """
    if query.device.type != "cpu" or torch.is_grad_enabled():
        return F.scaled_dot_product_attention(query, key, value, mask)
    if query.dtype != torch.bfloat16:
        count = query.shape[2]
        extra = (0, 0, 0, -count % QUERY_TILE if count < 2 * QUERY_TILE else 0)
        mask = None if mask is None else F.pad(mask, extra)
        return F.scaled_dot_product_attention(F.pad(query, extra), key, value, mask)[:, :, :count]
    q, k, v = (x.flatten(0, 1) for x in (query, key, value))
    bias = q.new_zeros(1) if mask is None else mask.expand(*query.shape[:3], key.shape[2]).flatten(0, 1)
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), beta=int(mask is not None), alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), v).view_as(query)


class Swish(nn.Module):
    """`swish` where a module is expected."""

    def forward(self, x: Tensor) -> Tensor:
        return swish(x)


class MLP(nn.Module):
    """Two linear layers with an exact GELU between them; a tile at a time, so that little is in between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return in_tiles(lambda rows: self.fc2(self.fc1(rows, activation="gelu")), x)


class Block(nn.Module):
    """A pre-norm transformer block (ViT)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, wanted: Tensor | None = None) -> Tensor:
        """x: [B, L, D]; with `wanted` [B, W] only those tokens are computed beyond their keys and values."""
        attended = self.attn(self.norm1(x), wanted)
        x = (x if wanted is None else take(x, wanted)) + attended
        return x + self.mlp(self.norm2(x))


def take(x: Tensor, index: Tensor) -> Tensor:
    """x [B, L, D] at token indices [B, N] -> [B, N, D]."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[-1]))


def sinusoids(times: Tensor, size: int, longest: float = 10_000) -> Tensor:
    """times [n] -> [n, size]: cosines first, then sines, of geometrically spaced frequencies."""
    half = size // 2
    frequencies = torch.exp(-math.log(longest) * torch.arange(half, dtype=torch.float32, device=times.device) / half)
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def initialise(model: nn.Module, seed: int) -> None:
    """Weights to train from: Xavier for linear layers, 0.02 normal for tables, zero for modulations and the output."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if ".modulation." in f".{name}" or ".output." in f".{name}":
            nn.init.zeros_(parameter)
        elif "norm" in name:
            nn.init.constant_(parameter, float(name.endswith("weight")))
        elif name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.dim() == 2 and "class" not in name and "embed" not in name:
            nn.init.xavier_uniform_(parameter, generator=random)
        else:
            nn.init.normal_(parameter, std=0.02, generator=random)
