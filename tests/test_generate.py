"""The one loop, with a model of 20 lines."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core.diffusion import CosineDiffusion
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, DenoisingProblem, Field, Noise, Plan, Prediction, TimeGrid
from disa.core.request import Request
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, constant, linear
from disa.errors import DisaError
from fields import Said

PROCESS = CosineDiffusion()


@dataclass
class StubState:
    request: Request
    ar_step: int = 0
    accepted: list[Tensor] = field(default_factory=list)


@dataclass
class StubField(Field):
    """Predicts no noise at all, twice, as if guided."""

    calls: list[int]
    """Rows of every call."""

    def on(self, grid: TimeGrid) -> Bound:
        def evaluate(x: Tensor, denoise_step: int) -> Prediction:
            self.calls.append(len(x))
            return Prediction(torch.zeros_like(x), None)

        return Said.on(grid, evaluate, cost=2)

    def select(self, rows: Tensor) -> Field:
        return self


class StubModel:
    """AR step k draws k + 1 tokens of 3 channels in every image. calls: what the loop did, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.rows: list[int] = []
        self.grad_enabled: set[bool] = set()

    def begin(self, request: Request, noise: Noise) -> StubState:
        self.calls.append("begin")
        return StubState(request)

    def pose(self, state: StubState) -> DenoisingProblem:
        self.calls.append(f"pose {state.ar_step}")
        self.grad_enabled.add(torch.is_grad_enabled())
        count, batch = state.ar_step + 1, state.request.batch_size
        image = torch.arange(batch).repeat_interleave(count)
        stub = StubField(self.rows)
        position = torch.arange(count).repeat(batch)
        return DenoisingProblem(stub, PROCESS, (3,), image, position, state.ar_step, state.request.num_ar_steps)

    def accept(self, state: StubState, tokens: Tensor) -> None:
        self.calls.append(f"accept {state.ar_step}")
        state.accepted.append(tokens)
        state.ar_step += 1

    def finish(self, state: StubState) -> Tensor:
        return torch.cat(state.accepted)


def generate(model: StubModel, policy: StepPolicy, num_ar_steps: int = 4, solver: str = "ddim"):
    request = Request(batch_size=2, num_ar_steps=num_ar_steps)
    return generate_steps(model, request, policy, make_solver(solver, "uniform"), SeededNoise([1, 2]))  # pyright: ignore


def test_the_model_is_called_in_turn_and_every_turn_is_yielded():
    model, seen = StubModel(), []
    for step in generate(model, constant(3)):
        seen.append(step.ar_step)
        assert model.calls[-1] == f"accept {step.ar_step}"
    assert seen == [0, 1, 2, 3]
    turns = [f"{call} {k}" for k in range(4) for call in ("pose", "accept")]
    assert model.calls == ["begin", *turns]


def test_nothing_is_done_before_it_is_asked_for():
    model = StubModel()
    steps = generate(model, constant(3))
    assert model.calls == []
    next(steps)
    assert model.calls == ["begin", "pose 0", "accept 0"]


def test_a_turn_says_what_was_asked_drawn_and_evaluated():
    model, policy = StubModel(), linear(9, 2)
    turns = list(generate(model, policy))
    state = turns[-1].state
    for k, step in enumerate(turns):
        rows = 2 * (k + 1)
        assert step.steps == policy.at(k, 4) == [9, 6, 4, 2][k]
        assert step.evaluations == 2 * rows * step.steps
        assert step.tokens.shape == (rows, 3)
        assert torch.equal(step.tokens, state.accepted[k])
        assert (step.problem.ar_step, step.problem.num_ar_steps) == (k, 4)
        assert step.seconds_backbone >= 0
        assert step.seconds_head > 0
    assert sum(step.evaluations for step in turns) == 2 * sum(model.rows)
    assert len(model.finish(state)) == 2 * (1 + 2 + 3 + 4)


def test_the_tokens_are_what_the_solver_makes_of_the_noise():
    """With no predicted noise DDIM only rescales, so a token is its initial noise over sqrt(abar)."""
    for step in generate(StubModel(), constant(5)):
        expected = SeededNoise([1, 2]).initial(step.problem) / PROCESS.alpha_bar[950] ** 0.5
        torch.testing.assert_close(step.tokens, expected)


def test_an_adaptive_policy_gives_each_row_its_count():
    seen = []

    def more_for_the_second_image(problem: DenoisingProblem) -> Tensor:
        seen.append(problem.ar_step)
        return torch.where(problem.image == 1, 7, 2)

    turns = list(generate(StubModel(), more_for_the_second_image))
    assert seen == [0, 1, 2, 3]
    for k, step in enumerate(turns):
        assert isinstance(step.steps, Tensor)
        assert step.steps.tolist() == [2] * (k + 1) + [7] * (k + 1)
        assert step.evaluations == 2 * (k + 1) * (2 + 7)


def test_evaluations_of_a_probing_policy_count():
    def probe(problem: DenoisingProblem) -> int:
        problem.field.on(problem.process.grid("uniform", 1))(torch.zeros(problem.num_rows, 3), 0)
        return 4

    for k, step in enumerate(generate(StubModel(), probe)):
        assert step.evaluations == 2 * 2 * (k + 1) * (4 + 1)


def test_two_generations_on_one_model_do_not_mix():
    alone = [step.tokens for step in generate(StubModel(), constant(4))]
    model = StubModel()
    pairs = list(zip(generate(model, constant(4)), generate(model, linear(9, 2)), strict=True))
    assert all(torch.equal(first.tokens, tokens) for (first, _), tokens in zip(pairs, alone, strict=True))
    assert [second.evaluations for _, second in pairs] == [2 * 2 * (k + 1) * n for k, n in enumerate([9, 6, 4, 2])]


def test_gradients_are_off_inside_and_untouched_outside():
    model = StubModel()
    for _ in generate(model, constant(2)):
        assert torch.is_grad_enabled()
    assert model.grad_enabled == {False}
    assert torch.is_grad_enabled()


def test_the_clock_is_the_caller_s():
    """Asked around what the backbone and what the head do; nothing waits for its moments until they are subtracted."""
    subtracted: list[int] = []

    class Moment:
        def __init__(self, place: int) -> None:
            self.place = place

        def __sub__(self, earlier: Any) -> float:
            subtracted.append(self.place)
            return 10.0**self.place - 10.0**earlier.place

    places = count()
    request, solver = Request(2, 3), make_solver("ddim", "uniform")
    model: Any = StubModel()
    steps = list(generate_steps(model, request, constant(2), solver, SeededNoise([1, 2]), lambda: Moment(next(places))))
    assert not subtracted
    assert [step.seconds_head for step in steps] == [90.0, 900000.0, 9000000000.0]
    assert [step.seconds_backbone for step in steps] == [909.0, 9090000.0, 90900000000.0]


@pytest.mark.parametrize("answer", [np.int64(4), "4", [4, 4], Plan(4), torch.tensor([4, 4])])
def test_every_answer_that_is_a_plan_is_drawn_alike(answer: Any):
    steps = [next(iter(generate(StubModel(), policy))) for policy in (constant(4), lambda problem: answer)]
    assert torch.equal(steps[0].tokens, steps[1].tokens)
    assert steps[0].evaluations == steps[1].evaluations == 2 * 2 * 4


@pytest.mark.parametrize("answer", [None, 2.5, "four", [4.5, 4], torch.tensor([4.5, 4.0]), True])
def test_another_answer_is_refused(answer: Any):
    model = StubModel()
    with pytest.raises(DisaError, match=r"a step policy answers with|each of the"):
        next(generate(model, lambda problem: answer))
    assert model.calls == ["begin", "pose 0"]


def test_what_a_policy_evaluates_is_counted_and_only_its_calls_are():
    """A policy may bind a field and call it once, on some rows, or solve; the yielded problem is not metered."""

    def looks(problem: DenoisingProblem) -> int:
        bound = problem.select(torch.tensor([0])).field.on(problem.process.grid("uniform", 9))
        bound(torch.zeros(1, 3), 3)
        solve(problem, make_solver("ddim", "uniform"), 3, SeededNoise([1, 2]))
        return 4

    model = StubModel()
    for k, step in enumerate(generate(model, looks)):
        rows = 2 * (k + 1)
        assert step.evaluations == 2 * (1 + 3 * rows + 4 * rows)
        assert isinstance(step.problem.field, StubField)


@pytest.mark.parametrize("counts", [0, torch.tensor([2]), torch.tensor([2, 0])])
def test_a_policy_that_gives_no_steps_or_too_few_counts_is_refused(counts: int | Tensor):
    model = StubModel()
    with pytest.raises(DisaError):
        next(generate(model, lambda problem: counts))
    assert model.calls == ["begin", "pose 0"]
