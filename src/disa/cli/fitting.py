"""`disa fit-probe`: what adaptive step policies know of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from disa.cli.options import AsJSON, AskedInTurn, Source, path_option
from disa.cli.output import line, print_json, table
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.progress import progress
from disa.values import command, counted

IMAGES = 64


def fit_probe(
    source: Source,
    asked: AskedInTurn,
    settings: Settings,
    seed: Annotated[int, typer.Option(min=0, help="Of the probe's training.")] = 0,
    out: Annotated[Path, path_option("--out", "The file that is written.")] = Path("probe.safetensors"),
    as_json: AsJSON = False,
) -> None:
    """Fit what adaptive policies need: a probe on z, and how every score goes with the error of few denoising steps.

    It solves every AR step of the images that it draws several times. Seeds are 100000-100063, or more for more
    prompts, if --seeds does not say others. A model of scenes draws captions that its training held out if no prompt is
    given.
    """
    from disa.files import make_folder
    from disa.study import fit
    from disa.study.calibrate import FIRST_SEED, work

    sampler, inputs = asked.load(source, IMAGES, FIRST_SEED)
    chosen = sampler.settings(settings)
    if out.is_dir():
        raise DisaError(f"{out} is a folder: expected a file to write, such as {out / 'probe.safetensors'}.")
    make_folder(out.parent)
    with progress("fitting", work(inputs, chosen, chosen.mean_steps + fit.EVALUATIONS)) as advance:
        fitted = fit.fit_probe(sampler, inputs, chosen, seed, advance)
    fit.save(out, fitted.probe)
    report = fitted.report()
    if as_json:
        print_json(report | {"out": str(out)})
        return
    table(
        f"{sampler.preset.name}: {counted(report['rows'], 'row')} of {counted(report['images'], 'image')}; "
        f"the error falls as n^-{report['power']:.2f}",
        ["score", "slope", "rank correlation", "within an AR step"],
        [
            [name, f"{line['slope']:.2f}", f"{line['rank_correlation']:.2f}", f"{line['rank_correlation_within']:.2f}"]
            for name, line in report["scores"].items()
        ],
    )
    r2 = report["held_out_r2"]
    line(
        f"R2 of the probe on images it did not see: {r2['few_steps']:.2f} for the log of the error of few steps, "
        f"{r2['prediction']:.2f} for that of the prediction from z"
    )
    line(f"the probe is in {out}; draw with {command('--steps', f'mlp:{out}')}")
