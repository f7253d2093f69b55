"""What is kept of the backbone from earlier AR steps: which AR steps compute what, and that it is what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from disa.core.noise import SeededNoise
from disa.core.orders import Counts
from disa.core.request import Guidance, Request
from disa.core.reuse import NONE, Reuse, parse_reuse
from disa.errors import DisaError
from disa.models.mar.model import MAR
from disa.models.registry import find_preset

LABELS, SEEDS = [3, 1, 7], [5, 2**40, 11]
GUIDED = Guidance(2.0, "constant")


def request(reuse: str, num_ar_steps: int = 12, guidance: Guidance = GUIDED) -> Request:
    return Request(3, num_ar_steps, torch.tensor(LABELS), guidance, counts=Counts("linear"), reuse=parse_reuse(reuse))


# -- which AR steps compute what -----------------------------------------------------------------------------------


def test_halves_worked_out_by_hand() -> None:
    turns = Reuse(residual=3).turns([True] * 12)
    assert [turn.num_halves for turn in turns] == [2, 2, 2, 2, 2, 2, 1, 1, 2, 1, 1, 2]
    assert {k: turn.ahead for k, turn in enumerate(turns) if turn.ahead} == {5: (6, 7), 8: (9, 10)}
    assert [turn.adds for turn in turns] == [turn.num_halves == 1 for turn in turns]


def test_ar_steps_without_guidance_are_left_out_of_the_count() -> None:
    guided = [k % 2 == 1 for k in range(20)]
    turns = Reuse(residual=3).turns(guided)
    assert [k for k, turn in enumerate(turns) if turn.num_halves == 2] == [1, 3, 5, 7, 9, 11, 17]
    assert (turns[11].ahead, [k for k, turn in enumerate(turns) if turn.adds]) == ((13, 15), [13, 15, 19])
    assert turns[17].ahead == (19,)


@pytest.mark.parametrize("every", [0, 1])
def test_nothing_is_kept_where_everything_is_computed(every: int) -> None:
    turns = Reuse(residual=every, tokens=every).turns([True, False, True, True])
    assert [turn.num_halves for turn in turns] == [2, 1, 2, 2]
    assert not any(turn.ahead or turn.adds or turn.light or turn.keeps for turn in turns)


def test_light_ar_steps_worked_out_by_hand() -> None:
    turns = Reuse(tokens=2).turns([True] * 8)
    assert [turn.light for turn in turns] == [False] * 5 + [True, False, True]
    assert [turn.keeps for turn in turns] == [False] * 4 + [True, False, True, False]
    late = Reuse(tokens=3).turns([False] * 6 + [True] * 2)
    assert [turn.light for turn in late] == [False] * 5 + [True, False, False]  # 6: a half that was not kept


@pytest.mark.parametrize("text", ["none", "residual:9", "tokens:2", "residual:9+tokens:2"])
def test_a_text_is_read_back(text: str) -> None:
    assert str(parse_reuse(text)) == text
    assert parse_reuse(parse_reuse(text)) is not None


@pytest.mark.parametrize(
    "text", ["", "all", "residual", "residual:0", "tokens:-1", "tokens:2+tokens:3", "residual:2+", "tokens:9999999", 3]
)
def test_what_is_no_reuse_is_one_line(text: Any) -> None:
    with pytest.raises(DisaError) as error:
        parse_reuse(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["flowar-digits", "xar-digits"])
def test_models_that_can_keep_nothing_say_so(name: str) -> None:
    able = find_preset(name).spec.architecture.capabilities
    able.check_reuse(NONE)
    with pytest.raises(DisaError, match="each has tokens of its own: leave residual:9 out"):
        able.check_reuse(Reuse(residual=9))


# -- the residual --------------------------------------------------------------------------------------------------


def halves(model: MAR, state: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """[B, L, D] conditional and unconditional condition vectors of `tokens` [B, N], both computed."""
    visible = state.visible[state.ar_step]
    return model.condition(state.tokens, state.embedding, visible, tokens, state.positions).chunk(2)  # pyright: ignore[reportReturnType]


@torch.no_grad()
def test_the_unconditional_half_is_the_conditional_one_and_what_was_kept() -> None:
    model = small.model()
    state = model.begin(request("residual:3"), SeededNoise(SEEDS))
    kept: dict[int, Tensor] = {}
    for k in range(12):
        turn, drawn = state.turn, state.drawn[k]
        conditional, unconditional = halves(model, state, drawn)
        for later in turn.ahead:
            one, other = halves(model, state, state.drawn[later])
            kept[later] = other - one
        expected = torch.stack([conditional, conditional + kept[k] if turn.adds else unconditional])
        problem: Any = model.pose(state)
        found = problem.field.network.condition
        torch.testing.assert_close(found, model.head.condition(expected.flatten(1, 2)), rtol=1e-4, atol=1e-4)
        model.accept(state, torch.randn(problem.num_rows, 4, generator=torch.Generator().manual_seed(k)))
    assert sorted(kept) == [6, 7, 9, 10]


def room(model: MAR) -> list[Tensor]:
    """Memory for the keys and values of a batch, which are zero."""
    return model.begin(request("tokens:2"), SeededNoise(SEEDS)).kept


@torch.no_grad()
def test_new_tokens_alone_are_exact_where_all_are_new() -> None:
    """What is kept is overwritten everywhere: keys and values of zero would show."""
    model = small.model()
    state = model.begin(request("none"), SeededNoise(SEEDS))
    state.ar_step, state.tokens = 6, torch.randn(state.tokens.shape, generator=torch.Generator().manual_seed(0))
    visible, positions = state.visible[6], state.positions
    undrawn = torch.cat(state.drawn[6:], dim=1)
    kept = room(model)
    expected = model.condition(state.tokens, state.embedding, visible, undrawn, positions, kept)
    assert len(kept) == 3
    assert all(pair.any() for pair in kept)
    kept = room(model)
    found = model.renewed(state.tokens, state.embedding, visible, visible, undrawn, positions, kept)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_tokens_that_nothing_has_changed_are_exact_when_kept() -> None:
    """The same AR step again, of which only one token counts as new."""
    model = small.model()
    state = model.begin(request("none"), SeededNoise(SEEDS))
    state.ar_step, state.tokens = 6, torch.randn(state.tokens.shape, generator=torch.Generator().manual_seed(0))
    visible, drawn, kept = state.visible[6], state.drawn[6], room(model)
    expected = model.condition(state.tokens, state.embedding, visible, drawn, state.positions, kept)
    given = state.tokens, state.embedding, visible
    found = model.renewed(*given, state.drawn[5], drawn, state.positions, kept)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    other = model.renewed(state.tokens + 1, *given[1:], state.drawn[5], drawn, state.positions, kept)
    assert not torch.allclose(other, expected, rtol=1e-2)


def test_every_reuse_of_every_ar_step_changes_no_bit() -> None:
    sampler = small.sampler()
    expected = sampler.sample(LABELS, SEEDS, num_ar_steps=12)
    for reuse in ("none", "residual:1", "tokens:1", "residual:1+tokens:1"):
        found = sampler.sample(LABELS, SEEDS, num_ar_steps=12, reuse=reuse)
        assert torch.equal(found.latents, expected.latents)
        assert found.backbone_tokens == expected.backbone_tokens


def drawn_in(sampler: Any, sizes: Sequence[int], **options: Any) -> list[Tensor]:
    return [sampler.sample(LABELS, SEEDS, batch_size=size, **options).latents for size in sizes]


@pytest.mark.parametrize("reuse", ["residual:2", "tokens:2", "tokens:4", "residual:2+tokens:2"])
def test_an_image_does_not_depend_on_its_batch(reuse: str) -> None:
    for options in (
        {},
        {"progress": (0.3, 0.9)},
        {"counts": "stages:4-3-1", "num_ar_steps": None, "order": "checkerboard:3"},
    ):
        whole, pairs, single = drawn_in(small.sampler(), (3, 2, 1), reuse=reuse, **({"num_ar_steps": 10} | options))
        assert torch.equal(whole, pairs)
        assert torch.equal(whole, single)


def test_what_is_not_computed_is_not_counted() -> None:
    sampler = small.sampler()
    full, less = (sampler.sample(LABELS, SEEDS, num_ar_steps=12, reuse=reuse) for reuse in ("none", "residual:3"))
    for k, (before, after) in enumerate(zip(full.trace, less.trace, strict=True)):
        assert after.backbone_tokens * (2 if k in {6, 7, 9, 10} else 1) == before.backbone_tokens
        assert after.evaluations == before.evaluations
    assert less.operations < full.operations


def test_light_ar_steps_compute_new_tokens_the_buffer_and_those_to_draw() -> None:
    sampler = small.sampler()
    samples = sampler.sample(LABELS, SEEDS, num_ar_steps=8, counts="linear", reuse="tokens:2")
    full, light = samples.trace[6], samples.trace[7]
    assert full.backbone_tokens == 3 * 2 * ((4 + 12) + 2 * (4 + 16))
    assert light.backbone_tokens == 3 * 2 * ((4 + 2) + 2 * (4 + 2 + 2))


def test_without_classes_there_is_nothing_to_keep() -> None:
    sampler = small.sampler()
    one, other = (sampler.sample(None, SEEDS, num_ar_steps=12, reuse=reuse) for reuse in ("none", "residual:3"))
    assert torch.equal(one.latents, other.latents)
