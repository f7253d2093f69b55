"""How good generated digits are: the measures of `disa.study.metrics` on the features of the shipped classifier.

N generated images, 64 features. The reference is scikit-learn's digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError
from disa.study.metrics import (
    POSITIVE,
    SHARE,
    Array,
    Gaussian,
    Resampled,
    Spread,
    bootstrap,
    class_accuracy,
    frechet_distance,
    precision_recall,
    resample,
    strata_of,
)
from disa.tiny.classifier import IMAGE_SIZE, NUM_FEATURES, DigitClassifier, load_classifier
from disa.tiny.data import Split, digits

DIGIT_FEATURES = "digits-classifier"
_FEATURE_CHUNK = 256


@dataclass(frozen=True)
class Quality:
    """What `digit_quality` found. The spreads are over generated images; the reference stays as it is."""

    features: str
    frechet: Spread
    accuracy: Spread | None
    precision: float
    recall: float
    num_images: int

    def __str__(self) -> str:
        accuracy = "" if self.accuracy is None else f", class accuracy {self.accuracy}"
        return (
            f"Fréchet distance {self.frechet} on {self.features} features of {self.num_images} images"
            f"{accuracy}, precision {self.precision:.3f}, recall {self.recall:.3f}"
        )


@dataclass(frozen=True)
class Yardsticks:
    """What real digits score: `frechet`, `precision` and `recall` of one half of them against the other half.

    `frechet_std` is over the random halvings, `num_images` the size of a half, `accuracy` that of held-out digits.
    """

    frechet: float
    frechet_std: float
    precision: float
    recall: float
    accuracy: float
    num_images: int


def digit_features(images: Array) -> Tensor:
    """The digit classifier's penultimate layer, float32 [N, 64] on the CPU, of images [N, 1, 32, 32] in [-1, 1].

    Raises DisaError for other shapes, for values outside [-1, 1] (clamp them first: a viewer would) and for NaN.
    """
    images = torch.as_tensor(images).detach()
    if images.ndim != 4 or images.shape[1:] != (1, IMAGE_SIZE, IMAGE_SIZE):
        raise DisaError(f"digit images must be [N, 1, {IMAGE_SIZE}, {IMAGE_SIZE}], found {list(images.shape)}.")
    # Written so that NaN fails too. Half-precision pipelines end a little outside of the range.
    if not (images.abs() <= 1 + 1e-3).all():
        raise DisaError("digit images must be numbers in [-1, 1], found others; clamp or rescale them first.")
    chunks = [_classifier().features(chunk.float().cpu()) for chunk in images.split(_FEATURE_CHUNK)]
    return torch.cat([torch.empty(0, NUM_FEATURES), *chunks])


def digit_quality(
    images: Array, labels: Array | None = None, reference: Split = "all", num_resamples: int = 200, seed: int = 0
) -> Quality:
    """How close generated digits are to real ones, on the features of the shipped classifier.

    `images` [N, 1, 32, 32] in [-1, 1]; `labels` [N], the classes that were asked for, or None for no accuracy;
    `reference` the split of the real digits to compare with; `seed` that of the bootstrap, whose strata are the labels
    where each occurs 10 times or more. `yardsticks()` says what real digits score. The features look for what makes a
    digit: noise below 0.1 of standard deviation hardly moves them, although an eye may see it.

    Raises DisaError for wrong shapes or values and fewer than 4 images.
    """
    return measure_digits(images, labels, reference, num_resamples, seed)[0]


def measure_digits(
    images: Array, labels: Array | None = None, reference: Split = "all", num_resamples: int = 200, seed: int = 0
) -> tuple[Quality, Resampled]:
    """`digit_quality`, and its Fréchet distance on every resample: differences of several policies need no more."""
    features, wanted = digit_features(images), _labels(labels, len(images))
    strata = strata_of(wanted)
    precision, recall = precision_recall(_real_features(reference), features)
    distance = resample(
        _distance_to(reference), features.double(), strata=strata, num_resamples=num_resamples, seed=seed
    )
    accuracy = None
    if wanted is not None:
        read = _classifier().logits(features).argmax(dim=1)
        accuracy = bootstrap(class_accuracy, read, wanted, strata=strata, num_resamples=num_resamples, seed=seed)
        accuracy = accuracy.within(*SHARE)
    quality = Quality(DIGIT_FEATURES, distance.spread().within(*POSITIVE), accuracy, precision, recall, len(features))
    return quality, distance


def _distance_to(reference: Split) -> Callable[[Tensor], float]:
    gaussian = Gaussian.fit(_real_features(reference))
    return lambda chosen: frechet_distance(chosen, gaussian)


def _labels(labels: Array | None, num_images: int) -> Tensor | None:
    if labels is None:
        return None
    labels = torch.as_tensor(labels).cpu()
    if labels.shape != (num_images,):
        raise DisaError(f"labels must be one class for each of {num_images} images, found shape {list(labels.shape)}.")
    return labels


def yardsticks(num_halvings: int = 10, seed: int = 0) -> Yardsticks:
    """What is good enough: real digits against real digits, averaged over random halvings of each class.

    A generator whose samples are as good as data, in the classes' proportions, scores about this with as many images
    against as many (about 900). A Fréchet distance falls with both numbers: with 2000 images against all 1797 digits,
    about half of `frechet` is to be expected.
    """
    labels = digits("all")[1]
    features = _real_features("all")
    generator = torch.Generator().manual_seed(seed)
    halves = [_halves(features, labels, generator) for _ in range(num_halvings)]
    distances = [frechet_distance(first, second) for first, second in halves]
    precision, recall = np.mean([precision_recall(first, second) for first, second in halves], axis=0)
    held_out, held_out_labels = digits("test")
    return Yardsticks(
        frechet=float(np.mean(distances)),
        frechet_std=float(np.std(distances)),
        precision=float(precision),
        recall=float(recall),
        accuracy=class_accuracy(_classifier()(held_out), held_out_labels),
        num_images=len(labels) // 2,
    )


def _halves(features: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(labels), generator=generator)
    by_class = order[labels[order].argsort(stable=True)]
    return features[by_class[0::2]], features[by_class[1::2]]


@cache
def _classifier() -> DigitClassifier:
    return load_classifier()


@cache
def _real_features(split: Split) -> Tensor:
    return digit_features(digits(split)[0])
