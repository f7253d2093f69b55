"""What bulk drawing costs beside the drawing: listing what is missing, memory of the driver, and Ray's share.

    python benchmarks/bulk.py lists              a model that draws nothing; a million ids
    python benchmarks/bulk.py ray --images 640   mar-digits with two workers in chunks of 64

Ends with one line of JSON. `lists` makes its shards without images in them: what is listed is what is on the disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from disa.bulk.job import Record
from disa.bulk.store import Shards
from stub_crew import draw, record  # pyright: ignore[reportMissingImports]

MILLION = 1_000_000


def listing(folder: Path, num_images: int) -> dict[str, Any]:
    """Seconds to read run.json and to list what is missing of so many ids, of which every second shard is there."""
    of = record(num_images, 1000)
    of.write(folder)
    (folder / "shards").mkdir()
    for shard in range(0, num_images // 1000, 2):
        for ending in ("tar", "json"):
            (folder / "shards" / f"{shard:06d}.{ending}").touch()
    started = time.perf_counter()
    there = Shards(folder, Record.read(folder)).there()
    return {"ids": num_images, "missing": int((~there).sum()), "seconds": round(time.perf_counter() - started, 3)}


def driver_memory(num_images: int) -> dict[str, Any]:
    """The most memory of a process that drives so many images of a stub, in MiB."""
    program = [sys.executable, __file__, "drive", "--images", str(num_images)]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def drive(num_images: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        done = draw(Path(folder), record(num_images, 1000), chunk=500)
        seconds = time.perf_counter() - started
    assert done.drawn == num_images
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"images": num_images, "mib": most, "seconds": round(seconds, 1)}


def share_of_ray(work: Path, num_images: int, workers: int, how: list[str]) -> dict[str, Any]:
    """Of the time from handing out a chunk to having it back, the share in which it is not drawn."""
    command = [sys.executable, "-m", "disa", "bulk", "--labels", "0-9", "--per-label", str(num_images // 10), "--json"]
    command += [
        "--workers",
        str(workers),
        "--chunk",
        "64",
        "--batch-size",
        "64",
        "--device",
        "cpu",
        "--out",
        str(work),
        *how,
    ]
    done = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    drawing, between = (sum(worker[name] for worker in done["workers"]) for name in ("seconds", "seconds_between"))
    return {
        "images": num_images,
        "workers": workers,
        "how": " ".join(how),
        "images_per_second": round(done["drawn"] / done["seconds"], 2),
        "seconds_drawing": round(drawing, 2),
        "seconds_between": round(between, 3),
        "seconds_writing": round(done["seconds_writing"], 3),
        "share": round(between / (drawing + between), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lists", "ray", "drive"])
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--how", default="", help="options of drawing, as '--steps constant:1 --num-ar-steps 2'")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        if asked.what == "drive":
            result = drive(asked.images)
        elif asked.what == "lists":
            memory = [driver_memory(count) for count in (1000, 10_000, 100_000)]
            result = {"listing": listing(Path(work), MILLION), "driver": memory}
        else:
            result = share_of_ray(Path(work) / "run", asked.images, asked.workers, asked.how.split())
    print(json.dumps(result))


if __name__ == "__main__":
    main()
