"""The baseline of `benchmarks/flow.py` draws what disa draws, in another order of work."""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.request import Guidance, Request
from disa.core.solvers import make_solver
from disa.core.steps import linear
from disa.models.flowar.config import FlowARConfig
from disa.models.flowar.model import FlowAR
from disa.models.xar.config import XARConfig
from disa.models.xar.model import XAR

FLOWAR: dict[str, Any] = {
    "scales": (1, 2, 4),
    "latent_channels": 3,
    "width": 32,
    "encoder_depth": 1,
    "decoder_depth": 2,
    "num_heads": 2,
    "num_classes": 10,
    "head_width": 32,
    "head_depth": 2,
    "head_heads": 2,
}
CASES: dict[str, tuple[Any, str, tuple[float, float]]] = {
    "flowar": (FlowAR(FlowARConfig(**FLOWAR)), "euler", (0.0, 0.9)),
    "flowar-cross": (FlowAR(FlowARConfig(**FLOWAR, cross=True)), "euler", (0.1, 0.7)),
    "xar": (XAR(XARConfig((8, 4), 4, (2, 2), 32, 1, 2, 2, num_classes=10)), "euler-maruyama", (0.0, 1.0)),
    "xar-interval": (XAR(XARConfig((4, 8), 4, (2, 2), 32, 2, 1, 4, num_classes=10)), "euler-maruyama", (0.2, 0.8)),
}
"""Model, solver, interval of guidance."""


def drawn(model: Any, solver: str, guidance: Guidance, num_ar_steps: int) -> tuple[Tensor, int]:
    """Latents and evaluations."""
    request = Request(2, num_ar_steps, torch.tensor([3, 9]), guidance)
    grid = "flowar-split" if solver == "euler" else "xar-em"
    steps = list(generate_steps(model, request, linear(6, 3), make_solver(solver, grid), SeededNoise([5, 1 << 40])))
    return model.finish(steps[-1].state), sum(step.evaluations for step in steps)


@pytest.mark.parametrize("scale", [1.0, 2.5, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_the_plain_order_of_work_gives_the_same_images(
    name: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, solver, interval = CASES[name]
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "benchmarks"))
    plain = import_module("plain_flow").PLAIN[name.split("-")[0]]
    random = torch.Generator().manual_seed(0)
    for parameter in model.requires_grad_(False).eval().parameters():
        spread = 1 / math.sqrt(parameter.shape[-1]) if parameter.dim() > 1 else 0.3
        parameter.copy_(torch.randn(parameter.shape, generator=random) * spread)
    guidance, count = Guidance(scale, interval=interval), model.config.num_ar_steps
    expected, needed = drawn(model, solver, guidance, count)
    found, made = drawn(plain(model), solver, guidance, count)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert (made > needed) == (solver == "euler-maruyama" or scale != 1), "FlowAR alone goes without the other half"
