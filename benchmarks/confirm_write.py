"""What `confirm.py` measured -> a result file and a Markdown table for each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from point_folders import PointFolder
from tables import options_cell, table

from disa.files import write_json, write_text
from disa.study.certainty import Corrected, smallest_seen
from disa.study.measures import Measured
from disa.study.metrics import Spread
from disa.values import counted


@dataclass
class Claim:
    """A difference of two points of a model, by their places, and the same as one of the family."""

    model: str
    point: int
    base: int
    difference: Spread
    corrected: Corrected | None = None

    def report(self) -> dict[str, Any]:
        return asdict(self.difference) | {"corrected": self.corrected and asdict(self.corrected)}


def write(
    about: dict[str, Any],
    asked: Sequence[dict[str, Any]],
    folders: Sequence[PointFolder],
    found: Measured,
    unlike: Sequence[Spread | None],
    claims: Sequence[Claim],
    results: Path,
) -> None:
    """STAGE-MODEL.json and STAGE-MODEL.md."""
    points = []
    for place, (point, folder, distance) in enumerate(zip(asked, folders, unlike, strict=True)):
        own = {claim.base: claim for claim in claims if claim.point == place}
        base = max(own, default=0)
        points.append(
            {**point, "base": asked[base]["name"] if base else None}
            | folder.costs()
            | {"headline": asdict(found.headline(place)), "quality": asdict(found.qualities[place])}
            | {"energy_distance": distance and asdict(distance)}
            | {"to_original": own[0].report() if own else None, "to_base": own[base].report() if base else None}
        )
    comparisons = about["comparisons"]
    report = {
        **about,
        "smallest_difference": smallest_seen(max(claim.difference.std for claim in claims), comparisons),
        "torch": torch.__version__,
        "threads": folders[0].trace()["settings"]["threads"],
        "points": points,
        "yardsticks": found.yardsticks and asdict(found.yardsticks),
    }
    name = f"{about['stage']}-{about['model']}"
    write_json(results / f"{name}.json", report)
    write_text(results / f"{name}.md", page(report))
    print(page(report))


def page(report: dict[str, Any]) -> str:
    """A paragraph and a table of one model."""
    name = "Fréchet distance" if "frechet" in report["points"][0]["quality"] else "score"
    chosen = ", ".join(f"{first}-{last}" for first, last in report["chosen_on"])
    trial = "" if report["enough_for_a_claim"] else "**A trial: too few images for a claim.** "
    origin = f"the points were chosen on {chosen}" if chosen else "a choice, which confirms nothing"
    comparisons, models = counted(report["comparisons"], "comparison"), ", ".join(report["models_of_the_family"])
    first, last = report["seeds"]
    lines = [
        f"{trial}{report['model']}: {report['num_images']} images per point, seeds {first}-{last}; {origin}. Intervals "
        f"of differences are corrected for {comparisons} of {models} (Holm, 95 % for all together). These images can "
        f"show a difference of {report['smallest_difference']:.2g} (power 0.8).\n",
        table(
            [
                "point",
                "options",
                "evaluations per row",
                "CPU s per image",
                "s per image",
                name,
                "to the original",
                "to",
            ],
            [_row(point) for point in report["points"]],
        ),
    ]
    return "\n".join(lines) + "\n"


def _row(point: dict[str, Any]) -> list[str]:
    headline = point["headline"]
    return [
        point["name"],
        options_cell(point["options"]),
        f"{point['evaluations_per_row']:.1f}",
        f"{point['cpu_seconds_per_image']:.3f}",
        f"{point['seconds_per_image']:.3f}",
        f"{headline['value']:.3f} [{headline['low']:.3f}, {headline['high']:.3f}]",
        *claim_cells(point),
    ]


def claim_cells(point: dict[str, Any]) -> list[str]:
    """A point's differences to the original and to its base."""
    base = f"{point['base']}: {claim_cell(point['to_base'])}" if point["base"] else ""
    return [claim_cell(point["to_original"]), base]


def claim_cell(claim: dict[str, Any] | None) -> str:
    """A difference with its corrected interval."""
    if claim is None:
        return ""
    low, high, shown = (claim["corrected"][name] for name in ("low", "high", "shown"))
    return f"{claim['value']:+.3f} [{low:.3f}, {high:.3f}]{'' if shown else ' (none shown)'}"
