"""Layers that are fetched when they run: what is drawn, how much of them is there at a time, and what is refused.

A stand-in takes the place of a device: it copies as late as it may, and what it copies over is lost at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import small
from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.request import Guidance, Prompts, Request
from disa.core.solvers import make_solver
from disa.core.steps import linear
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.runtime.offload import Copies, Offloaded, Place, place_others

pytestmark = pytest.mark.usefixtures("one_thread")

pytest.importorskip("transformers")

CPU = torch.device("cpu")
MODELS: dict[str, Any] = {"nextstep": small.nextstep, "unipic": small.unipic}
CONFIGS: dict[str, Any] = {"nextstep": small.NEXTSTEP_CONFIG, "unipic": small.UNIPIC_CONFIG}


class Late(Copies):
    """Copies are made when they are waited for."""

    def __init__(self) -> None:
        super().__init__(CPU)
        self.coming, self.running, self.notes = dict[Place, Sequence[Tensor]](), set[Place](), list[str]()

    def begin(self, place: Place, weights: Sequence[Tensor]) -> None:
        assert place not in self.running
        for there in place.weights:
            there.fill_(torch.nan)
        self.coming[place] = weights
        self.notes.append("copy")

    def finish(self, place: Place) -> None:
        if place in self.coming:
            super().begin(place, self.coming.pop(place))
        self.running.add(place)
        self.notes.append("run")

    def release(self, place: Place) -> None:
        self.running.discard(place)


def model(name: str, depth: int) -> Any:
    return MODELS[name](replace(CONFIGS[name], llm_depth=depth))


def offloaded(name: str, depth: int) -> tuple[Any, Late, Offloaded]:
    made, copies = model(name, depth), Late()
    return made, copies, Offloaded(made.layers_in_turn, copies)


def draw(made: Any, num_ar_steps: int = 6) -> Tensor:
    asked = Request(2, num_ar_steps, guidance=Guidance(3.0, "constant"), prompts=Prompts.of([[5, 6, 7], [8], [3], [3]]))
    solver = make_solver("euler-maruyama-ode" if made.process.predicts == "velocity" else "ddpm")
    with torch.no_grad():
        steps = list(generate_steps(made, asked, linear(3, 2), solver, SeededNoise([1, 2])))
    return made.finish(steps[-1].state)


@pytest.mark.parametrize(("name", "depth"), [("nextstep", 1), ("nextstep", 2), ("nextstep", 3), ("unipic", 3)])
def test_the_picture_is_the_same_to_the_bit(name: str, depth: int) -> None:
    made, copies, _ = offloaded(name, depth)
    expected = draw(model(name, depth))
    for _ in range(2):
        assert torch.equal(draw(made), expected)
    assert "copy" in copies.notes


def test_two_layers_are_there_at_a_time_and_the_next_one_comes_while_one_runs() -> None:
    made, copies, layers = offloaded("nextstep", 4)
    draw(made)
    one = sum(parameter.numel() for parameter in made.layers_in_turn[0].parameters())
    assert sum(weight.numel() for place in layers.places for weight in place.weights) == 2 * one
    assert copies.notes[:7] == ["copy", "run", "copy", "run", "copy", "run", "copy"]
    assert copies.notes.count("copy") == copies.notes.count("run") + 1  # the first layer, for a token that never comes


def test_the_weights_of_a_model_are_its_own_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _, _ = offloaded("nextstep", 3)
    expected = {name: value.clone() for name, value in made.state_dict().items()}
    parameters = list(map(id, made.parameters()))

    def fails(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(made.layers_in_turn[1].mlp, "forward", fails)
    with pytest.raises(KeyboardInterrupt):
        draw(made)
    found = made.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert list(map(id, made.parameters())) == parameters
    monkeypatch.undo()
    assert torch.equal(draw(made), draw(model("nextstep", 3)))


def test_what_is_not_in_the_layers_moves_and_they_stay() -> None:
    made = model("nextstep", 2)
    place_others(made, made.layers_in_turn, CPU, torch.bfloat16)
    inside = {id(parameter) for parameter in made.layers_in_turn.parameters()}
    assert len(inside) == 24
    for parameter in made.parameters():
        assert parameter.dtype == (torch.float32 if id(parameter) in inside else torch.bfloat16)


def test_layers_of_several_shapes_are_refused() -> None:
    with pytest.raises(DisaError, match="must be of one shape"):
        Offloaded(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 3)]), Late())


def test_what_cannot_be_offloaded_is_refused_before_weights_are_read() -> None:
    with pytest.raises(DisaError, match="mar-digits has no language model whose layers could be offloaded"):
        Sampler.load("mar-digits", offload=True)
    with pytest.raises(DisaError, match="for a CUDA device, found cpu: leave it out"):
        Sampler.load("nextstep-1", "no-such-folder", device="cpu", offload=True)


def test_graphs_and_another_place_do_not_go_with_it() -> None:
    sampler = Sampler(small.NEXTSTEP, model("nextstep", 2), device="cpu")
    sampler.offloaded = True
    with pytest.raises(DisaError, match="leave graphs or offload out"):
        sampler.settings(graphs="on")
    with pytest.raises(DisaError, match="stays where it is"):
        sampler.to("cpu", torch.bfloat16)
