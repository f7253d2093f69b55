"""What `policies.py` drew -> a result file: quality, evaluations and times of every point."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from point_folders import measured
from policies_draw import PLAN, open_folders
from policies_plan import Point
from policies_write import lower_is_better
from tables import RESULTS

from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.files import write_json
from disa.study.measures import Measured

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
    by_point = measured(sampler, [each.images(count) for each in folders.values()])
    judged, yardsticks = _judged(points, by_point), by_point.yardsticks
    report = {
        "model": model,
        "num_images": count,
        "seeds": [0, count - 1],
        "torch": torch.__version__,
        "threads": folders[points[0]].trace()["settings"]["threads"],
        "points": [asdict(point) | folders[point].costs() | judged[i] for i, point in enumerate(points)],
        "yardsticks": yardsticks and asdict(yardsticks),
    }
    write_json(result or RESULTS / f"policies-{model}.json", report)


def _judged(points: Sequence[Point], found: Measured) -> list[dict[str, Any]]:
    """The quality of every point, and its differences: to the original, to `linear`, to the best fixed schedule."""
    linear = {_place(point): i for i, point in enumerate(points) if point.kind == "linear"}
    bases = {"beyond_linear": linear, "beyond_best": _best(points, found)}

    def difference(i: int, base: int) -> dict[str, Any] | None:
        return None if base == i else asdict(found.difference(i, base))

    return [
        {"quality": asdict(found.qualities[i]), "difference": difference(i, 0)}
        | {name: difference(i, places.get(_place(point), i)) for name, places in bases.items()}
        for i, point in enumerate(points)
    ]


def _place(point: Point) -> tuple[float | None, str | None]:
    """Points of one place are compared."""
    return point.share, point.solver


def _best(points: Sequence[Point], found: Measured) -> dict[tuple[float | None, str | None], int]:
    """The best fixed schedule of each place."""
    sign = 1 if lower_is_better(vars(found.qualities[0])) else -1
    fixed = [i for i, point in enumerate(points) if point.kind in FIXED]
    best: dict[tuple[float | None, str | None], int] = {}
    for i in sorted(fixed, key=lambda i: sign * found.headlines[i].value):
        best.setdefault(_place(points[i]), i)
    return best
