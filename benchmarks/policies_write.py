"""The result files of `policies.py` as docs/policies.md, with a plot for each model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from policies_plan import TABLES
from tables import EMBEDDED, RESULTS, ROOT, spread, table

from disa.files import write_text, write_whole
from disa.study.plots import plot_png

INTRODUCTION = """# Step policies, measured

What every step policy costs and keeps, on the models that ship with the package.

**In short.** Times and updates matter far more than counts: calibrated plans, which choose all three together, need a
fraction of the evaluations of anything on this page ([plans.md](plans.md) has them on fresh seeds). On official solvers
and grids, few steps late are as good as many everywhere, the reverse is worse wherever the order is not row by row, and
with a tenth of the evaluations or less every schedule loses something there. Looking at rows gains little
([headroom.md](headroom.md)).

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
  nearer (-0.09 [-0.12, -0.06]; the one of that time). All of them remain far from the original at 0.69.

The fresh seeds are 400000-400999 on harmon-shapes and 710000-710499 on mar-digits
(`benchmarks/results/fresh-mar-digits.json`). To repeat them:

    disa compare --model harmon-shapes --seeds 400000-400999 --steps linear:22-2 --steps constant:100 \\
        --steps variance:probe:24-2@9.594 --steps table:benchmarks/results/tables/harmon-shapes-0.1.json
    disa compare --model mar-digits --seeds 710000-710499 --steps linear:50-5 --steps linear:6-1

Two results are too large to be chance. Reversing a schedule is significantly worse on mar-, flowar- and xar-digits and
on harmon-shapes, at the latest with a tenth of the evaluations. And on xar-digits the solver matters more than the
schedule: with 8.8 evaluations per row, `constant:5` is 0.31 [0.01, 0.65] worse than the original on the official solver
and grid, and -0.08 [-0.32, 0.15] with `--solver heun --grid uniform`.

**Row by row, annealing is as good as anything else, and no better.** bitdance-digits draws its tokens in raster order,
where later tokens are hardly more constrained than earlier ones ([evidence.md](evidence.md)). At equal evaluations no
schedule is told from another: not annealed from constant, and not reversed from annealed. What a saving costs depends
on how many steps are left, not on when they are made: a twentieth of the evaluations shows no loss, two steps do.

## How to read the tables

`benchmarks/policies.py` makes this page from `benchmarks/results/policies-*.json`; its first lines say how to repeat
the measurements. A budget is a share of the evaluations that the original setting makes. `linear` gets the parameters
that come closest to it, every other policy those that come closest to `linear`; a table may spend no more than that.

Differences are paired by seed, with a 95 % bootstrap interval. If the interval contains 0, this sample size shows no
difference. The intervals are those of single differences: [how sure a difference is](certainty.md) says what many of
them are worth. The best fixed schedule of a budget is chosen on these very seeds, among all policies that know only the
AR step. Times are CPU seconds of one process with the stated threads, which other work on the machine disturbs less.
`straight` is that of an earlier version, on official grids; that of plans is in [adaptive.md](adaptive.md).
"""


def write() -> None:
    """docs/policies.md and a plot per model, from the result files that are there."""
    for model, report in _reports().items():
        write_whole(ROOT / "docs" / f"policies-{model}.png", lambda file, report=report: file.write(_plot(report)))
    write_text(ROOT / "docs" / "policies.md", page())


def page() -> str:
    """The text of docs/policies.md."""
    return "\n".join([INTRODUCTION, *map(_section, _reports().values())])


def _reports() -> dict[str, dict[str, Any]]:
    """The result file of every model that has one."""
    paths = {model: RESULTS / f"policies-{model}.json" for model in EMBEDDED}
    return {model: json.loads(path.read_text()) for model, path in paths.items() if path.exists()}


def _headline(quality: dict[str, Any]) -> dict[str, float]:
    """The number that a model is judged by, with its spread."""
    return quality["frechet"] if "frechet" in quality else quality["overall"]


def lower_is_better(quality: dict[str, Any]) -> bool:
    return "frechet" in quality


def _section(report: dict[str, Any]) -> str:
    own, other = ([p for p in report["points"] if bool(p["solver"]) == apart] for apart in (False, True))
    original, spent = own[0], sorted(own[1:], key=lambda p: -p["share"])
    lower = lower_is_better(original["quality"])
    name = "Fréchet distance" if lower else "score"
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
        table(["policy", "evaluations per row"], _degrades(own, lower)),
        "",
    ]
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


def _degrades(points: Sequence[dict[str, Any]], lower: bool) -> list[list[str]]:
    rows = []
    for kind in dict.fromkeys(p["kind"] for p in points[1:]):
        fewest = None
        for point in sorted((p for p in points if p["kind"] == kind), key=lambda p: -p["evaluations_per_row"]):
            gap = point["difference"]
            if gap["low"] > 0 if lower else gap["high"] < 0:
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
    shown = {"evaluations_per_row": "evaluations per row", "cpu_seconds_per_image": "CPU seconds per image"}
    for axes, (x, title) in zip(panels, shown.items(), strict=True):
        spread_of_original = _headline(own[0]["quality"])
        axes.axhspan(spread_of_original["low"], spread_of_original["high"], color="0.9", label=own[0]["steps"])
        for number, kind in enumerate(dict.fromkeys(p["kind"] for p in own[1:])):
            line = sorted((p for p in own if p["kind"] == kind), key=lambda p: p[x])
            values = [_headline(p["quality"])["value"] for p in line]
            axes.plot([p[x] for p in line], values, "o-", ms=4, label=kind, color=colormaps["tab20"](number))
        axes.set_xlabel(title)
        places = [p[x] for p in own[1:]]
        if max(places) > 3 * min(places):
            _label_plainly(axes, "x")
        axes.grid(alpha=0.3)
    if lower_is_better(own[0]["quality"]):
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
