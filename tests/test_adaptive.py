"""Adaptive policies: steps go where they pay, within bounds and budget, whatever is drawn beside an image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small
import test_families as families
from command import Command, complaint
from disa.core.flow import FlowMatching
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, DenoisingProblem, Field, Prediction, Process, TimeGrid
from disa.core.solvers import DDIM
from disa.core.spending import Spending
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.harmon.text import FixedLength
from disa.models.registry import find_preset
from disa.policies.adaptive import Adaptive, above, counts_between, marginal_gains, within, without_waste
from disa.policies.probe import ErrorModel, FittedProbe
from disa.study.fit import fit_probe, save
from disa.weights.build import build_model
from fields import Said

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ("mar", "harmon", "flowar", "xar", "bitdance", "nextstep")
POLICIES = ("mlp:9-2@5", "mlp:9-2", "variance:draws:9-2@8", "variance:head:9-2@6", "variance:probe:9-2@5")
COSTLY = ("mlp:9-2@5", "variance:draws:9-2@8")
POWER = 1.7


def make(family: str) -> Sampler:
    if family == "mar":
        return small.sampler()
    if family == "harmon":
        pytest.importorskip("transformers")
        from test_harmon import CONFIG, PRESET, random_weights

        model = build_model(PRESET, random_weights(CONFIG).state_dict(), "the small model")
        return Sampler(PRESET, model, device="cpu", tokenizer=FixedLength(5))
    if family == "nextstep":
        pytest.importorskip("transformers")
        return Sampler(small.NEXTSTEP, small.nextstep(), device="cpu", tokenizer=FixedLength(5))
    return families.sampler(families.shrunk(f"{family}-digits"))


def asked(sampler: Sampler, seeds: list[int]) -> dict[str, Any]:
    """Labels or prompts for seeds."""
    if sampler.preset.prompts:
        return {"labels": None, "prompts": ["a prompt"] * len(seeds), "seeds": seeds}
    return {"labels": [seed % 10 for seed in seeds], "seeds": seeds}


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A probe of each family's small model, fitted once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            sampler, seeds = make(family), list(range(100, 112))
            wanted = Inputs.paired(**asked(sampler, seeds))
            fixed = family in (*families.FAMILIES, "nextstep")
            settings = sampler.settings(steps="constant:3", num_ar_steps=None if fixed else 3)
            path = tmp_path_factory.mktemp("probes") / f"{family}.safetensors"
            made[family] = save(path, fit_probe(sampler, wanted, settings).probe)
        return made[family]

    return of


# -- spending --------------------------------------------------------------------------------------------------------


def test_counts_that_make_no_further_evaluation_are_left_out():
    even = lambda count: max(1, count // 2 * 2)  # noqa: E731
    assert without_waste(counts_between(4, 25), even).tolist() == [4, 6, 8, 10, 14, 18, 24]
    assert without_waste(counts_between(5, 50), int).tolist() == counts_between(5, 50).tolist()
    assert without_waste(counts_between(3, 4), even).tolist() == [3, 4]


def test_a_ladder_has_both_ends_and_few_counts():
    assert counts_between(5, 50).tolist() == [5, 7, 10, 13, 19, 26, 36, 50]
    assert counts_between(4, 4).tolist() == [4]
    assert counts_between(2, 5).tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(5))
def test_no_other_counts_leave_less_error_for_what_is_spent(seed: int):
    counts = counts_between(1, 6)
    need = torch.randn(1, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    room = torch.tensor([13.0 + seed], dtype=torch.float64)
    chosen = within(need, counts, POWER, room, torch.zeros(1), 0)[0]

    def error(given: Tensor) -> float:
        return float((need[0].exp() / given.double() ** POWER).sum())

    spent = int(chosen.sum())
    assert room[0] - 2 < spent <= room[0]
    others = map(torch.tensor, itertools.product(counts.tolist(), repeat=4))
    assert error(chosen) <= min(error(other) for other in others if other.sum() <= spent) + 1e-12


def test_a_threshold_stops_where_a_step_gains_less():
    counts, need = counts_between(2, 20), torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64)
    chosen = above(need, counts, POWER, -2.0)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert len(set(chosen.tolist())) == 3
    for count, row in zip(chosen.tolist(), need, strict=True):
        places = counts.tolist()
        gained = (row + marginal_gains(counts, POWER)).tolist()
        level = places.index(count)
        assert all(gain > -2.0 for gain in gained[:level])
        assert level == len(gained) or gained[level] <= -2.0


def test_room_is_kept_for_rows_that_are_expected_to_need_it():
    counts, need = counts_between(2, 20), torch.zeros(2, 5, dtype=torch.float64)
    room = torch.full((2,), 100.0, dtype=torch.float64)
    easy, alike, hard = (
        within(need, counts, POWER, room, torch.full((4,), later, dtype=torch.float64), 5).sum(1)
        for later in (-4.0, 0.0, 4.0)
    )
    assert easy[0] > alike[0] > hard[0]
    assert 40 <= alike[0] <= 60
    assert torch.equal(easy[:1], easy[1:])


def test_what_matters_more_to_the_image_gets_more():
    """FlowAR's first scale moves everything after it, so that it gets most steps although its own errors are small."""
    settings = Sampler.load("flowar-digits", device="cpu").settings(steps="mlp:25-4@10")
    assert isinstance(settings.steps, Adaptive)
    importance = settings.steps.error_model.importance
    assert importance.tolist() == sorted(importance.tolist(), reverse=True)
    assert importance[0] > importance[-1] + 2


def test_bounds_that_are_one_leave_nothing_to_choose():
    room = torch.tensor([60.0], dtype=torch.float64)
    assert within(torch.zeros(1, 3), counts_between(6, 6), POWER, room, torch.zeros(2), 3).tolist() == [[6, 6, 6]]


def test_an_image_that_has_spent_more_gets_less():
    need = torch.zeros(2, 6, dtype=torch.float64)
    room = torch.tensor([90.0, 30.0], dtype=torch.float64)
    rich, poor = within(need, counts_between(2, 20), POWER, room, torch.zeros(1), 0).sum(1).tolist()
    assert 80 < rich <= 90
    assert 24 < poor <= 30


class Straight(Field):
    """Predicts the noise or the velocity that points from x to known data: its data prediction never changes, or,
    with a `bend`, by that much per unit of time."""

    def __init__(self, process: Process, bend: Tensor, made: list[int]) -> None:
        self.process, self.bend, self.made = process, bend, made

    def on(self, grid: TimeGrid) -> Bound:
        def evaluate(x: Tensor, denoise_step: int) -> Prediction:
            level = float(grid.levels[denoise_step])
            self.made.append(len(x))
            data = 1 + self.bend * (1 - float(grid.times[denoise_step]))
            if self.process.predicts == "noise":
                return Prediction((x - math.sqrt(level) * data) / math.sqrt(1 - level))
            return Prediction((x - data) / level)

        return Said.on(grid, evaluate)

    def select(self, rows: Tensor) -> Field:
        return Straight(self.process, self.bend[rows], self.made)


def problem_of(process: Process, bend: Tensor) -> tuple[DenoisingProblem, list[int]]:
    made: list[int] = []
    rows = torch.arange(len(bend))
    return DenoisingProblem(Straight(process, bend, made), process, (3,), rows, rows, 0, 4), made


# -- every model -----------------------------------------------------------------------------------------------------


def fitting_policies(family: str) -> list[str]:
    return list(POLICIES) if family == "mar" else [text for text in POLICIES if text in COSTLY]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_those_beside_it(family: str, probes: Callable[[str], Path]):
    """Five at once are those in twos, of which the last one is alone."""
    sampler, seeds = make(family), [0, 1, 2, 3, 4]
    for text in fitting_policies(family):
        steps = f"{text}:{probes(family)}"
        together = sampler.sample(**asked(sampler, seeds), steps=steps, batch_size=5, output_type="latent")  # pyright: ignore
        apart = sampler.sample(**asked(sampler, seeds), steps=steps, batch_size=2, output_type="latent")  # pyright: ignore
        assert torch.equal(together.latents, apart.latents), text
        assert together.evaluations == apart.evaluations


@pytest.mark.parametrize("family", FAMILIES)
def test_budgets_and_bounds_hold_for_every_image_and_evaluations_are_counted(
    family: str, probes: Callable[[str], Path]
):
    sampler = make(family)
    for text in fitting_policies(family):
        settings = sampler.settings(steps=f"{text}:{probes(family)}", guidance=1.0, batch_size=4)
        policy = settings.steps
        assert isinstance(policy, Adaptive)
        cost = policy.cost
        spent, rows = torch.zeros(4), 0
        for turn in sampler.start(Inputs.paired(**asked(sampler, [5, 6, 7, 8])), settings):
            step = turn.step
            assert isinstance(step.steps, Tensor)
            assert policy.spending.late <= step.steps.min() <= step.steps.max() <= policy.spending.early
            spent += (step.steps + cost).view(4, -1).sum(1)
            rows += step.problem.num_rows // 4
            made = [settings.solver.plan(step.problem.process, int(count)).num_evaluations for count in step.steps]
            assert step.evaluations == sum(made) + cost * step.problem.num_rows
        if policy.spending.budget is not None:
            assert (spent <= policy.spending.budget * rows).all()
            assert (spent > (policy.spending.budget - 1.5) * rows).all()


def test_guidance_doubles_a_probe_too(probes: Callable[[str], Path]):
    sampler, text = small.sampler(), f"variance:draws:6-6:{probes('mar')}"
    plain = sampler.sample(1, [1, 2], steps=text, guidance=1.0, grid="uniform")
    guided = sampler.sample(1, [1, 2], steps=text, guidance=3.0, grid="uniform")
    assert plain.evaluations_per_row == 6 + 4
    assert guided.evaluations_per_row == 2 * (6 + 4)


@pytest.mark.parametrize("text", POLICIES)
def test_known_tokens_stay_and_the_others_keep_to_the_budget(text: str, probes: Callable[[str], Path]):
    sampler = small.sampler()
    known = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, :2] = True
    out = sampler.sample(
        [1, 2], [1, 2], steps=f"{text}:{probes('mar')}", known=known, mask=mask, num_ar_steps=3, guidance=1.0,
        output_type="latent",
    )  # fmt: skip
    assert torch.equal(out.latents[:, :, 4:], known[:, :, 4:].expand(2, -1, -1, -1))
    if "@" in text:
        assert out.evaluations_per_row <= float(text.partition("@")[2])


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver", "dpm-solver++-2", "ddpm"])
def test_every_solver_goes_with_a_policy_that_looks_before(solver: str, probes: Callable[[str], Path]):
    with pytest.warns(UserWarning, match="was measured for"):
        out = small.sampler().sample(1, [1, 2], steps=f"mlp:9-2@5:{probes('mar')}", solver=solver, guidance=1.0)
    assert out.evaluations_per_row <= 5
    assert torch.isfinite(out.latents).all()


# -- fitting ---------------------------------------------------------------------------------------------------------


def test_a_probe_is_a_function_of_its_seeds_and_comes_back_from_its_file(tmp_path: Path):
    sampler = small.sampler()
    settings = sampler.settings(steps="constant:3", num_ar_steps=3)
    wanted = Inputs.in_turn(range(12), range(10))
    first, second = (fit_probe(sampler, wanted, replace(settings, batch_size=size)) for size in (12, 12))
    other = fit_probe(sampler, wanted, replace(settings, batch_size=5))
    assert first.report() == second.report() == other.report()
    path = save(tmp_path / "probe.safetensors", first.probe)
    assert path.read_bytes() == save(tmp_path / "again.safetensors", second.probe).read_bytes()
    read = FittedProbe.read(path)
    assert read.about == first.probe.about
    assert list(read.error_models) == ["mlp", "variance:probe", "variance:draws", "variance:head"]
    for name, known in first.probe.error_models.items():
        again = read.error_models[name]
        assert (again.slope, again.intercept, again.power, again.threshold) == (
            known.slope, known.intercept, known.power, known.threshold,
        )  # fmt: skip
        torch.testing.assert_close(again.later, known.later, rtol=1e-6, atol=1e-6)
    assert path.stat().st_size < 40_000


def test_a_score_that_is_the_error_is_known_to_be_it():
    """A researcher's score: here the answer itself, which must agree with itself, with slope 1."""
    sampler = small.sampler()
    settings = sampler.settings(steps="constant:3", num_ar_steps=3)
    wanted = Inputs.in_turn(range(16), range(10))
    noises = iter([SeededNoise(list(range(i, min(i + 4, 16)))) for i in range(0, 16, 4) for _ in range(3)])

    def answer(problem: DenoisingProblem) -> Tensor:
        ends = []
        for count in (4, 20):
            grid, noise = problem.process.grid("uniform", count), noises_now.initial(problem)
            ends.append(DDIM("uniform").run(problem.field.on(grid), problem, grid, noise, torch.empty(0)))
        return (ends[0] - ends[1]).double().square().mean(1).log()

    def advance(problem: DenoisingProblem) -> Tensor:
        nonlocal noises_now
        noises_now = next(noises)
        return answer(problem)

    noises_now = SeededNoise([0])
    found = fit_probe(sampler, wanted, settings, own={"answer": advance})
    slope = found.probe.error_models["answer"].slope
    assert found.agreement["answer"] == pytest.approx((1.0, 1.0))
    assert 0.9 < slope < 1.1


def test_a_budget_alone_goes_with_the_bounds_of_the_preset():
    policies = [
        Sampler.load("mar-digits", device="cpu").settings(steps=text).steps for text in ("mlp@18", "mlp:50-5@18")
    ]
    assert str(policies[0]) == str(policies[1]) == "mlp:50-5@18"


@pytest.mark.parametrize("name", ["mar-digits", "flowar-digits", "xar-digits"])
@pytest.mark.parametrize("form", ["mlp", "variance"])
def test_plain_forms_take_the_defaults_of_the_embedded_models(name: str, form: str):
    sampler = Sampler.load(name, device="cpu")
    policy = sampler.settings(steps=form).steps
    assert isinstance(policy, Adaptive)
    assert str(policy.spending) == find_preset(name).defaults.spending
    assert str(policy).startswith(form)


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("mlp:draws:9-2", "expected mlp or variance"),
        ("mlp:9-2@x", "expected mlp or variance"),
        ("mlp:2-9:{}", "early >= late"),
        ("mlp:9-0:{}", "early >= late"),
        ("mlp:9-2@1.5:{}", "budget of mlp:9-2@1.5.* is too small: expected 2"),
        ("variance:draws:9-2@5:{}", "too small: expected 6"),
        ("mlp:9-2:nowhere.safetensors", "no probe at nowhere.safetensors"),
        ("mlp:2000-2:{}", "at most"),
    ],
)
def test_mistakes_are_found_before_any_work(text: str, hint: str, probes: Callable[[str], Path]):
    with pytest.raises(DisaError, match=hint):
        small.sampler().settings(steps=text.format(probes("mar")))


def test_what_cannot_go_together_is_refused_before_any_work(probes: Callable[[str], Path], tmp_path: Path):
    with pytest.raises(DisaError, match="other weights"):
        small.sampler(seed=1).settings(steps=f"mlp:9-2:{probes('mar')}")
    with pytest.raises(DisaError, match="other weights: expected flowar-digits"):
        make("flowar").settings(steps=f"mlp:9-2:{probes('mar')}")
    with pytest.raises(DisaError, match="none ships for small"):
        small.sampler().settings(steps="mlp")
    with pytest.raises(DisaError, match="knows nothing of variance:head"):
        make("flowar").settings(steps=f"variance:head:9-2:{probes('flowar')}")
    other = small.folder(tmp_path / "model") / "model.safetensors"
    with pytest.raises(DisaError, match="is not a probe"):
        small.sampler().settings(steps=f"mlp:9-2:{other}")


def test_a_budget_needs_to_know_the_rows_to_come():
    problem, _ = problem_of(FlowMatching(), torch.zeros(2, 1))
    known = ErrorModel(1.0, 0.0, POWER, 0.0, torch.zeros(1), torch.zeros(1, 1))
    policy = Adaptive(lambda problem: torch.zeros(2), 0, known, Spending(9, 2, 5.0))
    with pytest.raises(DisaError, match="leave @ out"):
        policy(problem)


# -- command line ----------------------------------------------------------------------------------------------------


def test_fit_probe_writes_what_steps_read(disa: Command, tmp_path: Path):
    model, probe = small.folder(tmp_path / "model"), tmp_path / "probe.safetensors"
    base = ("--model", model, "--num-ar-steps", 3, "--device", "cpu")
    report = disa("fit-probe", *base, "--seeds", "100000-100011", "--out", probe, "--json").json()
    assert (report["images"], report["rows"], report["first_seed"]) == (12, 12 * 16, 100000)
    assert set(report["held_out_r2"]) == {"few_steps", "prediction"}
    drawn = disa("sample", *base, "--steps", f"mlp:9-2@5:{probe}", "--out", tmp_path / "out", "--json").json()
    assert drawn["evaluations_per_row"] <= 5 * 2
    shown = disa("fit-probe", *base, "--seeds", "0-7", "--out", probe)
    assert shown.code == 0
    assert "rank correlation" in shown.out
    assert "8 images or more" in complaint(disa("fit-probe", *base, "--seeds", "0-3", "--out", probe))
