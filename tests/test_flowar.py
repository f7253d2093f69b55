"""FlowAR on tiny random weights: names, scales, guidance, and what may not change an image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

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
from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR, to_latents, to_tokens
from disa.models.flowar.names import official_names
from disa.models.layers import initialise

pytestmark = pytest.mark.usefixtures("one_thread")

PLAIN = FlowARConfig(
    scales=(1, 2, 4), latent_channels=3, width=32, encoder_depth=1, decoder_depth=2, num_heads=2, num_classes=10,
    head_width=32, head_depth=2, head_heads=2,
)  # fmt: skip
CROSS = replace(PLAIN, cross=True, head_width=48, head_heads=3)
OFFICIAL: dict[str, Any] = {
    "img_size": 256, "vae_stride": 16, "patch_size": 1, "vae_embed_dim": 16, "class_num": 1000, "buffer_size": 0,
    "encoder_embed_dim": 768, "encoder_depth": 6, "encoder_num_heads": 12,
    "decoder_embed_dim": 768, "decoder_depth": 6, "decoder_num_heads": 12,
    "mlp_ratio": 4.0, "diffloss_d": 2, "diffloss_w": 1024, "scale": [1, 2, 4, 8, 16], "cross": False,
}  # fmt: skip
"""Arguments of the official small model."""

SEEDS = (5, 6, 1 << 40, 8, 900, 10, 11, 12)
LABELS = (3, 9, 0, 3, 7, 1, 2, 3)
ANNEALED = linear(4, 2)


def random_weights(config: FlowARConfig) -> FlowAR:
    return small.randomised(FlowAR(config))


@pytest.fixture(scope="module")
def plain() -> FlowAR:
    return random_weights(PLAIN)


@pytest.fixture(scope="module")
def cross() -> FlowAR:
    return random_weights(CROSS)


@pytest.fixture(params=["plain", "cross"])
def model(request: pytest.FixtureRequest) -> FlowAR:
    return request.getfixturevalue(request.param)


def turns(
    model: FlowAR, seeds: Sequence[int], labels: Sequence[int] | None, *, guidance: Guidance | None = None,
    policy: StepPolicy = ANNEALED, solver: str = "euler", num_ar_steps: int | None = None, **inpainting: Any,
) -> Iterator[ARStep]:  # fmt: skip
    tensor = None if labels is None else torch.tensor(labels)
    count = model.config.num_ar_steps if num_ar_steps is None else num_ar_steps
    request = Request(len(seeds), count, tensor, guidance or Guidance(), **inpainting)
    return generate_steps(model, request, policy, make_solver(solver, "uniform"), SeededNoise(seeds))


def draw(model: FlowAR, seeds: Sequence[int], labels: Sequence[int] | None, **options: Any) -> Tensor:
    return model.finish(list(turns(model, seeds, labels, **options))[-1].state)


# --- official names ---------------------------------------------------------------------------------------------------

LARGE = {"encoder_embed_dim": 1024, "encoder_depth": 8, "encoder_num_heads": 16, "decoder_embed_dim": 1024,
         "decoder_depth": 8, "decoder_num_heads": 16, "diffloss_d": 12, "cross": True}  # fmt: skip
HUGE = {"encoder_embed_dim": 1536, "encoder_depth": 15, "encoder_num_heads": 16, "decoder_embed_dim": 1536,
        "decoder_depth": 15, "decoder_num_heads": 16, "diffloss_d": 12, "diffloss_w": 1536, "cross": True}  # fmt: skip


@pytest.mark.parametrize(("change", "millions"), [({}, 170), (LARGE, 589), (HUGE, 1900)])
def test_official_sizes_and_the_names_are_a_bijection(change: dict[str, Any], millions: int):
    config = FlowARConfig.from_official(OFFICIAL | change)
    with torch.device("meta"):
        ours = FlowAR(config).state_dict()
    assert abs(sum(value.numel() for value in ours.values()) / 1e6 / millions - 1) < 0.02
    names = official_names(config)
    official = names.to_official(ours)
    # Weights and biases of 6 linear layers in a transformer block; in a head block one bias less, and with
    # cross-attention a second modulation, query, key-value and output layers, and two norms.
    assert len(official) == 12 * config.depth + (19 if config.cross else 11) * config.head_depth + 23
    back = names.from_official(official)
    assert {name: value.shape for name, value in back.items()} == {name: value.shape for name, value in ours.items()}


@pytest.mark.parametrize("config", [PLAIN, CROSS])
def test_names_there_and_back_are_bit_equal(config: FlowARConfig):
    names, ours = official_names(config), random_weights(config).state_dict()
    official = names.to_official(ours)
    assert len({value.data_ptr() for value in official.values()}) == len(official)
    back = names.from_official(official)
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[name], ours[name]) for name in ours)


def test_every_modulation_lands_in_its_own_rows(plain: FlowAR):
    official = official_names(PLAIN).to_official(plain.state_dict())
    names = ["encoder_blocks.0", "decoder_blocks.0", "decoder_blocks.1"]
    pieces = [official[f"{name}.ada_lin.1.weight"] for name in names]
    assert torch.equal(torch.cat(pieces), plain.modulation.weight)


def test_buffers_that_follow_from_the_architecture_may_be_there(plain: FlowAR):
    names = official_names(PLAIN)
    official = names.to_official(plain.state_dict())
    buffers = {"mask": torch.zeros(1), "encoder_blocks.0.attn.rope.freqs": torch.zeros(1)}
    assert names.from_official(official | buffers).keys() == plain.state_dict().keys()
    for extra in ("masks", "encoder_blocks.0.attn.rope.weight"):
        with pytest.raises(DisaError, match=rf"1 unexpected \({extra}\)"):
            names.from_official(official | {extra: torch.zeros(1)})


@pytest.mark.parametrize(
    "change",
    [{"buffer_size": 4}, {"patch_size": 2}, {"decoder_embed_dim": 1024}, {"decoder_num_heads": 8}, {"img_size": 512},
     {"scale": [1, 2, 4, 8]}],
)  # fmt: skip
def test_official_arguments_that_we_cannot_meet_are_refused(change: dict[str, Any]):
    with pytest.raises(DisaError, match="no buffer, patches of 1, one width"):
        FlowARConfig.from_official(OFFICIAL | change)


def test_heads_that_rotation_cannot_split_are_refused():
    with pytest.raises(DisaError, match="multiple of 4 channels"):
        replace(PLAIN, num_heads=16)


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        replace(PLAIN, scales=(1, 2, 3, 5), latent_channels=1),
        replace(CROSS, scales=(2, 6), latent_channels=7, encoder_depth=2),
        replace(PLAIN, scales=(4,)),
    ],
)
def test_other_scales_and_channels(config: FlowARConfig):
    steps = list(turns(random_weights(config), SEEDS[:2], LABELS[:2], guidance=Guidance(2.0)))
    assert [step.problem.shape for step in steps] == [(s * s, config.latent_channels) for s in config.scales]
    model = FlowAR(config)
    latents = model.finish(steps[-1].state)
    assert latents.shape == (2, config.latent_channels, config.scales[-1], config.scales[-1])
    assert latents.isfinite().all()
    assert [step.problem.guidance for step in steps][-1] == 2.0


def test_tokens_go_row_by_row():
    latents = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    tokens = to_tokens(latents)
    assert torch.equal(tokens[1, 5], latents[1, :, 1, 1])
    assert torch.equal(to_latents(tokens), latents)


def test_a_scale_of_a_flat_image_is_flat(plain: FlowAR):
    flat = torch.tensor([0.5, -2.0, 3.0])
    for scale in PLAIN.scales:
        tokens = plain.resized(flat[None, :, None, None].expand(1, 3, 2, 2), scale)
        torch.testing.assert_close(tokens, flat.expand(1, scale**2, 3))


def test_coordinates_are_shares_of_the_largest_scale(plain: FlowAR):
    """The first frequency is 1, so the first channel turns by the row itself: scale 2 has rows 0 and 2 of 4."""
    rotation = plain.rotations(torch.device("cpu"))[0]
    rows = torch.tensor([0.0] + [0, 0, 2, 2] + [row for row in range(4) for _ in range(4)])
    torch.testing.assert_close(rotation.cos[:, 0], rows.cos())


def test_a_scale_is_fed_by_the_one_before_and_by_its_cache(model: FlowAR):
    """The generation's condition vectors are those of one masked pass over all scales, as in training."""
    steps = list(turns(model, SEEDS[:2], LABELS[:2]))
    with torch.no_grad():
        z = model.conditions([step.tokens for step in steps], model.class_embedding(torch.tensor(LABELS[:2])))
    found = torch.cat([step.problem.condition for step in steps if step.problem.condition is not None], 1)
    torch.testing.assert_close(found, z, rtol=1e-4, atol=1e-5)


def test_posing_again_changes_nothing(model: FlowAR):
    request = Request(2, 3, torch.tensor(LABELS[:2]), Guidance(2.0))
    with torch.no_grad():
        state = model.begin(request, SeededNoise(SEEDS[:2]))
        for scale in PLAIN.scales:
            first, again = model.pose(state).condition, model.pose(state).condition
            assert first is not None
            assert again is not None
            assert torch.equal(first, again)
            model.accept(state, torch.ones(2, scale**2, 3))


# --- what may not change an image -------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("packed", [False, True])
def test_an_image_does_not_depend_on_its_batch(model: FlowAR, scale: float, packed: bool):
    model = small.packed(model) if packed else model
    guidance = Guidance(scale, interval=(0.0, 0.7))
    together = draw(model, SEEDS, LABELS, guidance=guidance)
    assert together.isfinite().all()
    for rows in ([0, 1, 2], [7, 4, 2], [5], [2]):
        some = draw(model, [SEEDS[i] for i in rows], [LABELS[i] for i in rows], guidance=guidance)
        assert torch.equal(some, together[rows]), rows


def test_an_image_does_not_depend_on_the_number_of_threads(model: FlowAR, threads: Callable[[int], None]):
    """Two threads are slow where another process runs beside them, so little is drawn."""
    options: dict[str, Any] = {"guidance": Guidance(2.5), "policy": constant(1)}
    one = draw(model, SEEDS, LABELS, **options)
    threads(2)
    assert torch.equal(draw(model, SEEDS[5:6], LABELS[5:6], **options), one[5:6])
    assert torch.equal(draw(model, SEEDS[:3], LABELS[:3], **options), one[:3])


def test_images_of_different_seeds_and_labels_differ(plain: FlowAR):
    images = draw(plain, [1, 2, 1], [3, 3, 4])
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_two_generations_taken_in_turn_equal_one_after_the_other(model: FlowAR):
    settings = [((SEEDS[:3], LABELS[:3]), Guidance(2.5)), ((SEEDS[3:5], None), Guidance())]
    alone = [draw(model, *arguments, guidance=guidance) for arguments, guidance in settings]
    running = [turns(model, *arguments, guidance=guidance) for arguments, guidance in settings]
    last: list[ARStep] = []
    for pair in zip(*running, strict=True):
        last = list(pair)
    for step, expected in zip(last, alone, strict=True):
        assert torch.equal(model.finish(step.state), expected)


def test_a_generation_leaves_the_model_as_it_was(model: FlowAR):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw(model, SEEDS[:2], LABELS[:2], guidance=Guidance(2.0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- counts per row ---------------------------------------------------------------------------------------------------


def test_one_count_per_row_equals_one_count_for_all(model: FlowAR):
    def each(problem: DenoisingProblem) -> Tensor:
        return torch.full((problem.num_rows,), 3)

    expected = draw(model, SEEDS[:3], LABELS[:3], guidance=Guidance(2.0), policy=constant(3))
    assert torch.equal(draw(model, SEEDS[:3], LABELS[:3], guidance=Guidance(2.0), policy=each), expected)


def test_images_with_different_counts_are_drawn_as_if_alone(model: FlowAR):
    def by_image(problem: DenoisingProblem) -> Tensor:
        return torch.where(problem.image % 2 == 0, 4, 2)

    options: dict[str, Any] = {"guidance": Guidance(2.0, "constant", (0.0, 0.6))}
    steps = list(turns(model, SEEDS[:3], LABELS[:3], policy=by_image, **options))
    mixed = model.finish(steps[-1].state)
    for image, count in enumerate((4, 2, 4)):
        alone = draw(model, SEEDS[image : image + 1], LABELS[image : image + 1], policy=constant(count), **options)
        assert torch.equal(alone[0], mixed[image])
    # Of the times 1, 0.75, 0.5, 0.25 two are guided, of 1, 0.5 one.
    assert [step.evaluations for step in steps] == [2 * 6 + 3] * 3


@pytest.mark.parametrize("solver", ["heun", "euler-maruyama"])
def test_selected_rows_are_the_same_problem(model: FlowAR, solver: str):
    problem = list(turns(model, SEEDS[:4], LABELS[:4], guidance=Guidance(2.0)))[-1].problem
    with torch.no_grad():
        full = solve(problem, make_solver(solver, "uniform"), 3, SeededNoise(SEEDS[:4])).tokens
        for rows in ([2, 0, 2], [3]):
            index = torch.tensor(rows)
            some = solve(problem.select(index), make_solver(solver, "uniform"), 3, SeededNoise(SEEDS[:4])).tokens
            assert torch.equal(some, full[index])


# --- guidance and labels ----------------------------------------------------------------------------------------------


def evaluations(model: FlowAR, guidance: Guidance, labels: Sequence[int] | None = LABELS[:2]) -> list[int]:
    steps = list(turns(model, SEEDS[:2], labels, guidance=guidance, policy=constant(4)))
    return [step.evaluations for step in steps]


def test_the_unconditional_half_is_evaluated_only_where_guidance_acts(model: FlowAR):
    # Two images and the times 1, 0.75, 0.5, 0.25; the linear ramp is at 1 in the first AR step.
    assert evaluations(model, Guidance(1.0)) == [8, 8, 8]
    assert evaluations(model, Guidance(2.5)) == [8, 16, 16]
    assert evaluations(model, Guidance(2.5, "constant")) == [16, 16, 16]
    assert evaluations(model, Guidance(2.5, interval=(0.0, 0.75))) == [8, 14, 14]
    assert evaluations(model, Guidance(2.5, interval=(0.3, 0.6))) == [8, 10, 10]
    assert evaluations(model, Guidance(2.5), None) == [8, 8, 8]


def test_a_scale_of_1_has_no_unconditional_half_and_every_other_has(model: FlowAR):
    for scale, made in ((1.0, [8, 8, 8]), (0.5, [8, 16, 16]), (0.0, [8, 16, 16]), (-3.0, [8, 16, 16])):
        assert evaluations(model, Guidance(scale)) == made
        state = model.begin(Request(2, 3, torch.tensor(LABELS[:2]), Guidance(scale)), SeededNoise(SEEDS[:2]))
        assert len(state.embedding) == (2 if scale == 1 else 4)


def test_guidance_grows_with_the_scales(plain: FlowAR):
    def scales(guidance: Guidance) -> list[float]:
        return [step.problem.guidance for step in turns(plain, [1], [3], guidance=guidance)]

    assert scales(Guidance(3.0)) == [1.0, 2.0, 3.0]
    assert scales(Guidance(3.0, "constant")) == [3.0] * 3


def test_guidance_and_labels_change_the_image_where_they_should(model: FlowAR):
    without = draw(model, SEEDS[:2], None)
    assert torch.equal(draw(model, SEEDS[:2], None, guidance=Guidance(3.0)), without)
    labelled = draw(model, SEEDS[:2], [3, 4])
    assert not torch.equal(labelled, without)
    assert not torch.equal(draw(model, SEEDS[:2], [3, 4], guidance=Guidance(3.0)), labelled)


def test_guidance_between_equal_conditions_is_no_guidance(model: FlowAR):
    model = deepcopy(model)
    with torch.no_grad():
        model.class_embedding.weight[:] = model.class_embedding.weight[-1]
    alone, guided = (draw(model, SEEDS[:2], [3, 4], guidance=Guidance(scale)) for scale in (1.0, 3.0))
    torch.testing.assert_close(guided, alone, rtol=0, atol=2e-5 * float(alone.abs().max()))


# --- requests that cannot be met --------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_ar_steps", [0, 2, 4])
def test_another_number_of_ar_steps_is_refused(plain: FlowAR, num_ar_steps: int):
    with pytest.raises(DisaError, match=rf"3 scales .* must be 3, found {num_ar_steps}"):
        plain.begin(Request(1, num_ar_steps, torch.tensor([1])), SeededNoise([1]))


def test_known_tokens_are_refused(plain: FlowAR):
    known, mask = torch.zeros(1, 3, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(DisaError, match="cannot keep known tokens"):
        draw(plain, [1], [1], known=known, mask=mask)


@pytest.mark.parametrize("labels", [[10], [3, -1], [1000]])
def test_labels_out_of_range_are_refused(plain: FlowAR, labels: list[int]):
    with pytest.raises(DisaError, match=f"labels must be 0 to 9, found {labels[-1]}"):
        plain.begin(Request(len(labels), 3, torch.tensor(labels)), SeededNoise(range(len(labels))))


# --- other types ------------------------------------------------------------------------------------------------------


def test_bf16_draws_nearly_the_same(model: FlowAR):
    """Not nearer, as each scale is fed the error of those before it, and these weights are random."""
    expected = draw(model, SEEDS[:2], LABELS[:2], guidance=Guidance(2.0))
    half = deepcopy(model).to(torch.bfloat16)
    found = draw(half, SEEDS[:2], LABELS[:2], guidance=Guidance(2.0))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.2 * expected.abs().mean()


# --- training ---------------------------------------------------------------------------------------------------------


def batch(config: FlowARConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and noise of four images."""
    random = torch.Generator().manual_seed(1)
    latents = torch.randn(4, config.latent_channels, *config.latent_size, generator=random)
    t = torch.rand(4, config.num_ar_steps, generator=random)
    return latents, t, torch.randn(4, config.num_tokens, config.latent_channels, generator=random)


@pytest.mark.parametrize("config", [PLAIN, CROSS])
def test_training_starts_at_zero_velocity_and_learns(config: FlowARConfig):
    model, (latents, t, noise) = FlowAR(config), batch(config)
    initialise(model, seed=1)
    labels, dropped = torch.tensor(LABELS[:4]), torch.tensor([False, True, False, False])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def train() -> float:
        optimizer.zero_grad()
        loss = model.loss(FlowLoss(), latents, model.embed(labels, dropped), t, noise)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    starts = [to_tokens(F.interpolate(latents, (scale, scale), mode="area")) for scale in config.scales]
    noises = [noise[:, 0:1], noise[:, 1:5], noise[:, 5:21]]
    errors = [(start - part).square().mean() for start, part in zip(starts, noises, strict=True)]
    losses = [train() for _ in range(4)]
    assert losses[0] == pytest.approx(float(errors[0] / 16 + errors[1] / 4 + errors[2]), rel=1e-5)
    assert losses[1] < losses[0]
    assert losses[-1] < losses[1]


def test_every_weight_is_trained(model: FlowAR):
    model, (latents, t, noise) = deepcopy(model).requires_grad_(True), batch(PLAIN)
    dropped = torch.tensor([False, True, False, False])
    embedding = model.embed(torch.tensor(LABELS[:4]), dropped)
    assert torch.equal(embedding[1], model.class_embedding.weight[-1])
    model.loss(FlowLoss(), latents, embedding, t, noise).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_latents_of_another_shape_are_refused(plain: FlowAR):
    with pytest.raises(DisaError, match=r"expected latents .*3, 4, 4.* found \(1, 3, 4, 5\)"):
        plain.targets(torch.zeros(1, 3, 4, 5))
