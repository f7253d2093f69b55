"""`disa tune`: what is tried, what is kept of a search, and that only what was confirmed is believed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import small
from command import Command, complaint
from disa.core.plans import StepPlan, read_plan
from disa.draw.inputs import Inputs
from disa.draw.resolve import shipped_plan
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.evaluate import spaces
from disa.evaluate.spaces import Space
from disa.files import write_json
from disa.study import tuning
from disa.study.metrics import Spread
from disa.study.pool import Pool
from disa.study.tuned import Found, Tuned
from disa.study.tuning import Alone, Tuning, fastest_batch, tune
from disa.study.ways import Mix, Way, ladders, mixes, ways_for

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


@pytest.fixture(scope="module")
def base(sampler: Sampler) -> Settings:
    return sampler.settings(steps="constant:20", batch_size=8)


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1).float() / 255


def inputs(count: int, first_seed: int) -> Inputs:
    return Inputs(list(range(first_seed, first_seed + count)), labels=[i // 2 % 2 for i in range(count)])


# -- ways ----------------------------------------------------------------------------------------------------------


def test_ways_are_those_that_the_model_takes(sampler: Sampler, base: Settings) -> None:
    axes = ways_for(sampler, base, None)
    assert [dict(way.options)["steps"] for way in axes["steps"]] == [
        "linear:20-2", "linear:10-2", "linear:4-1", "linear:2-1", "linear:1-1",
    ]  # fmt: skip
    assert {dict(way.options)["num_ar_steps"] for way in axes["AR steps"]} == {3, 2}
    assert axes["guidance"]
    assert not ways_for(sampler, sampler.settings(base, guidance=1.0), None)["guidance"]


def test_a_plan_is_tried_at_the_evaluations_that_leave_some_error() -> None:
    digits = Sampler.from_pretrained("mar-digits")
    file = shipped_plan(digits)
    assert file is not None
    plan = read_plan(file, "plan")
    found = [dict(way.options)["steps"] for way in ways_for(digits, digits.settings(), plan)["steps"]]
    budgets = [float(text.removeprefix("plan@")) for text in found]
    assert budgets == sorted(budgets, reverse=True)
    assert len(budgets) >= 4
    left = [plan.left(plan.counts(budget)) for budget in budgets]
    assert left == sorted(left)
    assert left[-1] <= 0.3


def test_every_mix_has_steps_and_at_most_one_way_of_each_axis() -> None:
    axes = {"steps": [Way.of("steps", {"steps": text}) for text in "ab"], "reuse": [Way.of("reuse", {"reuse": "c"})]}
    assert [mix.options for mix in mixes(axes)] == [
        {"steps": "a"}, {"steps": "a", "reuse": "c"}, {"steps": "b"}, {"steps": "b", "reuse": "c"},
    ]  # fmt: skip


def test_a_plan_is_named_without_its_place() -> None:
    mix = Mix((Way.of("steps", {"steps": "plan:/far/away @/plan.json@4.5"}), Way.of("reuse", {"reuse": "tokens:2"})))
    assert str(mix) == "plan@4.5 reuse tokens:2"


# -- the pool ------------------------------------------------------------------------------------------------------


def test_a_pool_goes_on_where_it_was(sampler: Sampler, base: Settings, tmp_path: Path) -> None:
    whole = Pool(sampler, inputs(24, 5), pixels, None)
    assert len(list(whole.batches(base, 24))) == 3
    first = Pool(sampler, inputs(24, 5), pixels, tmp_path)
    assert len(list(first.batches(base, 8))) == 1
    again = Pool(sampler, inputs(24, 5), pixels, tmp_path)
    assert len(again.of(base)) == 8
    assert len(list(again.batches(base, 24))) == 2
    assert np.array_equal(again.of(base).first(24), whole.of(base).first(24))
    assert again.of(base).evaluations_per_row == whole.of(base).evaluations_per_row
    others = Pool(sampler, inputs(24, 6), pixels, tmp_path), Pool(sampler, inputs(24, 5), pixels, tmp_path)
    assert len(others[0].of(base)) == 0
    assert len(others[1].of(sampler.settings(base, steps="constant:3"))) == 0


def test_seconds_of_other_threads_are_not_gone_on_with(
    sampler: Sampler, base: Settings, tmp_path: Path, threads: Callable[[int], None]
) -> None:
    threads(1)
    list(Pool(sampler, inputs(24, 5), pixels, tmp_path).batches(base, 8))
    threads(2)
    assert len(Pool(sampler, inputs(24, 5), pixels, tmp_path).of(base)) == 0


def test_features_of_each_kind_are_kept_apart(disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = list[Path]()

    def tuned(*given: Any) -> None:
        folders.append(next(each for each in given if isinstance(each, Path)))
        raise DisaError("stopped.")

    monkeypatch.setattr("disa.study.tuning.tune", tuned)
    for features in ("digits-classifier", "efficientnet-lite0", "digits-classifier"):
        pytest.importorskip("efficientnet_lite_pytorch")
        disa("tune", "--model", "mar-digits", "--features", features, "--device", "cpu", "--out", tmp_path)
    assert len(folders) == 3
    assert folders[0] == folders[2] != folders[1]


def test_a_pool_knows_its_images_though_the_autoencoder_is_read_late(tmp_path: Path) -> None:
    for keep in (None, tmp_path):
        fresh = Sampler.from_pretrained("mar-digits", device="cpu")
        quick = fresh.settings(steps="constant:1", num_ar_steps=1)
        pool = Pool(fresh, inputs(4, 5), pixels, keep)
        assert len(pool.of(quick)) == 0
        assert len(list(pool.batches(quick, 4))) == 1
        assert len(pool.of(quick)) == 4
    another = Sampler.from_pretrained("mar-digits", device="cpu")
    assert len(Pool(another, inputs(4, 5), pixels, tmp_path).of(another.settings(quick))) == 4


# -- the search ----------------------------------------------------------------------------------------------------


class Known:
    """Stands in for a pool: images that take the seconds and have the loss that their settings say."""

    def __init__(self, truth: dict[str, tuple[float, float]], drawn: list[str]) -> None:
        self.truth, self.drawn, self.inputs, self.counts = truth, drawn, range(256), dict[str, int]()

    def of(self, settings: Any) -> Any:
        return _KnownDrawn(self.counts.get(settings, 0), self.truth[settings][0])

    def batches(self, settings: Any, count: int) -> Any:
        self.drawn.append(settings)
        self.counts[settings] = max(count, self.counts.get(settings, 0))
        yield

    def distance(self, settings: Any, base: Any, count: int) -> Spread:
        loss, std = self.truth[settings][1], 1 / count
        return Spread(loss, loss - 2 * std, loss + 2 * std, std)


class _KnownDrawn:
    def __init__(self, count: int, seconds: float) -> None:
        self.count, self.seconds_per_image, self.evaluations_per_row = count, seconds, 2.0

    def __len__(self) -> int:
        return self.count


def known(truth: dict[str, tuple[float, float]], sampler: Sampler, base: Settings) -> tuple[Tuning, list[str]]:
    drawn = list[str]()
    every = truth | {"base": (10.0, 0.0)}
    pool: Any = Known(every, drawn)
    other: Any = Known(every, drawn)
    found = Tuning(sampler, (pool, other), base, 0.005, lambda share: False)
    found.base, found.unit, found.first = "base", 1.0, 16  # pyright: ignore[reportAttributeAccessIssue]
    found.settings = str  # pyright: ignore[reportAttributeAccessIssue]
    return found, drawn


def mix(name: str) -> Mix:
    return Mix((Way.of("steps", {"steps": name}),))


def test_the_fastest_that_loses_little_is_found(sampler: Sampler, base: Settings) -> None:
    truth = {"safe": (5.0, 0.0), "good": (2.0, 0.001), "worse": (1.9, 0.3), "bad": (0.5, 0.9)}
    truth |= {f"slow {i}": (3.0 + i, 0.0) for i in range(8)}
    search, drawn = known(truth, sampler, base)
    left = search.halved([mix(name) for name in truth], 0.5)
    assert str(left[0]) == "good"
    assert len(left) == tuning.CONFIRMED
    assert drawn.count("bad") == drawn.count("worse") == 1
    original, front = search.confirmed(left)
    assert original.name == "original"
    assert front[0].name == "good"
    assert front[0].speedup == pytest.approx(5.0)
    assert front[0].loss.value < front[0].bound < 0.1


def found(name: str, low: float, bound: float) -> Found:
    return Found(name, {}, 1.0, 2.0, 5.0, Spread(low + 0.001, low, low + 0.002, 0.001), bound, 100)


@pytest.mark.parametrize(
    ("front", "best"),
    [
        ([("quick", -0.001, 0.004), ("mild", -0.001, 0.003)], "quick"),
        ([("quick", 0.001, 0.004), ("mild", -0.001, 0.003)], "mild"),
        ([("quick", -0.001, 0.006), ("mild", -0.001, 0.003)], "mild"),
        ([("quick", -0.001, 0.004), ("mild", -0.001, 0.006)], None),
        ([("quick", -0.001, 0.004), ("mild", 0.001, 0.003)], "quick"),
    ],
)
def test_the_best_is_asked_for_from_the_slowest_on(front: list[tuple[str, float, float]], best: str | None) -> None:
    settings = [found(*each) for each in front]
    tuned = Tuned(found("original", 0, 0), settings, 0.005, 1.0, Spread(0, 0, 0, 0), [], [], 60.0)
    assert (tuned.best and tuned.best.name) == best


def alone(seconds: float, adds: float, std: float = 0.01) -> Alone:
    return Alone(seconds, adds, Spread(adds, adds - 2 * std, adds + 2 * std, std))


def test_mixes_are_foreseen_from_their_ways(sampler: Sampler, base: Settings) -> None:
    search, _ = known({}, sampler, base)
    steps = [Way.of("steps", {"steps": name}) for name in ("mild", "quick")]
    reuse = [Way.of("reuse", {"reuse": name}) for name in ("free", "dear", "useless")]
    found = {steps[0]: alone(4.0, 0.0), steps[1]: alone(2.0, 0.015)}
    found |= {reuse[0]: alone(0.5, -0.01), reuse[1]: alone(0.1, 0.5), reuse[2]: alone(1.0, 0.0)}
    assert [each.options for each in search.promising({"steps": steps, "reuse": reuse}, found)] == [
        {"steps": "quick", "reuse": "free"}, {"steps": "mild", "reuse": "free"}, {"steps": "mild"},
    ]  # fmt: skip


def test_what_a_quick_way_seems_to_gain_on_a_mild_one_is_chance(sampler: Sampler, base: Settings) -> None:
    search, _ = known({}, sampler, base)
    steps = [Way.of("steps", {"steps": name}) for name in ("mild", "quick")]
    fewer = [Way.of("AR steps", {"num_ar_steps": number}) for number in (3, 2)]
    found = {steps[0]: alone(4.0, 0.01), steps[1]: alone(2.0, -0.01)}
    found |= {fewer[0]: alone(0.5, 0.0), fewer[1]: alone(0.25, 0.0)}
    tried = [each.options for each in search.promising({"steps": steps, "AR steps": fewer}, found)]
    assert {"steps": "mild", "num_ar_steps": 2} in tried  # as fast as the quick one with 3
    assert ladders({"steps": steps, "AR steps": fewer}) == [steps, fewer]


def test_mixes_of_all_speeds_are_tried(sampler: Sampler, base: Settings) -> None:
    search, _ = known({}, sampler, base)
    steps = [Way.of("steps", {"steps": str(i)}) for i in range(40)]
    found = search.promising(
        {"steps": steps}, {way: alone(40.0 - i, 0.0, 0.01 + i / 1000) for i, way in enumerate(steps)}
    )
    assert tuning.TRIED_TOGETHER // 2 < len(found) <= tuning.TRIED_TOGETHER + 1
    assert [str(found[0]), str(found[-1])] == ["39", "0"]


def test_only_what_was_confirmed_is_best() -> None:
    equal, worse = Spread(0.05, -0.01, 0.1, 0.02), Spread(0.05, 0.02, 0.09, 0.02)
    fast, told, sure = (
        Found(n, {}, s, 1 / s, 1.0, loss, b, 9)
        for n, s, loss, b in (("fast", 0.1, equal, 0.12), ("told", 0.2, worse, 0.09), ("sure", 0.5, equal, 0.09))
    )
    assert Tuned(sure, [fast, told, sure], 0.1, 1.0, equal, [], [], 1.0).best is sure
    assert Tuned(sure, [fast, told], 0.1, 1.0, equal, [], [], 1.0).best is None


def test_a_loss_far_below_the_tolerance_counts_as_none() -> None:
    """As of a solver without noise, whose losses are known to a hundredth of the tolerance."""
    small = Found("plan@8", {}, 0.1, 6.0, 8.0, Spread(0.0004, 0.00035, 0.00045, 0.00002), 0.00044, 9)
    assert Tuned(small, [small], 0.005, 1.0, small.loss, [], [], 1.0).best is small
    assert Tuned(small, [small], 0.002, 1.0, small.loss, [], [], 1.0).best is None


def test_features_that_see_nothing_are_told(sampler: Sampler, base: Settings) -> None:
    with pytest.raises(DisaError, match="all images of the original have the same features"):
        tune(sampler, inputs, lambda images: torch.zeros(len(images), 3), base, 10.0)


def test_a_time_that_is_too_short_is_told(sampler: Sampler, base: Settings) -> None:
    def slow(images: Tensor) -> Tensor:
        time.sleep(0.2)
        return pixels(images)

    with pytest.raises(DisaError, match=r"too short for this model: give \d+ minutes"):
        tune(sampler, inputs, slow, base, 0.002)


def test_the_batch_size_is_the_fastest_there_is_room_for(sampler: Sampler, base: Settings) -> None:
    found = fastest_batch(sampler, inputs(32, 0), base)
    assert found in (8, 16, 32)


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plan(sampler: Sampler, short_paths: None) -> StepPlan:
    from disa.study.planning import make_plan

    return make_plan(sampler, inputs(4, 0), sampler.settings(batch_size=2, num_ar_steps=4), 3, 2)


def test_the_command_writes_a_recipe_that_draws(
    disa: Command, plan: StepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, number in (("FIRST", 16), ("ALONE", 16), ("MOST_IMAGES", 48)):
        monkeypatch.setattr(tuning, name, number)
    monkeypatch.setattr("disa.cli.tuning.MOST_TOGETHER", 16)
    seen = Space("pixels", "0", lambda images: (pixels(images), None), channels=1)
    monkeypatch.setattr(spaces, "load_space", lambda text, device: seen)
    monkeypatch.setattr(tuning, "GAINED", 0.0)
    monkeypatch.setattr("disa.runtime.devices.gains_by_bf16", lambda device: True)  # as a GPU does
    folder = small.folder(
        tmp_path / "weights", num_ar_steps=4, original="constant:20", solver="ddim", guidance=2.0, batch_size=16
    )
    file, out = write_json(tmp_path / "own plan.json", dict(plan.content)), tmp_path / "tuned"
    words = (
        "tune", "--model", folder, "--plan", file, "--minutes", "1", "--tolerance", "1", "--labels", "0-1",
        "--features", "pixels", "--solver", "ddim", "--out", out,
    )  # fmt: skip
    monkeypatch.setattr(Tuned, "best", None)
    assert "the same command goes on from here" in " ".join(disa(*words).out.split())
    assert (out / "drawn").is_dir()
    monkeypatch.setattr(Tuned, "best", property(lambda tuned: tuned.front[0]))  # so few images show nothing
    report = json.loads(disa(*words, "--json").out)
    assert all(found["name"].startswith("plan@") for found in report["front"])
    assert report["best"] in {found["name"] for found in report["front"]}
    assert {"tuned.json", "tuned.png", "recipe.json"} <= {path.name for path in out.iterdir()}
    assert report["bf16"]["name"] == f"{report['front'][0]['name']}, bf16"
    assert 0 < abs(report["bf16"]["loss"]["value"] - report["front"][0]["loss"]["value"]) < 0.1
    assert Image.open(out / "tuned.png").size[0] > 600
    assert not (out / "drawn").exists()
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["measured"]["bound"] == report["front"][0]["bound"]
    file.unlink()
    drawn = disa("sample", "--model", folder, "--recipe", out, "--labels", "1", "--out", tmp_path / "drawn", "--json")
    assert drawn.err == ""
    assert json.loads(drawn.out)["settings"]["num_ar_steps"] <= 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0-3"], "seeds of its own"),
        (["--steps", "constant:3"], "leave --steps and --recipe out"),
        (["--plan", "nowhere.json"], "it is not there"),
        (["--features", "nothing"], "unknown features 'nothing'"),
        (["--minutes", "0"], "minutes"),
    ],
)
def test_bad_input_is_one_line(disa: Command, tmp_path: Path, words: list[str], said: str) -> None:
    found = disa("tune", "--model", "mar-digits", "--out", tmp_path / "tuned", *words)
    assert said in complaint(found)
