"""Rows that go along grids of their own, evaluated together: the same bits as apart, in fewer calls."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from disa.core.courses import CalibratedSolver, Course
from disa.core.multistep import updates
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, DenoisingProblem, Field, Look, Process, TimeGrid
from disa.core.solve import Plainly, solve, ways_of
from disa.core.solver import Solver, Walk, walks
from disa.core.solvers import DDIM, parse_solver
from disa.models.guided import Guided
from disa.models.heads import DiffusionHead, HeadNetwork
from disa.models.layers import initialise
from disa.runtime.graphs import record
from disa.runtime.rows import RowSteps, bucket, courses_of
from gaussian import PROCESS, GaussianField, problem_of
from planned import looking
from stand_in import StandIn

COUNTS = torch.tensor([3, 1, 6, 3, 2, 6, 1, 4])
CHANNELS, WIDTH = 4, 32


@pytest.fixture(scope="module")
def head() -> DiffusionHead:
    head = DiffusionHead(CHANNELS, 8, WIDTH, 2)
    initialise(head, 0)
    random = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=random)
    return head.eval().requires_grad_(False)


def problem(head: DiffusionHead, scale: float = 2.5, interval: tuple[float, float] = (0.0, 1.0)) -> DenoisingProblem:
    random, rows = torch.Generator().manual_seed(2), torch.arange(len(COUNTS))
    halves = torch.randn(2, len(COUNTS), 8, generator=random)
    field = Guided(HeadNetwork.of(head, *halves), scale, interval)
    return DenoisingProblem(field, PROCESS, (CHANNELS,), rows % 2, rows, 1, 4)


def planned() -> CalibratedSolver:
    courses = []
    for count in range(1, 7):
        grid = PROCESS.grid("uniform", count)
        courses.append(Course(tuple(grid.times.tolist()), updates(PROCESS, grid)))
    return CalibratedSolver((tuple(courses),))


def alone(problem: DenoisingProblem, solver: Solver, noise: SeededNoise, counts: Tensor = COUNTS) -> tuple[Tensor, int]:
    """Every row by itself."""
    found = [
        solve(problem.select(torch.tensor([row])), solver, count, noise) for row, count in enumerate(counts.tolist())
    ]
    return torch.cat([each.tokens for each in found]), sum(each.evaluations for each in found)


@pytest.mark.parametrize(
    ("scale", "interval"), [(2.5, (0.0, 1.0)), (2.5, (0.2, 0.7)), (0.5, (0.5, 1.0)), (1.0, (0.0, 1.0))]
)
@pytest.mark.parametrize("text", ["ddpm@uniform", "ddim@uniform:eta=0.5", "dpm-solver++-2:eta=1", "plan"])
@torch.no_grad()
def test_rows_together_are_the_rows_alone(head: DiffusionHead, text: str, scale: float, interval: tuple[float, float]):
    solver, posed, noise = (
        planned() if text == "plan" else parse_solver(text),
        problem(head, scale, interval),
        SeededNoise([5, 6]),
    )
    tokens, evaluations = alone(posed, solver, noise)
    found = solve(posed, solver, COUNTS, noise)
    assert torch.equal(found.tokens, tokens)
    assert found.evaluations == evaluations


@torch.no_grad()
def test_the_network_is_called_once_for_each_step_of_the_longest(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch):
    calls, denoise = list[int](), head.denoise

    def counting(h: Tensor, modulation: Tensor) -> object:
        calls.append(len(h))
        return denoise(h, modulation)

    monkeypatch.setattr(head, "denoise", counting)
    solve(problem(head), planned(), COUNTS, SeededNoise([5, 6]))
    assert len(calls) == 6


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.7)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@torch.no_grad()
def test_rows_that_were_looked_at_are_the_rows_that_were_not(
    head: DiffusionHead, interval: tuple[float, float], eta: float, monkeypatch: pytest.MonkeyPatch
):
    """Looking saves the evaluations that all courses share, and changes no row and no count of evaluations."""
    posed, noise, solver = problem(head, interval=interval), SeededNoise([5, 6]), looking(eta=eta)
    counts, calls, denoise = COUNTS.clamp(min=2), list[int](), head.denoise
    tokens, evaluations = alone(posed, solver.looked, noise, counts)

    def counting(h: Tensor, modulation: Tensor) -> object:
        calls.append(len(h))
        return denoise(h, modulation)

    monkeypatch.setattr(head, "denoise", counting)
    found = solve(posed, solver, Look(lambda change: counts), noise)
    assert torch.equal(found.tokens, tokens)
    assert found.evaluations == evaluations
    assert len(calls) == 6


def test_fields_and_solvers_that_cannot_are_asked_apart(head: DiffusionHead):
    class Own(DDIM):
        def run(self, bound: Bound, problem: DenoisingProblem, grid: TimeGrid, x: Tensor, noise: Tensor) -> Tensor:
            return super().run(bound, problem, grid, x, noise) + 1

    assert walks(DDIM())
    assert not walks(Own("uniform"))
    noise, posed = SeededNoise([5, 6]), problem(head)
    with torch.no_grad():
        usual, other = (
            solve(posed, solver, COUNTS, noise) for solver in (parse_solver("ddim@uniform"), Own("uniform"))
        )
    assert torch.equal(usual.tokens + 1, other.tokens)
    assert usual.evaluations == other.evaluations
    field: Field = GaussianField()
    assert solve(problem_of(field, 3), parse_solver("ddim@uniform"), torch.tensor([1, 2, 5]), noise).evaluations == 8


# -- graphs of one denoising step --------------------------------------------------------------------------------------


def test_buckets_hold_the_rows_and_little_more() -> None:
    assert [bucket(count, 64) for count in (1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49)] == [
        *(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    ]
    assert bucket(9, 10) == 10


def row_steps(tape: StandIn, posed: DenoisingProblem, noise: SeededNoise, found: tuple[Any, Any]) -> RowSteps:
    """For a problem as it lies in a box, whose numbers are on the device."""
    field: Any = posed.field
    ar_step: Any = torch.tensor(posed.ar_step)
    on_box = replace(posed, field=replace(field, scale=torch.tensor(field.scale)), ar_step=ar_step)
    return RowSteps(partial(record, tape, tape.new_pool()), on_box, found[0], noise, found[1])


@pytest.mark.parametrize(("scale", "interval"), [(2.5, (0.2, 0.7)), (1.0, (0.0, 1.0))])
@pytest.mark.parametrize("text", ["ddpm@uniform", "ddim@uniform:eta=0.5", "dpm-solver++-2:eta=1", "plan"])
@torch.no_grad()
def test_graphs_of_single_steps_give_the_same(
    head: DiffusionHead, text: str, scale: float, interval: tuple[float, float]
) -> None:
    """Other counts of the same rows need no other graphs, if as many rows go on."""
    solver = planned() if text == "plan" else parse_solver(text)
    posed, noise, tape = problem(head, scale, interval), SeededNoise([5, 6]), StandIn()
    steps, captured = None, list[int]()
    for counts in (COUNTS, COUNTS.flip(0), COUNTS.roll(3)):
        found = courses_of(posed, solver, ways_of(counts, posed, solver))
        assert found is not None
        steps = steps or row_steps(tape, posed, noise, found)
        tokens, evaluations = steps.run(found[1])
        expected = solve(posed, solver, counts, noise)
        assert torch.equal(tokens, expected.tokens)
        assert evaluations == expected.evaluations
        captured.append(tape.captures)
    assert captured[0] == captured[2]


@torch.no_grad()
def test_graphs_go_on_from_a_look(head: DiffusionHead) -> None:
    posed, noise, solver = problem(head, interval=(0.2, 0.7)), SeededNoise([5, 6]), looking(eta=1.0)
    counts, looked = COUNTS.clamp(min=2), Plainly(noise).look(posed, solver.looked)
    found = courses_of(posed, solver.looked, ways_of(counts, posed, solver.looked))
    assert found is not None
    tokens, made = row_steps(StandIn(), posed, noise, found).run(found[1], looked)
    expected = solve(posed, solver, Look(lambda change: counts), noise)
    assert torch.equal(tokens, expected.tokens)
    assert made + looked.evaluations == expected.evaluations


@pytest.mark.parametrize("wrong", ["capture", "replay", "memory"])
@torch.no_grad()
def test_a_step_whose_graph_is_wrong_is_done_without_one(head: DiffusionHead, wrong: str) -> None:
    posed, noise, solver, tape = problem(head), SeededNoise([5, 6]), parse_solver("ddpm@uniform"), StandIn()
    found = courses_of(posed, solver, ways_of(COUNTS, posed, solver))
    assert found is not None
    steps = row_steps(tape, posed, noise, found)
    tape.broken = lambda count: wrong == "capture" and count == 3
    tape.full = wrong == "memory"
    tape.after = lambda: wrong == "replay" and steps.x.mul_(1.5)
    with pytest.warns(UserWarning, match="denoising step of [0-9]+ rows is drawn without a captured graph"):
        steps.run(found[1])
    assert None in steps.steps.values()
    tape.after, tape.full = lambda: None, False
    assert torch.equal(steps.run(found[1])[0], solve(posed, solver, COUNTS, noise).tokens)


def test_a_solver_that_walks_another_way_has_no_formula_of_its_base(head: DiffusionHead) -> None:
    class Own(DDIM):
        def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
            end = yield from super().walk(process, grid, x, noise)
            return end + 1

    posed, own = problem(head), Own("uniform")
    assert courses_of(posed, own, ways_of(COUNTS, posed, own)) is None
    assert courses_of(posed, parse_solver("ddim@uniform"), ways_of(COUNTS, posed, own)) is not None
