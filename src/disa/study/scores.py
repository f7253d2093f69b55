"""What is reported beside a Fréchet distance: what it would be for infinitely many images, the kernel distance, and the
Inception score. N generated samples, M reference samples, D features, K classes; float64 on the CPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError
from disa.study.metrics import Array, Gaussian, frechet_distance

FEWEST_TO_EXTRAPOLATE = 20
_SIZES = 15
_SEED = 2020


@dataclass(frozen=True)
class Subsets:
    """The mean of a statistic over subsets of the samples, and its standard deviation over them: not that of the mean,
    because subsets share samples."""

    value: float
    std: float
    subsets: int
    size: int

    def __str__(self) -> str:
        return f"{self.value:.4g} (std {self.std:.2g} of {self.subsets} subsets)"


def extrapolated(features: Array, reference: Gaussian, strata: Array | None = None, seed: int = 0) -> float:
    """The Fréchet distance of infinitely many samples like features [N, D] to the reference (Chong and Forsyth 2020).

    The distance of N samples lies above that by about a constant / N. So distances of 15 random subsets, from N / 10 or
    4 D samples on, are fitted by a line in 1 / N, whose value at 0 is returned. strata [N]: labels that a request
    fixed, which every subset then has in the same proportions; without them, chance in labels would be extrapolated
    too. The result may be below 0 where distributions are alike, and is poor for fewer than about 10 D samples. Raises
    DisaError for fewer than 20 samples.
    """
    samples = torch.as_tensor(features)
    count, width = samples.shape
    if count < FEWEST_TO_EXTRAPOLATE:
        raise DisaError(f"to extrapolate takes {FEWEST_TO_EXTRAPOLATE} samples or more, found {count}.")
    random = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count) if strata is None else torch.as_tensor(strata)
    sizes = torch.linspace(max(count / 10, min(4 * width, count / 2)), count, _SIZES).round().long().tolist()
    distances = [frechet_distance(samples[_spread_order(labels, random)[:size]], reference) for size in sizes]
    return float(np.polynomial.Polynomial.fit([1 / size for size in sizes], distances, 1)(0.0))


def _spread_order(labels: Tensor, random: torch.Generator) -> Tensor:
    """A random order of samples, every beginning of which has the labels in about the proportions of all."""
    places = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        start = torch.rand(1, generator=random, dtype=torch.float64)
        places[members] = (torch.randperm(len(members), generator=random) + start) / len(members)
    return places.argsort()


def kernel_distance(
    generated: Array, real: Array, num_subsets: int = 100, size: int = 1000, seed: int = _SEED
) -> Subsets:
    """The squared maximum mean discrepancy under the kernel (x . y / D + 1)^3, without bias (Binkowski et al. 2018).

    generated [N, D], real [M, D]. On Inception's features it is the KID; subsets, their number and seed are those of
    torch-fidelity, so that numbers agree. Subsets have as many samples as the smaller side where that has fewer. Values
    slightly below 0 are normal where the distributions are alike. Raises DisaError for fewer than 2 samples and
    different features.
    """
    x, y = (torch.as_tensor(side).detach().cpu().numpy().astype(np.float64) for side in (generated, real))
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise DisaError(
            "a kernel distance needs 2 samples or more with equal features on each side, "
            f"found shapes {x.shape} and {y.shape}."
        )
    size = min(size, len(x), len(y))
    random = np.random.RandomState(seed)
    found = []
    for _ in range(1 if size == len(x) == len(y) else num_subsets):
        chosen = (side[random.choice(len(side), size, replace=False)] for side in (x, y))
        found.append(_discrepancy(*chosen))
    return Subsets(float(np.mean(found)), float(np.std(found)), len(found), size)


def _discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased estimate for equally many samples (Gretton et al. 2012, eq. 3)."""
    count, width = x.shape

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / width + 1) ** 3

    within = sum(pairs.sum() - np.trace(pairs) for pairs in (kernel(x, x), kernel(y, y)))
    return within / (count * (count - 1)) - 2 * kernel(x, y).mean()


def inception_score(logits: Array, splits: int = 10, seed: int = _SEED) -> Subsets:
    """exp(mean KL(p(class | image) || p(class))) of class logits [N, K], the mean over splits (Salimans et al. 2016).

    From 1 (all alike) to K (sure, and every class equally often). Only on Inception's own logits is it what papers call
    by this name; splits and their seed are those of torch-fidelity. Raises DisaError for fewer samples than splits.
    """
    found = torch.as_tensor(logits).detach().cpu().double()
    if found.ndim != 2 or len(found) < splits:
        raise DisaError(f"this score needs logits [N, K] of {splits} samples or more, found {list(found.shape)}.")
    order = torch.from_numpy(np.random.RandomState(seed).permutation(len(found)))
    logs = found[order].log_softmax(dim=1)
    bounds = [i * len(found) // splits for i in range(splits + 1)]
    scores = [_score(logs[start:stop]) for start, stop in pairwise(bounds)]
    return Subsets(float(np.mean(scores)), float(np.std(scores)), splits, len(found) // splits)


def _score(logs: Tensor) -> float:
    overall = logs.logsumexp(dim=0, keepdim=True) - math.log(len(logs))
    return (logs.exp() * (logs - overall)).sum(dim=1).mean().exp().item()
