"""A set of images with its features and those of its reference: what can be measured of it, and drawn again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from disa.errors import DisaError
from disa.evaluate.features import Features, OnPart, check_fits, extract
from disa.evaluate.images import Images
from disa.evaluate.reference import Reference
from disa.evaluate.spaces import INCEPTION, Space
from disa.runtime.devices import CPU
from disa.study.metrics import Gaussian, Resampled, class_accuracy, frechet_distance, resample, strata_of
from disa.values import counted, named

NUM_IMAGES_OF_FID = 50_000
FEWEST_IMAGES = 20
MOST_RESAMPLES, FEWEST_RESAMPLES, EFFORT = 200, 20, 4e12
"""A bootstrap has as many resamples as take about so many multiplications, within bounds."""


@dataclass(frozen=True)
class Subject:
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


def prepared(
    sets: Sequence[Images],
    space: Space,
    reference: Reference | None,
    device: torch.device | None,
    num_resamples: int | None,
    on_part: OnPart,
) -> list[Subject]:
    """Sets of images with their features. Raises DisaError before any work where something does not fit."""
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
        Subject(images, space, reference, found, real, num_resamples or _affordable(found.values))
        for images, found in zip(sets, features, strict=True)
    ]


def _affordable(features: Tensor) -> int:
    """How many resamples a bootstrap may have."""
    count, width = features.shape
    return int(min(MOST_RESAMPLES, max(FEWEST_RESAMPLES, EFFORT / (width**2 * (count + 20 * width)))))


def judge(images: Images) -> Any:
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
