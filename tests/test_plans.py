"""Plans: their files, their texts and options, and drawing by their courses."""

from __future__ import annotations

import json
import runpy
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import disa
import planned
import small
import test_generate as stubs
from command import Command, complaint
from disa.core.courses import CalibratedSolver, Course, stretch_of
from disa.core.generate import generate_steps
from disa.core.multistep import DPMSolverPlusPlus, Update
from disa.core.noise import SeededNoise
from disa.core.plans import StepPlan, parse_plan, plan_parts, read_plan
from disa.core.problem import DenoisingProblem
from disa.core.request import Request
from disa.core.solve import solve
from disa.core.solvers import Euler
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings, digest
from disa.errors import DisaError
from disa.models import heads
from gaussian import FLOW, PROCESS, GaussianField, problem_of

BOTH = pytest.mark.parametrize("process", [PROCESS, FLOW], ids=lambda process: process.predicts)
OWN_MODEL = runpy.run_path(str(Path(__file__).resolve().parents[1] / "examples" / "own_model.py"))


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return planned.written(tmp_path / "plan.json")


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DisaError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 500
    return said


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_plan_comes_back_from_its_file(file: Path) -> None:
    plan, back = StepPlan(planned.content()), read_plan(file, "plan")
    assert back.content == plan.content
    assert (back.hash, back.counts(4), back.solver) == (plan.hash, plan.counts(4), plan.solver)
    assert [len(courses) for courses in back.solver.stretches] == [3, 3]


def change(*place: Any, to: Any = None) -> Callable[[Any], object]:
    """Another value at a place of the content; without one it is left out."""

    def act(content: Any) -> None:
        *path, last = place
        for key in path:
            content = content[key]
        content.pop(last) if to is None else content.__setitem__(last, to)

    return act


COURSE = "stretches", 1, 1
WRONG: list[tuple[Callable[[Any], object], str]] = [
    *((change(name), f"it has no '{name}'") for name in ("format", "stretches", "gains", "rows", "costs", "budget")),
    *((change(*COURSE, name), f"it has no '{name}'") for name in ("times", "updates", "error")),
    (change("format", to=2), "expected format 1, found 2: a newer disa may read it"),
    (change("format", to="1"), "expected format 1"),
    (change("measured_for", to=3), "measured_for must be an object, found 3"),
    (change("rows", to=[]), "rows must be a list of 1 to"),
    (change("rows", to=[1.0] * 3), "gains must be a list of 3, found a list of 4"),
    (change("rows", 0, to=0), "rows must be above 0"),
    (change("rows", 0, to=-1), "rows must be a number"),
    (change("rows", 0, to="1"), "rows must be a number, found '1'"),
    (change("rows", 0, to=True), "rows must be a number, 0 or more, found True"),
    (change("rows", 0, to=[1]), "rows must be a number, 0 or more, found [1]"),
    (change("gains", to=5), "gains must be a list of 4, found 5"),
    (change("gains", 3, to=0.0), "gains must be above 0"),
    (change("gains", 3, to="2"), "gains must be a number"),
    (change("budget", to=-1), "the budget must be a number"),
    (change("budget", to="8"), "the budget must be a number"),
    (change("budget", to=[8]), "the budget must be a number"),
    (change("stretches", to={}), "stretches must be a list of 1 to 4"),
    (change("stretches", to=[]), "stretches must be a list of 1 to 4, found a list of 0"),
    (lambda content: content["stretches"].extend(content["stretches"] * 2), "stretches must be a list of 1 to 4"),
    (change("stretches", 0, to=[]), "a stretch must be a list of 1 to 1000"),
    (change("stretches", 0, to=7), "a stretch must be a list"),
    (lambda content: content["stretches"][0].pop(), "every stretch must hold equally many courses, found [2, 3]"),
    (change("costs", 0, to=[1.0, 2.0]), "costs must be a list of 3, found a list of 2"),
    (change("costs", to=[[1.0, 2.0, 3.0]] * 3), "costs must be a list of 4, found a list of 3"),
    (change("costs", 0, to=[3.0, 2.0, 4.0]), "costs must not fall with the number of denoising steps"),
    (change("costs", 0, to=[0.0, 2.0, 4.0]), "costs must be above 0"),
    (change("costs", 0, 0, to="2"), "costs must be a number"),
    (change("costs", 0, to="2"), "costs must be a list of 3"),
    (change(*COURSE, to=[1]), "a course must be an object"),
    (change(*COURSE, "times", to=[0.5]), "times must be a list of 2, found a list of 1"),
    (change(*COURSE, "times", to="ab"), "times must be a list of 2, found 'ab'"),
    (change(*COURSE, "times", to=[0.4, 0.5]), "a course has falling times"),
    (change(*COURSE, "times", to=[0.5, 0.5]), "a course has falling times"),
    (change(*COURSE, "times", to=[1.5, 0.5]), "times go from 1 (noise) to 0 (data), found 1.5 to 0.5"),
    (change(*COURSE, "times", to=[0.5, -0.5]), "times go from 1 (noise) to 0 (data)"),
    (change(*COURSE, "times", to=[0.5, "0.1"]), "a time must be a number"),
    (change(*COURSE, "times", to=[0.5, [0.1]]), "a time must be a number"),
    (change(*COURSE, "updates", to=[[1, 1, 0, 0]]), "updates must be a list of 2, found a list of 1"),
    (change(*COURSE, "updates", 0, to=[1, 1, 0]), "an update must be a list of 4, found a list of 3"),
    (change(*COURSE, "updates", 0, to={"keep": 1}), "an update must be a list of 4"),
    (change(*COURSE, "updates", 1, 2, to="1"), "an update must be a number"),
    (change(*COURSE, "updates", 0, 2, to=0.5), "the first update of a course has nothing before it"),
    (change(*COURSE, "error", to=-1), "an error must be a number"),
    (change(*COURSE, "error", to="1"), "an error must be a number"),
    (change(*COURSE, "error", to=True), "an error must be a number"),
]


@pytest.mark.parametrize(("act", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_is_no_plan_is_one_line(tmp_path: Path, act: Callable[[Any], object], words: str) -> None:
    content = planned.content()
    act(content)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(content))
    said = refused(lambda: disa.parse(f"plan:{path}@4"))
    assert words in said
    assert "is no plan that `disa calibrate` wrote" in said


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "3", "null", "[1, 2]", '{"counts": [1, 2]}', "{", '{"format": 1, "format": 1}', "[" * 10**5,
     '{"format": 1, "budget": NaN}', '{"format": 1, "budget": 1e999}', '{"budget": ' + "9" * 5000 + "}",
     " " * (9 << 20), '{"stretches": ' + "[" * 50 + "]" * 50 + ', "format": 1, "rows": [1], "gains": [1]}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_what_is_no_plan_at_all_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    refused(lambda: disa.parse(f"plan:{tmp_path / 'plan.json'}@4"))
    refused(lambda: disa.parse(f"plan:{tmp_path}@4"))
    refused(lambda: disa.parse(f"plan:{tmp_path / 'absent'}@4"))


def test_what_it_does_not_know_is_ignored(tmp_path: Path) -> None:
    path = planned.written(tmp_path / "plan.json", later={"a": [1]}, disa="99")
    assert read_plan(path, "plan").hash == StepPlan(planned.content()).hash


# -- texts and budgets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "file", "budget"),
    [
        ("plan", None, None), (" plan@8.5 ", None, 8.5), ("plan@8", None, 8.0), ("plan:a.json", "a.json", None),
        ("plan : a.json@6", "a.json", 6.0), ("plan:a@b.json@6.25", "a@b.json", 6.25), ("plan:a:b", "a:b", None),
        ("plan:a b.json@6", "a b.json", 6.0), ("plan:a@b", "a@b", None), ("plan@1e-7", None, 1e-7),
    ],
)  # fmt: skip
def test_the_parts_of_a_text(text: str, file: str | None, budget: float | None) -> None:
    assert plan_parts(text) == (None if file is None else Path(file), budget)


@pytest.mark.parametrize(
    "text", ["plan@", "plan:", "plan:@", "plan@x", "plan@8@9", "plan@-1", "plan@nan", "plan@" + "9" * 5000]
)
def test_what_is_no_text_of_a_plan(text: str, sampler: Sampler) -> None:
    for act in (lambda: disa.parse(text), lambda: sampler.settings(steps=text), lambda: sampler.settings(solver=text)):
        refused(act)


def test_a_plan_that_no_model_ships(sampler: Sampler) -> None:
    assert "takes the plan that comes with a model, and there is none here: name a file" in refused(
        lambda: disa.parse("plan@8")
    )
    assert "'plan@8' takes the plan that comes with a model" in refused(lambda: sampler.settings(steps="plan@8"))
    assert "'plan' takes the plan that comes with a model" in refused(lambda: sampler.settings(solver="plan"))


def test_a_plan_that_a_model_ships(sampler: Sampler, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disa.draw.resolve.in_package", lambda name: file if name == "small-plan.json" else file / "no")
    settings = sampler.settings(steps="plan@3")
    assert (str(settings.steps), str(settings.solver)) == ("plan@3", "plan")
    assert settings.steps.counts(4) == StepPlan(planned.content()).counts(3)
    assert sampler.settings(steps="plan").steps.counts(4) == StepPlan(planned.content()).counts(4)


def test_counts_of_a_text(file: Path) -> None:
    steps = disa.parse(f"plan:{file}@3.5")
    plan = read_plan(file, "plan")
    assert str(steps) == f"plan:{file}@3.5"
    assert steps.counts(4) == plan.counts(3.5) != plan.counts(6)
    assert plan.per_row(steps.counts(4)) <= 3.5
    assert [steps.at(k, 4) for k in range(4)] == steps.counts(4)


@pytest.mark.parametrize("budget", [2.0, 3.0000001, 2 + 1e-9, 10 / 3, 6.0, 5.999999999])
def test_the_text_of_a_budget_reads_as_the_same_plan(file: Path, budget: float) -> None:
    steps = read_plan(file, f"plan:{file}").steps(budget)
    back = disa.parse(str(steps))
    assert back == steps
    assert parse_plan(str(steps))[1] == budget


def test_budgets_are_bounded_and_spent() -> None:
    plan = StepPlan(planned.content(), "plan:x")
    assert plan.bounds == (2.0, 6.0)
    assert (plan.counts(2), plan.counts(6)) == ([1] * 4, [3] * 4)
    for budget in (1.999, 6.001, 0.0, 1e9):
        said = refused(lambda budget=budget: plan.counts(budget))
        assert said == f"plan:x spends 2 to 6 evaluations per row, found {budget:g}: choose a budget between."
    assert [plan.affordable(budget) for budget in (0.1, 3, 99)] == [2, 3, 6]
    spent = [plan.per_row(plan.counts(budget)) for budget in np.linspace(2, 6, 40)]
    left = [plan.left(plan.counts(budget)) for budget in np.linspace(2, 6, 40)]
    assert all(made <= budget + 1e-9 for made, budget in zip(spent, np.linspace(2, 6, 40), strict=True))
    assert spent == sorted(spent)
    assert left == sorted(left, reverse=True)
    assert left[0] == 1


def test_an_own_budget_that_cannot_be_spent_is_one_line(tmp_path: Path) -> None:
    path = planned.written(tmp_path / "plan.json", budget=50.0)
    assert "spends 2 to 6 evaluations per row, found 50" in refused(lambda: disa.parse(f"plan:{path}"))
    assert disa.parse(f"plan:{path}@3").counts(4)


def ar_steps_of(stretch: int, num_ar_steps: int, num_stretches: int) -> list[int]:
    return [k for k in range(num_ar_steps) if stretch_of(k, num_ar_steps, num_stretches) == stretch]


def test_stretches_cover_the_ar_steps() -> None:
    for num_ar_steps, num_stretches in product(range(1, 20), range(1, 9)):
        if num_stretches <= num_ar_steps:
            found = [k for g in range(num_stretches) for k in ar_steps_of(g, num_ar_steps, num_stretches)]
            assert found == list(range(num_ar_steps))
            sizes = [len(ar_steps_of(g, num_ar_steps, num_stretches)) for g in range(num_stretches)]
            assert max(sizes) - min(sizes) <= 1
    assert [stretch_of(k, 3, 8) for k in range(3)] == [0, 2, 5], "a run of fewer AR steps than stretches"


def test_a_course_that_cannot_be() -> None:
    step = Update(1.0, 1.0, 0.0, 0.0)
    for times, by in (((), ()), ((0.5,), (step, step)), ((0.5, 0.6), (step, step))):
        assert "falling times" in refused(lambda times=times, by=by: Course(times, by))


# -- options -------------------------------------------------------------------------------------------------------


def test_a_plan_brings_its_solver(sampler: Sampler, file: Path) -> None:
    settings = sampler.settings(steps=f"plan:{file}@4")
    assert isinstance(settings.solver, CalibratedSolver)
    assert settings.to_json()["solver"] == f"plan:{file}"
    assert settings.to_json()["plan"] == read_plan(file, "plan").hash
    assert sampler.settings(steps=f"plan:{file}@4", solver=f"plan:{file}") == settings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"solver": "ddim"}, "has its own solver: leave ddim out"),
        ({"solver": "plan:OTHER"}, "has its own solver: leave plan:"),
        ({"grid": "uniform"}, "has its own times and updates: leave grid out"),
        ({"temperature": -0.1}, "temperature must be"),
        ({"eta": 1.0, "grid": "uniform"}, "leave grid, eta out"),
        ({"solver": "plan:FILE@4"}, "a plan as a solver has no budget: write plan:"),
    ],
)
def test_what_a_plan_does_not_go_with(
    sampler: Sampler, file: Path, disa: Command, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    other = planned.written(tmp_path / "other.json", eta=1.0)
    options = {
        name: value.replace("FILE", str(file)).replace("OTHER", str(other)) if isinstance(value, str) else value
        for name, value in options.items()
    }
    assert words in refused(lambda: sampler.settings(steps=f"plan:{file}@4", **options))
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    model = small.folder(tmp_path / "model")
    asked = ("--steps", f"plan:{file}@4", *flags, "--num-ar-steps", 4, "--out", tmp_path / "out")
    assert words in complaint(disa("sample", "--model", model, "--labels", 3, *asked))
    assert not (tmp_path / "out").exists()


def test_its_temperature_scales_the_noise_that_rows_begin_with(sampler: Sampler, tmp_path: Path) -> None:
    """As another spread in the file does, and it is kept with what else was asked for."""
    plain = planned.written(tmp_path / "plain.json", spread=0.8)
    warmer = planned.written(tmp_path / "warmer.json", spread=0.8 * 1.25)

    def drawn(settings: Settings) -> Any:
        return sampler.sample([3, 1], [0, 1], settings=settings, output_type="latent").latents

    settings = sampler.settings(steps=f"plan:{plain}@4", temperature=1.25)
    assert torch.equal(drawn(settings), drawn(sampler.settings(steps=f"plan:{warmer}@4")))
    assert not torch.equal(drawn(settings), drawn(sampler.settings(steps=f"plan:{plain}@4")))
    told = settings.to_json()
    assert told["temperature"] == 1.25
    kept = {name: told[name] for name in ("steps", "solver", "temperature")}
    assert sampler.settings(**kept) == settings == sampler.settings(settings)
    assert "temperature" not in sampler.settings(steps=f"plan:{plain}@4", temperature=1).to_json()
    assert sampler.settings(steps=2, solver=f"plan:{plain}", temperature=0.5).solver.temperature == 0.5


def test_a_plan_as_the_solver_of_other_policies(sampler: Sampler, file: Path) -> None:
    solver = f"plan:{file}"
    settings = sampler.settings(steps="linear:3-1", solver=solver)
    assert (str(settings.steps), str(settings.solver)) == ("linear:3-1", solver)
    assert sampler.sample(3, 0, settings=settings).trace[0].steps == 3
    said = refused(lambda: sampler.settings(steps="linear:4-2", solver=solver))
    assert said == f"{solver} goes up to 3 denoising steps of a row, found 4: ask for fewer."
    for option in ("grid", "eta"):
        value: Any = "uniform" if option == "grid" else 1
        assert f"leave {option} out" in refused(
            lambda option=option, value=value: sampler.settings(steps=2, solver=solver, **{option: value})
        )


@pytest.mark.parametrize(
    ("steps", "words"),
    [("mlp:50-5@20", "goes up to 3"), ("variance:9-2", "goes up to 3"), ("straight@2", "has its own solver")],
)
def test_policies_that_look_take_its_solver_or_say_why_not(tmp_path: Path, steps: str, words: str) -> None:
    path = planned.written(tmp_path / "plan.json", FLOW)
    own = Sampler.load("flowar-digits")
    assert words in refused(lambda: own.settings(steps=steps, solver=f"plan:{path}"))
    with pytest.warns(UserWarning, match="mlp:3-2 was measured for solver euler@flowar-split"):
        samples = own.sample(3, 0, steps="mlp:3-2", solver=f"plan:{path}")
    assert all(2 <= step.steps <= 3 for step in samples.trace)


def test_every_stretch_is_checked_before_drawing(sampler: Sampler, tmp_path: Path) -> None:
    """The process has no timestep 1000."""
    stretches = planned.content()["stretches"]
    for course in stretches[1]:
        course["times"][0] = 1.0
    path = planned.written(tmp_path / "plan.json", stretches=stretches)
    ways: list[dict[str, Any]] = [{"steps": f"plan:{path}@4"}, {"steps": 2, "solver": f"plan:{path}"}]
    for asked in ways:
        assert "expected falling times" in refused(lambda asked=asked: sampler.settings(**asked))


def test_the_digest_goes_by_the_content(sampler: Sampler, file: Path, tmp_path: Path) -> None:
    def of(path: Path, **options: Any) -> str:
        told = sampler.settings(steps=f"plan:{path}@4", **options).to_json()
        return digest({name: value for name, value in told.items() if name not in ("steps", "solver")})

    same = planned.written(tmp_path / "moved.json", measured_for={"note": 1})
    other = planned.written(tmp_path / "other.json", eta=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert of(file) == of(same) != of(other)
    as_solver = [sampler.settings(steps=2, solver=f"plan:{path}").to_json()["plan"] for path in (file, same, other)]
    assert as_solver[0] == as_solver[1] != as_solver[2]


def test_the_file_may_change_and_the_digest_tells(sampler: Sampler, file: Path) -> None:
    before = digest(sampler.settings(steps=f"plan:{file}@4").to_json())
    assert before == digest(sampler.settings(steps=f"plan:{file}@4").to_json())
    planned.written(file, num_stretches=1)
    assert before != digest(sampler.settings(steps=f"plan:{file}@4").to_json())


def test_it_warns_where_it_was_not_measured(sampler: Sampler, tmp_path: Path) -> None:
    facts = {"weights": sampler.weights_hash, "guidance": 2.0, "ramp": "linear"}
    file = planned.written(tmp_path / "plan.json", measured_for=facts)
    as_steps: dict[str, Any] = {"steps": f"plan:{file}@4"}
    as_solver: dict[str, Any] = {"steps": 2, "solver": f"plan:{file}"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for asked in (as_steps, as_solver):
            sampler.settings(**asked)
            sampler.settings(**asked, batch_size=2)
    for asked in (as_steps, as_solver):
        with pytest.warns(UserWarning, match=r"was measured for guidance 2.0 .here 3.0.: it may not fit") as caught:
            sampler.settings(**asked, guidance=3.0)
        assert len(caught) == 1
        with pytest.warns(UserWarning, match="was measured for weights"):
            small.sampler(seed=1).settings(**asked)
    with pytest.warns(UserWarning, match="has 4 counts and is resampled to 3"):
        sampler.settings(**as_steps, num_ar_steps=3)


def test_a_plan_takes_its_solver_along_when_it_is_left(sampler: Sampler, file: Path) -> None:
    own = sampler.settings()
    by_plan = sampler.settings(own, steps=f"plan:{file}@4")
    assert isinstance(by_plan.solver, CalibratedSolver)
    assert sampler.settings(by_plan, steps="linear:4-2") == own
    assert sampler.settings(by_plan, steps=f"plan:{file}@3").solver == by_plan.solver
    assert sampler.settings(by_plan, guidance=3.0).solver == by_plan.solver
    kept = sampler.settings(steps=3, solver=f"plan:{file}")
    assert sampler.settings(kept, steps=2).solver == kept.solver, "a solver that was asked for stays"


class Tenant:
    """A policy of one's own with an attribute that plans have."""

    plan = "B"

    def __call__(self, problem: DenoisingProblem) -> int:
        return 2


@pytest.mark.filterwarnings("ignore:.*is known to this program alone")
def test_the_plan_of_someone_else_is_none(sampler: Sampler) -> None:
    base = sampler.settings(solver="ddim")
    assert sampler.settings(base, steps=Tenant()).solver == base.solver


# -- drawing -------------------------------------------------------------------------------------------------------

LABELS, SEEDS = [3, 9, 0, 3, 7], [5, 6, 1 << 40, 8, 900]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_an_image_is_that_of_its_seed(sampler: Sampler, tmp_path: Path, eta: float) -> None:
    """Whatever the batch, the order, the thread and what is drawn in between."""
    steps = f"plan:{planned.written(tmp_path / 'plan.json', eta=eta)}@4"
    together = sampler.sample(LABELS, SEEDS, steps=steps, batch_size=5).latents
    for batch_size in (1, 2):
        assert torch.equal(sampler.sample(LABELS, SEEDS, steps=steps, batch_size=batch_size).latents, together)
    backwards = sampler.sample(LABELS[::-1], SEEDS[::-1], steps=steps, batch_size=2).latents
    assert torch.equal(backwards.flip(0), together)
    with ThreadPoolExecutor(3) as pool:
        drawn = pool.map(lambda k: sampler.sample(LABELS[k], SEEDS[k], steps=steps).latents[0], range(3))
    for k, latents in enumerate(drawn):
        assert torch.equal(latents, together[k])
    settings = sampler.settings(steps=steps)
    runs = [sampler.start(disa.Inputs.paired(SEEDS[k], LABELS[k]), settings, "latent") for k in range(2)]
    *_, last = zip(*runs, strict=True)
    for k, turn in enumerate(last):
        assert turn.samples is not None
        assert torch.equal(turn.samples.latents[0], together[k])
    assert torch.equal(sampler.sample(LABELS, SEEDS, steps=steps).latents, together), "once more"


@BOTH
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_each_row_in_a_count_of_its_own_is_as_if_alone(process: Any, eta: float) -> None:
    solver = StepPlan(planned.content(process, eta=eta)).solver
    problem, noise = problem_of(GaussianField(process), 7, process=process), SeededNoise([11])
    counts = torch.tensor([3, 1, 2, 3, 1, 1, 2])
    together = solve(problem, solver, counts, noise)
    assert together.evaluations == counts.sum()
    for row, count in enumerate(counts.tolist()):
        alone = solve(problem.select(torch.tensor([row])), solver, count, noise)
        torch.testing.assert_close(alone.tokens[0], together.tokens[row], rtol=0, atol=0)


@BOTH
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_its_courses_are_those_of_the_solver_they_were_made_of(process: Any, eta: float) -> None:
    """And each stretch goes by its own."""
    solver, noise = StepPlan(planned.content(process, eta=eta)).solver, SeededNoise([11])
    assert solver.stochastic == (eta > 0)
    for k in range(4):
        problem = problem_of(GaussianField(process), 5, process=process)
        problem = replace(problem, ar_step=k, num_ar_steps=4)
        times = np.array(solver.stretches[k // 2][2].times)
        alike = DPMSolverPlusPlus(lambda process, count, times=times: process.grid_at(times), eta)
        assert torch.equal(solve(problem, solver, 3, noise).tokens, solve(problem, alike, 3, noise).tokens)


def test_one_stretch_with_noise_and_one_without() -> None:
    calm, rough = (planned.content(PROCESS, 1, eta=eta)["stretches"][0] for eta in (0.0, 1.0))
    solver = StepPlan(planned.content(stretches=[calm, rough])).solver
    assert solver.stochastic
    assert [solver.at(k, 4).stochastic for k in range(4)] == [False, False, True, True]


@pytest.mark.parametrize("options", [{}, {"guidance": 1.0}, {"interval": (0.3, 0.7)}, {"progress": (0.3, 1.0)}])
def test_counted_evaluations_are_those_made(
    sampler: Sampler, file: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    made, denoise = list[int](), heads.DiffusionHead.denoise

    def counting(self: heads.DiffusionHead, h: Tensor, modulation: Tensor) -> Any:
        made.append(len(h))
        return denoise(self, h, modulation)

    monkeypatch.setattr(heads.DiffusionHead, "denoise", counting)
    monkeypatch.setattr(heads, "padding", lambda *_: 0)  # rows that only fill a tile are no evaluations
    settings = sampler.settings(steps=f"plan:{file}@4", **options)
    for turn in sampler.start(disa.Inputs.paired([0, 1], [3, 4]), settings, "latent"):
        assert turn.step.evaluations == sum(made) > 0
        made.clear()


def test_other_numbers_of_ar_steps(sampler: Sampler, file: Path) -> None:
    for num_ar_steps in (1, 2, 7):
        with pytest.warns(UserWarning, match=f"has 4 counts and is resampled to {num_ar_steps}"):
            samples = sampler.sample(3, 0, steps=f"plan:{file}@4", num_ar_steps=num_ar_steps)
        assert len(samples.trace) == num_ar_steps
        assert torch.isfinite(samples.latents).all()


def drawn(model: Any, request: Request, policy: Any, solver: Any) -> tuple[Tensor, int]:
    steps = list(generate_steps(model, request, policy, solver, SeededNoise(range(request.batch_size))))
    return torch.cat([step.tokens.flatten() for step in steps]), sum(step.evaluations for step in steps)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_it_draws_with_a_model_of_ones_own(eta: float) -> None:
    lines = OWN_MODEL["LINES"]
    flow, noise = (StepPlan(planned.content(process, most=4, eta=eta)) for process in (FLOW, PROCESS))
    request = Request(3, lines)
    exact, _ = drawn(OWN_MODEL["LineModel"](), request, disa.constant(300), Euler("uniform"))
    errors = []
    for count in (1, 4):
        tokens, evaluations = drawn(OWN_MODEL["LineModel"](), request, disa.constant(count), flow.solver)
        assert evaluations == 3 * lines * count
        errors.append((tokens - exact).square().mean().item())
    if not eta:
        assert errors[1] < errors[0]
    tokens, evaluations = drawn(stubs.StubModel(), Request(2, 4), noise.steps(4), noise.solver)
    counts = noise.counts(4)
    assert evaluations == sum(2 * 2 * (k + 1) * count for k, count in enumerate(counts))
    assert torch.equal(tokens, drawn(stubs.StubModel(), Request(2, 4), noise.steps(4), noise.solver)[0])


def test_a_plan_for_the_other_kind_of_model_is_one_line(tmp_path: Path) -> None:
    """Times that only a flow has."""
    courses = planned.content(FLOW)["stretches"]
    for stretch in courses:
        for course in stretch:
            course["times"][0] = 1.0
    path = planned.written(tmp_path / "plan.json", stretches=courses)
    assert "expected falling times" in refused(lambda: small.sampler().settings(steps=f"plan:{path}@4"))


# -- the noise that rows begin with --------------------------------------------------------------------------------


@BOTH
def test_rows_begin_with_scaled_noise(process: Any) -> None:
    half, whole = (StepPlan(planned.content(process, spread=spread)).solver for spread in (0.5, 1.0))
    problem, noise = problem_of(GaussianField(process), 5, process=process), SeededNoise([3])

    class Halved(SeededNoise):
        def initial(self, problem: DenoisingProblem) -> Tensor:
            return super().initial(problem) / 2

    for n in (1, 2, 3):
        expected = solve(problem, whole, n, Halved([3])).tokens
        assert torch.equal(solve(problem, half, n, noise).tokens, expected)
        assert not torch.equal(solve(problem, whole, n, noise).tokens, expected)


def test_the_spread_decides_images(tmp_path: Path) -> None:
    plans = [read_plan(planned.written(tmp_path / f"{s}.json", spread=s), "plan") for s in (1.0, 0.9)]
    assert plans[0].hash == StepPlan(planned.content()).hash != plans[1].hash
    for wrong in (0, -1, 11, "1", None, [1.0]):
        path = planned.written(tmp_path / "wrong.json", spread=wrong)
        assert "spread" in refused(lambda path=path: read_plan(path, "plan"))
