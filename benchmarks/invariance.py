"""Which CPU kernels give a row the same bits whatever number of rows is computed beside it.

    python benchmarks/invariance.py                  # a few minutes
    python benchmarks/invariance.py --quick

disa promises that an image does not depend on its batch. That holds where every kernel does, so each is tried here: M
rows on their own against the same rows of one large call, for every M from 1 to 64 and some more, at several places of
the large call. `disa.models.layers.MIN_ROWS` is the number of rows to which smaller calls are padded; a row count that
is bad at or above it breaks the promise, and the exit code is 1. bf16 is shown but nothing is promised for it.

Shapes: M rows, K features in, N out. Prints what is bad per kernel; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import disa
from disa.models.layers import MIN_ROWS, can_pack

Kernel = Callable[[Tensor], Tensor]

FEW = (*range(1, 65), 96, 100, 127, 128, 160, 255, 256)
MANY = (*FEW, 320, 500, 512, 640, 1000, 1024, 1280)

SHAPES = {
    (16, 128): MANY, (128, 384): MANY, (128, 512): MANY, (512, 128): MANY, (128, 192): MANY, (192, 192): MANY,
    (192, 2112): MANY, (192, 32): MANY, (256, 256): MANY, (256, 1024): FEW, (768, 2304): MANY, (768, 768): MANY,
    (768, 3072): MANY, (3072, 768): MANY, (768, 1024): MANY, (1024, 1024): MANY, (1024, 32): MANY, (1024, 20480): FEW,
    (16, 768): MANY, (16, 1024): MANY, (1280, 1280): FEW, (1280, 5120): FEW, (5120, 1280): FEW, (1536, 1536): FEW,
}  # fmt: skip
"""(K, N) of the linear layers of mar-digits, MAR-B, -L and -H, and the row counts that are tried."""
QUICK = {(128, 384): FEW, (768, 768): FEW, (3072, 768): FEW, (1024, 1024): FEW}


@dataclass
class Finding:
    """Row counts whose rows differ, over all shapes of one kernel. promised: whether disa relies on it."""

    kernel: str
    threads: int
    promised: bool
    bad: dict[int, list[str]] = field(default_factory=dict)

    def broken(self) -> list[int]:
        return [count for count in sorted(self.bad) if self.promised and count >= MIN_ROWS]


def linear_kernels(features_in: int, features_out: int, dtype: torch.dtype) -> Iterator[tuple[str, Kernel]]:
    """PyTorch's own linear layer, and the packed one with each activation that disa fuses."""
    random = torch.Generator().manual_seed(1)
    weight = (torch.randn(features_out, features_in, generator=random) / features_in**0.5).to(dtype)
    bias = torch.randn(features_out, generator=random).to(dtype)
    yield "F.linear", lambda x: F.linear(x, weight, bias)
    if can_pack():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        for activation in ("none", "gelu", "swish"):
            name = "packed" if activation == "none" else f"packed+{activation}"
            yield name, lambda x, name=activation: torch.ops.mkldnn._linear_pointwise(x, packed, bias, name, [], "none")


def differing(kernel: Kernel, x: Tensor, counts: tuple[int, ...]) -> list[int]:
    """The row counts M for which some M rows of x [R, ...] give other bits on their own than within all of x."""
    together = kernel(x)
    return [count for count in counts if not all(same(kernel, x, together, count, at) for at in places(count, len(x)))]


def places(count: int, size: int) -> list[int]:
    """Where the M rows are taken from: the start, an odd place in the middle, the end."""
    return sorted({0, min(37, size - count), size - count})


def same(kernel: Kernel, x: Tensor, together: Tensor, count: int, at: int) -> bool:
    return torch.equal(kernel(x[at : at + count].clone()), together[at : at + count])


def try_linear(dtype: torch.dtype, threads: int, shapes: dict[tuple[int, int], tuple[int, ...]]) -> list[Finding]:
    """One finding per linear kernel."""
    name = str(dtype).removeprefix("torch.")
    found: dict[str, Finding] = {}
    for (features_in, features_out), counts in shapes.items():
        x = torch.randn(max(counts) + 256, features_in, generator=torch.Generator().manual_seed(0)).to(dtype)
        for kernel, apply in linear_kernels(features_in, features_out, dtype):
            title = f"{kernel} {name}"
            finding = found.setdefault(title, Finding(title, threads, dtype == torch.float32))
            for count in differing(apply, x, counts):
                finding.bad.setdefault(count, []).append(f"{features_in}x{features_out}")
    return list(found.values())


def try_others(threads: int) -> Iterator[Finding]:
    """Layer norm and activations over rows, attention over images: neither is padded, so any count may be met."""
    random = torch.Generator().manual_seed(0)
    for width in (128, 192, 768, 1024, 1536):
        x = torch.randn(400, width, generator=random)
        for name, kernel in (
            ("layer_norm", lambda x: F.layer_norm(x, x.shape[-1:], eps=1e-6)),
            ("gelu", F.gelu),
            ("silu", F.silu),
        ):
            bad = differing(kernel, x, FEW)
            yield Finding(f"{name} float32", threads, True, {count: [f"width {width}"] for count in bad})
    for length, queries, heads, size in ((72, 72, 4, 32), (72, 3, 4, 32), (91, 91, 12, 64), (320, 320, 12, 64),
                                         (320, 5, 12, 64), (320, 25, 16, 80)):  # fmt: skip
        keys = torch.randn(17, 2, heads, length, size, generator=random)

        def attention(x: Tensor, queries: int = queries) -> Tensor:
            return F.scaled_dot_product_attention(x[:, 0, :, :queries], x[:, 0], x[:, 1])

        bad = differing(attention, keys, tuple(range(1, 17)))
        shape = f"{queries} queries, {length} keys, {heads} heads of {size}"
        yield Finding("attention float32", threads, True, {count: [shape] for count in bad})


def merged(findings: Iterator[Finding]) -> list[Finding]:
    """One finding per kernel."""
    found: dict[str, Finding] = {}
    for finding in findings:
        whole = found.setdefault(finding.kernel, Finding(finding.kernel, finding.threads, finding.promised))
        for count, shapes in finding.bad.items():
            whole.bad.setdefault(count, []).extend(shapes)
    return list(found.values())


def is_broken(finding: Finding) -> bool:
    """Linear layers are padded to MIN_ROWS; everything else must hold for every count."""
    padded = finding.kernel.startswith(("F.linear", "packed"))
    return bool(finding.broken() if padded else finding.bad)


def show(finding: Finding) -> None:
    bad = " ".join(map(str, sorted(finding.bad))) or "none"
    verdict = "BROKEN" if is_broken(finding) else "ok" if finding.promised else "not promised"
    print(f"{finding.kernel:22} {finding.threads} threads   {verdict:12}  bad M: {bad}")
    for count in finding.broken():
        print(f"    M = {count}: {', '.join(finding.bad[count])}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Which CPU kernels give a row the same bits in every batch.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    args = parser.parse_args()
    findings: list[Finding] = []
    print(f"M rows on their own against the same rows of a large call; layers.MIN_ROWS = {MIN_ROWS}\n")
    for threads in args.threads:
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            findings += try_linear(dtype, threads, QUICK if args.quick or dtype != torch.float32 else SHAPES)
        findings += merged(try_others(threads))
    for finding in findings:
        show(finding)
    broken = [finding for finding in findings if is_broken(finding)]
    print(json.dumps(report(findings, broken)))
    sys.exit(1 if broken else 0)


def report(findings: list[Finding], broken: list[Finding]) -> dict[str, Any]:
    return {
        "benchmark": "invariance", "min_rows": MIN_ROWS, "device": "cpu", "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(), "machine": platform.machine(),
        "versions": {"disa": disa.__version__, "torch": torch.__version__},
        "bad": {f"{finding.kernel}, {finding.threads} threads": sorted(finding.bad) for finding in findings},
        "broken": [f"{finding.kernel}, {finding.threads} threads" for finding in broken],
    }  # fmt: skip


if __name__ == "__main__":
    main()
