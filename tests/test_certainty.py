"""Families of differences: Holm's decisions, intervals that agree with them, and what so many images can show."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from disa.errors import DisaError
from disa.study.certainty import corrected, holm, images_needed, p_value, smallest_seen, what_can_be_shown
from disa.study.metrics import Resampled, Spread, bootstrap_difference, resample, student_quantile

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield import_module("bootstrap_check")
    for name in ("bootstrap_check", "common", "tables", "policies_plan"):
        sys.modules.pop(name, None)


def difference(value: float, std: float = 1.0, freedom: float = math.inf) -> Spread:
    half = student_quantile(0.95, freedom) * std
    return Spread(value, value - half, value + half, std, 0.0, freedom)


# -- the bootstrap -------------------------------------------------------------------------------------------------


def test_intervals_of_made_up_studies_hold_the_truth_as_often_as_they_say(check: Any) -> None:
    """The bounds are four standard errors around 0.95; intervals that are a fifth too narrow fall below them."""
    count, random, found = 600, np.random.default_rng(3), []
    for seed in range(count):
        study = check.made_up(60, random)
        first, second = study.outcomes.astype(float)
        # Six categories of ten pictures: the mean of their shares is the mean of all.
        found.append(resample(torch.mean, first - second, strata=study.strata, seed=seed))
    report = check.judged(found, 0.0)
    error = (0.95 * 0.05 / count) ** 0.5
    assert abs(report["now"]["coverage"] - 0.95) < 4 * error
    assert abs(report["now"]["rms_z"] - 1) < 0.1
    assert report["before"]["coverage"] <= report["now"]["coverage"]
    narrow = [Resampled(r.value, r.value + (r.resamples - r.value) * 0.8, r.num_samples, r.num_strata) for r in found]
    assert check.judged(narrow, 0.0)["now"]["coverage"] < 0.95 - 4 * error


def test_a_spread_is_the_t_interval_of_a_mean_and_of_strata() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = np.random.default_rng(0).standard_normal(12)
    zero = np.zeros(12)
    spread = bootstrap_difference(lambda v: v.mean().item(), values, zero, num_resamples=2000)
    exact = stats.t.interval(0.95, 11, values.mean(), values.std(ddof=1) / 12**0.5)
    assert (spread.low, spread.high) == pytest.approx(exact, rel=0.06)
    strata = np.repeat([0, 1], 10)
    apart = np.concatenate([values[:10], 5 + values[:10]])
    stratified = bootstrap_difference(lambda v: v.mean().item(), apart, np.zeros(20), strata=strata, num_resamples=2000)
    assert stratified.std == pytest.approx(values[:10].std(ddof=1) / 20**0.5, rel=0.06)
    assert stratified.freedom == pytest.approx(18, rel=0.02)


# -- families ------------------------------------------------------------------------------------------------------


def test_holm_is_that_of_a_table_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("count", [1, 2, 5, 12])
def test_an_interval_leaves_0_out_exactly_if_the_difference_is_shown(count: int) -> None:
    random = np.random.default_rng(count)
    rescued = 0
    for _ in range(300):
        family = [
            difference(v, s, 50) for v, s in zip(random.normal(0, 3, count), random.uniform(0.2, 2, count), strict=True)
        ]
        found = corrected(family)
        assert [each.shown for each in found] == [p <= 0.05 for p in holm([p_value(each) for each in family])]
        for each, alone in zip(found, family, strict=True):
            assert each.shown == (not each.low <= 0 <= each.high)
            assert each.low <= alone.low or each.shown
            assert each.low <= alone.value <= each.high
            assert not each.shown or 0 not in alone
            rescued += each.shown and count * each.p > 0.05
    assert (rescued > 0) == (count > 1)


def test_one_difference_is_not_corrected() -> None:
    alone = difference(1.5, 0.7, 30)
    (found,) = corrected([alone])
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high))
    assert found.p == found.corrected_p
    assert corrected([]) == []


def test_policies_that_draw_the_same_do_not_differ() -> None:
    same, other = corrected([difference(0.0, 0.0), difference(4.0)])
    assert (same.p, same.low, same.high, same.shown) == (1.0, 0.0, 0.0, False)
    assert other.shown


def test_families_seldom_hold_a_false_claim(check: Any) -> None:
    random = np.random.default_rng(5)
    absent, mixed = (check.families(10, count, 1500, random) for count in (10, 1))
    assert absent["a_false_claim"] < 0.07
    assert absent["an_interval_that_misses"] < 0.07
    assert absent["one_that_misses_uncorrected"] > 0.3
    assert mixed["an_interval_that_misses"] < 0.1


# -- power ---------------------------------------------------------------------------------------------------------


def test_a_difference_that_can_be_seen_is_shown_four_times_in_five() -> None:
    random, comparisons = np.random.default_rng(7), 6
    seen = smallest_seen(0.3, comparisons)
    # The other differences are not there: Holm's first step decides.
    truths = np.array([seen, 0, 0, 0, 0, 0])
    studies = truths + random.normal(0, 0.3, (1000, comparisons))
    shown = [corrected([difference(value, 0.3) for value in study])[0].shown for study in studies.tolist()]
    assert 0.76 < np.mean(shown) < 0.84


def test_images_that_are_needed_show_what_is_wanted() -> None:
    assert smallest_seen(1.0) == pytest.approx(1.96 + 0.8416, abs=1e-3)
    needed = images_needed(0.1, 0.05, 200, 3)
    assert smallest_seen(0.05 * (200 / needed) ** 0.5, 3) == pytest.approx(0.1, rel=0.01)
    assert what_can_be_shown([difference(0.1, 0.05), difference(0.2, 0.02)], 200) == (
        "200 images can show differences of 0.15 or more; 0.08 needs about 740."
    )
    assert what_can_be_shown([difference(0.0, 0.0)], 200) == ""


def test_wrong_numbers_are_refused() -> None:
    with pytest.raises(DisaError, match="level"):
        corrected([difference(1.0)], level=5)
    with pytest.raises(DisaError, match="a comparison or more"):
        smallest_seen(1.0, 0)
    with pytest.raises(DisaError, match="above 0"):
        images_needed(0.0, 1.0, 100)
