"""How well the teacher-forced error of a few images foretells the quality of many drawn ones.

    python benchmarks/foretell.py measure     # every point of results/confirm-*.json -> results/foretold.json
    python benchmarks/foretell.py write       # -> docs/foretold.png and a table

The teacher-forced error of a way of drawing: in every AR step of images that the model draws by its preset, the rows
are drawn that way from the same state, two draws of each, and compared by their energy distance with the path that
plans follow. The sum over AR steps is weighted by how much an error of each moves the picture (the plan's gains).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policies_plan import inputs_of
from tables import RESULTS, ROOT

from disa.core.noise import SeededNoise
from disa.core.plans import parse_plan
from disa.core.problem import DenoisingProblem
from disa.core.solve import solve
from disa.core.steps import fresh
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.files import write_json, write_whole
from disa.study.planning import candidates_for
from disa.study.ranks import spearman
from disa.study.times import energy_distances
from disa.weights.package import in_package

FIRST_SEED, NUM_IMAGES, DRAWS = 210_000, 16, 2


def foretold(sampler: Sampler, options: Sequence[dict[str, Any]]) -> list[float]:
    """The teacher-forced error of drawing with each of some options, per image."""
    plan, _ = parse_plan("plan", in_package(f"{sampler.preset.name}-plan.json"))
    inputs, preset = inputs_of(sampler, NUM_IMAGES, FIRST_SEED), replace(sampler.settings(), batch_size=NUM_IMAGES)
    ways, noise = [sampler.settings(**each) for each in options], SeededNoise(inputs.seeds)
    policies = [fresh(way.steps) for way in ways]
    candidates = candidates_for(sampler, sampler.settings(steps=sampler.defaults.original))
    noises, errors = [noise, *(noise.branch(i) for i in range(1, DRAWS))], np.zeros(len(ways))
    own = fresh(preset.steps)

    def visit(problem: DenoisingProblem) -> Any:
        ends = [candidates.path(problem, each.initial(problem) * plan.spread)[0][-1] for each in noises]
        right = torch.stack(ends).flatten(2)
        for i, (way, policy) in enumerate(zip(ways, policies, strict=True)):
            counts = policy(problem)
            ends = torch.stack([solve(problem, way.solver, counts, each).tokens for each in noises]).flatten(2)
            errors[i] += energy_distances(ends, right).sum().item() * plan.content["gains"][problem.ar_step]
        return own(problem)

    for turn in Run(sampler, inputs, replace(preset, steps=visit), "latent"):
        print(f"{sampler.preset.name}: AR step {turn.step.ar_step + 1} of {preset.num_ar_steps}", flush=True)
    return (errors / NUM_IMAGES).tolist()


def measure() -> dict[str, Any]:
    """The error of every confirmed point, beside its difference to the original."""
    found = {}
    for path in sorted(RESULTS.glob("confirm-*.json")):
        result = json.loads(path.read_text())
        points = [point for point in result["points"] if point["to_original"] is not None]
        errors = foretold(Sampler.load(result["model"]), [point["options"] for point in points])
        found[result["model"]] = [
            {"name": point["name"], "error": error, "difference": point["to_original"]}
            for point, error in zip(points, errors, strict=True)
        ]
    return {"images": NUM_IMAGES, "first_seed": FIRST_SEED, "models": found}


def write(result: dict[str, Any]) -> bytes:
    """The plot; a table is printed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    from disa.study.plots import plot_png

    figure = Figure(figsize=(3.6 * len(result["models"]), 3.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(result["models"])))
    for axes, (model, points) in zip(panels, result["models"].items(), strict=True):
        found = np.array([point["error"] for point in points])
        errors = np.where(found > 0, found, found[found > 0].min() / 4)  # an estimate without bias may be below 0
        gaps = np.array([[point["difference"][end] for end in ("value", "low", "high")] for point in points])
        axes.errorbar(errors, gaps[:, 0], np.abs(gaps[:, 1:] - gaps[:, :1]).T, fmt="o", markersize=4, capsize=2)
        for point, error, gap in zip(points, errors, gaps[:, 0], strict=True):
            axes.annotate(point["name"], (error, gap), xytext=(4, 3), textcoords="offset points", fontsize=7)
        rank = spearman(errors.tolist(), gaps[:, 0].tolist())
        axes.set(title=f"{model}\nrank correlation {rank:+.2f}", xscale="log", xlabel="teacher-forced error")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.18)
        axes.axhline(0, color="grey", linewidth=0.8)
        axes.grid(alpha=0.3)
        print(f"{model}: rank correlation {rank:+.2f} over {len(points)} points")
    panels[0].set_ylabel("quality less the original's")
    return plot_png(figure, 110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "write"))
    path = Path(RESULTS / "foretold.json")
    if parser.parse_args().what == "measure":
        write_json(path, measure())
    else:
        plot = write(json.loads(path.read_text()))
        write_whole(ROOT / "docs" / "foretold.png", lambda file: file.write(plot))


if __name__ == "__main__":
    main()
