"""The images of every point that `policies.py` plans."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from point_folders import PointFolder, draw_in_turn
from policies_plan import BUDGETS, BUDGETS_OF_FLOWS, Kinds, Point, inputs_of, plan

from disa.draw.sampler import Sampler
from disa.files import make_folder, write_json

PLAN = "plan.json"


def draw(model: str, num_images: int, work: Path, budgets: Sequence[float], kinds: Kinds) -> None:
    """Every point's images; those that are there stay, also where there are more than `num_images`."""
    sampler, folder = Sampler.load(model), make_folder(work / model)
    points = plan(sampler, budgets or BUDGETS.get(model, BUDGETS_OF_FLOWS), kinds)
    before = json.loads((folder / PLAN).read_text())["images"] if (folder / PLAN).exists() else 0
    total = max(num_images, before)
    write_json(folder / PLAN, {"images": total, "points": [asdict(point) for point in points]})
    folders = open_folders(sampler, points, folder, total)
    draw_in_turn({f"{model} {point.key}": each for point, each in folders.items()}, num_images)


def open_folders(sampler: Sampler, points: Sequence[Point], folder: Path, total: int) -> dict[Point, PointFolder]:
    """The folder of every point, for images 0 to `total`."""
    inputs = inputs_of(sampler, total)

    def opened(point: Point) -> PointFolder:
        settings = sampler.settings(steps=point.steps, solver=point.solver, grid=point.grid)
        return PointFolder(sampler, settings, folder / point.key, inputs)

    return {point: opened(point) for point in points}
