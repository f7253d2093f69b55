"""`disa sample` and `disa describe`: images from labels or prompts, and words about images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import replace as changed
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disa.cli.options import AsJSON, Asked, Out, Source, path_option
from disa.cli.output import line, print_json, readable
from disa.cli.texts import parse_box
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.models.harmon.text import DESCRIBE
from disa.progress import progress
from disa.values import counted, percent

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from disa.draw.inputs import Inputs
    from disa.draw.sampler import Sampler
    from disa.models.spec import Preset

MOST_TOLD = 8
"""Rewritten prompts that are printed; trace.json has them all."""


@dataclass(frozen=True)
class Kept:
    """What of a picture is kept, and which one is edited."""

    keep: Annotated[
        Path | None,
        path_option("--keep", "A picture whose tokens outside --box are kept; of another shape, its middle."),
    ] = None
    box: Annotated[str | None, typer.Option(help="Tokens to draw with --keep: top,left,bottom,right.")] = None
    edit: Annotated[
        Path | None,
        path_option("--source", "A picture to draw anew as the prompt says; of another shape, its middle."),
    ] = None

    def read(self) -> tuple[Image, list[int]] | None:
        """The picture, and the edges of the box; None where nothing is kept. Raises DisaError."""
        if self.keep is None and self.box is None:
            return None
        if self.keep is None or self.box is None:
            raise DisaError("--keep and --box go together: the picture, and the tokens of it to draw again.")
        from disa.draw.opening import open_picture

        edges = parse_box(self.box)
        return open_picture(self.keep), edges

    def of(self, read: tuple[Image, list[int]] | None, inputs: Inputs, sampler: Sampler, settings: Settings) -> Inputs:
        """The inputs with known latents and the mask of tokens to draw, or with a picture to edit. Raises DisaError."""
        if read is None and self.edit is None:
            return inputs
        from disa.draw.resizing import filling, read_picture
        from disa.draw.tensors import box_mask

        shape = sampler.shape_of(settings.size)
        if self.edit is not None:
            sampler.model.capabilities.check_edits()
            inputs = changed(inputs, source=sampler.encode(read_picture(self.edit, shape)))
        if read is None:
            return inputs
        (picture, edges), own = read, sampler.token_grid
        mask = box_mask(edges, sampler.token_grid_of(settings.size) or own)
        known = sampler.encode(filling(picture, shape, f"{self.keep}"))
        return changed(inputs, known=known, mask=mask)


@dataclass(frozen=True)
class Target:
    """The folder for what is drawn, and what is done with images that are there."""

    geneval: Annotated[bool, typer.Option(help="Write the folders that GenEval's evaluation reads.")] = False
    resume: Annotated[bool, typer.Option(help="Draw only what is missing in the folder.")] = False
    replace: Annotated[bool, typer.Option(help="Remove images of another run from the folder.")] = False
    out: Out = Path("out")

    def check(self, entries: list[dict[str, Any]]) -> None:
        """Find what does not go together. Raises DisaError."""
        if self.geneval and not entries:
            raise DisaError("--geneval goes with prompts: give --prompt or --prompts.")
        if self.resume and self.replace:
            raise DisaError("--resume keeps the images of a folder, --replace removes them: give one of the two.")

    @property
    def if_used(self) -> str:
        return "resume" if self.resume else "replace" if self.replace else "refuse"


Offload = Annotated[
    bool,
    typer.Option(
        "--offload",
        help="Keep the layers of the language model in the CPU's memory, for a GPU that is too small: slow.",
    ),
]


def sample(
    source: Source,
    asked: Asked,
    settings: Settings,
    kept: Kept,
    target: Target,
    offload: Offload = False,
    as_json: AsJSON = False,
) -> None:
    """Draw images: a PNG each, named by seed and label or prompt, a grid, and a JSON trace of what was done.

    Images are written as they are drawn. After an interruption, the same command with --resume draws the rest.
    """
    from disa.draw.folder import Layout, SampleFolder

    entries = asked.entries
    target.check(entries)
    picture = kept.read()
    sampler = source.load(asked.inputs, offload=offload)
    chosen = sampler.settings(settings)
    inputs = kept.of(picture, asked.inputs(sampler.preset), sampler, chosen)
    if settings.rewrite and inputs.known is not None:
        raise DisaError(
            "a picture that is kept has decided what --rewrite would: leave one of --keep and --rewrite out."
        )
    whole = sampler.start(inputs, chosen)
    layout = Layout.geneval(inputs, entries) if target.geneval else Layout.flat(inputs)
    folder = SampleFolder(target.out, inputs, whole.about(), layout)
    missing = folder.open(target.if_used)
    run = whole.only(missing) if missing else None
    with progress("drawing", run.num_turns if run else 0) as advance:
        report = folder.fill(run.batches(advance) if run else (), missing)
    if as_json:
        print_json(report | {"out": str(target.out)})
    else:
        _print(report, target)


def _print(report: dict[str, Any], target: Target) -> None:
    from disa.draw.folder import MOST_SHOWN

    there = len(report["files"]) - report["drawn"]
    line(
        f"{counted(len(report['files']), 'image')}{f', {there} of them there before' if there else ''}: "
        f"{report['seconds']:.2f} s "
        f"({counted(report['evaluations'], 'evaluation')}, {report['evaluations_per_row']:.1f} per row; "
        f"head {percent(report['seconds_head'], report['seconds'])}, "
        f"backbone {percent(report['seconds_backbone'], report['seconds'])} of the time)"
    )
    line(f"{counted(report['backbone_tokens'], 'backbone token')}, {report['operations'] / 1e12:.3g} TFLOP")
    told = zip(report.get("prompts", ()), report.get("rewritten", ()), strict=False)
    for prompt, words in islice(told, MOST_TOLD):
        if words is not None:
            line(f"asked for {readable(prompt)}: drew {readable(words)}")
    cut = f" of the first {MOST_SHOWN}" if len(report["files"]) > MOST_SHOWN else ""
    what = "a folder per prompt" if target.geneval else f"samples, grid.png{cut}"
    line(f"{what} and trace.json are in {target.out}")


def describe(
    images: Annotated[list[Path], typer.Argument(help="Pictures: PNG, JPEG or the like.", show_default=False)],
    source: Source,
    prompt: Annotated[str, typer.Option(help="What to ask about each picture.")] = DESCRIBE,
    temperature: Annotated[
        float | None, typer.Option(help="Draw words by their chance; the likeliest every time by default.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --temperature: a text is a function of it; 0 by default.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a text, at most.")] = 1024,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: words that a text has become less likely.")] = 1.0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once; the preset's by default.")] = None,
    as_json: AsJSON = False,
) -> None:
    """Words about pictures, as they come. A picture is padded to a square and resized to the model's own size; of an
    animation or several pages it is the first."""
    import torch

    from disa.draw.opening import open_picture
    from disa.draw.resizing import fitted, squared

    if not prompt.strip():
        raise DisaError("a prompt is empty: expected words.")
    if seed is not None and temperature is None:
        raise DisaError("--seed goes with --temperature: without that the likeliest word is taken every time.")
    seed = seed or 0
    # What is wrong is found before weights are read; all pictures at once may not fit into memory.
    for path in images:
        open_picture(path)
    sampler = source.load(_check_words)
    writing = {"temperature": temperature, "max_tokens": max_tokens, "repetition_penalty": repetition_penalty}
    size, found = batch_size or sampler.defaults.batch_size, []
    for batch in (range(i, min(i + size, len(images))) for i in range(0, len(images), size)):
        shown = torch.cat([fitted(squared(open_picture(images[i])), sampler.image_shape) for i in batch])
        turns = sampler.describe_steps(shown, prompt, seeds=seed, **writing)
        for i, pieces in zip(batch, _texts(sampler, turns, len(batch)), strict=True):
            title = f"{images[i]}: " if len(images) > 1 else ""
            found.append({"image": str(images[i]), "text": "".join(pieces if as_json else _shown(pieces, title))})
    if as_json:
        print_json({"model": sampler.preset.name, "prompt": prompt, "seed": seed, **writing, "descriptions": found})


def _check_words(preset: Preset) -> None:
    if not preset.prompts:
        raise DisaError(f"{preset.name} has no words: expected a model that takes prompts, such as harmon-0.5b.")


def _texts(sampler: Sampler, turns: Iterator[Tensor], count: int) -> list[Iterator[str]]:
    """Pieces of the texts of one batch: while one is read as it comes, the turns of those behind it are kept."""

    def pieces(i: int, turns: Iterator[Tensor]) -> Iterator[str]:
        return sampler.text.pieces(int(ids[i]) for ids in turns)

    return [pieces(i, copy) for i, copy in enumerate(tee(turns, count))]


def _shown(pieces: Iterator[str], title: str) -> Iterator[str]:
    """Pieces of a text, each printed as it comes."""
    print(title, end="", flush=True)
    for piece in pieces:
        print(readable(piece), end="", flush=True)
        yield piece
    print()
