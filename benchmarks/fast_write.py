"""The fast recipe of each family's published models, from what was measured on its embedded model:

    python benchmarks/fast_write.py

A plan or a table belongs to the weights that it was made on. What a recipe of a family has are options that any model
can take: steps, solver, grid, order, counts, reuse. Which of the measured points they come from stands below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerators_write import original_of, point_of, to_original
from tables import RESULTS

from disa.draw.recipes import FAST, FORMAT
from disa.files import write_json
from disa.weights.package import in_package


@dataclass(frozen=True)
class Source:
    """A measured point, and what of it changes for models of another size."""

    file: Path
    point: str
    changed: dict[str, Any] = field(default_factory=dict)
    """Options with another value; None for one that is the model's own to have."""


FAMILIES = {
    "mar": Source(
        RESULTS / "accelerators" / "confirm-mar-digits.json",
        "guided few steps, stages, residual:9",
        {"guidance": None, "counts": "stages:24-6-2"},
    ),
    "flowar": Source(RESULTS / "confirm-flowar-digits.json", "heun-8"),
    "xar": Source(RESULTS / "confirm-xar-digits.json", "hand-8"),
    "harmon": Source(RESULTS / "accelerators" / "closer" / "confirm-harmon-shapes.json", "linear:20-4, residual:9"),
}


def recipe(source: Source) -> dict[str, Any]:
    """What the file of a family's recipe holds."""
    report = json.loads(source.file.read_text())
    point = point_of(report, source.point)
    original = original_of(report, point)
    settings = {name: value for name, value in {**point["options"], **source.changed}.items() if value is not None}
    measured = {
        "options": point["options"],
        "speedup": original["cpu_seconds_per_image"] / point["cpu_seconds_per_image"],
        "difference": to_original(point),
        "images": report["num_images"],
    }
    return {"format": FORMAT, "model": report["model"], "settings": settings, "measured": measured}


def main() -> None:
    for family, source in FAMILIES.items():
        write_json(in_package(f"{family}-{FAST}.json"), recipe(source))


if __name__ == "__main__":
    main()
