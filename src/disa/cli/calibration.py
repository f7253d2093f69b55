"""`disa calibrate`: the step counts that spend a budget of evaluations best, measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disa.cli.options import AsJSON, Asked, Drawing, Out, Request, Source
from disa.cli.output import print_json, progress, table

if TYPE_CHECKING:
    from disa.calibration import Calibration
    from disa.presets import Preset


@dataclass(frozen=True)
class Measured(Asked):
    """What is measured, where labels and prompts are repeated until there are as many as seeds."""

    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds: 0, 0-7 or 1,5,9; 100000-100015 by default, or as many as prompts if these are more."),
    ] = None


def calibrate(
    source: Source,
    budget: Annotated[
        str,
        typer.Option(help="Evaluations to spend: a share of the original policy's (0.3), a number for each row (20), "
                          "or a policy that makes as many (linear:50-5)."),
    ],
    *, asked: Measured, drawing: Drawing,
    reference: Annotated[int, typer.Option(help="Denoising steps that count as no error.")] = 200,
    out: Out = Path("calibration"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Measure the error of every count in every AR step, and write the table of counts that spends a budget best."""
    request = asked.read()
    sampler = source.load(lambda preset: _filled(request, preset).check(preset))

    from disa import __version__
    from disa.calibration import calibrate as run_calibration
    from disa.calibration import num_turns
    from disa.files import make_folder, write_text, write_whole
    from disa.pictures import calibration_plot

    request = _filled(request, sampler.preset)
    wanted, settings = request.repeated(len(request.seeds or ())), drawing.settings(sampler)
    make_folder(out)
    with progress("measuring", num_turns(wanted, settings), as_json) as advance:
        [result] = run_calibration(sampler, wanted, settings, [budget], reference, advance)
    report = result.report() | {"disa": __version__}
    plot = calibration_plot(report, f"{sampler.preset.name}, {len(wanted.seeds)} images, budget {budget}")
    write_whole(out / "calibration.png", lambda file: file.write(plot))
    write_text(out / "table.json", json.dumps(report, indent=1) + "\n")
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        _print(result, out)


def _filled(request: Request, preset: Preset) -> Request:
    """With seeds, and captions where a model of shapes has no prompts."""
    from disa.calibration import FIRST_SEED, NUM_IMAGES

    if preset.quality == "shapes" and not request.entries and not request.labelled:
        from disa.tiny.scenes import held_out_captions

        request = replace(request, entries=[{"prompt": caption} for caption in held_out_captions(NUM_IMAGES)])
    count = request.per_prompt or max(NUM_IMAGES, len(request.entries))
    seeds = list(range(FIRST_SEED, FIRST_SEED + count)) if request.seeds is None else request.seeds
    return replace(request, seeds=seeds)


def _print(result: Calibration, out: Path) -> None:
    rows = [
        [str(k + 1), str(count), f"{gain:.2f}"]
        for k, (count, gain) in enumerate(zip(result.table.values, result.curves.gains, strict=True))
    ]
    table(f"{result.about['model']}: {result.about['num_images']} images measured",
          ["AR step", "denoising steps", "gain"], rows)  # fmt: skip
    print(f"{result.evaluations_per_row:.1f} evaluations per row; draw with --steps table:{out / 'table.json'}")
    print(f"table.json and calibration.png are in {out}")
