"""BitDance on tiny random weights: places, order, halves apart, its cache, and what may not change an image."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import small
from conftest import GOLDEN
from disa.core.flow import FlowMatching
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import ARStep, Prediction
from disa.core.request import Guidance, Request
from disa.core.solver import advance
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, constant, linear
from disa.errors import DisaError
from disa.models.bitdance.config import BitDanceConfig
from disa.models.bitdance.model import BitDance
from disa.models.registry import find_preset
from gaussian import GaussianField
from golden import report

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

from launches import Launches, draw, on_meta, request_for, solver_of  # pyright: ignore

pytestmark = pytest.mark.usefixtures("one_thread")

ONE = replace(small.BITDANCE_CONFIG, latent_size=(4, 2), group_size=1, depth=2, head_modulations=1)
SQUARES = replace(ONE, latent_size=(4, 4), group_size=4)
LINES = replace(SQUARES, squares=False)
CONFIGS = {"one": ONE, "squares": SQUARES, "lines": LINES}
SEEDS = (5, 6, 1 << 40, 8, 900)
LABELS = (3, 9, 0, 3, 7)
PROCESS = BitDance.process
SOLVER = make_solver("euler-maruyama-ode", "bitdance")
GUIDANCE, ANNEALED = Guidance(2.5), linear(3, 1)


def random_weights(config: BitDanceConfig) -> BitDance:
    return small.randomised(BitDance(config))


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> BitDance:
    return random_weights(CONFIGS[request.param])


def turns(
    model: BitDance, rows: slice = slice(3), guidance: Guidance = GUIDANCE, policy: StepPolicy = ANNEALED
) -> Iterator[ARStep]:
    labels = torch.tensor(LABELS[rows])
    request = Request(len(labels), model.config.num_ar_steps, labels, guidance)
    return generate_steps(model, request, policy, SOLVER, SeededNoise(SEEDS[rows]))


def latents(model: BitDance, rows: slice = slice(3), **options: Any) -> Tensor:
    return model.finish(list(turns(model, rows, **options))[-1].state)


# -- recorded runs -----------------------------------------------------------------------------------------------------

RECORDED = sorted(GOLDEN.with_name("golden-more").glob("bitdance_*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_it_reproduces_the_official_code(path: Path):
    line, _ = report(path)
    assert line.endswith("  ok"), line


# -- architecture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"group_size": 3}, "group_size = 3 tokens are no square"),
        ({"group_size": 3, "squares": False}, "cannot be cut into groups of 3"),
        ({"group_size": 16, "latent_size": (2, 8)}, r"latents of \(2, 8\) tokens cannot be cut into groups of 16"),
        ({"num_heads": 3}, "num_heads = 3 must divide width = 32"),
        ({"num_heads": 16}, "into multiples of 4 channels"),
        ({"head_depth": 3, "head_modulations": 2}, "head_modulations = 2 must divide head_depth = 3"),
        ({"group_size": 4, "head_width": 32}, "head_width = 32 must be a multiple of 64"),
    ],
)
def test_an_architecture_that_cannot_be_is_one_clear_error(values: dict[str, Any], message: str):
    with pytest.raises(DisaError, match=message):
        replace(ONE, **values)


@pytest.mark.parametrize(
    ("name", "millions", "num_ar_steps"),
    [
        ("bitdance-base", 242, 256),
        ("bitdance-base-4x", 260, 64),
        ("bitdance-base-16x", 260, 16),
        ("bitdance-large", 527, 256),
        ("bitdance-huge", 1008, 256),
    ],
)
def test_published_models_have_their_published_size(name: str, millions: int, num_ar_steps: int):
    preset = find_preset(name)
    with torch.device("meta"):
        model: Any = preset.build()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.005)
    assert preset.defaults.num_ar_steps == model.config.num_ar_steps == num_ar_steps
    original = make_solver(preset.defaults.solver, preset.defaults.grid)
    assert original.plan(model.process, 100).num_evaluations == 101


# -- times -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 100])
def test_the_official_grid_ends_in_a_step_of_its_own(count: int):
    grid = PROCESS.grid("bitdance", count)
    np.testing.assert_allclose(grid.levels, [*np.linspace(1, 0.05, count + 1), 0], atol=1e-6)
    assert grid.levels[-1] == 0
    np.testing.assert_allclose(grid.network_times, 1000 * np.linspace(0, 0.95, count + 1), rtol=1e-6)
    assert grid.num_evaluations == count + 1


def test_a_shifted_grid_takes_its_last_step_from_where_it_is_but_says_otherwise():
    grid = PROCESS.grid("bitdance-2", 4)
    assert grid.levels[-2] == pytest.approx(1 - 1 / (1 + 2 * (1 / 0.95 - 1)), abs=1e-6)
    assert grid.levels[-2] - grid.levels[-1] == pytest.approx(0.05)
    assert grid.network_times[-1] == pytest.approx(950)
    assert (np.diff(grid.levels) < 0).all()
    with pytest.raises(DisaError, match="S in the grid 'bitdance-x' must be a number"):
        PROCESS.grid("bitdance-x", 4)


def test_networks_that_count_from_noise_are_fed_the_share_of_data():
    times = np.array([1.0, 0.75, 0.0])
    np.testing.assert_array_equal(PROCESS.network_times(times), [0, 250, 1000])
    np.testing.assert_array_equal(FlowMatching().network_times(times), [1000, 750, 0])
    np.testing.assert_array_equal(make_solver("heun").plan(PROCESS, 2).network_times, [0, 1000])


def test_the_last_step_of_the_solver_ends_at_the_predicted_data():
    """All before it are those of Euler-Maruyama."""
    field, x = GaussianField(PROCESS), torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(5, 64, 4, generator=torch.Generator().manual_seed(1))
    grid, states = PROCESS.grid("bitdance", 4), dict[str, list[Tensor]]()
    answers, ends = list[Tensor](), list[Tensor]()
    for name in ("euler-maruyama", "euler-maruyama-ode"):
        walk = make_solver(name, "bitdance").walk(PROCESS, grid, x.clone(), noise)  # pyright: ignore
        bound, states[name] = field.on(grid), []
        asked, end = advance(walk)
        while asked is not None:
            states[name].append(asked[0])
            answers.append(bound(*asked).value)
            asked, end = advance(walk, Prediction(answers[-1]))
        assert end is not None
        ends.append(end)
    assert all(torch.equal(*pair) for pair in zip(*states.values(), strict=True))
    expected = PROCESS.data(states["euler-maruyama-ode"][-1], answers[-1], grid.levels[-2])
    torch.testing.assert_close(ends[1], expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(*ends)


# -- the order of tokens, and what each of them sees -------------------------------------------------------------------


def test_squares_are_drawn_one_after_the_other_and_lines_as_they_stand():
    places = torch.arange(16.0).view(1, 1, 4, 4)
    for config, first in ((SQUARES, [0, 1, 4, 5, 2, 3, 6, 7]), (LINES, list(range(8)))):
        model = random_weights(config)
        tokens = model.to_tokens(places)
        assert tokens[0, :8, 0].tolist() == first
        assert torch.equal(model.to_latents(tokens), places)
    with pytest.raises(DisaError, match=r"expected latents of \(4, 2\) tokens"):
        random_weights(ONE).to_tokens(places)


@torch.no_grad()
def test_drawing_sees_what_training_sees(model: BitDance):
    """Condition vectors of a generation are those of one pass over the finished tokens, of both halves."""
    found, step = list[Tensor](), None
    for step in turns(model, guidance=Guidance(2.5, "constant")):
        network: Any = step.problem.field.network  # pyright: ignore[reportAttributeAccessIssue]
        found.append(network.condition)
    assert step is not None
    tokens = model.to_tokens(model.finish(step.state))
    for half, dropped in enumerate((torch.zeros(3, dtype=torch.bool), torch.ones(3, dtype=torch.bool))):
        z = model.conditions(tokens, model.embed(torch.tensor(LABELS[:3]), dropped))
        drawn = torch.cat([condition[half] for condition in found], dim=1)
        torch.testing.assert_close(drawn, model.head.condition(z), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_group_sees_those_before_it_and_no_other(model: BitDance):
    size, count = model.config.group_size, model.config.num_tokens
    tokens = torch.randn(1, count, 8, generator=torch.Generator().manual_seed(0)).sign()
    embedding = model.embed(torch.tensor([1]), torch.tensor([False]))
    before = model.conditions(tokens, embedding)
    for group in range(count // size):
        other = tokens.clone()
        other[:, group * size] *= -1
        changed = (model.conditions(other, embedding) - before).abs().amax(-1)[0] > 1e-6
        assert not changed[: (group + 1) * size].any()
        assert changed[(group + 1) * size :].all()


# -- halves ------------------------------------------------------------------------------------------------------------


def halves(model: BitDance, guidance: Guidance) -> tuple[list[int], Tensor, Tensor]:
    """Rows of each AR step, and the tokens of both halves."""
    found = list(turns(model, guidance=guidance))
    tokens = found[-1].state.tokens
    return [step.problem.num_rows for step in found], tokens[:3], tokens[3:]


def test_under_the_linear_ramp_halves_begin_with_tokens_of_their_own(model: BitDance):
    rows, conditional, other = halves(model, Guidance(2.5))
    assert rows == [6, *[3] * (model.config.num_ar_steps - 1)]
    first = model.span(0)
    assert all(not torch.equal(*pair) for pair in zip(conditional[:, first], other[:, first], strict=True))
    assert torch.equal(conditional[:, first.stop :], other[:, first.stop :])


@pytest.mark.parametrize(
    "guidance", [Guidance(2.5, "constant"), Guidance(2.5, progress=(0.1, 1.0)), Guidance(0.4, "constant")]
)
def test_otherwise_both_are_fed_the_same(model: BitDance, guidance: Guidance):
    rows, conditional, other = halves(model, guidance)
    assert rows == [3] * model.config.num_ar_steps
    assert torch.equal(conditional, other)


def test_without_guidance_there_is_one_half(model: BitDance):
    step = list(turns(model, guidance=Guidance()))[-1]
    assert len(step.state.tokens) == 3
    assert torch.equal(step.state.tokens.abs(), torch.ones_like(step.state.tokens))


def test_the_first_tokens_of_the_conditional_half_do_not_know_of_guidance(model: BitDance):
    """Its rows have the noise of their seeds, whether the other half draws too or not."""
    alone, guided = (latents(model, guidance=guidance) for guidance in (Guidance(), Guidance(2.5)))
    first = model.span(0)
    assert torch.equal(model.to_tokens(alone)[:, first], model.to_tokens(guided)[:, first])
    assert not torch.equal(alone, guided)


# -- what may not change an image --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prepared", [lambda model: model, small.packed], ids=["plain", "packed"])
@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.5), Guidance(2.5, "constant", (0.2, 0.8), (0.3, 1.0))])
def test_an_image_does_not_depend_on_its_batch(
    model: BitDance, prepared: Callable[[BitDance], BitDance], guidance: Guidance
):
    used = prepared(model)
    whole = latents(used, slice(5), guidance=guidance)
    for part in (slice(1), slice(1, 3), slice(3, 5), slice(1, 5)):
        assert torch.equal(latents(used, part, guidance=guidance), whole[part])


def test_rows_of_different_counts_are_those_of_equal_counts(model: BitDance):
    uneven = latents(model, policy=lambda problem: 2 + problem.image % 2)
    two, three = (latents(model, policy=constant(count)) for count in (2, 3))
    assert torch.equal(uneven, torch.stack([two[0], three[1], two[2]]))


def test_memory_for_keys_and_values_is_made_once(model: BitDance):
    seen = {(step.state.cache.keys.data_ptr(), step.state.cache.values.data_ptr()) for step in turns(model)}
    assert len(seen) == 1
    state = list(turns(model))[-1].state
    assert state.cache.keys.shape[3] == state.cache.length == model.config.num_places


def test_previews_grow_and_end_in_the_image(model: BitDance):
    for step in turns(model):
        preview = model.preview(step.state)
        assert preview.undrawn is not None
        left = model.config.num_tokens - (step.ar_step + 1) * model.config.group_size
        assert (preview.undrawn.flatten(1).sum(1) == left).all()
        assert torch.equal(preview.latents == 0, preview.undrawn.expand_as(preview.latents))


# -- launches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bitdance-base", "bitdance-base-4x"])
def test_no_value_is_looked_at_and_no_ar_step_launches_more_than_another(name: str):
    preset = find_preset(name)
    architecture = replace(preset.spec.architecture, latent_size=(4, 4), depth=2)
    preset = small.changed(preset, architecture=architecture, num_ar_steps=architecture.num_ar_steps)
    counts = list[int]()

    def policy(problem: Any) -> int:
        counts.append(launches.total)
        return 2

    launches = Launches()
    draw(on_meta(preset), request_for(preset, 2), policy, solver_of(preset), launches)
    per_ar_step = np.diff(counts)
    assert len(set(per_ar_step[1:].tolist())) == 1
    for solver in ("euler", "heun", "euler-maruyama", "dpm-solver++-2"):
        draw(on_meta(preset), request_for(preset, 2), constant(2), make_solver(solver), Launches())


# -- training ----------------------------------------------------------------------------------------------------------


def loss_parts(model: BitDance) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    c, random = model.config, torch.Generator().manual_seed(0)
    tokens = torch.randn(2, c.num_tokens, c.latent_channels, generator=random).sign()
    shape = (2 * c.num_ar_steps, *([c.group_size] if c.group_size > 1 else []), c.latent_channels)
    t, noise = torch.rand(shape[0], generator=random), torch.randn(shape, generator=random)
    embedding = model.embed(torch.tensor([1, 2]), torch.tensor([False, True]))
    return model.to_latents(tokens), embedding, torch.zeros_like(tokens, dtype=torch.bool), t, noise


def test_only_what_is_fed_can_be_flipped(model: BitDance):
    images, embedding, flipped, t, noise = loss_parts(model)
    plain, size = model.loss(images, embedding, flipped, t, noise), model.config.group_size
    flipped[:, -size:] = True
    assert torch.equal(model.loss(images, embedding, flipped, t, noise), plain)
    flipped[:, 0] = True
    assert not torch.equal(model.loss(images, embedding, flipped, t, noise), plain)


def test_copies_of_rows_are_drawn_apart(model: BitDance):
    images, embedding, flipped, t, noise = loss_parts(model)
    twice = model.loss(images, embedding, flipped, torch.cat([t, t / 2]), torch.cat([noise, -noise]))
    parts = model.loss(images, embedding, flipped, t, noise), model.loss(images, embedding, flipped, t / 2, -noise)
    torch.testing.assert_close(twice, sum(parts) / 2)


def test_a_dropped_label_is_no_class():
    model = random_weights(ONE)
    dropped = model.embed(torch.tensor([1, 2]), torch.tensor([True, False]))
    assert torch.equal(dropped[0], model.class_embedding.weight[-1])
    assert torch.equal(dropped[1], model.class_embedding.weight[2])
