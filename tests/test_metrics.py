"""Closed forms for the distances, coverage for the intervals, and real digits for the digit metrics."""

import subprocess
import sys
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from disa.errors import DisaError
from disa.study import metrics
from disa.study.metrics import (
    Gaussian,
    Spread,
    bootstrap,
    bootstrap_difference,
    class_accuracy,
    frechet_distance,
    precision_recall,
)
from disa.tiny.data import Split, digits
from disa.tiny.quality import digit_features, digit_quality, yardsticks


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean(values: Tensor) -> float:
    return values.mean().item()


# --- Fréchet distance ---------------------------------------------------------------------------------------------


def test_frechet_of_independent_gaussians_has_its_closed_form():
    scales_a, scales_b, shift = (
        torch.tensor([1.0, 2.0, 0.5]),
        torch.tensor([2.0, 1.0, 0.5]),
        torch.tensor([1.0, 0.0, -2.0]),
    )
    a, b = normal(200_000, 3, seed=1) * scales_a, normal(200_000, 3, seed=2) * scales_b + shift
    expected = shift.square().sum() + (scales_a - scales_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=0.01)


def test_frechet_of_correlated_gaussians_agrees_with_the_eigenvalues_of_the_product():
    a, b = normal(50, 6, seed=1) @ normal(6, 6, seed=2), normal(70, 6, seed=3) @ normal(6, 6, seed=4) + 1
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(cov_a @ cov_b).real.sqrt().sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * root
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-10)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("num_samples", [5, 64, 500], ids=["N < D", "N = D", "N > D"])
def test_frechet_of_a_set_and_its_shift_is_the_squared_shift(num_samples):
    features, shift = normal(num_samples, 64), normal(64, seed=1)
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-10)
    assert frechet_distance(features, features + shift) == pytest.approx(shift.square().sum().item(), rel=1e-10)


def test_frechet_of_two_lines_in_many_dimensions_is_that_of_one_dimension():
    direction = torch.linalg.qr(normal(32, 1, seed=1)).Q.T
    a, b = normal(100, 1, seed=2), 3 * normal(40, 1, seed=3) + 1
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a @ direction, b @ direction) == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_takes_fitted_sides_and_numpy():
    a, b = normal(30, 4, seed=1), normal(20, 4, seed=2)
    assert frechet_distance(a.numpy(), Gaussian.fit(b)) == frechet_distance(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(5), torch.zeros(5, 2)),
        (torch.zeros(1, 2), torch.zeros(5, 2)),
        (torch.zeros(5, 3), torch.zeros(5, 2)),
        (torch.full((5, 2), float("nan")), torch.zeros(5, 2)),
    ],
    ids=["one dimension", "one sample", "unequal features", "NaN"],
)
def test_frechet_refuses_what_has_no_distance(a, b):
    with pytest.raises(DisaError):
        frechet_distance(a, b)


# --- precision, recall, accuracy ----------------------------------------------------------------------------------


def test_precision_and_recall_of_identical_and_of_disjoint_clouds():
    cloud = normal(200, 5)
    assert precision_recall(cloud, cloud) == (1.0, 1.0)
    assert precision_recall(cloud, cloud + 100) == (0.0, 0.0)


def test_a_missing_mode_costs_recall_and_a_false_mode_costs_precision():
    left, right = normal(150, 5, seed=1), normal(50, 5, seed=2) + 100
    both = torch.cat([left, right])
    assert precision_recall(both, left) == (1.0, 0.75)
    assert precision_recall(left, both) == (0.75, 1.0)


def test_precision_and_recall_agree_with_their_definition_for_any_chunk(monkeypatch):
    real, generated = normal(40, 3, seed=1), normal(30, 3, seed=2) + 0.5

    def share(samples: Tensor, manifold: Tensor, k: int) -> float:
        radii = [sorted((p - q).norm().item() for q in manifold)[k] for p in manifold]
        inside = [any((s - p).norm().item() <= r for p, r in zip(manifold, radii, strict=True)) for s in samples]
        return sum(inside) / len(inside)

    expected = (share(generated, real, 2), share(real, generated, 2))
    assert 0 < expected[0] < 1
    assert precision_recall(real, generated, k=2) == pytest.approx(expected)
    monkeypatch.setattr(metrics, "_DISTANCE_CHUNK", 7)
    assert precision_recall(real, generated, k=2) == pytest.approx(expected)


def test_precision_recall_refuses_too_few_samples_and_unequal_features():
    for real, generated, k in [
        (normal(3, 2), normal(9, 2), 3),
        (normal(9, 2), normal(9, 3), 3),
        (normal(9, 2), normal(9, 2), 0),
    ]:
        with pytest.raises(DisaError):
            precision_recall(real, generated, k)


def test_class_accuracy_takes_classes_and_logits():
    labels = torch.tensor([0, 1, 2, 1])
    assert class_accuracy(torch.tensor([0, 1, 1, 1]), labels) == 0.75
    assert class_accuracy(torch.eye(3)[[0, 1, 1, 1]], labels) == 0.75
    with pytest.raises(DisaError):
        class_accuracy(torch.tensor([0, 1]), labels)
    with pytest.raises(DisaError):
        class_accuracy(torch.empty(0), torch.empty(0))


# --- bootstrap ----------------------------------------------------------------------------------------------------


def test_the_interval_of_a_mean_covers_as_often_as_it_says():
    spreads = [bootstrap(mean, 2 + normal(80, seed=seed), seed=seed) for seed in range(200)]
    assert 0.90 <= np.mean([2.0 in spread for spread in spreads]) <= 0.98
    assert np.mean([spread.std for spread in spreads]) == pytest.approx(80**-0.5, rel=0.05)
    half = [bootstrap(mean, 2 + normal(80, seed=seed), seed=seed, level=0.5) for seed in range(200)]
    assert 0.38 <= np.mean([2.0 in spread for spread in half]) <= 0.62


def test_the_bias_of_a_mean_is_zero_and_of_a_plug_in_variance_is_known():
    values = normal(50)
    assert bootstrap(mean, values).bias == pytest.approx(0, abs=1e-12)
    plug_in = bootstrap(lambda v: v.var(correction=0).item(), values, num_resamples=2000)
    assert plug_in.bias == pytest.approx(-plug_in.value / 50, rel=0.3)


def test_the_interval_of_a_frechet_distance_covers_its_expected_value_and_the_bias_leads_to_the_true_one():
    num_samples, num_features = 60, 6
    # Covariance 1.5^2 against 1, means 0.4 apart in each feature.
    population = num_features * (0.4**2 + 0.5**2)
    reference = Gaussian(torch.zeros(num_features).double(), torch.eye(num_features).double())

    def distance(features: Tensor) -> float:
        return frechet_distance(features, reference)

    def draw(seed: int) -> Tensor:
        return 0.4 + 1.5 * normal(num_samples, num_features, seed=seed)

    expected = float(np.mean([distance(draw(1000 + seed)) for seed in range(1000)]))
    assert expected > 1.05 * population
    spreads = [bootstrap(distance, draw(seed), num_resamples=100, seed=seed) for seed in range(100)]
    assert np.mean([expected in spread for spread in spreads]) >= 0.88
    corrected = np.mean([spread.value - spread.bias for spread in spreads])
    assert abs(corrected - population) < 0.5 * abs(expected - population)


def test_strata_hold_what_the_labels_fix():
    labels = torch.arange(60) % 3
    values = 100.0 * labels + normal(60)
    assert bootstrap(lambda v: v.double().mean().item(), labels, strata=labels).std == pytest.approx(0, abs=1e-12)
    fixed, free = bootstrap(mean, values, strata=labels), bootstrap(mean, values)
    assert fixed.std == pytest.approx(60**-0.5, rel=0.25)
    assert free.std > 20 * fixed.std


def test_arrays_are_resampled_together_and_by_seed():
    values = normal(40)
    assert bootstrap(lambda a, b: (a - b).abs().max().item(), values, values).high == 0
    assert bootstrap(mean, values, seed=1) == bootstrap(mean, values.numpy(), seed=1)
    assert bootstrap(mean, values, seed=1) != bootstrap(mean, values, seed=2)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    bootstrap(mean, values)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_paired_difference_is_narrower_than_two_spreads_and_finds_a_small_shift():
    common = normal(200)
    a, b = common + 0.1, common + 0.02 * normal(200, seed=1)
    difference = bootstrap_difference(mean, a, b)
    assert difference.std < 0.1 * bootstrap(mean, a).std
    assert 0 not in difference
    assert 0.1 in difference
    assert 0 in bootstrap_difference(mean, a, a)


def test_a_difference_between_equals_is_seldom_found():
    found = [0 not in bootstrap_difference(mean, normal(60, seed=s), normal(60, seed=s + 999)) for s in range(100)]
    assert np.mean(found) <= 0.12


def test_a_difference_takes_several_arrays_per_policy():
    labels = torch.arange(100) % 10
    wrong = torch.where(torch.arange(100) < 30, labels + 1, labels)
    difference = bootstrap_difference(class_accuracy, (labels, labels), (wrong, labels), strata=labels)
    assert difference.value == pytest.approx(0.3)
    assert 0 not in difference


@pytest.mark.parametrize(
    ("arrays", "options"),
    [
        ((normal(5), normal(6)), {}),
        ((torch.empty(0),), {}),
        ((), {}),
        ((torch.tensor(1.0),), {}),
        ((normal(30),), {"num_resamples": 3}),
        ((normal(30),), {"level": 95}),
        ((normal(30),), {"strata": torch.arange(29)}),
        ((normal(30),), {"strata": torch.arange(30) // 9}),
    ],
    ids=["lengths", "empty", "none", "number", "resamples", "level", "strata length", "small stratum"],
)
def test_bootstrap_refuses_what_it_cannot_resample(arrays, options):
    with pytest.raises(DisaError):
        bootstrap(lambda *tensors: 0.0, *arrays, **options)


def test_a_spread_prints_short():
    assert str(Spread(1.23456, 1.1, 1.39999, 0.1)) == "1.235 [1.1, 1.4]"


# --- digits -------------------------------------------------------------------------------------------------------


def blurred(images: Tensor) -> Tensor:
    return avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)


def test_real_digits_have_the_best_quality_and_blurred_ones_are_worse():
    images, labels = digits("all")
    best = digit_quality(images, labels, num_resamples=50)
    assert best.frechet.value == pytest.approx(0, abs=1e-6)
    assert best.accuracy is not None
    assert best.accuracy.value > 0.98
    assert (best.precision, best.recall, best.num_images) == (1.0, 1.0, len(images))
    worse = digit_quality(blurred(blurred(images)), labels, num_resamples=50)
    assert worse.frechet.low > 2 * yardsticks(num_halvings=3).frechet
    assert max(worse.precision, worse.recall) < 0.98
    assert "class accuracy" in str(worse)


def test_quality_without_labels_and_against_one_split():
    quality = digit_quality(digits("test")[0], reference="train")
    assert quality.accuracy is None
    assert "class accuracy" not in str(quality)
    # Unseen real digits: near, although 355 of them are few.
    assert 0 < quality.frechet.value < 1.5
    assert quality.precision > 0.8


def test_labels_too_rare_for_strata_still_give_a_quality():
    images, labels = digits("test")
    quality = digit_quality(images[:40], labels[:40])
    assert quality.accuracy is not None
    assert quality.frechet.std > 0


def test_yardsticks_are_those_of_real_digits():
    found = yardsticks(num_halvings=3)
    assert 0.02 < found.frechet < 0.5
    assert found.frechet_std < found.frechet
    assert found.precision > 0.85
    assert found.recall > 0.85
    assert found.accuracy >= 0.98
    assert found == yardsticks(num_halvings=3)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(4, 3, 32, 32),
        torch.zeros(4, 1, 28, 28),
        torch.zeros(32, 32),
        torch.full((4, 1, 32, 32), 255.0),
        torch.full((4, 1, 32, 32), float("nan")),
    ],
    ids=["channels", "size", "dimensions", "range", "NaN"],
)
def test_digit_features_refuse_what_is_no_digit_image(images):
    with pytest.raises(DisaError):
        digit_features(images)


def test_digit_quality_refuses_wrong_labels_and_too_few_images():
    images, labels = digits("test")
    with pytest.raises(DisaError, match="labels"):
        digit_quality(images, labels[1:])
    with pytest.raises(DisaError, match="at least 4"):
        digit_quality(images[:3], labels[:3])
    with pytest.raises(DisaError, match="splits"):
        digit_quality(images, reference=cast(Split, "valid"))


def test_digit_features_do_not_depend_on_the_batch():
    images = digits("test")[0][:9]
    single = torch.cat([digit_features(image[None].numpy()) for image in images])
    torch.testing.assert_close(digit_features(images), single, rtol=1e-4, atol=1e-4)
    assert digit_features(images[:0]).shape == (0, 64)


def test_importing_metrics_loads_no_science_stack():
    heavy = {"sklearn", "scipy", "matplotlib", "diffusers"}
    code = f"import sys, disa.study.metrics; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
