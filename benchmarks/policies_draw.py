"""The images of every point that `policies.py` plans: a sample folder each, all points in turn, chunk by chunk."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from policies_plan import BUDGETS, BUDGETS_OF_FLOWS, Point, inputs_of, plan

from disa.draw.folder import TRACE, Layout, SampleFolder
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.files import make_folder, write_json

CHUNK = 100
"""Images of a point before it is the next one's turn, so that a machine whose speed wanders is fair to all of them."""
PLAN, CPU = "plan.json", "cpu.json"


class PointFolder:
    """The images of a point. `missing` are the places of those that are not there yet."""

    def __init__(self, sampler: Sampler, point: Point, folder: Path, inputs: Inputs) -> None:
        """Raises DisaError where the folder holds other images."""
        self.sampler, self.inputs, self.path = sampler, inputs, folder / point.key
        self.settings = sampler.settings(steps=point.steps, solver=point.solver, grid=point.grid)
        about = sampler.start(inputs.part([0]), self.settings).about()
        self.samples = SampleFolder(self.path, inputs, about, Layout.flat(inputs))
        self.missing = self.samples.open("resume")

    def draw(self, places: Sequence[int]) -> None:
        """Draw some of the images. What was finished before an interruption is kept."""
        cpu, started = self.cpu(), time.process_time()
        for samples in self.sampler.start(self.inputs.part(places), self.settings).batches():
            cpu = {"images": cpu["images"] + len(samples), "seconds": cpu["seconds"] + time.process_time() - started}
            self.samples.write(samples, [places[place] for place in samples.places])
            write_json(self.path / CPU, cpu)
            started = time.process_time()

    def cpu(self) -> dict[str, float]:
        """CPU seconds of drawing, which a trace does not have, and the images that took them."""
        path = self.path / CPU
        return json.loads(path.read_text()) if path.exists() else {"images": 0, "seconds": 0.0}

    def trace(self) -> dict[str, Any]:
        """Settings, counts and times of what is there."""
        return json.loads((self.path / TRACE).read_text())

    def pictures(self, count: int) -> list[Path]:
        """Files of the first images."""
        return [self.path / name for name in self.samples.layout.names[:count]]


def draw(model: str, num_images: int, work: Path, budgets: Sequence[float], solvers: bool) -> None:
    """Every point's images; those that are there stay, also where there are more than `num_images`."""
    sampler, folder = Sampler.load(model), make_folder(work / model)
    points = plan(sampler, budgets or BUDGETS.get(model, BUDGETS_OF_FLOWS), solvers)
    before = json.loads((folder / PLAN).read_text())["images"] if (folder / PLAN).exists() else 0
    total = max(num_images, before)
    write_json(folder / PLAN, {"images": total, "points": [asdict(point) for point in points]})
    folders = open_folders(sampler, points, folder, total)
    turns = [
        (point, places)
        for start in range(0, num_images, CHUNK)
        for point in points
        if (places := [i for i in folders[point].missing if start <= i < min(start + CHUNK, num_images)])
    ]
    for done, (point, places) in enumerate(turns):
        started = time.perf_counter()
        folders[point].draw(places)
        seconds = time.perf_counter() - started
        told = f"{len(places)} from {places[0]}"
        print(f"{done + 1}/{len(turns)} {model} {point.kind} {point.steps}: {told}, {seconds:.1f} s", flush=True)
    for each in folders.values():
        if all(i < num_images for i in each.missing):
            each.samples.finish()


def open_folders(sampler: Sampler, points: Sequence[Point], folder: Path, total: int) -> dict[Point, PointFolder]:
    """The folder of every point, for images 0 to `total`."""
    inputs = inputs_of(sampler, total)
    return {point: PointFolder(sampler, point, folder, inputs) for point in points}
