"""Guidance of every family: any scale is two plain evaluations mixed by hand, and where it is off nothing more is done.

Evaluations that are reported are held against rows that really reach the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import planned
import small
import test_flowar
import test_mar
import test_xar
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, DenoisingProblem, Field, Look, Prediction, TimeGrid
from disa.core.request import Guidance, Prompts, Request
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, constant
from disa.errors import DisaError
from disa.models import heads
from disa.models.bitdance.model import BitDance
from disa.policies.scores import spread_of_draws
from fields import Said

pytestmark = pytest.mark.usefixtures("one_thread")

SCALES = [0.5, 0.0, -1.0, 1.0, 2.5]
SEEDS = [5, 1 << 40, 7]
LABELS = [3, 9, 0]


@dataclass(frozen=True)
class Family:
    """A tiny model. network: where an evaluation's rows pass, as (object, method); backbone: a layer that all rows of
    the backbone pass; solvers: two, of which the first is the official one."""

    model: Any
    num_ar_steps: int
    network: tuple[Any, str]
    backbone: nn.Module
    solvers: tuple[str, str]
    prompts: bool = False
    source: Tensor | None = None
    """A picture that is edited, in as many tokens of the prompts as it takes."""

    def request(self, guidance: Guidance, conditional: bool = True) -> Request:
        """Two images; not conditional: what the unconditional half would be alone."""
        if not self.prompts:
            labels = torch.tensor(LABELS[:2]) if conditional else None
            return Request(2, self.num_ar_steps, labels, guidance)
        from test_harmon import EMPTY, PROMPTS

        empty = [EMPTY, EMPTY]
        asked = [*(PROMPTS[:2] if conditional else empty), *(empty if guidance.active else [])]
        if self.source is not None:
            seen = [self.model.placeholder_id] * self.model.config.num_image_tokens()
            asked = [seen + words for words in asked]
        return Request(2, self.num_ar_steps, guidance=guidance, prompts=Prompts.of(asked), source=self.source)

    def turns(self, guidance: Guidance, policy: StepPolicy, solver: str | None = None) -> Iterator[Any]:
        own = planned.looking(self.model.process) if policy is looking else make_solver(self.solvers[0])
        chosen = make_solver(solver) if solver else own
        return generate_steps(self.model, self.request(guidance), policy, chosen, SeededNoise(SEEDS[:2]))


def _mar() -> Family:
    model = test_mar.random_weights(test_mar.TINY)
    return Family(model, 4, (model.head, "denoise"), model.encoder[0], ("ddpm", "ddim"))


def _flowar(cross: bool) -> Family:
    model = test_flowar.random_weights(test_flowar.CROSS if cross else test_flowar.PLAIN)
    return Family(model, model.config.num_ar_steps, (model.head, "denoise"), model.encoder[0], ("euler", "heun"))


def _xar() -> Family:
    model = test_xar.random_weights(test_xar.TINY)
    return Family(model, 4, (model, "velocity"), model.encoder[0], ("euler-maruyama", "euler"))


def _bitdance() -> Family:
    config = replace(small.BITDANCE_CONFIG, latent_size=(2, 2), group_size=1)
    model = small.randomised(BitDance(config))
    return Family(model, 4, (model.head, "denoise"), model.blocks[0], ("euler-maruyama-ode", "euler"))


def _harmon() -> Family:
    pytest.importorskip("transformers")
    import test_harmon

    model = test_harmon.random_weights(test_harmon.CONFIG)
    return Family(model, 4, (model.mar.head, "denoise"), model.llm.layers[0], ("ddpm", "ddim"), prompts=True)


def _editing() -> Family:
    pytest.importorskip("transformers")
    model, source = small.unipic(), torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    network, solvers = (model.mar.head, "denoise"), ("ddpm", "ddim")
    return Family(model, 4, network, model.llm.layers[0], solvers, prompts=True, source=source)


def _nextstep() -> Family:
    pytest.importorskip("transformers")
    model = small.nextstep()
    solvers = ("euler-maruyama-ode", "euler")
    return Family(model, 6, (model.head, "denoise"), model.llm.layers[0], solvers, prompts=True)


FAMILIES: dict[str, Callable[[], Family]] = {
    "mar": _mar,
    "flowar": lambda: _flowar(False),
    "flowar-cross": lambda: _flowar(True),
    "xar": _xar,
    "bitdance": _bitdance,
    "harmon": _harmon,
    "unipic, editing": _editing,
    "nextstep": _nextstep,
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]()


@contextmanager
def counting(place: Any, name: str) -> Iterator[list[int]]:
    """The rows of the first tensor of every call."""
    rows, original = list[int](), getattr(place, name)

    def counted(*arguments: Any, **options: Any) -> Any:
        rows.append(len(next(value for value in (*arguments, *options.values()) if isinstance(value, Tensor))))
        return original(*arguments, **options)

    setattr(place, name, counted)
    try:
        yield rows
    finally:
        delattr(place, name)


# -- any scale -----------------------------------------------------------------------------------------------------


class Mixed(Field):
    """unconditional + scale (conditional - unconditional), from two plain fields."""

    def __init__(self, yes: Field, no: Field, scale: float) -> None:
        self.yes, self.no, self.scale = yes, no, scale

    def on(self, grid: TimeGrid) -> Bound:
        yes, no = self.yes.on(grid), self.no.on(grid)

        def evaluate(x: Tensor, denoise_step: int) -> Prediction:
            with_condition, without = yes(x, denoise_step), no(x, denoise_step).value
            return Prediction(without + self.scale * (with_condition.value - without), with_condition.variance)

        return Said.on(grid, evaluate, cost=2)

    def select(self, rows: Tensor) -> Field:
        return Mixed(self.yes.select(rows), self.no.select(rows), self.scale)


def posed(family: Family, scale: float, ar_steps: int) -> tuple[DenoisingProblem, DenoisingProblem]:
    """The problem of an AR step with guidance, and the same mixed by hand; all saw the same tokens before."""
    off, noise = Guidance(), SeededNoise(SEEDS[:2])
    requests = (
        family.request(Guidance(scale, "constant")),
        family.request(off),
        family.request(off, conditional=False),
    )
    states = [family.model.begin(request, noise) for request in requests]
    problems = [family.model.pose(state) for state in states]
    for _ in range(ar_steps):
        tokens = 0.5 * SeededNoise([9, 10]).initial(problems[0])
        for state in states:
            family.model.accept(state, tokens)
        problems = [family.model.pose(state) for state in states]
    guided, yes, no = problems
    return guided, replace(guided, field=Mixed(yes.field, no.field, scale))


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("ar_steps", [0, 2])
@pytest.mark.parametrize("scale", SCALES)
@torch.no_grad()
def test_a_guided_field_is_two_plain_evaluations_mixed_by_hand(family: Family, scale: float, ar_steps: int):
    guided, by_hand = posed(family, scale, ar_steps)
    grid = guided.process.grid("uniform", 3)
    bound, expected, x = guided.field.on(grid), by_hand.field.on(grid), SeededNoise([3, 4]).initial(guided)
    assert list(bound.costs) == [1 if scale == 1 else 2] * 3
    for i in range(3):
        found, right = bound(x, i), expected(x, i)
        close(found.value, right.value)
        if right.variance is not None:
            assert found.variance is not None
            close(found.variance, right.variance)
    assert guided.guidance == scale


@pytest.mark.parametrize("scale", SCALES)
@torch.no_grad()
def test_an_ar_step_is_that_of_two_plain_fields_mixed_by_hand(family: Family, scale: float):
    guided, by_hand = posed(family, scale, 1)
    counts = torch.arange(guided.num_rows) % 2 + 2
    for solver in map(make_solver, family.solvers):
        found, right = (solve(problem, solver, counts, SeededNoise(SEEDS[:2])) for problem in (guided, by_hand))
        close(found.tokens, right.tokens)
        assert found.evaluations == (right.evaluations // 2 if scale == 1 else right.evaluations)


def test_every_scale_draws_another_picture(family: Family):
    ends = [list(family.turns(Guidance(scale, "constant"), constant(2)))[-1].tokens for scale in SCALES]
    for i, one in enumerate(ends):
        assert all((one - other).abs().max() > 1e-4 for other in ends[:i])


# -- where guidance acts over AR steps -----------------------------------------------------------------------------


PROGRESS = [(0.0, 1.0), (0.5, 1.0), (0.0, 0.4), (0.3, 0.7), (0.45, 0.45)]


def acts(family: Family, progress: tuple[float, float]) -> list[bool]:
    low, high = progress
    return [low <= k / (family.num_ar_steps - 1) <= high for k in range(family.num_ar_steps)]


@pytest.mark.parametrize("progress", PROGRESS)
def test_outside_the_interval_of_progress_one_half_is_evaluated(family: Family, progress: tuple[float, float]):
    steps = list(family.turns(Guidance(2.5, "constant", progress=progress), constant(3), family.solvers[1]))
    on = acts(family, progress)
    made = [3 * step.problem.num_rows * (2 if acting else 1) for step, acting in zip(steps, on, strict=True)]
    assert [step.evaluations for step in steps] == made
    assert [step.problem.guidance for step in steps] == [2.5 if acting else 1.0 for acting in on]


@pytest.mark.parametrize("progress", PROGRESS)
@torch.no_grad()
def test_an_ar_step_without_guidance_is_that_of_a_model_that_never_had_any(
    family: Family, progress: tuple[float, float]
):
    """Bit by bit, given the same tokens before; and one with guidance is that of a model that always has it."""
    model, noise = family.model, SeededNoise(SEEDS[:2])
    guidances = (Guidance(2.5, "constant", progress=progress), Guidance(), Guidance(2.5, "constant"))
    states = [model.begin(family.request(guidance), noise) for guidance in guidances]
    for acting in acts(family, progress):
        found, never, always = (model.pose(state) for state in states)
        grid, x = found.process.grid("uniform", 2), SeededNoise([3, 4]).initial(found)
        values = [problem.field.on(grid)(x, 0).value for problem in (found, never, always)]
        assert torch.equal(values[0], values[2 if acting else 1])
        assert not torch.equal(values[0], values[1 if acting else 2])
        for state in states:
            model.accept(state, 0.5 * SeededNoise([9, 10]).initial(found))


@pytest.mark.parametrize("progress", PROGRESS)
@torch.no_grad()
def test_the_backbone_runs_one_half_where_no_later_cache_needs_the_other(family: Family, progress: tuple[float, float]):
    """MAR and Harmon compute every AR step anew. The others keep keys and values, which a later guided AR step needs of
    both halves; xAR and NextStep pass what was drawn when the next is posed."""
    guidance, on = Guidance(2.5, "constant", progress=progress), acts(family, progress)
    state = family.model.begin(family.request(guidance), SeededNoise(SEEDS[:2]))
    caches, begun = hasattr(state, "cache") or hasattr(state, "readings"), family.network[1] == "velocity"
    begun = begun or hasattr(state, "readings")  # what the first AR step needs was read before
    for k in range(family.num_ar_steps):
        with counting(family.backbone, "forward") as rows:
            problem = family.model.pose(state)
        both = any(on[k:]) if caches else on[k]
        assert sum(rows) == (0 if begun and k == 0 else 4 if both else 2)
        family.model.accept(state, SeededNoise([9, 10]).initial(problem))


def test_a_ramp_that_is_at_1_needs_no_second_half():
    """Where the linear ramp is exactly at 1 FlowAR's first scale has one half in its head, but two in its backbone."""
    family = FAMILIES["flowar"]()
    state = family.model.begin(family.request(Guidance(2.5)), SeededNoise(SEEDS[:2]))
    with counting(family.backbone, "forward") as rows:
        problem = family.model.pose(state)
    assert (sum(rows), set(problem.field.on(problem.process.grid("uniform", 3)).costs)) == (4, {1})


@pytest.mark.parametrize("progress", [(0.5, 0.2), (-0.1, 1.0), (0.0, 1.1), (0.5,), (float("nan"), 1.0)])
def test_an_interval_of_progress_that_is_none_is_refused(progress: Any):
    with pytest.raises(DisaError, match="the guidance progress must be two shares 0 <= low <= high <= 1"):
        Guidance(2.0, progress=progress)


def test_a_single_ar_step_is_at_progress_0():
    assert Guidance(3.0, progress=(0.0, 0.5)).scales([1.0]) == [3.0]
    assert Guidance(3.0, progress=(0.5, 1.0)).scales([1.0]) == [1.0]


# -- evaluations are what reaches the network ----------------------------------------------------------------------


def row_wise(problem: DenoisingProblem) -> Tensor:
    return torch.arange(problem.num_rows) % 3 + 1


def looking(problem: DenoisingProblem) -> Look:
    return Look(lambda change: torch.arange(len(change)) % 3 + 2)


def scoring(problem: DenoisingProblem) -> Tensor:
    return torch.where(spread_of_draws(problem) > 0, 3, 2)


def selecting(problem: DenoisingProblem) -> int:
    """Evaluates one row with a field of its own."""
    part = problem.select(torch.tensor([0]))
    part.field.on(problem.process.grid("uniform", 1))(SeededNoise([1, 2]).initial(part), 0)
    return 2


POLICIES: list[StepPolicy] = [constant(3), row_wise, looking, scoring, selecting]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: getattr(policy, "__name__", str(policy)))
@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(2.5),
        Guidance(0.5, "constant", (0.3, 0.8)),
        Guidance(-1.0, "constant", (0.0, 0.9), (0.3, 1.0)),
    ],
    ids=["off", "linear", "interval", "progress"],
)
def test_reported_evaluations_are_the_rows_that_reach_the_network(
    family: Family, guidance: Guidance, policy: StepPolicy, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(heads, "padding", lambda *_: 0)  # rows that only fill a tile are no evaluations
    with counting(*family.network) as rows:
        for step in family.turns(guidance, policy):
            assert step.evaluations == sum(rows)
            rows.clear()


@pytest.mark.parametrize("solver", ["heun", "dpm-solver++-2", "euler"])
def test_every_solver_calls_the_network_as_often_as_it_says(solver: str):
    family = FAMILIES["flowar"]()
    with counting(*family.network) as rows:
        for step in family.turns(Guidance(2.5, "constant", (0.3, 0.8)), row_wise, solver):
            assert step.evaluations == sum(rows)
            rows.clear()
