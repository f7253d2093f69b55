"""MAR on tiny random weights: names, token bookkeeping, and what may not change an image."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.orders import COSINE
from disa.core.problem import ARStep, DenoisingProblem
from disa.core.request import Guidance, Request
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, constant, linear
from disa.errors import DisaError
from disa.models.layers import initialise
from disa.models.mar.config import MARConfig
from disa.models.mar.model import MAR
from disa.models.mar.names import official_names
from disa.models.registry import PRESETS
from disa.runtime.packing import PackedLinear

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = MARConfig(
    latent_size=(8, 8), latent_channels=4, encoder_width=32, encoder_depth=2, encoder_heads=2,
    decoder_width=32, decoder_depth=2, decoder_heads=2, num_classes=10, buffer_size=4, head_width=32, head_depth=2,
)  # fmt: skip
OTHER_WIDTHS = replace(TINY, latent_size=(8, 12), patch_size=2, encoder_width=16, decoder_width=24, decoder_depth=1)
SEEDS = (5, 6, 1 << 40, 8, 900, 10, 11, 12)
LABELS = (3, 9, 0, 3, 7, 1, 2, 3)
ANNEALED = linear(5, 2)


def random_weights(config: MARConfig) -> MAR:
    return small.randomised(MAR(config))


@pytest.fixture(scope="module")
def plain() -> MAR:
    return random_weights(TINY)


@pytest.fixture(scope="module")
def packed(plain: MAR) -> MAR:
    return small.packed(plain)


@pytest.fixture(params=["plain", "packed"])
def model(request: pytest.FixtureRequest) -> MAR:
    return request.getfixturevalue(request.param)


def turns(
    model: MAR, seeds: Sequence[int], labels: Sequence[int] | None, num_ar_steps: int, *,
    scale: float = 1.0, policy: StepPolicy = ANNEALED, solver: str = "ddpm", **inpainting: Any,
) -> Iterator[ARStep]:  # fmt: skip
    tensor = None if labels is None else torch.tensor(labels)
    request = Request(len(seeds), num_ar_steps, tensor, Guidance(scale), **inpainting)
    return generate_steps(model, request, policy, make_solver(solver), SeededNoise(seeds))


def finished(model: MAR, steps: Iterator[ARStep]) -> Tensor:
    return model.finish(list(steps)[-1].state)


def draw(model: MAR, seeds: Sequence[int], labels: Sequence[int] | None, num_ar_steps: int, **options: Any) -> Tensor:
    return finished(model, turns(model, seeds, labels, num_ar_steps, **options))


# --- official names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "millions", "num_names"), [("mar-base", 208, 364), ("mar-large", 479, 476), ("mar-huge", 943, 604)]
)
def test_presets_have_the_published_size_and_the_names_are_a_bijection(preset: str, millions: int, num_names: int):
    config = PRESETS[preset].spec.architecture
    with torch.device("meta"):
        ours = MAR(config).state_dict()
    assert abs(sum(value.numel() for value in ours.values()) / 1e6 - millions) < 1
    names = official_names(config)
    official = names.to_official(ours)
    # 4 linear and 2 norm layers in a transformer block; 1 norm, 2 linear and 1 modulation layer in a head block.
    blocks = 12 * (config.encoder_depth + config.decoder_depth) + 8 * config.head_depth
    assert len(official) == num_names == blocks + 28
    back = names.from_official(official)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in ours.items()}


def test_official_names_and_shapes_of_the_base_model():
    config = PRESETS["mar-base"].spec.architecture
    with torch.device("meta"):
        official = official_names(config).to_official(MAR(config).state_dict())
    shapes = {
        "class_emb.weight": (1000, 768),
        "fake_latent": (1, 768),
        "mask_token": (1, 1, 768),
        "z_proj.weight": (768, 16),
        "z_proj_ln.bias": (768,),
        "encoder_pos_embed_learned": (1, 320, 768),
        "decoder_pos_embed_learned": (1, 320, 768),
        "diffusion_pos_embed_learned": (1, 256, 768),
        "encoder_blocks.11.attn.qkv.weight": (2304, 768),
        "encoder_norm.weight": (768,),
        "decoder_embed.weight": (768, 768),
        "decoder_blocks.0.mlp.fc1.bias": (3072,),
        "diffloss.net.time_embed.mlp.0.weight": (1024, 256),
        "diffloss.net.cond_embed.weight": (1024, 768),
        "diffloss.net.input_proj.weight": (1024, 16),
        "diffloss.net.res_blocks.5.in_ln.weight": (1024,),
        "diffloss.net.res_blocks.5.mlp.2.weight": (1024, 1024),
        "diffloss.net.res_blocks.5.adaLN_modulation.1.weight": (3072, 1024),
        "diffloss.net.final_layer.adaLN_modulation.1.bias": (2048,),
        "diffloss.net.final_layer.linear.weight": (32, 1024),
    }
    assert {name: tuple(official[name].shape) for name in shapes} == shapes


@pytest.mark.parametrize("config", [TINY, OTHER_WIDTHS])
def test_names_there_and_back_are_bit_equal(config: MARConfig):
    names, ours = official_names(config), random_weights(config).state_dict()
    official = names.to_official(ours)
    assert len({value.data_ptr() for value in official.values()}) == len(official)
    back = names.from_official(official)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)
    again = names.to_official(back)
    assert again.keys() == official.keys()
    assert all(torch.equal(again[name], official[name]) for name in official)


def test_every_modulation_lands_in_its_own_rows(plain: MAR):
    official = official_names(TINY).to_official(plain.state_dict())
    width, bias = TINY.head_width, plain.head.modulation.bias
    for i in range(TINY.head_depth):
        part = official[f"diffloss.net.res_blocks.{i}.adaLN_modulation.1.bias"]
        assert torch.equal(part, bias[3 * width * i : 3 * width * (i + 1)])
    assert torch.equal(official["diffloss.net.final_layer.adaLN_modulation.1.bias"], bias[-2 * width :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mask_token"), r"1 missing \(mask_token\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected \(extra\)"),
        (
            lambda state: state.update({"module.fake_latent": state.pop("fake_latent")}),
            r"1 missing \(fake_latent\) and 1 unexpected \(module.fake_latent\)",
        ),
        (lambda state: state.clear(), r"missing \(class_emb.weight, .*, \.\.\.\)"),
    ],
)
def test_wrong_names_are_one_clear_error(plain: MAR, change: Callable[[dict[str, Tensor]], Any], message: str):
    names = official_names(TINY)
    official = names.to_official(plain.state_dict())
    change(official)
    with pytest.raises(DisaError, match=message):
        names.from_official(official)


def test_our_names_are_checked_on_the_way_out(plain: MAR):
    state = dict(plain.state_dict())
    state["mask_tokens"] = state.pop("mask_token")
    with pytest.raises(DisaError, match=r"1 missing \(mask_token\) and 1 unexpected \(mask_tokens\)"):
        official_names(TINY).to_official(state)


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 2, 3, 16, 64, 100, 256])
def test_every_ar_step_draws_at_least_one_token_and_all_are_drawn(num_tokens: int):
    for num_ar_steps in range(1, num_tokens + 1):
        counts = COSINE.masked(num_tokens, num_ar_steps)
        drawn = [before - after for before, after in pairwise(counts)]
        assert (len(drawn), sum(drawn)) == (num_ar_steps, num_tokens)
        assert min(drawn) >= 1, num_ar_steps


def test_masked_counts_worked_out_by_hand():
    # floor(64 cos(pi/2 k/4)): 59.1, 45.3, 24.5, then everything.
    assert COSINE.masked(64, 4) == [64, 59, 45, 24, 0]
    # The cosine alone would draw nothing in the first AR steps: one token at least.
    assert COSINE.masked(4, 4) == [4, 3, 2, 1, 0]
    assert COSINE.masked(16, 1) == [16, 0]


@pytest.mark.parametrize("num_ar_steps", [1, 2, 7, 63, 64])
def test_every_token_is_drawn_once_in_the_order_of_its_image(plain: MAR, num_ar_steps: int):
    seeds, order = SEEDS[:3], SeededNoise(SEEDS[:3]).orders(64)
    drawn: list[list[int]] = [[] for _ in seeds]
    for step in turns(plain, seeds, LABELS[:3], num_ar_steps, policy=constant(1)):
        rows = torch.stack([step.problem.image, step.problem.position], dim=1).tolist()
        assert rows == sorted(rows)
        for image in range(3):
            mine = [position for row_image, position in rows if row_image == image]
            # Generation walks the order from its end.
            end = 64 - len(drawn[image])
            assert set(mine) == set(order[image, end - len(mine) : end].tolist())
            drawn[image] += mine
    assert [sorted(tokens) for tokens in drawn] == [list(range(64))] * 3


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_there_and_back(patch: int):
    with torch.device("meta"):
        model = MAR(replace(TINY, latent_size=(8, 12), patch_size=patch))
    latents = torch.arange(2 * 4 * 8 * 12.0).reshape(2, 4, 8, 12)
    tokens = model.patchify(latents)
    assert tokens.shape == (2, 96 // patch**2, 4 * patch**2)
    assert torch.equal(model.unpatchify(tokens), latents)
    # Token 1 is the patch to the right of token 0; inside a token: channel, row, column.
    assert torch.equal(tokens[1, 1], latents[1, :, :patch, patch : 2 * patch].flatten())
    last = latents[0, :, -patch:, -patch:].flatten()
    assert torch.equal(tokens[0, -1], last)


def test_latents_of_another_shape_are_refused(plain: MAR):
    with pytest.raises(DisaError, match=r"expected latents .*4, 8, 8.* found \(1, 4, 8, 9\)"):
        plain.patchify(torch.zeros(1, 4, 8, 9))


# --- what may not change an image -------------------------------------------------------------------------------------


# Two threads are slow where another process runs beside them, so less is drawn; 20 AR steps, too, begin with one token.
@pytest.mark.parametrize(
    ("num_threads", "num_ar_steps", "scale"),
    [
        (1, 1, 1.0), (1, 1, 2.5), (1, 5, 1.0), (1, 5, 2.5), (1, 64, 1.0), (1, 64, 2.5),
        (2, 1, 1.0), (2, 5, 1.0), (2, 5, 2.5), (2, 20, 1.0),
    ],
)  # fmt: skip
def test_an_image_does_not_depend_on_its_batch(
    model: MAR, num_threads: int, num_ar_steps: int, scale: float, threads: Callable[[int], None]
):
    threads(num_threads)
    short = num_ar_steps >= 20 or num_threads > 1
    policy = linear(2, 1) if short else ANNEALED
    together = draw(model, SEEDS, LABELS, num_ar_steps, scale=scale, policy=policy)
    assert together.isfinite().all()
    for rows in ([7, 4, 2], [5]) if short else ([0, 1, 2], [7, 4, 2], [5], [2]):
        seeds, labels = [SEEDS[i] for i in rows], [LABELS[i] for i in rows]
        some = draw(model, seeds, labels, num_ar_steps, scale=scale, policy=policy)
        assert torch.equal(some, together[rows]), rows


@pytest.mark.parametrize(("num_ar_steps", "scale"), [(1, 1.0), (5, 1.0), (5, 2.5)])
def test_an_image_does_not_depend_on_the_number_of_threads(
    model: MAR, num_ar_steps: int, scale: float, threads: Callable[[int], None]
):
    one = draw(model, SEEDS[:3], LABELS[:3], num_ar_steps, scale=scale, policy=linear(2, 1))
    threads(2)
    assert torch.equal(draw(model, SEEDS[:3], LABELS[:3], num_ar_steps, scale=scale, policy=linear(2, 1)), one)


def test_images_of_different_seeds_and_labels_differ(plain: MAR):
    images = draw(plain, [1, 2, 1], [3, 3, 4], 5)
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_two_policies_start_from_the_same_noise(plain: MAR):
    """The first AR step of both sees the same problem, so with equal counts there it draws the same tokens."""
    runs = [list(turns(plain, SEEDS[:2], LABELS[:2], 5, policy=policy)) for policy in (linear(5, 1), constant(5))]
    assert torch.equal(runs[0][0].tokens, runs[1][0].tokens)
    assert not torch.equal(runs[0][-1].tokens, runs[1][-1].tokens)


def test_two_generations_taken_in_turn_equal_one_after_the_other(model: MAR):
    settings = [((SEEDS[:3], LABELS[:3], 6), 2.5), ((SEEDS[3:5], None, 6), 1.0)]
    alone = [draw(model, *arguments, scale=scale) for arguments, scale in settings]
    running = [turns(model, *arguments, scale=scale) for arguments, scale in settings]
    last: list[ARStep] = []
    for pair in zip(*running, strict=True):
        last = list(pair)
    for step, expected in zip(last, alone, strict=True):
        assert torch.equal(model.finish(step.state), expected)


def test_a_generation_leaves_the_model_as_it_was(plain: MAR):
    before = {name: value.clone() for name, value in plain.state_dict().items()}
    draw(plain, SEEDS[:2], LABELS[:2], 3, scale=2.0)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


# --- counts per row ---------------------------------------------------------------------------------------------------


def test_one_count_per_row_equals_one_count_for_all(model: MAR):
    def each(problem: DenoisingProblem) -> Tensor:
        return torch.full((problem.num_rows,), 4)

    expected = draw(model, SEEDS[:3], LABELS[:3], 5, scale=2.0, policy=constant(4))
    assert torch.equal(draw(model, SEEDS[:3], LABELS[:3], 5, scale=2.0, policy=each), expected)


def test_rows_with_different_counts_are_drawn_as_if_alone(model: MAR):
    def chequered(problem: DenoisingProblem) -> Tensor:
        return torch.where(problem.position % 3 == 0, 6, 3)

    mixed = next(turns(model, SEEDS[:3], LABELS[:3], 1, scale=2.0, policy=chequered))
    for count, rows in ((6, mixed.problem.position % 3 == 0), (3, mixed.problem.position % 3 != 0)):
        all_rows = next(turns(model, SEEDS[:3], LABELS[:3], 1, scale=2.0, policy=constant(count)))
        assert torch.equal(mixed.tokens[rows], all_rows.tokens[rows])
        assert not torch.equal(mixed.tokens[~rows], all_rows.tokens[~rows])
    thirds = int((mixed.problem.position % 3 == 0).sum())
    assert mixed.evaluations == 2 * (6 * thirds + 3 * (192 - thirds))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_selected_rows_are_the_same_problem(model: MAR, scale: float):
    problem = next(turns(model, SEEDS[:3], LABELS[:3], 3, scale=scale)).problem
    solver, noise = make_solver("ddpm"), SeededNoise(SEEDS[:3])
    with torch.no_grad():
        full = solve(problem, solver, 4, noise).tokens
        for rows in ([17, 3, 3, 20], [0], list(range(problem.num_rows))[::-1]):
            index = torch.tensor(rows)
            some = problem.select(index)
            assert torch.equal(solve(some, solver, 4, noise).tokens, full[index])
            assert problem.condition is not None
            assert some.condition is not None
            assert torch.equal(some.condition, problem.condition[index])
            twice = some.select(torch.tensor([0]))
            assert torch.equal(solve(twice, solver, 4, noise).tokens, full[index[:1]])


# --- guidance and labels ----------------------------------------------------------------------------------------------


def evaluations(model: MAR, labels: Sequence[int] | None, scale: float, policy: StepPolicy = ANNEALED) -> int:
    steps = list(turns(model, SEEDS[:2], labels, 4, scale=scale, policy=policy))
    return sum(step.evaluations for step in steps)


def test_guidance_counts_two_and_scale_1_counts_one(plain: MAR):
    # Tokens per AR step 5, 14, 21, 24 (worked out above) by 5, 4, 3, 2 denoising steps, in two images.
    once = 2 * (5 * 5 + 14 * 4 + 21 * 3 + 24 * 2)
    assert evaluations(plain, LABELS[:2], 1.0) == once
    assert evaluations(plain, LABELS[:2], 2.5) == 2 * once
    assert evaluations(plain, None, 2.5) == once


def test_made_evaluations_are_counted_not_asked_ones(plain: MAR):
    assert evaluations(plain, LABELS[:2], 1.0, constant(50)) == 2 * 64 * 48


def test_guidance_ramps(plain: MAR):
    def scales(guidance: Guidance) -> list[float]:
        request = Request(1, 4, torch.tensor([3]), guidance)
        steps = generate_steps(plain, request, constant(1), make_solver("ddpm"), SeededNoise([1]))
        return [step.problem.guidance for step in steps]

    # Linear in the share known after the AR step; at the last one the official formula leaves one token.
    known = [5 / 64, 19 / 64, 40 / 64, 63 / 64]
    assert scales(Guidance(3.0)) == pytest.approx([1 + 2 * share for share in known])
    assert scales(Guidance(3.0, "constant")) == [3.0] * 4
    with pytest.raises(DisaError, match="unknown guidance ramp 'steep'"):
        Guidance(3.0, "steep")
    with pytest.raises(DisaError, match="finite"):
        Guidance(math.nan)


def test_guidance_and_labels_change_the_image_where_they_should(plain: MAR):
    without = draw(plain, SEEDS[:2], None, 4)
    assert torch.equal(draw(plain, SEEDS[:2], None, 4, scale=3.0), without)
    labelled = draw(plain, SEEDS[:2], [3, 4], 4)
    assert not torch.equal(labelled, without)
    assert not torch.equal(draw(plain, SEEDS[:2], [3, 4], 4, scale=3.0), labelled)


def test_guidance_between_equal_conditions_is_no_guidance(plain: MAR):
    model = deepcopy(plain)
    with torch.no_grad():
        model.class_embedding.weight[:] = model.no_class
    alone, guided = (draw(model, SEEDS[:2], [3, 4], 4, scale=scale) for scale in (1.0, 3.0))
    torch.testing.assert_close(guided, alone, rtol=0, atol=2e-5 * float(alone.abs().max()))


# --- known tokens -----------------------------------------------------------------------------------------------------


def known_and_mask(seed: int, batch: int, num_unknown: int, patch: int = 1) -> tuple[Tensor, Tensor]:
    """Latents, and masks that differ between the images and are True at `num_unknown` tokens each."""
    random = torch.Generator().manual_seed(seed)
    known = torch.randn(batch, 4, 8, 8, generator=random)
    side = 8 // patch
    places = torch.rand(batch, side * side, generator=random).argsort(1)
    return known, (places < num_unknown).view(batch, side, side)


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("num_unknown", [1, 20, 63, 64])
def test_known_tokens_are_kept_to_the_bit_and_the_others_drawn(plain: MAR, num_unknown: int, scale: float):
    known, mask = known_and_mask(1, 3, num_unknown)
    steps = list(turns(plain, SEEDS[:3], LABELS[:3], min(5, num_unknown), scale=scale, known=known, mask=mask))
    drawn = mask[:, None].expand_as(known)
    latents = plain.finish(steps[-1].state)
    assert torch.equal(latents[~drawn], known[~drawn])
    assert not (latents[drawn] == known[drawn]).any()
    assert sum(step.problem.num_rows for step in steps) == 3 * num_unknown
    places = torch.cat([torch.stack([step.problem.image, step.problem.position], dim=1) for step in steps])
    assert sorted(places.tolist()) == mask.flatten(1).nonzero().tolist()


def test_with_patches_whole_tokens_are_kept():
    model = random_weights(replace(TINY, patch_size=2))
    known, mask = known_and_mask(2, 2, 6, patch=2)
    latents = draw(model, SEEDS[:2], LABELS[:2], 3, known=known, mask=mask)
    drawn = mask.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand_as(known)
    assert torch.equal(latents[~drawn], known[~drawn])
    assert not (latents[drawn] == known[drawn]).any()


def test_what_lies_under_the_mask_does_not_matter_and_what_is_known_does(plain: MAR):
    known, mask = known_and_mask(3, 2, 30)
    expected = draw(plain, SEEDS[:2], LABELS[:2], 4, known=known, mask=mask)
    drawn = mask[:, None].expand_as(known)
    for other in (-7.0, math.nan):
        found = draw(plain, SEEDS[:2], LABELS[:2], 4, known=known.masked_fill(drawn, other), mask=mask)
        assert torch.equal(found, expected)
    changed = draw(plain, SEEDS[:2], LABELS[:2], 4, known=torch.where(drawn, known, -known), mask=mask)
    assert not (changed[drawn] == expected[drawn]).all()


def test_every_known_token_is_seen(plain: MAR):
    known, mask = known_and_mask(7, 1, 50)

    def condition(latents: Tensor) -> Tensor:
        state = plain.begin(Request(1, 3, torch.tensor([4]), known=latents, mask=mask), SeededNoise([1]))
        problem = plain.pose(state)
        assert problem.condition is not None
        return problem.condition

    expected = condition(known)
    for row, column in (~mask[0]).nonzero().tolist():
        changed = known.clone()
        changed[0, :, row, column] += 1
        assert (condition(changed) - expected).abs().max() > 1e-4, (row, column)


def test_an_edited_image_does_not_depend_on_its_batch(model: MAR):
    known, mask = known_and_mask(4, 3, 20)
    together = draw(model, SEEDS[:3], LABELS[:3], 6, scale=2.5, known=known, mask=mask)
    for i in range(3):
        one = {"known": known[i : i + 1], "mask": mask[i : i + 1]}
        alone = draw(model, [SEEDS[i]], [LABELS[i]], 6, scale=2.5, **one)
        assert torch.equal(alone[0], together[i])


def test_a_mask_over_everything_is_a_new_image(plain: MAR):
    known = torch.ones(2, 4, 8, 8)
    everything = draw(plain, SEEDS[:2], LABELS[:2], 5, known=known, mask=torch.ones(2, 8, 8, dtype=torch.bool))
    assert torch.equal(everything, draw(plain, SEEDS[:2], LABELS[:2], 5))


def test_masks_of_different_sizes_in_one_batch_are_refused(plain: MAR):
    known, mask = known_and_mask(5, 2, 20)
    mask[1] = True
    with pytest.raises(DisaError, match=r"equally many tokens to draw, found \[20, 64\]"):
        draw(plain, SEEDS[:2], LABELS[:2], 5, known=known, mask=mask)


# --- requests that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_ar_steps", [0, -1, 65])
def test_more_ar_steps_than_tokens_are_refused(plain: MAR, num_ar_steps: int):
    with pytest.raises(DisaError, match=rf"1 to 64 .*found {num_ar_steps}"):
        plain.begin(Request(1, num_ar_steps, torch.tensor([1])), SeededNoise([1]))


def test_more_ar_steps_than_unknown_tokens_are_refused(plain: MAR):
    known, mask = known_and_mask(6, 1, 3)
    assert draw(plain, [1], [1], 3, known=known, mask=mask).isfinite().all()
    with pytest.raises(DisaError, match=r"1 to 3 .*found 4"):
        draw(plain, [1], [1], 4, known=known, mask=mask)


@pytest.mark.parametrize("labels", [[10], [3, -1], [1000]])
def test_labels_out_of_range_are_refused(plain: MAR, labels: list[int]):
    with pytest.raises(DisaError, match=f"labels must be 0 to 9, found {labels[-1]}"):
        plain.begin(Request(len(labels), 4, torch.tensor(labels)), SeededNoise(range(len(labels))))


# --- packed weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_packed_weights_draw_the_same_images(plain: MAR, packed: MAR, scale: float):
    expected = draw(plain, SEEDS[:3], LABELS[:3], 5, scale=scale)
    found = draw(packed, SEEDS[:3], LABELS[:3], 5, scale=scale)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_packed_weights_can_be_saved(plain: MAR, packed: MAR):
    expected, found = plain.state_dict(), packed.state_dict()
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


# --- training ---------------------------------------------------------------------------------------------------------


def test_initial_weights_depend_on_the_seed_alone_and_start_at_identity():
    first, again, other = MAR(TINY), MAR(TINY), MAR(TINY)
    torch.manual_seed(3)
    initialise(first, seed=1)
    torch.manual_seed(4)
    initialise(again, seed=1)
    initialise(other, seed=2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.token_in.weight, other.token_in.weight)
    assert all(parameter.isfinite().all() for parameter in first.parameters())
    assert first.head.modulation.weight.abs().max() == first.head.output.weight.abs().max() == 0
