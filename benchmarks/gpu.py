"""Test and time disa on a GPU: one command that fits a lent machine.

    PYTHONPATH=src python benchmarks/gpu.py --minutes 8 --out "$OUT" --golden FOLDER
    PYTHONPATH=src python benchmarks/gpu.py --device cpu --quick --out FOLDER       # a dry run on small models

First the tests of `pytest -m cuda` run, in a process with a time limit of its own; then batches are drawn with random
weights, the most telling ones first: in PyTorch's own operators, with fused ones, and from graphs of these. Images are
not decoded. A batch is drawn once in few denoising steps, so that kernels are compiled and chosen (for graphs twice as
it is timed, so that they are captured), and then up to five times.

Everything is written to OUT/gpu-DEVICE.json after each cell. A later call goes on from there, or from the file of that
name in --earlier (benchmarks/results unless given). What the machine lacks is told, and done without.
`gpu_write.py` makes tables of the files.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from common import machine, note, processor, random_model, rounded
from gpu_write import FORMS, page
from work import SETTINGS, Asked, read, recipe_of

from disa.core.generate import Drawing, generate_steps
from disa.core.noise import SeededNoise
from disa.errors import DisaError
from disa.files import write_text
from disa.models.registry import PRESETS
from disa.runtime import fused
from disa.runtime.devices import DTYPES
from disa.runtime.recorder import can_record, recorder_on
from disa.runtime.surroundings import undisturbed
from disa.values import first_line

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
MOST_REPEATS, ENOUGH_SECONDS, LONGEST = 5, 3.0, 20.0
"""Of one cell: no more repeats than this, three unless they took so many seconds, no further one after so many."""
SHARE_OF_TESTS, LONGEST_TESTS = 0.4, 180.0
NEEDED = {
    "triton": "fused operators run in plain form",
    "transformers": "no Harmon",
    "diffusers": "no test of the autoencoder",
    "pytest": "no tests",
    "pytest_timeout": "no tests",
    "typer": "no tests",
    "rich": "no tests",
    "huggingface_hub": "no tests",
    "filelock": "no tests",
}
"""What may be missing, and what is then left out."""


@dataclass(frozen=True)
class Cell:
    """One way to draw a batch."""

    model: str
    dtype: str
    settings: str
    batch: int
    form: str

    @property
    def name(self) -> str:
        return f"{self.model} {self.dtype} {self.settings} {self.batch} {self.form}"


BASE, SMALL = ("mar-base",), ("flowar-small", "xar-base")
LARGER = "mar-huge", "flowar-large", "xar-huge", "harmon-1.5b", "mar-large", "flowar-huge", "xar-large"
CAUSAL = *(f"bitdance-{size}" for size in ("base", "base-4x", "base-16x", "large", "huge")), "nextstep-1"
EMIGM = (
    *(f"emigm-{size}" for size in ("xsmall", "small", "base", "large", "huge")),
    *(f"emigm-{size}-512" for size in ("xsmall", "small", "base", "large")),
)
BF16, FP32, DISA, ORIGINAL, QUICKEST, BEST = ("bf16",), ("fp32",), ("disa",), ("original",), ("fast",), ("graphs",)
BATCHES = 1, 8, 64, 256
STAGES: tuple[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], tuple[int, ...], tuple[str, ...]], ...] = (
    (BASE, BF16, DISA, (1, 64), FORMS),
    (BASE, BF16, QUICKEST, (1, 64), BEST),
    (SMALL, BF16, DISA, (1, 64), FORMS),
    (SMALL, BF16, QUICKEST, (1, 64), BEST),
    (("harmon-0.5b",), BF16, DISA, (1,), FORMS),
    (BASE, BF16, ORIGINAL, (1,), BEST),
    (SMALL, BF16, ORIGINAL, (1, 64), BEST),
    (BASE, BF16, DISA, (8, 256), FORMS),
    (BASE, FP32, DISA, (1, 64), FORMS),
    (LARGER, BF16, DISA, (1, 64), BEST),
    (SMALL, BF16, DISA, (8, 256), FORMS),
    (BASE, BF16, ORIGINAL, (64,), BEST),
    (LARGER, BF16, ORIGINAL, (1,), BEST),
    ((*BASE, *SMALL, "harmon-0.5b"), BF16, SETTINGS, BATCHES, FORMS),
    (LARGER, BF16, SETTINGS, BATCHES, FORMS),
    ((*SMALL, "harmon-0.5b"), FP32, DISA, (1, 64), FORMS),
    (CAUSAL, BF16, DISA, (1, 64), BEST),
    (EMIGM, BF16, DISA, (1, 64), BEST),
)
"""Models, dtypes, settings, batch sizes and forms; the most telling first."""
SMALL_MODELS = "mar-digits", "flowar-digits", "xar-digits", "harmon-shapes"
QUICK_STEPS = {"disa": "linear:3-2", "original": "constant:4"}
QUICK = (
    (SMALL_MODELS, FP32, tuple(QUICK_STEPS), (2,), FORMS),
    (SMALL_MODELS[:1], BF16, DISA, (1,), FORMS),
)
QUICK_AR_STEPS = {"mar-digits": 3, "harmon-shapes": 3}


class TooLate(Exception):
    """The time of this call is over."""


@dataclass
class Bench:
    """What one call measures, and with what."""

    device: torch.device
    quick: bool
    deadline: float
    path: Path
    result: dict[str, Any]
    loaded: dict[tuple[str, str], Any] = field(default_factory=dict)
    """At most one model."""
    begin: Any = Drawing

    @property
    def left(self) -> float:
        """Seconds of this call."""
        return self.deadline - time.monotonic()

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(rounded(self.result), indent=1) + "\n")

    def model(self, name: str, dtype: str) -> Any:
        """With random weights; the one before makes room."""
        if (name, dtype) not in self.loaded:
            self.loaded.clear()
            self.free()
            self.loaded[name, dtype] = random_model(name, dtype, str(self.device))
        return self.loaded[name, dtype]

    def free(self) -> None:
        """Give back what is cached of the device."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def asked(self, cell: Cell) -> Asked:
        preset = PRESETS[cell.model]
        if self.quick:
            return Asked(QUICK_AR_STEPS.get(cell.model, preset.defaults.num_ar_steps), QUICK_STEPS[cell.settings])
        return Asked.of(preset, cell.settings)

    # -- cells ---------------------------------------------------------------------------------------------------

    def todo(self) -> list[Cell]:
        """What is not measured yet, in order; what failed in an earlier call comes last."""
        order = (Cell(*each) for stage in (QUICK if self.quick else STAGES) for each in product(*stage))
        known = self.result["cells"]
        cells = [cell for cell in dict.fromkeys(order) if self.possible(cell)]
        missing = [cell for cell in cells if not {"seconds", "full"} & known.get(cell.name, {}).keys()]
        return sorted(missing, key=lambda cell: cell.name in known)

    def possible(self, cell: Cell) -> bool:
        if cell.settings == "fast" and not recipe_of(PRESETS[cell.model]).exists():
            return False
        return not (cell.model.startswith(("harmon", "nextstep")) and "transformers" in self.result["missing"])

    def expected(self, cell: Cell) -> float:
        """Seconds of one batch at the least, as far as is known: its launches, or its arithmetic."""
        work = {} if self.quick else read().get(f"{cell.model} {cell.settings}", {})
        rate = 0.5 * self.result["ceilings"][cell.dtype] * 1e12
        launches = work.get("fused" if cell.form == "graphs" else cell.form, 0)
        each = 1e-6 if cell.form == "graphs" else 5e-6
        return max(launches * each, work.get("flops", 0) * cell.batch / rate)

    def run(self) -> bool:
        """Measure what there is time for. False where the device does not work any more."""
        for cell in self.todo():
            if self.left < self.expected(cell):
                continue
            note(f"{cell.name}, {self.left:.0f} s left")
            try:
                found = self.measure(cell)
            except TooLate:
                self.free()
                continue
            except (torch.OutOfMemoryError, DisaError, RuntimeError) as error:
                full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)
                found = {"full" if full else "error": first_line(error)}
                note(f"{cell.name}: {first_line(error)}")
            self.result["cells"][cell.name] = found
            self.result["refused"] = sorted(refused())
            self.save()
            if "seconds" not in found and not self.works():
                return False
        return True

    def works(self) -> bool:
        """Whether the device still computes: after some errors of kernels it does not, in this process."""
        try:
            self.free()
            return torch.ones(2, device=self.device).sum().item() == 2
        except RuntimeError:
            return False

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Seconds of batches, and MiB at the most."""
        model, asked = self.model(cell.model, cell.dtype), self.asked(cell)
        self.begin = self.beginning(cell)
        with fused.plain_forms() if cell.form == "plain" else nullcontext():
            warm = [asked, asked] if cell.form == "graphs" else [replace(asked, steps="constant:2")]
            for settings in warm:
                self.draw(model, cell, settings)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            seconds, evaluations = list[float](), 0
            while not self.done(seconds) and (not seconds or self.left > 1.2 * max(seconds)):
                started = time.perf_counter()
                evaluations = self.draw(model, cell, asked)
                seconds.append(time.perf_counter() - started)
        self.begin = Drawing  # graphs of this cell make room
        memory = torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None
        about = {"num_ar_steps": asked.num_ar_steps, "steps": asked.steps, "evaluations": evaluations}
        return {"seconds": seconds, "memory": memory, **about}

    def beginning(self, cell: Cell) -> Any:
        """How batches of a cell are computed; a dry run has no graphs and goes through all else."""
        if cell.form != "graphs" or not can_record(self.device):
            return Drawing
        return recorder_on(self.device).begin

    def done(self, seconds: list[float]) -> bool:
        """Whether a cell was repeated often enough."""
        spent, most = sum(seconds), 1 if self.quick else MOST_REPEATS
        return len(seconds) >= most or (len(seconds) >= 3 and spent > ENOUGH_SECONDS) or spent > LONGEST

    def draw(self, model: Any, cell: Cell, asked: Asked) -> int:
        """One batch to its latents, waited for: its evaluations. Raises TooLate."""
        evaluations, step = 0, None
        with undisturbed():
            noise = SeededNoise(range(cell.batch), self.device, fused.normals)
            request, policy, solver = asked.drawing(PRESETS[cell.model], cell.batch)
            for step in generate_steps(model, request, policy, solver, noise, begin=self.begin):
                evaluations += step.evaluations
                if self.left < 0:
                    raise TooLate
            assert step is not None
            if not torch.isfinite(model.finish(step.state)).all():
                raise DisaError("values that are not finite numbers were drawn.")
            self.wait()
        return evaluations


def refused() -> Iterator[str]:
    """Fused operators whose kernel failed, or differs from the plain form."""
    for each in vars(fused).values():
        if isinstance(each, fused.Operator):
            yield from (f"{each.name} {str(dtype).removeprefix('torch.')}" for _, dtype in each.refused)


# -- ceilings --------------------------------------------------------------------------------------------------------


def ceilings(bench: Bench) -> dict[str, float]:
    """What the device reaches: TFLOP/s of a large matrix product of each dtype, and TB/s of a copy."""
    side, size = (256, 1 << 20) if bench.quick else (8192, 1 << 32)
    found = dict[str, float]()
    with undisturbed():
        for name, dtype in DTYPES.items():
            a, b = (torch.randn(side, side, device=bench.device, dtype=dtype) for _ in range(2))
            found[name] = 2 * side**3 / fastest(bench, lambda a=a, b=b: a @ b) / 1e12
        source = torch.empty(size, dtype=torch.uint8, device=bench.device).random_()
        target = torch.empty_like(source)
        found["copy"] = 2 * size / fastest(bench, lambda: target.copy_(source)) / 1e12
    return found


def fastest(bench: Bench, work: Callable[[], object], times: int = 10) -> float:
    """Seconds of one of several calls, in the best of three rounds after one that warms up."""
    rounds = list[float]()
    for _ in range(4):
        bench.wait()
        started = time.perf_counter()
        for _ in range(times):
            work()
        bench.wait()
        rounds.append((time.perf_counter() - started) / times)
    return min(rounds[1:])


# -- tests -----------------------------------------------------------------------------------------------------------


def tested(on_gpu: bool, golden: Path | None, log: Path, limit: float) -> dict[str, Any]:
    """Run the tests that need a GPU in a process of their own, at most so many seconds."""
    files = ["tests/test_cuda.py", *(["tests/test_fused.py"] if on_gpu else [])]
    command = [sys.executable, "-m", "pytest", "-q", "-rfEs", "-p", "no:cacheprovider", "-m", "cuda", *files]
    around = os.environ | ({"DISA_GOLDEN": str(golden.resolve())} if golden else {})
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        try:
            told = subprocess.run(command, cwd=ROOT, env=around, stdout=out, stderr=out, timeout=limit, check=False)
            code: int | None = told.returncode
        except subprocess.TimeoutExpired:
            code = None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    last = f"stopped after {limit:.0f} s" if code is None else next(iter(lines[-1:]), "")
    for line in [*failed, last]:
        note(line)
    return {"code": code, "said": last.strip("= "), "failed": failed, "seconds": time.monotonic() - started}


# -- the command -----------------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole call, tests included")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--earlier", type=Path, default=RESULTS, help="folder of the results of earlier calls")
    parser.add_argument("--golden", type=Path, help="folder of recorded runs of the official code, for the tests")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="the embedded models in few steps")
    parser.add_argument("--no-tests", action="store_true")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: expected --device cpu --quick, which is a dry run")
    if given.device == "cpu" and not given.quick:
        parser.error("--device cpu needs --quick: published models take hours on a CPU")
    return given


def start(given: argparse.Namespace) -> Bench:
    """Open the results of this device, those of earlier calls in them."""
    deadline = time.monotonic() + 60 * given.minutes
    name = processor("cuda") if given.device == "cuda" else "cpu"
    file = f"gpu-{re.sub('[^a-z0-9]+', '-', name.casefold()).strip('-')}{'-quick' if given.quick else ''}.json"
    before = next((path for path in (given.out / file, given.earlier / file) if path.exists()), None)
    result: dict[str, Any] = {"cells": {}} if before is None else json.loads(before.read_text(encoding="utf-8"))
    missing = [name for name in NEEDED if find_spec(name) is None]
    result |= {"benchmark": "gpu", **machine(given.device), "processor": name, "missing": missing}
    for each in missing:
        note(f"{each} is missing: {NEEDED[each]}")
    return Bench(torch.device(given.device), given.quick, deadline, given.out / file, result)


def main() -> int:
    given = arguments()
    bench = start(given)
    untestable = any(NEEDED[each] == "no tests" for each in bench.result["missing"])
    if not (given.no_tests or untestable or bench.result.get("tests", {}).get("code") == 0):
        limit = min(LONGEST_TESTS, SHARE_OF_TESTS * bench.left)
        bench.result["tests"] = tested(given.device == "cuda", given.golden, given.out / "gpu-tests.log", limit)
        bench.save()
    if "ceilings" not in bench.result:
        bench.result["ceilings"] = ceilings(bench)
        bench.save()
    works = bench.run()
    print(page(bench.result))
    if not works:
        note("the device does not answer after the last error: call again, which goes on with what comes next.")
    failed = [name for name, cell in bench.result["cells"].items() if "error" in cell]
    return int(not works or bool(failed) or bench.result.get("tests", {}).get("code", 0) != 0)


if __name__ == "__main__":
    sys.exit(main())
