"""How good are generated images, and how sure can we be: distances on features, class accuracy, bootstrap intervals.

N generated samples, M reference samples, D features. Everything runs in float64 on the CPU. A Fréchet distance is a
property of its features: on the digit classifier it is not an FID, and numbers from different features, or from
different N, do not compare.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError

Array = Tensor | np.ndarray
SMALLEST_STRATUM = 10
POSITIVE, SHARE = (0.0, math.inf), (0.0, 1.0)
"""Bounds of a distance, and of a share."""
_DISTANCE_CHUNK = 512


# --- distances between sets of features ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution with the mean [D] and covariance [D, D] of some samples, the latter as a factor.

    covariance = factor^T factor with factor [at most D, D], so a singular covariance needs no special care. count: of
    the samples; infinite where it is not known.
    """

    mean: Tensor
    factor: Tensor
    count: float = math.inf

    @classmethod
    def fit(cls, features: Array) -> "Gaussian":
        """Mean and unbiased covariance of features [N, D]; one sample has none, and counts once it is `merged` with
        others. Raises DisaError for other shapes and for NaN."""
        samples = _samples(features, at_least=1)
        mean = samples.mean(dim=0)
        # QR instead of X^T X: it does not square the condition number, and a rank below D stays exact.
        factor = torch.linalg.qr((samples - mean) / max(len(samples) - 1, 1) ** 0.5, mode="r").R
        return cls(mean, factor, len(samples))

    @classmethod
    def of(cls, mean: Array, covariance: Array, count: float = math.inf) -> "Gaussian":
        """Of a mean [D] and a covariance [D, D], as files of statistics have them. Raises DisaError for other shapes,
        for NaN, and for a matrix that is no covariance."""
        center, spread = (torch.as_tensor(part).detach().cpu().double() for part in (mean, covariance))
        if center.ndim != 1 or not len(center) or spread.shape != (len(center), len(center)):
            found = f"{list(center.shape)} and {list(spread.shape)}"
            raise DisaError(f"statistics are a mean [D] and a covariance [D, D], found the shapes {found}.")
        if not (center.isfinite().all() and spread.isfinite().all()):
            raise DisaError("a mean and a covariance must be finite numbers, found NaN or infinity.")
        values, vectors = torch.linalg.eigh((spread + spread.T) / 2)
        largest = values.abs().max()
        # float32 files are off by some 1e-7 of the largest value, and rounding may make an eigenvalue negative.
        if (spread - spread.T).abs().max() > 1e-4 * largest or values.min() < -1e-4 * largest:
            raise DisaError("a covariance is symmetric and has no negative eigenvalues, found another matrix.")
        # Below this an eigenvalue is rounding. Its root, which the distance takes, would be far above.
        values = torch.where(values > 4 * torch.finfo(values.dtype).eps * largest, values, 0.0)
        return cls(center, values.sqrt()[:, None] * vectors.T, count)

    @classmethod
    def merged(cls, parts: "Sequence[Gaussian]") -> "Gaussian":
        """Of the samples of all parts together, in any order, as if they had been fitted at once (Chan, Golub and
        LeVeque 1979). Raises DisaError where there is no part, features differ, or a count is not known."""
        if not parts or len({part.mean.shape for part in parts}) != 1:
            raise DisaError("statistics are merged of one part or more with equal features each, found others.")
        if any(math.isinf(part.count) for part in parts):
            raise DisaError("statistics can be merged only where each part tells how many samples it is of.")
        count = sum(part.count for part in parts)
        mean = torch.stack([part.mean * (part.count / count) for part in parts]).sum(dim=0)
        rows = mean.new_zeros(0, len(mean))
        for part in parts:
            apart = (part.count**0.5 * (part.mean - mean))[None]
            rows = torch.cat([rows, (part.count - 1) ** 0.5 * part.factor, apart])
            if len(rows) > 4 * len(mean):
                rows = torch.linalg.qr(rows, mode="r").R
        return cls(mean, torch.linalg.qr(rows, mode="r").R / max(count - 1, 1) ** 0.5, count)

    @property
    def covariance(self) -> Tensor:
        """[D, D]."""
        return self.factor.T @ self.factor


def frechet_distance(a: Array | Gaussian, b: Array | Gaussian) -> float:
    """The squared Fréchet (2-Wasserstein) distance of the Gaussians fitted to features [N, D] and [M, D].

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson and Landau 1982; on images Heusel et al. 2017, eq. 6).
    With A = F^T F and B = G^T G the trace of the root is the sum of the singular values of F G^T: no matrix root, no
    complex numbers, and exact for N < D. Pass a fitted `Gaussian` for a side that is used many times.

    The value for N samples is above the value of their distribution by about a constant / N: compare at equal N.
    Raises DisaError where the shapes do not fit, there are fewer than 2 samples, or values are not finite.
    """
    a, b = (side if isinstance(side, Gaussian) else Gaussian.fit(side) for side in (a, b))
    if min(a.count, b.count) < 2:
        raise DisaError("a Fréchet distance needs at least 2 samples on each side, found 1.")
    if a.mean.shape != b.mean.shape:
        raise DisaError(f"a Fréchet distance needs equal features, found {len(a.mean)} and {len(b.mean)} per sample.")
    means = (a.mean - b.mean).square().sum()
    covariances = a.factor.square().sum() + b.factor.square().sum()
    overlap = torch.linalg.svdvals(a.factor @ b.factor.T).sum()
    return max((means + covariances - 2 * overlap).item(), 0.0)


def precision_recall(real: Array, generated: Array, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall of features real [M, D] and generated [N, D] (Kynkäänniemi et al. 2019, eq. 1-2).

    Each set's manifold is the union of balls around its samples that reach their k-th nearest neighbour. Precision is
    the share of generated samples on the real manifold (quality), recall the share of real samples on the generated
    one (variety). Both depend on N, M and k. Raises DisaError where the shapes do not fit or a set has only k samples.
    """
    real, generated = _pair(real, generated, k)
    return _share_inside(generated, real, _radii(real, k)), _share_inside(real, generated, _radii(generated, k))


def density_coverage(real: Array, generated: Array, k: int = 5) -> tuple[float, float]:
    """Density and coverage of features real [M, D] and generated [N, D] (Naeem et al. 2020, eq. 4 and 5).

    A real sample's ball reaches its k-th nearest real neighbour. Density is the mean number of real balls that a
    generated sample lies in, over k; it may exceed 1. Coverage is the share of real balls with a generated sample
    inside. Unlike precision and recall they hardly change for an outlier. Raises DisaError as `precision_recall` does.
    """
    real, generated = _pair(real, generated, k)
    radii, balls, reached = _radii(real, k), 0, torch.zeros(len(real), dtype=torch.bool)
    for chunk in generated.split(_DISTANCE_CHUNK):
        inside = torch.cdist(chunk, real) <= radii
        balls += int(inside.sum())
        reached |= inside.any(dim=0)
    return balls / (k * len(generated)), reached.double().mean().item()


def _pair(real: Array, generated: Array, k: int) -> tuple[Tensor, Tensor]:
    if k < 1:
        raise DisaError(f"neighbours are counted from 1 on, found k = {k}.")
    real, generated = _samples(real, at_least=k + 1), _samples(generated, at_least=k + 1)
    if real.shape[1] != generated.shape[1]:
        raise DisaError(
            f"real samples have {real.shape[1]} features, generated ones {generated.shape[1]}: must be equal."
        )
    return real, generated


def _radii(samples: Tensor, k: int) -> Tensor:
    """[N] how far the k-th nearest neighbour within the set is. The nearest of all is the sample itself."""
    return torch.cat([torch.cdist(c, samples).kthvalue(k + 1).values for c in samples.split(_DISTANCE_CHUNK)])


def _share_inside(samples: Tensor, manifold: Tensor, radii: Tensor) -> float:
    inside = [(torch.cdist(c, manifold) <= radii).any(dim=1) for c in samples.split(_DISTANCE_CHUNK)]
    return torch.cat(inside).double().mean().item()


def class_accuracy(predictions: Array, labels: Array) -> float:
    """The share of correct classes, in [0, 1], of predicted classes [N] or logits [N, classes] against labels [N]."""
    predictions, labels = torch.as_tensor(predictions), torch.as_tensor(labels)
    if predictions.ndim == 2:
        predictions = predictions.argmax(dim=1)
    if labels.ndim != 1 or predictions.shape != labels.shape or len(labels) == 0:
        found = f"{list(predictions.shape)} and {list(labels.shape)}"
        raise DisaError(
            f"class_accuracy() needs one prediction for each label of a non-empty list, found shapes {found}."
        )
    return (predictions == labels).double().mean().item()


def _samples(features: Array, at_least: int) -> Tensor:
    samples = torch.as_tensor(features).detach().cpu().double()
    if samples.ndim != 2 or len(samples) < at_least or samples.shape[1] == 0:
        raise DisaError(f"features must be [samples, D] with at least {at_least} samples, found {list(samples.shape)}.")
    if not samples.isfinite().all():
        raise DisaError("features must be finite numbers, found NaN or infinity.")
    return samples


# --- how sure: the bootstrap --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A statistic and its bootstrap: `low` to `high` is where its expected value at this N lies (95 % by default).

    `std` is its standard deviation, known with `freedom` degrees of freedom. `bias` estimates how far the statistic at
    N samples lies above that of the whole distribution on average, so `value - bias` is the corrected estimate; it is 0
    for a mean.
    """

    value: float
    low: float
    high: float
    std: float
    bias: float = 0.0
    freedom: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    def within(self, least: float, most: float) -> "Spread":
        """The same, of a statistic that has no values beyond these bounds."""
        return replace(self, low=max(self.low, least), high=min(self.high, most))


@dataclass(frozen=True)
class Resampled:
    """A statistic of some samples, and of the same samples drawn again: resamples [R].

    The difference of two that were drawn again alike is that of two policies on the same seeds.
    """

    value: float
    resamples: np.ndarray
    num_samples: float = math.inf
    num_strata: int = 1

    def __sub__(self, other: "Resampled") -> "Resampled":
        return replace(self, value=self.value - other.value, resamples=self.resamples - other.resamples)

    def spread(self, level: float = 0.95) -> Spread:
        """The t-interval that `bootstrap` explains. Raises DisaError for a level outside (0, 1)."""
        if not 0 < level < 1:
            raise DisaError(f"the level of an interval is in (0, 1), found {level}.")
        free = max(self.num_samples - self.num_strata, 1)
        # Each variance is known to about 2 / its degrees of freedom, relatively; so these add like resistors.
        freedom = 1 / (1 / free + 1 / (len(self.resamples) - 1))
        # Samples vary around their own mean by (N - 1) / N of what they vary around the true one, in each stratum.
        missing = 1.0 if math.isinf(free) else (self.num_samples / free) ** 0.5
        std = missing * float(self.resamples.std(ddof=1))
        half = student_quantile(level, freedom) * std
        bias = float(self.resamples.mean()) - self.value
        return Spread(self.value, self.value - half, self.value + half, std, bias, freedom)


def student_quantile(level: float, freedom: float) -> float:
    """What a t-distributed number stays below, but for its sign, with probability `level`; normal for infinity."""
    from scipy.special import stdtrit  # heavy

    return float(stdtrit(freedom, (1 + level) / 2))


def resample(
    statistic: Callable[..., float],
    *arrays: Array,
    strata: Array | None = None,
    num_resamples: int = 200,
    seed: int = 0,
) -> Resampled:
    """What `bootstrap` makes a spread of. Equal N, strata, number and seed draw the same samples again."""
    tensors = [torch.as_tensor(array) for array in arrays]
    num_samples = _equal_length([*tensors, *([] if strata is None else [torch.as_tensor(strata)])])
    if num_resamples < 20:
        raise DisaError(f"a bootstrap needs at least 20 resamples, found {num_resamples}.")
    members = _members(num_samples, strata)
    resampled = [
        float(statistic(*(tensor[chosen.to(tensor.device)] for tensor in tensors)))
        for chosen in _balanced_resamples(members, num_resamples, seed)
    ]
    return Resampled(float(statistic(*tensors)), np.array(resampled), num_samples, len(members))


def bootstrap(
    statistic: Callable[..., float],
    *arrays: Array,
    strata: Array | None = None,
    num_resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Spread:
    """The spread of `statistic(*arrays)` when the samples (first dimension, N in every array) are drawn again.

    Arrays are resampled together: index i means the same image in all of them. What must stay fixed, such as the
    reference of a Fréchet distance, is bound inside `statistic`. `strata` [N], usually the labels that were asked for,
    keeps the number of samples per label: labels that a request fixed do not vary when its seeds do, and without
    strata their chance fluctuations, the largest there are in class-conditional features, widen the spread severalfold.

    The interval is Student's t-interval around the value with the standard deviation of the resamples, times
    sqrt(N / (N - K)) for K strata, which a bootstrap is too narrow by (Efron and Tibshirani 1993, ch. 12 and 5.4).
    `benchmarks/bootstrap_check.py` measures that it covers what it says, where the percentile interval of 200 resamples
    does so in 89 to 94 of 100 cases. It is about the expected value of the statistic *at this N*, the number that
    FID-like protocols report and compare: a resample has only about 63 % distinct samples, so a Fréchet distance, which
    finite N already lifts, is lifted a second time in every resample, and only their spread can be used.

    Resamples are balanced (Davison, Hinkley and Schechtman 1986): each sample is used equally often over all of them,
    which makes the bias exactly 0 for a mean and leaves less noise in it for everything else.

    Not for statistics of nearest neighbours (precision and recall): a resample repeats samples, at distance 0.
    Raises DisaError for empty arrays or different N, a stratum of fewer than 10 samples (it would hide its own spread),
    fewer than 20 resamples, or a level outside (0, 1).
    """
    return resample(statistic, *arrays, strata=strata, num_resamples=num_resamples, seed=seed).spread(level)


def bootstrap_difference(
    statistic: Callable[..., float],
    a: Array | Sequence[Array],
    b: Array | Sequence[Array],
    strata: Array | None = None,
    num_resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Spread:
    """The spread of `statistic(*a) - statistic(*b)` for two policies on the same seeds: is the difference real?

    `a` and `b` are an array or a sequence of arrays, all with N samples, where index i is the same seed in both. Both
    are resampled with the same indices: what the seeds have in common cancels, so the interval is narrower than that of
    two separate bootstraps, and so does most of what finite N adds to a Fréchet distance. There is no sign of a
    difference when `0 in spread`; this says only that N samples do not show one, `low` and `high` how large it may be.

    Raises DisaError as `bootstrap` does.
    """
    first, second = _as_list(a), _as_list(b)
    _equal_length([torch.as_tensor(array) for array in (*first, *second)])

    def resampled(arrays: Sequence[Array]) -> Resampled:
        return resample(statistic, *arrays, strata=strata, num_resamples=num_resamples, seed=seed)

    return (resampled(first) - resampled(second)).spread(level)


def _as_list(arrays: Array | Sequence[Array]) -> list[Array]:
    return [arrays] if isinstance(arrays, (Tensor, np.ndarray)) else list(arrays)


def _equal_length(tensors: list[Tensor]) -> int:
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(lengths) != 1 or 0 in lengths:
        shapes = [list(tensor.shape) for tensor in tensors]
        raise DisaError(f"a bootstrap needs arrays with the same number of samples, found the shapes {shapes}.")
    return lengths.pop()


def _members(num_samples: int, strata: Array | None) -> list[Tensor]:
    """The indices of each stratum."""
    if strata is None:
        return [torch.arange(num_samples)]
    labels = torch.as_tensor(strata).cpu()
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    smallest = min(len(indices) for indices in members)
    if smallest < SMALLEST_STRATUM:
        raise DisaError(f"each stratum of a bootstrap needs {SMALLEST_STRATUM} samples, found one with {smallest}.")
    return members


def strata_of(labels: Array | None) -> Tensor | None:
    """Labels as strata, unless one is too rare to be a stratum: a spread that is too wide is the honest one then."""
    if labels is None or len(labels) == 0:
        return None
    found = torch.as_tensor(labels)
    return found if found.unique(return_counts=True)[1].min() >= SMALLEST_STRATUM else None


def _balanced_resamples(members: list[Tensor], num_resamples: int, seed: int) -> Tensor:
    """Indices [resamples, N]: each row has every stratum's size, each sample occurs `num_resamples` times in all."""
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(indices) * num_resamples, generator=generator) for indices in members]
    resamples = [indices[order % len(indices)] for indices, order in zip(members, orders, strict=True)]
    return torch.cat([indices.reshape(num_resamples, -1) for indices in resamples], dim=1)
