"""Which CPU kernels give a row the same bits whatever is computed beside it.

    python benchmarks/invariance.py                  # about ten minutes on two cores
    python benchmarks/invariance.py --quick --threads 2

disa promises that an image does not depend on its batch. That holds where every kernel does, so each is tried alone: M
rows on their own against the same rows of a large call, for every M from 1 to 64 and some more, at several places of
the large call; attention for every number of queries, with some images against many. `tiles.MIN_ROWS` is the number to
which disa pads smaller calls, so only what is bad from there on counts. Then disa's own block and head, which do the
padding, have to hold for every number. What is broken makes the exit code 1; bf16 is shown, but nothing is promised.

Shapes: M rows, K features in, N out; B images, L tokens. The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from common import machine, publish
from torch import Tensor
from torch.nn import functional as F

from disa.core.diffusion import CosineDiffusion
from disa.models.guided import Guided
from disa.models.heads import DiffusionHead, HeadNetwork
from disa.models.layers import Block, initialise
from disa.runtime.packing import can_pack, pack
from disa.runtime.tiles import MIN_ROWS

Kernel = Callable[[Tensor], Tensor]

FEW = (*range(1, 65), 96, 100, 127, 128, 160, 255, 256)
MANY = (*FEW, 320, 500, 512, 640, 1000, 1024, 1280)
SHAPES = {
    (16, 128): MANY,
    (128, 384): MANY,
    (128, 512): MANY,
    (512, 128): MANY,
    (128, 192): MANY,
    (192, 192): MANY,
    (192, 2112): MANY,
    (192, 32): MANY,
    (256, 256): MANY,
    (256, 3584): FEW,
    (256, 1024): FEW,
    (768, 2304): MANY,
    (768, 768): MANY,
    (768, 3072): MANY,
    (3072, 768): MANY,
    (768, 1024): MANY,
    (1024, 1024): MANY,
    (1024, 32): MANY,
    (1024, 20480): FEW,
    (16, 768): MANY,
    (16, 1024): MANY,
    (1280, 1280): FEW,
    (1280, 5120): FEW,
    (5120, 1280): FEW,
    (1536, 1536): FEW,
}
"""(K, N) of the linear layers of mar-digits, MAR-B, -L and -H, and the row counts that are tried."""
QUICK = {(128, 384): FEW, (768, 768): FEW, (3072, 768): FEW, (1024, 1024): FEW}
ATTENTIONS = ((4, 32, 72), (12, 64, 320), (16, 80, 320))
"""Heads, their size, and L."""


@dataclass
class Finding:
    """The counts (of rows, or of queries) that are bad, with the shapes where they are.

    promised_from: the count from which disa relies on this kernel; None: it never does.
    """

    kernel: str
    threads: int
    promised_from: int | None
    bad: dict[int, list[str]] = field(default_factory=dict)

    def add(self, counts: Iterable[int], shape: str) -> None:
        for count in counts:
            self.bad.setdefault(count, []).append(shape)

    @property
    def broken(self) -> list[int]:
        start = self.promised_from
        return [] if start is None else [count for count in sorted(self.bad) if count >= start]

    @property
    def verdict(self) -> str:
        return "not promised" if self.promised_from is None else "BROKEN" if self.broken else "ok"


# -- kernels alone ---------------------------------------------------------------------------------------------------


def try_linear(dtype: torch.dtype, threads: int, shapes: dict[tuple[int, int], tuple[int, ...]]) -> Iterator[Finding]:
    """PyTorch's own linear layer, and the packed one with each activation that disa fuses."""
    promised = MIN_ROWS if dtype == torch.float32 else None
    names = ["F.linear", *(("packed", "packed+gelu", "packed+swish") if can_pack(dtype) else ())]
    for name in names:
        finding = Finding(f"{name} {str(dtype).removeprefix('torch.')}", threads, promised)
        for (features_in, features_out), counts in shapes.items():
            x = normal(max(counts) + 256, features_in).to(dtype)
            kernel = linear(name, features_in, features_out, dtype)
            finding.add(differing(kernel, x, counts), f"{features_in}x{features_out}")
        yield finding


def linear(name: str, features_in: int, features_out: int, dtype: torch.dtype) -> Kernel:
    weight = (normal(features_out, features_in) / features_in**0.5).to(dtype)
    bias = normal(features_out).to(dtype)
    if name == "F.linear":
        return lambda x: F.linear(x, weight, bias)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    activation = name.partition("+")[2] or "none"
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")


def try_elementwise(threads: int) -> Iterator[Finding]:
    """Never padded, so any count may be met. A vector kernel is safe only if its tail, one value at a time, agrees.

    silu's tail does not, so disa may not rely on it.
    """
    kernels: dict[str, tuple[int | None, Kernel]] = {
        "layer_norm": (1, lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)),
        "gelu": (1, F.gelu),
        "silu": (None, F.silu),
        "exp": (1, torch.exp),
        "log": (1, lambda x: x.abs().log()),
        "cos": (1, torch.cos),
        "sin": (1, torch.sin),
        "sqrt": (1, lambda x: x.abs().sqrt()),
        "lerp": (1, lambda x: torch.lerp(x, x.flip(-1), 2.9)),
        "addcmul": (1, lambda x: torch.addcmul(x, x.flip(-1), x + 1)),
        "add with alpha": (1, lambda x: torch.add(x, x.flip(-1), alpha=1.7)),
    }
    for name, (promised_from, kernel) in kernels.items():
        finding = Finding(name, threads, promised_from)
        for width in (4, 16, 128, 192, 256, 768, 1024, 1536):
            size = 4096 if width <= 16 else 512
            finding.add(differing(kernel, normal(size, width), (*FEW, 321, 500)), f"width {width}")
        yield finding


def try_attention(threads: int) -> Iterator[Finding]:
    """By the number of queries: all tokens of short and long sequences, and some tokens of a long one (padded)."""
    everything = Finding("attention, all", threads, 1)
    some = Finding("attention, some", threads, MIN_ROWS)
    for heads, size, length in ATTENTIONS:
        for count in (*range(1, 65), 65, 72, 91, 127, length):
            if count > length:
                continue
            for finding, keys in ((everything, count), (some, length)):

                def kernel(x: Tensor, count: int = count) -> Tensor:
                    return F.scaled_dot_product_attention(x[:, 0, :, :count], x[:, 1], x[:, 2])

                if differing(kernel, normal(7, 3, heads, keys, size), (1, 2, 3, 5)):
                    finding.add([count], f"{keys} keys, {heads} heads of {size}")
    yield from (everything, some)


# -- disa's own layers -------------------------------------------------------------------------------------------------


def try_block(threads: int, packed: bool) -> Finding:
    """`layers.Block` in which only some tokens are wanted, by their number: images alone against images in a batch."""
    finding = Finding(f"disa block{', packed' if packed else ''}", threads, 1)
    for width, heads, length in ((128, 4, 72), (768, 12, 91)):
        block = Block(width, heads, 4.0, 1e-6).requires_grad_(False)
        initialise(block, 0)
        if packed:
            pack(block)
        for count in (*range(1, MIN_ROWS + 6), 31, 32, 33, 64):
            wanted = torch.arange(count)

            def kernel(x: Tensor, block: Block = block, wanted: Tensor = wanted) -> Tensor:
                return block(x, wanted.expand(len(x), -1))

            if differing(kernel, normal(7, length, width), (1, 2, 3, 5)):
                finding.add([count], f"{length} tokens, width {width}")
    return finding


def try_head(threads: int, packed: bool) -> Finding:
    """A guided head at the last of 3 denoising steps, by the number of rows."""
    finding = Finding(f"disa head{', packed' if packed else ''}", threads, 1)
    grid = CosineDiffusion().grid("uniform", 3)
    for width, depth, condition in ((192, 3, 128), (1024, 2, 768)):
        head = DiffusionHead(16, condition, width, depth).requires_grad_(False)
        for parameter in head.parameters():
            parameter.copy_(normal(*parameter.shape) * 0.05)
        if packed:
            pack(head)

        def kernel(x: Tensor, head: DiffusionHead = head) -> Tensor:
            """x: [R, C + 2 D]."""
            state, conditional, unconditional = x[:, :16], *x[:, 16:].chunk(2, dim=1)
            field = Guided(HeadNetwork.of(head, conditional, unconditional), 2.9)
            return field.on(grid)(state, 2).value

        counts = (*range(1, MIN_ROWS + 6), 31, 32, 33, 64, 100)
        finding.add(differing(kernel, normal(300, 16 + 2 * condition), counts), f"width {width}")
    return finding


# -- comparing and printing --------------------------------------------------------------------------------------------


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def differing(kernel: Kernel, x: Tensor, counts: Iterable[int]) -> list[int]:
    """The counts M for which some M rows of x [R, ...] give other bits on their own than within all of x."""
    together = kernel(x)

    def same(count: int, at: int) -> bool:
        return torch.equal(kernel(x[at : at + count].clone()), together[at : at + count])

    return [count for count in counts if not all(same(count, at) for at in places(count, len(x)))]


def places(count: int, size: int) -> list[int]:
    """Where the M rows are taken from: the start, an odd place in the middle, the end."""
    return sorted({0, min(37, (size - count) // 2), size - count})


def show(finding: Finding) -> None:
    bad = " ".join(map(str, sorted(finding.bad))) or "none"
    print(f"{finding.kernel:22} {finding.threads} threads   {finding.verdict:12}  bad: {bad}", flush=True)
    for count in finding.broken:
        print(f"    {count}: {', '.join(finding.bad[count])}")


def findings(threads: int, quick: bool) -> Iterator[Finding]:
    yield from try_linear(torch.float32, threads, QUICK if quick else SHAPES)
    yield from try_linear(torch.bfloat16, threads, QUICK)
    yield from try_elementwise(threads)
    yield from try_attention(threads)
    for packed in (False, True) if can_pack(torch.float32) else (False,):
        yield try_block(threads, packed)
        yield try_head(threads, packed)


def report(found: list[Finding]) -> dict[str, Any]:
    names = {f"{finding.kernel}, {finding.threads} threads": finding for finding in found}
    return {
        "benchmark": "invariance",
        "min_rows": MIN_ROWS,
        "device": "cpu",
        **machine(),
        "bad": {name: sorted(finding.bad) for name, finding in names.items()},
        "broken": [name for name, finding in names.items() if finding.broken],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Which CPU kernels give a row the same bits in every batch.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    args = parser.parse_args()
    print(f"some rows on their own against the same rows of a large call; tiles.MIN_ROWS = {MIN_ROWS}\n")
    found: list[Finding] = []
    with torch.no_grad():
        for threads in args.threads:
            torch.set_num_threads(threads)
            for finding in findings(threads, args.quick):
                show(finding)
                found.append(finding)
    publish(report(found))
    sys.exit(any(finding.broken for finding in found))


if __name__ == "__main__":
    main()
