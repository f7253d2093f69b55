"""Statistics that merge, and the numbers beside a Fréchet distance: closed forms, and the formulas of others."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import Tensor

from disa.errors import DisaError
from disa.study import metrics
from disa.study.metrics import Gaussian, density_coverage, frechet_distance, strata_of
from disa.study.scores import extrapolated, inception_score, kernel_distance


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.mean(dim=0), torch.cov(features.T)


# --- a mean and a covariance, from files and from parts ----------------------------------------------------------


def by_scipy(a: Tensor, b: Tensor) -> float:
    """The formula as FID's first code has it."""
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    root = complex(np.asarray(sqrtm((cov_a @ cov_b).numpy())).trace()).real
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root)


def by_eigenvalues(a: Tensor, b: Tensor) -> float:
    """The formula as torch-fidelity has it."""
    (mean_a, cov_a), (mean_b, cov_b) = moments(a), moments(b)
    roots = torch.linalg.eigvals(cov_a @ cov_b).sqrt().real
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * roots.sum())


@pytest.mark.parametrize("spread", [0, -3, -6], ids=lambda spread: f"deviations from 1 to 1e{spread}")
def test_statistics_give_the_distance_of_others(spread: int) -> None:
    scales = torch.logspace(0, spread, 48, dtype=torch.float64)
    turns = [torch.linalg.qr(normal(48, 48, seed=seed)).Q for seed in (1, 2)]
    a, b = normal(400, 48, seed=3) * scales @ turns[0], normal(500, 48, seed=4) * scales @ turns[1] + 0.1
    found = frechet_distance(Gaussian.of(*moments(a)), Gaussian.of(*moments(b)))
    assert found == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert found == pytest.approx(by_scipy(a, b), rel=1e-6)
    assert found == pytest.approx(by_eigenvalues(a, b), rel=1e-6)


def test_statistics_of_fewer_samples_than_features_give_the_exact_distance() -> None:
    a, b = normal(20, 64, seed=1), normal(30, 64, seed=2) @ normal(64, 64, seed=3)
    found = frechet_distance(Gaussian.of(*moments(a)), Gaussian.of(*moments(b)))
    assert found == pytest.approx(frechet_distance(a, b), rel=1e-9)
    assert found == pytest.approx(by_eigenvalues(a, b), rel=1e-6)


def test_nearly_singular_covariances_that_commute_have_a_closed_form() -> None:
    turn = torch.linalg.qr(normal(40, 40)).Q
    a, b = torch.logspace(0, -13, 40, dtype=torch.float64), torch.logspace(-1, -12, 40, dtype=torch.float64)
    sides = [Gaussian.of(torch.zeros(40), turn * values @ turn.T) for values in (a, b)]
    assert frechet_distance(*sides) == pytest.approx((a.sqrt() - b.sqrt()).square().sum().item(), rel=1e-6)


def test_parts_merge_in_any_order_into_what_is_fitted_at_once() -> None:
    features, other = normal(101, 12, seed=1) @ normal(12, 12, seed=2) + 1000, normal(60, 12, seed=3) + 1000
    whole = Gaussian.fit(features)
    parts = [Gaussian.fit(part) for part in features.split([1, 3, 40, 57])]
    for order in permutations(parts):
        merged = Gaussian.merged(order)
        assert merged.count == 101
        assert torch.allclose(merged.mean, whole.mean, rtol=1e-12)
        assert torch.allclose(merged.covariance, whole.covariance, rtol=1e-9)
        assert frechet_distance(merged, other) == pytest.approx(frechet_distance(features, other), rel=1e-9)
    nested = Gaussian.merged([Gaussian.merged(parts[:2]), Gaussian.merged(parts[2:])])
    assert torch.allclose(nested.covariance, whole.covariance, rtol=1e-9)


def test_many_parts_merge_as_well() -> None:
    features = normal(400, 6)
    merged = Gaussian.merged([Gaussian.fit(part) for part in features.split(5)])
    assert torch.allclose(merged.covariance, torch.cov(features.T), rtol=1e-9)


@pytest.mark.parametrize(
    ("mean", "covariance"),
    [
        (torch.zeros(3), torch.eye(2)),
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        (torch.zeros(2), torch.diag(torch.tensor([1.0, -0.5]))),
        (torch.tensor([0.0, torch.nan]), torch.eye(2)),
    ],
    ids=["sizes", "asymmetric", "negative", "NaN"],
)
def test_what_is_no_covariance_is_refused(mean: Tensor, covariance: Tensor) -> None:
    with pytest.raises(DisaError):
        Gaussian.of(mean, covariance)


def test_parts_that_do_not_fit_are_not_merged() -> None:
    for parts in (
        [],
        [Gaussian.fit(normal(5, 2)), Gaussian.fit(normal(5, 3))],
        [Gaussian.of(torch.zeros(2), torch.eye(2))],
    ):
        with pytest.raises(DisaError):
            Gaussian.merged(parts)


# --- infinitely many samples -------------------------------------------------------------------------------------


def test_extrapolation_takes_away_what_few_samples_add() -> None:
    reference = Gaussian.of(torch.zeros(8), torch.eye(8))
    true = 8 * 0.2**2  # of deviations 1.2 and 1
    few = [normal(400, 8, seed=seed) * 1.2 for seed in range(12)]
    raw = np.mean([frechet_distance(features, reference) for features in few])
    found = np.mean([extrapolated(features, reference) for features in few])
    assert raw - true > 0.03
    assert abs(found - true) < (raw - true) / 3


def test_extrapolation_keeps_the_labels_that_a_request_fixed() -> None:
    """Chance in labels moves a mixture of far classes much more than chance within them does."""
    labels = torch.arange(10).repeat_interleave(40)
    centers = 5 * normal(10, 4, seed=1)
    exact = Gaussian.of(centers.mean(0), torch.eye(4) + torch.cov(centers.T, correction=0))
    found = [extrapolated(centers[labels] + normal(400, 4, seed=seed), exact, labels) for seed in range(8)]
    assert abs(np.mean(found)) < 0.1


# --- kernel distance, Inception score ----------------------------------------------------------------------------


def test_the_kernel_distance_is_without_bias() -> None:
    x, y = normal(30, 2, seed=1), normal(30, 2, seed=2)

    def kernel(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 2 + 1) ** 3

    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(30) for j in range(30) if i != j) / (30 * 29)
    across = sum(kernel(a, b) for a in x for b in y) / 900
    found = kernel_distance(x, y)
    assert (found.subsets, found.size) == (1, 30)
    assert found.value == pytest.approx(within - 2 * across)


def test_subsets_of_the_kernel_distance_agree_with_the_whole() -> None:
    x, y = normal(600, 3, seed=1), normal(500, 3, seed=2) * 1.3
    whole, parts = kernel_distance(x[:500], y, size=500), kernel_distance(x, y, num_subsets=200, size=100)
    assert (parts.subsets, parts.size) == (200, 100)
    assert parts.value == pytest.approx(whole.value, abs=4 * parts.std / 200**0.5 + 0.02)


def test_the_inception_score_of_sure_classes_is_their_number() -> None:
    sure = 50 * torch.eye(5, dtype=torch.float64)[torch.arange(2000) % 5]
    assert inception_score(sure).value == pytest.approx(5, rel=0.02)
    assert inception_score(torch.zeros(100, 5)).value == pytest.approx(1)
    with pytest.raises(DisaError):
        inception_score(torch.zeros(9, 5))


# --- density and coverage ----------------------------------------------------------------------------------------


def test_density_and_coverage_agree_with_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    real, generated = normal(40, 3, seed=1), normal(30, 3, seed=2) + 0.5
    radii = [sorted((p - q).norm().item() for q in real)[2] for p in real]
    inside = [[(g - r).norm().item() <= radius for r, radius in zip(real, radii, strict=True)] for g in generated]
    expected = (sum(map(sum, inside)) / (2 * 30), sum(map(any, zip(*inside, strict=True))) / 40)
    assert density_coverage(real, generated, k=2) == pytest.approx(expected)
    monkeypatch.setattr(metrics, "_DISTANCE_CHUNK", 7)
    assert density_coverage(real, generated, k=2) == pytest.approx(expected)


def test_an_outlier_of_the_reference_does_not_lift_density() -> None:
    cloud = normal(200, 4, seed=1)
    reference = torch.cat([cloud, torch.full((1, 4), 50.0)])
    far = normal(200, 4, seed=2) + 25
    assert metrics.precision_recall(reference, far)[0] == 1
    assert density_coverage(reference, far)[0] < 0.3


def test_labels_are_strata_where_none_is_rare() -> None:
    assert strata_of(None) is None
    assert strata_of(torch.tensor([0] * 10 + [1] * 9)) is None
    assert strata_of(torch.tensor([0, 1]).repeat(10)) is not None
