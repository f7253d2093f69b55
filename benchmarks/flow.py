"""Speed of FlowAR-S and xAR-B with random weights on one CPU thread: disa beside the plain order of work.

    python benchmarks/flow.py                                  # both models, about 15 minutes on a quiet machine
    python benchmarks/flow.py --models xar-digits --repeats 2  # seconds, to try it
    python benchmarks/flow.py --fused                          # xAR: the finished cell apart or not

Variants of a model take turns, round after round, so that a disturbance of the machine hits all of them. The first
round warms up, counts matrix products, and checks that all draw the same latents. The ceiling is those products, each
at the speed that its shape reaches alone. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from common import machine, note, prepared, publish, random_model
from mar import TOLERANCE
from plain_flow import PLAIN, PlainModel
from torch import Tensor, nn

from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.request import Guidance, Request
from disa.core.solvers import make_solver
from disa.core.texts import parse
from disa.models.registry import PRESETS
from disa.models.transformer import KVCache, causal_mask
from disa.models.xar.model import XAR
from disa.runtime import packing
from disa.runtime.devices import DTYPES

RUNS = {
    "flowar-small": {"batch": 2, "cpu_seconds": 26.7, "cpu_seconds_head": 23.4, "network_calls": 96},
    "xar-base": {"batch": 1, "cpu_seconds": 55.2, "cpu_seconds_head": 55.2, "network_calls": 129},
}
"""Official code, fp32, one thread, with the guidance and steps of our presets: recorded on another machine (two
AVX-512 cores of an EPYC). It evaluates both halves everywhere."""

GOALS = {"fp32": 1.5, "bf16": 2.5}
"""Times the speed of the official code, for which the plain order of work stands."""

NO_BF16 = "no bf16 instructions on this CPU"

Shape = tuple[int, int, int]
"""Rows, inputs and outputs of a linear layer."""


@dataclass
class Variant:
    """One way to draw. kind: `plain` or `disa`; products: how often each shape of linear layer is in a generation."""

    name: str
    kind: str
    dtype: str
    batch: int
    steps: str
    model: Any
    evaluations: int = 0
    cpu_seconds: list[float] = field(default_factory=list)
    seconds_head: list[float] = field(default_factory=list)
    products: Counter[Shape] = field(default_factory=Counter)
    share_linear: float = 0.0
    difference: float = 0.0

    def __str__(self) -> str:
        return f"{self.name:14} {self.kind} {self.dtype} batch {self.batch}"

    @property
    def flops(self) -> int:
        return sum(2 * rows * inputs * outputs * count for (rows, inputs, outputs), count in self.products.items())


# -- one variant -----------------------------------------------------------------------------------------------------


def start(args: argparse.Namespace, name: str, kind: str, dtype: str) -> Variant:
    """disa is packed where the CPU can."""
    batch, steps = args.batch or RUNS.get(name, {}).get("batch", 1), args.steps or PRESETS[name].defaults.steps
    model = random_model(name, dtype)
    model = PLAIN[PRESETS[name].spec.family](model) if kind == "plain" else prepared(model, dtype)
    return Variant(name, kind, dtype, batch, steps, model)


def draw(variant: Variant) -> tuple[float, float, Tensor]:
    """CPU seconds, seconds in the denoising loop, latents."""
    spec, defaults = PRESETS[variant.name].spec, PRESETS[variant.name].defaults
    labels = torch.arange(variant.batch) % spec.architecture.num_classes
    guidance = Guidance(defaults.guidance, defaults.ramp, defaults.interval)
    request = Request(variant.batch, defaults.num_ar_steps, labels, guidance)
    solver, noise = make_solver(defaults.solver, defaults.grid), SeededNoise(range(variant.batch))
    started = time.process_time()
    turns = list(generate_steps(variant.model, request, parse(variant.steps), solver, noise))
    latents = variant.model.finish(turns[-1].state).float()
    cpu = time.process_time() - started
    variant.evaluations = sum(turn.evaluations for turn in turns)
    return cpu, sum(turn.seconds_head for turn in turns), latents


@contextmanager
def watched(variant: Variant) -> Iterator[list[float]]:
    """Count the products of every linear layer, and clock them: one number, their seconds."""
    seconds = [0.0]

    def watch(apply: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def watching(*arguments: Any, **options: Any) -> Tensor:
            before = time.process_time()
            output = apply(*arguments, **options)
            seconds[0] += time.process_time() - before
            inputs: Tensor = arguments[-1]  # after the layer's name in the plain order of work
            variant.products[inputs.numel() // inputs.shape[-1], inputs.shape[-1], output.shape[-1]] += 1
            return output

        return watching

    if isinstance(variant.model, PlainModel):
        places = [(variant.model, "linear")]
    else:
        linear = packing.Linear | packing.PackedLinear
        places = [(module, "forward") for module in variant.model.modules() if isinstance(module, linear)]
    for place, name in places:
        setattr(place, name, watch(getattr(place, name)))
    try:
        yield seconds
    finally:
        for place, name in places:
            delattr(place, name)


def warm_up(variants: list[Variant]) -> None:
    """Hold the latents of every variant against the first one's."""
    reference: Tensor | None = None
    for variant in variants:
        with watched(variant) as seconds:
            cpu, _, latents = draw(variant)
        variant.share_linear = seconds[0] / cpu
        reference = latents if reference is None else reference
        variant.difference = ((latents - reference).abs().max() / reference.abs().max()).item()
        note(f"warm-up  {variant}  {cpu:8.2f} CPU s   relative difference {variant.difference:.1e}")
        if not variant.difference < TOLERANCE[variant.dtype]:
            sys.exit(f"{variant} draws other latents than {variants[0]}.")


def measure(variants: list[Variant], repeats: int) -> list[dict[str, Any]]:
    """All variants of a model in turn, then a row of results for each; the plain one is the first."""
    warm_up(variants)
    for repeat in range(repeats):
        for variant in variants:
            cpu, head, _ = draw(variant)
            variant.cpu_seconds.append(cpu)
            variant.seconds_head.append(head)
            note(f"round {repeat + 1}  {variant}  {cpu:8.2f} CPU s")
    plain = statistics.median(variants[0].cpu_seconds)
    return [summarise(variant, plain) for variant in variants]


# -- what bounds it ----------------------------------------------------------------------------------------------------


def floor_seconds(variant: Variant) -> float:
    """Every product of the generation at the speed of its shape alone, packed where the CPU can, the best of three."""
    return sum(count * product_seconds(shape, DTYPES[variant.dtype]) for shape, count in variant.products.items())


@lru_cache(maxsize=1024)
def product_seconds(shape: Shape, dtype: torch.dtype) -> float:
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs).to(dtype)
    layer: nn.Module = packing.Linear(inputs, outputs).to(dtype).requires_grad_(False)
    if packing.can_pack(dtype):
        layer = packing.PackedLinear(layer)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        layer(x)
        return min(cpu_clock(lambda: layer(x)) for _ in range(3))


def summarise(variant: Variant, plain: float) -> dict[str, Any]:
    """plain: CPU seconds of the plain order of work."""
    cpu, floor = statistics.median(variant.cpu_seconds), floor_seconds(variant)
    row = {
        "model": variant.name,
        "variant": variant.kind,
        "dtype": variant.dtype,
        "batch": variant.batch,
        "steps": variant.steps,
        "packed": variant.kind == "disa" and packing.can_pack(DTYPES[variant.dtype]),
        "cpu_seconds": cpu,
        "cpu_seconds_range": [min(variant.cpu_seconds), max(variant.cpu_seconds)],
        "seconds_head": statistics.median(variant.seconds_head),
        "evaluations": variant.evaluations,
        "relative_difference": variant.difference,
        "share_linear": variant.share_linear,
        "gflop": variant.flops / 1e9,
        "gflops": variant.flops / cpu / 1e9,
        "gflops_alone": variant.flops / floor / 1e9,
        "floor_seconds": floor,
        "share_of_ceiling": floor / cpu,
    }
    if variant.kind == "disa":
        row |= {"plain_cpu_ratio": plain / cpu, "goal": GOALS[variant.dtype]}
    if is_official_run(variant):
        row["official_cpu_ratio"] = RUNS[variant.name]["cpu_seconds"] / cpu
    return row


def is_official_run(variant: Variant) -> bool:
    name = variant.name
    return name in RUNS and (variant.batch, variant.steps) == (RUNS[name]["batch"], PRESETS[name].defaults.steps)


# -- the finished cell apart, or in the first evaluation -----------------------------------------------------------


def fused(variant: Variant, repeats: int) -> dict[str, float]:
    """xAR's second cell: the finished cell and the first evaluation in two passes, and in one with a mask."""
    model: XAR = variant.model
    c, count = model.config, model.span(0).stop
    halves, rotation = 2 * variant.batch, model.rotation(torch.device("cpu"))
    embedding = model.class_embedding.weight[:halves]
    modulation = model.block_modulations(embedding[:, None] + model.time_table(torch.tensor([0.0, 1000.0])))
    x = torch.randn(variant.batch, 2 * count, c.latent_channels)
    mask = causal_mask([count, count], x.device).to(embedding.dtype)

    def cache() -> KVCache:
        return KVCache.empty(c.depth, halves, c.num_heads, 2 * count, embedding, c.width // c.num_heads)

    def apart() -> Tensor:
        kept = cache()
        model.transform(x[:, :count], modulation[:, :1], model.span(0), rotation, kept)
        kept.advance(count)
        return model.velocity(model.transform(x[:, count:], modulation[:, 1:], model.span(1), rotation, kept))

    def together() -> Tensor:
        h = model.transform(x, modulation, slice(0, 2 * count), rotation, cache(), mask)
        return model.velocity(h[:, count:])

    with torch.no_grad():
        difference = (apart() - together()).abs().max() / apart().abs().max()
        times = [(cpu_clock(apart), cpu_clock(together)) for _ in range(repeats)]
    two, one = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "seconds_two_passes": two,
        "seconds_one_pass": one,
        "relative_difference": difference.item(),
        "gain_per_image_batch": (two - one) * (c.num_ar_steps - 1),
    }


def cpu_clock(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


# -- what is printed -------------------------------------------------------------------------------------------------

COLUMNS = {
    "cpu_seconds": ("CPU s", "8.2f"),
    "evaluations": ("evaluations", "11.0f"),
    "plain_cpu_ratio": ("x plain", "8.2f"),
    "official_cpu_ratio": ("x official*", "11.2f"),
    "gflops": ("GFLOP/s", "8.1f"),
    "share_of_ceiling": ("ceiling", "8.0%"),
}


def show(rows: list[dict[str, Any]], left_out: dict[str, str]) -> None:
    """x: so many times as fast."""
    width = {name: int(form.split(".")[0]) for name, (_, form) in COLUMNS.items()}
    print(f"\n{'variant':34}", *(f"{title:>{width[name]}}" for name, (title, _) in COLUMNS.items()))
    for row in rows:
        cells = (f"{row[name]:{form}}" if name in row else " " * width[name] for name, (_, form) in COLUMNS.items())
        print(f"{row['model']} {row['variant']} {row['dtype']} batch {row['batch']}".ljust(34), *cells)
    for name, reason in left_out.items():
        print(f"{name}: {reason}")
    if any("official_cpu_ratio" in row for row in rows):
        print("* the official code's seconds were recorded on another machine, with AVX-512")
    print()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of FlowAR and xAR on one CPU thread, with random weights.")
    models = [name for name, preset in PRESETS.items() if preset.spec.family in PLAIN]
    parser.add_argument("--models", nargs="+", choices=models, default=list(RUNS))
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=list(DTYPES), help="of disa")
    parser.add_argument("--batch", type=int, help="images drawn at once; of the recorded run where there is one")
    parser.add_argument("--steps", help="step policy; the preset's own")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds, after one that warms up")
    parser.add_argument("--fused", action="store_true", help="only compare two orders of work in xAR")
    parser.add_argument("--result", type=Path, help="write the JSON object to this file, too")
    return parser.parse_args()


def compare(args: argparse.Namespace, dtypes: list[str]) -> list[dict[str, Any]]:
    """One model after the other: there need not be memory for all."""
    kinds = [("plain", "fp32"), *(("disa", dtype) for dtype in dtypes)]
    rows = [measure([start(args, name, *kind) for kind in kinds], args.repeats) for name in args.models]
    return [row for model in rows for row in model]


def compare_fused(args: argparse.Namespace, dtypes: list[str]) -> dict[str, dict[str, float]]:
    pairs = [(name, dtype) for name in args.models if PRESETS[name].spec.family == "xar" for dtype in dtypes]
    return {f"{name} {dtype}": fused(start(args, name, "disa", dtype), args.repeats) for name, dtype in pairs}


def main() -> None:
    args = arguments()
    torch.set_num_threads(1)
    result: dict[str, Any] = {"benchmark": "flow", "threads": 1, **machine(), "repeats": args.repeats}
    dtypes = [dtype for dtype in args.dtypes if dtype != "bf16" or packing.has_fast_bf16()]
    left_out = {} if dtypes == args.dtypes else {"disa bf16": NO_BF16}
    if args.fused:
        result["fused"] = compare_fused(args, dtypes)
        print(json.dumps(result["fused"], indent=1))
    else:
        result |= {"rows": compare(args, dtypes), "left_out": left_out}
        result["recorded_elsewhere"] = {name: RUNS[name] for name in args.models if name in RUNS}
        show(result["rows"], left_out)
    publish(result, args.result)


if __name__ == "__main__":
    main()
