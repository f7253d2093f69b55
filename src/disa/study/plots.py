"""Plots as PNG bytes: what `disa compare`, `disa evidence`, `disa calibrate` and `disa train` show.

matplotlib is imported by the functions that draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

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
