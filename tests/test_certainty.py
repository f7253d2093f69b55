"""Families of differences: Holm's decisions, intervals that agree with them, and what so many images can show."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

import small
from command import Command
from disa.draw.inputs import Inputs
from disa.errors import DisaError
from disa.study.certainty import corrected, holm, images_needed, p_value, smallest_seen, what_can_be_shown
from disa.study.measures import Measured
from disa.study.metrics import Resampled, Spread, bootstrap_difference, resample, student_quantile
from disa.tiny.measures import MEASURES

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
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
        found.append(resample(lambda v: v.mean().item(), first - second, strata=study.strata, seed=seed))
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


# -- compare -------------------------------------------------------------------------------------------------------


class Brightness:
    """A measure: how bright pictures are."""

    columns = ("brightness", "difference to the first")

    def refusal(self, images: Tensor, inputs: Inputs) -> str:
        return ""

    def measure(self, images: Sequence[Tensor], inputs: Inputs) -> Measured:
        found = [resample(lambda v: v.mean().item(), each.flatten(1).mean(1)) for each in images]
        return Measured([each.spread() for each in found], found, bounds=(0.0, 1.0))

    def cells(self, quality: Any, difference: Spread | None) -> list[str]:
        return [str(quality), "" if difference is None else f"{difference.low:.4f}"]

    def note(self, quality: Any, yardsticks: Any) -> str:
        return "brightness"


def test_compare_corrects_for_its_comparisons(disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MEASURES, "", Brightness())
    model = small.sampler().save_pretrained(tmp_path / "model")
    policies = [word for steps in ("constant:6", "constant:2", "constant:1") for word in ("--steps", steps)]
    arguments = (
        "compare",
        "--model",
        model,
        *policies,
        "--seeds",
        "0-23",
        "--device",
        "cpu",
        "--out",
        tmp_path / "out",
    )
    report = disa(*arguments, "--json").json()
    first, *others = report["policies"]
    assert first["difference"] is first["corrected"] is None
    family = [Spread(**policy["difference"]) for policy in others]
    assert [policy["corrected"] for policy in others] == [asdict(each) for each in corrected(family)]
    smallest = smallest_seen(max(each.std for each in family), 2)
    assert report["certainty"] == {"comparisons": 2, "level": 0.05, "power": 0.8, "smallest_difference": smallest}
    said = disa(*arguments).out
    assert all(f"{policy['corrected']['low']:.4f}" in said for policy in others)
    assert "2 comparisons: the intervals of the differences are wider for that (Holm). 24 images can show" in said
    assert "comparisons:" not in disa(*arguments[:7], *arguments[9:]).out


# -- two stages ----------------------------------------------------------------------------------------------------


@pytest.fixture
def confirm(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`benchmarks/confirm.py`, where every model is a small one."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = import_module("confirm")
    monkeypatch.setitem(MEASURES, "", Brightness())
    monkeypatch.setattr(module.Sampler, "load", lambda name: small.sampler())
    monkeypatch.setattr(module, "ENOUGH", {"": 40})
    monkeypatch.chdir(BENCHMARKS.parent)
    yield module
    for name in ("confirm", "confirm_write", "point_folders", "tables", "policies_plan"):
        sys.modules.pop(name, None)


@pytest.mark.long
def test_what_is_chosen_is_confirmed_on_other_seeds(confirm: Any, tmp_path: Path) -> None:
    points = confirm.Points.read(write_points(tmp_path, POINTS))
    work, results = tmp_path / "work", tmp_path / "results"

    def run(stage: str, first: int, images: int | None = 20) -> None:
        confirm.run(confirm.Stage(stage, first, images or {}, work), points, None, results)

    with pytest.raises(DisaError, match="chosen on is not known"):
        run("confirm", 500_000)
    run("choose", 300_000)
    pictures = sorted((work / "choose").rglob("seed*.png"))
    written = [path.stat().st_mtime_ns for path in pictures]
    run("choose", 300_000)
    assert [path.stat().st_mtime_ns for path in pictures] == written
    for first in (299_990, 300_019):
        with pytest.raises(DisaError, match="300000-300019 were chosen on"):
            run("confirm", first)
    run("confirm", 500_000, None)
    report = json.loads((results / "confirm-small.json").read_text())
    assert (report["seeds"], report["chosen_on"]) == ([500_000, 500_039], [[300_000, 300_019]])
    assert (report["num_images"], report["enough_for_a_claim"], report["comparisons"]) == (40, True, 3)
    original, few, other = report["points"]
    assert original["to_original"] is few["to_base"] is None
    assert other["base"] == "few"
    family = [few["to_original"], other["to_original"], other["to_base"]]
    spreads = [Spread(**{name: value for name, value in claim.items() if name != "corrected"}) for claim in family]
    assert [claim["corrected"] for claim in family] == [asdict(each) for each in corrected(spreads)]
    assert other["evaluations_per_row"] == few["evaluations_per_row"] < original["evaluations_per_row"]
    assert min(other["seconds_per_image"], other["cpu_seconds_per_image"]) > 0
    text = (results / "confirm-small.md").read_text()
    assert "3 comparisons" in text
    assert "chosen on 300000-300019" in text
    assert "A trial" not in text
    assert "A trial" in (results / "choose-small.md").read_text()


POINTS = {
    "models": {
        "small": [
            {"name": "original", "steps": "constant:4"},
            {"name": "few", "steps": "constant:2"},
            {"name": "other", "steps": "constant:2", "solver": "ddim", "base": "few"},
        ]
    }
}


def write_points(folder: Path, content: Any) -> Path:
    path = folder / "points.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    ("stage", "seeds", "words"),
    [
        ("choose", (799_000, 800_000), "never used"),
        ("confirm", (899_999, 900_100), "never used"),
        ("choose", (499_990, 500_009), "are for confirming"),
        ("confirm", (400_050, 400_060), "400000-400099 were chosen on"),
    ],
)
def test_seeds_that_a_stage_may_not_use_are_refused(confirm: Any, stage: str, seeds: Any, words: str) -> None:
    with pytest.raises(DisaError, match=words):
        confirm.check_seeds(stage, seeds, [(400_000, 400_099)])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "expected an object with models"),
        ({"models": {"small": [{"steps": "constant:2"}]}}, "expected an object with models"),
        ({"models": {"small": [{"name": "a"}]}}, "two points or more"),
        ({"models": {"small": [{"name": "a"}, {"name": "a"}]}}, "two points or more"),
        ({"models": {"small": [{"name": "a"}, {"name": "b", "base": "c"}]}}, "'c'; there are a, b"),
    ],
)
def test_what_is_no_file_of_points_is_refused(confirm: Any, tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DisaError, match=words):
        confirm.Points.read(write_points(tmp_path, content))
