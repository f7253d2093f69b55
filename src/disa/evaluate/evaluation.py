"""How good a set of images is beside a reference.

N images, M reference images, D features. What can be had depends on what is given: without a reference, what is read in
the images; with statistics alone, the Fréchet distance too; with reference images, everything.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from disa.evaluate.features import OnPart
from disa.evaluate.images import Images
from disa.evaluate.reference import Reference
from disa.evaluate.spaces import Space
from disa.evaluate.subject import Subject, judge, prepared
from disa.study.metrics import POSITIVE, SHARE, Spread, density_coverage, precision_recall
from disa.study.scores import Subsets, extrapolated, inception_score, kernel_distance

MOST_NEIGHBOURS = 10_000


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
    (subject,) = prepared([images], space, reference, device, num_resamples, on_part)
    values, real = subject.features.values, subject.real
    judged, categories = _judged(images)
    accuracy = subject.accuracy()
    return Evaluation(
        images=images.place,
        num_images=len(images),
        features=space.name,
        num_features=values.shape[1],
        reference=reference.place if reference else None,
        frechet=_distance(subject),
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


def _distance(subject: Subject) -> Distance | None:
    found, normal = subject.distances(), subject.normal
    if found is None or normal is None:
        return None
    limit = extrapolated(subject.features.values, normal, subject.strata)
    count = None if normal.count == float("inf") else int(normal.count)
    return Distance(subject.name, found.spread().within(*POSITIVE), limit, count)


def _neighbours(real: Tensor, generated: Tensor) -> Neighbours:
    real, generated = _some(real, seed=0), _some(generated, seed=1)
    shares = (*precision_recall(real, generated), *density_coverage(real, generated))
    return Neighbours(*shares, num_images=len(generated), num_reference=len(real))


def _some(features: Tensor, seed: int) -> Tensor:
    """As many as can be compared with each other."""
    if len(features) <= MOST_NEIGHBOURS:
        return features
    return features[torch.randperm(len(features), generator=torch.Generator().manual_seed(seed))[:MOST_NEIGHBOURS]]


def _judged(images: Images) -> tuple[Spread | None, dict[str, Spread] | None]:
    report = judge(images)
    if report is None:
        return None, None
    return report.overall, {str(name): share for name, share in report.categories.items()}
