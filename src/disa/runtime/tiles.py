"""How many rows are computed at once, so that a row has the same bits whatever is computed beside it.

Shapes: R rows, D and E width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import lru_cache
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

MIN_ROWS = 16
"""Below 12 rows CPU libraries choose kernels that sum in another order, so that a token's value would depend on how
many tokens are computed beside it. Fewer rows are padded, see `in_tiles` and `benchmarks/invariance.py`."""

TILES = (1024, 256, 64)
"""Into how many rows at a time a number that is not round is divided."""

QUERY_TILE = 16
"""Queries that the CPU's fused attention takes at a time; half-filled tiles are summed in another order."""


def sums_vary(device: torch.device) -> bool:
    """Whether the number of rows may change the order in which a kernel sums, and inference has to see to it.

    That is so on a CPU. Training makes no such promise, and is not slowed down for it.
    """
    return device.type == "cpu" and not torch.is_grad_enabled()


def in_tiles(apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`apply` to x [..., D] in inference on a CPU: to a tile of its rows after the other; elsewhere at once.

    apply: [R, D] -> [R, E], each row on its own. oneDNN prepares kernels for every number of rows that a layer meets,
    and keeps them, 0.7 MiB; every AR step has a number of its own, but tiles have few.
    """
    if not sums_vary(x.device):
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


def padding(num_rows: int, num_halves: Collection[int], device: torch.device) -> int:
    """How many rows each half lacks for so many halves to be one tile, so that no layer has to pad; 0 off the CPU."""
    if device.type != "cpu":
        return 0

    def is_one_tile(rows: int) -> bool:
        return tiles(rows) == (rows,)

    return next(lack for lack in count() if all(is_one_tile(halves * (num_rows + lack)) for halves in num_halves))


def one_by_one(apply: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """`apply` to x [R, ...]: on a CPU to one row after the other, elsewhere at once.

    Convolutions on a CPU round differently for other numbers of images; alone, an image is always bit-equal.
    """
    return torch.cat([apply(row) for row in x.split(1)]) if x.device.type == "cpu" else apply(x)
