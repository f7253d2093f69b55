"""`disa calibrate`: where denoising steps pay, measured: the times, updates and counts of a plan, or counts alone."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disa.cli.options import AsJSON, AskedInTurn, Out, Source
from disa.cli.output import line, print_json, table
from disa.core.counts import MOST_STEPS
from disa.draw.settings import Settings
from disa.progress import progress
from disa.values import command, counted

if TYPE_CHECKING:
    from disa.core.plans import StepPlan
    from disa.draw.sampler import Sampler
    from disa.study.calibrate import Calibration

MEASURED = "measured.npz"
"""What an interrupted measurement goes on from."""


def calibrate(
    source: Source,
    asked: AskedInTurn,
    settings: Settings,
    budget: Annotated[
        str,
        typer.Option(
            help="Evaluations to spend: a share of the original policy's (0.1), a number for each row (8.5), "
            "or a policy that makes as many (linear:50-5). A plan can be asked for others later, as plan:FILE@6."
        ),
    ] = "0.1",
    most: Annotated[int, typer.Option(min=2, max=64, help="Denoising steps of a row at most, in a plan.")] = 12,
    counts_only: Annotated[
        bool, typer.Option("--counts-only", help="Keep solver and grid; measure a table of counts for the budget.")
    ] = False,
    reference: Annotated[
        int, typer.Option(max=MOST_STEPS, help="Denoising steps that count as no error, for --counts-only.")
    ] = 200,
    out: Out = Path("calibration"),
    as_json: AsJSON = False,
) -> None:
    """Measure where denoising steps pay, and write a plan: the times that they visit, how the network's answers are
    used, and how many there are in each AR step. Draw with --steps plan:OUT/plan.json.

    Seeds are from 100000 on, 32 images for a plan and 16 for counts, or more for more prompts, if --seeds does not say
    others. A model of scenes draws captions that its training held out if no prompt is given. An interrupted plan goes
    on where it was.
    """
    from disa import __version__
    from disa.files import json_bytes, write_together
    from disa.study.plots import calibration_plot, plan_plot

    if counts_only:
        result, title = _counts(source, asked, settings, budget, reference, out)
        report, shown = result.report() | {"disa": __version__}, partial(_print_counts, result, out)
        files, pictures = {"table.json": json_bytes(report)}, {"calibration.png": calibration_plot(report, title)}
    else:
        plan, title = _plan(source, asked, settings, budget, most, out)
        report, shown = dict(plan.content) | {"disa": __version__}, partial(_print_plan, plan, out)
        files, pictures = {"plan.json": json_bytes(report)}, {"plan.png": plan_plot(plan, title)}
    write_together(out, files, pictures)
    (out / MEASURED).unlink(missing_ok=True)
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        shown()


def _counts(
    source: Source, asked: AskedInTurn, settings: Settings, budget: str, reference: int, out: Path
) -> tuple[Calibration, str]:
    """What was measured, and a title for its plot."""
    from disa.files import make_folder
    from disa.study.calibrate import FIRST_SEED, NUM_IMAGES, ladder, work
    from disa.study.calibrate import calibrate as run_calibration

    sampler, inputs = asked.load(source, NUM_IMAGES, FIRST_SEED)
    chosen = sampler.settings(settings)
    evaluations = chosen.mean_steps + reference + sum(ladder(sampler, chosen, reference))
    make_folder(out)
    with progress("measuring", work(inputs, chosen, evaluations)) as advance:
        [result] = run_calibration(sampler, inputs, chosen, [budget], reference, advance)
    return result, f"{sampler.preset.name}, {counted(len(inputs), 'image')}, budget {budget}"


def _plan(
    source: Source, asked: AskedInTurn, settings: Settings, budget: str, most: int, out: Path
) -> tuple[StepPlan, str]:
    """The plan, and a title for its plot."""
    from disa.files import make_folder
    from disa.study.planning import FIRST_SEED, NUM_IMAGES, make_plan, work

    sampler, inputs = asked.load(source, NUM_IMAGES, FIRST_SEED)
    chosen = sampler.settings(settings)
    turns = work(chosen, len(inputs), most)
    keep = make_folder(out) / MEASURED
    with progress("measuring", turns) as advance:
        on_turn = partial(advance, note=f"as long as {_as_many(sampler, chosen, turns, len(inputs))}")
        plan = make_plan(sampler, inputs, chosen, budget, most, keep, on_turn)
    return plan, f"{sampler.preset.name}, {counted(len(inputs), 'image')}"


def _as_many(sampler: Sampler, settings: Settings, turns: list[float], num_images: int) -> str:
    """How many images of the original policy cost as much: `530 images with constant:100`."""
    from disa.core import texts
    from disa.study.calibrate import BACKBONE

    original = sampler.defaults.original
    steps = texts.parse(original).counts(settings.num_ar_steps)
    cost = sum(steps) + BACKBONE * settings.num_ar_steps
    together = min(settings.batch_size, max(1, num_images // 2))
    return f"{round(sum(turns) * together / cost)} images with {original}"


def _print_counts(result: Calibration, out: Path) -> None:
    rows = [
        [str(k + 1), str(count), f"{gain:.2f}"]
        for k, (count, gain) in enumerate(zip(result.table.values, result.curves.gains, strict=True))
    ]
    title = f"{result.about['model']}: {counted(result.about['num_images'], 'image')} measured"
    table(title, ["AR step", "denoising steps", "gain"], rows)
    steps = command("--steps", f"table:{out / 'table.json'}")
    line(f"{result.evaluations_per_row:.1f} evaluations per row; draw with {steps}")
    line(f"table.json and calibration.png are in {out}")


def _print_plan(plan: StepPlan, out: Path) -> None:
    least, most = plan.bounds
    own = plan.content["budget"]
    budgets = sorted({own, *(share * most for share in (0.25, 0.5, 1.0) if share * most > least)})
    rows = []
    for budget in budgets:
        counts = plan.counts(budget)
        rows.append([f"{plan.per_row(counts):.1f}", _shortly(counts), f"{plan.left(counts):.2%}"])
    about = plan.content["measured_with"]
    table(
        f"{plan.content['model']}: {counted(len(about['seeds']), 'image')} measured, {plan.content['solver']}",
        ["evaluations/row", "denoising steps from first to last AR step", "error, of that of 1 step"],
        rows,
    )
    steps = command("--steps", f"plan:{out / 'plan.json'}")
    # A rounded bound could be one that is refused.
    bounds = f"@{math.ceil(least * 100) / 100:g} to @{math.floor(most * 100) / 100:g}"
    line(f"draw with {steps} for {own:.3g} evaluations per row, or with {bounds} behind it for others")
    line(f"plan.json and plan.png are in {out}")


def _shortly(counts: list[int]) -> str:
    """Counts, of long lists the runs alone: `4x3 3x9 2x12`."""
    if len(counts) <= 8:
        return " ".join(map(str, counts))
    runs: list[list[int]] = []
    for count in counts:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return " ".join(f"{count}x{number}" for count, number in runs)
