"""`disa calibrate`: the step counts that spend a budget of evaluations best, measured."""

from __future__ import annotations

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
    from disa.study.calibrate import Calibration


def calibrate(
    source: Source,
    budget: Annotated[
        str,
        typer.Option(
            help="Evaluations to spend: a share of the original policy's (0.3), a number for each row (20), "
            "or a policy that makes as many (linear:50-5)."
        ),
    ],
    asked: AskedInTurn,
    settings: Settings,
    reference: Annotated[int, typer.Option(max=MOST_STEPS, help="Denoising steps that count as no error.")] = 200,
    out: Out = Path("calibration"),
    as_json: AsJSON = False,
) -> None:
    """Measure the error of every count in every AR step, and write the table of counts that spends a budget best.

    Seeds are 100000-100015, or more for more prompts, if --seeds does not say others. A model of scenes draws captions
    that its training held out if no prompt is given.
    """
    from disa import __version__
    from disa.files import json_bytes, make_folder, write_together
    from disa.study.calibrate import FIRST_SEED, NUM_IMAGES, ladder, work
    from disa.study.calibrate import calibrate as run_calibration
    from disa.study.plots import calibration_plot

    sampler, inputs = asked.load(source, NUM_IMAGES, FIRST_SEED)
    chosen = sampler.settings(settings)
    evaluations = chosen.mean_steps + reference + sum(ladder(sampler, chosen, reference))
    make_folder(out)
    with progress("measuring", work(inputs, chosen, evaluations)) as advance:
        [result] = run_calibration(sampler, inputs, chosen, [budget], reference, advance)
    report = result.report() | {"disa": __version__}
    plot = calibration_plot(report, f"{sampler.preset.name}, {counted(len(inputs), 'image')}, budget {budget}")
    write_together(out, {"table.json": json_bytes(report)}, {"calibration.png": plot})
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        _print(result, out)


def _print(result: Calibration, out: Path) -> None:
    rows = [
        [str(k + 1), str(count), f"{gain:.2f}"]
        for k, (count, gain) in enumerate(zip(result.table.values, result.curves.gains, strict=True))
    ]
    title = f"{result.about['model']}: {counted(result.about['num_images'], 'image')} measured"
    table(title, ["AR step", "denoising steps", "gain"], rows)
    steps = command("--steps", f"table:{out / 'table.json'}")
    line(f"{result.evaluations_per_row:.1f} evaluations per row; draw with {steps}")
    line(f"table.json and calibration.png are in {out}")
