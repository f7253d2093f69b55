"""How two runs on the same seeds differ."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from disa.errors import DisaError
from disa.evaluate.features import OnPart
from disa.evaluate.images import Images
from disa.evaluate.reference import Reference
from disa.evaluate.spaces import Space
from disa.evaluate.subject import Subject, judge, prepared
from disa.study.certainty import Corrected, corrected
from disa.study.metrics import POSITIVE, SHARE, Resampled, Spread
from disa.values import counted, named, shown

BOUNDS = {"frechet": POSITIVE, "accuracy": SHARE, "judged": SHARE}


@dataclass(frozen=True)
class Difference:
    """One number of two runs, and by how much it differs: the second minus the first, paired by seed."""

    name: str
    first: Spread
    second: Spread
    difference: Spread
    corrected: Corrected
    """The same as one of the family of all numbers that are compared."""


@dataclass(frozen=True)
class Paired:
    """What `evaluate_paired` returns."""

    images: tuple[str, str]
    num_images: int
    features: str
    reference: str | None
    distance_name: str
    differences: list[Difference]
    notes: list[str]

    def report(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def evaluate_paired(
    first: Images,
    second: Images,
    space: Space,
    reference: Reference | None = None,
    device: torch.device | None = None,
    num_resamples: int | None = None,
    on_part: OnPart = lambda count: None,
) -> Paired:
    """Two runs of the same seeds and labels or prompts: what the images of a seed have in common cancels.

    Intervals hold for all numbers together, see `study/certainty.py`. Raises DisaError where seeds differ.
    """
    if first.size != second.size:
        sizes = " and ".join("x".join(map(str, images.size)) for images in (first, second))
        raise DisaError(f"--paired takes images of one size, and these have {sizes}.")
    second = second.chosen(partners(first, second))
    sides = prepared([first, second], space, reference, device, num_resamples, on_part)
    found = [_resampled(subject) for subject in sides]
    if not found[0]:
        raise DisaError("nothing can be compared: give a reference with --against, or features that tell classes.")
    apart = {name: (found[1][name] - found[0][name]).spread() for name in found[0]}
    family = corrected(list(apart.values()))
    differences = [
        Difference(name, _bounded(found[0], name), _bounded(found[1], name), difference, certain)
        for (name, difference), certain in zip(apart.items(), family, strict=True)
    ]
    places, place = (first.place, second.place), reference.place if reference else None
    return Paired(places, len(first), space.name, place, sides[0].name, differences, sides[0].notes())


def partners(first: Images, second: Images) -> list[int]:
    """[N] for each image of the first set the one of the second with the same seed and label or prompt. Raises
    DisaError where one has none, or several could be meant."""
    places: list[dict[Any, int]] = []
    for images in (first, second):
        if any(entry.seed is None for entry in images.entries):
            raise DisaError(
                f"{named(images.place)} does not tell the seeds of its images: --paired takes runs of disa."
            )
        places.append({entry.asked: i for i, entry in enumerate(images.entries)})
        if len(places[-1]) < len(images):
            raise DisaError(f"{named(images.place)} has a seed and label twice: it cannot be paired.")
    lonely = list(places[0].keys() ^ places[1].keys())
    if lonely:
        seed, what = min(lonely, key=str)
        where = first.place if (seed, what) in places[0] else second.place
        asked = "" if what is None else f" with {'label' if isinstance(what, int) else 'prompt'} {shown(what)}"
        raise DisaError(
            f"--paired takes runs of the same seeds and labels or prompts: {counted(len(lonely), 'image')} of "
            f"{named(first.place)} and {named(second.place)} have no partner, as seed {seed}{asked} of {named(where)}."
        )
    return [places[1][entry.asked] for entry in first.entries]


def _resampled(subject: Subject) -> dict[str, Resampled]:
    """What can be drawn again, by its name."""
    found: dict[str, Resampled | None] = {"frechet": subject.distances(), "accuracy": subject.accuracy()}
    if (report := judge(subject.images)) is not None:
        found["judged"] = report.resampled
    return {name: value for name, value in found.items() if value is not None}


def _bounded(found: dict[str, Resampled], name: str) -> Spread:
    return found[name].spread().within(*BOUNDS[name])
