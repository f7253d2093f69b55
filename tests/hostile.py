"""Bad and odd inputs, by the hundred: `python tests/hostile.py` tries each and counts what became of it.

Each input is tried in a process of its own, forked from one that has everything loaded, and must end in one of two
ways: it is used, or it is refused with one line. Which of them is meant stands beside it; where either would do it is
OPEN. What ends in a traceback or a bare Python error, takes over 5 s or 1 GB, or goes the other way, is printed, and
the exit code is 1. `python tests/hostile.py WORD` tries those whose text holds the word and prints each.
"""

# ruff: noqa: E501, RUF001
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DISA_CACHE"] = str(Path(tempfile.gettempdir()) / f"disa-hostile-{os.getpid()}")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors.torch import save, save_file

import disa
import planned
from disa.cli import app
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.evaluate import evaluation, geneval, paired  # noqa: F401
from disa.study import bench, calibrate, compare, evidence, fit, planning, scores  # noqa: F401  all that a command imports is loaded

USE, REFUSE, OPEN = "used", "refused", "open"
MOST_SECONDS, MOST_BYTES = 5.0, 1 << 30
QUICK = ("--steps", "constant:1", "--num-ar-steps", "1")


@dataclass(frozen=True)
class Case:
    """One input, what it is meant to come to, and how it is tried."""

    text: str
    meant: str
    call: Callable[[], object]


def command(*arguments: str, meant: str = REFUSE) -> Case:
    """A command line."""
    text = " ".join(
        argument if len(argument) < 60 else f"{argument[:40]}...({len(argument)})" for argument in arguments
    )
    return Case(f"disa {text}", meant, lambda: app(list(arguments), standalone_mode=False))


def sample(*arguments: str, meant: str = REFUSE, model: str = "mar-digits") -> Case:
    """`disa sample`, quickly where the case itself does not say how."""
    quick = [word for i in (0, 2) if QUICK[i] not in arguments for word in QUICK[i : i + 2]]
    quick += [] if "--out" in arguments else ["--out", "out", "--replace"]
    given = [] if "--model" in arguments else ["--model", model]
    return command("sample", *arguments, *given, *quick, meant=meant)


# -- the command line ----------------------------------------------------------------------------------------------

NO_NUMBERS = (
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "abc",
    "１２",
    "1_0",
    "0x10",
    "1,2",
    "1;2",
    "\U0001f4a5",
    "9" * 5000,
)
NO_COUNTS = (*NO_NUMBERS, "0", "-1", "1.5", "99999999999999999999")
NO_POLICIES = (
    "", " ", ":", "constant", "constant:", "constant:0", "constant:-1", "constant:1.5", "constant:1-2", "linear:50",
    "linear:50-", "linear:-5", "linear:50-5-2", "linear:0-0", "linear:5-0", "50-5", "Linear:50-5", "linear:50–5",
    "linear 50-5", "linaer:50-5", "cosine:a-b", "two_stage:5-2", "table:", "table:absent.json", "table:.",
    "linear:1000000000-1", "constant:99999999999999999999", "constant:1001", "mlp:5", "mlp:5-50", "mlp:0-0@1",
    "mlp:50-5@", "mlp:50-5@nan", "mlp:50-5@-1", "mlp:50-5@1e9", "mlp:50-5@1", "mlp:absent.safetensors", "variance:none",
    "straight:", "straight@", "straight:2-1", "straight:pl-good.json@3", "straight:absent.json@3", "mlp:1000000000-1@5", "__import__('os')", "linear:50-5;rm", "\udcff", "linear:５０-５", "x" * 100_000,
    "plan:", "plan@", "plan:@", "plan@nan", "plan@-1", "plan@1e9", "plan@" + "9" * 5000, "plan:absent.json@8", "plan:.@3",
    "plan:/dev/zero@3", "plan:fifo", "plan:t-list.json@3", "plan:good.png", "Plan@8", "plan:pl-good.json@1e9", "plan:pl-good.json@0",
)  # fmt: skip
NO_SOLVERS = (
    "", "DDPM", "ddmp", "euler", "heun", "ddpm@", "ddpm@none", "ddpm:eta=1", "ddim:eta=nan", "ddim:eta=-1", "ddim:eta",
    "ddim:eta=", "ddim:=1", "ddim:eta=1,eta=2", "ddim@uniform:", "ddim::", "dpm-solver++-9", "dpm-solver-3", "ddpm@shifted-3", "@uniform",
    "ddpm@uniform@uniform", "ddpm:temperature=-1", "ddpm:temperature=inf", "x" * 100_000,
    "plan:", "plan:absent.json", "plan:fifo", "plan:t-list.json", "plan:pl-good.json@3", "plan@3", "plan:pl-good.json:eta=1",
)  # fmt: skip
NO_LISTS = (
    "",
    " ",
    ",",
    "1,",
    "-1",
    "3-",
    "-",
    "7-0",
    "1-2-3",
    "a",
    "1.5",
    "0-99999999999",
    "1e3",
    "0x1",
    "１",
    "1 2",
    "[1]",
)
NO_NAMES = (
    "", " ", ".", "..", "/", "mar-digit", "MAR-DIGITS", "mar_digits", "mar/digits", "a/b/c", "absent", "absent/absent",
    "nowhere/at-all", "~/absent", "mar-digits\n", "x" * 300, "x" * 100_000, "good.safetensors", "/dev/null", "/etc/passwd",
    "prompts.txt", "http://example.org/x", "https://huggingface.co/a/b", "hf://a/b", "a b/c", "\udcff", "a\tb", "-x",
)  # fmt: skip


def options() -> Iterator[Case]:
    """Every option of drawing."""
    for text in NO_POLICIES:
        yield sample("--steps", text)
    for text in NO_SOLVERS:
        yield sample("--solver", text)
    for text in ("", "none", "Uniform", "shifted-3", "shifted-", "flowar-split", "clipped", "uniform:1", "\0x"[1:]):
        yield sample("--grid", text)
    for option in ("--num-ar-steps", "--batch-size", "--per-label", "--height", "--width", "--threads"):
        for text in NO_COUNTS:
            # Typer reads some options, and takes 1_0 as Python does; a batch larger than all images is all of them.
            yield sample(option, text, meant=OPEN if text in ("1_0", "9" * 20) else REFUSE)
    for option in ("--temperature", "--eta", "--guidance"):
        for text in NO_NUMBERS:
            yield sample(option, text)
    for text in ("-1", "-0.5"):
        yield sample("--temperature", text)
    for text in ("1e30", "1e38", "-1e30"):
        yield sample("--guidance", text, meant=OPEN)
    for option in ("--guidance-interval", "--guidance-progress"):
        for text in ("", "1", "0-", "-1", "1-0", "0-2", "a-b", "0-0.5-1", "nan-1", "0,1", "0..1"):
            yield sample(option, text)
    for text in (
        "",
        "32",
        "32x",
        "x32",
        "0x0",
        "-32x32",
        "33x32",
        "1000000x1000000",
        "32x32x32",
        "32*32",
        "axb",
        "1.5x2",
    ):
        yield sample("--size", text)
    for text in ("", "Linear", "cosine", "none"):
        yield sample("--ramp", text)
    for option in ("--labels", "--seeds"):
        for text in NO_LISTS:
            yield sample(option, text)
    for text in ("10", "999", "0-10", "18446744073709551616", "None", "null"):
        yield sample("--labels", text)
    for text in ("18446744073709551616", "0-1000000", "none"):
        yield sample("--seeds", text)
    yield sample("--labels", "0,1", "--seeds", "0-2")
    for text in ("cpu:99", "gpu", "cuda", "cuda:3", "meta", "", "tpu", "CPU ", "-1", "vulkan"):
        yield sample("--device", text)
    for text in ("fp16", "", "int8", "FP32", "bf-16"):
        yield sample("--dtype", text)
    for text in ("", "file", "file/below", "/dev/null", "/proc/x", "x" * 300, "deep/" * 1000, "\udcff" * 300):
        yield sample("--out", text)
    for given in (
        ("--prompt", "a cat"), ("--prompts", "prompts.txt"), ("--negative-prompt", "x"), ("--per-prompt", "2"),
        ("--rewrite",), ("--tokenizer", "nowhere"), ("--geneval",), ("--box", "0,0,1,1"), ("--keep", "good.png"),
        ("--resume", "--replace"), ("--eta", "1"), ("--solver", "ddim", "--temperature", "0.9"), ("--nothing",),
        ("--per-label", "1000000000"), ("extra",), ("--labels",), ("--labels", "3", "--per-label", "2", "--seeds", "0-4"),
    ):  # fmt: skip
        yield sample(*given)
    for text in ("", "0", "0,0,1", "1,1,0,0", "0,0,99,99", "-1,0,2,2", "a,b,c,d", "0,0,1,1,1", "0.5,0,1,1"):
        yield sample("--keep", "good.png", "--box", text)
    for given in ((), ("nothing",), ("sampel",), ("sample", "--help-me"), ("train", "nothing"), ("convert",),
                  ("convert", "absent"), ("presets", "extra"), ("compare", "--steps", ""), ("evidence", "--draws", "0"),
                  ("describe",), ("bench", "--repeats", "0"), ("demo", "--images", "1")):  # fmt: skip
        yield command(*given)


def words() -> Iterator[Case]:
    """Prompts, and files of them."""
    for text in ("", "  ", "\n", "\udcff", "red " * 2000):
        yield sample("--prompt", text, model="harmon-shapes")
    for text in (
        "a red circle",
        "A RED CIRCLE!",
        "a red circle, above a blue square",
        "\U0001f431",
        "{} %s {0}",
        "\x07",
    ):
        yield sample("--prompt", text, model="harmon-shapes", meant=OPEN)
    for text in ("1000000000", "0", "-1", "x"):
        yield sample("--prompt", "a red circle", "--per-prompt", text, model="harmon-shapes")
    yield sample("--labels", "3", model="harmon-shapes")
    yield sample(model="harmon-shapes")
    for name, meant in {
        "prompts.txt": USE, "prompts-bom.txt": USE, "prompts-crlf.jsonl": USE, "prompts-u2028.jsonl": USE,
        "prompts-utf16.txt": USE, "prompts.tsv": USE, "prompts.json": USE, "empty": REFUSE, "blank.txt": REFUSE,
        "prompts-number.json": REFUSE, "prompts-nested.json": REFUSE, "prompts-broken.jsonl": REFUSE, "folder": REFUSE,
        "noise.bin": REFUSE, "good.png": REFUSE, "fifo": REFUSE, "/dev/zero": REFUSE, "absent": REFUSE, "deep.json": REFUSE,
        "nul.txt": REFUSE, "good.safetensors": REFUSE, "surrogate.json": REFUSE, "prompts-empty-one.json": REFUSE,
    }.items():  # fmt: skip
        yield sample("--prompts", name, model="harmon-shapes", meant=meant)


def names() -> Iterator[Case]:
    """Models by name, files of weights, tables, probes and folders."""
    for text in NO_NAMES:
        yield sample("--model", text)
    for name, meant in {
        "good.safetensors": USE, "GOOD.SAFETENSORS": USE, "good.pth": USE, "good-legacy.pth": USE, "good-ema.pth": USE,
        "good-module.pth": USE, "good-numpy.pth": USE, "safetensors.pth": USE, "pth.safetensors": USE, "noname": USE,
        "good-container.pth": USE, "good-path.pth": USE, "code.pth": REFUSE, "cut.pth": REFUSE, "cut.safetensors": REFUSE,
        "lfs.safetensors": REFUSE, "page.pth": REFUSE, "empty": REFUSE, "noise.bin": REFUSE, "folder": REFUSE,
        "fifo": REFUSE, "/dev/zero": REFUSE, "/dev/null": REFUSE, "absent.pth": REFUSE, "": REFUSE, "lie.safetensors": REFUSE,
        "huge-header.safetensors": REFUSE, "deep.safetensors": REFUSE, "none.safetensors": REFUSE, "nan.safetensors": REFUSE,
        "ints.safetensors": REFUSE, "other.safetensors": REFUSE, "list.pth": REFUSE, "number.pth": REFUSE, "zip.pth": REFUSE,
        "good.png": REFUSE, "prompts.txt": REFUSE, "names.safetensors": REFUSE, "two.pth": REFUSE,
    }.items():  # fmt: skip
        yield sample("--checkpoint", name, meant=meant)
        if meant is REFUSE:
            yield command("convert", name, "--model", "mar-digits", "--out", "converted")
    for name in (
        "good.safetensors",
        "empty",
        "noise.bin",
        "folder",
        "fifo",
        "absent",
        "",
        "good.png",
        "lfs.safetensors",
    ):
        yield sample("--vae", name)
        yield sample("--prompt", "a red circle", "--tokenizer", name, model="harmon-shapes")
        yield command("convert", name, "--out", "converted")
    for name in sorted(TABLES):
        yield sample("--steps", f"table:{name}", meant=TABLES[name][1])
    for name, (_, meant) in sorted(PLANS.items()):
        yield sample("--steps", f"plan:{name}@2.5", meant=meant)
        yield sample("--steps", "constant:1", "--solver", f"plan:{name}", meant=meant)
    for given in (
        ("--solver", "ddim"),
        ("--grid", "uniform"),
        ("--eta", "1"),
        ("--temperature", "1"),
        ("--solver", "plan:x"),
    ):
        yield sample("--steps", "plan:pl-good.json@3", *given)
    for budget, meant in (("@2.5", USE), ("", USE), ("@nan", REFUSE), ("@1e9", REFUSE), ("@0", REFUSE)):
        yield sample("--steps", f"straight:pl-looks.json{budget}", meant=meant)
    yield sample("--steps", "plan@2", meant=OPEN)  # a model may ship one
    for name in sorted(PROBES):
        yield sample("--steps", f"mlp:{name}")
    for name in sorted(CONFIGS):
        yield sample("--model", f"models/{name}")
    for text in ("encoder_depth=1000000000", "encoder_heads=7", "num_classes=0", "num_classes=many", "nothing=1", "", "=",
                 "codec=1", "solver=ddmp", "name=x", "latent_size=1", "latent_size=[1,2,3]", "encoder_width=1e9",
                 "head_width=16777217", "guidance=NaN", "steps=table:x", "num_classes=[[[[", "encoder_width"):  # fmt: skip
        yield command("convert", "good.safetensors", "--model", "mar-digits", "--set", text, "--out", "converted")


def pictures() -> Iterator[Case]:
    """Pictures to describe and to keep."""
    words = ("--model", "harmon-shapes", "--max-tokens", "2")
    for name, meant in {
        "good.png": USE, "grey16.png": USE, "alpha.png": USE, "palette.gif": USE, "phone.jpg": USE, "long.png": USE,
        "float.tif": USE, "one.png": USE, "cmyk.jpg": USE, "wide-flat.png": OPEN, "bomb.png": REFUSE, "cut.png": REFUSE,
        "empty": REFUSE, "noise.bin": REFUSE, "folder": REFUSE, "fifo": REFUSE, "/dev/zero": REFUSE, "absent.png": REFUSE,
        "prompts.txt": REFUSE, "picture.svg": REFUSE, "nan.tif": REFUSE, "good.safetensors": REFUSE, "": REFUSE,
    }.items():  # fmt: skip
        yield command("describe", name, *words, meant=meant)
        yield sample("--keep", name, "--box", "0,0,4,4", meant=meant)
    for option in ("--seed", "--max-tokens", "--batch-size"):
        for text in ("-1", "0" if option != "--seed" else "-2", "x", "1.5", ""):
            yield command("describe", "good.png", "--model", "harmon-shapes", option, text)
    for option, text in (("--temperature", "0"), ("--temperature", "nan"), ("--temperature", "-1"), ("--prompt", " "),
                         ("--repetition-penalty", "0"), ("--repetition-penalty", "nan"), ("--model", "mar-digits"),
                         ("--temperature", "inf")):  # fmt: skip
        yield command("describe", "good.png", "--model", "harmon-shapes", option, text)


def studies() -> Iterator[Case]:
    """Budgets and sizes of what measures."""
    for text in ("", "0", "-1", "nan", "inf", "1e9", "1e400", "abc", "0.0001", "linear:50", "50%", "1,5", "mlq"):
        for more in (("--seeds", "0-3"), ("--seeds", "0", "--counts-only")):
            yield command("calibrate", "--budget", text, "--num-ar-steps", "1", *more, "--out", "calibrated")
    counts = ("calibrate", "--counts-only", "--budget", "0.3", "--num-ar-steps", "1", "--seeds", "0")
    for text in ("0", "-1", "1", "1000000000", "x"):
        yield command(*counts, "--reference", text)
    for given in (("--most", "1"), ("--most", "65"), ("--most", "x"), ("--seeds", "0-2"), ("--out", "file"),
                  ("--steps", "plan:absent.json"), ("--out", "measured")):  # fmt: skip
        yield command("calibrate", "--num-ar-steps", "1", "--seeds", "0-3", *given)
    for given in (("--draws", "-1"), ("--draw-steps", "0"), ("--path-steps", "0"), ("--path-steps", "1000000000"),
                  ("--varied", "-1"), ("--fit-images", "-1")):  # fmt: skip
        yield command("evidence", *given, "--seeds", "0", "--out", "evidence")
    for given in (("--out", "folder"), ("--seed", "-1"), ("--seeds", "")):
        yield command("fit-probe", *given)
    for given in (
        ("--iterations", "0"),
        ("--iterations", "-1"),
        ("--seed", "-1"),
        ("--out", "file"),
        ("--vae", "absent"),
    ):
        yield command("train", "mar-digits", *given)


def evaluations() -> Iterator[Case]:
    """Sets of images, references and results."""
    quick = ("--device", "cpu", "--resamples", "20")
    for name, meant in (IMAGES | STRANGE_IMAGES).items():
        yield command("evaluate", name, "--against", "i-folder", *quick, meant=meant)
        yield command("evaluate", "i-digits.npz", "--against", name, *quick, meant=meant)
    for name, meant in STATISTICS.items():
        yield command("evaluate", "i-digits.npz", "--against", name, *quick, meant=meant)
    for name, (_, meant) in RESULTS.items():
        yield command("evaluate", name, meant=meant)
    for given in (("--features", "inception"), ("--features", ""), ("--features", "inception:absent"), ("--paired",),
                  ("--features", "dinov2:i-stray"), ("--features", "inception:i-digits.npz"), ("--resamples", "19"),
                  ("--resamples", "x"), ("--out", "folder"), ("--statistics", "folder"), ("--device", "gpu"),
                  ("--against", ""), ("--against", "i-digits.npz", "--paired")):  # fmt: skip
        yield command("evaluate", "i-digits.npz", *given)
    yield command("evaluate", "i-digits.npz", "i-digits.npz", "--paired")
    yield command("evaluate", "r-good.jsonl", "--against", "digits")


# -- the library ---------------------------------------------------------------------------------------------------


def calls() -> Iterator[Case]:
    """Documented calls of the library."""
    mar, harmon = LOADED["mar-digits"], LOADED["harmon-shapes"]
    quick: dict[str, Any] = {"steps": "constant:1", "num_ar_steps": 1}

    def case(text: str, meant: str, call: Callable[[], object]) -> Case:
        return Case(text, meant, call)

    def draws(meant: str, *arguments: Any, **given: Any) -> Case:
        text = ", ".join([*(f"{value!r:.40}" for value in arguments), *(f"{k}={v!r:.40}" for k, v in given.items())])
        return case(f"sample({text})", meant, lambda: mar.sample(*arguments, **(quick | given)))

    for labels in (3, "3", 3.0, [3, 5], (3,), range(2), np.array([3]), torch.tensor([3.0]), None, iter([3])):
        yield draws(USE, labels, 0)
    for labels in (
        "cat",
        3.5,
        [3.5],
        [[3]],
        {3: 1},
        {3},
        -1,
        10,
        10**30,
        True,
        b"3",
        float("nan"),
        object(),
        "",
        [None],
    ):
        yield draws(REFUSE, labels, 0)
    for seeds in (0, [0], np.arange(1), 2**64 - 1, "0", None):
        yield draws(USE, 3, seeds)
    for seeds in (-1, 2**64, [], "x", 1.5, [True], {}, float("inf")):
        yield draws(REFUSE, 3, seeds)
    for steps in (1, [1], (1,), np.int64(1), np.array([1]), "constant:1", disa.constant(1), lambda problem: 1):
        yield draws(USE, 3, 0, steps=steps)
    for steps in (0, -1, 1.5, [], [0], [1.5], "5-", {}, object(), [None], [[1]], float("nan"), True, 10**30, b"1",
                  lambda problem: None, lambda problem: 0, lambda problem: "many", lambda problem: 10**30):  # fmt: skip
        yield draws(REFUSE, 3, 0, steps=steps)
    for name, good, bad in (
        ("guidance", (2, "2", 1.5, np.float32(2)), ("x", [1, 2], float("nan"), {}, True, object())),
        ("num_ar_steps", (1, "1", 1.0, np.int8(1)), (0, -1, 1.5, 65, 10**9, "x", [1], True)),
        ("batch_size", (1, "2", 2.0), (0, -1, 0.5, "x", [1], float("inf"))),
        ("temperature", (1, "0.9", 0), (-1, float("nan"), "hot", [1])),
        ("interval", ((0, 1), [0.0, 0.5], "0-0.9"), (1, (1, 0), (0, 1, 2), ("a", "b"), (float("nan"), 1), "x")),
        ("progress", ((0, 1), "0-0.9"), (1, (0.5, 0.1), "x")),
        ("size", ((32, 32), "32x32", [64, 32]), (32, (33, 32), (0, 0), "x", (10**6, 10**6), (1.5, 2))),
        ("height", (32, "64"), (0, 33, "x")),
        ("ramp", ("constant",), ("x", 1, "")),
        ("rewrite", (False,), (True, "yes", 2)),
        ("solver", ("ddim", "ddpm"), ("x", 1, "euler", "")),
        ("grid", ("uniform",), ("x", 1, "shifted-3")),
        ("output_type", ("np", "pil", "latent"), ("x", None, 1)),
        ("settings", (None,), ("x", 1, {})),
        ("inputs", (), ("x", 1)),
    ):
        for value in good:
            yield draws(USE, 3, 0, **{name: value})
        for value in bad:
            yield draws(REFUSE, 3, 0, **{name: value})
    yield draws(REFUSE, 3, 0, gudance=2)
    yield draws(REFUSE, 3, prompts="a")
    latents, mask = mar.encode(torch.rand(1, 1, 32, 32)), torch.ones(1, 8, 8, dtype=torch.bool)
    for known, drawn, meant in (
        (latents, mask, USE), (latents.numpy(), mask.numpy(), OPEN), (latents, mask.float(), OPEN), (latents, None, REFUSE),
        (None, mask, REFUSE), (latents, mask & False, REFUSE), (latents * float("nan"), mask, REFUSE),
        (latents[:, :3], mask, REFUSE), (latents, torch.ones(1, 32, 32), REFUSE), (latents[0], mask, OPEN), (1, 1, REFUSE),
        (latents, mask * float("nan"), REFUSE), ("x", "x", REFUSE), (latents.repeat(3, 1, 1, 1), mask, REFUSE),
    ):  # fmt: skip
        yield draws(meant, 3, 0, known=known, mask=drawn)
    image = torch.rand(1, 3, 48, 48)
    for what, images, meant in (
        ("floats", image, USE), ("bytes", (image * 255).byte(), USE), ("doubles", image.double(), USE),
        ("halves", image.half(), USE), ("no batch", image[0], OPEN), ("an array", image.numpy(), OPEN),
        ("0 to 255", image * 255, REFUSE), ("-1 to 1", image * 2 - 1, REFUSE), ("NaN", image * float("nan"), REFUSE),
        ("one channel", image[:, :1], OPEN), ("four channels", image[:, [0, 1, 2, 0]], OPEN), ("a row", image[0, 0], OPEN),
        ("none", image[:0], REFUSE), ("a list", [[1]], REFUSE), ("a path", "good.png", OPEN), ("ints", image.long(), OPEN),
        ("an odd size", image[..., :47], REFUSE), ("infinity", image / 0, REFUSE), ("nothing", None, REFUSE),
    ):  # fmt: skip
        yield case(f"describe({what})", meant, lambda images=images: harmon.describe(images, max_tokens=1))
        yield case(f"encode({what})", meant, lambda images=images: harmon.encode(images))
    for text, meant in (("", REFUSE), (" ", REFUSE), ("a\ud83d", REFUSE), ("\0", REFUSE), (3, REFUSE), (None, REFUSE),
                        (["a red circle"] * 2, REFUSE), (("a red circle",), USE), ("a red circle", USE)):  # fmt: skip
        given: Any = {"prompts": text, "seeds": [0], **quick, "rewrite": False}
        if isinstance(text, list):
            given["seeds"] = [0, 1, 2]
        yield case(f"sample(prompts={text!r})", meant, lambda given=given: harmon.sample(**given))
    for negative, meant in (("a star", USE), (["x", "y"], REFUSE), (3, REFUSE), ("\ud83d", REFUSE)):
        given = {"prompts": "a red circle", "seeds": 0, **quick, "rewrite": False, "negative_prompt": negative}
        yield case(f"sample(negative_prompt={negative!r})", meant, lambda given=given: harmon.sample(**given))
    for name in ("absent", "", None, 3, b"mar-digits", "a/b/c", Path("absent"), ["mar-digits"], "x" * 10_000, "a\0b"):
        yield case(f"Sampler.load({name!r:.40})", REFUSE, lambda name=name: Sampler.load(name))
    for name, values in {"device": ("gpu", "cuda:9", 99, "", [], "meta"), "dtype": ("fp16", torch.float16, 32, None, ""),
                         "checkpoint": ("absent", "", 3, b"x", "a\0b"), "vae": ("absent", 3),
                         "tokenizer": ("absent", 3)}.items():  # fmt: skip
        for value in values:
            yield case(
                f"Sampler.load({name}={value!r})", REFUSE, lambda n=name, v=value: Sampler.load("mar-digits", **{n: v})
            )
    for text, call, meant in (
        ("linear(50, 5).at(8, 8)", lambda: disa.linear(50, 5).at(8, 8), REFUSE),
        ("linear(50, 5).at(-1, 8)", lambda: disa.linear(50, 5).at(-1, 8), REFUSE),
        ("linear(50, 5).at(0, 0)", lambda: disa.linear(50, 5).at(0, 0), REFUSE),
        ("linear(50, 5).at('0', 8)", lambda: disa.linear(50, 5).at("0", 8), OPEN),
        ("linear('a', 5)", lambda: disa.linear("a", 5), REFUSE),
        ("linear(50.5, 5)", lambda: disa.linear(50.5, 5), REFUSE),
        ("linear(None, 5)", lambda: disa.linear(None, 5), REFUSE),
        ("constant([1])", lambda: disa.constant([1]), REFUSE),
        ("constant(10**30)", lambda: disa.constant(10**30), REFUSE),
        ("table('absent')", lambda: disa.table("absent"), REFUSE),
        ("table(None)", lambda: disa.table(None), REFUSE),
        ("table([1, 2])", lambda: disa.table([1, 2]), REFUSE),
        ("parse(None)", lambda: disa.parse(None), REFUSE),
        ("parse(5)", lambda: disa.parse(5), OPEN),
        ("Inputs([])", lambda: Inputs([]), REFUSE),
        ("Inputs([0], labels=[1, 2])", lambda: Inputs([0], labels=[1, 2]), REFUSE),
        ("Inputs.each(0)", lambda: Inputs.each(0, labels=[1]), REFUSE),
        ("Inputs.each(10**12)", lambda: Inputs.each(10**12, labels=[1]), REFUSE),
        ("Inputs.each('x')", lambda: Inputs.each("x", labels=[1]), REFUSE),
        ("Inputs.part([9])", lambda: Inputs([0]).part([9]), REFUSE),
        ("save('')", lambda: mar.sample(3, 0, **quick).save(""), REFUSE),
        ("save('file')", lambda: mar.sample(3, 0, **quick).save("file"), REFUSE),
        ("save(None)", lambda: mar.sample(3, 0, **quick).save(None), REFUSE),
        ("save(latents)", lambda: mar.sample(3, 0, output_type="latent", **quick).save("latents"), REFUSE),
        ("save(if_used='x')", lambda: mar.sample(3, 0, **quick).save("new", if_used="x"), REFUSE),
        ("save_pretrained('file')", lambda: mar.save_pretrained("file"), REFUSE),
        ("save_pretrained('')", lambda: mar.save_pretrained(""), REFUSE),
        ("decode(images)", lambda: mar.decode(torch.rand(1, 1, 32, 32)), REFUSE),
        ("decode('x')", lambda: mar.decode("x"), REFUSE),
        ("describe of a label model", lambda: mar.describe(torch.rand(1, 1, 32, 32)), REFUSE),
        ("rewrite of a label model", lambda: mar.rewrite("x"), REFUSE),
        ("to('nowhere')", lambda: mar.to("nowhere"), REFUSE),
    ):  # fmt: skip
        yield case(text, meant, call)


# -- files ---------------------------------------------------------------------------------------------------------

TABLES = {
    "t-list.json": ("[1]", USE), "t-counts.json": ('{"counts": [1]}', USE), "t-bom.json": ("\ufeff[1]", USE),
    "t-two.json": ("[1, 1]", USE), "t-empty.json": ("", REFUSE), "t-none.json": ("[]", REFUSE), "t-zero.json": ("[0]", REFUSE),
    "t-less.json": ("[-1]", REFUSE), "t-half.json": ("[1.5]", REFUSE), "t-text.json": ('["1"]', REFUSE),
    "t-true.json": ("[true]", REFUSE), "t-nan.json": ("[NaN]", REFUSE), "t-nested.json": ("[[1]]", REFUSE),
    "t-number.json": ("5", REFUSE), "t-object.json": ("{}", REFUSE), "t-null.json": ('{"counts": null}', REFUSE),
    "t-broken.json": ("[1,", REFUSE), "t-huge.json": ("[1000000000]", REFUSE), "t-deep.json": ("[" * 100_000, REFUSE),
    "t-measured.json": ('{"counts": [1], "measured_for": 3}', REFUSE), "t-digits.json": ("[" + "9" * 5000 + "]", REFUSE),
    "t-long.json": ("[" + "1," * 5_000_000 + "1]", REFUSE), "t-words.json": ("one two", REFUSE),
}  # fmt: skip
PLAN = planned.content(num_stretches=1, most=2)
LOOKS = planned.looks(num_stretches=1, most=2)
NO_LOOKS: dict[str, Any] = {
    "null": None, "empty": [], "number": [1], "two": LOOKS * 2, "courses": [LOOKS[0] | {"courses": []}],
    "edges": [LOOKS[0] | {"edges": [0.5, -2.0]}], "shares": [LOOKS[0] | {"shares": []}],
    "errors": [LOOKS[0] | {"errors": [["1"]] * 3}], "nan": [LOOKS[0] | {"edges": [float("nan"), 0.0]}],
}  # fmt: skip
PLANS = {
    "pl-looks.json": (json.dumps(PLAN | {"looks": LOOKS}), USE),
    **{f"pl-looks-{name}.json": (json.dumps(PLAN | {"looks": looks}), REFUSE) for name, looks in NO_LOOKS.items()},
    "pl-good.json": (json.dumps(PLAN), USE), "pl-more.json": (json.dumps(PLAN | {"later": [1]}), USE),
    "pl-bom.json": ("\ufeff" + json.dumps(PLAN), USE), "pl-empty.json": ("", REFUSE), "pl-list.json": ("[1]", REFUSE),
    "pl-none.json": ("{}", REFUSE), "pl-deep.json": ("[" * 100_000, REFUSE), "pl-cut.json": (json.dumps(PLAN)[:300], REFUSE),
    "pl-format.json": (json.dumps(PLAN | {"format": 99}), REFUSE), "pl-nan.json": (json.dumps(PLAN | {"budget": float("nan")}), REFUSE),
    "pl-text.json": (json.dumps(PLAN | {"gains": ["1"] * 4}), REFUSE), "pl-rows.json": (json.dumps(PLAN | {"rows": [1.0]}), REFUSE),
    "pl-zero.json": (json.dumps(PLAN | {"costs": [[0, 1]] * 4}), REFUSE), "pl-none-at-all.json": ("null", REFUSE),
    "pl-courses.json": (json.dumps(PLAN | {"stretches": [[]]}), REFUSE), "pl-flat.json": (json.dumps(PLAN | {"stretches": PLAN["stretches"][0]}), REFUSE),
    "pl-many.json": (json.dumps(PLAN | {"stretches": PLAN["stretches"] * 5}), REFUSE), "pl-measured.json": (json.dumps(PLAN | {"measured_for": 3}), REFUSE),
    "pl-noise.json": (json.dumps(PLAN | {"stretches": [[{**each, "times": [1.0, 0.5][: len(each["times"])]} for each in PLAN["stretches"][0]]]}), REFUSE),
    "pl-huge.json": (json.dumps(PLAN | {"rows": [10**40] * 4, "gains": [10**40] * 4}), OPEN), "pl-long.json": ("[" + "1," * 5_000_000 + "1]", REFUSE),
}  # fmt: skip
IMAGES = {"i-digits.npz": USE, "i-folder": USE}
STRANGE_IMAGES = {
    "i-large.npz": REFUSE, "i-float.npz": REFUSE, "i-first.npz": REFUSE, "i-few.npz": REFUSE, "i-none.npz": REFUSE,
    "i-cut.npz": REFUSE, "i-colour.npz": REFUSE, "i-objects.npz": REFUSE, "i-other.npz": REFUSE, "i-labels.npz": REFUSE,
    "i-lie.npz": REFUSE, "i-stray": REFUSE, "i-overview": REFUSE, "i-cut": REFUSE, "i-empty": REFUSE, "i-text": REFUSE,
    "i-tar": REFUSE, "i-hole": REFUSE, "noise.bin": REFUSE, "empty": REFUSE, "fifo": REFUSE, "absent": REFUSE,
    "/dev/zero": REFUSE, "": REFUSE, "good.png": REFUSE, "good.safetensors": REFUSE,
}  # fmt: skip
STATISTICS = {
    "s-good.npz": USE, "s-nan.npz": REFUSE, "s-infinity.npz": REFUSE, "s-shape.npz": REFUSE, "s-flat.npz": REFUSE,
    "s-negative.npz": REFUSE, "s-skew.npz": REFUSE, "s-text.npz": REFUSE, "s-other.npz": REFUSE, "s-half.npz": REFUSE,
    "s-cut.npz": REFUSE, "s-none.npz": REFUSE, "s-width.npz": REFUSE,
}  # fmt: skip
RIGHT = '{"tag": "counting", "prompt": "two cats", "correct": true}\n'
RESULTS = {
    "r-good.jsonl": (RIGHT, USE), "r-blank.jsonl": ("\n\n" + RIGHT, USE), "r-empty.jsonl": ("", REFUSE), "r-number.jsonl": ("3", REFUSE),
    "r-cut.jsonl": (RIGHT + RIGHT[:20], REFUSE), "r-text.jsonl": (RIGHT.replace("true", '"yes"'), REFUSE),
    "r-deep.jsonl": ("[" * 100_000, REFUSE), "r-tag.jsonl": (RIGHT.replace("tag", "task"), REFUSE),
    "r-good.json": ("[[0.5, 1], [0]]", USE), "r-list.json": ("[]", REFUSE), "r-inner.json": ("[[]]", REFUSE),
    "r-large.json": ("[[2]]", REFUSE), "r-nan.json": ("[[NaN]]", REFUSE), "r-deep.json": ("[" * 100_000, REFUSE),
}  # fmt: skip
PROBES = {
    "p-empty.safetensors": b"",
    "p-noise.safetensors": b"x" * 1000,
    "p-none.safetensors": save({"x": torch.zeros(1)}),
    "p-text.safetensors": save({"probe.mean": torch.zeros(4)}, {"disa": "{}"}),
    "p-broken.safetensors": save({"probe.mean": torch.zeros(4)}, {"disa": "[" * 1000}),
    "p-nan.safetensors": save(
        {"probe.mean": torch.full((4,), float("nan"))}, {"disa": '{"knowledge": {}, "about": {}}'}
    ),
}
CONFIGS = {
    "c-empty": "", "c-list": "[]", "c-deep": "[" * 100_000, "c-number": "3", "c-none": "{}", "c-broken": '{"library": "disa"',
    "c-format": '{"library": "disa", "format": 99}', "c-preset": '{"library": "disa", "preset": "nothing"}',
    "c-depth": '{"library": "disa", "preset": "mar-digits", "architecture": {"encoder_depth": 1000000000}}',
    "c-long": " " * 3_000_000, "c-diffusers": '{"_class_name": "AutoencoderKL"}', "c-hf": '{"model_type": "llama"}',
}  # fmt: skip
LOADED: dict[str, Sampler] = {}


class Code:
    """What a hostile pickle would run."""

    def __reduce__(self) -> Any:
        return os.system, ("touch executed",)


def write_files() -> None:
    """All files that the cases name, in the current folder."""
    for name in ("folder", "models"):
        Path(name).mkdir()
    os.mkfifo("fifo")
    Path("measured").mkdir()
    Path("measured/measured.npz").write_bytes(b"PK\x03\x04 cut off")
    texts = {name: text for name, (text, _) in (TABLES | PLANS).items()} | {
        "file": "x", "empty": "", "blank.txt": "\n \n", "prompts.txt": "a red circle\n\na green star\n",
        "prompts-bom.txt": "\ufeffa red circle\n", "prompts-crlf.jsonl": '{"prompt": "a red circle"}\r\n\r\n',
        "prompts-u2028.jsonl": '{"prompt": "a red circle\u2028above a blue square"}\n', "prompts.json": '["a red circle"]',
        "prompts.tsv": "Prompt\tCategory\na red circle\tx\n", "prompts-number.json": "[3]", "prompts-nested.json": '[["a"]]',
        "prompts-broken.jsonl": '{"prompt": "a red circle"}\n{"prompt": \n', "deep.json": "[" * 100_000, "nul.txt": "a\0b",
        "surrogate.json": '["red \\ud83d"]', "prompts-empty-one.json": '["a red circle", " "]', "picture.svg": "<svg/>",
        "lfs.safetensors": "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 8320000\n",
        "page.pth": "<!DOCTYPE html><html><body>Sign in</body></html>",
    }  # fmt: skip
    for name, text in texts.items():
        Path(name).write_text(text, encoding="utf-8")
    Path("prompts-utf16.txt").write_text("a red circle\n", encoding="utf-16")
    Path("noise.bin").write_bytes(np.random.default_rng(0).bytes(5000))
    for name, content in PROBES.items():
        Path(name).write_bytes(content)
    for name, text in CONFIGS.items():
        (Path("models") / name).mkdir()
        (Path("models") / name / "config.json").write_text(text)
    for name, (text, _) in RESULTS.items():
        Path(name).write_text(text, encoding="utf-8")
    write_weights()
    write_pictures()
    write_sets()


def write_weights() -> None:
    """Weights as people have them."""
    model = LOADED["mar-digits"]
    state = {name: value.clone().contiguous() for name, value in
             model.preset.official_names().to_official(model.model.state_dict()).items()}  # fmt: skip
    first = next(iter(state))
    save_file(state, "good.safetensors")
    torch.save({"model": state}, "good.pth")
    good, pickled = Path("good.safetensors").read_bytes(), Path("good.pth").read_bytes()
    torch.save({"model": state}, "good-legacy.pth", _use_new_zipfile_serialization=False)
    for name, content in {
        "good-ema": {"model": state, "ema": state}, "good-module": {"model": {f"module.{k}": v for k, v in state.items()}},
        "good-numpy": {"model": state, "best": np.float64(2.3)}, "good-container": {"net": state}, "list": [state[first]],
        "good-path": {"model": state, "data": Path("x")}, "code": {"model": state, "x": Code()}, "number": 3,
        "two": {"a": state, "b": {name: 2 * value for name, value in state.items()}},
    }.items():  # fmt: skip
        torch.save(content, f"{name}.pth")
    header = len(good).to_bytes(8, "little")
    for name, content in {
        "GOOD.SAFETENSORS": good, "safetensors.pth": good, "noname": good, "pth.safetensors": pickled,
        "cut.pth": pickled[: len(pickled) // 2], "cut.safetensors": good[: len(good) // 2],
        "lie.safetensors": header + b'{"x":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,399999999996]}}',
        "huge-header.safetensors": (1 << 60).to_bytes(8, "little") + b"{}",
        "deep.safetensors": (90_000).to_bytes(8, "little") + b"[" * 90_000, "none.safetensors": save({}),
        "nan.safetensors": save(state | {first: state[first] * float("nan")}),
        "ints.safetensors": save({name: value.long() for name, value in state.items()}),
        "other.safetensors": save({"x": torch.zeros(3)}), "names.safetensors": save({"a\nb": torch.zeros(1)}),
    }.items():  # fmt: skip
        Path(name).write_bytes(content)
    shutil.make_archive("zip", "zip", "models")
    Path("zip.zip").rename("zip.pth")


def write_pictures() -> None:
    """Pictures of every kind."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 48, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.save("good.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save("grey16.png")
    picture.convert("RGBA").save("alpha.png")
    picture.convert("P").save("palette.gif")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save("phone.jpg", exif=turned)
    Image.fromarray(pixels[..., 0].astype(np.float32) / 255).save("float.tif")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save("nan.tif")
    picture.convert("CMYK").save("cmyk.jpg")
    Image.new("RGB", (1, 1)).save("one.png")
    Image.new("1", (100_000, 1)).save("long.png")
    Image.new("1", (1, 100_000)).save("wide-flat.png")
    Image.new("1", (60_000, 60_000)).save("bomb.png")
    good = Path("good.png").read_bytes()
    Path("cut.png").write_bytes(good[: len(good) // 2])


def write_sets() -> None:
    """Sets of images and statistics of every kind."""
    random = np.random.default_rng(0)
    grey = random.integers(0, 255, (30, 32, 32, 1), np.uint8)
    for name, arrays in {
        "digits": {"arr_0": grey}, "large": {"arr_0": grey.repeat(2, axis=1).repeat(2, axis=2)},
        "float": {"arr_0": grey / 255}, "first": {"arr_0": grey.transpose(0, 3, 1, 2)}, "few": {"arr_0": grey[:5]},
        "none": {"arr_0": grey[:0]}, "colour": {"arr_0": random.integers(0, 255, (30, 32, 32, 3), np.uint8)},
        "objects": {"arr_0": np.array([{}] * 30)}, "other": {"images": grey},
        "labels": {"arr_0": grey, "arr_1": np.zeros((30, 10))},
    }.items():  # fmt: skip
        np.savez(f"i-{name}.npz", **arrays)
    good = Path("i-digits.npz").read_bytes()
    Path("i-cut.npz").write_bytes(good[: len(good) // 2])
    Path("i-lie.npz").write_bytes(good.replace(b"(30, 32, 32, 1)", b"(90, 32, 32, 1)"))
    for name in ("folder", "stray", "overview", "cut", "hole"):
        Path(f"i-{name}").mkdir()
        for i, pixels in enumerate(grey):
            Image.fromarray(pixels[..., 0]).save(f"i-{name}/{i:02d}.png")
    Image.fromarray(grey[:9, ..., 0].reshape(96, 96)).save("i-stray/grid.png")
    about = PngInfo()
    about.add_text("disa", '{"digest": "x"}')
    Image.fromarray(grey[0, ..., 0]).save("i-overview/grid.png", pnginfo=about)
    picture = Path("i-cut/07.png").read_bytes()
    Path("i-cut/07.png").write_bytes(picture[: len(picture) // 2])
    Path("i-hole/07.png").write_bytes(picture[:60] + b"\0" * (len(picture) - 80) + picture[-20:])
    for name in ("empty", "text", "tar"):
        Path(f"i-{name}").mkdir()
    Path("i-text/notes.txt").write_text("x")
    Path("i-tar/0.tar").write_bytes(b"no tar" * 1000)
    mean, spread = np.zeros(64), np.eye(64)
    for name, (mu, sigma, of) in {
        "good": (mean, spread, "digits-classifier"), "nan": (mean, spread * np.nan, "digits-classifier"),
        "infinity": (mean + np.inf, spread, "digits-classifier"), "shape": (mean, spread[:5], "digits-classifier"),
        "flat": (mean, mean, "digits-classifier"), "negative": (mean, -spread, "digits-classifier"),
        "skew": (mean, np.triu(np.ones((64, 64))), "digits-classifier"), "other": (mean, spread, "inception"),
        "text": (np.array(["x"] * 64), spread, "digits-classifier"), "none": (mean[:0], spread[:0, :0], "digits-classifier"),
        "width": (np.zeros(8), np.eye(8), "digits-classifier"),
    }.items():  # fmt: skip
        np.savez(f"s-{name}.npz", mu=mu, sigma=sigma, features=np.array(of))
    np.savez("s-half.npz", mu=mean)
    good = Path("s-good.npz").read_bytes()
    Path("s-cut.npz").write_bytes(good[: len(good) // 2])


# -- trying --------------------------------------------------------------------------------------------------------


def tried(case: Case, folder: Path) -> tuple[str, str, float, int]:
    """What became of it, what was said, seconds and bytes; in a process of its own."""
    report = folder.parent / "report.json"
    report.unlink(missing_ok=True)
    started = time.perf_counter()
    child = os.fork()
    if not child:
        _try(case, report)
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.perf_counter() - started > 4 * MOST_SECONDS:
            os.kill(child, 9)
            os.waitpid(child, 0)
            break
        time.sleep(0.002)
    seconds = time.perf_counter() - started
    if not report.exists():
        return "killed" if seconds > 4 * MOST_SECONDS else "died", "", seconds, 0
    outcome, said, size = json.loads(report.read_text())
    return outcome, said, seconds, size


def _try(case: Case, report: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stdin = open(os.devnull)  # noqa: SIM115  for the life of the process
    said, outcome = io.StringIO(), USE
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code = case.call()
        if case.text.startswith("disa ") and isinstance(code, int) and code:
            outcome = REFUSE
    except DisaError as error:
        outcome = REFUSE
        print(error, file=said)
        if "\n" in str(error).strip() or len(str(error)) > 900:
            outcome = "several lines"
    except BaseException as error:
        kind = type(error)
        refused = kind.__module__.startswith(("typer", "click")) or "typer" in kind.__module__
        outcome = REFUSE if refused and case.text.startswith("disa ") else "bare error"
        print(
            "".join(traceback.format_exception_only(error)), *traceback.format_tb(error.__traceback__)[-2:], file=said
        )
    size = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    report.write_text(json.dumps([outcome, said.getvalue()[-700:], size]))
    os._exit(0)


def main(arguments: list[str]) -> int:
    torch.set_num_threads(1)
    started = Path(tempfile.mkdtemp(prefix="disa-hostile-"))
    LOADED.update({name: Sampler.load(name) for name in ("mar-digits", "harmon-shapes")})
    for sampler in LOADED.values():
        _ = sampler.weights_hash, sampler.prepare()
    work = started / "work"
    work.mkdir()
    os.chdir(work)
    write_files()
    cases = [case for group in (options, words, names, pictures, studies, evaluations, calls) for case in group()]
    chosen = [case for case in cases if not arguments or arguments[0] in case.text]
    outcomes, bad = Counter[str](), 0
    for case in chosen:
        outcome, said, seconds, size = tried(case, work)
        wrong = outcome not in (USE, REFUSE) or (case.meant != OPEN and outcome != case.meant)
        wrong |= seconds > MOST_SECONDS or size > MOST_BYTES
        outcomes[outcome] += 1
        bad += wrong
        if wrong or arguments:
            print(f"{'WRONG' if wrong else 'ok'}: {case.text!r}: {outcome}, meant {case.meant}, {seconds:.1f} s, "
                  f"{size / 1e6:.0f} MB\n    {said.strip()}", flush=True)  # fmt: skip
    print(f"{len(chosen)} inputs: {', '.join(f'{count} {outcome}' for outcome, count in outcomes.most_common())}; "
          f"{bad} wrong")  # fmt: skip
    if Path("executed").exists():
        print("WRONG: code of a file was executed")
        bad += 1
    os.chdir("/")
    shutil.rmtree(started)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
