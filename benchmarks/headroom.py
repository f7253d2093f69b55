"""What spending denoising steps better could gain at most, and how much of that each policy takes: docs/headroom.md.

    python benchmarks/headroom.py measure flowar-digits --images 32     # -> results/headroom-flowar-digits.json
    python benchmarks/headroom.py write                                 # -> docs/headroom.md and its plot

In every AR step of images that the model draws, each row is solved by the courses of the model's plan, with every
number of denoising steps, and compared with the path that plans follow, from the same noise. What is left is weighted
by how much an error of that AR step moves the picture (the plan's gains). Curves and bins are chosen on one half of
the images, and errors are those of the other half; an oracle knows the true error of each of their rows.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from policies_plan import inputs_of
from tables import EMBEDDED, RESULTS, ROOT

from disa.core.allocate import allocate
from disa.core.courses import stretch_of
from disa.core.noise import SeededNoise
from disa.core.plans import StepPlan
from disa.core.problem import DenoisingProblem
from disa.core.solve import look_along, solve
from disa.core.solver import NUM_LOOKS
from disa.core.steps import fresh
from disa.core.straight import log_change
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.files import make_folder, write_json, write_text, write_whole
from disa.policies import adaptive
from disa.study.planning import candidates_for
from disa.study.times import Candidates

FIRST_SEED = 200_000
MOST = 8
"""Denoising steps of a row."""
BINS = 6
"""Of rows by a score, in each stretch of the AR steps: a policy gives each bin its own count."""
SHARES = (0.25, 0.4, 0.6, 0.8)
"""Budgets, as shares of what `MOST` steps everywhere make."""
WAYS = {
    "constant": "as many steps everywhere, one course for all AR steps",
    "times by AR step": "as many steps everywhere, each AR step on its own course",
    "plan": "the plan as it ships: its courses, and counts by AR step that were chosen on other images",
    "counts by AR step": "its courses, and counts by AR step that are chosen here",
    "straight": "`straight` as it ships: counts by row, from what the second evaluation changes",
    "mlp": "counts by row, from the error that a probe predicts of its condition (`mlp`)",
    "variance": "counts by row, from the spread that a probe predicts (`variance:probe`)",
    "few steps": "counts by row, from its true error with 2 steps: a score as good as one can be that knows one number",
    "oracle, counts": "counts by row, from its true errors with every number of steps",
    "oracle, times": "counts by AR step, and each row on that of the courses that is best for it",
}


def measure(model: str, num_images: int, plan: str) -> dict[str, Any]:
    """The errors of every way at every budget."""
    sampler = Sampler.load(model)
    settings = replace(sampler.settings(steps=plan), batch_size=num_images)
    inputs, solver = inputs_of(sampler, num_images, FIRST_SEED), settings.solver
    seen = Rows(sampler, _shorter(settings.steps.plan), SeededNoise(inputs.seeds))
    policy = fresh(settings.steps)

    def visit(problem: DenoisingProblem) -> Any:
        seen.add(problem)
        return policy(problem)

    for turn in Run(sampler, inputs, replace(settings, steps=visit, solver=solver), "latent"):
        print(f"{model}: AR step {turn.step.ar_step + 1} of {settings.num_ar_steps}", flush=True)
    budgets = [share * float(seen.of_plan.costs[:, MOST - 1].sum() / seen.rows_of_image.sum()) for share in SHARES]
    return {
        "model": model,
        "plan": seen.of_plan.hash,
        "images": num_images,
        "first_seed": FIRST_SEED,
        "budgets": budgets,
        "errors": {way: [seen.left(way, budget) for budget in budgets] for way in WAYS},
    }


class Rows:
    """What was measured of all rows: errors [R, G, N] on the course of every stretch, and scores [R]."""

    def __init__(self, sampler: Sampler, plan: StepPlan, noise: SeededNoise) -> None:
        self.of_plan, self.noise, self.candidates = plan, noise, _candidates(sampler)
        probe = adaptive.find_probe(None, sampler.preset, lambda: sampler.weights_hash)
        self.scores = {name: adaptive.scores(probe)[form] for name, form in PROBED.items()}
        self.rows_of_image = np.array(plan.content["rows"])
        self.parts: list[dict[str, np.ndarray]] = []

    def add(self, problem: DenoisingProblem) -> None:
        """Solve a problem in every way that counts."""
        plan, k, num_ar_steps = self.of_plan, problem.ar_step, problem.num_ar_steps
        start, gain = self.noise.initial(problem), self.of_plan.content["gains"][k]
        right = self.candidates.path(problem, start * plan.spread)[0][-1].flatten(1)
        number = len(plan.solver.stretches)
        errors = np.empty((problem.num_rows, number, MOST))
        for g in range(number):
            solver = replace(plan.solver, here=g)
            for n in range(1, MOST + 1):
                # Bound to no AR step, a solver would take the stretch of this one.
                tokens = solve(problem, Fixed(solver), n, self.noise).tokens.flatten(1)
                errors[:, g, n - 1] = (tokens - right).square().sum(1).cpu().double() * gain
        looked = plan.solver.at(k, num_ar_steps).looked
        of_looked = np.full((problem.num_rows, MOST), np.inf)
        for n in range(NUM_LOOKS, MOST + 1):
            tokens = solve(problem, Fixed(looked), n, self.noise).tokens.flatten(1)
            of_looked[:, n - 1] = (tokens - right).square().sum(1).cpu().double() * gain
        change = look_along(problem, looked, self.noise).change
        found = {name: score(problem).cpu().double().numpy() for name, score in self.scores.items() if score}
        rows = problem.num_rows
        self.parts.append(
            {
                "errors": errors,
                "image": problem.image.cpu().numpy(),
                "stretch": np.full(rows, stretch_of(k, num_ar_steps, number)),
                "k": np.full(rows, k),
                "costs": np.tile(plan.costs[k, :MOST] / self.rows_of_image[k], (rows, 1)),
                "looked": of_looked,
                "change": log_change(change).numpy(),
                **found,
            }
        )

    def left(self, way: str, budget: float) -> float:
        """The error that a way leaves in the rows of the other half of the images, at so many evaluations per row."""
        every = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        errors, costs, here = every["errors"], every["costs"], every["stretch"]
        chosen_on, number = every["image"] % 2 == 0, errors.shape[1]
        own = errors[np.arange(len(errors)), here]
        one_course = errors[:, number // 2]
        if way == "constant":
            return _by_groups(one_course, costs, np.zeros(len(own), dtype=int), chosen_on, budget, alike=True)
        if way == "times by AR step":
            return _by_groups(own, costs, np.zeros(len(own), dtype=int), chosen_on, budget, alike=True)
        if way in ("plan", "straight"):
            return self._shipped(way, every, budget)
        if way == "counts by AR step":
            return _by_groups(own, costs, every["k"], chosen_on, budget)
        if way == "oracle, times":
            return _by_groups(errors.min(axis=1), costs, every["k"], chosen_on, budget)
        if way == "oracle, counts":
            judged = ~chosen_on
            picked = allocate(own[judged], costs[judged], budget * judged.sum())
            return float(own[judged][range(len(picked)), picked].sum())
        score = np.log(own[:, 1] + 1e-30) if way == "few steps" else every[way]
        return _by_groups(own, costs, _bins(score, here, chosen_on) + 1000 * here, chosen_on, budget)

    def _shipped(self, way: str, every: dict[str, np.ndarray], budget: float) -> float:
        """The error of a policy of the plan, which never saw these images. It may spend a little less."""
        rows, total = np.flatnonzero(every["image"] % 2 == 1), 0.0
        policy = self.of_plan.straight(budget) if way == "straight" else None
        choices: Any = policy.choices if policy else self.of_plan.counts(budget)
        for k, choice in enumerate(choices):
            here = rows[every["k"][rows] == k]
            stretch = every["stretch"][here]
            if isinstance(choice, int):
                total += every["errors"][here, stretch, choice - 1].sum()
                continue
            edges = self.of_plan.looks[int(stretch[0])]["edges"]
            counts = np.array(choice)[np.searchsorted(edges, every["change"][here])]
            total += every["looked"][here, counts - 1].sum()
        return float(total)


PROBED = {"mlp": "mlp", "variance": "variance:probe"}


def _candidates(sampler: Sampler) -> Candidates:
    return candidates_for(sampler, sampler.settings(steps=sampler.defaults.original))


def _shorter(plan: StepPlan) -> StepPlan:
    """The plan without its courses of more than `MOST` denoising steps."""
    content, looks = dict(plan.content), []
    content["stretches"] = [courses[:MOST] for courses in content["stretches"]]
    content["costs"] = [costs[:MOST] for costs in content["costs"]]
    for look in plan.looks:
        errors = [errors[: MOST - 1] for errors in look["errors"]]
        looks.append(dict(look) | {"courses": look["courses"][: MOST - 1], "errors": errors})
    return StepPlan(content | {"looks": looks}, plan.source)


class Fixed:
    """A solver that is not asked for that of an AR step."""

    def __init__(self, solver: Any) -> None:
        self.grid, self.takes, self.stochastic = solver.grid, solver.takes, solver.stochastic
        self.plan, self.run = solver.plan, solver.run


def _bins(score: np.ndarray, stretch: np.ndarray, chosen_on: np.ndarray) -> np.ndarray:
    """[R] which of the quantiles, of the rows of its stretch, each score lies in."""
    found = np.zeros(len(score), dtype=int)
    for g in np.unique(stretch):
        inside = stretch == g
        edges = np.quantile(score[inside & chosen_on], np.linspace(0, 1, BINS + 1)[1:-1])
        found[inside] = np.searchsorted(edges, score[inside])
    return found


def _by_groups(
    errors: np.ndarray, costs: np.ndarray, group: np.ndarray, chosen_on: np.ndarray, budget: float, alike: bool = False
) -> float:
    """The error of the judged rows where every group gets the count that is best on the others, at a budget of the
    judged rows: between two choices of counts, in proportion. alike: one count for all groups of rows."""
    names, places = np.unique(group, return_inverse=True)
    judged = ~chosen_on

    def summed(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        found = np.zeros((len(names), values.shape[1]))
        np.add.at(found, places[rows], values[rows])
        return found

    learned, spent, true = summed(errors, chosen_on), summed(costs, judged), summed(errors, judged)
    share = np.bincount(places[judged], minlength=len(names)) / np.maximum(
        np.bincount(places[chosen_on], minlength=len(names)), 1
    )
    expected, total = learned * share[:, None] + 1e-30, budget * judged.sum()
    if alike:
        made, left = spent.sum(0), true.sum(0)
        return float(np.exp(np.interp(total, made, np.log(left))))
    ends = []
    for bound in (total, _next(expected, spent, total)):
        picked = allocate(expected, spent, bound)
        every = range(len(picked))
        ends.append((spent[every, picked].sum(), true[every, picked].sum()))
    (low, first), (high, second) = ends
    return float(first if high <= low else first + (second - first) * (total - low) / (high - low))


def _next(errors: np.ndarray, costs: np.ndarray, total: float) -> float:
    """The least total above a budget at which another choice is made."""
    at = allocate(errors, costs, total)
    spent = costs[range(len(at)), at].sum()
    for more in np.geomspace(total, costs[:, -1].sum(), 200)[1:]:
        picked = allocate(errors, costs, more * (1 + 1e-9))
        if costs[range(len(picked)), picked].sum() > max(spent, total):
            return more * (1 + 1e-9)
    return total


def write(results: Sequence[dict[str, Any]]) -> None:
    """docs/headroom.md and docs/headroom.png."""
    lines = (ROOT / "docs" / "headroom.md").read_text().split("<!-- tables -->")
    tables = "\n\n".join(_table(result) for result in results)
    write_text(ROOT / "docs" / "headroom.md", f"{lines[0]}<!-- tables -->\n\n{tables}\n\n<!-- tables -->{lines[2]}")
    write_whole(ROOT / "docs" / "headroom.png", lambda file: file.write(_plot(results)))


def _table(result: dict[str, Any]) -> str:
    base = result["errors"]["plan"]
    budgets = " | ".join(f"{budget:.2g}" for budget in result["budgets"])
    rows = [
        f"| {told} | " + " | ".join(f"{e / own:.2f}" for e, own in zip(result["errors"][way], base, strict=True)) + " |"
        for way, told in WAYS.items()
    ]
    head = f"| error, that of the plan is 1 | {budgets} |\n| --- |{' ---: |' * len(base)}"
    return f"### {result['model']}\n\n{head}\n" + "\n".join(rows)


def _plot(results: Sequence[dict[str, Any]]) -> bytes:
    from matplotlib.figure import Figure

    from disa.study.plots import plot_png

    figure = Figure(figsize=(3.4 * len(results), 4.4), layout="constrained")
    for axes, result in zip(np.atleast_1d(figure.subplots(1, len(results), sharey=True)), results, strict=True):
        base = np.array(result["errors"]["plan"])
        for way, errors in result["errors"].items():
            style = (
                ":"
                if "oracle" in way or way == "few steps"
                else "--"
                if way in ("constant", "times by AR step")
                else "-"
            )
            axes.plot(result["budgets"], np.array(errors) / base, style, marker=".", label=way)
        axes.set(title=result["model"], xlabel="evaluations per row", yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("error left, that of the plan is 1")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=9)
    return plot_png(figure, 110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("model", choices=EMBEDDED)
    measuring.add_argument("--images", type=int, default=32)
    measuring.add_argument("--plan", default="plan")
    commands.add_parser("write")
    asked = parser.parse_args()
    make_folder(RESULTS)
    if asked.command == "measure":
        write_json(RESULTS / f"headroom-{asked.model}.json", measure(asked.model, asked.images, asked.plan))
        return
    paths = [RESULTS / f"headroom-{model}.json" for model in EMBEDDED]
    write([json.loads(Path(path).read_text()) for path in paths if path.exists()])


if __name__ == "__main__":
    main()
