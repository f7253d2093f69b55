"""xAR on tiny random weights: names, cells, guidance by halves, and what may not change an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import small
from disa.core.flow import FlowLoss
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import ARStep, DenoisingProblem
from disa.core.request import Guidance, Request
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, constant, linear
from disa.errors import DisaError
from disa.models.layers import initialise
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR
from disa.models.xar.names import official_names
from disa.runtime.packing import can_pack, pack

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = XARConfig(
    latent_size=(8, 8), latent_channels=4, width=32, encoder_depth=1, decoder_depth=2, num_heads=2, num_classes=10
)
TALL = replace(TINY, latent_size=(8, 4), num_heads=4)
SHALLOW = replace(TALL, decoder_depth=1)
STRIPES = replace(TINY, latent_size=(8, 4), cells=(1, 4))
BASE = XARConfig()
LARGE = XARConfig(width=1024, encoder_depth=16, decoder_depth=16, num_heads=16)
HUGE = XARConfig(width=1280, encoder_depth=20, decoder_depth=20, num_heads=16)
SEEDS = (5, 6, 1 << 40, 8, 900, 10, 11, 12)
LABELS = (3, 9, 0, 3, 7, 1, 2, 3)
ANNEALED = linear(5, 2)


def random_weights(config: XARConfig) -> XAR:
    return small.randomised(XAR(config))


@pytest.fixture(scope="module")
def plain() -> XAR:
    return random_weights(TINY)


@pytest.fixture(scope="module")
def packed(plain: XAR) -> XAR:
    return small.packed(plain)


@pytest.fixture(params=["plain", "packed"])
def model(request: pytest.FixtureRequest) -> XAR:
    return request.getfixturevalue(request.param)


def turns(
    model: XAR, seeds: Sequence[int], labels: Sequence[int] | None, *,
    scale: float = 1.0, policy: StepPolicy = ANNEALED, solver: str = "euler-maruyama", **guidance: Any,
) -> Iterator[ARStep]:  # fmt: skip
    tensor = None if labels is None else torch.tensor(labels)
    request = Request(len(seeds), model.config.num_ar_steps, tensor, Guidance(scale, **guidance))
    return generate_steps(model, request, policy, make_solver(solver), SeededNoise(seeds))


def draw(model: XAR, seeds: Sequence[int], labels: Sequence[int] | None, **options: Any) -> Tensor:
    return model.finish(list(turns(model, seeds, labels, **options))[-1].state)


# --- official names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "millions"), [(BASE, 172), (LARGE, 608), (HUGE, 1180)])
def test_the_published_models_have_their_size_and_the_names_are_a_bijection(config: XARConfig, millions: int):
    with torch.device("meta"):
        ours = XAR(config).state_dict()
    assert abs(sum(value.numel() for value in ours.values()) / 1e6 - millions) < 0.01 * millions
    names = official_names(config)
    official = names.to_official(ours)
    # 6 linear layers in a block; outside 5 linear and 3 norm layers, two tables of positions and one of classes.
    assert len(official) == 12 * config.depth + 16
    back = names.from_official(official)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in ours.items()}


def test_official_names_and_shapes_of_the_base_model():
    with torch.device("meta"):
        official = official_names(BASE).to_official(XAR(BASE).state_dict())
    shapes = {
        "class_emb.weight": (1001, 768),
        "time_embed.mlp.0.weight": (768, 256),
        "time_embed.mlp.2.bias": (768,),
        "z_proj.weight": (768, 16),
        "z_proj_ln.weight": (768,),
        "encoder_pos_embed_learned": (1, 256, 768),
        "encoder_blocks.7.attn.qkv.bias": (2304,),
        "encoder_blocks.0.mlp.fc1_g.weight": (2048, 768),
        "encoder_blocks.0.mlp.fc1_x.bias": (2048,),
        "encoder_blocks.0.mlp.fc2.weight": (768, 2048),
        "encoder_blocks.0.ada_lin.1.weight": (4608, 768),
        "encoder_norm.weight": (768,),
        "decoder_embed.bias": (768,),
        "decoder_blocks.7.ada_lin.1.bias": (4608,),
        "pred.weight": (16, 768),
    }
    assert {name: tuple(official[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("config", [TINY, TALL])
def test_names_there_and_back_are_bit_equal_and_buffers_are_passed_over(config: XARConfig):
    names, ours = official_names(config), random_weights(config).state_dict()
    official = names.to_official(ours)
    assert len({value.data_ptr() for value in official.values()}) == len(official)
    buffers = {"mask": torch.zeros(1), "encoder_blocks.0.attn.rope.freqs_cos": torch.zeros(1)}
    back = names.from_official(official | buffers)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    with pytest.raises(DisaError, match="1 unexpected"):
        names.from_official(official | {"masks": torch.zeros(1)})


def test_official_arguments():
    arguments = {
        "img_size": 256, "vae_stride": 16, "patch_size": 1, "encoder_embed_dim": 1024, "encoder_depth": 16,
        "encoder_num_heads": 16, "decoder_embed_dim": 1024, "decoder_depth": 16, "decoder_num_heads": 16,
        "mlp_ratio": 4.0, "vae_embed_dim": 16, "class_num": 1000, "clusters": 4,
    }  # fmt: skip
    assert XARConfig.from_official(arguments) == LARGE
    for wrong in ({"patch_size": 2}, {"clusters": 5}, {"decoder_embed_dim": 512}, {"decoder_num_heads": 8}):
        with pytest.raises(DisaError, match="xAR needs patches of 1, encoder and decoder of one width"):
            XARConfig.from_official(arguments | wrong)


# --- cells ------------------------------------------------------------------------------------------------------------


def test_tokens_go_cell_by_cell(plain: XAR):
    latents = torch.arange(2 * 4 * 8 * 8.0).view(2, 4, 8, 8)
    tokens = plain.to_tokens(latents)
    assert torch.equal(plain.to_latents(tokens), latents)
    # The second cell is to the right of the first, its fifth token begins its second row.
    assert torch.equal(tokens[1, plain.span(1)][4], latents[1, :, 1, 4])
    assert torch.equal(tokens[1, plain.span(2)][0], latents[1, :, 4, 0])
    with pytest.raises(DisaError, match=r"expected latents of \(8, 8\) tokens, found shape \(1, 4, 8, 9\)"):
        plain.to_tokens(torch.zeros(1, 4, 8, 9))


@pytest.mark.parametrize("config", [TALL, STRIPES, replace(TINY, cells=(1, 1))])
def test_other_sizes_and_cells(config: XARConfig):
    model = random_weights(config)
    steps = list(turns(model, SEEDS[:2], LABELS[:2], scale=2.0))
    latents = model.finish(steps[-1].state)
    assert len(steps) == config.num_ar_steps
    assert latents.shape == (2, 4, *config.latent_size)
    assert latents.isfinite().all()
    rows, columns = config.cell_size
    first = steps[0].tokens.view(2, rows, columns, 4).permute(0, 3, 1, 2)
    assert torch.equal(latents[:, :, :rows, :columns], first)


def test_latents_that_do_not_divide_into_cells_are_refused():
    with pytest.raises(DisaError, match=r"\(8, 8\) tokens cannot be cut into \(3, 2\)"):
        replace(TINY, cells=(3, 2))


def test_a_cell_sees_those_before_it_and_none_after(plain: XAR):
    random = torch.Generator().manual_seed(1)
    x, t = torch.randn(1, 64, 4, generator=random), torch.tensor([[0.1, 0.9, 0.4, 0.5]])
    embedding = plain.embed(torch.tensor([3]), torch.tensor([False]))
    before = plain.predict(x, embedding, t)
    x[:, plain.span(2)] += 1
    changed = (plain.predict(x, embedding, t) != before).any(-1)[0].view(4, 16)
    assert changed.any(1).tolist() == [False, False, True, True]
    assert changed[2:].all()


def test_one_pass_with_a_mask_says_what_pass_after_pass_does(model: XAR):
    """The finished cells at time 0 and the noisy one in one sequence, as in training: no cache, both halves apart."""
    latents = draw(model, SEEDS[:2], LABELS[:2], scale=3.0)
    tokens, labels = model.to_tokens(latents), torch.tensor(LABELS[:2])
    checked = 0
    for step in turns(model, SEEDS[:2], LABELS[:2], scale=3.0):
        k, problem = step.ar_step, step.problem
        x = torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(k))
        grid = problem.process.grid("uniform", 3)
        with torch.no_grad():
            found = problem.field.on(grid)(x, 1).value
            sequence, times = tokens.clone(), torch.zeros(2, 4)
            sequence[:, model.span(k)], times[:, k] = x, float(grid.levels[1])
            velocities = [
                model.predict(sequence, model.embed(labels, torch.tensor([no, no])), times)[:, model.span(k)]
                for no in (False, True)
            ]
        expected = torch.lerp(velocities[1], velocities[0], problem.guidance)
        assert (found - expected).abs().max() <= 2e-5 * expected.abs().max()
        checked += 1
    assert checked == 4


# --- what may not change an image -------------------------------------------------------------------------------------


# Two threads are slow where another process runs beside them, so less is drawn.
@pytest.mark.parametrize(
    ("config", "num_threads", "scale"),
    [(TINY, 1, 1.0), (TINY, 1, 2.5), (TALL, 1, 2.5), (STRIPES, 1, 2.5), (SHALLOW, 2, 2.5)],
)
def test_an_image_does_not_depend_on_its_batch(
    config: XARConfig, num_threads: int, scale: float, threads: Callable[[int], None]
):
    plain, policy = random_weights(config), linear(3, 2) if num_threads == 1 else constant(1)
    threads(num_threads)
    for model in (plain, pack(deepcopy(plain))) if can_pack(torch.float32) else (plain,):
        assert isinstance(model, XAR)
        together = draw(model, SEEDS, LABELS, scale=scale, policy=policy)
        assert together.isfinite().all()
        for rows in ([7, 4, 2], [5]) if num_threads == 1 else ([5],):
            seeds, labels = [SEEDS[i] for i in rows], [LABELS[i] for i in rows]
            assert torch.equal(draw(model, seeds, labels, scale=scale, policy=policy), together[rows]), rows


def test_an_image_does_not_depend_on_the_number_of_threads(model: XAR, threads: Callable[[int], None]):
    one = draw(model, SEEDS[:3], LABELS[:3], scale=2.5, policy=constant(1))
    threads(2)
    assert torch.equal(draw(model, SEEDS[:3], LABELS[:3], scale=2.5, policy=constant(1)), one)


def test_images_of_different_seeds_and_labels_differ(plain: XAR):
    images = draw(plain, [1, 2, 1], [3, 3, 4])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_two_generations_taken_in_turn_equal_one_after_the_other(model: XAR):
    settings = [((SEEDS[:3], LABELS[:3]), 2.5), ((SEEDS[3:5], None), 1.0)]
    alone = [draw(model, *arguments, scale=scale) for arguments, scale in settings]
    running = [turns(model, *arguments, scale=scale) for arguments, scale in settings]
    last: list[ARStep] = []
    for pair in zip(*running, strict=True):
        last = list(pair)
    for step, expected in zip(last, alone, strict=True):
        assert torch.equal(model.finish(step.state), expected)


def test_a_generation_leaves_the_model_as_it_was(plain: XAR):
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    draw(plain, SEEDS[:2], LABELS[:2], scale=2.0)
    assert plain.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


@pytest.mark.parametrize("solver", ["euler", "heun", "euler-maruyama"])
def test_every_flow_solver_draws(plain: XAR, solver: str):
    images = draw(plain, SEEDS[:2], LABELS[:2], scale=2.0, solver=solver)
    assert images.isfinite().all()
    assert not torch.equal(images[0], images[1])


# --- counts per row ---------------------------------------------------------------------------------------------------


def test_one_count_per_row_equals_one_count_for_all(model: XAR):
    def each(problem: DenoisingProblem) -> Tensor:
        return torch.full((problem.num_rows,), 4)

    expected = draw(model, SEEDS[:3], LABELS[:3], scale=2.0, policy=constant(4))
    assert torch.equal(draw(model, SEEDS[:3], LABELS[:3], scale=2.0, policy=each), expected)


def test_rows_with_different_counts_are_drawn_as_if_alone(model: XAR):
    def by_image(problem: DenoisingProblem) -> Tensor:
        return torch.tensor([5, 3, 5])[problem.image]

    mixed = list(turns(model, SEEDS[:3], LABELS[:3], scale=2.0, policy=by_image))
    assert mixed[0].evaluations == 13
    assert mixed[1].evaluations == 26
    images = model.finish(mixed[-1].state)
    for count, rows in ((5, [0, 2]), (3, [1])):
        alone = draw(model, SEEDS[:3], LABELS[:3], scale=2.0, policy=constant(count))
        assert torch.equal(images[rows], alone[rows])


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_selected_rows_are_the_same_problem(model: XAR, scale: float):
    solver, noise = make_solver("euler-maruyama"), SeededNoise(SEEDS[:3])
    running = turns(model, SEEDS[:3], LABELS[:3], scale=scale)
    problem = [next(running) for _ in range(3)][-1].problem
    with torch.no_grad():
        full = solve(problem, solver, 4, noise).tokens
        assert torch.equal(full, solve(problem, solver, 4, noise).tokens)
        for rows in ([2, 0, 0], [1], [2, 1, 0]):
            some = problem.select(torch.tensor(rows))
            assert torch.equal(solve(some, solver, 4, noise).tokens, full[rows])
            assert torch.equal(solve(some.select(torch.tensor([0])), solver, 4, noise).tokens, full[rows[:1]])


def test_a_problem_that_is_over_says_so_and_a_selection_of_it_lives_on(plain: XAR):
    running = turns(plain, SEEDS[:2], LABELS[:2])
    problem = next(running).problem
    copy, grid, x = problem.select(torch.tensor([0, 1])), problem.process.grid("uniform", 1), torch.ones(2, 16, 4)
    expected = problem.field.on(grid)(x, 0).value
    next(running)
    assert torch.equal(copy.field.on(grid)(x, 0).value, expected)
    with pytest.raises(DisaError, match="the problem of AR step 0 is over"):
        problem.field.on(grid)(x, 0)


# --- guidance and labels ----------------------------------------------------------------------------------------------


def evaluations(model: XAR, labels: Sequence[int] | None, scale: float, **options: Any) -> list[int]:
    steps = list(turns(model, SEEDS[:2], labels, scale=scale, **options))
    return [step.evaluations for step in steps]


def test_the_unconditional_half_is_evaluated_where_guidance_acts(plain: XAR):
    # 5, 4, 3, 2 denoising steps in two images; the linear ramp is 1 in the first cell.
    assert evaluations(plain, LABELS[:2], 1.0) == [10, 8, 6, 4]
    assert evaluations(plain, LABELS[:2], 2.5) == [10, 16, 12, 8]
    assert evaluations(plain, LABELS[:2], 2.5, ramp="constant") == [20, 16, 12, 8]
    assert evaluations(plain, None, 2.5) == [10, 8, 6, 4]
    assert evaluations(plain, LABELS[:2], 0.5) == [10, 16, 12, 8]
    # Times of the grid: 1, 0.76, 0.52, 0.28, 0.04; then 1, 0.68, 0.36, 0.04; 1, 0.52, 0.04; 1, 0.04.
    inside = evaluations(plain, LABELS[:2], 2.5, ramp="constant", interval=(0.1, 0.7))
    assert inside == [10 + 4, 8 + 4, 6 + 2, 4]


def test_what_the_unconditional_half_costs_is_not_paid_where_it_is_idle(plain: XAR, monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    output = plain.output.forward

    def spy(h: Tensor, *args: Any) -> Tensor:
        seen.append(len(h))
        return output(h, *args)

    monkeypatch.setattr(plain.output, "forward", spy)
    draw(plain, SEEDS[:2], LABELS[:2], scale=2.5, interval=(0.0, 0.5))
    # Rows of the 5 + 4 + 3 + 2 evaluations: two halves below t = 0.5, after the first cell.
    assert seen == [2] * 5 + [2, 2, 4, 4] + [2, 2, 4] + [2, 4]


def test_guidance_ramps(plain: XAR):
    for ramp, expected in (("linear", [1, 5 / 3, 7 / 3, 3]), ("constant", [3.0] * 4)):
        scales = [step.problem.guidance for step in turns(plain, [1], [3], scale=3.0, ramp=ramp)]
        assert scales == pytest.approx(expected)
    single = random_weights(replace(TINY, cells=(1, 1)))
    assert [step.problem.guidance for step in turns(single, [1], [3], scale=3.0)] == [3.0]


def test_guidance_and_labels_change_the_image_where_they_should(plain: XAR):
    without = draw(plain, SEEDS[:2], None)
    assert torch.equal(draw(plain, SEEDS[:2], None, scale=3.0), without)
    labelled = draw(plain, SEEDS[:2], [3, 4])
    assert not torch.equal(labelled, without)
    assert not torch.equal(draw(plain, SEEDS[:2], [3, 4], scale=0.5), labelled)
    guided = draw(plain, SEEDS[:2], [3, 4], scale=3.0)
    assert torch.equal(guided[:, :, :4, :4], labelled[:, :, :4, :4])
    assert not torch.equal(guided, labelled)


def test_guidance_between_equal_conditions_is_no_guidance(plain: XAR):
    model = deepcopy(plain)
    with torch.no_grad():
        model.class_embedding.weight[:] = model.class_embedding.weight[-1:].clone()
    alone, guided = (draw(model, SEEDS[:2], [3, 4], scale=scale) for scale in (1.0, 3.0))
    torch.testing.assert_close(guided, alone, rtol=0, atol=2e-5 * float(alone.abs().max()))


# --- requests that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_ar_steps", [0, 3, 5, 64])
def test_another_number_of_ar_steps_is_refused(plain: XAR, num_ar_steps: int):
    with pytest.raises(DisaError, match=rf"AR steps must be 4, found {num_ar_steps}"):
        plain.begin(Request(1, num_ar_steps, torch.tensor([1])), SeededNoise([1]))


def test_known_tokens_are_refused(plain: XAR):
    known, mask = torch.zeros(1, 4, 8, 8), torch.ones(1, 8, 8, dtype=torch.bool)
    with pytest.raises(DisaError, match="cannot keep known tokens"):
        plain.begin(Request(1, 4, torch.tensor([1]), known=known, mask=mask), SeededNoise([1]))


@pytest.mark.parametrize("labels", [[10], [3, -1], [1000]])
def test_labels_out_of_range_are_refused(plain: XAR, labels: list[int]):
    with pytest.raises(DisaError, match=f"labels must be 0 to 9, found {labels[-1]}"):
        plain.begin(Request(len(labels), 4, torch.tensor(labels)), SeededNoise(range(len(labels))))


# --- packed weights, half precision -----------------------------------------------------------------------------------


def test_packed_weights_draw_the_same_images(plain: XAR, packed: XAR):
    expected = draw(plain, SEEDS[:3], LABELS[:3], scale=2.5)
    found = draw(packed, SEEDS[:3], LABELS[:3], scale=2.5)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_half_precision_stays_near(plain: XAR):
    half = deepcopy(plain).to(torch.bfloat16)
    exact, rounded = (list(turns(model, SEEDS[:2], LABELS[:2], scale=2.0)) for model in (plain, half))
    grid = exact[0].problem.process.grid("uniform", 3)
    for a, b in zip(exact, rounded, strict=True):
        assert a.evaluations == b.evaluations
        assert b.tokens.dtype == torch.float32
    for pair in zip(turns(plain, [1], [3]), turns(half, [1], [3]), strict=True):
        x = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(0))
        expected, found = (step.problem.field.on(grid)(x, 1).value for step in pair)
        assert found.dtype == torch.float32
        assert (found - expected).abs().max() <= 0.1 * expected.abs().max()
    assert (half.finish(rounded[-1].state) - plain.finish(exact[-1].state)).abs().max() < 2


# --- training ---------------------------------------------------------------------------------------------------------


def test_initial_weights_start_at_identity_and_predict_nothing():
    model = XAR(TINY)
    initialise(model, seed=1)
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert model.modulation.weight.abs().max() == model.output.weight.abs().max() == 0
    assert draw(model.requires_grad_(False), SEEDS[:2], LABELS[:2], solver="euler").isfinite().all()


def test_training_decreases_the_loss():
    model = XAR(TALL)
    initialise(model, seed=1)
    random = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(shape, generator=random) for shape in ((4, 4, 8, 4), (4, 32, 4)))
    t = torch.rand(4, 4, generator=random)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        embedding = model.embed(torch.tensor(LABELS[:4]), torch.tensor([False, True, False, False]))
        loss = model.loss(FlowLoss(), latents, embedding, t, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # A network that predicts nothing is wrong by the velocity itself.
    assert losses[0] == pytest.approx((noise - model.to_tokens(latents)).square().mean().item(), rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]
    assert np.all(np.diff(losses) < 0)


def test_dropped_labels_are_no_class(plain: XAR):
    embedding = plain.embed(torch.tensor([3, 4]), torch.tensor([False, True]))
    assert torch.equal(embedding, plain.class_embedding.weight[[3, 10]])
