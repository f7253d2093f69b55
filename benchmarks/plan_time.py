"""Whether time follows evaluations: CPU seconds of each, under plans and ragged counts, beside those of `constant`.

    python benchmarks/plan_time.py mar-base flowar-small xar-base          # some minutes each on a quiet machine
    python benchmarks/plan_time.py mar-digits --repeats 1 --ar-steps 3     # seconds, to try it

Weights are random, and so is the plan: its courses have even times and the updates of DPM-Solver++ 2M, and its counts
fall from AR step to AR step. Every AR step that is measured is posed once and solved under each policy in turn, round
after round, the first of which warms up; so all policies meet the same rows and disturbances. An AR step has the
median of its rounds. Only some of the official AR steps are measured, evenly chosen and with the last; between them
nothing is drawn, which changes no time. Seconds are CPU time of this process on one thread. "image" adds the
backbone, measured once in each of these AR steps: a whole image under each policy, if all made as many evaluations as
constant. Prints Markdown tables; the last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, note, publish
from torch import Tensor

from disa.core.multistep import updates
from disa.core.noise import SeededNoise
from disa.core.orders import COSINE
from disa.core.plans import FORMAT, read_plan
from disa.core.problem import DenoisingProblem
from disa.core.request import Request
from disa.core.solve import solve
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.models.harmon.text import FixedLength
from disa.policies.adaptive import counts_between

LONGEST = 3
"""The plan's longest course, in multiples of constant's steps."""
PROMPT_TOKENS = 30


@dataclass
class Variant:
    """One policy on one solver."""

    name: str
    settings: Settings
    evaluations: int = 0
    seconds: list[list[float]] = field(default_factory=list)
    """Of each measured AR step, the rounds."""

    @property
    def seconds_head(self) -> float:
        return sum(statistics.median(rounds) for rounds in self.seconds)


@dataclass(frozen=True)
class InTurn:
    """A policy that gives the rows these counts in turn."""

    counts: tuple[int, ...]

    def __call__(self, problem: DenoisingProblem) -> Tensor:
        shifted = cycle(self.counts[problem.ar_step % len(self.counts) :] + self.counts)
        return torch.tensor(list(islice(shifted, problem.num_rows)))


def write_plan(sampler: Sampler, num_ar_steps: int, most: int, path: Path) -> str:
    """A plan for the model, with even times and up to `most` denoising steps, and its text."""
    process, config = sampler.model.process, sampler.model.config
    rows = [1] * num_ar_steps
    if sampler.model.capabilities.any_size:
        masked = COSINE.masked(config.num_tokens, num_ar_steps)
        rows = [before - after for before, after in pairwise(masked)]
    courses = []
    for count in range(1, most + 1):
        times = process.grid(process.even_grid, count).times
        by = [list(update) for update in updates(process, process.grid_at(times))]
        courses.append({"times": times.tolist(), "updates": by, "error": count**-2.0})
    content = {
        "format": FORMAT,
        "budget": 2.0,
        "stretches": [courses] * min(num_ar_steps, 8),
        "gains": np.linspace(4, 0.5, num_ar_steps).tolist(),
        "rows": rows,
        "costs": [[2 * count * each for count in range(1, most + 1)] for each in rows],
    }
    path.write_text(json.dumps(content))
    return f"plan:{path}"


def variants(sampler: Sampler, plan: str, base: Settings, steps: int) -> list[Variant]:
    """Every policy, each of about `steps` denoising steps; the constant first."""
    solver = read_plan(Path(plan.removeprefix("plan:")), plan).solver
    ragged = tuple(steps * quarters // 4 for quarters in (2, 4, 3, 6))
    buckets = tuple(counts_between(max(1, steps // 4), 2 * steps).tolist())
    policies: dict[str, tuple[Any, Any]] = {
        f"constant:{steps}": (f"constant:{steps}", None),
        f"linear:{steps * 3 // 2}-{steps // 2}": (f"linear:{steps * 3 // 2}-{steps // 2}", None),
        "plan": (f"{plan}@{2 * steps}", None),
        f"rows of {steps}, one in four of {steps + 1}, as `straight` has them": (
            InTurn((steps,) * 3 + (steps + 1,)),
            solver,
        ),
        f"rows of {', '.join(map(str, sorted(ragged)))}": (InTurn(ragged), solver),
        f"rows of {buckets[0]} to {buckets[-1]}": (InTurn(buckets), solver),
    }
    return [Variant(name, sampler.settings(base, steps=policy, solver=own)) for name, (policy, own) in policies.items()]


def request(sampler: Sampler, settings: Settings, batch: int) -> tuple[Request, SeededNoise]:
    """What every policy draws."""
    asked = {"prompts": "a prompt"} if sampler.preset.prompts else {"labels": 0}
    inputs, grid = Inputs.paired(range(batch), **asked), sampler.token_grid_of(settings.size)
    told = sampler.conditioner.condition(inputs, settings, grid)
    drawn = Request(batch, settings.num_ar_steps, told.labels, settings.guidance, None, None, told.prompts, grid)
    return drawn, SeededNoise(inputs.seeds)


@torch.no_grad()
def measure(sampler: Sampler, measured: list[Variant], batch: int, ar_steps: Sequence[int], repeats: int) -> float:
    """One batch size; returns the CPU seconds of the backbone."""
    model, base, backbone = sampler.model, measured[0].settings, 0.0
    state, noise = model.begin(*request(sampler, base, batch)), SeededNoise(range(batch))
    skip = sampler.model.capabilities.any_size
    for ar_step in ar_steps if skip else range(base.num_ar_steps):
        state.ar_step, started = ar_step, time.process_time()
        problem = model.pose(state)
        posed = time.process_time() - started
        tokens = torch.zeros(problem.num_rows, *problem.shape)
        if ar_step in ar_steps:
            solve_all(problem, noise, measured, repeats)
            backbone += posed
            note(f"  batch {batch}, AR step {ar_step}: {problem.num_rows} rows")
        model.accept(state, tokens)
    return backbone


def solve_all(problem: DenoisingProblem, noise: SeededNoise, measured: list[Variant], repeats: int) -> None:
    """Every variant in turn, after a round that warms up."""
    for variant in measured:
        variant.seconds.append([])
    for place in range(repeats + 1):
        turned = measured[place % len(measured) :] + measured[: place % len(measured)]
        for variant in turned:
            started = time.process_time()
            solution = solve(problem, variant.settings.solver, variant.settings.steps(problem), noise)
            taken = time.process_time() - started
            if place:
                variant.seconds[-1].append(taken)
            else:
                variant.evaluations += solution.evaluations


def results(measured: list[Variant], backbone: float) -> list[dict[str, Any]]:
    constant = measured[0].seconds_head / measured[0].evaluations

    def ratio(variant: Variant) -> float:
        return variant.seconds_head / variant.evaluations / constant

    share = measured[0].seconds_head / (measured[0].seconds_head + backbone)
    return [
        {
            "steps": variant.name,
            "evaluations": variant.evaluations,
            "cpu_seconds_head": variant.seconds_head,
            "ms_per_evaluation": 1000 * ratio(variant) * constant,
            "ratio": ratio(variant),
            "ratio_image": 1 + share * (ratio(variant) - 1),
        }
        for variant in measured
    ]


def chosen(num_ar_steps: int, count: int) -> list[int]:
    """AR steps that are measured."""
    places = np.linspace(-1, num_ar_steps - 1, min(count, num_ar_steps) + 1)
    return places[1:].round().astype(int).tolist()


def show(name: str, batch: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}, batch {batch}\n")
    print("| steps | evaluations | head, ms each | to constant's | image, to constant's |")
    print("| --- | --- | --- | --- | --- |")
    for row in rows:
        cells = [row["steps"], row["evaluations"], f"{row['ms_per_evaluation']:.2f}"]
        print("|", *(f"{cell} |" for cell in [*cells, f"{row['ratio']:.2f}", f"{row['ratio_image']:.2f}"]), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="presets")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=4, help="denoising steps of constant, the others' about as many")
    parser.add_argument("--ar-steps", type=int, default=4, help="how many of the AR steps are measured")
    parser.add_argument("--repeats", type=int, default=3, help="measured rounds, after one that warms up")
    parser.add_argument("--size", type=int, help="side of the image, where it may be chosen")
    parser.add_argument("--result", type=Path, help="write the JSON object to this file, too")
    return parser.parse_args()


def main() -> int:
    given, found = arguments(), list[dict[str, Any]]()
    torch.set_num_threads(1)
    for name in given.models:
        sampler = Sampler.untrained(name, device="cpu", tokenizer=prompt(name))
        size = {"height": given.size, "width": given.size} if given.size else {}
        base = sampler.settings(rewrite=False, **size)
        ar_steps = chosen(base.num_ar_steps, given.ar_steps)
        with tempfile.TemporaryDirectory() as folder:
            plan = write_plan(sampler, base.num_ar_steps, LONGEST * given.steps, Path(folder) / "plan.json")
            for batch in given.batch:
                measured = variants(sampler, plan, base, given.steps)
                backbone = measure(sampler, measured, batch, ar_steps, given.repeats)
                rows = results(measured, backbone)
                about = {"model": name, "batch": batch, "num_ar_steps": base.num_ar_steps, "measured": ar_steps}
                about |= {"size": base.size, "cpu_seconds_backbone": backbone}
                found.append(about | {"variants": rows})
                show(f"{name}, AR steps {', '.join(map(str, ar_steps))} of {base.num_ar_steps}", batch, rows)
        del sampler
    about = {"benchmark": "plan-time", "dtype": "fp32", "threads": 1, "repeats": given.repeats, **machine()}
    publish(about | {"runs": found}, given.result)
    return 0


def prompt(name: str) -> FixedLength | None:
    """Stands in for a tokenizer, where the model needs one."""
    from disa.models.registry import PRESETS

    return FixedLength(PROMPT_TOKENS) if PRESETS[name].prompts else None


if __name__ == "__main__":
    sys.exit(main())
