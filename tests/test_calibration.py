"""Calibration: spending against brute force, coupled noise against closed forms, counts against what is drawn."""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import planned
import small
import test_families
import test_solvers
from command import Command, complaint, only_whole
from disa.cli.options import AskedInTurn
from disa.core.allocate import allocate, between, pooled
from disa.core.diffusion import CosineDiffusion
from disa.core.flow import FlowMatching
from disa.core.noise import SeededNoise
from disa.core.plans import StepPlan
from disa.core.solve import solve
from disa.core.solver import Solver
from disa.core.solvers import grid_for, make_solver
from disa.core.steps import constant
from disa.core.texts import table
from disa.draw.inputs import Inputs
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import PRESETS, find_preset
from disa.study.calibrate import (
    FIRST_SEED,
    NUM_IMAGES,
    Nudged,
    Ruler,
    Summed,
    calibrate,
    costs_of,
    gains,
    ladder,
    measure,
    read_budget,
)
from disa.tiny.captions import parse

INPUTS = Inputs([7, 8, 9], [0, 1, 2])
REFERENCE = 12


def nothing() -> None:
    pass


# -- spending ------------------------------------------------------------------------------------------------------


def curves(seed: int, convex: bool, num_ar_steps: int = 4, num_counts: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Random errors and costs [K, S]: costs are whole numbers that rise; errors fall, ever more slowly where convex."""
    random = np.random.default_rng(seed)
    costs = random.integers(1, 6, (num_ar_steps, num_counts)).cumsum(axis=1)
    slopes = np.sort(random.random((num_ar_steps, num_counts)) ** 3, axis=1)[:, ::-1]
    errors = 10 - (slopes * np.diff(costs, axis=1, prepend=0)).cumsum(axis=1)
    return errors if convex else errors + random.normal(0, 0.5, errors.shape), costs


def everything(errors: np.ndarray, costs: np.ndarray) -> list[tuple[float, float]]:
    """Cost and error of every choice there is."""
    each = [list(zip(c, e, strict=True)) for e, c in zip(errors, costs, strict=True)]
    return [(sum(c for c, _ in choice), sum(e for _, e in choice)) for choice in itertools.product(*each)]


def totals(errors: np.ndarray, costs: np.ndarray, budget: float) -> tuple[float, float]:
    chosen = allocate(errors, costs, budget)
    return sum(costs[k, i] for k, i in enumerate(chosen)), sum(errors[k, i] for k, i in enumerate(chosen))


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_better_at_the_budgets_that_are_reached(seed: int, convex: bool) -> None:
    errors, costs = curves(seed, convex)
    every = everything(errors, costs)
    # The totals along the way are the corners of the hull of all choices together.
    corners = hull_of(every)
    assert len(corners) > 4
    for cost, error in corners:
        assert totals(errors, costs, cost) == pytest.approx((cost, error))
        assert error == pytest.approx(min(e for c, e in every if c <= cost))


def hull_of(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Falling corners of the lower convex hull, by trying every line between two points."""
    best = {c: min(e for other, e in points if other == c) for c, _ in points}
    falling = [(c, e) for c, e in sorted(best.items()) if all(e < best[other] for other in best if other < c)]
    corners = []
    for c, e in falling:
        lines = itertools.product([p for p in falling if p[0] < c], [p for p in falling if p[0] > c])
        if all(e < a[1] + (b[1] - a[1]) * (c - a[0]) / (b[0] - a[0]) - 1e-9 for a, b in lines):
            corners.append((c, e))
    return corners


@pytest.mark.parametrize("convex", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_between_them_the_error_is_above_the_smallest_by_less_than_the_first_fall_that_is_too_dear(
    seed: int, convex: bool
) -> None:
    errors, costs = curves(seed, convex)
    every = everything(errors, costs)
    corners = hull_of(every)
    missed = 0
    for budget in range(int(corners[0][0]), int(costs[:, -1].sum()) + 3):
        spent, error = totals(errors, costs, budget)
        smallest = min(e for c, e in every if c <= budget)
        ahead = [e for c, e in corners if c > budget]
        reached = [e for c, e in corners if c <= budget][-1]
        assert spent <= budget
        assert smallest - 1e-9 <= error <= smallest + (reached - ahead[0] if ahead else 0) + 1e-9
        missed += error > smallest + 1e-9
    assert missed or convex, "without a budget that greedy misses, the bound is not tested"


def test_the_cheapest_must_be_affordable_and_the_dearest_is_not_taken_for_nothing() -> None:
    errors, costs = np.array([[4.0, 1.0, 1.0], [3.0, 2.0, 2.5]]), np.array([[1, 2, 3], [2, 3, 9]])
    assert allocate(errors, costs, 3) == [0, 0]
    assert allocate(errors, costs, 100) == [1, 1]
    with pytest.raises(DisaError, match=r"^the budget 2 is below the cheapest choice, which takes 3\.$"):
        allocate(errors, costs, 2)


def test_equal_costs_give_the_smaller_error() -> None:
    assert allocate(np.array([[3.0, 2.0, 1.0]]), np.array([[1, 1, 2]]), 1) == [1]


def test_a_power_law_is_met_exactly_between_counts() -> None:
    every = list(range(1, 33))
    found = between([1, 4, 32], [5.0, 5 * 4**-1.7, 5 * 32**-1.7], every)
    assert found == pytest.approx(5 * np.array(every) ** -1.7)


def test_neighbouring_ar_steps_are_pooled_where_there_are_many() -> None:
    few = np.arange(9.0)
    assert pooled(few) == pytest.approx(few)
    # Within two of twenty: the outlier is shared by five, an end by three.
    many = np.zeros((20, 2))
    many[10, 0], many[0, 1] = 5, 3
    assert pooled(many)[:, 0].tolist() == [0] * 8 + [1] * 5 + [0] * 7
    assert pooled(many)[:, 1] == pytest.approx([1, 3 / 4, 3 / 5] + [0] * 17)


def test_a_count_that_adds_no_evaluation_takes_no_error_away() -> None:
    assert between([1, 2, 2, 4], [8.0, 4.0, 4.0, 2.0], [2, 2, 4, 4]) == pytest.approx([4, 4, 2, 2])


# -- noise of fewer steps ------------------------------------------------------------------------------------------

STOCHASTIC = [("ddpm", None), ("ddpm", "uniform"), ("ddpm", "logsnr"), ("euler-maruyama", None)]


def process_of(name: str) -> CosineDiffusion | FlowMatching:
    return test_solvers.FLOW if name == "euler-maruyama" else test_solvers.PROCESS


@pytest.mark.parametrize(("name", "grid"), STOCHASTIC)
@pytest.mark.parametrize(("count", "reference"), [(1, 20), (3, 20), (7, 20), (20, 20), (50, 20)])
def test_summed_noise_is_white(name: str, grid: str | None, count: int, reference: int) -> None:
    solver, process = make_solver(name, grid), process_of(name)
    weights = Summed.of(SeededNoise([0]), process, solver, count, reference).weights
    made = grid_for(solver, process, count).num_evaluations
    assert torch.allclose(weights @ weights.T, torch.eye(made), atol=1e-6)


def coupled_error(solver: Solver, process: CosineDiffusion | FlowMatching, count: int, coupled: bool) -> float:
    field = test_solvers.GaussianField(process, variance=-1.0 if process is test_solvers.PROCESS else None)
    problem, noise = test_solvers.problem_of(field, 300, process=process), SeededNoise([3])
    right = solve(problem, solver, 64, noise).tokens
    other = Summed.of(noise, process, solver, count, 64) if coupled else noise
    return (solve(problem, solver, count, other).tokens - right).square().mean().item()


@pytest.mark.parametrize(("name", "grid"), STOCHASTIC[1::2])
def test_on_summed_noise_paths_of_few_steps_stay_near_those_of_many(name: str, grid: str | None) -> None:
    solver, process = make_solver(name, grid), process_of(name)
    errors = [coupled_error(solver, process, count, coupled=True) for count in (2, 4, 8, 16, 32, 64)]
    assert errors[-1] == 0
    assert all(later < earlier / 1.5 for earlier, later in itertools.pairwise(errors))
    assert errors[3] < coupled_error(solver, process, 16, coupled=False) / 4


# -- measuring -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["mar", "mar guided in part", "flowar", "xar", "harmon"])
def sampler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Sampler:
    """A small model of each family, with guidance that changes how often a step evaluates."""
    if request.param == "mar":
        return small.sampler()
    if request.param == "mar guided in part":
        preset = small.changed(small.PRESET, interval=(0.0, 0.6))
        return Sampler(preset, small.model(), device="cpu")
    if request.param == "harmon":
        pytest.importorskip("transformers")
        import test_harmon
        from disa.models.harmon.text import FixedLength

        model = test_harmon.random_weights(test_harmon.CONFIG)
        return Sampler(test_harmon.PRESET, model, device="cpu", tokenizer=FixedLength(5))
    preset = test_families.shrunk(f"{request.param}-digits")
    monkeypatch.setitem(PRESETS, preset.name, preset)
    return test_families.sampler(preset)


def asked(sampler: Sampler) -> Inputs:
    return Inputs(INPUTS.seeds, prompts=["a", "b", "c"]) if sampler.preset.prompts else INPUTS


def test_costs_are_what_drawing_makes(sampler: Sampler) -> None:
    settings = sampler.settings(steps="constant:2", batch_size=2)
    wanted, counts = asked(sampler), [1, 2, 4, 5]
    found = measure(sampler, wanted, settings, counts, REFERENCE, nothing)
    every = np.arange(1, 9)
    costs = costs_of(sampler, settings, every, np.array(found.evaluations), counts)
    for count in every:
        made = [turn.step.evaluations for turn in sampler.start(wanted, settings, steps=constant(int(count)))]
        per_image = np.reshape(made, (2, -1)).sum(axis=0) / len(wanted.seeds)
        assert costs[:, count - 1] == pytest.approx(per_image)


def test_measuring_does_not_change_the_images(sampler: Sampler) -> None:
    wanted, settings = asked(sampler), sampler.settings(steps="linear:3-2", batch_size=3)
    shape = settings.num_ar_steps, 2
    noise, errors = SeededNoise(wanted.seeds), np.zeros(shape)
    ruler = Ruler(settings.steps, settings.solver, [1, 2], 4, noise, errors, np.zeros(shape))
    latents = []
    for policy in (settings.steps, ruler):
        latents.append(Run(sampler, wanted, replace(settings, steps=policy), "latent").result().latents)
    assert torch.equal(*latents)
    assert (errors > 0).all()


def test_errors_do_not_depend_on_the_batch() -> None:
    sampler = small.sampler()
    found = [
        measure(sampler, INPUTS, sampler.settings(steps="constant:2", batch_size=size), [1, 3], REFERENCE, nothing)
        for size in (1, 3)
    ]
    assert np.array(found[0].errors) == pytest.approx(np.array(found[1].errors), rel=1e-12)
    assert found[0].evaluations == found[1].evaluations


def test_the_reference_has_no_error() -> None:
    sampler = small.sampler()
    found = measure(sampler, INPUTS, sampler.settings(), [1, REFERENCE], REFERENCE, nothing)
    errors = np.array(found.errors)
    assert (errors[:, 0] > 0).all()
    assert (errors[:, 1] == 0).all()


class Faint:
    """Pictures that show latents faintly: nothing is cut off at black or white."""

    scale = 1e-2

    def encode(self, images: Tensor) -> Tensor:
        return images / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        return latents * self.scale


def test_the_gain_of_what_nothing_follows_is_what_the_picture_shows_of_it() -> None:
    sampler = Sampler(small.PRESET, small.model(0), Faint(), device="cpu")
    shown = (Faint.scale / 2) ** 2  # pictures are from 0 to 1, what is decoded from -1 to 1
    alone = gains(sampler, INPUTS, sampler.settings(num_ar_steps=1), nothing)
    assert alone == pytest.approx([shown], rel=1e-4)
    several = gains(sampler, INPUTS, sampler.settings(num_ar_steps=4), nothing)
    assert several[-1] == pytest.approx(shown, rel=1e-4)
    # MAR keeps what is drawn, so a disturbance is in the image, with what follows from it.
    assert min(several) > 0.999 * shown
    assert several[0] > 1.01 * shown


def test_an_image_that_becomes_another_does_not_decide() -> None:
    """The gain of several images is the geometric mean of theirs."""
    sampler = Sampler(small.PRESET, small.model(0), Faint(), device="cpu")
    settings = sampler.settings(num_ar_steps=4)
    each = [gains(sampler, INPUTS.part(slice(i, i + 1)), settings, nothing) for i in range(3)]
    together = gains(sampler, INPUTS, settings, nothing)
    assert together == pytest.approx(np.exp(np.log(each).mean(axis=0)).tolist(), rel=1e-3)


def test_an_image_that_does_not_show_a_disturbance_does_not_decide_either() -> None:
    class Black(Faint):
        scale = 0.0

    sampler = Sampler(small.PRESET, small.model(0), Black(), device="cpu")
    assert gains(sampler, INPUTS, sampler.settings(num_ar_steps=2), nothing) == pytest.approx([1e-6, 1e-6])


def test_only_one_ar_step_is_disturbed() -> None:
    field = test_solvers.GaussianField()
    solver, noise = make_solver("ddim", "uniform"), SeededNoise([0])
    nudged = Nudged(solver, 1, noise.branch(0))
    before, at = (test_solvers.problem_of(field, 3, ar_step) for ar_step in (0, 1))
    assert torch.equal(solve(before, nudged, 2, noise).tokens, solve(before, solver, 2, noise).tokens)
    change = solve(at, nudged, 2, noise).tokens - solve(at, solver, 2, noise).tokens
    assert nudged.squares[-1].tolist() == pytest.approx([change.double().square().sum().item()], rel=1e-4)


def test_a_solver_that_differs_by_ar_step_is_disturbed_alone() -> None:
    solver, noise = StepPlan(planned.content()).solver, SeededNoise([0])
    nudged = Nudged(solver, 3, noise.branch(0))
    for ar_step in range(4):
        problem = replace(test_solvers.problem_of(test_solvers.GaussianField(), 3), ar_step=ar_step, num_ar_steps=4)
        change = solve(problem, nudged, 2, noise).tokens - solve(problem, solver, 2, noise).tokens
        square = change.double().square().sum().item()
        assert square == (0 if ar_step < 3 else pytest.approx(nudged.squares[-1].item(), rel=1e-4))


# -- the whole -----------------------------------------------------------------------------------------------------


def test_the_budget_is_kept_and_spent(sampler: Sampler) -> None:
    wanted, settings = asked(sampler), sampler.settings(batch_size=3)
    [result] = calibrate(sampler, wanted, settings, ["linear:4-2"], REFERENCE)
    made = sampler.start(wanted, settings, "latent", steps=result.table).result().evaluations / len(wanted)
    assert made == result.evaluations <= result.budget
    assert made > 0.6 * result.budget
    assert max(result.table.values) > 1


def test_no_count_is_chosen_that_adds_nothing_to_its_grid() -> None:
    """flowar-split makes 10 evaluations of 11 steps: between measured counts, 11 is no better than 10."""
    sampler = test_families.sampler(test_families.shrunk("flowar-digits"))
    [result] = calibrate(sampler, INPUTS.part(slice(1)), sampler.settings(), ["linear:14-6"], 40)
    assert max(result.table.values) > 4
    assert all(count == 1 or count % 2 == 0 for count in result.table.values)


def test_budgets_are_shares_counts_and_policies() -> None:
    sampler = small.sampler()
    settings = sampler.settings()
    # 16 tokens, guidance counts two; the original policy is constant:6.
    assert read_budget(sampler, INPUTS, settings, 0.5) == (0.5 * 6 * 2 * 16, 16)
    assert read_budget(sampler, INPUTS, settings, 1.0) == (6 * 2 * 16, 16)
    assert read_budget(sampler, INPUTS, settings, 7.5) == (7.5 * 16, 16)
    drawn = sampler.sample(0, 5, steps="linear:4-2", output_type="latent")
    assert read_budget(sampler, INPUTS, settings, "linear:4-2") == (drawn.evaluations, 16)


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (
            "1.5",
            r"^the budget 1\.5 is 1\.5 evaluations per row, and one denoising step takes 2: expected at",
        ),
        ("0.1", r"^the budget 0\.1 is 1\.2 evaluations per row, and one denoising step takes 2"),
        ("-3", r"^a budget must be above 0, found '-3'\.$"),
        (0, r"^a budget must be above 0, found 0\.$"),
        ("much", r"^unknown step policy 'much'"),
        ("50-5", r"^unknown step policy '50-5'.*Did you mean linear:50-5\?$"),
        ("linear:1000000000-1", "a row gets at most 10000 denoising steps, found 1000000000"),
        ("mlp:1000000000-1@5", "an adaptive policy gives a row at most 1000 denoising steps, found 1000000000"),
        ("linear:900-800", r"^the budget 'linear:900-800' is more than 6 denoising steps of each row take"),
        (1e9, r"^the budget 1000000000\.0 is more than 6 denoising steps of each row take, which is the most"),
        ("13", r"^the budget '13' is more than 6 .* 12 evaluations: spend less\.$"),
        *(
            (odd, r"^a budget must be a (finite )?number, found")
            for odd in ("nan", "inf", "1e400", math.nan, None, True)
        ),
        ("9" * 5000, r"^a budget must be a number, found '999"),
    ],
)
def test_a_budget_that_cannot_be(budget: Any, message: str) -> None:
    with pytest.raises(DisaError, match=message) as caught:
        calibrate(small.sampler(), INPUTS, small.sampler().settings(), budget, 12)
    assert len(str(caught.value)) < 300


def test_one_budget_may_be_given_alone_and_as_a_number() -> None:
    sampler, one = small.sampler(), INPUTS.part(slice(1))
    found = [calibrate(sampler, one, sampler.settings(), budget, 12) for budget in (6, "6", ["6"], (6.0,))]
    assert [[result.about["asked_budget"] for result in results] for results in found] == [["6"]] * 4
    assert len({result.table for results in found for result in results}) == 1


def test_a_reference_must_be_longer_than_what_it_measures() -> None:
    sampler = small.sampler()
    settings = sampler.settings()
    assert ladder(sampler, settings, 200) == [1, 2, 3, 4, 5, 6, 8, 10, 12]
    assert ladder(sampler, settings, 12) == [1, 2, 3, 4, 5, 6]
    with pytest.raises(DisaError, match="a reference needs 4 denoising steps or more to measure others"):
        ladder(sampler, settings, 3)
    with pytest.raises(DisaError, match="at most 951 denoising steps fit the uniform grid, found 2000"):
        ladder(sampler, settings, 2000)
    for endless in (10**9, 10**40, 1e9, "1000000000"):
        with pytest.raises(DisaError, match="a row gets at most 10000 denoising steps"):
            calibrate(sampler, INPUTS, settings, 0.5, endless)  # pyright: ignore[reportArgumentType]
    for odd in (math.nan, None, 12.5, True):
        with pytest.raises(DisaError, match="the reference must be a whole number, found"):
            calibrate(sampler, INPUTS, settings, 0.5, odd)  # pyright: ignore[reportArgumentType]


# -- what a table is for -------------------------------------------------------------------------------------------


def written(sampler: Sampler, path: Path) -> Path:
    [result] = calibrate(sampler, INPUTS, sampler.settings(), ["0.5"], REFERENCE)
    path.write_text(json.dumps(result.report()))
    return path


def test_a_table_warns_where_it_was_not_measured(tmp_path: Path) -> None:
    sampler = small.sampler()
    path = written(sampler, tmp_path / "table.json")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.settings(steps=f"table:{path}")
    others: list[tuple[str, Callable[[], object]]] = [
        ("guidance 2.0 .here 3.0.", lambda: sampler.settings(steps=f"table:{path}", guidance=3.0)),
        ("ramp linear .here constant.", lambda: sampler.settings(steps=f"table:{path}", ramp="constant")),
        ("solver ddpm@uniform .here ddim@ddim-980.", lambda: sampler.settings(steps=f"table:{path}", solver="ddim")),
        ("solver ddpm@uniform .here ddpm@logsnr.", lambda: sampler.settings(steps=f"table:{path}", grid="logsnr")),
        ("measured for weights .*here", lambda: small.sampler(seed=1).settings(steps=f"table:{path}")),
        ("resampled to 3", lambda: sampler.settings(steps=f"table:{path}", num_ar_steps=3)),
    ]
    for message, make in others:
        with pytest.warns(UserWarning, match=message):
            make()


def test_weights_have_one_hash_whatever_their_type() -> None:
    assert small.sampler().weights_hash == small.sampler("bf16").weights_hash != small.sampler(seed=1).weights_hash


def test_a_table_without_provenance_does_not_warn(tmp_path: Path) -> None:
    (tmp_path / "plain.json").write_text("[4, 3, 2, 1]")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small.sampler().settings(steps=f"table:{tmp_path / 'plain.json'}", guidance=3.0)


def test_a_provenance_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('{"counts": [1], "measured_for": 3}')
    with pytest.raises(DisaError, match="must say what it was measured for as an object, found 3"):
        table(tmp_path / "t.json")


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_that_the_others_take(disa: Command, tmp_path: Path) -> None:
    model, out = small.folder(tmp_path / "model"), tmp_path / "out"
    quick = ("--model", model, "--num-ar-steps", 3, "--grid", "uniform", "--device", "cpu")
    arguments = (*quick, "--budget", 6, "--reference", 16, "--seeds", "5-7", "--out", out)
    report = disa("calibrate", "--counts-only", *arguments, "--json").json()
    assert only_whole(out) == ["calibration.png", "table.json"]
    assert json.loads((out / "table.json").read_text()) == {k: v for k, v in report.items() if k != "out"}
    assert report["evaluations_per_row"] <= 6
    assert (report["seeds"], report["labels"], report["num_ar_steps"]) == ([5, 6, 7], [0, 1, 2], 3)
    assert np.shape(report["curves"]["errors"]) == (3, len(report["curves"]["counts"]))
    with Image.open(out / "calibration.png") as image:
        assert image.width > 600
    again = disa("calibrate", "--counts-only", *arguments)
    assert (again.code, again.err) == (0, "")
    assert "evaluations per row" in again.out
    assert json.loads((out / "table.json").read_text())["counts"] == report["counts"]
    drawn = disa(
        "sample", *quick, "--steps", f"table:{out / 'table.json'}", "--out", tmp_path / "drawn", "--json"
    ).json()
    assert [step["steps"] for step in drawn["trace"]] == report["counts"]
    other = disa(
        "sample", *quick, "--steps", f"table:{out / 'table.json'}", "--guidance", 2, "--out", tmp_path / "other"
    )
    assert other.code == 0
    assert other.err.startswith("warning: table:")
    assert "was measured for guidance 1.0 (here 2.0)" in other.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", 0.5), "one denoising step takes 1"),
        (("--budget", "linear:5"), "unknown step policy"),
        (("--budget", 4, "--prompt", "a cat"), "draws from labels"),
        (("--budget", 4, "--reference", 2), "a reference needs 4 denoising steps"),
        (("--budget", 2, "--labels", "77"), "labels must be 0 to 9"),
    ],
)
def test_mistakes_are_one_line(disa: Command, tmp_path: Path, arguments: tuple[object, ...], words: str) -> None:
    model = small.folder(tmp_path / "model", original="constant:1")
    asked = ("--counts-only", "--num-ar-steps", 3, *arguments, "--out", tmp_path / "out")
    done = disa("calibrate", "--model", model, *asked)
    assert words in complaint(done)


def test_seeds_and_captions_are_there_without_being_asked_for() -> None:
    def wanted(name: str, asked: AskedInTurn) -> Inputs:
        return asked.in_turn(find_preset(name), NUM_IMAGES, FIRST_SEED)

    digits = wanted("mar-digits", AskedInTurn())
    assert (digits.seeds, digits.prompts) == (list(range(100_000, 100_016)), None)
    assert digits.labels == [*range(10), *range(6)]
    shapes = wanted("harmon-shapes", AskedInTurn())
    assert shapes.prompts is not None
    assert len(shapes.prompts) == len(shapes.seeds) == 16
    assert all(parse(prompt) for prompt in shapes.prompts)
    given = wanted("harmon-shapes", AskedInTurn(prompt=["a red circle"], seeds="1-2"))
    assert (given.seeds, given.prompts) == ([1, 2], ["a red circle"] * 2)
    several = wanted("harmon-shapes", AskedInTurn(prompt=["a red circle", "a blue star"], per_prompt=2))
    assert several.seeds == [100_000, 100_001] * 2
    assert several.prompts == ["a red circle"] * 2 + ["a blue star"] * 2
