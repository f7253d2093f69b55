"""Plots as PNG bytes: what `disa compare`, `evidence`, `calibrate`, `tune` and `train` show.

matplotlib is imported by the functions that draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from disa.core.plans import StepPlan
from disa.draw.pictures import TITLE_LETTERS, shortened


def plot_png(figure: Any, dpi: int) -> bytes:
    """A figure of matplotlib as PNG bytes."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def steps_plot(counts: Mapping[str, Sequence[float]]) -> bytes:
    """Denoising steps of every AR step, a line per policy."""
    return _lines(counts, "AR step", "denoising steps per token", "where the denoising steps go")


def evidence_plot(curves: Mapping[str, Mapping[str, Any]], title: str) -> bytes:
    """The curves of `disa evidence` against the AR step, with quartiles as bands; absolute above, relative below."""
    from matplotlib.figure import Figure  # heavy

    panels = (
        ("error", "squared error of the prediction"), ("variance", "variance between draws"),
        ("straightness", "S: 0 is a straight path"), ("r2", "R2 of the prediction"),
        ("relative_variance", "variance / that of the tokens"), ("relative_straightness", "S / variance of the tokens"),
    )  # fmt: skip
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid: Any = figure.subplots(2, 3, sharex=True)
    for axes, (name, label) in zip(grid.flat, panels, strict=True):
        curve = curves[name]
        ar_steps = range(1, len(curve["mean"]) + 1)
        axes.fill_between(ar_steps, curve["low"], curve["high"], alpha=0.25, linewidth=0)
        axes.plot(ar_steps, curve["mean"], marker="o", markersize=3)
        way = "up" if curve["expected"] > 0 else "down"
        axes.set_title(f"{label}\nSpearman {curve['correlation']:+.2f}, in the paper {way}", fontsize=10)
        axes.set_ylim(*((None, 1) if name == "r2" else (0, None)))
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[1]:
        axes.set_xlabel("AR step")
    figure.suptitle(title)
    return plot_png(figure, 100)


def calibration_plot(report: Mapping[str, Any], title: str) -> bytes:
    """The error curves of `disa calibrate`, their share of the final error, and the counts that were chosen."""
    from matplotlib import colormaps  # heavy
    from matplotlib.figure import Figure

    curves, chosen = report["curves"], report["counts"]
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(chosen)))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (errors, gain, colour) in enumerate(zip(curves["errors"], curves["gains"], colours, strict=True)):
        label = f"AR step {k + 1}" if k in {0, len(chosen) // 2, len(chosen) - 1} else None
        left.loglog(curves["counts"], np.multiply(errors, gain), marker=".", color=colour, label=label)
    left.set(xlabel="denoising steps", ylabel="squared error x gain, per image", title="what a count costs in error")
    left.legend()
    right.bar(range(1, len(chosen) + 1), chosen, color=colours)
    right.set(xlabel="AR step", ylabel="denoising steps", title="what the budget is spent on")
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(title)
    return plot_png(figure, 100)


def plan_plot(plan: StepPlan, title: str) -> bytes:
    """Where a plan puts its steps: over AR step and time at its budget, how many at several, and the errors left."""
    from matplotlib import colormaps  # heavy
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.8), layout="constrained")
    where, many, error = figure.subplots(1, 3)
    below: Any = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "fontsize": 8}
    own, num_ar_steps = plan.content["budget"], len(plan.content["rows"])
    chosen = plan.counts(own)
    places = [(k + 1, t) for k, count in enumerate(chosen) for t in plan.solver.at(k, num_ar_steps).course(count).times]
    where.scatter(*zip(*places, strict=True), s=14, color="C0")
    where.set(xlabel="AR step", ylabel="time: 1 is noise, 0 is data", ylim=(-0.03, 1.03))
    where.set_title(f"when the network is asked, {own:.3g} evaluations per row", fontsize=10)
    least, most = plan.bounds
    budgets = sorted({own, *np.geomspace(max(least, 1.25), most, 4).round(2).tolist()})
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(budgets)))
    widths = np.linspace(4, 1.2, len(budgets))  # so that lines that fall together are all seen
    for budget, colour, width in zip(budgets, colours, widths, strict=True):
        counts = plan.counts(plan.affordable(budget))
        many.step(range(1, num_ar_steps + 1), counts, where="mid", color=colour, linewidth=width, label=f"{budget:.3g}")
    many.set(xlabel="AR step", ylabel="denoising steps", ylim=(0, None))
    many.set_title("how often, for several evaluations per row", fontsize=10)
    many.yaxis.get_major_locator().set_params(integer=True)
    many.legend(**below, ncols=len(budgets))
    for kind, found in plan.content["errors"].items():
        energy = np.maximum(np.mean(found["energy"], axis=0), 1e-12)
        label, line = ("the model's own solver", "--") if kind == "own" else (kind, "-")
        error.loglog(range(1, len(energy) + 1), energy, line, marker=".", label=label)
    ticks = [count for count in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64) if count <= plan.errors.shape[1]]
    error.set_xticks(ticks, map(str, ticks))
    error.set_xticks([], minor=True)
    error.set(xlabel="denoising steps", ylabel="energy distance of a row from the path's")
    error.set_title("what is left, over all AR steps", fontsize=10)
    error.legend(**below, ncols=2)
    for axes in (where, many, error):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
        if axes is not error:
            axes.xaxis.get_major_locator().set_params(integer=True)
    figure.suptitle(title)
    return plot_png(figure, 100)


def tuned_plot(report: Mapping[str, Any], title: str) -> bytes:
    """What `disa tune` found: loss over speed-up, confirmed settings with their bounds, and what was searched."""
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(8, 5.6), layout="constrained")
    axes: Any = figure.add_subplot()
    tolerance, front = report["tolerance"], report["front"]
    searched = [(each["speedup"], 100 * each["loss"]) for each in report["searched"]]
    axes.scatter(*zip(*searched, strict=True), s=14, color="0.7", label="tried in the search")
    axes.axhspan(-1e9, 100 * tolerance, color="C2", alpha=0.08, linewidth=0, label=f"up to {tolerance:.2%}")
    axes.scatter([1], [0], marker="s", color="black", label="original", zorder=3)
    for place, found in enumerate(front):
        value, bound = 100 * found["loss"]["value"], 100 * found["bound"]
        best = found["name"] == report["best"]
        label = f"{found['name']}: {found['speedup']:.1f} times as fast"
        axes.errorbar(found["speedup"], value, yerr=[[0], [max(0, bound - value)]], color=f"C{place}", capsize=4,
                      marker="*" if best else "o", markersize=12 if best else 6, label=label)  # fmt: skip
    values = [100 * found["bound"] for found in front] + [100 * tolerance]
    axes.set(xscale="log", xlabel="times as fast as the original", title=title)
    axes.set_ylabel("loss, % of how two images of the original differ")
    axes.set_ylim(-0.15 * max(values), 1.3 * max(values))
    ticks = [tick for tick in (1, 2, 3, 5, 8, 12, 20, 30, 50, 100) if tick <= 1.5 * max(f["speedup"] for f in front)]
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_xticks([], minor=True)
    axes.grid(alpha=0.3)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return plot_png(figure, 110)


def _lines(lines: Mapping[str, Sequence[float]], x: str, y: str, title: str) -> bytes:
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    for name, values in lines.items():
        axes.step(range(len(values)), values, where="mid", label=shortened(name, TITLE_LETTERS))
    axes.set(xlabel=x, ylabel=y, title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return plot_png(figure, 120)
