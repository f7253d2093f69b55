"""What one image takes of each model: launches and multiplications, counted without a GPU.

    python benchmarks/work.py                  # what results/work.json lacks; hours of one core for all models
    python benchmarks/work.py mar-base xar-base

With the original settings, with the annealed ones, and with the fast recipe where a family has one, at batch 1;
launches in plain form and with fused operators, as in `launches.py`. Each count is written as it is made, so that an
interrupted call is resumed. `gpu.py` divides the multiplications by its times.

An original count is not gone through: what an AR step takes is linear in its evaluations, so that two short ones give
it, up to the few launches that compute modulations ahead. Multiplications grow with the batch, except for embeddings
of times.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from common import note
from launches import Launches, draw, model_name, on_meta, request_for, solver_of
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import flop_registry

from disa.core.request import Request
from disa.core.solver import Solver
from disa.core.solvers import make_solver
from disa.core.steps import StepPolicy, constant
from disa.core.texts import parse
from disa.draw.recipes import FAST, read_recipe
from disa.files import write_text
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.runtime import fused
from disa.weights.package import in_package

MODELS = (
    *("mar-base", "flowar-small", "xar-base", "harmon-0.5b", "mar-large", "mar-huge"),
    *("flowar-large", "flowar-huge", "xar-large", "xar-huge", "harmon-1.5b"),
)
SETTINGS = "disa", "original", "fast"
"""The annealed ones, those of the model's own paper, and the fast recipe of its family."""
PARTS = "order", "counts", "reuse"
"""Options of a recipe that a request takes."""
FORMS = "plain", "fused"
"""Whose launches are counted; `gpu.py` measures graphs, too, which launch what fused operators do by few calls."""
FILE = Path(__file__).parent / "results" / "work.json"


@dataclass(frozen=True)
class Asked:
    """How a model is drawn."""

    num_ar_steps: int
    steps: str
    solver: Solver | None = None
    """None for the model's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of a request: order, counts, reuse."""

    @classmethod
    def of(cls, preset: Preset, settings: str) -> Asked:
        """One of `SETTINGS`."""
        own, paper = preset.defaults, preset.paper.original
        if settings == "fast":
            fast = read_recipe(recipe_of(preset)).settings
            options = {name: value for name in PARTS if (value := getattr(fast, name)) is not None}
            num_ar_steps = fast.counts.num_ar_steps if fast.counts else own.num_ar_steps
            solver = make_solver(fast.solver, fast.grid) if fast.solver else None
            return cls(num_ar_steps, str(fast.steps or own.steps), solver, options)
        if settings == "disa":
            return cls(own.num_ar_steps, own.steps)
        return cls((paper and paper.num_ar_steps) or own.num_ar_steps, own.original)

    def drawing(self, preset: Preset, batch: int) -> tuple[Request, StepPolicy, Solver]:
        """What draws a batch."""
        request = request_for(preset, batch, self.num_ar_steps, **self.options)
        return request, parse(self.steps), self.solver or solver_of(preset)


def recipe_of(preset: Preset) -> Path:
    """The fast recipe of a published model's family, which may not be there."""
    return in_package(f"{preset.spec.family}-{FAST}.json")


class Work(Launches):
    """Counts multiplications and additions, too: those of matrix products, convolutions and attention."""

    flops: int = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(function, types, args, kwargs)
        if count := flop_registry.get(function._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=out)
        return out

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count inside, where attention is one launch and does not say what it multiplies."""
        before: Callable[..., Tensor] = F.scaled_dot_product_attention

        def attention(query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any) -> Tensor:
            self.flops += 2 * query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
            return before(query, key, value, *others, **named)

        F.scaled_dot_product_attention = attention
        try:
            with self:
                yield
        finally:
            F.scaled_dot_product_attention = before


def count(preset: Preset, model: Any, asked: Asked, form: str) -> dict[str, int]:
    """Launches and multiplications of one image."""
    work = Work()
    with fused.plain_forms() if form == "plain" else nullcontext():
        draw(model, *asked.drawing(preset, 1), work.watching())
    return {"launches": work.total, "flops": work.flops}


def extrapolated(preset: Preset, model: Any, asked: Asked, form: str) -> dict[str, int]:
    """The same of a constant number of denoising steps, from two small numbers."""
    solver, process = solver_of(preset), model.process

    def evaluations(num_steps: int) -> int:
        return solver.plan(process, num_steps).num_evaluations

    few, wanted = (4, 8), evaluations(parse(asked.steps).counts(asked.num_ar_steps)[0])
    low, high = (count(preset, model, Asked(asked.num_ar_steps, str(constant(n))), form) for n in few)
    first, second = map(evaluations, few)
    return {key: low[key] + (high[key] - low[key]) * (wanted - first) // (second - first) for key in low}


def work_of(name: str, settings: str) -> dict[str, int]:
    """Of a model: multiplications, and the launches of each form."""
    preset = PRESETS[name]
    model, asked = on_meta(preset), Asked.of(preset, settings)
    counting = extrapolated if settings == "original" else count
    found = {form: counting(preset, model, asked, form) for form in FORMS}
    return {"flops": found["plain"]["flops"], **{form: found[form]["launches"] for form in FORMS}}


def read(path: Path = FILE) -> dict[str, dict[str, int]]:
    """What was counted, by model and settings."""
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=model_name, default=MODELS, metavar="MODEL")
    parser.add_argument("--out", type=Path, default=FILE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for settings in SETTINGS:
        for name in asked.models:
            found, key = read(asked.out), f"{name} {settings}"
            if key not in found and (settings != "fast" or recipe_of(PRESETS[name]).exists()):
                found[key] = work_of(name, settings)
                write_text(asked.out, json.dumps(found, indent=1) + "\n")
                note(f"{key}: {found[key]}")


if __name__ == "__main__":
    main()
