"""`straight`: counts by row from how straight a path begins, chosen at a budget, and what a plan holds for it."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import planned
import small
from disa.core.noise import SeededNoise
from disa.core.plans import StepPlan, read_plan
from disa.core.problem import Look
from disa.core.solve import look_along, solve
from disa.core.straight import Bins, Straight, choices, log_change
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.study.looks import BINS, FEW, FINE, by_change, looked_ways, told_look
from disa.study.times import best_ways
from gaussian import FLOW, PROCESS, GaussianField, problem_of

pytestmark = pytest.mark.usefixtures("one_thread")
MOST = 3


def content(**changed: Any) -> dict[str, Any]:
    return planned.content(looks=planned.looks(), **changed)


# -- the look --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [PROCESS, FLOW], ids=["diffusion", "flow"])
def test_the_change_is_that_of_the_data_predicted_at_the_first_two_times(process: Any):
    field, solver = GaussianField(process), planned.looking(process)
    problem, noise = problem_of(field, 5, process=process), SeededNoise([3])
    found = look_along(problem, solver.looked, noise)
    said, change, evaluations = found.said, found.change, found.evaluations
    levels = solver.looked.plan(process, 2).levels
    data = [
        process.data(x, each.value, float(level)) for x, each, level in zip(field.states, said, levels, strict=False)
    ]
    assert evaluations == field.made() == 10
    assert torch.equal(change, (data[1] - data[0]).square().mean(1))
    assert len(change.unique()) == 5


def test_rows_go_by_the_bin_of_their_change():
    problem, solver, noise = problem_of(GaussianField(), 40), planned.looking(), SeededNoise([3])
    seen: list[Tensor] = []
    choice, edges = (2, 4, 6), (-1.5, -0.5)
    policy = Straight((choice,), (edges,), "straight", StepPlan(content()))
    answer = policy(problem)
    assert isinstance(answer, Look)

    def go_on(change: Tensor) -> Tensor:
        seen.append(change)
        return answer.go_on(change)

    found = solve(problem, solver, Look(go_on), noise)
    logs = seen[0].log().tolist()
    assert isinstance(found.steps, Tensor)
    assert found.steps.tolist() == [2 if log <= -1.5 else 4 if log <= -0.5 else 6 for log in logs]
    assert len(found.steps.unique()) == 3
    assert found.evaluations == found.steps.sum()


# -- what a budget buys ----------------------------------------------------------------------------------------------


def bins_of(seed: int, num_bins: int = 3) -> Bins:
    random = np.random.default_rng(seed)
    errors = np.sort(random.exponential(size=(num_bins, MOST - 1)) * np.geomspace(0.1, 10, num_bins)[:, None])[:, ::-1]
    shares = random.dirichlet(np.ones(num_bins))
    return Bins(np.sort(random.normal(size=num_bins - 1)), shares, errors)


def chosen(plan: StepPlan, bins: list[Bins], budget: float) -> Any:
    return choices(plan.errors, plan.costs, plan.weights, bins, budget * sum(plan.content["rows"]) * (1 + 1e-9))


def total(plan: StepPlan, bins: list[Bins], made: Any) -> tuple[float, float]:
    """The error and the cost of an image."""
    error = cost = 0.0
    for k, choice in enumerate(made):
        own = bins[k * len(bins) // len(made)]
        if isinstance(choice, int):
            error, cost = error + plan.errors[k, choice - 1], cost + plan.costs[k, choice - 1]
            continue
        for share, errors, count in zip(own.shares, own.errors, choice, strict=True):
            error += share * errors[count - 2] * plan.weights[k]
            cost += share * plan.costs[k, count - 1]
    return error, cost


@pytest.mark.parametrize("seed", range(6))
def test_no_other_choice_that_costs_no_more_leaves_less_error(seed: int):
    """Against all choices there are, at every budget that the best price reaches."""
    plan, bins = StepPlan(content()), [bins_of(seed), bins_of(seed + 100)]
    options = [*range(1, MOST + 1), *itertools.product(range(2, MOST + 1), repeat=3)]
    every = [total(plan, bins, made) for made in itertools.product(options, repeat=4)]
    rows = sum(plan.content["rows"])
    for budget in np.linspace(2, 6, 9):
        error, cost = total(plan, bins, chosen(plan, bins, float(budget)))
        assert cost <= budget * rows * (1 + 1e-9)
        best = min(error for error, other in every if other <= cost * (1 + 1e-9))
        # Between two prices something may be left over: then no choice at that cost is far better.
        assert error <= best * 1.15 + 1e-12
    least = total(plan, bins, chosen(plan, bins, 6.0))[0]
    assert least == pytest.approx(min(error for error, _ in every))


def test_rows_are_not_looked_at_where_they_are_alike():
    """The courses that begin alike leave a little more error than those that need not."""
    plan = StepPlan(content())
    apart = 1.01 * np.array([[course["error"] for course in stretch[1:]] for stretch in plan.content["stretches"]])
    alike = [Bins(np.array([0.0, 1.0]), np.full(3, 1 / 3), np.tile(errors, (3, 1))) for errors in apart]
    for budget in (2.0, 3.3, 4.0, 6.0):
        counts = chosen(plan, alike, budget)
        assert all(isinstance(choice, int) for choice in counts)
        assert plan.per_row(counts) <= budget + 1e-9


def test_a_budget_is_bounded():
    plan = StepPlan(content(), "plan:x")
    for budget in (1.99, 6.01):
        with pytest.raises(DisaError, match=rf"plan:x spends 2 to 6 evaluations per row, found {budget:g}"):
            plan.straight(budget)


# -- measuring -------------------------------------------------------------------------------------------------------


def errors_of(seed: int, count: int) -> np.ndarray:
    """[F, F, F + 1] of steps that may be made."""
    found = np.full((count, count, count + 1), np.inf)
    random = np.random.default_rng(seed)
    for p, i, j in itertools.product(range(count), range(count), range(count + 1)):
        if j > i and (p < i or (p == 0 and i == 0)):
            found[p, i, j] = random.exponential() * (j - i) ** 2
    return found


def length(errors: np.ndarray, way: tuple[int, ...]) -> float:
    then = [*way[1:], len(errors)]
    return float(sum(errors[way[max(n - 1, 0)], i, then[n]] for n, i in enumerate(way)))


@pytest.mark.parametrize("seed", range(4))
def test_ways_that_begin_alike_are_the_best_of_all_that_do(seed: int):
    count, most = 6, 5
    errors = errors_of(seed, count)
    ways = looked_ways(errors, most)
    assert [len(way) for way in ways] == [1, 2, 3, 4, 5]
    assert len({tuple(way[:2]) for way in ways[1:]}) == 1
    best = math.inf
    for second in range(1, count - most + 2):
        least = []
        for n in range(2, FEW + 1):
            rest = itertools.combinations(range(second + 1, count), n - 2)
            least.append(min((length(errors, (0, second, *each)) for each in rest), default=math.inf))
        best = min(best, float(np.mean(np.log(least))))
    assert np.mean([math.log(length(errors, tuple(way))) for way in ways[1:FEW]]) == pytest.approx(best)
    free = [length(errors, tuple(way)) for way in best_ways(errors, most)]
    assert all(length(errors, tuple(way)) >= own - 1e-12 for way, own in zip(ways, free, strict=True))


def test_bins_hold_equally_many_rows_and_their_mean_errors():
    random = np.random.default_rng(0)
    logs = random.normal(size=4000)
    squares = np.exp(logs) * np.array([[1.0], [0.2]])
    halves = [
        by_change(torch.from_numpy(np.exp(logs[part])), squares[:, part]) for part in (slice(1000), slice(1000, None))
    ]
    courses = planned.looking(most=3).looked.stretches[0]
    look = told_look(courses, halves[0] + halves[1])
    assert len(look["shares"]) == BINS
    np.testing.assert_allclose(look["shares"], 1 / BINS, atol=0.05)
    np.testing.assert_allclose(look["edges"], np.quantile(logs, [0.25, 0.5, 0.75]), atol=FINE[1] - FINE[0] + 0.02)
    places = torch.bucketize(
        log_change(torch.from_numpy(np.exp(logs))), torch.tensor(look["edges"], dtype=torch.float32)
    )
    for b, errors in enumerate(look["errors"]):
        np.testing.assert_allclose(errors, squares[:, places.numpy() == b].mean(axis=1), rtol=1e-3)


def test_chance_does_not_turn_the_order_of_bins_and_counts():
    found = np.zeros((len(FINE) + 1, 3))
    for place, (first, second) in zip((10, 50, 90, 130), ((1.0, 2.0), (3.0, 1.0), (2.0, 1.0), (9.0, 1.0)), strict=True):
        found[place] = 100, 100 * first, 100 * second
    errors = np.array(told_look(planned.looking(most=3).looked.stretches[0], found)["errors"])
    assert (np.diff(errors, axis=0) >= 0).all()
    assert (np.diff(errors, axis=1) <= 0).all()
    np.testing.assert_allclose(errors[:, 0], [1.0, 2.5, 2.5, 9.0])


def test_rows_that_are_all_alike_are_one_bin():
    look = told_look(planned.looking(most=3).looked.stretches[0], by_change(torch.full((50,), 0.3), np.ones((2, 50))))
    assert (look["edges"], look["shares"]) == ([], [1.0])


# -- texts and files -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return planned.written(tmp_path / "plan.json", looks=planned.looks())


def test_images_do_not_depend_on_the_batch_and_the_text_is_the_policy(sampler: Sampler, file: Path):
    text = f"straight:{file}@4"
    settings = sampler.settings(steps=text, num_ar_steps=4, batch_size=5)
    assert (str(settings.steps), settings.solver.looks != ()) == (text, True)
    whole = sampler.sample([1, 2, 3, 4, 5], [5, 6, 7, 8, 9], settings=settings, output_type="latent")
    alone = sampler.sample([4], [8], settings=settings, output_type="latent")
    assert torch.equal(whole.latents[3], alone.latents[0])
    plan = sampler.sample([4], [8], steps=f"plan:{file}@4", num_ar_steps=4, output_type="latent")
    assert not torch.equal(plan.latents, alone.latents)


def test_another_number_of_ar_steps_is_stretched_and_said(sampler: Sampler, file: Path):
    with pytest.warns(UserWarning, match="was measured for 4 AR steps and is stretched to 2"):
        sampler.sample([1], [1], steps=f"straight:{file}@4", num_ar_steps=2, output_type="latent")


def test_a_plan_that_has_nothing_for_looking(sampler: Sampler, tmp_path: Path):
    plain = planned.written(tmp_path / "plain.json")
    with pytest.raises(DisaError, match=r"straight:.*plain.json@4 looks at rows, which its plan has nothing for"):
        sampler.settings(steps=f"straight:{plain}@4")
    with pytest.raises(DisaError, match="holds no courses for looking at rows"):
        solve(
            problem_of(GaussianField(), 2),
            read_plan(plain, "plan").solver,
            Look(lambda change: change),
            SeededNoise([0]),
        )


def test_what_a_plan_has_for_looking_tells_images_apart_that_depend_on_it(sampler: Sampler, tmp_path: Path):
    looks = planned.looks()
    looks[0]["errors"][0][0] *= 1.5
    told = {
        steps: [
            sampler.settings(steps=f"{steps}:{planned.written(tmp_path / 'plan.json', looks=each)}@4").to_json()
            for each in (planned.looks(), looks)
        ]
        for steps in ("plan", "straight")
    }
    assert told["plan"][0] == told["plan"][1]
    assert told["straight"][0] != told["straight"][1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"edges": [1.0, 0.0]}, "the edges of a look must rise"),
        ({"edges": [1.0]}, "edges must be a list of 2, found a list of 1"),
        ({"shares": []}, "shares must be a list"),
        ({"shares": [0.5, -0.1, 0.6]}, "a share"),
        ({"errors": [[1.0, 1.0]]}, "the errors of a look must be a list of 3"),
        ({"errors": [[1.0]] * 3}, "errors must be a list of 2, found a list of 1"),
        ({"errors": [[1.0, "0.5"]] * 3}, "an error must be a number"),
        ({"courses": []}, "the courses of a look must be a list of 2"),
        ({"courses": [5, 6]}, "a course must be an object"),
        ({"courses": None}, "the courses of a look must be a list"),
    ],
)
def test_what_is_no_look_is_refused(tmp_path: Path, change: dict[str, Any], said: str):
    looks = planned.looks()
    looks[1] |= change
    with pytest.raises(DisaError, match=said):
        read_plan(planned.written(tmp_path / "plan.json", looks=looks), "plan")


def test_courses_that_begin_otherwise_are_refused(tmp_path: Path):
    looks = planned.looks()
    looks[0]["courses"][1]["times"][1] += 0.01
    with pytest.raises(DisaError, match="the courses of a look must begin alike"):
        read_plan(planned.written(tmp_path / "plan.json", looks=looks), "plan")
    for wrong in ([], [planned.looks()[0]], None, [1, 2]):
        with pytest.raises(DisaError, match=r"looks? must be"):
            read_plan(planned.written(tmp_path / "plan.json", looks=wrong), "plan")
