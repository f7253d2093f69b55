# pyright: reportMissingImports=false, reportIndexIssue=false
"""Linear layers of few rows in Triton, with what comes before and after them, see triton_kernels.py.

Each program computes some features of all rows, up to 64 of them, so that every weight is read once.

Shapes: R rows, D width in, E features out.
"""

from __future__ import annotations

import os
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""The interpreter multiplies no bf16 matrices: there the same numbers are multiplied in float32."""
FEATURES, DEPTH = 16, 128
"""Output features of a program that multiplies matrices, and how many input features it takes at a time."""


@triton.jit
def _modulated_linear(
    x,
    gain,
    offset,
    shift,
    scale,
    weight,
    bias,
    out,
    rows,
    features,
    width,
    x_row,
    shift_row,
    scale_row,
    eps,
    AFFINE: tl.constexpr,
    SWISH: tl.constexpr,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    is_row, is_feature = (row < rows)[:, None], (feature < features)[:, None]
    start = x + row[:, None] * x_row
    mean = tl.zeros((ROWS,), tl.float32)
    for first in range(0, width, DEPTH):
        column = first + tl.arange(0, DEPTH)
        inside = is_row & (column < width)[None, :]
        mean += tl.sum(tl.load(start + column[None, :], mask=inside, other=0.0).to(tl.float32), 1)
    mean = mean / width
    square = tl.zeros((ROWS,), tl.float32)
    for first in range(0, width, DEPTH):
        column = first + tl.arange(0, DEPTH)
        inside = is_row & (column < width)[None, :]
        h = tl.load(start + column[None, :], mask=inside, other=0.0).to(tl.float32)
        h = tl.where(inside, h - mean[:, None], 0.0)
        square += tl.sum(h * h, 1)
    inverse = tl.rsqrt(square / width + eps)
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    for first in range(0, width, DEPTH):
        column = first + tl.arange(0, DEPTH)
        known = column < width
        inside = is_row & known[None, :]
        h = tl.load(start + column[None, :], mask=inside, other=0.0).to(tl.float32)
        h = (h - mean[:, None]) * inverse[:, None]
        if AFFINE:
            h = h * tl.load(gain + column, mask=known, other=0.0).to(tl.float32)[None, :]
            h = h + tl.load(offset + column, mask=known, other=0.0).to(tl.float32)[None, :]
        by = tl.load(scale + row[:, None] * scale_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        down = tl.load(shift + row[:, None] * shift_row + column[None, :], mask=inside, other=0.0).to(tl.float32)
        h = tl.where(inside, h * (1 + by) + down, 0.0).to(x.dtype.element_ty)
        there = weight + feature[:, None] * width + column[None, :]
        w = tl.load(there, mask=is_feature & known[None, :], other=0.0)
        if WIDE:
            h, w = h.to(tl.float32), w.to(tl.float32)
        total = tl.dot(h, tl.trans(w), total, input_precision="ieee")
    total += tl.load(bias + feature, mask=feature < features, other=0.0).to(tl.float32)[None, :]
    if SWISH:
        total = total / (1 + tl.exp(-total))
    there = out + row[:, None] * features + feature[None, :]
    tl.store(there, total.to(out.dtype.element_ty), mask=is_row & (feature < features)[None, :])


def modulated_linear(
    x: Tensor,
    gain: Tensor | None,
    offset: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    swish: bool,
) -> Tensor:
    rows, (features, width) = rows_of(x), weight.shape
    out = torch.empty(len(rows), features, dtype=x.dtype, device=x.device)
    shift, scale = rows_of(shift), rows_of(scale)
    known, other = (x, x) if gain is None or offset is None else (gain, offset)
    _modulated_linear[_tiles(len(rows), features)](
        rows,
        known,
        other,
        shift,
        scale,
        weight,
        bias,
        out,
        len(rows),
        features,
        width,
        rows.stride(0),
        shift.stride(0),
        scale.stride(0),
        eps,
        AFFINE=gain is not None,
        SWISH=swish,
        **_sizes(len(rows)),
    )
    return out


@triton.jit
def _gated_linear(
    x,
    gate,
    y,
    weight,
    bias,
    out,
    rows,
    features,
    width,
    x_row,
    gate_row,
    y_row,
    ROWS: tl.constexpr,
    FEATURES: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDE: tl.constexpr,
):
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    feature = tl.program_id(0) * FEATURES + tl.arange(0, FEATURES)
    is_row, is_feature = (row < rows)[:, None], feature < features
    total = tl.zeros((ROWS, FEATURES), tl.float32)
    for first in range(0, width, DEPTH):
        column = first + tl.arange(0, DEPTH)
        known = (column < width)[None, :]
        h = tl.load(y + row[:, None] * y_row + column[None, :], mask=is_row & known, other=0.0)
        w = tl.load(weight + feature[:, None] * width + column[None, :], mask=is_feature[:, None] & known, other=0.0)
        if WIDE:
            h, w = h.to(tl.float32), w.to(tl.float32)
        total = tl.dot(h, tl.trans(w), total, input_precision="ieee")
    total += tl.load(bias + feature, mask=is_feature, other=0.0).to(tl.float32)[None, :]
    inside = is_row & is_feature[None, :]
    total *= tl.load(gate + row[:, None] * gate_row + feature[None, :], mask=inside, other=0.0).to(tl.float32)
    total += tl.load(x + row[:, None] * x_row + feature[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * features + feature[None, :], total.to(out.dtype.element_ty), mask=inside)


def gated_linear(x: Tensor, gate: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows, more, much, (features, width) = rows_of(x), rows_of(y), rows_of(gate), weight.shape
    out = torch.empty(len(rows), features, dtype=x.dtype, device=x.device)
    _gated_linear[_tiles(len(rows), features)](
        rows,
        much,
        more,
        weight,
        bias,
        out,
        len(rows),
        features,
        width,
        rows.stride(0),
        much.stride(0),
        more.stride(0),
        **_sizes(len(rows)),
    )
    return out


def _tiles(rows: int, features: int) -> tuple[int, int]:
    return triton.cdiv(features, FEATURES), triton.cdiv(rows, 64)


def _sizes(rows: int) -> dict[str, Any]:
    """Tensor cores take 16 rows or more."""
    sides = {"ROWS": max(16, min(64, triton.next_power_of_2(rows))), "FEATURES": FEATURES, "DEPTH": DEPTH}
    return sides | {"WIDE": INTERPRETED}


def rows_of(x: Tensor) -> Tensor:
    """[..., D] as [R, D] whose values of a row lie side by side."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()
