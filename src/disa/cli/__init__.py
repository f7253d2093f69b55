"""The command line: parse, call the library, print. Every command answers `--json`, and user mistakes exit with 2."""

from __future__ import annotations

import os
import sys
import warnings

import typer

from disa.cli.calibration import calibrate
from disa.cli.drawing import describe, sample
from disa.cli.evidence import evidence
from disa.cli.fitting import fit_probe
from disa.cli.measuring import bench, compare, demo
from disa.cli.options import flat
from disa.cli.weights import convert, presets, train
from disa.errors import DisaError
from disa.runtime import threads
from disa.stopping import STOPPED, Stopped, stopped_by_sigterm

INTERRUPTED = 130

app = typer.Typer(
    help="Diffusion step annealing: the same images from MAR and its kin in fewer denoising steps.",
    no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False,
)  # fmt: skip

# In the order of `disa --help`, each with its example.
COMMANDS = {
    sample: "disa sample --model mar-digits --labels 0-7 --seeds 0-7 --steps linear:50-5 --out out",
    describe: "disa describe photo.jpg --model harmon-0.5b --prompt 'What is on the table?'",
    compare: "disa compare --steps constant:100 --steps linear:50-5 --seeds 0-99 --out out",
    demo: "disa demo --out demo",
    evidence: "disa evidence --model mar-digits --out out",
    calibrate: "disa calibrate --model mar-digits --budget 0.3 --out calibration",
    fit_probe: "disa fit-probe --model mar-digits --out probe.safetensors",
    bench: "disa bench --model mar-base --untrained --batch-size 1 --num-ar-steps 16",
    presets: "disa presets --json",
    convert: "disa convert checkpoint-last.pth --model mar-base --vae kl16.ckpt --out mar-base",
    train: "disa train mar-digits --out runs/mar-digits",
}
for command, example in COMMANDS.items():
    app.command(epilog=f"Example: {example}")(flat(command))


def main() -> None:
    """A user's mistake is one line on standard error and exit code 2; Ctrl-C exits with 130, SIGTERM with 143."""
    threads.set_up()
    warnings.simplefilter("once", UserWarning)
    warnings.showwarning = lambda message, *_args, **_kwargs: _say(f"warning: {message}")
    try:
        with stopped_by_sigterm():
            code = app(standalone_mode=False)
        if code == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
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
    except Stopped as stopped:
        code = _say(f"disa: {stopped}", stopped.code)
    except KeyboardInterrupt:
        code = _say(f"disa: {STOPPED}", INTERRUPTED)
    sys.exit(code)


def _say(text: str, code: int = 0) -> int:
    """One line on standard error, whatever a file or a library put into it."""
    print(" ".join(text.split()), file=sys.stderr)
    return code
