"""How good a set of images is beside a reference, and how two runs on the same seeds differ.

N images, M reference images, D features. What can be had depends on what is given: without a reference, what is read in
the images; with statistics alone, the Fréchet distance too; with reference images, everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.evaluate.features import Features, OnPart, check_fits, extract
from disa.evaluate.images import Images
from disa.evaluate.reference import Reference
from disa.evaluate.spaces import INCEPTION, Space
from disa.runtime.devices import CPU
from disa.study.certainty import Corrected, corrected
from disa.study.metrics import (
    POSITIVE,
    SHARE,
    Gaussian,
    Resampled,
    Spread,
    class_accuracy,
    density_coverage,
    frechet_distance,
    precision_recall,
    resample,
    strata_of,
)
from disa.study.scores import (
    Subsets,
    extrapolated,
    inception_score,
    kernel_distance,
)
from disa.values import counted, named, shown

NUM_IMAGES_OF_FID = 50_000
FEWEST_IMAGES, MOST_NEIGHBOURS = 20, 10_000
MOST_RESAMPLES, FEWEST_RESAMPLES, EFFORT = 200, 20, 4e12
"""A bootstrap has as many resamples as take about so many multiplications, within bounds."""
BOUNDS = {"frechet": POSITIVE, "accuracy": SHARE, "judged": SHARE}


@dataclass(frozen=True)
class Neighbours:
    """What nearest neighbours tell, of so many images on each side at most: a random choice where there are more."""

    precision: float
    recall: float
    density: float
    coverage: float
    num_images: int
    num_reference: int


@dataclass(frozen=True)
class Distance:
    """A Fréchet distance, what it would be for infinitely many images, and under what name it may be told."""

    name: str
    value: Spread
    extrapolated: float
    num_reference: int | None
    """Images that the reference is of; None where its file does not tell."""


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` returns; None is what the given things do not tell."""

    images: str
    num_images: int
    features: str
    num_features: int
    reference: str | None = None
    frechet: Distance | None = None
    kernel: Subsets | None = None
    kernel_name: str = ""
    neighbours: Neighbours | None = None
    score: Subsets | None = None
    score_name: str = ""
    accuracy: Spread | None = None
    class_accuracies: dict[int, float] | None = None
    """The share of each class that was asked for and is read so."""
    judged: Spread | None = None
    """GenEval's score by the judge of drawn shapes, where the images have its captions."""
    categories: dict[str, Spread] | None = None
    notes: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return asdict(self)


def evaluate(
    images: Images,
    space: Space,
    reference: Reference | None = None,
    device: torch.device | None = None,
    num_resamples: int | None = None,
    on_part: OnPart = lambda count: None,
) -> Evaluation:
    """on_part is called with the number of images that were done since its last call. Raises DisaError where the
    images, the space and the reference do not go together."""
    (subject,) = _subjects([images], space, reference, device, num_resamples, on_part)
    values, real = subject.features.values, subject.real
    judged, categories = _judged(images)
    accuracy = subject.accuracy()
    return Evaluation(
        images=images.place,
        num_images=len(images),
        features=space.name,
        num_features=values.shape[1],
        reference=reference.place if reference else None,
        frechet=subject.distance(),
        kernel=kernel_distance(values, real.values) if real else None,
        kernel_name="KID" if space.official else "kernel distance",
        neighbours=_neighbours(real.values, values) if real else None,
        score=inception_score(subject.features.logits) if subject.features.logits is not None else None,
        score_name="Inception score" if space.official else f"class score of {space.name}",
        accuracy=accuracy.spread().within(*SHARE) if accuracy else None,
        class_accuracies=subject.class_accuracies(),
        judged=judged,
        categories=categories,
        notes=subject.notes(),
    )


# -- two runs on the same seeds ------------------------------------------------------------------------------------


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
    second = second.chosen(partners(first, second))
    subjects = _subjects([first, second], space, reference, device, num_resamples, on_part)
    found = [_resampled(subject) for subject in subjects]
    if not found[0]:
        raise DisaError("nothing can be compared: give a reference with --against, or features that tell classes.")
    apart = {name: (found[1][name] - found[0][name]).spread() for name in found[0]}
    family = corrected(list(apart.values()))
    differences = [
        Difference(name, _bounded(found[0], name), _bounded(found[1], name), difference, certain)
        for (name, difference), certain in zip(apart.items(), family, strict=True)
    ]
    places, place = (first.place, second.place), reference.place if reference else None
    return Paired(places, len(first), space.name, place, subjects[0].name, differences, subjects[0].notes())


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


def _resampled(subject: _Subject) -> dict[str, Resampled]:
    """What can be drawn again, by its name."""
    found: dict[str, Resampled | None] = {"frechet": subject.distances(), "accuracy": subject.accuracy()}
    if (judge := _judge(subject.images)) is not None:
        found["judged"] = judge.resampled
    return {name: value for name, value in found.items() if value is not None}


def _bounded(found: dict[str, Resampled], name: str) -> Spread:
    return found[name].spread().within(*BOUNDS[name])


# -- one set -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Subject:
    """A set of images with its features, and those of its reference."""

    images: Images
    space: Space
    reference: Reference | None
    features: Features
    real: Features | None
    num_resamples: int

    @property
    def strata(self) -> Tensor | None:
        return strata_of(None if self.images.labels is None else torch.tensor(self.images.labels))

    @property
    def normal(self) -> Gaussian | None:
        """The reference's mean and covariance."""
        return self.reference.gaussian(self.space, self.real) if self.reference else None

    def distances(self) -> Resampled | None:
        """The Fréchet distance, and that of every resample."""
        normal = self.normal
        if normal is None:
            return None
        return self._resampled(lambda chosen: frechet_distance(chosen, normal), self.features.values)

    def distance(self) -> Distance | None:
        found, normal = self.distances(), self.normal
        if found is None or normal is None:
            return None
        limit = extrapolated(self.features.values, normal, self.strata)
        count = None if normal.count == float("inf") else int(normal.count)
        return Distance(self.name, found.spread().within(*POSITIVE), limit, count)

    @property
    def name(self) -> str:
        """FID is defined by Inception's weights and by 50 000 images; anything else goes by its own name."""
        if self.space.official and len(self.images) == NUM_IMAGES_OF_FID:
            return "FID"
        return f"Fréchet distance on {self.space.name}"

    @property
    def read(self) -> Tensor | None:
        """[N] the classes that are read in the images, where requests have the same classes."""
        logits, labels = self.features.logits, self.images.labels
        if logits is None or labels is None or not set(labels) <= set(range(self.space.classes)):
            return None
        return logits.argmax(dim=1)

    def accuracy(self) -> Resampled | None:
        read = self.read
        return None if read is None else self._resampled(class_accuracy, read, torch.tensor(self.images.labels))

    def class_accuracies(self) -> dict[int, float] | None:
        read, labels = self.read, torch.tensor(self.images.labels or [])
        if read is None:
            return None
        return {label: (read[labels == label] == label).double().mean().item() for label in labels.unique().tolist()}

    def _resampled(self, statistic: Callable[..., float], *arrays: Tensor) -> Resampled:
        return resample(statistic, *arrays, strata=self.strata, num_resamples=self.num_resamples)

    def notes(self) -> list[str]:
        """What a reader of the numbers must know."""
        found, (count, width) = [], self.features.values.shape
        if self.reference is not None and count <= width:
            found.append(
                f"{count} images are no more than the {width} features: their covariance is singular, the distance far "
                "above that of many images, and the extrapolation poor."
            )
        if self.reference is not None and self.real is None:
            found.append(
                "The reference is statistics alone: kernel distance, precision, recall, density and coverage need its "
                "images."
            )
        if self.space.name == INCEPTION and not self.space.official:
            found.append("These are not the weights that FID is defined by.")
        return found


def _subjects(
    sets: Sequence[Images],
    space: Space,
    reference: Reference | None,
    device: torch.device | None,
    num_resamples: int | None,
    on_part: OnPart,
) -> list[_Subject]:
    """Raises DisaError before any work where something does not fit."""
    for images in sets:
        check_fits(images, space)
        if reference is not None:
            reference.check(images, space)
    for images in (*sets, *([reference.images] if reference and reference.images else ())):
        if len(images) < FEWEST_IMAGES:
            found = counted(len(images), "image")
            raise DisaError(f"{named(images.place)} holds {found}: expected {FEWEST_IMAGES} or more.")
    device = device or CPU
    real = reference.features(space, device, on_part) if reference else None
    features = [extract(images, space, device, on_part) for images in sets]
    return [
        _Subject(images, space, reference, found, real, num_resamples or _affordable(found.values))
        for images, found in zip(sets, features, strict=True)
    ]


def _affordable(features: Tensor) -> int:
    """How many resamples a bootstrap may have."""
    count, width = features.shape
    return int(min(MOST_RESAMPLES, max(FEWEST_RESAMPLES, EFFORT / (width**2 * (count + 20 * width)))))


def _neighbours(real: Tensor, generated: Tensor) -> Neighbours:
    real, generated = _some(real, seed=0), _some(generated, seed=1)
    shares = (*precision_recall(real, generated), *density_coverage(real, generated))
    return Neighbours(*shares, num_images=len(generated), num_reference=len(real))


def _some(features: Tensor, seed: int) -> Tensor:
    """As many as can be compared with each other."""
    if len(features) <= MOST_NEIGHBOURS:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:MOST_NEIGHBOURS]]


# -- scenes --------------------------------------------------------------------------------------------------------


def _judged(images: Images) -> tuple[Spread | None, dict[str, Spread] | None]:
    report = _judge(images)
    if report is None:
        return None, None
    return report.overall, {str(name): share for name, share in report.categories.items()}


def _judge(images: Images) -> Any:
    """The judge's report on drawn shapes, where the prompts are captions of its grammar; else None."""
    from disa.tiny.judge import score
    from disa.tiny.scenes import IMAGE_SIZE

    prompts = images.prompts
    if prompts is None or images.size != (IMAGE_SIZE, IMAGE_SIZE) or not _are_captions(prompts):
        return None
    pixels = [torch.from_numpy(images.pixels(i).copy()).permute(2, 0, 1) for i in range(len(images))]
    return score(torch.stack(pixels), prompts)


def _are_captions(prompts: Sequence[str]) -> bool:
    from disa.tiny.captions import parse

    try:
        for prompt in prompts:
            parse(prompt)
    except DisaError:
        return False
    return True
