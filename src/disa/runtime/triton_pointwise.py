# pyright: reportMissingImports=false, reportIndexIssue=false
"""Operators that go value by value in Triton, see triton_kernels.py.

Shapes: R rows, P halves of them, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from disa.runtime.triton_linear import rows_of

BLOCK = 1024
"""Values of a program."""


@triton.jit
def _turned(
    x,
    cos,
    sin,
    out,
    total,
    images,
    heads,
    length,
    s_pair,
    s_image,
    s_head,
    s_token,
    HALF: tl.constexpr,
    SIZE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < total
    plane, token = place % HALF, place // HALF % length
    head = place // (HALF * length) % heads
    image = place // (HALF * length * heads) % images
    pair = place // (HALF * length * heads * images)
    here = x + pair * s_pair + image * s_image + head * s_head + token * s_token + 2 * plane
    even = tl.load(here, mask=inside, other=0.0).to(tl.float32)
    odd = tl.load(here + 1, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + token * HALF + plane, mask=inside, other=0.0)
    s = tl.load(sin + token * HALF + plane, mask=inside, other=0.0)
    there = out + 2 * place
    tl.store(there, (even * c - odd * s).to(out.dtype.element_ty), mask=inside)
    tl.store(there + 1, (odd * c + even * s).to(out.dtype.element_ty), mask=inside)


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    wide = x if x.dim() == 5 else x[None]
    wide = wide if wide.stride(-1) == 1 else wide.contiguous()
    _, images, heads, length, width = wide.shape
    total = out.numel() // 2
    _turned[(triton.cdiv(total, BLOCK),)](
        wide,
        cos.contiguous(),
        sin.contiguous(),
        out,
        total,
        images,
        heads,
        length,
        *wide.stride()[:4],
        HALF=width // 2,
        SIZE=BLOCK,
    )
    return out


@triton.jit
def _gelu_gate(gate, value, out, total, SIZE: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < total
    h = tl.load(gate + place, mask=inside, other=0.0).to(tl.float32)
    h = 0.5 * h * (1 + tl.erf(h * 0.7071067811865476))
    h *= tl.load(value + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, h.to(out.dtype.element_ty), mask=inside)


def gelu_gate(gate: Tensor, value: Tensor) -> Tensor:
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    total = out.numel()
    _gelu_gate[(triton.cdiv(total, BLOCK),)](gate.contiguous(), value.contiguous(), out, total, SIZE=BLOCK)
    return out


@triton.jit
def _guided(
    value,
    variance,
    mixed,
    spread,
    total,
    scale,
    half,
    half_row,
    channels,
    stride,
    TWO: tl.constexpr,
    VARIANCE: tl.constexpr,
    SIZE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < total
    here = place // channels * stride + place % channels
    h = tl.load(value + here, mask=inside, other=0.0).to(tl.float32)
    if TWO:
        without = tl.load(value + half + here, mask=inside, other=0.0).to(tl.float32)
        h = without + tl.load(scale) * (h - without)
    tl.store(mixed + place, h, mask=inside)
    if VARIANCE:
        here = place // channels * half_row + place % channels
        tl.store(spread + place, tl.load(variance + here, mask=inside, other=0.0).to(tl.float32), mask=inside)


def guided(value: Tensor, variance: Tensor | None, scale: Tensor) -> list[Tensor]:
    out = [
        torch.empty(value.shape[1:], dtype=torch.float32, device=value.device)
        for each in (value, variance)
        if each is not None
    ]
    wide = value.reshape(len(value), -1, value.shape[-1])
    wide = wide if wide.stride(-1) == 1 else wide.contiguous()
    other = wide[0] if variance is None else rows_of(variance[0])
    total = out[0].numel()
    _guided[(triton.cdiv(total, BLOCK),)](
        wide,
        other,
        out[0],
        out[-1],
        total,
        scale,
        wide.stride(0),
        other.stride(0),
        value.shape[-1],
        wide.stride(1),
        TWO=len(wide) == 2,
        VARIANCE=variance is not None,
        SIZE=BLOCK,
    )
    return out


@triton.jit
def _ancestral(
    x,
    value,
    variance,
    noise,
    each,
    out,
    total,
    values,
    each_row,
    keep,
    remove,
    middle,
    spread,
    temperature,
    EACH: tl.constexpr,
    VARIANCE: tl.constexpr,
    NOISE: tl.constexpr,
    SIZE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < total
    if EACH:
        here = each + place // values * each_row
        keep = tl.load(here, mask=inside, other=0.0)
        remove = tl.load(here + 1, mask=inside, other=0.0)
        middle = tl.load(here + 2, mask=inside, other=0.0)
        spread = tl.load(here + 3, mask=inside, other=0.0)
    h = tl.load(x + place, mask=inside, other=0.0) * keep
    h += tl.load(value + place, mask=inside, other=0.0) * remove
    if NOISE:
        if VARIANCE:
            log_deviation = tl.load(variance + place, mask=inside, other=0.0) * spread + middle
        else:
            log_deviation = tl.zeros_like(h) + (middle - spread)
        h += temperature * tl.exp(log_deviation) * tl.load(noise + place, mask=inside, other=0.0)
    tl.store(out + place, h, mask=inside)


def ancestral(
    x: Tensor,
    value: Tensor,
    variance: Tensor | None,
    noise: Tensor | None,
    numbers: Sequence[float],
    each: Tensor | None,
    temperature: float,
) -> Tensor:
    out, total = torch.empty(x.shape, dtype=x.dtype, device=x.device), x.numel()
    numbers = numbers if each is None else [0.0] * 4
    _ancestral[(triton.cdiv(total, BLOCK),)](
        x.contiguous(),
        value.contiguous(),
        x if variance is None else variance.contiguous(),
        x if noise is None else noise.contiguous(),
        x if each is None else each,
        out,
        total,
        total // len(x),
        0 if each is None else each.stride(0),
        *map(float, numbers),
        temperature,
        EACH=each is not None,
        VARIANCE=variance is not None,
        NOISE=noise is not None,
        SIZE=BLOCK,
    )
    return out
