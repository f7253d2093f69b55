"""What stays in float32 in a model whose weights are bf16: benchmarks/precision.py measures what each part is worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import small
from disa.core.generate import generate_steps
from disa.core.multistep import DPMSolverPlusPlus
from disa.core.noise import SeededNoise
from disa.core.problem import Process, TimeGrid
from disa.core.request import Guidance, Prompts, Request
from disa.core.solver import Walk
from disa.core.steps import Constant
from disa.models.transformer import Rotation
from disa.runtime import fused
from disa.runtime.surroundings import undisturbed

PRESETS = {
    **{name: small.shallow(name) for name in ("mar-digits", "flowar-digits", "xar-digits", "harmon-shapes")},
    "bitdance": small.BITDANCE,
    "nextstep": small.NEXTSTEP,
}
HALF = torch.bfloat16


class Watched(DPMSolverPlusPlus):
    """Says of what types its state and the answers are."""

    seen: set[torch.dtype]

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        walk = super().walk(process, grid, x, noise)
        asked = next(walk)
        while True:
            said = yield asked
            self.seen.update((asked[0].dtype, said.value.dtype))
            try:
                asked = walk.send(said)
            except StopIteration as stopped:
                return stopped.value


@pytest.mark.filterwarnings("ignore:.*bfloat16 instructions")
@pytest.mark.parametrize("name", PRESETS)
def test_states_and_guided_answers_are_float32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS[name]
    if preset.prompts:
        pytest.importorskip("transformers")
    model: Any = small.randomised(preset.build()).to(HALF)
    monkeypatch.setattr(Watched, "seen", set(), raising=False)
    asked: dict[str, Any] = (
        {"prompts": Prompts.of([[1, 2, 3]] * 2)} if preset.prompts else {"labels": torch.tensor([3])}
    )
    request = Request(1, preset.defaults.num_ar_steps, guidance=Guidance(2.0), **asked)
    with undisturbed():
        *_, last = generate_steps(model, request, Constant(2), Watched(), SeededNoise([0]))
        Watched.seen.add(last.tokens.dtype)
        assert model.finish(last.state).dtype == torch.float32
    assert Watched.seen == {torch.float32}


@pytest.mark.parametrize("rms", [False, True])
def test_statistics_of_norms_are_float32(rms: bool) -> None:
    """A mean of 100 in bf16 is off by up to a quarter; so is a sum of squares of many numbers."""
    x = (torch.randn(3, 4096, generator=torch.Generator().manual_seed(0)) + (0 if rms else 100)).to(HALF)
    nothing = torch.zeros_like(x)
    found = fused.modulated_norm.plain(x, None, None, nothing, nothing, 1e-6, rms)
    right = fused.modulated_norm.plain(x.double(), None, None, nothing.double(), nothing.double(), 1e-6, rms)
    assert found.dtype == HALF
    torch.testing.assert_close(found.double(), right, rtol=2**-8, atol=2**-8)


def test_both_halves_of_guidance_are_mixed_in_float32() -> None:
    value = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).to(HALF)
    (mixed,) = fused.guided.plain(value, None, 2.5)
    assert torch.equal(mixed, torch.lerp(value[1].float(), value[0].float(), 2.5))


def test_positions_are_turned_in_float32() -> None:
    x = torch.randn(2, 3, 9, 16, generator=torch.Generator().manual_seed(0)).to(HALF)
    rotation = Rotation.of(torch.arange(9) + 50, torch.arange(9), 16)
    assert rotation.cos.dtype == rotation.sin.dtype == torch.float32
    assert torch.equal(rotation.turn(x), rotation.turn(x.float()).to(HALF))
