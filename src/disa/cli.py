"""The command line: parse, call the library, print. Every command answers `--json`, and user mistakes exit with 2."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from disa.errors import DisaError

if TYPE_CHECKING:
    from disa.sampler import Run, Sampler, Settings

MOST_NUMBERS = 1_000_000
WIDEST_TABLE = 200
INTERRUPTED = 130

app = typer.Typer(
    help="Diffusion step annealing: the same images from MAR and its kin in fewer denoising steps.",
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
)  # fmt: skip

# -- options that several commands share ---------------------------------------------------------------------------

Model = Annotated[str, typer.Option(help="A preset (see `disa presets`), a folder that disa wrote, or a hub id.")]
Checkpoint = Annotated[
    Path | None, typer.Option(help="Weights for the preset: official .pth, .safetensors, or ours.")
]  # fmt: skip
Vae = Annotated[Path | None, typer.Option(help="The autoencoder: kl16.ckpt, its safetensors, or a diffusers folder.")]
Labels = Annotated[str | None, typer.Option(help="Classes: 3, 0-7 or 1,5,9; `none` for no class.")]
Seeds = Annotated[str, typer.Option(help="Seeds: 0, 0-7 or 1,5,9; paired with the labels, a single one is repeated.")]
Solver = Annotated[
    str | None,
    typer.Option(help="MAR: ddpm, ddim, dpm-solver. FlowAR, xAR: euler, heun, euler-maruyama. Both: dpm-solver++-2."),
]
Grid = Annotated[
    str | None,
    typer.Option(help="Time grid. MAR: clipped-950, full, ddim-980, dpm-950, uniform, logsnr. "
                      "FlowAR and xAR: flowar-split, xar-em, uniform, shifted-3."),
]  # fmt: skip
GuidanceScale = Annotated[float | None, typer.Option("--guidance", help="Classifier-free guidance; 1 is off.")]
Ramp = Annotated[str | None, typer.Option(help="Guidance over AR steps: linear or constant.")]
Interval = Annotated[
    str | None,
    typer.Option("--guidance-interval", help="Times where guidance acts, such as 0-0.9; 0 is data, 1 is noise."),
]  # fmt: skip
Temperature = Annotated[float | None, typer.Option(help="Scale of the noise that ddpm and euler-maruyama add.")]
NumARSteps = Annotated[
    int | None, typer.Option("--num-ar-steps", help="AR steps: MAR at most one per token; else fixed by the model.")
]
BatchSize = Annotated[int | None, typer.Option(help="Images drawn together. It changes speed, not images.")]
Device = Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")]
DType = Annotated[str, typer.Option(help="fp32 or bf16.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[Path, typer.Option(help="Folder for what is written.")]


# -- commands ------------------------------------------------------------------------------------------------------


@app.command(epilog="Example: disa sample --model mar-digits --labels 0-7 --seeds 0-7 --steps linear:50-5 --out out")
def sample(
    model: Model = "mar-digits", labels: Labels = "0-9", seeds: Seeds = "0",
    steps: Annotated[str | None, typer.Option(help="Step policy, such as linear:50-5 or constant:50.")] = None,
    checkpoint: Checkpoint = None, vae: Vae = None, solver: Solver = None, grid: Grid = None,
    guidance: GuidanceScale = None, ramp: Ramp = None, interval: Interval = None, temperature: Temperature = None,
    num_ar_steps: NumARSteps = None, batch_size: BatchSize = None, device: Device = None, dtype: DType = "fp32",
    keep: Annotated[Path | None, typer.Option(help="A picture whose tokens outside --box are kept.")] = None,
    box: Annotated[str | None, typer.Option(help="Tokens to draw with --keep: top,left,bottom,right.")] = None,
    out: Out = Path("out"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Draw images: a PNG each, named by seed and label, a grid, and a JSON trace of what was done."""
    from disa.files import make_folder, write_text, write_whole
    from disa.pictures import grid as image_grid
    from disa.pictures import png, to_image

    chosen_labels, chosen_seeds = parse_labels(labels), parse_numbers(seeds, "seeds")
    sampler = _load(model, checkpoint, vae, device, dtype)
    settings = sampler.settings(
        steps, solver, grid, guidance, ramp, temperature, num_ar_steps, batch_size, parse_interval(interval)
    )  # fmt: skip
    known, mask = _kept(sampler, keep, box)
    run = sampler.start(chosen_labels, chosen_seeds, settings, known, mask)
    sampler.prepare()
    make_folder(out)
    _drain(run, as_json)
    result = run.result()
    names = [
        f"seed{seed:06d}" + ("" if result.labels is None else f"_label{result.labels[i]:04d}") + ".png"
        for i, seed in enumerate(result.seeds)
    ]
    for name, image in zip(names, result.images, strict=True):
        write_whole(out / name, lambda file, image=image: file.write(png(to_image(image))))
    write_whole(out / "grid.png", lambda file: file.write(png(image_grid(result.images))))
    report = result.report() | {"files": names}
    write_text(out / "trace.json", json.dumps(report, indent=1) + "\n")
    if as_json:
        print(json.dumps(report | {"out": str(out)}))
        return
    print(
        f"{len(names)} images in {result.seconds:.2f} s ({result.evaluations} evaluations, "
        f"{result.evaluations_per_row:.1f} per row; head {_percent(result.seconds_head, result.seconds)}, "
        f"backbone {_percent(result.seconds_backbone, result.seconds)} of the time)"
    )
    print(f"pictures, grid.png and trace.json are in {out}")


Policies = Annotated[list[str] | None, typer.Option("--steps", help="A step policy; give it several times.")]


@app.command(epilog="Example: disa compare --steps constant:100 --steps linear:50-5 --seeds 0-99 --out out")
def compare(
    model: Model = "mar-digits", steps: Policies = None, labels: Labels = "0-9", seeds: Seeds = "0-99",
    checkpoint: Checkpoint = None, vae: Vae = None, solver: Solver = None, grid: Grid = None,
    guidance: GuidanceScale = None, ramp: Ramp = None, interval: Interval = None, temperature: Temperature = None,
    num_ar_steps: NumARSteps = None, batch_size: BatchSize = None, device: Device = None, dtype: DType = "fp32",
    out: Out = Path("out"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """The same seeds under several step policies: time, evaluations, quality, a side-by-side grid and a plot.

    Labels are repeated until there are as many as seeds.
    """
    chosen_labels, chosen_seeds = parse_labels(labels), parse_numbers(seeds, "seeds")
    sampler = _load(model, checkpoint, vae, device, dtype)
    policies = steps or [sampler.preset.original, sampler.preset.steps]
    settings = sampler.settings(
        None, solver, grid, guidance, ramp, temperature, num_ar_steps, batch_size, parse_interval(interval)
    )  # fmt: skip
    _compare(sampler, policies, _repeated(chosen_labels, len(chosen_seeds)), chosen_seeds, settings, out, as_json)


@app.command(epilog="Example: disa demo --out demo")
def demo(
    images: Annotated[int, typer.Option(min=20, help="Digits to draw under each policy.")] = 400,
    num_ar_steps: Annotated[int, typer.Option(help="AR steps, the same for every policy.")] = 16,
    out: Out = Path("demo"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Digits with the original 100 denoising steps, with DiSA, and with DiSA reversed: time, evaluations, quality."""
    sampler = _load("mar-digits", None, None, "cpu", "fp32")
    policies = [sampler.preset.original, sampler.preset.steps, "linear:5-50"]
    labels = _repeated(list(range(10)), images)
    _compare(sampler, policies, labels, list(range(images)), sampler.settings(num_ar_steps=num_ar_steps), out, as_json)


@app.command(epilog="Example: disa bench --model mar-base --untrained --batch-size 1 --num-ar-steps 16")
def bench(
    model: Model = "mar-digits", steps: Policies = None,
    batch_size: Annotated[list[int] | None, typer.Option(min=1, help="Batch size; give it several times.")] = None,
    untrained: Annotated[bool, typer.Option(help="Random weights: speed without a checkpoint.")] = False,
    checkpoint: Checkpoint = None, vae: Vae = None, solver: Solver = None, grid: Grid = None,
    guidance: GuidanceScale = None, num_ar_steps: NumARSteps = None,
    repeats: Annotated[int, typer.Option(min=1, help="Measured repeats after one warm-up.")] = 5,
    device: Device = None, dtype: DType = "fp32", as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Seconds per image of step policies and batch sizes: medians of interleaved repeats, decoding included."""
    import platform

    from disa.compare import bench as run_bench
    from disa.sampler import Sampler

    if untrained and (checkpoint or vae):
        raise DisaError("--untrained takes random weights: leave --checkpoint and --vae out.")
    loaded = Sampler.untrained(model, device=device, dtype=dtype) if untrained else None
    sampler = loaded or _load(model, checkpoint, vae, device, dtype)
    policies, sizes = steps or [sampler.preset.original, sampler.preset.steps], batch_size or [1, 8]
    settings = sampler.settings(None, solver, grid, guidance, num_ar_steps=num_ar_steps)
    with _progress("measuring", len(policies) * len(sizes) * (repeats + 1), as_json) as advance:
        timings = run_bench(sampler, policies, sizes, settings, repeats, advance)
    if as_json:
        import torch

        about = {
            "model": model, "untrained": untrained, "device": str(sampler.device), "dtype": dtype,
            "threads": torch.get_num_threads(), "torch": torch.__version__, "machine": platform.processor(),
            "num_ar_steps": settings.num_ar_steps, "guidance": settings.guidance.scale, "repeats": repeats,
        }  # fmt: skip
        print(json.dumps(about | {"timings": [vars(timing) for timing in timings]}))
        return
    _table(
        f"{model}, {settings.num_ar_steps} AR steps, {sampler.device}, {dtype}",
        ["steps", "batch", "s/image", "images/s", "head", "evaluations/row"],
        [[t.steps, str(t.batch_size), f"{t.seconds_per_image:.4f}", f"{t.images_per_second:.2f}",
          f"{t.share_head:.0%}", f"{t.evaluations_per_row:.1f}"] for t in timings],
    )  # fmt: skip


@app.command(epilog="Example: disa presets --json")
def presets(as_json: AsJSON = False) -> None:
    """The models by name, with their official settings, the paper's numbers and where weights come from."""
    from dataclasses import asdict

    from disa.presets import PRESETS

    if as_json:
        print(json.dumps({name: asdict(preset) for name, preset in PRESETS.items()}))
        return
    rows = [
        [name, p.about, str(p.num_ar_steps), p.original, p.steps, f"{p.guidance.scale:g}",
         "in the package" if p.embedded else p.weights.repo if p.weights else p.page]
        for name, p in PRESETS.items()
    ]  # fmt: skip
    _table("presets", ["name", "model", "K", "original", "DiSA", "guidance", "weights"], rows)
    print("K: AR steps. Upstream's download links, grids, solvers and the paper's numbers: see --json.")


@app.command(epilog="Example: disa convert checkpoint-last.pth --model mar-base --vae kl16.ckpt --out mar-base")
def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official .pth or .safetensors, or ours.")],
    model: Annotated[str, typer.Option(help="The preset whose architecture the weights have.")],
    vae: Vae = None,
    average: Annotated[bool, typer.Option(help="Take the moving average where the file has both.")] = True,
    official: Annotated[bool, typer.Option(help="Write official parameter names instead of ours.")] = False,
    out: Out = Path("converted"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Check weights and write them as a folder: model.safetensors, config.json and, with --vae, the autoencoder."""
    from disa.checkpoints import convert as run_convert

    files = run_convert(checkpoint, model, out, vae, average, official)
    if as_json:
        print(json.dumps({"out": str(out), "files": files}))
    else:
        print("\n".join(f"{name}  {size / 1e6:.1f} MB" for name, size in files.items()))
        if not official:
            print(f"load it with: disa sample --model {out}")


@app.command(epilog="Example: disa train mar-digits --out runs/mar-digits")
def train(
    model: Annotated[
        str, typer.Argument(help="mar-digits, flowar-digits, xar-digits, digits-vae or digits-classifier.")
    ] = "mar-digits",
    out: Out = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="The run is a function of it.")] = 0,
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    restart: Annotated[bool, typer.Option(help="Ignore an interrupted run in the folder.")] = False,
    as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Train an embedded model; a run that was interrupted continues. Writes weights, loss.png and training.json."""
    from dataclasses import replace

    from disa.tiny import train as training
    from disa.tiny.tasks import find_recipe

    if model == "digits-classifier":
        _train_classifier(out, seed, iterations, as_json)
        return
    recipe = find_recipe(model)
    recipe = replace(recipe, iterations=iterations) if iterations else recipe
    with _progress(f"training {model}", recipe.iterations, as_json) as advance:
        summary = training.train(
            model, out, seed, recipe, not restart,
            on_step=lambda done, total, loss: advance(completed=done, note=f"loss {loss:.4f}"),
        )  # fmt: skip
    _print_summary(summary, out, as_json)


# -- what the commands are made of ---------------------------------------------------------------------------------


def parse_numbers(text: str, what: str) -> list[int]:
    """`3`, `0-7` and `1,5,8-9` -> whole numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError as error:
            raise DisaError(f"{what} must be whole numbers like 3, 0-7 or 1,5,9; found {text!r}.") from error
        if not span:
            raise DisaError(f"{what} {part!r} is an empty range: write the smaller number first.")
        if span[-1] - span[0] >= MOST_NUMBERS:
            raise DisaError(f"{what} {part!r} is too long a range: draw at most {MOST_NUMBERS} at a time.")
        numbers += span
    return numbers


def parse_labels(text: str | None) -> list[int] | None:
    """As numbers; `none` for images without a class."""
    return None if text is None or text == "none" else parse_numbers(text, "labels")


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """`0-0.9` -> (0.0, 0.9)."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split("-"))
    except ValueError as error:
        raise DisaError(f"the guidance interval must be two times like 0-0.9, found {text!r}.") from error
    return low, high


def _repeated(labels: list[int] | None, count: int) -> list[int] | None:
    return labels and [labels[i % len(labels)] for i in range(count)]


def _load(model: str, checkpoint: Path | None, vae: Path | None, device: str | None, dtype: str) -> Sampler:
    from disa.sampler import Sampler

    return Sampler.load(model, checkpoint, vae, device, dtype)


def _kept(sampler: Sampler, keep: Path | None, box: str | None) -> tuple[Any, Any]:
    """Known latents and the mask of tokens to draw, from a picture and a box of tokens."""
    if keep is None and box is None:
        return None, None
    if keep is None or box is None:
        raise DisaError("--keep and --box go together: the picture, and the tokens of it to draw again.")
    from disa.editing import box_mask, read_picture

    try:
        edges = [int(edge) for edge in box.split(",")]
    except ValueError as error:
        raise DisaError(f"--box must be four whole numbers, top,left,bottom,right; found {box!r}.") from error
    return sampler.encode(read_picture(keep, sampler.image_shape)), box_mask(edges, sampler.token_grid)


def _drain(run: Run, quiet: bool) -> None:
    with _progress("drawing", run.num_turns, quiet) as advance:
        for _ in run:
            advance()


def _compare(
    sampler: Sampler, policies: list[str], labels: list[int] | None, seeds: list[int], settings: Settings,
    out: Path, as_json: bool,
) -> None:  # fmt: skip
    from disa.compare import check
    from disa.compare import compare as run_compare
    from disa.files import make_folder, write_text, write_whole
    from disa.pictures import png, side_by_side, steps_plot

    check(sampler, policies, labels, seeds, settings)
    make_folder(out)
    turns = len(policies) * settings.num_ar_steps * -(-len(seeds) // settings.batch_size)
    with _progress("drawing", turns, as_json) as advance:
        result = run_compare(sampler, policies, labels, seeds, settings, lambda policy: advance(note=policy))
    first = result.policies[0]
    titles = [f"{p.steps}: {p.seconds:.1f} s, {first.seconds / p.seconds:.1f}x" for p in result.policies]
    shown = {title: images[:40] for title, images in zip(titles, result.images, strict=True)}
    write_whole(out / "compare.png", lambda file: file.write(png(side_by_side(shown))))
    plot = steps_plot({policy.steps: policy.counts for policy in result.policies})
    write_whole(out / "steps.png", lambda file: file.write(plot))
    report = result.report()
    write_text(out / "compare.json", json.dumps(report, indent=1) + "\n")
    if as_json:
        print(json.dumps(report | {"out": str(out)}))
    else:
        _print_comparison(result, out)


def _print_comparison(result: Any, out: Path) -> None:
    measured = result.policies[0].quality is not None
    headers = ["steps", "seconds", "speedup", "evaluations/row", "head"]
    headers += ["Fréchet distance", "difference to the first", "labels read", "precision", "recall"] if measured else []
    rows = []
    for p in result.policies:
        row = [p.steps, f"{p.seconds:.2f}", f"{p.speedup:.2f}x", f"{p.evaluations_per_row:.1f}",
               _percent(p.seconds_head, p.seconds)]  # fmt: skip
        if measured:
            q, d = p.quality, p.difference
            gap = "" if d is None else f"{d}{' (none shown)' if 0 in d else ''}"
            read = "" if q.accuracy is None else f"{q.accuracy.value:.1%}"
            row += [str(q.frechet), gap, read, f"{q.precision:.3f}", f"{q.recall:.3f}"]
        rows.append(row)
    about = result.settings
    _table(
        f"{about['model']}: {len(result.seeds)} images, {about['num_ar_steps']} AR steps, "
        f"guidance {about['guidance']:g}",
        headers, rows,
    )  # fmt: skip
    if measured:
        real = result.yardsticks
        print(
            f"Fréchet distance on the features of {result.policies[0].quality.features}, 95 % bootstrap spread; "
            f"two halves of the real digits score {real.frechet:.2f} (std {real.frechet_std:.2f})."
        )
    print(f"compare.png, steps.png and compare.json are in {out}")


def _train_classifier(out: Path, seed: int, iterations: int | None, as_json: bool) -> None:
    from disa.files import make_folder
    from disa.tiny import classifier

    make_folder(out)
    total = iterations or classifier.ITERATIONS
    with _progress("training digits-classifier", total, as_json) as advance:
        accuracy = classifier.train_classifier(
            out / "digits-classifier.safetensors", seed, total,
            lambda done, total, loss: advance(completed=done, note=f"loss {loss:.4f}"),
        )  # fmt: skip
    _print_summary({"name": "digits-classifier", "held_out_accuracy": accuracy}, out, as_json)


def _print_summary(summary: dict[str, Any], out: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary | {"out": str(out)}))
        return
    _table(summary["name"], ["", ""], [[name.replace("_", " "), f"{value}"] for name, value in summary.items()])
    print(f"the results are in {out}")


# -- printing ------------------------------------------------------------------------------------------------------


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "-"


def _table(title: str, headers: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, header in enumerate(headers):
        table.add_column(header, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*row)
    # What is given is text, not markup; a file or a pipe has no width that rows must be cut to.
    width = None if sys.stdout.isatty() else WIDEST_TABLE
    Console(highlight=False, markup=False, emoji=False, width=width).print(table)


@contextlib.contextmanager
def _progress(title: str, total: int, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar on standard error; the function it gives advances it by one, or to `completed`."""
    if quiet or not sys.stderr.isatty():
        yield lambda **_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
               TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total, note="")

        def advance(completed: int | None = None, note: str = "") -> None:
            bar.update(task, completed=completed, advance=None if completed is not None else 1, note=note)

        yield advance


def main() -> None:
    """Entry point: a user's mistake is one line on standard error and exit code 2; Ctrl-C exits with 130."""
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = lambda message, *_args, **_kwargs: _say(f"warning: {message}")
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except DisaError as error:
        code = _say(f"disa: {error}", 2)
    except typer.TyperException as error:
        message = error.format_message().rstrip(".")
        # Without a command the help is printed instead, and nothing is left to say.
        code = _say(f"disa: {message}. See --help.", 2) if message else 2
    except BrokenPipeError:
        # Python flushes standard output again at its end; nobody listens, so it goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except OSError as error:
        code = _say(f"disa: {error}", 2)
    except KeyboardInterrupt:
        code = INTERRUPTED
    if code == INTERRUPTED:
        _say("disa: stopped; only whole files were written.")
    sys.exit(code)


def _say(text: str, code: int = 0) -> int:
    """One line on standard error, whatever a file or a library put into it."""
    print(" ".join(text.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
