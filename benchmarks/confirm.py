"""A study in two stages: choose on some seeds, then confirm on seeds that nothing was chosen on.

    python benchmarks/confirm.py choose points.json    # seeds 300000...: what looks best, for you to write claims from
    python benchmarks/confirm.py confirm points.json   # seeds 500000...: what of it holds -> benchmarks/results

Both draw what is missing, 100 images of each point in turn, and then measure; interrupt and repeat them at will. With
`--model` they draw the images of one model only. points.json says what is compared, the original of each model first:

    {"chosen_on": [[300000, 301999]],
     "models": {"harmon-shapes": [{"name": "original", "steps": "constant:100"},
                                  {"name": "linear", "steps": "linear:22-2"},
                                  {"name": "ddim", "steps": "linear:22-2", "solver": "ddim", "base": "linear"}]}}

A point may have any option of drawing (docs/options.md), as text. It is compared with its model's original, and with
its `base` if it names one. All of these differences, of all models of the file, are one family: their intervals are
corrected for it by Holm's method. "chosen_on" lists ranges of seeds that the points were chosen on elsewhere; those
that `choose` used are known. `confirm` refuses them all. Fewer than 2000 digits or 3000 captions are a trial, no claim;
"images": {"harmon-shapes": 1000} makes it one of so many. Beside the quality of the images stands their energy distance
to those of the original (disa.study.likeness), which needs no reference and sees what a score does not.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confirm_write import Claim, write
from point_folders import PointFolder, at_root, draw_in_turn, energies, measured
from policies_plan import inputs_of
from tables import RESULTS, ROOT

from disa.draw.prompts import slug
from disa.draw.sampler import Sampler
from disa.draw.settings import digest
from disa.errors import DisaError
from disa.files import make_folder, write_json
from disa.reading import json_in, read_json
from disa.study.certainty import corrected

FIRST_SEEDS = {"choose": 300_000, "confirm": 500_000}
ALWAYS_LEFT, CONFIRMING = (800_000, 899_999), (500_000, 599_999)
ENOUGH = {"digits": 2000, "shapes": 3000}
STUDY = "study.json"

Range = tuple[int, int]
"""The first and the last of some seeds."""


# -- what is asked -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A point. options: of drawing. base: the place of the point it is compared with beside the original, or None."""

    name: str
    options: dict[str, Any]
    base: int | None


@dataclass(frozen=True)
class Points:
    """What a file of points says."""

    models: dict[str, list[Asked]]
    chosen_on: list[Range]
    images: dict[str, int]
    """Of some models, where that is not as many as a claim needs."""

    @classmethod
    def read(cls, path: Path) -> Points:
        """Raises DisaError where it is not as the head of this module says."""
        content = read_json(path, "the file of points")
        try:
            models = {model: _asked(model, points) for model, points in content["models"].items()}
            chosen_on = [(int(first), int(last)) for first, last in content.get("chosen_on", [])]
            return cls(models, chosen_on, {model: int(count) for model, count in content.get("images", {}).items()})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DisaError(
                f"{path}: expected an object with models, each a list of points with a name and options, and ranges "
                f"chosen_on ({type(error).__name__}: {error})."
            ) from None


def _asked(model: str, points: list[dict[str, Any]]) -> list[Asked]:
    names = [point["name"] for point in points]
    if len(set(names)) != len(names) or len(names) < 2:
        raise DisaError(f"{model} needs two points or more with a name each of its own, found {', '.join(names)}.")
    bases = [point.get("base", names[0]) for point in points]
    if unknown := [base for base in bases if base not in names]:
        raise DisaError(f"{model}: a base is the name of a point, found {unknown[0]!r}; there are {', '.join(names)}.")
    return [
        Asked(name, {k: v for k, v in point.items() if k not in ("name", "base")}, names.index(base) or None)
        for name, base, point in zip(names, bases, points, strict=True)
    ]


def check_seeds(stage: str, seeds: Range, chosen_on: list[Range]) -> None:
    """Refuse seeds that a stage may not use. Raises DisaError."""
    if overlap(seeds, ALWAYS_LEFT):
        raise DisaError(f"seeds {shown(ALWAYS_LEFT)} are never used, found {shown(seeds)}: give another --first.")
    if stage == "choose" and overlap(seeds, CONFIRMING):
        raise DisaError(f"seeds {shown(CONFIRMING)} are for confirming, found {shown(seeds)}: give another --first.")
    if stage == "choose":
        return
    if not chosen_on:
        raise DisaError("which seeds were chosen on is not known: run choose, or say so in the file under chosen_on.")
    if used := [each for each in chosen_on if overlap(seeds, each)]:
        raise DisaError(f"seeds {shown(seeds)} confirm nothing: {shown(used[0])} were chosen on. Give another --first.")


def overlap(a: Range, b: Range) -> bool:
    return a[0] <= b[1] and b[0] <= a[1]


def shown(seeds: Range) -> str:
    return f"{seeds[0]}-{seeds[1]}"


# -- a stage -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """choose or confirm: where its images are, and from which seed on."""

    name: str
    first: int
    images: int | dict[str, int]
    """Of every model, or of some."""
    work: Path

    def count(self, sampler: Sampler) -> int:
        if isinstance(self.images, int):
            return self.images
        return self.images.get(sampler.preset.name, ENOUGH[sampler.defaults.quality])

    def seeds(self, sampler: Sampler) -> Range:
        return self.first, self.first + self.count(sampler) - 1

    def folders(self, sampler: Sampler, points: list[Asked]) -> dict[str, PointFolder]:
        """The folder of every point, by its name; one per first seed, and for as many images as ever were asked for."""
        folder = make_folder(self.work / self.name / sampler.preset.name / str(self.first))
        before = json_in(folder / STUDY)["images"] if (folder / STUDY).exists() else 0
        total = max(self.count(sampler), before)
        write_json(folder / STUDY, {"images": total, "seeds": [self.first, self.first + total - 1]})
        inputs = inputs_of(sampler, total, self.first)

        def opened(point: Asked) -> PointFolder:
            settings = sampler.settings(**point.options)
            about = sampler.start(inputs.part([0]), settings).about()
            return PointFolder(sampler, settings, folder / f"{slug(point.name)}-{digest(about)[:8]}", inputs)

        return {point.name: opened(point) for point in points}


def seeds_of_choice(work: Path) -> list[Range]:
    """The seeds that `choose` ever drew, of any model."""
    known = [json_in(path)["seeds"] for path in sorted((work / "choose").glob(f"*/*/{STUDY}"))]
    return [(first, last) for first, last in known]


def run(stage: Stage, points: Points, only: str | None, results: Path) -> None:
    """Draw what is missing, of one model only or of all; then measure all."""
    chosen_on = sorted({*points.chosen_on, *seeds_of_choice(stage.work)})
    if only is not None and only not in points.models:
        raise DisaError(f"the file has the models {', '.join(points.models)}, found {only}.")
    samplers = {model: Sampler.load(model) for model in points.models}
    for sampler in samplers.values():
        check_seeds(stage.name, stage.seeds(sampler), chosen_on)
    drawn = [only] if only else list(samplers)
    folders = {model: stage.folders(samplers[model], points.models[model]) for model in drawn}
    for model, own in folders.items():
        draw_in_turn({f"{stage.name} {model} {name}": each for name, each in own.items()}, stage.count(samplers[model]))
    if only:
        print(f"{only} is drawn; without --model, what is missing of all models is drawn, and all is measured.")
        return
    _measure(stage, points, samplers, folders, chosen_on, results)


def _measure(
    stage: Stage,
    points: Points,
    samplers: dict[str, Sampler],
    folders: dict[str, dict[str, PointFolder]],
    chosen_on: list[Range],
    results: Path,
) -> None:
    """Measure every model, correct for all claims, and write a result file and a table for each model."""
    claims: list[Claim] = []
    found, unlike = {}, {}
    for model, sampler in samplers.items():
        asked = points.models[model]
        images = [folder.images(stage.count(sampler)) for folder in folders[model].values()]
        unlike[model] = energies(list(folders[model].values()), stage.count(sampler))
        found[model] = measured(sampler, images, stage.first)
        for place, point in enumerate(asked[1:], 1):
            for base in sorted({0, point.base or 0} - {place}):
                claims.append(Claim(model, place, base, found[model].difference(place, base)))
    for claim, of_family in zip(claims, corrected([claim.difference for claim in claims]), strict=True):
        claim.corrected = of_family
    make_folder(results)
    for model, sampler in samplers.items():
        about = {
            "model": model,
            "stage": stage.name,
            "num_images": stage.count(sampler),
            "seeds": list(stage.seeds(sampler)),
            "chosen_on": [list(each) for each in chosen_on] if stage.name == "confirm" else [],
            "enough_for_a_claim": stage.count(sampler) >= ENOUGH[sampler.defaults.quality],
            "comparisons": len(claims),
            "models_of_the_family": list(samplers),
        }
        asked = [{"name": point.name, "options": point.options} for point in points.models[model]]
        own = [claim for claim in claims if claim.model == model]
        write(about, asked, list(folders[model].values()), found[model], unlike[model], own, results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=tuple(FIRST_SEEDS))
    parser.add_argument("points", type=Path, help="the file of points")
    parser.add_argument("--model", help="draw the images of this model only")
    parser.add_argument("--images", type=int, help="per point, instead of 2000 digits or 3000 captions")
    parser.add_argument("--first", type=int, help="the first seed, instead of 300000 or 500000")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "confirm", help="where images are kept")
    parser.add_argument("--results", type=Path, help="where results go: benchmarks/results for confirm, else --work")
    given = parser.parse_args()
    first = FIRST_SEEDS[given.stage] if given.first is None else given.first
    work, points = given.work.absolute(), given.points.absolute()
    results = (given.results or (RESULTS if given.stage == "confirm" else work)).absolute()

    def work_on() -> None:
        asked = Points.read(points)
        run(Stage(given.stage, first, given.images or asked.images, work), asked, given.model, results)

    return at_root(work_on)


if __name__ == "__main__":
    sys.exit(main())
