"""What it takes to keep what is drawn: seconds of writing images, and memory that must not grow with their number.

    python benchmarks/sampling.py                                          # some minutes
    python benchmarks/sampling.py --images 40 120 --batch 20 --repeats 2   # to try it

Images are written as `disa sample` writes them, each with an identity in it and whole or not at all, against Pillow's
`save` alone, in turn. Then `disa sample` draws few images and many in batches of one size, each in a process of its
own, whose peak of memory the system tells; few steps are enough for that. What each further image adds to the peak is
held against its pixels and latents: where they are kept, the exit code is 1. Prints a table; the last line is one JSON
object.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import machine, publish

from disa.draw.folder import Layout, SampleFolder
from disa.draw.inputs import Inputs
from disa.draw.pictures import as_image
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples

MODEL = "mar-digits"
FEW_STEPS = {"steps": "constant:1", "num_ar_steps": 2}
"""How images are drawn of which only the writing is measured, or the memory."""
KEPT = 0.5
"""The share of an image's own size from which on what it adds to the peak counts as kept."""

WAITING = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(used.ru_maxrss)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""A small process between: Linux counts what the parent held when it started a process as that one's own peak."""


def writing(samples: Samples, repeats: int) -> dict[str, Any]:
    """Seconds to write images into a sample folder, and by Pillow alone: medians, the first round left out."""
    rounds: list[tuple[float, float]] = []
    for _ in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            rounds.append((into_folder(samples, Path(folder) / "out"), by_pillow(samples, Path(folder))))
    ours, plain = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    return {"images": len(samples), "seconds": ours, "seconds_pillow": plain, "ratio": ours / plain}


def into_folder(samples: Samples, path: Path) -> float:
    """Seconds of a sample folder, without its overview and the last trace."""
    started = time.perf_counter()
    folder = SampleFolder(path, samples.inputs, samples.settings, Layout.flat(samples.inputs))
    folder.write(samples, folder.open())
    return time.perf_counter() - started


def by_pillow(samples: Samples, path: Path) -> float:
    """Seconds of the same images, saved one after the other."""
    started = time.perf_counter()
    for i, image in enumerate(samples.images):
        as_image(image).save(path / f"{i}.png")
    return time.perf_counter() - started


def peak(num_images: int, batch_size: int) -> float:
    """KiB that `disa sample` of so many images reaches, in a process of its own."""
    options = {"model": MODEL, "device": "cpu", "labels": 0, "seeds": f"0-{num_images - 1}", "batch-size": batch_size}
    options |= {name.replace("_", "-"): value for name, value in FEW_STEPS.items()}
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "disa", "sample", *flags, "--out", str(Path(folder) / "out")]
        told = subprocess.run([sys.executable, "-c", WAITING, *command], stdout=subprocess.PIPE, check=True).stdout
    return int(told) / (1024 if sys.platform == "darwin" else 1)


def memory(counts: list[int], batch_size: int, size: float) -> dict[str, Any]:
    """Peaks of a few images and of many. size: KiB of an image's pixels and latents."""
    few, many = (peak(count, batch_size) for count in counts)
    added = (many - few) / (counts[1] - counts[0])
    return {
        "images": counts,
        "batch": batch_size,
        "peak_mib": [few / 1024, many / 1024],
        "kib_per_further_image": added,
        "kib_of_an_image": size,
        "kept": added > KEPT * size,
    }


def show(written: dict[str, Any], held: dict[str, Any]) -> None:
    print(f"writing {written['images']} images".ljust(36), "seconds")
    print(f"{'sample folder':36}{written['seconds']:8.3f}   {written['ratio']:.2f} times Pillow's")
    print(f"{'Pillow alone':36}{written['seconds_pillow']:8.3f}")
    print(f"\ndisa sample, batches of {held['batch']}".ljust(36), "peak MiB")
    for count, mib in zip(held["images"], held["peak_mib"], strict=True):
        print(f"{f'{count} images':36}{mib:8.1f}")
    added, size = held["kib_per_further_image"], held["kib_of_an_image"]
    print(f"{'each further image':36}{added:8.2f} KiB, its pixels and latents are {size:.1f} KiB\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--written", type=int, default=100, help="images whose writing is timed")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one that warms up")
    parser.add_argument("--images", type=int, nargs=2, default=[200, 2000], help="few and many, for the memory")
    parser.add_argument("--batch", type=int, default=100, help="images drawn at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, help="write the JSON object to this file, too")
    return parser.parse_args()


def main() -> int:
    given = arguments()
    torch.set_num_threads(given.threads)
    os.environ["OMP_NUM_THREADS"] = str(given.threads)  # of the processes whose memory is measured
    inputs = Inputs.in_turn(range(given.written), labels=range(10))
    samples = Sampler.load(MODEL, device="cpu").sample(inputs=inputs, **FEW_STEPS)
    size = (samples.images[0].nbytes + samples.latents[0].nbytes) / 1024
    written, held = writing(samples, given.repeats), memory(given.images, given.batch, size)
    show(written, held)
    about = {"benchmark": "sampling", "model": MODEL, "threads": given.threads, **machine(), "repeats": given.repeats}
    publish(about | {"writing": written, "memory": held}, given.result)
    return int(held["kept"])


if __name__ == "__main__":
    sys.exit(main())
