"""`disa sample` and `disa describe`: images from labels or prompts, and words about images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, tee
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disa.cli.options import AsJSON, Asked, Drawing, Out, Source, parse_box
from disa.cli.output import percent, print_json, progress, readable
from disa.errors import DisaError

if TYPE_CHECKING:
    from torch import Tensor

    from disa.draw.sampler import Sampler, Settings
    from disa.models.spec import Preset


MOST_TOLD = 8
"""Rewritten prompts that are printed; trace.json has them all."""


def sample(
    source: Source, asked: Asked,
    steps: Annotated[str | None, typer.Option(help="Step policy, such as linear:50-5 or constant:50.")] = None,
    *, drawing: Drawing,
    keep: Annotated[Path | None, typer.Option(help="A picture whose tokens outside --box are kept.")] = None,
    box: Annotated[str | None, typer.Option(help="Tokens to draw with --keep: top,left,bottom,right.")] = None,
    geneval: Annotated[bool, typer.Option(help="Write the folders that GenEval's evaluation reads.")] = False,
    out: Out = Path("out"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Draw images: a PNG each, named by seed and label or prompt, a grid, and a JSON trace of what was done."""
    from disa.files import make_folder

    request = asked.read()
    if geneval and not request.entries:
        raise DisaError("--geneval goes with prompts: give --prompt or --prompts.")
    sampler = source.load(request.check)
    settings = drawing.settings(sampler, steps)
    known, mask = _kept(sampler, settings, keep, box)
    run = sampler.start(**vars(request.wanted()), settings=settings, known=known, mask=mask)
    sampler.prepare()
    make_folder(out)
    with progress("drawing", run.num_turns, as_json) as advance:
        for _ in run:
            advance()
    result = run.result()
    report = result.save_for_geneval(out, request.entries) if geneval else result.save(out)
    if as_json:
        print_json(report | {"out": str(out)})
        return
    print(
        f"{len(result.seeds)} images in {result.seconds:.2f} s ({result.evaluations} evaluations, "
        f"{result.evaluations_per_row:.1f} per row; head {percent(result.seconds_head, result.seconds)}, "
        f"backbone {percent(result.seconds_backbone, result.seconds)} of the time)"
    )
    told = zip(result.prompts, result.rewritten, strict=True) if result.prompts and result.rewritten else ()
    for prompt, words in islice(told, MOST_TOLD):
        print(f"asked for {readable(prompt)}: drew {readable(words)}")
    print(f"{'a folder per prompt' if geneval else 'pictures, grid.png'} and trace.json are in {out}")


def describe(
    images: Annotated[list[Path], typer.Argument(help="Pictures: PNG, JPEG or the like.", show_default=False)],
    source: Source,
    prompt: Annotated[str, typer.Option(help="What to ask about each picture.")] = "Describe the image in detail.",
    temperature: Annotated[
        float | None, typer.Option(help="Draw words by their chance; the likeliest every time by default.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With --temperature: a text is a function of it.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a text, at most.")] = 1024,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1: words that a text has become less likely.")] = 1.0,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Pictures at once; the preset's by default.")] = None,
    as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Words about pictures, as they come. A picture is padded to a square and resized to the model's own size."""
    import torch

    from disa.draw.editing import fitted, open_picture, squared

    if not prompt.strip():
        raise DisaError("a prompt is empty: expected words.")
    pictures = [open_picture(path) for path in images]
    sampler = source.load(_check_words)
    size, found = batch_size or sampler.preset.defaults.batch_size, []
    for batch in (range(i, min(i + size, len(images))) for i in range(0, len(images), size)):
        turns = sampler.describe_steps(
            torch.cat([fitted(squared(pictures[i]), sampler.image_shape) for i in batch]), prompt,
            temperature=temperature, seeds=seed, max_tokens=max_tokens, repetition_penalty=repetition_penalty,
        )  # fmt: skip
        for i, pieces in zip(batch, _texts(sampler, turns, len(batch)), strict=True):
            title = f"{images[i]}: " if len(images) > 1 else ""
            found.append({"image": str(images[i]), "text": "".join(pieces if as_json else _shown(pieces, title))})
    if as_json:
        print_json({
            "model": sampler.preset.name, "prompt": prompt, "temperature": temperature, "seed": seed,
            "max_tokens": max_tokens, "repetition_penalty": repetition_penalty, "descriptions": found,
        })  # fmt: skip


def _kept(sampler: Sampler, settings: Settings, keep: Path | None, box: str | None) -> tuple[Any, Any]:
    """Known latents and the mask of tokens to draw, from a picture and a box of tokens."""
    if keep is None and box is None:
        return None, None
    if keep is None or box is None:
        raise DisaError("--keep and --box go together: the picture, and the tokens of it to draw again.")
    from disa.draw.editing import box_mask, read_picture

    edges, grid = parse_box(box), sampler.token_grid
    known = sampler.encode(read_picture(keep, sampler.shape_of(settings)))
    return known, box_mask(edges, settings.token_grid or grid)


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
