"""The command line: parse, call the library, print. Every command answers `--json`, and user mistakes exit with 2."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from disa import __version__
from disa.cli import terminal
from disa.cli.bulk import bulk
from disa.cli.calibration import calibrate
from disa.cli.drawing import describe, sample
from disa.cli.evaluating import evaluate
from disa.cli.evidence import evidence
from disa.cli.fitting import fit_probe
from disa.cli.measuring import bench, compare, demo
from disa.cli.options import flat
from disa.cli.serving import serve
from disa.cli.studio import studio
from disa.cli.tuning import tune
from disa.cli.weights import convert, presets, train
from disa.errors import DisaError
from disa.runtime import threads
from disa.stopping import INTERRUPTED, STOPPED, Stopped, stopped_by_sigterm
from disa.values import did_you_mean

MISTAKE = 2

app = typer.Typer(
    help="Diffusion step annealing: the same images from MAR and its kin in fewer denoising steps.",
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
)  # fmt: skip

# In the order of `disa --help`, each with its example.
COMMANDS = {
    sample: "disa sample --model mar-digits --labels 0-7 --seeds 0-7 --steps linear:50-5 --out out",
    describe: "disa describe photo.jpg --model harmon-0.5b --prompt 'What is on the table?'",
    bulk: "disa bulk --model mar-digits --labels 0-9 --per-label 100 --workers 2 --out run",
    serve: "disa serve --model mar-digits --steps linear:50-5",
    studio: "disa studio --model mar-digits",
    compare: "disa compare --steps constant:100 --steps linear:50-5 --seeds 0-99 --out out",
    evaluate: "disa evaluate out --against digits",
    demo: "disa demo --out demo",
    evidence: "disa evidence --model mar-digits --out out",
    calibrate: "disa calibrate --model mar-digits --budget 0.3 --out calibration",
    tune: "disa tune --model mar-digits --minutes 20 --out tuned",
    fit_probe: "disa fit-probe --model mar-digits --out probe.safetensors",
    bench: "disa bench --model mar-base --untrained --batch-size 1 --num-ar-steps 16",
    presets: "disa presets --json",
    convert: "disa convert checkpoint-last.pth --model mar-base --vae kl16.ckpt --out mar-base",
    train: "disa train mar-digits --out runs/mar-digits",
}
for command, example in COMMANDS.items():
    app.command(epilog=f"Example: {example}")(flat(command))


def _version(asked: bool) -> None:
    if asked:
        print(f"disa {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """A user's mistake is one line on standard error and exit code 2; Ctrl-C exits with 130, SIGTERM with 143."""
    threads.set_up()
    terminal.prepare()
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = lambda message, *_args, **_kwargs: terminal.say(f"warning: {message}")
    sys.exit(terminal.finish(_run()))


def _run() -> int:
    """Run the command that is asked for; returns the exit code."""
    try:
        with stopped_by_sigterm():
            code = app(standalone_mode=False) or 0
        if code == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code
    except DisaError as error:
        return _refused(str(error))
    except typer.TyperException as error:
        return _refused(_mistake(error))
    except OSError as error:
        if terminal.is_of_output(error):
            return terminal.unheard(error)
        where = "" if error.filename is None else f"{error.filename}: "
        return _refused(f"{where}{error.strerror or error}.")
    except Stopped as stopped:
        terminal.say(f"disa: {stopped}")
        return stopped.code
    except KeyboardInterrupt:
        terminal.say(f"disa: {STOPPED}")
        return INTERRUPTED


def _refused(why: str) -> int:
    # Without a command the help is printed instead, and nothing is left to say.
    if why:
        terminal.say(f"disa: {why}")
    return MISTAKE


def _mistake(error: Any) -> str:
    """What Typer has found, in our voice: in `error.ctx` is where, and in `error.option_name` which option."""
    said, context = error.format_message().replace("argument(s)", "arguments"), getattr(error, "ctx", None)
    if not said:
        return ""
    if hasattr(error, "possibilities") and context is not None:
        flags = [flag for each in context.command.params for flag in (*each.opts, *each.secondary_opts)]
        near = did_you_mean(error.option_name.lstrip("-"), [flag.lstrip("-") for flag in flags])
        said = f"no such option: {error.option_name}.{near.replace('mean ', 'mean --')}"
    commands = []
    while context is not None and context.parent is not None:
        commands.insert(0, context.info_name)
        context = context.parent
    end = "" if said[-1] in ".?" else "."
    return f"{said[0].lower()}{said[1:]}{end} See `{' '.join(['disa', *commands])} --help`."
