"""What an AR step of a causal model costs, early and late, and what annealing saves it.

    python benchmarks/families.py                       # some minutes on one core, and 10 GB of memory
    python benchmarks/families.py growth launches --json results.json

NextStep of random weights. First 12 layers of width 512, 1024 AR steps of one token: two generations stand at AR step
10 and at AR step 1000 and go on in turn, so that whatever else the machine does meets both. Then 4 layers of the
published width and the published head, 9 AR steps: the official settings against annealed ones. Last, on the meta
device, what an AR step of the published architecture launches on a GPU. It ends in one line of JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, note, prepared, publish, random_model
from launches import META, Launches, attention_in_one_launch, on_meta

from disa.core.generate import generate_steps
from disa.core.noise import SeededNoise
from disa.core.problem import Noise
from disa.core.request import Guidance, Prompts, Request
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.core.texts import parse
from disa.models.nextstep.config import NextStepConfig
from disa.models.registry import PRESETS
from disa.runtime import fused
from disa.runtime.surroundings import undisturbed
from disa.weights.config import changed

EARLY, LATE, TURNS = 10, 1000, 15
LIKE = {
    "llm_width": 512, "llm_hidden": 1408, "llm_depth": 12, "llm_heads": 8, "llm_kv_heads": 2, "head_width": 512,
    "head_depth": 3, "vocab_size": 1000, "placeholder_id": 999, "max_positions": 2048,
}  # fmt: skip
SHORT = {"llm_depth": 4, "latent_size": (6, 6), "vocab_size": 1000, "placeholder_id": 999}
PUBLISHED, ANNEALED = "constant:50", "linear:50-5"


def like(name: str, values: dict[str, Any]) -> Any:
    """A random model of a preset's family with other values of its architecture, known under a name of its own."""
    PRESETS[name] = changed(PRESETS["nextstep-1"], values, name)
    return prepared(random_model(name, "fp32"), "fp32")


def request(config: NextStepConfig, batch: int = 1) -> Request:
    rows = [[5] * 20] * batch + [[5] * 4] * batch
    return Request(batch, config.num_tokens, guidance=Guidance(7.5, "constant"), prompts=Prompts.of(rows))


@torch.no_grad()
def standing_at(model: Any, ar_step: int, noise: Noise) -> Any:
    """A generation that stands at an AR step, with tokens that cost nothing before."""
    state = model.begin(request(model.config), noise)
    for k in range(ar_step):
        model.pose(state)
        model.accept(state, torch.randn(1, model.config.token_channels, generator=torch.Generator().manual_seed(k)))
    return state


@torch.no_grad()
def taken(model: Any, state: Any, steps: int, noise: Noise) -> tuple[float, float]:
    """Seconds of the backbone and of the head in the next AR step."""
    solver, began = make_solver("euler-maruyama-ode"), time.perf_counter()
    problem = model.pose(state)
    posed = time.perf_counter()
    model.accept(state, solve(problem, solver, steps, noise).tokens)
    return posed - began, time.perf_counter() - posed


def growth(steps: int) -> dict[str, Any]:
    """Milliseconds of an AR step at `EARLY` and `LATE`, medians of `TURNS` taken in turn."""
    model, noise = like("nextstep-like", LIKE), SeededNoise([0])
    states = {place: standing_at(model, place - 3, noise) for place in (EARLY, LATE)}
    found: dict[int, list[tuple[float, float]]] = {EARLY: [], LATE: []}
    for turn in range(TURNS + 3):
        for place, state in states.items():
            seconds = taken(model, state, steps, noise)
            if turn >= 3:  # the first ones warm up
                found[place].append(seconds)
    told: dict[str, Any] = {"layers": LIKE["llm_depth"], "width": LIKE["llm_width"], "denoising_steps": steps}
    for place, seconds in found.items():
        backbone, head = (1e3 * statistics.median(part) for part in zip(*seconds, strict=True))
        whole = 1e3 * statistics.median(sum(pair) for pair in seconds)
        told[f"at_{place}"] = {"ms": whole, "backbone_ms": backbone, "head_ms": head}
    for part in ("ms", "backbone_ms"):
        told[f"{part}_ratio"] = told[f"at_{LATE}"][part] / told[f"at_{EARLY}"][part]
    whole, backbone = told["ms_ratio"], told["backbone_ms_ratio"]
    note(f"AR step {LATE} takes {whole:.2f} times AR step {EARLY}, its backbone {backbone:.2f}")
    return told


def annealing() -> dict[str, Any]:
    """Seconds and evaluations of an image by the official settings and by annealed ones, in turn."""
    model = like("nextstep-short", SHORT)
    told: dict[str, Any] = {"layers": SHORT["llm_depth"], "ar_steps": model.config.num_tokens}
    seconds: dict[str, list[float]] = {PUBLISHED: [], ANNEALED: []}
    for _ in range(2):
        for steps, found in seconds.items():
            began, asked, solver = time.perf_counter(), request(model.config), make_solver("euler-maruyama-ode")
            turns = generate_steps(model, asked, parse(steps), solver, SeededNoise([0]))
            made = sum(step.evaluations for step in turns)
            found.append(time.perf_counter() - began)
            told[steps] = {"seconds": min(found), "evaluations": made}
    note(f"{PUBLISHED}: {told[PUBLISHED]}; {ANNEALED}: {told[ANNEALED]}")
    return told


def launches(steps: int, batch: int = 1) -> dict[str, Any]:
    """Of one AR step of the published architecture in so many denoising steps, on a GPU."""
    preset = PRESETS["nextstep-1"]
    model, noise = on_meta(preset), SeededNoise(range(batch), META, fused.normals)
    solver = make_solver("euler-maruyama-ode")
    told: dict[str, Any] = {"denoising_steps": steps, "batch": batch}
    with torch.no_grad(), attention_in_one_launch():
        state = model.begin(request(model.config, batch), noise)
        model.accept(state, solve(model.pose(state), solver, steps, noise).tokens)  # it reads no token
        with Launches() as backbone:
            problem = model.pose(state)
        with Launches() as head:
            solution = solve(problem, solver, steps, noise)
        with Launches() as accepted:
            model.accept(state, solution.tokens)
    told |= {"backbone": backbone.total, "head": head.total, "accept": accepted.total}
    note(f"an AR step launches {backbone.total} + {head.total} + {accepted.total}")
    return told


PARTS: dict[str, Callable[[int], Any]] = {
    "growth": growth,
    "annealing": lambda _: annealing(),
    "launches": lambda _: [launches(50), launches(5)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of the AR steps that are compared")
    parser.add_argument("--json", type=Path, help="also written there")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with undisturbed():
        found = {name: PARTS[name](asked.steps) for name in asked.parts}
        publish({"model": "nextstep", "threads": 1, **machine(), **found}, asked.json)


if __name__ == "__main__":
    main()
