"""How far images are from those of another setting, where no reference is needed but that setting's own images.

The energy distance of two distributions, 2 E|X - Y| - E|X - X'| - E|Y - Y'|, is 0 where they are equal and above 0
everywhere else (Székely and Rizzo 2013). Here X are features of the images of one setting, Y of another, and both are
compared within each label or prompt: a model that draws good images of another prompt is not alike. Images of the same
seed are never compared with each other, which keeps the estimate free of bias. That both settings draw the same seeds
makes it sure with few images: what their noise has in common cancels.

Shapes: N images, D features.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from disa.errors import DisaError
from disa.study.metrics import Array, Spread, student_quantile

FEWEST_GROUPS = 20
"""Labels or prompts that are many enough for chance to lie in them, and not in the images of each."""
HIDDEN = 1e-12
"""The share of two vectors' squares below which the square of their distance is but rounding, in float64."""


def energy_distance(
    drawn: Array, original: Array, groups: Sequence[Hashable] | None = None, level: float = 0.95
) -> Spread:
    """The energy distance of features [N, D] to others of the same N seeds, with a t-interval.

    groups: [N] the labels or prompts, within which images are compared; None for one group. Images that are alone in
    their group count nothing. The mean is over images. Values below 0 are chance. Raises DisaError for unequal shapes
    and where no two images are of one group.
    """
    x, y = (np.asarray(side, dtype=np.float64) for side in (drawn, original))
    if x.ndim != 2 or x.shape != y.shape:
        raise DisaError(f"a distance needs features of the same images on each side, found {x.shape} and {y.shape}.")
    pairs = [_excess(x[places], y[places]) for places in _places(groups, len(x)) if len(places) > 1]
    if not pairs:
        raise DisaError("a distance needs two images of a label or prompt, or more.")
    value, std, freedom = _mean(pairs)
    half = student_quantile(level, freedom) * std if std else 0.0
    return Spread(value, value - half, value + half, std, freedom=freedom)


def spread_within(features: Array, groups: Sequence[Hashable] | None = None) -> float:
    """The mean distance of two images of a group, the mean over images. features: [N, D]. Raises DisaError where no two
    are of one group."""
    x = np.asarray(features, dtype=np.float64)
    parts = [x[places] for places in _places(groups, len(x)) if len(places) > 1]
    if not parts:
        raise DisaError("a distance needs two images of a label or prompt, or more.")
    sizes = [len(part) for part in parts]
    means = [_distances(part, part).sum() / (size * (size - 1)) for part, size in zip(parts, sizes, strict=True)]
    return float(np.average(means, weights=sizes))


def halves(original: Array, groups: Sequence[Hashable] | None = None) -> Spread:
    """The distance between two halves of one setting's own images [N, D], which have no seed in common: what chance
    alone makes of so many. Raises DisaError as `energy_distance`."""
    first, second = list[int](), list[int]()
    for places in _places(groups, len(original)):
        half = len(places) // 2
        first += places[:half]
        second += places[half : 2 * half]
    own = None if groups is None else [groups[place] for place in first]
    features = np.asarray(original)
    return energy_distance(features[first], features[second], own)


def _places(groups: Sequence[Hashable] | None, count: int) -> list[list[int]]:
    """Which images are of each group; None for one of all."""
    members: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups if groups is not None else [0] * count):
        members.setdefault(group, []).append(place)
    return list(members.values())


def _excess(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[n, n] of every two images of a group, what their distances across settings have more than those within."""
    across = _distances(x, y)
    found = across + across.T - _distances(x, x) - _distances(y, y)
    np.fill_diagonal(found, 0.0)
    return found


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """[len(a), len(b)], by a product of matrices: six times as fast as one by one. What rounding hides is 0."""
    squares = (a * a).sum(axis=1)[:, None] + (b * b).sum(axis=1)
    apart = squares - 2 * a @ b.T
    return np.sqrt(np.where(apart > HIDDEN * squares, apart, 0.0))


def _mean(pairs: Sequence[np.ndarray]) -> tuple[float, float, float]:
    """The mean over the images of all groups, its standard deviation, and the degrees of freedom of that.

    Of many groups the spread is that of their values. Of few it is that of images within each: of a mean of pairs, what
    an image has in common with all others counts four times, and what a pair has of its own twice (Hoeffding 1948).
    """
    sizes = np.array([len(pair) for pair in pairs], dtype=float)
    parts = [pair.sum(axis=1) / (len(pair) - 1) for pair in pairs]
    values, shares = np.array([part.mean() for part in parts]), sizes / sizes.sum()
    value = float(shares @ values)
    if len(pairs) >= FEWEST_GROUPS:
        count = len(pairs)
        variance = float((shares**2 * (values - value) ** 2).sum()) * count / (count - 1)
        return value, math.sqrt(variance), count - 1
    within = np.array([_variance(pair, part) for pair, part in zip(pairs, parts, strict=True)])
    return value, math.sqrt(float(shares**2 @ within)), max(float(sizes.sum()) - len(pairs), 1.0)


def _variance(pair: np.ndarray, part: np.ndarray) -> float:
    """Of the mean of all pairs [n, n] of a group, whose means over each image are part [n]."""
    count = len(pair)
    own = float(pair[~np.eye(count, dtype=bool)].var())
    common = max(0.0, float(part.var(ddof=1)) - own / (count - 1))
    return 4 * common / count + 2 * own / (count * (count - 1))
