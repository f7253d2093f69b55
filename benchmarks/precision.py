"""What rounding to bf16 does to pictures, part by part: the error of latents against a network in float64.

    python benchmarks/precision.py                # the embedded models, on one core in some minutes
    python benchmarks/precision.py mar-digits --images 4

The first lines are fp32 and bf16 as disa draws. In each of the others one more part is rounded to bf16 that disa keeps
in float32: what it adds says whether that part has to stay. The same seeds, noise, steps and solver (dpm-solver++-2)
everywhere; root mean square of the differences, as a share of that of the latents.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import torch
from common import note, publish
from launches import request_for
from tables import table
from torch import Tensor

from disa.core.generate import generate_steps
from disa.core.multistep import DPMSolverPlusPlus
from disa.core.noise import SeededNoise
from disa.core.problem import Process, TimeGrid
from disa.core.solver import Walk
from disa.core.texts import parse
from disa.draw.sampler import Sampler
from disa.models.registry import PRESETS
from disa.runtime import fused, packing
from disa.runtime.surroundings import undisturbed

MODELS = "mar-digits", "flowar-digits", "xar-digits"
STEPS, NUM_AR_STEPS = "linear:10-4", {"mar-digits": 8}
HALF = torch.bfloat16


class RoundedState(DPMSolverPlusPlus):
    """The state is rounded before each evaluation."""

    def walk(self, process: Process, grid: TimeGrid, x: Tensor, noise: Tensor) -> Walk:
        walk = super().walk(process, grid, x, noise)
        asked = next(walk)
        while True:
            asked[0].copy_(asked[0].to(HALF))
            try:
                asked = walk.send((yield asked))
            except StopIteration as stopped:
                return stopped.value


@contextmanager
def plain_form(operator: fused.Operator, other: Callable[..., Any]) -> Iterator[None]:
    """Another plain form of an operator."""
    with patch.object(operator, "plain", other):
        yield


def rounded_guidance(value: Tensor, variance: Tensor | None, scale: float) -> list[Tensor]:
    mixed = fused._guided(value.to(HALF), variance, scale)
    if len(value) == 2:
        mixed[0] = torch.lerp(value[1].to(HALF), value[0].to(HALF), scale).float()
    return mixed


def rounded_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor, eps: float, rms: bool
) -> Tensor:
    """Every value of the statistics, and what is made of them, in bf16."""
    h = x if rms else x - x.mean(-1, keepdim=True)
    h = h * (h.square().mean(-1, keepdim=True) + eps).rsqrt()
    h = h if weight is None or bias is None else h * weight + bias
    return torch.addcmul(h + shift, h, scale)


def rounded_positions(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return fused._turned(x, cos.to(HALF), sin.to(HALF))


def parts() -> dict[str, tuple[type[DPMSolverPlusPlus], Callable[[], AbstractContextManager[Any]]]]:
    """What is rounded beside the network, by name: the solver, and what holds meanwhile."""
    plain = DPMSolverPlusPlus
    return {
        "the state x": (RoundedState, nullcontext),
        "the mix of guidance": (plain, lambda: plain_form(fused.guided, rounded_guidance)),
        "statistics of norms": (plain, lambda: plain_form(fused.modulated_norm, rounded_norm)),
        "rotary positions": (plain, lambda: plain_form(fused.turned, rounded_positions)),
    }


def drawn(name: str, model: Any, images: int, solver: Any) -> Tensor:
    """[N, C, H, W] of the first seeds."""
    with undisturbed():
        request = request_for(PRESETS[name], images, NUM_AR_STEPS.get(name))
        *_, last = generate_steps(model, request, parse(STEPS), solver, SeededNoise(range(images)))
        return model.finish(last.state).double()


def errors(name: str, images: int) -> dict[str, float]:
    """Of a model: what is computed how, and the error that this leaves."""
    own = packing.unpack(Sampler.from_pretrained(name, device="cpu").model)
    right = drawn(name, deepcopy(own).double(), images, DPMSolverPlusPlus())
    half, found = deepcopy(own).to(HALF), dict[str, float]()

    def compare(what: str, model: Any, solver: Any) -> None:
        found[what] = float((drawn(name, model, images, solver) - right).norm() / right.norm())
        note(f"{name}, {what}: {found[what]:.2e}")

    compare("fp32", own, DPMSolverPlusPlus())
    compare("bf16", half, DPMSolverPlusPlus())
    for what, (solver, around) in parts().items():
        with around():
            compare(f"bf16, and {what}", half, solver())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL")
    parser.add_argument("--images", type=int, default=4)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: errors(name, given.images) for name in given.models}
    kinds = next(iter(found.values()))
    print(table(["rounded", *found], [[kind, *(f"{each[kind]:.1e}" for each in found.values())] for kind in kinds]))
    publish({"benchmark": "precision", "steps": STEPS, "images": given.images, "models": found})


if __name__ == "__main__":
    main()
