"""How waiting threads cost time, alone and beside busy programs: `python benchmarks/threads.py --result FILE`.

Each work runs as a command of its own under each way of waiting, in turns, with so many programs beside it that do
nothing but compute. Told are seconds of wall time of the command, its start included, and of its drawing: medians.

    python benchmarks/threads.py --busy 0 --busy 2 --repeats 3 --result benchmarks/results/threads.json
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MOST_SECONDS = 300
WORKS = {
    "one digit": ["sample", "--labels", "3", "--seeds", "0", "--steps", "linear:20-5"],
    "64 digits at once": ["sample", "--labels", "3", "--seeds", "0-63", "--batch-size", "64", "--steps", "linear:10-2"],
    "MAR-B": ["bench", "--model", "mar-base", "--untrained", "--batch-size", "1", "--num-ar-steps", "4", "--steps",
              "constant:10", "--repeats", "1"],
}  # fmt: skip
WAYS: dict[str, dict[str, str]] = {
    "sleeping, the default": {},
    "spinning, as PyTorch has it": {"OMP_WAIT_POLICY": "active"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


@contextlib.contextmanager
def beside(count: int) -> Iterator[None]:
    """So many busy programs."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def run(arguments: list[str], way: dict[str, str], out: Path) -> tuple[float, float]:
    """Seconds of a command, and of the drawing in it."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN} | way
    where = ["--replace", "--out", str(out)] if arguments[0] == "sample" else []
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "disa", *arguments, *where, "--json"],
        env=environment, capture_output=True, text=True, timeout=MOST_SECONDS, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    drawing = told["timings"][0]["seconds_per_image"] if "timings" in told else told["seconds"]
    return time.perf_counter() - started, drawing


def measure(busy: list[int], works: list[str], repeats: int) -> list[dict[str, object]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for count in busy:
            for work in works:
                found: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
                for _ in range(repeats):
                    for way, settings in WAYS.items():
                        with beside(count), contextlib.suppress(subprocess.TimeoutExpired):
                            found[way].append(run(WORKS[work], settings, Path(folder)))
                for way, times in found.items():
                    command, drawing = (median(each) for each in zip(*times, strict=True)) if times else (None, None)
                    rows.append({"busy": count, "work": work, "way": way, "command": command, "drawing": drawing})
                    print(f"{count} busy | {work} | {way} | {told(command)} | {told(drawing)}", flush=True)
    return rows


def told(seconds: float | None) -> str:
    return f"over {MOST_SECONDS} s" if seconds is None else f"{seconds:.1f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, action="append", help="busy programs beside it; give it several times")
    parser.add_argument("--work", choices=WORKS, action="append", help="all by default")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result", type=Path)
    asked = parser.parse_args()
    rows = measure(asked.busy or [0, 2], asked.work or list(WORKS), asked.repeats)
    if asked.result:
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        asked.result.write_text(json.dumps({**machine, "repeats": asked.repeats, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
