"""How sure several differences are at once, and what so many images can show.

A family is everything that is claimed together, such as the differences of five policies to one original. Where each of
m differences that are not there is believed with probability 0.05, one of them is with almost 0.05 m. Holm's method
keeps the probability of any false claim in the family at 0.05.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from disa.errors import DisaError
from disa.study.metrics import Spread, student_quantile

LEVEL, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Corrected:
    """A difference as one of a family. `low` to `high` excludes 0 if, and only if, it is `shown`.

    p: probability that chance alone is so far from 0, both ways; corrected_p: Holm's, which is compared with the level.
    """

    low: float
    high: float
    p: float
    corrected_p: float
    shown: bool


def p_value(difference: Spread) -> float:
    """The two-sided p of a t-test with the bootstrap's standard deviation.

    Not the share of resamples beyond 0: of 200 resamples that is no less than 1/200, which no correction for more than
    ten comparisons would let through. `benchmarks/bootstrap_check.py` has how well the t-distribution fits.
    """
    from scipy.special import stdtr  # heavy

    if difference.std == 0:
        return 1.0 if difference.value == 0 else 0.0
    return 2 * float(stdtr(difference.freedom, -abs(difference.value) / difference.std))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of a family, corrected: those up to a level are shown, with a probability of any false claim of at
    most that level, however the differences depend on each other (Holm 1979)."""
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for rank, i in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (count - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def corrected(differences: Sequence[Spread], level: float = LEVEL) -> list[Corrected]:
    """Holm's decisions about a family of differences, and an interval for each that agrees.

    An interval is Bonferroni's, at level / m. Where that holds 0 and Holm, whose later steps have fewer claims left to
    doubt, shows a difference nevertheless, the end near 0 is that of his step. If no difference is there, or all are
    large, the probability that any interval misses is at most the level; at worst, where some are there and others are
    not, it is about twice that. Bounded intervals that agree with Holm's decisions cannot do better: his last step
    spends the whole level on one claim, and theirs have to go without an end (Strassburger and Bretz 2008).

    Raises DisaError for a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise DisaError(f"the level of a family of claims is in (0, 1), found {level}.")
    p_values, count = [p_value(difference) for difference in differences], len(differences)
    by_holm = holm(p_values)
    order = sorted(range(count), key=lambda i: p_values[i])
    found: dict[int, Corrected] = {}
    for rank, i in enumerate(order):
        shown = by_holm[i] <= level
        low, high = _interval(differences[i], level / count)
        if shown and low <= 0 <= high:
            step = _interval(differences[i], level / (count - rank))
            low, high = (step[0], high) if differences[i].value > 0 else (low, step[1])
        found[i] = Corrected(low, high, p_values[i], by_holm[i], shown)
    return [found[i] for i in range(count)]


def _interval(difference: Spread, level: float) -> tuple[float, float]:
    half = student_quantile(1 - level, difference.freedom) * difference.std
    return difference.value - half, difference.value + half


# -- power ---------------------------------------------------------------------------------------------------------


def smallest_seen(std: float, comparisons: int = 1, level: float = LEVEL, power: float = POWER) -> float:
    """The difference that is shown with probability `power`, if its estimate has this standard deviation.

    comparisons: of the family; the level of one of them is level / comparisons, Holm's first step. Raises DisaError for
    a level or power outside (0, 1) and less than one comparison.
    """
    if not (0 < level < 1 and 0 < power < 1 and comparisons >= 1):
        raise DisaError(
            "expected a level and a power in (0, 1) and a comparison or more, "
            f"found {level}, {power} and {comparisons}."
        )
    normal = NormalDist()
    return (normal.inv_cdf(1 - level / comparisons / 2) + normal.inv_cdf(power)) * std


def images_needed(
    wanted: float, std: float, num_images: int, comparisons: int = 1, level: float = LEVEL, power: float = POWER
) -> int:
    """How many images show a difference of `wanted` with probability `power`, if `num_images` give its estimate this
    standard deviation, which falls with their square root. Raises DisaError as `smallest_seen`, and for wanted <= 0."""
    if not wanted > 0:
        raise DisaError(f"a difference to be shown is above 0, found {wanted}.")
    return math.ceil(num_images * (smallest_seen(std, comparisons, level, power) / wanted) ** 2)


def what_can_be_shown(differences: Sequence[Spread], num_images: int) -> str:
    """A sentence on the least certain of a family of differences: what so many images can show, and what half of it
    takes. Empty where nothing differs at all."""
    std = max((difference.std for difference in differences), default=0.0)
    if std == 0:
        return ""
    count = len(differences)
    seen = smallest_seen(std, count)
    half = float(f"{seen / 2:.1g}")
    images = float(f"{images_needed(half, std, num_images, count):.2g}")
    return f"{num_images} images can show differences of {seen:.2g} or more; {half:g} needs about {images:.0f}."
