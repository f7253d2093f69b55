"""What annealing saves the families that came later, what their AR steps launch, and whether these grow dearer.

    python benchmarks/families.py annealing              # hours on one core, and 12 GB of memory; it resumes
    python benchmarks/families.py annealing emigm-base-512 bitdance-base
    python benchmarks/families.py launches               # a minute
    python benchmarks/families.py growth                 # some minutes, and 1 GB

Weights are random, and one thread computes.

annealing: UniPic-1 at 512 px, eMIGM-B at 512 px, BitDance-B and 4 layers of NextStep-1 by the published numbers of
denoising steps and by disa's annealed ones, everything else as published. A whole image would take hours, so a few AR
steps of it are measured: the backbone pass, and drawing the tokens with the denoising steps that either setting has
there, in turn. What an image takes is the sum over its AR steps: seconds of the backbone, and seconds of an evaluation,
between measured AR steps in proportion; evaluations are counted for every AR step. What was drawn before is zeros in a
cache of the right length.

launches: of one AR step of the published architectures, on PyTorch's meta device.

growth: 12 layers of NextStep of width 512. Two generations stand at AR step 10 and at AR step 1000 and go on in turn,
so that whatever else the machine does meets both.

Each result is written into results/families.json as it is made; what is there is not made again.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, note, prepared, random_model, rounded
from launches import META, Launches, attention_in_one_launch, on_meta, solver_of

from disa.core.noise import SeededNoise
from disa.core.orders import parse_counts
from disa.core.problem import DenoisingProblem
from disa.core.request import Guidance, Prompts, Request
from disa.core.solve import solve
from disa.core.solver import Solver, at_ar_step
from disa.core.solvers import grid_for
from disa.core.texts import parse
from disa.files import write_text
from disa.models.registry import PRESETS
from disa.models.spec import Preset
from disa.runtime import fused
from disa.runtime.surroundings import undisturbed
from disa.weights.config import changed

FILE = Path(__file__).parent / "results" / "families.json"
TURNS = 3
"""Medians are of so many."""
WORDS, NO_WORDS = [5] * 20, [5] * 4
"""Token ids of a prompt, and of the unconditional one."""
FEW_WORDS = {"vocab_size": 1000, "placeholder_id": 999}
"""A table of tokens takes memory and no time."""


@dataclass(frozen=True)
class Drawn:
    """How a model is drawn, and which AR steps are measured."""

    preset: Preset
    measured: tuple[int, ...]
    token_grid: tuple[int, int] | None = None

    @property
    def num_ar_steps(self) -> int:
        return self.preset.defaults.num_ar_steps

    def request(self) -> Request:
        """Of one image."""
        own = self.preset.defaults
        guidance = Guidance(own.guidance, own.ramp, own.interval, own.progress)
        prompts = Prompts.of([WORDS, NO_WORDS]) if self.preset.prompts else None
        labels = None if self.preset.prompts else torch.tensor([0])
        counts, grid = parse_counts(own.counts), self.token_grid
        return Request(1, own.num_ar_steps, labels, guidance, prompts=prompts, token_grid=grid, counts=counts)


def _drawn(name: str, measured: tuple[int, ...], grid: tuple[int, int] | None, values: dict[str, Any]) -> Drawn:
    preset = changed(PRESETS[name], values, name) if values else PRESETS[name]
    return Drawn(preset, measured, grid)


MODELS: dict[str, Callable[[], Drawn]] = {
    "unipic-1": lambda: _drawn("unipic-1", (0, 10, 21, 31), (32, 32), FEW_WORDS),
    "emigm-base-512": lambda: _drawn("emigm-base-512", tuple(range(16)), None, {}),
    "bitdance-base": lambda: _drawn("bitdance-base", (0, 1, 85, 170, 255), None, {}),
    "nextstep-1, 4 layers": lambda: _drawn("nextstep-1", (0, 1, 512, 1023), None, {"llm_depth": 4, **FEW_WORDS}),
}


# -- one AR step -------------------------------------------------------------------------------------------------------


def standing_at(model: Any, request: Request, ar_step: int, noise: SeededNoise) -> Any:
    """A generation before an AR step; zeros in place of what was drawn."""
    state, config = model.begin(request, noise), model.config
    if ar_step and hasattr(state, "readings"):
        for reading in state.readings:
            reading.cache.advance(ar_step - 1)
    elif ar_step and hasattr(state, "cache"):
        state.cache.advance(config.prefix + (ar_step - 1) * config.group_size)
    state.ar_step = ar_step
    return state


def shallow(drawn: Drawn) -> Drawn:
    """One layer of each kind: as many rows, as many evaluations."""
    own = drawn.preset.spec.architecture
    less: dict[str, Any] = {each.name: 1 for each in fields(own) if each.name.endswith("depth")}
    less |= {"head_modulations": 1} if hasattr(own, "head_modulations") else {}
    return replace(
        drawn, preset=replace(drawn.preset, spec=replace(drawn.preset.spec, architecture=replace(own, **less)))
    )


@torch.no_grad()
def evaluations(drawn: Drawn, steps: str) -> list[int]:
    """[K] those of each AR step of an image, on the meta device."""
    few = shallow(drawn)
    model, solver, found = on_meta(few.preset), solver_of(few.preset), list[int]()
    noise, request = SeededNoise([0], META, fused.normals), few.request()
    for ar_step, count in enumerate(parse(steps).counts(drawn.num_ar_steps)):
        problem = model.pose(standing_at(model, request, ar_step, noise))
        found.append(of_rows(problem, solver, count))
    return found


def of_rows(problem: DenoisingProblem, solver: Solver, count: int) -> int:
    """Evaluations of all rows of a problem in so many denoising steps."""
    grid = grid_for(at_ar_step(solver, problem), problem.process, count)
    return problem.num_rows * sum(problem.field.on(grid).costs)


# -- annealing ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def annealing(name: str) -> dict[str, Any]:
    """Seconds and evaluations of an image by the published settings and by annealed ones."""
    drawn = MODELS[name]()
    own = drawn.preset.defaults
    settings = {text: parse(text).counts(own.num_ar_steps) for text in (own.original, own.steps)}
    made = {text: evaluations(drawn, text) for text in settings}
    note(f"{name}: { ({text: sum(each) for text, each in made.items()}) } evaluations")
    PRESETS["measured"] = drawn.preset
    model = prepared(random_model("measured", "fp32"), "fp32")
    solver, noise, request = solver_of(drawn.preset), SeededNoise([0]), drawn.request()
    backbone: dict[int, list[float]] = {ar_step: [] for ar_step in drawn.measured}
    head: dict[str, dict[int, list[float]]] = {text: {ar_step: [] for ar_step in drawn.measured} for text in settings}
    for turn in range(TURNS + 1):
        for ar_step in drawn.measured if turn else drawn.measured[-1:]:  # the first one warms up
            state = standing_at(model, request, ar_step, noise)
            began = time.perf_counter()
            problem = model.pose(state)
            posed = time.perf_counter()
            backbone[ar_step].append(posed - began)
            for text, counts in settings.items():
                began = time.perf_counter()
                solve(problem, solver, counts[ar_step], noise)
                head[text][ar_step].append(time.perf_counter() - began)
            note(f"{name}: turn {turn}, AR step {ar_step}, {backbone[ar_step][-1]:.2f} s")
    for found in (backbone, *head.values()):
        del found[drawn.measured[-1]][0]
    told: dict[str, Any] = {"ar_steps": own.num_ar_steps, "measured": list(drawn.measured), "turns": TURNS}
    passes = between(drawn, {ar_step: statistics.median(each) for ar_step, each in backbone.items()})
    for text in settings:
        each = {k: statistics.median(found) / made[text][k] for k, found in head[text].items()}
        seconds = float(between(drawn, each) @ np.array(made[text]))
        parts = {"seconds_backbone": float(passes.sum()), "seconds_head": seconds}
        told[text] = {"seconds": sum(parts.values()), **parts, "evaluations": sum(made[text])}
    return told


def between(drawn: Drawn, measured: dict[int, float]) -> np.ndarray:
    """[K] values of all AR steps from those of some."""
    return np.interp(range(drawn.num_ar_steps), list(measured), list(measured.values()))


# -- growth ------------------------------------------------------------------------------------------------------------

EARLY, LATE, WARM, LONG = 10, 1000, 3, 15
GROWTH_STEPS = 10
LIKE = {
    "llm_width": 512, "llm_hidden": 1408, "llm_depth": 12, "llm_heads": 8, "llm_kv_heads": 2, "head_width": 512,
    "head_depth": 3, "max_positions": 2048, **FEW_WORDS,
}  # fmt: skip


@torch.no_grad()
def taken(model: Any, state: Any, noise: SeededNoise) -> tuple[float, float]:
    """Seconds of the backbone and of the head in the next AR step."""
    solver, began = solver_of(PRESETS["nextstep-1"]), time.perf_counter()
    problem = model.pose(state)
    posed = time.perf_counter()
    model.accept(state, solve(problem, solver, GROWTH_STEPS, noise).tokens)
    return posed - began, time.perf_counter() - posed


def growth() -> dict[str, Any]:
    """Milliseconds of an AR step at `EARLY` and `LATE`, medians of `LONG` taken in turn."""
    drawn, noise = _drawn("nextstep-1", (), None, LIKE), SeededNoise([0])
    PRESETS["measured"] = drawn.preset
    model = prepared(random_model("measured", "fp32"), "fp32")
    states = {place: standing_at(model, drawn.request(), place - WARM, noise) for place in (EARLY, LATE)}
    found: dict[int, list[tuple[float, float]]] = {EARLY: [], LATE: []}
    for turn in range(LONG + WARM):
        for place, state in states.items():
            seconds = taken(model, state, noise)
            if turn >= WARM:
                found[place].append(seconds)
    told: dict[str, Any] = {"layers": LIKE["llm_depth"], "width": LIKE["llm_width"], "denoising_steps": GROWTH_STEPS}
    for place, seconds in found.items():
        backbone, head = (1e3 * statistics.median(part) for part in zip(*seconds, strict=True))
        whole = 1e3 * statistics.median(sum(pair) for pair in seconds)
        told[f"at_{place}"] = {"ms": whole, "backbone_ms": backbone, "head_ms": head}
    for part in ("ms", "backbone_ms"):
        told[f"{part}_ratio"] = told[f"at_{LATE}"][part] / told[f"at_{EARLY}"][part]
    return told


# -- launches ----------------------------------------------------------------------------------------------------------

LAUNCHING = {"unipic-1": 16, "emigm-base-512": 13, "bitdance-base": 128, "nextstep-1": 512}
"""The AR step that is looked at: in the middle, or where guidance acts."""


@torch.no_grad()
def launches(name: str) -> dict[str, Any]:
    """Of one AR step of one image by the published settings and by annealed ones, on a GPU."""
    preset, ar_step = PRESETS[name], LAUNCHING[name]
    model, solver, noise = on_meta(preset), solver_of(preset), SeededNoise([0], META, fused.normals)
    own, told = preset.defaults, dict[str, Any](ar_step=ar_step)
    with attention_in_one_launch():
        state = standing_at(model, Drawn(preset, ()).request(), ar_step, noise)
        with Launches() as backbone:
            problem = model.pose(state)
        told["backbone"] = backbone.total
        for text in (own.original, own.steps):
            steps = parse(text).counts(own.num_ar_steps)[ar_step]
            with Launches() as head:
                solve(problem, solver, steps, noise)
            told[text] = {"denoising_steps": steps, "head": head.total}
        drawn = torch.zeros(problem.num_rows, *problem.shape, device=META)
        with Launches() as accepted:
            model.accept(state, drawn)
    return told | {"accept": accepted.total}


# -- results -----------------------------------------------------------------------------------------------------------

PARTS: dict[str, tuple[Callable[[str], dict[str, Any]], tuple[str, ...]]] = {
    "annealing": (annealing, tuple(MODELS)),
    "launches": (launches, tuple(LAUNCHING)),
    "growth": (lambda _: growth(), ("nextstep-1, 12 layers of width 512",)),
}


def read(path: Path = FILE) -> dict[str, Any]:
    """What was measured: by part, then by model."""
    return json.loads(path.read_text()) if path.exists() else {}


def missing(part: str, names: list[str], path: Path) -> Iterator[str]:
    """Models that a part has no result for yet."""
    for name in names or PARTS[part][1]:
        if name not in read(path).get(part, {}):
            yield name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("models", nargs="*", help="all of the part by default")
    parser.add_argument("--out", type=Path, default=FILE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for name in missing(asked.part, asked.models, asked.out):
        if name not in PARTS[asked.part][1]:
            parser.error(f"unknown model {name!r}: expected {', '.join(PARTS[asked.part][1])}")
        with undisturbed():
            told = PARTS[asked.part][0](name)
        found = read(asked.out)
        found.setdefault(asked.part, {})[name] = rounded(told)
        write_text(asked.out, json.dumps({**found, **machine()}, indent=1) + "\n")
        note(f"{name}: {told}")
        gc.collect()


if __name__ == "__main__":
    main()
