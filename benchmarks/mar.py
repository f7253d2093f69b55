"""Speed of MAR at its real sizes with random weights: disa beside the same function in the plain order of work.

    python benchmarks/mar.py                                   # MAR-B on the CPU, about 20 minutes on two cores
    python benchmarks/mar.py --threads 1 --batch 1             # beside the recorded run of the official code
    python benchmarks/mar.py --size mar-digits --ar-steps 8    # seconds, to try it

Every variant lives in a process of its own, so that its peak memory is its own; they take turns, round after round, so
that a disturbance of the machine hits all of them. The first round warms up, is not timed, and checks that all draw
the same latents. The floor is the arithmetic that the work cannot do without, at the speed of a large matrix product
measured here in the same rounds. Prints a table; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from common import machine, note, prepared, publish, random_model
from plain import PlainDDPM, PlainMAR
from torch import Tensor
from torch.nn import functional as F

from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.orders import COSINE
from disa.core.request import Guidance, Request
from disa.core.solvers import DDPM
from disa.core.texts import parse
from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.registry import PRESETS
from disa.runtime import packing
from disa.runtime.clock import clock_of
from disa.runtime.devices import DTYPES

OFFICIAL = {"cpu_seconds": 48.2, "cpu_seconds_head": 15.7, "network_calls": 427, "threads": 1, "batch": 1}
"""The official code, fp32, on another machine (two AVX-512 cores of an EPYC): recorded, not measured here."""
OFFICIAL_RUN = {"size": "mar-base", "ar_steps": 16, "steps": "linear:50-5", "guidance": 2.9}

TOLERANCE = {"fp32": 1e-3, "bf16": 0.5}
"""Largest relative difference from the first fp32 variant: rounding in fp32; in bf16 a guard against nonsense."""


@dataclass(frozen=True)
class Work:
    """What is drawn, and on what."""

    size: str
    ar_steps: int
    steps: str
    guidance: float
    threads: int
    device: str


@dataclass(frozen=True)
class Timing:
    """One generation of a batch. memory: the highest that the process reached, in MiB (on CUDA that of the device)."""

    seconds: float
    cpu_seconds: float
    seconds_backbone: float
    seconds_head: float
    evaluations: int
    memory: float


# -- one variant, in its own process ---------------------------------------------------------------------------------


def serve(work: Work, kind: str, dtype: str, pipe: Connection) -> None:
    """Draw batches of the sizes that arrive, until 0; answer each with its timing and the latents."""
    torch.set_num_threads(work.threads)
    model = random_model(work.size, dtype, work.device)
    plain = kind == "plain"
    runner, solver = (PlainMAR(model), PlainDDPM()) if plain else (prepared(model, dtype, work.device), DDPM())
    while batch_size := pipe.recv():
        pipe.send(draw(work, runner, solver, batch_size))


def draw(work: Work, runner: Any, solver: Any, batch_size: int) -> tuple[Timing, Tensor]:
    labels = torch.arange(batch_size) % PRESETS[work.size].spec.architecture.num_classes
    request = Request(batch_size, work.ar_steps, labels, Guidance(work.guidance))
    forget_peak(work.device)
    noise = SeededNoise(range(batch_size), work.device)
    wall, cpu = time.perf_counter(), time.process_time()
    backbone, head, evaluations, state = 0.0, 0.0, 0, None
    for step in generate_steps(runner, request, parse(work.steps), solver, noise):
        backbone, head = backbone + step.seconds_backbone, head + step.seconds_head
        evaluations, state = evaluations + step.evaluations, step.state
    latents = runner.finish(state).float().cpu()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Timing(wall, cpu, backbone, head, evaluations, peak(work.device)), latents


def forget_peak(device: str) -> None:
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> float:
    """MiB since `forget_peak`; where Linux's counter is missing, since the process began."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)


# -- the floor -------------------------------------------------------------------------------------------------------


def needed_flops(config: MARConfig, work: Work, batch_size: int) -> int:
    """Multiplications and additions of the matrix products that the result depends on.

    Every denoising step needs the modulations of its rows; z's projection, once per AR step; the last decoder block,
    queries and outputs of the drawn tokens only.
    """
    c, halves = config, 2 if work.guidance != 1 else 1
    channels, width, counts = c.token_channels, c.head_width, COSINE.masked(c.num_tokens, work.ar_steps)
    total = 0
    for k, (masked, after) in enumerate(pairwise(counts)):
        known, drawn, everything = c.num_tokens - masked, masked - after, c.buffer_size + c.num_tokens
        seen, size = c.buffer_size + known, (c.decoder_width, c.mlp_ratio)
        backbone = seen * c.encoder_width * c.decoder_width
        backbone += c.encoder_depth * block_products(c.encoder_width, c.mlp_ratio, seen, seen)
        backbone += (c.decoder_depth - 1) * block_products(*size, everything, everything)
        backbone += block_products(*size, everything, drawn) + drawn * c.decoder_width * width
        steps = parse(work.steps).at(k, work.ar_steps)
        evaluations = drawn * MAR.process.grid(DDPM().grid, steps).num_evaluations
        row = (2 * c.head_depth + 3 * c.head_depth + 2) * width**2 + 2 * channels * width
        shared = channels * c.encoder_width * known + evaluations * channels * width
        total += halves * (backbone + evaluations * row) + shared
    return 2 * batch_size * total


def block_products(width: int, mlp_ratio: float, keys: int, queries: int) -> int:
    """Multiplications of a transformer block."""
    projections = 2 * keys + 2 * queries
    return width * (width * projections + 2 * queries * keys + 2 * queries * int(width * mlp_ratio))


def gemm_speed(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of a large matrix product: the better of PyTorch's own and the packed kernel, the best of three."""
    size = 8192 if device == "cuda" else 2048
    x = torch.randn(size, size, device=device, dtype=dtype)
    products: list[Callable[[], object]] = [lambda: F.linear(x, x)]
    if device == "cpu" and packing.can_pack(dtype):
        packed = torch.ops.mkldnn._reorder_linear_weight(x, None)
        products.append(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "none"))
    return 2 * size**3 / min(clock(product, device) for product in products for _ in range(3))


def clock(action: Callable[[], object], device: str) -> float:
    now = clock_of(torch.device(device))
    started = now()
    action()
    return now() - started


# -- the rounds ------------------------------------------------------------------------------------------------------


@dataclass
class Runner:
    """A variant's process and what it measured, by batch size."""

    kind: str
    dtype: str
    pipe: Connection
    timings: dict[int, list[Timing]]

    def draw(self, batch_size: int) -> tuple[Timing, Tensor]:
        self.pipe.send(batch_size)
        return self.pipe.recv()


def start(work: Work, kind: str, dtype: str, batches: list[int]) -> Runner:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    context.Process(target=serve, args=(work, kind, dtype, theirs), daemon=True).start()
    theirs.close()
    return Runner(kind, dtype, ours, {batch: [] for batch in batches})


def check(runners: list[Runner], batches: list[int]) -> dict[str, float]:
    """Warm up, and hold the latents of every variant against the first one's; peaks of memory are taken here."""
    differences: dict[str, float] = {}
    for batch in batches:
        reference: Tensor | None = None
        for runner in runners:
            timing, latents = runner.draw(batch)
            runner.timings[batch].append(timing)
            reference = latents if reference is None else reference
            difference = ((latents - reference).abs().max() / reference.abs().max()).item()
            name = f"{runner.kind} {runner.dtype} batch {batch}"
            differences[name] = difference
            if not difference < TOLERANCE[runner.dtype]:
                sys.exit(f"{name} draws other latents than the first variant: relative difference {difference:.2g}.")
            note(f"warm-up  {name:24} {timing.seconds:8.2f} s   relative difference {difference:.1e}")
    return differences


def measure(runners: list[Runner], args: argparse.Namespace) -> dict[str, float]:
    """All variants in turn, `repeats` times; the speed of matrix products in every round, of which the best counts."""
    speeds = dict.fromkeys((runner.dtype for runner in runners), 0.0)
    for repeat in range(args.repeats):
        for dtype in speeds:
            speeds[dtype] = max(speeds[dtype], gemm_speed(DTYPES[dtype], args.device))
        for batch in args.batch:
            for runner in runners:
                timing = runner.draw(batch)[0]
                runner.timings[batch].append(timing)
                note(f"round {repeat + 1}  {runner.kind:5} {runner.dtype} batch {batch:3} {timing.seconds:10.2f} s")
    return speeds


def summarise(runner: Runner, batch: int, work: Work, speed: float, plain: dict[str, Any] | None) -> dict[str, Any]:
    """Medians without the first round, beside the floor and the plain variant."""
    first, *rest = runner.timings[batch]
    columns = {f.name: statistics.median(getattr(timing, f.name) for timing in rest) for f in fields(Timing)}
    floor = needed_flops(PRESETS[work.size].spec.architecture, work, batch) / speed
    row = {
        "variant": runner.kind,
        "dtype": runner.dtype,
        "batch": batch,
        **columns,
        "evaluations": first.evaluations,
        "memory": first.memory,
        "seconds_per_image": columns["seconds"] / batch,
        "seconds_range": [min(t.seconds for t in rest), max(t.seconds for t in rest)],
        "floor_seconds": floor,
        "share_of_ceiling": floor / columns["seconds"],
    }
    if plain is not None:
        row |= {f"{name}_ratio": plain[name] / row[name] for name in ("seconds", "cpu_seconds", "memory")}
    if is_official_run(work) and work.threads == OFFICIAL["threads"] and batch == OFFICIAL["batch"]:
        row["official_cpu_ratio"] = OFFICIAL["cpu_seconds"] / row["cpu_seconds"]
    return row


def is_official_run(work: Work) -> bool:
    return work.device == "cpu" and all(getattr(work, name) == value for name, value in OFFICIAL_RUN.items())


# -- what is printed -------------------------------------------------------------------------------------------------

COLUMNS = {
    "seconds": ("wall s", "9.2f"),
    "cpu_seconds": ("CPU s", "9.2f"),
    "seconds_backbone": ("backbone", "9.2f"),
    "seconds_head": ("head s", "8.2f"),
    "evaluations": ("evaluations", "11.0f"),
    "seconds_per_image": ("s/image", "8.3f"),
    "memory": ("peak MiB", "8.0f"),
    "floor_seconds": ("floor s", "8.2f"),
    "share_of_ceiling": ("ceiling", "7.0%"),
    "seconds_ratio": ("wall x", "6.2f"),
    "cpu_seconds_ratio": ("CPU x", "6.2f"),
    "memory_ratio": ("memory x", "8.2f"),
}


def show(rows: list[dict[str, Any]], work: Work) -> None:
    """x: so many times faster, or smaller, than the plain order of work. ceiling: floor / wall."""
    width = {name: int(form.split(".")[0]) for name, (_, form) in COLUMNS.items()}
    print(f"\n{'variant':26}", *(f"{title:>{width[name]}}" for name, (title, _) in COLUMNS.items()))
    official = {
        "variant": "official*",
        "dtype": "fp32",
        "batch": OFFICIAL["batch"],
        "cpu_seconds": OFFICIAL["cpu_seconds"],
        "seconds_head": OFFICIAL["cpu_seconds_head"],
    }
    for row in [*rows, official] if is_official_run(work) else rows:
        cells = (f"{row[name]:{form}}" if name in row else " " * width[name] for name, (_, form) in COLUMNS.items())
        print(f"{row['variant']} {row['dtype']} batch {row['batch']}".ljust(26), *cells)
    if is_official_run(work):
        print("* recorded elsewhere: the official code on 1 thread of another machine, seconds of CPU")
    for row in rows:
        if "official_cpu_ratio" in row:
            print(f"  {row['official_cpu_ratio']:.2f} times the CPU seconds of {row['variant']} {row['dtype']} here")
    print()


def report(work: Work, rows: list[dict[str, Any]], speeds: dict[str, float], extra: dict[str, Any]) -> dict[str, Any]:
    return {
        "benchmark": "mar",
        **asdict(work),
        **machine(work.device),
        "grid": DDPM().grid,
        "gemm_gflops": {dtype: speed / 1e9 for dtype, speed in speeds.items()},
        **extra,
        "rows": rows,
        "recorded_elsewhere": OFFICIAL if is_official_run(work) else None,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Speed of MAR at its real sizes, with random weights.")
    parser.add_argument("--size", choices=list(PRESETS), default="mar-base")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="images drawn at once")
    parser.add_argument("--ar-steps", type=int, default=16)
    parser.add_argument("--steps", default="linear:50-5", help="step policy")
    parser.add_argument("--guidance", type=float, default=2.9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one that warms up")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtypes", nargs="+", choices=list(DTYPES), default=["fp32", "bf16"], help="of disa")
    parser.add_argument("--plain-dtypes", nargs="+", choices=list(DTYPES), default=["fp32"], help="of the baseline")
    parser.add_argument("--no-plain", action="store_true", help="leave the baseline out")
    parser.add_argument("--result", type=Path, help="write the JSON object to this file, too")
    args = parser.parse_args()
    args.batch = sorted(set(args.batch))  # a small batch's peak of memory must not follow a large one's
    return args


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    work = Work(**{f.name: getattr(args, f.name) for f in fields(Work)})
    kinds = [("plain", dtype) for dtype in args.plain_dtypes if not args.no_plain]
    kinds += [("disa", dtype) for dtype in args.dtypes]
    runners = [start(work, kind, dtype, args.batch) for kind, dtype in kinds]
    differences = check(runners, args.batch)
    speeds = measure(runners, args)
    rows: list[dict[str, Any]] = []
    for batch in args.batch:
        plain = None
        for runner in runners:
            rows.append(summarise(runner, batch, work, speeds[runner.dtype], plain))
            plain = rows[-1] if plain is None and runner.kind == "plain" else plain
    for runner in runners:
        runner.pipe.send(0)
    show(rows, work)
    extra = {"repeats": args.repeats, "relative_difference": differences}
    publish(report(work, rows, speeds, extra), args.result)


if __name__ == "__main__":
    main()
