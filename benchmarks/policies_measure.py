"""What `policies.py` drew -> a result file: quality, evaluations and times of every point."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from policies_draw import PLAN, PointFolder, open_folders
from policies_plan import Point, inputs_of
from policies_write import lower_is_better
from tables import RESULTS
from torch import Tensor

from disa.draw.resizing import read_picture
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.files import write_json
from disa.study.measures import Measured
from disa.tiny.measures import MEASURES

FIXED = ("constant", "two-stage", "linear", "cosine", "reversed")
"""Kinds that know only the AR step."""


def measure(model: str, work: Path, result: Path | None) -> None:
    """Quality and cost of what was planned last, over the first images, as many as all its points have.

    Raises DisaError where these are too few.
    """
    folder = work / model
    if not (folder / PLAN).exists():
        raise DisaError(f"nothing of {model} is drawn in {work}: run draw first.")
    planned, sampler = json.loads((folder / PLAN).read_text()), Sampler.load(model)
    points = [Point(**point) for point in planned["points"]]
    folders = open_folders(sampler, points, folder, planned["images"])
    count = min(min(each.missing, default=planned["images"]) for each in folders.values())
    if not count:
        raise DisaError(f"not every point of {model} is drawn: run draw first.")
    inputs, by = inputs_of(sampler, count), MEASURES[sampler.defaults.quality]
    images = [_images(each, count, sampler.image_shape) for each in folders.values()]
    if refusal := by.refusal(images[0], inputs):
        raise DisaError(f"what is drawn of {model} cannot be measured: {refusal}.")
    measured = by.measure(images, inputs)
    judged, yardsticks = _judged(points, measured), measured.yardsticks
    report = {
        "model": model,
        "num_images": count,
        "seeds": [0, count - 1],
        "torch": torch.__version__,
        "threads": folders[points[0]].trace()["settings"]["threads"],
        "points": [asdict(point) | _costs(folders[point]) | judged[i] for i, point in enumerate(points)],
        "yardsticks": yardsticks and asdict(yardsticks),
    }
    write_json(result or RESULTS / f"policies-{model}.json", report)


def _images(point: PointFolder, count: int, shape: tuple[int, int, int]) -> Tensor:
    """[count, channels, height, width] in [0, 1], with 8 bits."""
    return torch.cat([read_picture(path, shape) for path in point.pictures(count)])


def _costs(point: PointFolder) -> dict[str, Any]:
    """Evaluations and times of all that was drawn of a point."""
    trace, cpu = point.trace(), point.cpu()
    return {
        "evaluations_per_row": trace["evaluations_per_row"],
        "seconds_per_image": trace["seconds"] / trace["images_counted"],
        "cpu_seconds_per_image": cpu["seconds"] / cpu["images"],
        "counts": [round(step["steps"], 2) for step in trace["trace"]],
    }


def _judged(points: Sequence[Point], measured: Measured) -> list[dict[str, Any]]:
    """The quality of every point, and its differences: to the original, to `linear`, to the best fixed schedule."""
    linear = {_place(point): i for i, point in enumerate(points) if point.kind == "linear"}
    bases = {"beyond_linear": linear, "beyond_best": _best(points, measured)}

    def difference(i: int, base: int) -> dict[str, Any] | None:
        return None if base == i else asdict(measured.difference(i, base))

    return [
        {"quality": asdict(measured.qualities[i]), "difference": difference(i, 0)}
        | {name: difference(i, places.get(_place(point), i)) for name, places in bases.items()}
        for i, point in enumerate(points)
    ]


def _place(point: Point) -> tuple[float | None, str | None]:
    """Points of one place are compared."""
    return point.share, point.solver


def _best(points: Sequence[Point], measured: Measured) -> dict[tuple[float | None, str | None], int]:
    """The best fixed schedule of each place."""
    sign = 1 if lower_is_better(vars(measured.qualities[0])) else -1
    fixed = [i for i, point in enumerate(points) if point.kind in FIXED]
    best: dict[tuple[float | None, str | None], int] = {}
    for i in sorted(fixed, key=lambda i: sign * measured.headlines[i].value):
        best.setdefault(_place(points[i]), i)
    return best
