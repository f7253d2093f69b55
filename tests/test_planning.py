"""Measuring a plan: counts that keep the budget, work that goes on after an interruption, and the command."""

from __future__ import annotations

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import small
from command import Command, complaint, files, only_whole
from disa.core.plans import StepPlan, read_plan
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.study import planning
from disa.study.planning import make_plan
from disa.study.sums import Sums

pytestmark = pytest.mark.usefixtures("one_thread", "short_paths")
INPUTS = Inputs.paired([5, 6, 7, 8], [1, 2, 3, 4])
MOST, AR_STEPS = 2, 2


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


def settings_of(sampler: Sampler, **options: Any) -> Settings:
    every: dict[str, Any] = {"num_ar_steps": AR_STEPS, "batch_size": 1} | options
    return sampler.settings(**every)


def made(
    sampler: Sampler, keep: Path | None = None, on_turn: Callable[[], None] = lambda: None, **options: Any
) -> StepPlan:
    return make_plan(sampler, INPUTS, settings_of(sampler, **options), 3, MOST, keep, on_turn)


@pytest.fixture(scope="module")
def plan(sampler: Sampler, short_paths: None) -> StepPlan:
    return made(sampler)


# -- sums ----------------------------------------------------------------------------------------------------------


def test_sums_add_up_and_come_back(tmp_path: Path) -> None:
    sums = Sums(tmp_path / "sums.npz", "abc")
    for k in range(2):
        with sums.once(f"part {k}") as missing:
            assert missing
            sums.add("x y 0", np.array([1.0, 2.0]))
            sums.add("n", 2.0)
    back = Sums(tmp_path / "sums.npz", "abc")
    assert back["x y 0"].tolist() == [2.0, 4.0]
    assert float(back["n"]) == 4.0
    with back.once("part 1") as missing:
        assert not missing
    with back.once("part 2") as missing:
        assert missing
    assert files(tmp_path) == ["sums.npz"]
    back.forget()
    back.forget()
    assert files(tmp_path) == []


def break_off(sums: Sums, error: type[BaseException]) -> None:
    with sums.once("second"):
        sums.add("x", np.ones(2))
        sums.add("y", 1.0)
        raise error


def test_a_part_that_breaks_off_adds_nothing(tmp_path: Path) -> None:
    for error in (ValueError, KeyboardInterrupt):
        sums = Sums(tmp_path / f"{error.__name__}.npz", "abc")
        with sums.once("first"):
            sums.add("x", np.ones(2))
        with pytest.raises(error):
            break_off(sums, error)
        for found in (sums, Sums(tmp_path / f"{error.__name__}.npz", "abc")):
            assert found["x"].tolist() == [1, 1]
            assert "y" not in found.arrays
            assert found.done == ["first"]


def test_sums_without_a_file() -> None:
    sums = Sums(None, "abc")
    with sums.once("part"):
        sums.add("x", 1.0)
    assert float(sums["x"]) == 1
    sums.forget()


def test_sums_of_something_else_begin_anew(tmp_path: Path) -> None:
    path = tmp_path / "sums.npz"
    with Sums(path, "abc").once("part"):
        pass
    with pytest.warns(UserWarning, match="is of another measurement: this one begins anew"):
        assert not Sums(path, "other").done


def damaged(path: Path) -> dict[str, bytes]:
    sums = Sums(path, "abc")
    with sums.once("part"):
        sums.add("x", np.arange(500.0))
    good = path.read_bytes()
    array = path.with_name("array.npy")
    np.save(array, np.zeros(3))
    other = path.with_name("other.npz")
    np.savez(other, x=np.zeros(3), about=np.array("3"))
    no_text = path.with_name("no_text.npz")
    np.savez(no_text, about=np.array("{"))
    middle = len(good) // 2
    return {
        "empty": b"", "cut": good[: middle], "head": good[:40], "noise": b"x" * 300, "text": b'{"digest": "abc"}',
        "flipped": good[:middle] + bytes([good[middle] ^ 255]) + good[middle + 1 :], "array": array.read_bytes(),
        "other": other.read_bytes(), "no text": no_text.read_bytes(), "pickle": b"\x80\x04N.", "end": b"PK\x05\x06",
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["empty", "cut", "head", "noise", "text", "flipped", "array", "other", "no text",
                                  "pickle", "end"])  # fmt: skip
def test_a_damaged_measurement_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "measured.npz"
    path.write_bytes(damaged(path)[kind])
    with pytest.raises(DisaError, match=r"is no unfinished measurement: remove it to begin anew\.$"):
        Sums(path, "abc")


# -- the plan ------------------------------------------------------------------------------------------------------


def test_a_plan_can_be_written_and_read(plan: StepPlan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(plan.content, allow_nan=False))
    back = read_plan(tmp_path / "plan.json", "plan")
    assert back.hash == plan.hash
    assert back.counts(3) == plan.counts(3)
    assert [len(stretch) for stretch in back.solver.stretches] == [MOST] * AR_STEPS


def test_counts_cost_what_drawing_makes(sampler: Sampler, plan: StepPlan, tmp_path: Path) -> None:
    """At every budget no more is spent than was asked for, and what is told is what is made."""
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.content))
    least, most = plan.bounds
    for budget in np.linspace(least, most, 4).tolist():
        samples = sampler.sample(3, 0, settings=settings_of(sampler, steps=f"plan:{path}@{budget}"))
        assert samples.evaluations_per_row == pytest.approx(plan.per_row(plan.counts(budget)))
        assert samples.evaluations_per_row <= budget * (1 + 1e-6)


@pytest.mark.parametrize("interval", [(0.5, 0.9), (0.0, 0.6)])
def test_guidance_that_acts_at_times_keeps_the_budget(
    sampler: Sampler, tmp_path: Path, interval: tuple[float, float]
) -> None:
    """Which times a course visits says what it costs."""
    plan = made(sampler, interval=interval)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.content))
    for budget in np.linspace(*plan.bounds, 4).tolist():
        settings = settings_of(sampler, steps=f"plan:{path}@{budget}", interval=interval)
        assert sampler.sample(3, 0, settings=settings).evaluations_per_row <= budget * (1 + 1e-6)


def test_it_is_measured_for_its_settings(sampler: Sampler, plan: StepPlan, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan.content))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings_of(sampler, steps=f"plan:{path}")
    with pytest.warns(UserWarning, match="was measured for guidance 2.0 .here 1.5."):
        settings_of(sampler, steps=f"plan:{path}", guidance=1.5)


def test_it_does_not_depend_on_threads_of_others_or_on_the_random_state(sampler: Sampler, plan: StepPlan) -> None:
    np.random.seed(7)
    assert made(sampler).content == plan.content


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("turn", [1, 5, 10, 14])
def test_an_interrupted_measurement_goes_on_to_the_same_plan(
    sampler: Sampler, plan: StepPlan, tmp_path: Path, turn: int
) -> None:
    keep, turns = tmp_path / "measured.npz", list[int]()

    def stop() -> None:
        turns.append(0)
        if len(turns) == turn:
            raise Stopped

    with pytest.raises(Stopped):
        made(sampler, keep, stop)
    assert keep.exists() == (turn > AR_STEPS)
    turns.clear()
    again = made(sampler, keep, lambda: turns.append(0))
    assert again.content == plan.content
    assert len(turns) == len(planning.work(settings_of(sampler), len(INPUTS), MOST))


def test_what_is_finished_is_not_measured_again(
    sampler: Sampler, plan: StepPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = tmp_path / "measured.npz"
    assert made(sampler, keep).content == plan.content
    before = keep.read_bytes()

    def measured(*arguments: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(planning.Candidates, "path", measured)
    monkeypatch.setattr(planning, "gains", measured)
    assert made(sampler, keep).content == plan.content
    assert keep.read_bytes() == before
    other = make_plan(sampler, INPUTS, settings_of(sampler), 2, MOST, keep)
    assert other.content["budget"] == 2, "another budget is no other measurement"
    changed: list[dict[str, Any]] = [{"guidance": 3.0}, {"batch_size": 2}, {"steps": "constant:3"}, {"solver": "ddim"}]
    for options in changed:
        with pytest.warns(UserWarning, match="is of another measurement"), pytest.raises(AssertionError):
            made(sampler, keep, **options)
    with pytest.warns(UserWarning, match="is of another measurement"), pytest.raises(AssertionError):
        make_plan(sampler, INPUTS, settings_of(sampler), 3, MOST + 1, keep)


@pytest.mark.parametrize(
    ("count", "budget", "words"),
    [
        (3, 3, "a plan is measured on 4 images or more, found 3"),
        (4, 0, "a budget must be above 0"),
        (4, 99, "is more than 2 denoising steps of each row take"),
        (4, 1.5, "one denoising step takes 2"),
        (4, "constant:100", "is more than 2 denoising steps of each row take"),
    ],
)
def test_what_cannot_be_is_said_before_measuring(
    sampler: Sampler, tmp_path: Path, count: int, budget: Any, words: str
) -> None:
    with pytest.raises(DisaError, match=words):
        make_plan(sampler, INPUTS.part(slice(count)), settings_of(sampler), budget, MOST, tmp_path / "measured.npz")
    assert files(tmp_path) == []


# -- the command ---------------------------------------------------------------------------------------------------

QUICK = ("--num-ar-steps", 1, "--grid", "uniform", "--batch-size", 2, "--device", "cpu", "--seeds", "5-8", "--most", 2)


def test_the_command_writes_a_plan_that_the_others_take(disa: Command, tmp_path: Path) -> None:
    model, out = small.folder(tmp_path / "model"), tmp_path / "out"
    arguments = ("--model", model, *QUICK, "--budget", 1.5, "--out", out)
    report = disa("calibrate", *arguments, "--json").json()
    assert only_whole(out) == ["plan.json", "plan.png"]
    content = json.loads((out / "plan.json").read_text())
    assert content == {name: value for name, value in report.items() if name != "out"}
    assert content["measured_with"]["seeds"] == [5, 6, 7, 8]
    with Image.open(out / "plan.png") as image:
        assert image.width > 1000
    again = disa("calibrate", *arguments)
    assert (again.code, again.err) == (0, "")
    assert f"draw with --steps plan:{out / 'plan.json'} for 1.5 evaluations" in " ".join(again.out.split())
    assert json.loads((out / "plan.json").read_text()) == content
    drawn = ("sample", "--model", model, *QUICK[:2], "--labels", 3, "--json")
    told = disa(*drawn, "--steps", f"plan:{out / 'plan.json'}@2", "--out", tmp_path / "drawn").json()
    assert [step["steps"] for step in told["trace"]] == [2]
    assert told["settings"]["plan"] == read_plan(out / "plan.json", "plan").hash
    other = disa(*drawn[:-1], "--steps", f"plan:{out / 'plan.json'}@2", "--guidance", 2, "--out", tmp_path / "other")
    assert other.code == 0
    assert "was measured for guidance 1.0 (here 2.0)" in other.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", 0.5), "one denoising step takes 1"), (("--budget", "linear:5"), "unknown step policy"),
        (("--budget", "x"), "unknown step policy"), (("--budget", 3), "is more than 2 denoising steps"),
        (("--seeds", "1-3"), "a plan is measured on 4 images or more, found 3"), (("--most", 1), "'--most'"),
        (("--labels", "77"), "labels must be 0 to 9"), (("--steps", "plan@4"), "leave grid out"),
        (("--prompt", "a cat"), "draws from labels"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(disa: Command, tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    model = small.folder(tmp_path / "model", original="constant:1")
    done = disa("calibrate", "--model", model, *QUICK, "--budget", 1.5, *arguments, "--out", tmp_path / "out")
    assert words in complaint(done)
    assert files(tmp_path / "out") == [] if (tmp_path / "out").exists() else True


def test_a_damaged_measurement_is_one_line_of_the_command(disa: Command, tmp_path: Path) -> None:
    model, out = small.folder(tmp_path / "model"), tmp_path / "out"
    out.mkdir()
    (out / "measured.npz").write_bytes(b"PK\x03\x04 of something else")
    said = complaint(disa("calibrate", "--model", model, *QUICK, "--budget", 1.5, "--out", out))
    assert "measured.npz is no unfinished measurement: remove it to begin anew" in said
    assert files(out) == ["measured.npz"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_one_line_and_the_next_run_goes_on(
    disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    model, out, handler = small.folder(tmp_path / "model"), tmp_path / "out", signal.getsignal(signal.SIGINT)
    arguments = ("calibrate", "--model", model, *QUICK, "--budget", 1.5, "--json", "--out")
    whole = disa(*arguments, tmp_path / "whole").json()
    write, seen = Sums._write, list[Any]()

    def write_and_die(self: Sums) -> None:
        write(self)
        seen.append(self.done[-1])
        if len(seen) == 2:
            os.kill(os.getpid(), signum)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(Sums, "_write", write_and_die)
            done = disa(*arguments, out)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (done.code, done.out, done.err) == (code, "", "disa: stopped; only whole files were written.\n")
    assert files(out) == ["measured.npz"]
    done_before = len(seen)
    with monkeypatch.context() as patch:
        patch.setattr(Sums, "_write", write_and_die)
        resumed = disa(*arguments, out).json()
    assert {**resumed, "out": 0} == {**whole, "out": 0}
    assert len(set(seen)) == len(seen), "nothing is measured twice"
    assert len(seen) > done_before
    assert files(out) == ["plan.json", "plan.png"]
