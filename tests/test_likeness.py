"""The energy distance by which images of two settings are compared: what it is, and what chance makes of it."""

from __future__ import annotations

import numpy as np
import pytest

from disa.errors import DisaError
from disa.study.likeness import energy_distance, halves, spread_within

RANDOM = np.random.default_rng(0)


def test_it_is_the_distance_of_the_distributions() -> None:
    """Of two normal distributions in one dimension, in closed form (Székely and Rizzo 2013, for equal spreads)."""
    count, apart = 4000, 1.5
    drawn, original = RANDOM.normal(apart, 1, (count, 1)), RANDOM.normal(0, 1, (count, 1))
    # E|N(m, 2)| for the difference of two draws, m apart or 0.
    far = 2 / np.sqrt(np.pi) * np.exp(-(apart**2) / 4) + apart * (2 * 0.8555778168267576 - 1)  # Phi(1.5 / sqrt(2))
    expected = 2 * (far - 2 / np.sqrt(np.pi))
    found = energy_distance(drawn, original)
    assert found.value == pytest.approx(expected, rel=0.06)
    assert expected in found


def test_of_many_pairs_it_is_the_mean_over_them() -> None:
    drawn, original = RANDOM.normal(size=(60, 3)), RANDOM.normal(size=(60, 3))
    groups = [place // 2 for place in range(60)]
    by_hand = []
    for i in range(0, 60, 2):
        x, y, z, w = drawn[i], drawn[i + 1], original[i], original[i + 1]
        across = np.linalg.norm(x - w) + np.linalg.norm(y - z)
        by_hand.append(across - np.linalg.norm(x - y) - np.linalg.norm(z - w))
    found = energy_distance(drawn, original, groups)
    assert found.value == pytest.approx(np.mean(by_hand))
    assert found.std == pytest.approx(np.std(by_hand, ddof=1) / np.sqrt(30))
    assert found.freedom == 29


def test_equal_images_have_no_distance() -> None:
    features = RANDOM.normal(size=(30, 4))
    found = energy_distance(features, features, [place % 3 for place in range(30)])
    assert (found.value, found.low, found.high) == (pytest.approx(0, abs=1e-12),) * 3


def test_images_that_are_all_equal_have_no_spread() -> None:
    """Although the distance of two features comes from a difference of large numbers, which rounds."""
    for features in (RANDOM.gamma(1, 10, (1, 1280)), np.full((1, 3), 0.1)):
        assert spread_within(np.repeat(features, 24, axis=0)) == 0


def test_good_images_of_another_prompt_are_not_alike() -> None:
    """Swapped between prompts, images have the same distribution as a whole, but not within each prompt."""
    original = RANDOM.normal(size=(80, 2)) + np.repeat([[0, 0], [10, 0]], 40, axis=0)
    drawn = np.concatenate([original[40:], original[:40]])
    groups = [0] * 40 + [1] * 40
    assert energy_distance(drawn, original, groups).low > 10
    assert energy_distance(drawn, original).high < 1


@pytest.mark.parametrize("groups", [[i % 3 for i in range(60)], [i // 2 for i in range(60)]], ids=["few", "many"])
def test_chance_is_taken_for_a_difference_in_one_of_twenty_at_most(groups: list[int]) -> None:
    random, held = np.random.default_rng(1), 0
    for _ in range(200):
        shared = random.normal(size=(60, 4))
        drawn, original = (shared + 0.3 * random.normal(size=shared.shape) for _ in range(2))
        held += 0 in energy_distance(drawn, original, groups)
    assert held >= 200 * 0.92


def test_shared_noise_makes_it_sure() -> None:
    original = RANDOM.normal(size=(200, 4))
    near, apart = original + 0.3, RANDOM.normal(size=(200, 4)) + 0.3
    assert energy_distance(near, original).std < 0.5 * energy_distance(apart, original).std


def test_halves_of_one_setting_are_alike() -> None:
    original = RANDOM.normal(size=(200, 4))
    assert 0 in halves(original, [place % 5 for place in range(200)])


@pytest.mark.parametrize(
    ("drawn", "original", "groups", "words"),
    [
        (np.zeros((3, 2)), np.zeros((4, 2)), None, "same images"),
        (np.zeros(3), np.zeros(3), None, "same images"),
        (np.zeros((3, 2)), np.zeros((3, 2)), [0, 1, 2], "two images of a label"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    drawn: np.ndarray, original: np.ndarray, groups: list[int], words: str
) -> None:
    with pytest.raises(DisaError, match=words):
        energy_distance(drawn, original, groups)


def test_the_spread_within_labels_is_the_mean_distance_of_two_images() -> None:
    features = np.array([[0.0], [1.0], [3.0], [10.0], [10.5]])
    assert spread_within(features, "aaabb") == pytest.approx((3 * 2.0 + 2 * 0.5) / 5)
    assert spread_within(features[:3]) == pytest.approx(2.0)
    with pytest.raises(DisaError, match="two images of a label"):
        spread_within(features[:2], "ab")
