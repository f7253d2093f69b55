"""What savings in the backbone bring beside annealing, at real sizes with random weights: work and wall time.

    python benchmarks/composed.py mar-base --batch 1 4          # more than an hour on two quiet cores
    python benchmarks/composed.py mar-huge --only "few steps, stages, residual:9"
    python benchmarks/composed.py mar-huge --clock cpu --threads 1  # where other work runs beside it
    python benchmarks/composed.py mar-digits --repeats 1        # seconds, to try it

Whole images are drawn, with each setting in turn, round after round; seconds are medians. A small batch of two AR steps
warms up. The original of MAR is too slow for whole images: the plain order of work (plain.py) takes some of its AR
steps, evenly chosen and with the last, in every round, and their mean stands for all. Prints a Markdown table; the last
line is one JSON object.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import machine, note, publish
from plain import PlainDDPM, PlainMAR
from plan_time import chosen, prompt
from tables import table

from disa.core.noise import SeededNoise
from disa.core.orders import COSINE
from disa.core.request import Guidance, Request
from disa.core.solve import solve
from disa.core.texts import parse
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.models.mar.model import MAR

Clock = Callable[[], float]

ANNEALED: dict[str, Any] = {"steps": "linear:50-5"}
FEW: dict[str, Any] = {"steps": "linear:12-3", "solver": "dpm-solver++-2", "grid": "logsnr"}
"""The counts of `plan@4.8` of mar-digits, about: random weights have no plan."""
HALF: dict[str, Any] = {"order": "halton", "num_ar_steps": 32}
RANDOM: dict[str, Any] = {"order": "random", "num_ar_steps": 34}
"""Both of 64 AR steps, in proportion elsewhere."""
STAGED: dict[str, Any] = {"order": "checkerboard:3"}
"""With 24, 6 and 2 of 64 AR steps in its stages, in proportion elsewhere."""
RESIDUAL, OFTEN, TOKENS, BOTH = (
    {"reuse": text} for text in ("residual:9", "residual:3", "tokens:2", "residual:9+tokens:2")
)
COMPOSED = {
    "annealed": ANNEALED,
    "annealed, residual:9": ANNEALED | RESIDUAL,
    "annealed, tokens:2": ANNEALED | TOKENS,
    "annealed, half the AR steps": ANNEALED | HALF,
    "few steps, residual:3": FEW | OFTEN,
    "few steps, half the AR steps": FEW | HALF,
    "few steps, half the AR steps, residual:9": FEW | HALF | RESIDUAL,
    "few steps, random, residual:9": FEW | RANDOM | RESIDUAL,
    "few steps, stages, residual:9": FEW | STAGED | RESIDUAL,
    "few steps, stages, residual:9+tokens:2": FEW | STAGED | BOTH,
}


def settings_for(sampler: Sampler, batch: int, options: dict[str, Any]) -> Settings:
    usual = sampler.settings().num_ar_steps
    if of_64 := options.get("num_ar_steps"):
        options = options | {"num_ar_steps": round(of_64 * usual / 64)}
    if options.get("order") == STAGED["order"]:
        stages = (max(1, round(share * usual / 64)) for share in (24, 6, 2))
        options = options | {"counts": "stages:" + "-".join(map(str, stages))}
    guidance = {} if sampler.settings().guidance.active else {"guidance": 2.0}
    return sampler.settings(batch_size=batch, rewrite=False, **guidance, **options)


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
"""What seconds are; those of the processor leave out what else runs, and say something of one thread alone."""


def drawn(sampler: Sampler, settings: Settings, batch: int, clock: Clock) -> tuple[float, int]:
    """Seconds and operations of a batch."""
    asked = {"prompts": "a prompt"} if sampler.preset.prompts else {"labels": 0}
    started = clock()
    samples = sampler.start(Inputs.paired(range(batch), **asked), settings, "latent").result()
    return clock() - started, samples.operations


def original(model: MAR, guidance: Guidance, batch: int, num_ar_steps: int, measured: int, clock: Clock) -> float:
    """Seconds of a batch in the plain order of work: `constant:100`, from some of the AR steps."""
    plain, total = PlainMAR(model), 0.0
    request = Request(batch, num_ar_steps, torch.zeros(batch, dtype=torch.long), guidance)
    noise, counts = SeededNoise(range(batch)), COSINE.masked(model.config.num_tokens, num_ar_steps)
    places = chosen(num_ar_steps, measured)
    with torch.no_grad():
        for ar_step in places:
            state = plain.begin(request, noise)
            left = state.orders[:, : counts[ar_step]]
            state.ar_step, state.masked = ar_step, torch.zeros_like(state.masked).scatter(1, left, True)
            started = clock()
            problem = plain.pose(state)
            plain.accept(state, solve(problem, PlainDDPM(), parse("constant:100")(problem), noise).tokens)
            total += clock() - started
    return total / len(places) * num_ar_steps


def measure(sampler: Sampler, batch: int, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Of every setting that the model takes, the original first if it is MAR's."""
    ways = {
        name: settings_for(sampler, batch, options)
        for name, options in COMPOSED.items()
        if _fits(sampler, options) and (name == "annealed" or not given.only or name in given.only)
    }
    clock = CLOCKS[given.clock]
    seconds, operations = {name: list[float]() for name in ("original", *ways)}, dict[str, int]()
    drawn(sampler, sampler.settings(ways["annealed"], num_ar_steps=2), 1, clock)
    for turn in range(given.repeats):
        if isinstance(sampler.model, MAR):
            guidance, count = ways["annealed"].guidance, sampler.model.config.num_tokens
            seconds["original"].append(original(sampler.model, guidance, batch, count, given.ar_steps, clock))
            note(f"round {turn + 1}, batch {batch}: original {seconds['original'][-1]:.1f} s")
        for name, settings in ways.items():
            taken, operations[name] = drawn(sampler, settings, batch, clock)
            seconds[name].append(taken)
            note(f"round {turn + 1}, batch {batch}: {name} {taken:.1f} s")
    middle = {name: statistics.median(taken) for name, taken in seconds.items() if taken}
    return [
        {
            "settings": name,
            "seconds_per_image": taken / batch,
            "of_annealed": middle["annealed"] / taken,
            "of_original": middle["original"] / taken if "original" in middle else None,
            "tflop_per_image": operations[name] / batch / 1e12 if name in operations else None,
        }
        for name, taken in middle.items()
    ]


def _fits(sampler: Sampler, options: dict[str, Any]) -> bool:
    return isinstance(sampler.model, MAR) or "tokens" not in options.get("reuse", "")


def show(run: dict[str, Any]) -> str:
    def told(value: float | None, digits: str) -> str:
        return "" if value is None else f"{value:{digits}}"

    cells = [
        [
            row["settings"],
            told(row["tflop_per_image"], ".2f"),
            told(row["seconds_per_image"], ".2f"),
            told(row["of_annealed"], ".2f"),
            told(row["of_original"], ".1f"),
        ]
        for row in run["rows"]
    ]
    seconds = "CPU s per image" if run.get("clock") == "cpu" else "s per image"
    columns = [
        f"{run['model']}, batch {run['batch']}",
        "TFLOP",
        seconds,
        "times as fast as annealed",
        "as the original",
    ]
    return table(columns, cells)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="presets")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=tuple(COMPOSED), help="these, beside annealed, instead of all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ar-steps", type=int, default=8, help="how many AR steps of the original are measured")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for one thread")
    parser.add_argument("--result", type=Path, help="write the JSON object to this file, too")
    given, found = parser.parse_args(), list[dict[str, Any]]()
    torch.set_num_threads(given.threads)
    for name in given.models:
        sampler = Sampler.untrained(name, device="cpu", tokenizer=prompt(name))
        for batch in given.batch:
            rows = measure(sampler, batch, given)
            found.append({"model": name, "batch": batch, "clock": given.clock, "threads": given.threads, "rows": rows})
            print(f"\n{show(found[-1])}", flush=True)
        del sampler
    about = {"benchmark": "composed", "dtype": "fp32", "repeats": given.repeats, **machine()}
    publish(about | {"runs": found}, given.result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
