"""The trade-off of every step policy: quality against evaluations made and against time, at several budgets.

    python benchmarks/policies.py draw mar-digits --images 2000    # hours; interrupt and repeat it at will
    python benchmarks/policies.py measure mar-digits               # what is drawn -> a result file
    python benchmarks/policies.py write                            # the result files -> docs/policies.md, plots

`draw` draws the same seeds under every policy, a batch of each in turn, and keeps each batch in --work, so that a run
that was stopped goes on and a larger --images adds to what is there. Every kind of policy is given the parameters that
make the evaluations of a budget, which is a share of those of the model's original setting. Calibrated tables are
measured on seeds of their own before anything is drawn. Images are kept with 8 bits, as a viewer sees them.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tables import RESULTS, ROOT, spread, table
from torch import Tensor

from disa.core.steps import Annealed, Schedule, parse
from disa.draw.prompts import slug
from disa.draw.sampler import Sampler
from disa.draw.samples import Wanted
from disa.errors import DisaError
from disa.files import make_folder, write_json, write_text, write_whole
from disa.policies import adaptive
from disa.study.calibrate import FIRST_SEED, NUM_IMAGES, calibrate, costs_of
from disa.study.plots import plot_png
from disa.tiny.measures import MEASURES

MODELS = ("mar-digits", "flowar-digits", "xar-digits", "harmon-shapes")
BUDGETS = {"mar-digits": (0.2, 0.1, 0.05, 0.025), "harmon-shapes": (0.2, 0.1, 0.05, 0.025)}
BUDGETS_OF_FLOWS = (0.7, 0.4, 0.2, 0.1)
SOLVERS = {
    "noise": (("ddpm", None), ("ddim", "uniform"), ("dpm-solver++-2", None)),
    "velocity": (("euler", "uniform"), ("heun", "uniform"), ("euler-maruyama", None), ("dpm-solver++-2", None)),
}
SOLVER_BUDGETS = (0.2, 0.1)
FIXED = ("constant", "two-stage", "linear", "cosine", "reversed")
CHUNK = 100
MOST, TRIALS = 400, 3
"""Denoising steps of the longest schedule that is looked at; how often an adaptive budget is corrected."""
TABLES = RESULTS / "tables"


@dataclass(frozen=True)
class Point:
    """A policy at a budget. share: of the original setting's evaluations, None for that setting itself. version: a hash
    of what is read to draw it: weights, table, probe."""

    kind: str
    steps: str
    version: str
    share: float | None = None
    solver: str | None = None
    grid: str | None = None

    @property
    def key(self) -> str:
        return slug("-".join(str(part) for part in (self.kind, self.steps, self.solver, self.grid, self.version)))


class Costs:
    """Evaluations per row of schedules: counted for two of them on one image, and known from the grids for all."""

    counted = (4, 10)

    def __init__(self, sampler: Sampler, solver: str | None = None, grid: str | None = None) -> None:
        settings = sampler.settings(solver=solver, grid=grid)
        traces = [
            sampler.sample(
                **vars(_wanted(sampler, 1)), steps=f"constant:{n}", solver=solver, grid=grid, output_type="latent"
            )
            for n in self.counted
        ]
        self.rows = sum(step.rows for step in traces[0].trace)
        evaluations = np.array([[step.evaluations for step in samples.trace] for samples in traces]).T
        self.table = costs_of(sampler, settings, np.arange(1, MOST + 1), evaluations, self.counted)

    def of(self, schedule: Schedule) -> float:
        return sum(self.table[k, n - 1] for k, n in enumerate(schedule.counts(len(self.table)))) / self.rows

    def nearest(self, family: Callable[[int], str], wanted: float) -> str:
        """The member of a family, which grows with its number, that is closest to a cost."""
        texts = dict.fromkeys(family(number) for number in range(1, MOST + 1))
        return min(texts, key=lambda text: abs(self.of(_schedule(text)) - wanted))


def _schedule(text: str) -> Schedule:
    policy = parse(text)
    assert isinstance(policy, Schedule)
    return policy


def _families(preset_steps: str) -> dict[str, Callable[[int], str]]:
    """Schedules that grow with a number, early / late as in the paper's for this model."""
    own = _schedule(preset_steps)
    assert isinstance(own, Annealed)

    def late(early: int) -> int:
        return max(1, round(early * own.late / own.early))

    return {
        "constant": lambda n: f"constant:{n}",
        "two-stage": lambda n: f"two-stage:{n}-{late(n)}",
        "linear": lambda n: f"linear:{n}-{late(n)}",
        "cosine": lambda n: f"cosine:{n}-{late(n)}",
        "reversed": lambda n: f"linear:{late(n)}-{n}",
    }


def plan(sampler: Sampler, shares: Sequence[float], solvers: bool) -> list[Point]:
    """Every point of a model at these budgets, and those of other solvers if wanted. `linear` is as close to a budget
    as it can be, everything else as close to `linear`."""
    preset, costs = sampler.preset, Costs(sampler)
    families, weights = _families(preset.defaults.steps), sampler.weights_hash
    whole = costs.of(_schedule(preset.defaults.original))
    fitted = adaptive.find_probe(None, preset, lambda: weights)
    points = [Point("original", preset.defaults.original, _hash(weights))]
    linear = {share: costs.nearest(families["linear"], share * whole) for share in shares}
    for (share, text), path in zip(linear.items(), _calibrated(sampler, linear), strict=True):
        spent = costs.of(_schedule(text))
        for kind, family in families.items():
            points.append(Point(kind, costs.nearest(family, spent), _hash(weights), share))
        text = f"table:{path.relative_to(ROOT)}"
        points.append(Point("calibrated", text, _hash(weights, path.read_text()), share))
        for kind, text in _adaptive(sampler, spent):
            points.append(Point(kind, text, _hash(weights, fitted.metadata()), share))
    for n in (2, 1):
        text = f"constant:{n}"
        points.append(Point("constant", text, _hash(weights), round(costs.of(_schedule(text)) / whole, 4)))
    for solver, grid in SOLVERS[sampler.model.process.predicts] if solvers else ():
        other = Costs(sampler, solver, grid)
        for share in SOLVER_BUDGETS:
            for kind in ("constant", "linear"):
                text = other.nearest(families[kind], share * whole)
                points.append(Point(kind, text, _hash(weights), share, solver, grid))
    return list({point.key: point for point in points}.values())


def _hash(*read: Any) -> str:
    return hashlib.sha256(repr(read).encode()).hexdigest()[:8]


def _adaptive(sampler: Sampler, wanted: float) -> Iterator[tuple[str, str]]:
    """The adaptive policies that can keep to so many evaluations per row."""
    for name in ("mlp", "variance:draws", "variance:head", "variance:probe", "straight"):
        with contextlib.suppress(DisaError):
            yield name, _corrected(sampler, name, wanted)


def _corrected(sampler: Sampler, name: str, wanted: float) -> str:
    """An adaptive policy whose budget makes so many evaluations per row, on other seeds. Raises DisaError."""

    def text_of(budget: float) -> str:
        early, late = round(2.5 * budget), max(4 if name == "straight" else 1, round(budget / 4))
        return f"{name}:{early}-{late}@{budget:.4g}"

    budget, trial = wanted, _wanted(sampler, NUM_IMAGES, FIRST_SEED)
    for _ in range(TRIALS):
        made = sampler.sample(**vars(trial), steps=text_of(budget), output_type="latent").evaluations_per_row
        budget *= wanted / made
    sampler.settings(text_of(budget))
    return text_of(budget)


def _calibrated(sampler: Sampler, linear: dict[float, str]) -> list[Path]:
    """Tables that may make the evaluations of a policy for each share, measured if that was not done before."""
    paths = {share: TABLES / f"{sampler.preset.name}-{share:g}.json" for share in linear}
    if not all(_is_made_for(path, sampler, linear[share]) for share, path in paths.items()):
        wanted = _wanted(sampler, NUM_IMAGES, FIRST_SEED)
        found = calibrate(sampler, wanted, sampler.settings(), list(linear.values()))
        make_folder(TABLES)
        for path, table in zip(paths.values(), found, strict=True):
            write_json(path, table.report())
    return list(paths.values())


def _is_made_for(path: Path, sampler: Sampler, budget: str) -> bool:
    content = json.loads(path.read_text()) if path.exists() else {}
    return content.get("asked_budget") == budget and content["measured_for"].get("weights") == sampler.weights_hash


# -- drawing -------------------------------------------------------------------------------------------------------


def draw(model: str, num_images: int, work: Path, budgets: Sequence[float], solvers: bool) -> None:
    """Every point's images, CHUNK at a time, all points in turn; what is there already is left as it is."""
    sampler = Sampler.load(model)
    folder = make_folder(work / model)
    points = plan(sampler, budgets or BUDGETS.get(model, BUDGETS_OF_FLOWS), solvers)
    write_json(folder / "plan.json", [asdict(point) for point in points])
    chunks = [(start, point) for start in range(0, num_images, CHUNK) for point in points]
    missing = [(start, point) for start, point in chunks if not _part(folder, point, start).exists()]
    for done, (start, point) in enumerate(missing):
        wanted = _wanted(sampler, num_images).part(slice(start, start + CHUNK))
        settings = sampler.settings(point.steps, point.solver, point.grid)
        cpu = time.process_time()
        run = sampler.start(**vars(wanted), settings=settings)
        for _ in run:
            pass
        samples = run.result()
        part = {
            "images": (samples.images * 255).round().to(torch.uint8), "evaluations": samples.evaluations,
            "rows": sum(step.rows for step in samples.trace), "seconds": samples.seconds,
            "cpu_seconds": time.process_time() - cpu, "counts": [step.steps for step in samples.trace],
        }  # fmt: skip
        path = _part(folder, point, start)
        make_folder(path.parent)
        write_whole(path, lambda file, part=part: torch.save(part, file))
        print(f"{done + 1}/{len(missing)} {model} {start} {point.key} {samples.seconds:.1f} s", flush=True)


def _part(folder: Path, point: Point, start: int) -> Path:
    return folder / point.key / f"{start:06d}.pt"


def _wanted(sampler: Sampler, count: int, first: int = 0) -> Wanted:
    """Seeds with the labels, or held-out captions, in turn."""
    seeds = list(range(first, first + count))
    if not sampler.preset.prompts:
        return Wanted([i % sampler.model.config.num_classes for i in seeds], seeds)
    from disa.tiny.scenes import held_out_captions

    return Wanted(None, seeds, held_out_captions(count, seed=first))


# -- measuring -----------------------------------------------------------------------------------------------------


def measure(model: str, work: Path) -> None:
    """Quality and cost of what was planned last, over the images that all its points have, as a result file."""
    sampler, folder = Sampler.load(model), work / model
    points = [Point(**point) for point in json.loads((folder / "plan.json").read_text())]
    count = min(_num_chunks(folder, point) for point in points)
    if not count:
        raise SystemExit(f"not every point of {model} is drawn: run draw first.")
    wanted, by = _wanted(sampler, count * CHUNK), MEASURES[sampler.preset.defaults.quality]
    parts = {point: [torch.load(_part(folder, point, i * CHUNK)) for i in range(count)] for point in points}

    def images(point: Point) -> Tensor:
        return torch.cat([part["images"] for part in parts[point]]) / 255

    measured = by.measure([images(point) for point in points], wanted)
    linear = {(p.share, p.solver): i for i, p in enumerate(points) if p.kind == "linear"}
    best: dict[tuple[float | None, str | None], int] = {}
    sign = 1 if _lower_is_better(vars(measured.qualities[0])) else -1
    for i in sorted(range(len(points)), key=lambda i: sign * measured.headlines[i].value):
        if points[i].kind in FIXED:
            best.setdefault((points[i].share, points[i].solver), i)
    rows = []
    for i, (point, quality, difference) in enumerate(
        zip(points, measured.qualities, measured.differences, strict=True)
    ):
        own, drawn, at = parts[point], count * CHUNK, (point.share, point.solver)
        beyond = {
            f"beyond_{name}": asdict(measured.difference(i, bases[at])) if bases.get(at, i) != i else None
            for name, bases in (("linear", linear), ("best", best))
        }
        rows.append(asdict(point) | {
            "evaluations_per_row": sum(part["evaluations"] for part in own) / sum(part["rows"] for part in own),
            "seconds_per_image": sum(part["seconds"] for part in own) / drawn,
            "cpu_seconds_per_image": sum(part["cpu_seconds"] for part in own) / drawn,
            "counts": np.mean([part["counts"] for part in own], axis=0).round(2).tolist(),
            "quality": asdict(quality),
            "difference": difference and asdict(difference),
        } | beyond)  # fmt: skip
    known = measured.yardsticks
    report = {
        "model": model, "num_images": count * CHUNK, "seeds": [0, count * CHUNK - 1], "torch": torch.__version__,
        "threads": torch.get_num_threads(), "points": rows, "yardsticks": known and asdict(known),
    }  # fmt: skip
    write_json(RESULTS / f"policies-{model}.json", report)


def _num_chunks(folder: Path, point: Point) -> int:
    """How many chunks are there from the first on, without a gap."""
    return next(i for i in itertools.count() if not _part(folder, point, i * CHUNK).exists())


# -- writing -------------------------------------------------------------------------------------------------------

INTRODUCTION = """# Step policies, measured

What every step policy costs and keeps, on the models that ship with the package.

## What holds on fresh seeds

The tables below compare many policies on the same few images, so their winners can win by chance. Three results were
measured again on seeds that chose nothing. Two did not hold:

- **harmon-shapes, withdrawn.** The tables below (300 captions) show `variance:probe` and the calibrated table as good
  as the original with a tenth of the evaluations, and `variance:probe` better than every fixed schedule. With 1 000
  fresh captions and 19 evaluations per row, the original scores 0.955, `linear:22-2` 0.946 (-0.009 [-0.028, 0.010] from
  the original), `variance:probe` 0.948 and the table 0.946 (+0.002 [-0.011, 0.013] and 0.000 [-0.013, 0.013] from
  `linear`), and `variance:head` 0.935. No policy is shown to be better than `linear`, nor `linear` worse than the
  original. The earlier claim was the winner of many comparisons on few captions.
- **mar-digits, withdrawn.** 400 digits showed no difference between the original and `linear:6-1`, 2.4 evaluations per
  row. 500 fresh digits do: `linear:6-1` is at a distance of 0.78, `linear:50-5` at 0.34, difference 0.44 [0.16, 0.73].
- **flowar-digits, confirmed.** With a fifth of the evaluations (7.8 per row), 2 000 fresh digits put `linear:7-4` at
  1.37, the calibrated table and `mlp` 0.08 nearer (-0.08 [-0.11, -0.06] and -0.08 [-0.10, -0.06]) and `straight` 0.09
  nearer (-0.09 [-0.12, -0.06]). All of them remain far from the original at 0.69.

The fresh seeds are 400000-400999 on harmon-shapes and 710000-710499 on mar-digits
(`benchmarks/results/fresh-mar-digits.json`). To repeat them:

    disa compare --model harmon-shapes --seeds 400000-400999 --steps linear:22-2 --steps constant:100 \\
        --steps variance:probe:24-2@9.594 --steps table:benchmarks/results/tables/harmon-shapes-0.1.json
    disa compare --model mar-digits --seeds 710000-710499 --steps linear:50-5 --steps linear:6-1

Two results are too large to be chance. Reversing a schedule is significantly worse on every model, at the latest with a
tenth of the evaluations. And on xar-digits the solver matters more than the schedule: with 8.8 evaluations per row,
`constant:5` is 0.31 [0.01, 0.65] worse than the original on the official solver and grid, and -0.08 [-0.32, 0.15] with
`--solver heun --grid uniform`.

## How to read the tables

`benchmarks/policies.py` makes this page from `benchmarks/results/policies-*.json`; its first lines say how to repeat
the measurements. A budget is a share of the evaluations that the original setting makes. `linear` gets the parameters
that come closest to it, every other policy those that come closest to `linear`; a table may spend no more than that.

Differences are paired by seed, with a 95 % bootstrap interval. If the interval contains 0, this sample size shows no
difference. The best fixed schedule of a budget is chosen on these very seeds, among all policies that know only the AR
step. Times are CPU seconds of one process with the stated threads, which other work on the machine disturbs less.
"""


def write() -> None:
    """docs/policies.md and a plot per model, from the result files that are there."""
    sections = [INTRODUCTION]
    for model in MODELS:
        path = RESULTS / f"policies-{model}.json"
        if path.exists():
            report = json.loads(path.read_text())
            write_whole(ROOT / "docs" / f"policies-{model}.png", lambda file, report=report: file.write(_plot(report)))
            sections.append(_section(report))
    write_text(ROOT / "docs" / "policies.md", "\n".join(sections))


def _headline(quality: dict[str, Any]) -> dict[str, float]:
    """The number that a model is judged by, with its spread."""
    return quality["frechet"] if "frechet" in quality else quality["overall"]


def _lower_is_better(quality: dict[str, Any]) -> bool:
    return "frechet" in quality


def _section(report: dict[str, Any]) -> str:
    own, other = ([p for p in report["points"] if bool(p["solver"]) == apart] for apart in (False, True))
    original, spent = own[0], sorted(own[1:], key=lambda p: -p["share"])
    lower_is_better = _lower_is_better(original["quality"])
    name = "Fréchet distance" if lower_is_better else "score"
    against = [f"against {base}" for base in ("the original", "linear", "the best fixed")]
    columns = ["evaluations per row", "CPU s per image", name, *against]
    lines = [
        f"## {report['model']}\n",
        f"{report['num_images']} images per point, seeds {report['seeds'][0]}-{report['seeds'][1]}, "
        f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}. The original `{original['steps']}`: {name} "
        f"{spread(_headline(original['quality']))}, {original['evaluations_per_row']:.1f} evaluations per row, "
        f"{original['cpu_seconds_per_image']:.3f} CPU seconds per image.\n",
        f"![{report['model']}](policies-{report['model']}.png)\n",
        table(
            ["budget", "policy", *columns],
            [[f"{p['share']:.1%}", f"{p['kind']} `{_short(p['steps'])}`", *_cells(p)] for p in spent],
        ),
        "\nThe fewest evaluations per row at which a policy shows no measurable loss against the original, there and "
        "at every larger budget. So few images miss small losses: with more of them these numbers rise.\n",
        table(["policy", "evaluations per row"], _degrades(own, lower_is_better)),
        "",
    ]  # fmt: skip
    if other:
        rows = [[p["solver"], f"{p['share']:.0%}", f"`{p['steps']}`", *_cells(p)] for p in other]
        lines += [
            "Other solvers, with and without annealing:\n",
            table(["solver", "budget", "policy", *columns], rows),
            "",
        ]
    return "\n".join(lines)


def _short(steps: str) -> str:
    """A table by the name of its file."""
    return steps.replace(f"{TABLES.relative_to(ROOT)}/", "")


def _cells(point: dict[str, Any]) -> list[str]:
    return [
        f"{point['evaluations_per_row']:.1f}",
        f"{point['cpu_seconds_per_image']:.3f}",
        spread(_headline(point["quality"])),
        *(spread(point[name]) if point[name] else "" for name in ("difference", "beyond_linear", "beyond_best")),
    ]


def _degrades(points: Sequence[dict[str, Any]], lower_is_better: bool) -> list[list[str]]:
    rows = []
    for kind in dict.fromkeys(p["kind"] for p in points[1:]):
        fewest = None
        for point in sorted((p for p in points if p["kind"] == kind), key=lambda p: -p["evaluations_per_row"]):
            gap = point["difference"]
            if gap["low"] > 0 if lower_is_better else gap["high"] < 0:
                break
            fewest = point["evaluations_per_row"]
        rows.append([kind, "worse at every budget" if fewest is None else f"{fewest:.1f}"])
    return rows


def _plot(report: dict[str, Any]) -> bytes:
    """Quality against evaluations and against time, a line per kind of policy."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    panels: Any = figure.subplots(1, 2, sharey=True)
    own = [p for p in report["points"] if not p["solver"]]
    for axes, x, title in zip(
        panels, ("evaluations_per_row", "cpu_seconds_per_image"), ("evaluations per row", "CPU seconds per image"),
        strict=True,
    ):  # fmt: skip
        spread_of_original = _headline(own[0]["quality"])
        axes.axhspan(spread_of_original["low"], spread_of_original["high"], color="0.9", label=own[0]["steps"])
        for number, kind in enumerate(dict.fromkeys(p["kind"] for p in own[1:])):
            line = sorted((p for p in own if p["kind"] == kind), key=lambda p: p[x])
            values = [_headline(p["quality"])["value"] for p in line]
            axes.plot([p[x] for p in line], values, "o-", ms=4, label=kind, color=colormaps["tab20"](number))
        axes.set_xlabel(title)
        shown = [p[x] for p in own[1:]]
        if max(shown) > 3 * min(shown):
            _label_plainly(axes, "x")
        axes.grid(alpha=0.3)
    if _lower_is_better(own[0]["quality"]):
        panels[0].set_ylabel("Fréchet distance")
        _label_plainly(panels[0], "y")
    else:
        panels[0].set(ylabel="score")
    panels[1].legend(fontsize=8)
    figure.suptitle(f"{report['model']}: {report['num_images']} images per point")
    return plot_png(figure, 110)


def _label_plainly(axes: Any, which: str) -> None:
    """A logarithmic axis with a few labels in plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("draw", "measure", "write"))
    parser.add_argument("model", nargs="?", choices=MODELS)
    parser.add_argument("--images", type=int, default=2000, help="images per point, a multiple of 100")
    parser.add_argument("--budget", type=float, action="append", default=[], help="a share, instead of the usual ones")
    parser.add_argument("--without-solvers", action="store_true", help="leave other solvers out")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "policies", help="where images are kept")
    given = parser.parse_args()
    os.chdir(ROOT)  # tables are named from there
    if given.what != "write" and given.model is None:
        parser.error(f"{given.what} needs a model")
    if given.what == "draw":
        draw(given.model, given.images, given.work, given.budget, not given.without_solvers)
    elif given.what == "measure":
        measure(given.model, given.work)
    else:
        write()


if __name__ == "__main__":
    sys.exit(main())
