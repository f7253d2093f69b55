# pyright: reportMissingImports=false, reportIndexIssue=false
"""The kernels of `fused.py` in Triton: one launch for each operator.

Functions have the names, arguments and results of the operators there. Arithmetic is float32 inside, whatever the
tensors hold. `TRITON_INTERPRET=1`, set before Triton is imported, runs them on CPU tensors.

Shapes: R rows, D and E width, n draws.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from disa.runtime.triton_linear import gated_linear as gated_linear
from disa.runtime.triton_linear import modulated_linear as modulated_linear
from disa.runtime.triton_linear import rows_of
from disa.runtime.triton_pointwise import BLOCK
from disa.runtime.triton_pointwise import ancestral as ancestral
from disa.runtime.triton_pointwise import gelu_gate as gelu_gate
from disa.runtime.triton_pointwise import guided as guided
from disa.runtime.triton_pointwise import turned as turned


@triton.jit
def _normals(
    key,
    image,
    position,
    out,
    num_images,
    num_rows,
    total,
    first,
    values,
    ar_step,
    later,
    LATER: tl.constexpr,
    BLOCKS: tl.constexpr,
    SIZE: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    inside = place < total
    block, row = place % BLOCKS, (place // BLOCKS) % num_rows
    draw = place // (BLOCKS * num_rows)
    whose = tl.load(image + row, mask=inside, other=0)
    low = tl.load(key + whose, mask=inside, other=0)
    high = tl.load(key + num_images + whose, mask=inside, other=0)
    where = tl.load(position + row, mask=inside, other=0)
    number = draw + first
    if LATER:
        number += tl.load(later)
    purpose = tl.zeros_like(place) + (tl.load(ar_step) * 2 + 1)
    a, b, c, d = tl.philox(
        low | (high << 32),
        block.to(tl.uint32),
        where.to(tl.uint32),
        number.to(tl.uint32),
        purpose.to(tl.uint32),
    )
    here = out + (draw * num_rows + row) * values + block
    scale: tl.constexpr = 2.3283064365386963e-10  # 2^-32
    turn: tl.constexpr = 1.4629180792671596e-09  # 2 pi 2^-32
    radius = tl.sqrt(tl.log((a.to(tl.float32) + 0.5) * scale) * -2.0)
    angle = b.to(tl.float32) * turn
    tl.store(here, radius * tl.cos(angle), mask=inside & (block < values))
    tl.store(here + BLOCKS, radius * tl.sin(angle), mask=inside & (block + BLOCKS < values))
    radius = tl.sqrt(tl.log((c.to(tl.float32) + 0.5) * scale) * -2.0)
    angle = d.to(tl.float32) * turn
    tl.store(here + 2 * BLOCKS, radius * tl.cos(angle), mask=inside & (block + 2 * BLOCKS < values))
    tl.store(here + 3 * BLOCKS, radius * tl.sin(angle), mask=inside & (block + 3 * BLOCKS < values))


def normals(
    key: Tensor,
    image: Tensor,
    position: Tensor,
    ar_step: Tensor,
    first: int,
    count: int,
    values: int,
    later: Tensor | None = None,
) -> Tensor:
    num_rows, blocks = len(image), -(-values // 4)
    out = torch.empty(count, num_rows, values, dtype=torch.float32, device=key.device)
    total = count * num_rows * blocks
    _normals[(triton.cdiv(total, BLOCK),)](
        key.contiguous(),
        image.contiguous(),
        position.contiguous(),
        out,
        key.shape[1],
        num_rows,
        total,
        first,
        values,
        ar_step,
        ar_step if later is None else later,
        LATER=later is not None,
        BLOCKS=blocks,
        SIZE=BLOCK,
    )
    return out


@triton.jit
def _modulated_norm(
    x,
    weight,
    bias,
    shift,
    scale,
    out,
    width,
    x_row,
    shift_row,
    scale_row,
    per,
    eps,
    RMS: tl.constexpr,
    AFFINE: tl.constexpr,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    h = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    h = _normed(h, inside, width, eps, RMS)
    if AFFINE:
        gain = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        h = h * gain + tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    down = tl.load(shift + row // per * shift_row + column, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(scale + row // per * scale_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, (h * (1 + by) + down).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normed(h, inside, width, eps, RMS: tl.constexpr):
    if not RMS:
        h = tl.where(inside, h - tl.sum(h, 0) / width, 0.0)
    return h * tl.rsqrt(tl.sum(h * h, 0) / width + eps)


def modulated_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor, eps: float, rms: bool
) -> Tensor:
    rows, width = rows_of(x), x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    (down, down_row), (by, by_row), per = *(_modulation(each, x) for each in (shift, scale)), _per(shift, x)
    gain, offset = (x, x) if weight is None or bias is None else (weight, bias)
    _modulated_norm[(len(rows),)](
        rows,
        gain,
        offset,
        down,
        by,
        out,
        width,
        rows.stride(0),
        down_row,
        by_row,
        per,
        eps,
        RMS=rms,
        AFFINE=weight is not None,
        WIDTH=triton.next_power_of_2(width),
    )
    return out


@triton.jit
def _gated_norm(
    x,
    gate,
    y,
    shift,
    scale,
    out,
    normed,
    width,
    x_row,
    y_row,
    gate_row,
    shift_row,
    scale_row,
    per,
    eps,
    WIDTH: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    part = row // per
    much = tl.load(gate + part * gate_row + column, mask=inside, other=0.0).to(tl.float32)
    h = tl.load(y + row * y_row + column, mask=inside, other=0.0).to(tl.float32) * much
    h += tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    h = h.to(out.dtype.element_ty)
    tl.store(out + row * width + column, h, mask=inside)
    h = _normed(h.to(tl.float32), inside, width, eps, True)
    down = tl.load(shift + part * shift_row + column, mask=inside, other=0.0).to(tl.float32)
    by = tl.load(scale + part * scale_row + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + column, (h * (1 + by) + down).to(normed.dtype.element_ty), mask=inside)


def gated_norm(x: Tensor, gate: Tensor, y: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, more, width = rows_of(x), rows_of(y), x.shape[-1]
    out, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    (much, much_row), (down, down_row), (by, by_row) = (_modulation(each, x) for each in (gate, shift, scale))
    _gated_norm[(len(rows),)](
        rows,
        much,
        more,
        down,
        by,
        out,
        normed,
        width,
        rows.stride(0),
        more.stride(0),
        much_row,
        down_row,
        by_row,
        _per(gate, x),
        eps,
        WIDTH=triton.next_power_of_2(width),
    )
    return out, normed


@triton.jit
def _added_norm(x, y, weight, bias, out, normed, width, x_row, y_row, eps, WIDTH: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    inside = column < width
    h = tl.load(x + row * x_row + column, mask=inside, other=0.0).to(tl.float32)
    h += tl.load(y + row * y_row + column, mask=inside, other=0.0).to(tl.float32)
    h = h.to(out.dtype.element_ty)
    tl.store(out + row * width + column, h, mask=inside)
    h = _normed(h.to(tl.float32), inside, width, eps, False)
    h *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    h += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(normed + row * width + column, h.to(normed.dtype.element_ty), mask=inside)


def added_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    rows, more, width = rows_of(x), rows_of(y), x.shape[-1]
    out, normed = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for _ in range(2))
    _added_norm[(len(rows),)](
        rows,
        more,
        weight,
        bias,
        out,
        normed,
        width,
        rows.stride(0),
        more.stride(0),
        eps,
        WIDTH=triton.next_power_of_2(width),
    )
    return out, normed


def _modulation(part: Tensor, x: Tensor) -> tuple[Tensor, int]:
    """A modulation [..., D] as rows, and how far apart they are: 0 where one row serves all."""
    rows = rows_of(part)
    return rows, rows.stride(0) if len(rows) > 1 else 0


def _per(part: Tensor, x: Tensor) -> int:
    """How many rows of x [..., D] go by one row of a modulation."""
    return max(1, (x.numel() // x.shape[-1]) // (part.numel() // part.shape[-1]))
