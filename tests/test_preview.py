"""What a model shows of images under way, and how it goes on from there."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import ARStep, DenoisingProblem
from disa.core.request import Guidance, Prompts, Request
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.core.steps import constant
from disa.draw.inputs import Inputs
from disa.draw.preview import foreseen, with_rest
from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR
from disa.models.mar.model import MAR
from disa.models.nextstep.model import NextStep
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR

SHAPE: dict[str, Any] = {
    "latent_channels": 3,
    "width": 32,
    "encoder_depth": 1,
    "decoder_depth": 1,
    "num_heads": 2,
    "num_classes": 10,
}


def _nextstep() -> NextStep:
    pytest.importorskip("transformers")
    return NextStep(small.NEXTSTEP_CONFIG)


MODELS = {
    "mar": lambda: MAR(small.CONFIG),
    "xar": lambda: XAR(XARConfig(latent_size=(4, 4), cells=(2, 2), **SHAPE)),
    "nextstep": _nextstep,
    "flowar": lambda: FlowAR(FlowARConfig(scales=(1, 2, 4), head_width=32, head_depth=1, head_heads=2, **SHAPE)),
}
SOLVERS = {"mar": "ddpm", "xar": "euler", "flowar": "euler", "nextstep": "euler"}
NUM_AR_STEPS = {"mar": 4, "xar": 4, "flowar": 3, "nextstep": 6}


def turns(name: str, model: Any) -> Iterator[ARStep]:
    request = Request(2, NUM_AR_STEPS[name], torch.tensor([3, 5]), Guidance(2.0))
    if name == "nextstep":
        request = replace(request, labels=None, prompts=Prompts.of([[3], [5, 6], [1], [1]]))
    return generate_steps(model, request, constant(3), make_solver(SOLVERS[name]), SeededNoise([0, 1]))


@torch.no_grad()
def to_the_end(name: str, model: Any, state: Any) -> Tensor:
    while state.ar_step < state.request.num_ar_steps:
        problem = model.pose(state)
        model.accept(state, solve(problem, make_solver(SOLVERS[name]), 3, SeededNoise([0, 1])).tokens)
    return model.finish(state)


def spread(undrawn: Tensor, latents: Tensor) -> Tensor:
    """Booleans over tokens as booleans over latents."""
    rows, columns = (latents.shape[i] // undrawn.shape[i] for i in (2, 3))
    return undrawn.repeat_interleave(rows, 2).repeat_interleave(columns, 3).expand_as(latents)


@pytest.mark.parametrize("name", ["mar", "xar"])
def test_what_is_shown_as_drawn_stays_and_in_the_end_nothing_is_undrawn(name: str) -> None:
    model = small.randomised(MODELS[name]())
    previews: list[Any] = [(step.problem.rows_to_come, *model.preview(step.state)) for step in turns(name, model)]
    final = previews[-1][1]
    for rows_to_come, latents, undrawn in previews:
        left = rows_to_come * (4 if name == "xar" else 1)
        assert undrawn.dtype == torch.bool
        assert undrawn.flatten(1).sum(1).tolist() == [left, left]
        assert undrawn[0].numel() == 16
        here = spread(undrawn, latents)
        assert torch.equal(latents[~here], final[~here])
        assert not torch.any(latents[here])


def test_a_scale_is_shown_as_it_is() -> None:
    model = small.randomised(MODELS["flowar"]())
    shown = [model.preview(step.state) for step in turns("flowar", model)]
    assert [tuple(latents.shape) for latents, _ in shown] == [(2, 3, side, side) for side in (1, 2, 4)]
    assert all(undrawn is None for _, undrawn in shown)


@pytest.mark.parametrize("name", MODELS)
def test_going_ahead_leaves_the_generation_as_it_was(name: str) -> None:
    model = small.randomised(MODELS[name]())
    expected = [model.preview(step.state).latents for step in turns(name, model)]
    for step, latents in zip(turns(name, model), expected, strict=True):
        assert torch.equal(model.preview(step.state).latents, latents)
        if step.ar_step == NUM_AR_STEPS[name] - 1:
            break
        undrawn = model.preview(step.state).undrawn
        ended = to_the_end(name, model, model.ahead(step.state, SeededNoise([0, 1])))
        if undrawn is not None:
            here = spread(undrawn, ended)
            assert torch.equal(ended[~here], latents[~here])
            assert torch.all(ended[here] != 0)
        assert ended.shape == expected[-1].shape


def test_what_is_foreseen_keeps_what_is_drawn_and_the_state() -> None:
    sampler, asked = small.sampler(), {"num_ar_steps": 4, "steps": "constant:2"}
    inputs = Inputs.paired([0, 1], [3, 5])
    expected = sampler.start(inputs, output_type="latent", **asked).result().latents
    run = sampler.start(inputs, output_type="latent", **asked)
    for turn in run:
        if turn.samples is not None:
            assert torch.equal(turn.samples.latents, expected)
            break
        latents, undrawn = sampler.model.preview(turn.step.state)
        rest, left = with_rest(sampler.model, turn.step.state, ones, turn.noise), spread(undrawn, latents)
        assert torch.equal(rest[~left], latents[~left])
        assert (rest[left] == 1).all()
        assert foreseen(sampler, turn.step.state, turn.noise).shape == (2, *sampler.image_shape)


def ones(problem: DenoisingProblem) -> Tensor:
    return torch.ones(problem.num_rows, *problem.shape)
