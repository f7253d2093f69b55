"""Operations whose CPU kernels do not keep a row's bits by themselves, done so that they are kept.

Shapes: B images, L tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from disa.runtime.tiles import QUERY_TILE, in_tiles, sums_vary


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` whose rows do not depend on each other's number."""
    return in_tiles(lambda rows: F.linear(rows, weight, bias), x)


def swish(x: Tensor) -> Tensor:
    """x sigmoid(x). On a CPU the fused kernel rounds the end of a thread's share differently from its body."""
    if x.dtype != torch.float32 or not sums_vary(x.device):
        return F.silu(x)
    return x / (-x).exp().add_(1)


def cos_and_sin(angles: Tensor) -> tuple[Tensor, Tensor]:
    """Of angles of any shape. On a CPU in float64: a vector kernel may round the end of a tensor differently from its
    body."""
    angles = angles.double() if angles.device.type == "cpu" else angles
    return angles.cos(), angles.sin()


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of [B, H, L, d] tensors; mask: [L, L] or [B or 1, 1, L, keys], added to the scores.

    On a CPU the fused kernel gives a few queries other bits from thread to thread, so they are padded to whole
    tiles; and it computes bf16 no faster than fp32, where two matrix products are over twice as fast.
    """
    if not sums_vary(query.device):
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
