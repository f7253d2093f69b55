"""`disa compare`, `disa demo` and `disa bench`: what step policies cost, and what they keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disa.cli.options import PROMPT_TOKENS, AsJSON, AskedInTurn, Out, Policies, Source, Threads
from disa.cli.output import line, print_json, table
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.progress import progress
from disa.values import counted

if TYPE_CHECKING:
    from disa.draw.inputs import Inputs
    from disa.draw.sampler import Sampler
    from disa.study.compare import Comparison

COMPARED, SHOWN, QUICK = 100, 40, 20


def compare(
    source: Source,
    asked: AskedInTurn,
    settings: Settings,
    steps: Policies = None,
    out: Out = Path("out"),
    as_json: AsJSON = False,
) -> None:
    """The same seeds under several step policies: time, evaluations, quality, a side-by-side grid and a plot.

    Labels or prompts are repeated until there are as many as seeds; these are 0-99, or more for more prompts, if
    --seeds does not say others. A model of scenes draws captions that its training held out if no prompt is given.
    """
    sampler, inputs = asked.load(source, COMPARED)
    policies = steps or [sampler.defaults.original, sampler.defaults.steps]
    _compare(sampler, policies, inputs, sampler.settings(settings), out, as_json)


def demo(
    images: Annotated[
        int | None, typer.Option(min=QUICK, max=100_000, help="Digits to draw under each policy; 400 by default.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help=f"Draw {QUICK}: they show that disa works, and are too few to tell quality.")
    ] = False,
    num_ar_steps: Annotated[int, typer.Option(help="AR steps, the same for every policy.")] = 16,
    threads: Threads = None,
    out: Out = Path("demo"),
    as_json: AsJSON = False,
) -> None:
    """Digits with the original 100 denoising steps, with DiSA, with a fifth of that, and with few steps first."""
    if quick and images is not None:
        raise DisaError("--quick says how many digits are drawn: leave --images out.")
    sampler = Source(device="cpu", threads=threads).load()
    policies = [sampler.defaults.original, sampler.defaults.steps, "linear:10-1", "linear:1-6"]
    inputs = AskedInTurn().in_turn(sampler.preset, QUICK if quick else images or 400)
    _compare(sampler, policies, inputs, sampler.settings(num_ar_steps=num_ar_steps), out, as_json)


def bench(
    source: Source,
    settings: Settings,
    steps: Policies = None,
    batch_size: Annotated[
        list[int] | None, typer.Option(min=1, max=65_536, help="Batch size; give it several times.")
    ] = None,
    untrained: Annotated[bool, typer.Option(help="Random weights: speed without a checkpoint.")] = False,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens of a prompt, where models take one; {PROMPT_TOKENS} by default.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, max=10_000, help="Measured repeats after one warm-up.")] = 5,
    as_json: AsJSON = False,
) -> None:
    """Seconds per image of step policies and batch sizes: medians of interleaved repeats, decoding included."""
    from disa.study.bench import bench as run_bench

    sampler = _to_bench(source, untrained, prompt_tokens, bool(settings.rewrite))
    policies, sizes = steps or [sampler.defaults.original, sampler.defaults.steps], batch_size or [1, 8]
    chosen = replace(sampler.settings(settings), rewrite=False)
    with progress("measuring", len(policies) * len(sizes) * (repeats + 1)) as advance:
        timings = run_bench(sampler, policies, sizes, chosen, repeats, advance)
    if as_json:
        import platform

        about = sampler.about() | chosen.to_json() | {"untrained": untrained, "repeats": repeats}
        about |= {"machine": platform.processor()}
        about |= {"prompt_tokens": prompt_tokens or PROMPT_TOKENS} if sampler.preset.prompts else {}
        print_json(about | {"model": source.model, "timings": [vars(timing) for timing in timings]})
        return
    table(
        f"{source.model}, {counted(chosen.num_ar_steps, 'AR step')}, {sampler.device}, {source.dtype}",
        ["steps", "batch", "s/image", "images/s", "head", "evaluations/row", "backbone tokens", "GFLOP"],
        [
            [
                timing.steps,
                str(timing.batch_size),
                f"{timing.seconds_per_image:.4f}",
                f"{timing.images_per_second:.2f}",
                f"{timing.share_head:.0%}",
                f"{timing.evaluations_per_row:.1f}",
                f"{timing.backbone_tokens:.0f}",
                f"{timing.operations / 1e9:.4g}",
            ]
            for timing in timings
        ],
    )


def _to_bench(source: Source, untrained: bool, prompt_tokens: int | None, rewrite: bool) -> Sampler:
    """The sampler, whose prompts are of a fixed length, so that no tokenizer is needed."""
    from disa.draw.sampler import Sampler
    from disa.models.harmon.text import FixedLength
    from disa.models.spec import Preset

    def check(preset: Preset) -> None:
        if prompt_tokens is not None and not preset.prompts:
            raise DisaError(f"{preset.name} draws from labels: leave --prompt-tokens out.")

        if rewrite and preset.prompts:
            raise DisaError("bench draws from prompts of a fixed length, which have no words: leave --rewrite out.")

    if source.tokenizer is not None:
        raise DisaError("bench draws from prompts of a fixed length: leave --tokenizer out.")
    text = FixedLength(prompt_tokens or PROMPT_TOKENS)
    if not untrained:
        return source.load(check, text)
    if source.checkpoint or source.vae or source.weights_key:
        raise DisaError("--untrained takes random weights: leave --checkpoint, --weights-key and --vae out.")
    sampler = Sampler.untrained(source.model, device=source.device, dtype=source.dtype, tokenizer=text)
    check(sampler.preset)
    return sampler


def _compare(
    sampler: Sampler, policies: list[str], inputs: Inputs, settings: Settings, out: Path, as_json: bool
) -> None:
    from disa.draw.pictures import png, side_by_side
    from disa.files import json_bytes, make_folder, write_together
    from disa.study.compare import check
    from disa.study.compare import compare as run_compare
    from disa.study.plots import steps_plot
    from disa.tiny.measures import MEASURES

    check(sampler, policies, inputs, settings)
    make_folder(out)
    turns, measure = len(policies) * settings.num_turns(len(inputs)), MEASURES.get(sampler.defaults.quality)
    with progress("drawing", turns) as advance:
        result = run_compare(sampler, policies, inputs, settings, measure, lambda policy: advance(note=policy))
    first = result.policies[0]
    titles = [f"{p.steps}: {p.seconds:.1f} s, {first.seconds / p.seconds:.1f}x" for p in result.policies]
    shown = {title: images[:SHOWN] for title, images in zip(titles, result.images, strict=True)}
    plot = steps_plot({policy.steps: policy.counts for policy in result.policies})
    report = result.report()
    pictures = {"compare.png": png(side_by_side(shown)), "steps.png": plot}
    write_together(out, {"compare.json": json_bytes(report)}, pictures)
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        _print_comparison(result, out)


def _print_comparison(result: Comparison, out: Path) -> None:
    table(result.title, result.headers, result.rows)
    for note in result.notes:
        line(note)
    cut = f" of the first {SHOWN} images" if len(result.inputs) > SHOWN else ""
    line(f"compare.png{cut}, steps.png and compare.json are in {out}")
