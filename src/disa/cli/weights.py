"""`disa presets`, `disa convert` and `disa train`: which models there are, and how their weights come about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from disa.cli.options import AsJSON, Out, Threads, Vae, WeightsKey, path_option
from disa.cli.output import print_json, print_summary, table
from disa.errors import DisaError
from disa.progress import progress

if TYPE_CHECKING:
    from disa.models.spec import Preset


def presets(as_json: AsJSON = False) -> None:
    """The models by name, with their official settings, the paper's numbers and where weights come from."""
    from dataclasses import asdict

    from disa.models.registry import PRESETS

    if as_json:
        print_json({name: asdict(preset) for name, preset in PRESETS.items()})
        return
    rows = [
        [name, preset.about, str(d.num_ar_steps), d.original, d.steps, f"{d.guidance:g}", _place_of_weights(preset)]
        for name, preset in PRESETS.items()
        for d in (preset.defaults,)
    ]
    table("presets", ["name", "model", "K", "original", "DiSA", "guidance", "weights"], rows)
    print("K: AR steps. Upstream's download links, grids, solvers and the paper's numbers: see --json.")


def _place_of_weights(preset: Preset) -> str:
    """Where weights are."""
    from disa.weights.package import ships

    if ships(preset.name):
        return "in the package"
    assets = preset.assets
    return assets.weights.repo if assets.weights else assets.page or ""


@dataclass(frozen=True)
class Entry:
    """Which weights of a file."""

    average: Annotated[bool, typer.Option(help="Take the moving average where the file has both.")] = True
    weights_key: WeightsKey = None


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="Official .pth or .safetensors, or ours.")],
    entry: Entry,
    model: Annotated[
        str | None, typer.Option(help="The preset whose architecture the weights have; a folder of disa's says it.")
    ] = None,
    values: Annotated[
        list[str] | None,
        typer.Option("--set", help="FIELD=VALUE of the architecture or the defaults where they differ from the "
                     "preset's, such as num_classes=7 or codec=null; give it several times."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the result is called; the preset's name by default.")] = None,
    vae: Vae = None,
    official: Annotated[bool, typer.Option(help="Write official parameter names instead of ours.")] = False,
    out: Out = Path("converted"), as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Check weights and write them as a folder: model.safetensors, config.json and, with --vae, the autoencoder."""
    from disa.weights.config import parse_values
    from disa.weights.convert import convert as run_convert
    from disa.weights.convert import next_steps

    files = run_convert(
        checkpoint, model, out, vae, entry.average, official, parse_values(values or []), name, entry.weights_key
    )
    if as_json:
        print_json({"out": str(out), "files": files})
    else:
        print("\n".join(f"{name}  {size / 1e6:.1f} MB" for name, size in files.items()))
        if not official:
            print(next_steps(out))


def train(
    model: Annotated[
        str,
        typer.Argument(help="mar-digits, flowar-digits, xar-digits, bitdance-digits, harmon-shapes, digits-vae, "
                            "digits-bits, shapes-vae or digits-classifier."),
    ] = "mar-digits",
    out: Out = Path("runs"),
    seed: Annotated[int, typer.Option(min=0, help="The run is a function of it.")] = 0,
    iterations: Annotated[int | None, typer.Option(min=1, help="Instead of the recipe's.")] = None,
    restart: Annotated[bool, typer.Option(help="Ignore a run in the folder, and replace it at the end.")] = False,
    vae: Annotated[
        Path | None, path_option("--vae", "The folder of an autoencoder that you trained, instead of the package's.")
    ] = None,
    threads: Threads = None,
    as_json: AsJSON = False,
) -> None:  # fmt: skip
    """Train an embedded model. Writes weights, loss.png and training.json.

    Ctrl-C saves the run, and the same command goes on with it; a folder with a run of other options is refused.
    """
    from dataclasses import replace

    from disa.runtime import threads as computing
    from disa.tiny import train as training
    from disa.tiny.tasks import find_recipe

    computing.use(threads)
    if model == "digits-classifier" and vae is not None:
        raise DisaError("digits-classifier reads images: leave --vae out.")
    if model == "digits-classifier":
        _train_classifier(out, seed, iterations, not restart, as_json)
        return
    recipe = find_recipe(model)
    recipe = replace(recipe, iterations=iterations) if iterations else recipe
    with progress(f"training {model}", recipe.iterations) as advance:
        summary = training.train(
            model, out, seed, recipe, not restart,
            on_step=lambda done, total, loss: advance(completed=done, note=f"loss {loss:.4f}"), vae=vae,
        )  # fmt: skip
    print_summary(summary, out, as_json)


def _train_classifier(out: Path, seed: int, iterations: int | None, resume: bool, as_json: bool) -> None:
    from disa.files import make_folder
    from disa.tiny import classifier

    make_folder(out)
    total = iterations or classifier.ITERATIONS
    with progress("training digits-classifier", total) as advance:
        accuracy = classifier.train_classifier(
            out / "digits-classifier.safetensors", seed, total,
            lambda done, total, loss: advance(completed=done, note=f"loss {loss:.4f}"), resume,
        )  # fmt: skip
    print_summary({"name": "digits-classifier", "held_out_accuracy": accuracy}, out, as_json)
