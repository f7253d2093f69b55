"""Speed of Harmon with random weights, and where the time goes: language model, encoder, decoder, head.

    python benchmarks/harmon.py                                          # 0.5B at 256x256, a quarter of an hour
    python benchmarks/harmon.py --models harmon-shapes --ar-steps 4      # seconds, to try it
    python benchmarks/harmon.py --models harmon-0.5b harmon-1.5b --device cuda --dtypes bf16 --batch 1 4 \\
        --tokens 32x32 --ar-steps 64 --repeats 5                         # the published setting

Step policies and batch sizes of a model take turns, round after round, so that a disturbance of the machine hits all of
them; before that, each draws once with a single denoising step, untimed. Clocks stand at the borders of the parts,
outside of the package; on CUDA they wait for the device there. On one CPU thread they count CPU seconds. The ceiling is
the arithmetic of all linear layers at the speed of a large matrix product. Prints a table; the last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import machine, note, prepared, publish, random_model
from flow import NO_BF16

from disa.core import generate
from disa.core.noise import SeededNoise
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import make_solver
from disa.core.texts import parse
from disa.models.harmon.model import Harmon
from disa.models.harmon.text import FixedLength
from disa.models.registry import PRESETS
from disa.runtime import packing
from disa.runtime.clock import clock_of
from disa.runtime.devices import DTYPES

PARTS = ("prompts", "llm", "encoder", "decoder", "head", "rest")
"""prompts: what the language model reads once; llm: with the projections to and from it; rest: plans and accounts."""


@dataclass
class Clock:
    """Seconds and arithmetic of every part of one generation; a part within another belongs to the outer one."""

    device: str
    part: str = ""
    seconds: Counter[str] = field(default_factory=Counter)
    flops: Counter[str] = field(default_factory=Counter)

    def now(self) -> Any:
        return time.process_time() if counts_cpu(self.device) else clock_of(torch.device(self.device))()

    def timed(self, part: str, apply: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*arguments: Any, **options: Any) -> Any:
            if self.part:
                return apply(*arguments, **options)
            self.part, started = part, self.now()
            try:
                return apply(*arguments, **options)
            finally:
                self.part = ""
                self.seconds[part] += self.now() - started  # pyright: ignore[reportArgumentType]

        return timing

    def counted(self, apply: Callable[..., Any]) -> Callable[..., Any]:
        def counting(x: torch.Tensor, **options: Any) -> torch.Tensor:
            output = apply(x, **options)
            self.flops[self.part or "rest"] += 2 * x.numel() * output.shape[-1]
            return output

        return counting


@dataclass
class Variant:
    """One way to draw, and what was measured of it."""

    name: str
    model: Harmon
    dtype: str
    batch: int
    steps: str
    evaluations: int = 0
    seconds: list[float] = field(default_factory=list)
    clocks: list[Clock] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} batch {self.batch} {self.steps}"


def counts_cpu(device: str) -> bool:
    return device == "cpu" and torch.get_num_threads() == 1


@contextmanager
def watched(model: Harmon, clock: Clock) -> Iterator[None]:
    """Put the clock around the parts, and count the products of every linear layer."""
    parts = [
        (model, "read", "prompts"),
        (model.llm, "forward", "llm"),
        (model.proj_in, "forward", "llm"),
        (model.proj_out, "forward", "llm"),
        (model.mar, "encode", "encoder"),
        (model.mar, "decode", "decoder"),
    ]
    linear = [m for m in model.modules() if isinstance(m, packing.Linear | packing.PackedLinear)]
    solve = generate.solve
    generate.solve = clock.timed("head", solve)
    for owner, name, part in parts:
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    for layer in linear:
        layer.forward = clock.counted(layer.forward)
    try:
        yield
    finally:
        generate.solve = solve
        for owner, name, _ in parts:
            delattr(owner, name)
        for layer in linear:
            del layer.forward


def draw(variant: Variant, steps: str, args: argparse.Namespace) -> tuple[float, Clock, int]:
    """Seconds, their parts, and evaluations made."""
    text, guidance = FixedLength(args.prompt_tokens), Guidance(args.guidance, "constant")
    asked, empty = text.to_draw("", 0), text.unconditional(None, 0)
    prompts = Prompts.of([asked] * variant.batch + [empty] * variant.batch * guidance.active)
    request = Request(variant.batch, args.ar_steps, guidance=guidance, prompts=prompts, token_grid=args.tokens)
    preset, noise = PRESETS[variant.name], SeededNoise(range(variant.batch), args.device)
    solver, clock = make_solver(preset.defaults.solver, preset.defaults.grid), Clock(args.device)
    with watched(variant.model, clock):
        started = clock.now()
        turns = [*generate.generate_steps(variant.model, request, parse(steps), solver, noise)]
        latents = variant.model.finish(turns[-1].state)
        seconds = clock.now() - started
    if not latents.isfinite().all():
        raise SystemExit(f"{variant} draws values that are not finite numbers.")
    clock.seconds["rest"] = seconds - clock.seconds.total()  # pyright: ignore[reportArgumentType]
    return seconds, clock, sum(turn.evaluations for turn in turns)


def measure(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """All variants of a model in turn, then a row of results for each."""
    variants, speeds = [], {}
    for dtype in args.dtypes:
        model = prepared(random_model(name, dtype, args.device), dtype, args.device)
        variants += [Variant(name, model, dtype, batch, steps) for batch in args.batch for steps in args.steps]
        speeds[dtype] = 0.0
    for variant in variants:
        draw(variant, "constant:1", args)
    for repeat in range(args.repeats):
        speeds = {dtype: max(best, product_speed(dtype, args.device)) for dtype, best in speeds.items()}
        for variant in variants:
            seconds, clock, variant.evaluations = draw(variant, variant.steps, args)
            variant.seconds.append(seconds)
            variant.clocks.append(clock)
            note(f"round {repeat + 1}  {variant}  {seconds:8.2f} s")
    rows = [summarise(variant, speeds[variant.dtype]) for variant in variants]
    first = {(row["dtype"], row["batch"]): row["seconds"] for row in reversed(rows)}
    return [row | {"times_faster": first[row["dtype"], row["batch"]] / row["seconds"]} for row in rows]


def product_speed(dtype: str, device: str) -> float:
    """FLOP/s of a large matrix product, packed where the CPU can, the best of three."""
    size, clock = 8192 if device == "cuda" else 2048, Clock(device)
    x = torch.randn(size, size, device=device, dtype=DTYPES[dtype])
    layer: torch.nn.Module = packing.Linear(size, size).to(x).requires_grad_(False)
    if device == "cpu" and packing.can_pack(DTYPES[dtype]):
        layer = packing.PackedLinear(layer)  # pyright: ignore[reportArgumentType]
    times = []
    for _ in range(4):
        started = clock.now()
        layer(x)
        times.append(clock.now() - started)
    return 2 * size**3 / min(times[1:])


def summarise(variant: Variant, speed: float) -> dict[str, Any]:
    """Medians; speed: of a large matrix product."""
    seconds, flops = statistics.median(variant.seconds), variant.clocks[0].flops
    parts = {}
    for part in PARTS:
        spent = statistics.median(clock.seconds[part] for clock in variant.clocks)
        parts[part] = {
            "seconds": spent,
            "share": spent / seconds,
            "gflop": flops[part] / 1e9,
            "gflops": flops[part] / spent / 1e9 if flops[part] else 0.0,
        }
    return {
        "model": variant.name,
        "dtype": variant.dtype,
        "batch": variant.batch,
        "steps": variant.steps,
        "seconds": seconds,
        "seconds_range": [min(variant.seconds), max(variant.seconds)],
        "seconds_per_image": seconds / variant.batch,
        "evaluations": variant.evaluations,
        "parts": parts,
        "floor_seconds": flops.total() / speed,
        "share_of_ceiling": flops.total() / speed / seconds,
        "gemm_gflops": speed / 1e9,
    }


# -- what is printed -------------------------------------------------------------------------------------------------


def show(rows: list[dict[str, Any]]) -> None:
    """Per cent of the seconds for every part; x: times as fast as the first policy."""
    parts = "".join(f"{part:>10}" for part in PARTS)
    print(f"\n{'variant':42}{'seconds':>9}{'s/image':>9}{'x':>6}{parts}{'ceiling':>9}")
    for row in rows:
        name = f"{row['model']} {row['dtype']} batch {row['batch']} {row['steps']}"
        shares = "".join(f"{row['parts'][part]['share']:10.1%}" for part in PARTS)
        print(
            f"{name:42}{row['seconds']:9.2f}{row['seconds_per_image']:9.2f}{row['times_faster']:6.2f}{shares}"
            f"{row['share_of_ceiling']:9.0%}"
        )
    print()


def grid(text: str) -> tuple[int, int]:
    rows, columns = text.split("x")
    return int(rows), int(columns)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of Harmon with random weights, and where the time goes.")
    models = [name for name, preset in PRESETS.items() if preset.spec.family == "harmon"]
    parser.add_argument("--models", nargs="+", choices=models, default=["harmon-0.5b"])
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images drawn at once")
    parser.add_argument("--ar-steps", type=int, default=8)
    parser.add_argument("--steps", nargs="+", default=["constant:100", "linear:50-5"], help="step policies")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--tokens", type=grid, help="rows and columns of tokens, such as 32x32; the native ones if not")
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["fp32"])
    parser.add_argument("--result", type=Path, help="write the JSON object to this file, too")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    if args.device == "cpu" and "bf16" in args.dtypes and not packing.has_fast_bf16():
        raise SystemExit(f"{NO_BF16}: leave bf16 out.")
    rows = [row for name in args.models for row in measure(name, args)]
    show(rows)
    result = {
        "benchmark": "harmon",
        "threads": args.threads,
        "device": args.device,
        **machine(args.device),
        "clock": "CPU seconds" if counts_cpu(args.device) else "seconds",
        "repeats": args.repeats,
        "ar_steps": args.ar_steps,
        "guidance": args.guidance,
        "tokens": args.tokens and list(args.tokens),
        "prompt_tokens": args.prompt_tokens,
        "rows": rows,
    }
    publish(result, args.result)


if __name__ == "__main__":
    main()
