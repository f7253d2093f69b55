"""`disa evidence`: why annealing works, measured on the images of a model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disa.cli.options import AsJSON, AskedInTurn, Out, Source
from disa.cli.output import line, print_json, table
from disa.core.counts import MOST_STEPS
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.progress import progress
from disa.values import counted

if TYPE_CHECKING:
    from PIL.Image import Image

    from disa.draw.sampler import Sampler
    from disa.study.evidence import Effort, Evidence

NUM_IMAGES = 64


@dataclass(frozen=True)
class Measuring:
    """How much is spent on measuring."""

    draws: Annotated[int, typer.Option(max=10_000, help="Draws from the same z.")] = 100
    draw_steps: Annotated[int, typer.Option(max=MOST_STEPS, help="Denoising steps of each of them.")] = 25
    varied: Annotated[
        int | None, typer.Option(help="Images whose tokens are drawn so often: the first ones; 16 by default.")
    ] = None
    path_steps: Annotated[int, typer.Option(max=MOST_STEPS, help="Evaluations along each path.")] = 50
    fit_images: Annotated[
        int | None,
        typer.Option(max=100_000, help="MAR, Harmon: other images that the predictor learns from; 256 by default."),
    ] = None

    def effort(self, sampler: Sampler, num_images: int) -> Effort:
        """The same with what is left out. Raises DisaError for what would say nothing."""
        from disa.study.evidence import Effort, learns

        if self.fit_images is not None and not learns(sampler):
            raise DisaError(f"{sampler.preset.name} predicts its tokens itself: leave --fit-images out.")
        if self.varied is not None and self.varied > num_images:
            raise DisaError(f"--varied must be at most the {counted(num_images, 'image')} drawn, found {self.varied}.")
        return Effort(**{name: value for name, value in vars(self).items() if value is not None})


def evidence(
    source: Source,
    asked: AskedInTurn,
    settings: Settings,
    measuring: Measuring,
    out: Out = Path("evidence"),
    as_json: AsJSON = False,
) -> None:
    """Per AR step: how predictable tokens are, how much they vary between draws, how straight their paths are.

    Seeds are 0-63, or more for more prompts, if --seeds does not say others. A model of scenes draws captions that its
    training held out if no prompt is given.
    """
    from disa.draw.pictures import png
    from disa.files import json_bytes, make_folder, write_together
    from disa.study.evidence import check, measure, work
    from disa.study.plots import evidence_plot

    sampler, inputs = asked.load(source, NUM_IMAGES)
    chosen, effort = sampler.settings(settings), measuring.effort(sampler, len(inputs))
    check(sampler, inputs, chosen, effort)
    make_folder(out)
    with progress("measuring", work(sampler, inputs, chosen, effort)) as advance:
        result = measure(sampler, inputs, chosen, effort, advance)
    report = result.report()
    plot = evidence_plot(report["curves"], f"{sampler.preset.name}, {counted(len(inputs), 'image')}")
    pictures = {"evidence.png": plot, "foresight.png": png(_sheet(result))}
    write_together(out, {"evidence.json": json_bytes(report)}, pictures)
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        _print(result, out)


def _sheet(result: Evidence) -> Image:
    """At some AR steps what is drawn, and what is predicted of the rest; the whole images last."""
    from disa.draw.pictures import foresight_sheet
    from disa.study.evidence import SHOWN_IMAGES

    last, images = len(result.token_variance), result.samples.images[:SHOWN_IMAGES]
    columns = {f"{part.num_ar_steps} of {last}": (part.drawn, part.predicted) for part in result.foresight}
    return foresight_sheet(columns | {f"{last} of {last}": (images, images)})


def _print(result: Evidence, out: Path) -> None:
    from disa.study.evidence import EXPECTED

    last = len(result.token_variance) - 1
    rows = [
        [
            name.replace("_", " "),
            *(f"{curve.mean[k]:.4f}" for k in (0, last // 2, last)),
            "up" if EXPECTED[name] > 0 else "down",
            f"{curve.correlation:+.2f}",
        ]
        for name, curve in result.curves.items()
    ]
    about = result.samples.settings
    table(
        f"{about['model']}: {counted(len(result.samples.seeds), 'image')}, {counted(about['num_ar_steps'], 'AR step')}",
        ["", "first AR step", f"AR step {last // 2 + 1}", "last", "in the paper", "Spearman"],
        rows,
    )
    line(
        f"error, r2: tokens predicted by {result.predictor}; straightness: S; what is relative is divided by the "
        "variance of the tokens of an AR step."
    )
    line(f"evidence.png, foresight.png and evidence.json are in {out}")
