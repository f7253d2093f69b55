"""`disa compare`, `disa demo` and `disa bench`: what step policies cost, and what they keep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disa.cli.options import PROMPT_TOKENS, AsJSON, Asked, AskedInTurn, Drawing, Out, Policies, Solving, Source
from disa.cli.output import percent, print_json, progress, table
from disa.errors import DisaError

if TYPE_CHECKING:
    from disa.draw.sampler import Sampler, Settings
    from disa.draw.samples import Wanted

COMPARED, SHOWN = 100, 40


def compare(
    source: Source, steps: Policies = None, *, asked: AskedInTurn, drawing: Drawing,
    out: Out = Path("out"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """The same seeds under several step policies: time, evaluations, quality, a side-by-side grid and a plot.

    Labels or prompts are repeated until there are as many as seeds; these are 0-99, or more for more prompts, if
    --seeds does not say others. A model of scenes draws captions that its training held out if no prompt is given.
    """
    sampler, wanted = asked.load(source, COMPARED)
    policies = steps or [sampler.preset.defaults.original, sampler.preset.defaults.steps]
    _compare(sampler, policies, wanted, drawing.settings(sampler), out, as_json)


def demo(
    images: Annotated[int, typer.Option(min=20, help="Digits to draw under each policy.")] = 400,
    num_ar_steps: Annotated[int, typer.Option(help="AR steps, the same for every policy.")] = 16,
    out: Out = Path("demo"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Digits with the original 100 denoising steps, with DiSA, with a fifth of that, and with few steps first."""
    sampler = Source(device="cpu").load()
    policies = [sampler.preset.defaults.original, sampler.preset.defaults.steps, "linear:10-1", "linear:1-6"]
    wanted = Asked().read().repeated(images)
    _compare(sampler, policies, wanted, sampler.settings(num_ar_steps=num_ar_steps), out, as_json)


def bench(
    source: Source, steps: Policies = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; give it several times.")] = None,
    untrained: Annotated[bool, typer.Option(help="Random weights: speed without a checkpoint.")] = False,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help=f"Tokens of a prompt, where models take one; {PROMPT_TOKENS} by default.")
    ] = None,
    *, solving: Solving,
    repeats: Annotated[int, typer.Option(min=1, help="Measured repeats after one warm-up.")] = 5,
    as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Seconds per image of step policies and batch sizes: medians of interleaved repeats, decoding included."""
    import platform

    from disa.study.compare import bench as run_bench

    sampler = _to_bench(source, untrained, prompt_tokens)
    defaults = sampler.preset.defaults
    policies, sizes = steps or [defaults.original, defaults.steps], batch_size or [1, 8]
    settings = replace(solving.settings(sampler), rewrite=False)  # prompts of a fixed length have no words
    with progress("measuring", len(policies) * len(sizes) * (repeats + 1), as_json) as advance:
        timings = run_bench(sampler, policies, sizes, settings, repeats, advance)
    if as_json:
        import torch

        about = {
            "model": source.model, "untrained": untrained, "device": str(sampler.device), "dtype": source.dtype,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.processor(),
            "num_ar_steps": settings.num_ar_steps, "guidance": settings.guidance.scale, "repeats": repeats,
        }  # fmt: skip
        about |= {"prompt_tokens": prompt_tokens or PROMPT_TOKENS} if sampler.preset.prompts else {}
        print_json(about | {"timings": [vars(timing) for timing in timings]})
        return
    table(
        f"{source.model}, {settings.num_ar_steps} AR steps, {sampler.device}, {source.dtype}",
        ["steps", "batch", "s/image", "images/s", "head", "evaluations/row"],
        [[t.steps, str(t.batch_size), f"{t.seconds_per_image:.4f}", f"{t.images_per_second:.2f}",
          f"{t.share_head:.0%}", f"{t.evaluations_per_row:.1f}"] for t in timings],
    )  # fmt: skip


def _to_bench(source: Source, untrained: bool, prompt_tokens: int | None) -> Sampler:
    """The sampler, whose prompts are of a fixed length, so that no tokenizer is needed."""
    from disa.draw.sampler import Sampler
    from disa.models.harmon.text import FixedLength
    from disa.models.spec import Preset

    def check(preset: Preset) -> None:
        if prompt_tokens is not None and not preset.prompts:
            raise DisaError(f"{preset.name} draws from labels: leave --prompt-tokens out.")

    if source.tokenizer is not None:
        raise DisaError("bench draws from prompts of a fixed length: leave --tokenizer out.")
    text = FixedLength(prompt_tokens or PROMPT_TOKENS)
    if not untrained:
        return source.load(check, text)
    if source.checkpoint or source.vae:
        raise DisaError("--untrained takes random weights: leave --checkpoint and --vae out.")
    sampler = Sampler.untrained(source.model, device=source.device, dtype=source.dtype, tokenizer=text)
    check(sampler.preset)
    return sampler


def _compare(
    sampler: Sampler, policies: list[str], wanted: Wanted, settings: Settings, out: Path, as_json: bool
) -> None:
    from disa.draw.pictures import png, side_by_side, steps_plot
    from disa.files import make_folder, write_json, write_whole
    from disa.study.compare import check
    from disa.study.compare import compare as run_compare

    check(sampler, policies, settings=settings, **vars(wanted))
    make_folder(out)
    turns = len(policies) * settings.num_turns(len(wanted.seeds))
    with progress("drawing", turns, as_json) as advance:
        result = run_compare(
            sampler, policies, settings=settings, on_turn=lambda policy: advance(note=policy), **vars(wanted)
        )
    first = result.policies[0]
    titles = [f"{p.steps}: {p.seconds:.1f} s, {first.seconds / p.seconds:.1f}x" for p in result.policies]
    shown = {title: images[:SHOWN] for title, images in zip(titles, result.images, strict=True)}
    write_whole(out / "compare.png", lambda file: file.write(png(side_by_side(shown))))
    plot = steps_plot({policy.steps: policy.counts for policy in result.policies})
    write_whole(out / "steps.png", lambda file: file.write(plot))
    report = result.report()
    write_json(out / "compare.json", report)
    if as_json:
        print_json(report | {"out": str(out)})
    else:
        _print_comparison(result, out)


def _print_comparison(result: Any, out: Path) -> None:
    measure, about = result.measure, result.settings
    headers = ["steps", "seconds", "speedup", "evaluations/row", "head", *(measure.columns if measure else ())]
    rows = [
        [p.steps, f"{p.seconds:.2f}", f"{p.speedup:.2f}x", f"{p.evaluations_per_row:.1f}",
         percent(p.seconds_head, p.seconds), *(measure.cells(p.quality, p.difference) if measure else ())]
        for p in result.policies
    ]  # fmt: skip
    table(
        f"{about['model']}: {len(result.wanted.seeds)} images, {about['num_ar_steps']} AR steps, "
        f"guidance {about['guidance']:g}",
        headers, rows,
    )  # fmt: skip
    if measure:
        print(measure.note(result.policies[0].quality, result.yardsticks))
    elif result.unmeasured:
        print(f"quality is not measured: {result.unmeasured}.")
    print(f"compare.png, steps.png and compare.json are in {out}")
