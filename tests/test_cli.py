"""The command line: what is written and printed, and what a mistake, a full disk or Ctrl-C leaves behind."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import small
from command import Command, complaint, files, only_whole, without_progress
from disa import cli
from disa.cli.texts import parse_box, parse_labels, parse_numbers
from disa.models.registry import PRESETS
from disa.tiny import train as training


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 16 tokens."""
    return small.folder(tmp_path_factory.mktemp("models") / "model")


QUICK = ("--num-ar-steps", 4, "--steps", "linear:4-2", "--device", "cpu")


# -- sample --------------------------------------------------------------------------------------------------------


def test_sample_writes_pictures_a_grid_and_a_trace(disa: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    done = disa(
        "sample", "--model", model, "--labels", "3,5-6", "--seeds", "7-9", "--guidance", 1.5, *QUICK, "--out", out
    )
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("3 images: ")
    assert f"are in {out}" in done.out
    pairs = ("seed000007_label0003", "seed000008_label0005", "seed000009_label0006")
    names = [f"samples/{pair}.png" for pair in pairs]
    assert only_whole(out) == ["grid.png", *names, "trace.json"]
    trace = json.loads((out / "trace.json").read_text())
    assert (trace["files"], trace["images_counted"]) == (names, 3)
    assert (trace["labels"], trace["seeds"]) == ([3, 5, 6], [7, 8, 9])
    assert [step["steps"] for step in trace["trace"]] == [4, 3, 2, 2]
    assert trace["settings"]["steps"] == "linear:4-2"
    expected = small.sampler().sample(5, 8, steps="linear:4-2", guidance=1.5, grid="clipped-950", output_type="pil")
    with Image.open(out / names[1]) as picture:
        assert picture.tobytes() == expected.images[0].tobytes()


def test_sample_without_classes(disa: Command, model: Path, tmp_path: Path) -> None:
    done = disa("sample", "--model", model, "--labels", "none", "--seeds", "3-4", *QUICK, "--out", tmp_path, "--json")
    assert done.json()["files"] == ["samples/seed000003.png", "samples/seed000004.png"]


def test_sample_keeps_what_is_outside_the_box(disa: Command, model: Path, tmp_path: Path) -> None:
    picture = Image.new("L", (8, 8))
    picture.putdata(range(0, 256, 4))
    picture.save(tmp_path / "in.png")
    options = ("--keep", tmp_path / "in.png", "--box", "1,1,3,4", "--seeds", "0-1", "--labels", 3)
    assert disa("sample", "--model", model, *options, *QUICK, "--out", tmp_path / "out").code == 0
    for seed in range(2):
        with Image.open(tmp_path / f"out/samples/seed00000{seed}_label0003.png") as image:
            inside = {(x, y) for x in range(2, 8) for y in range(2, 6)}
            changed = {(x, y) for x in range(8) for y in range(8) if image.getpixel((x, y)) != picture.getpixel((x, y))}
        assert changed
        assert changed <= inside


# -- the other commands --------------------------------------------------------------------------------------------


def test_compare_writes_pictures_and_numbers(disa: Command, model: Path, tmp_path: Path) -> None:
    policies = ("--steps", "constant:6", "--steps", "linear:6-2", "--steps", "linear:2-6")
    arguments = ("compare", "--model", model, *policies, "--seeds", "0-4", "--labels", "1-2", "--num-ar-steps", 4)
    report = disa(*arguments, "--batch-size", 2, "--device", "cpu", "--out", tmp_path, "--json").json()
    assert only_whole(tmp_path) == ["compare.json", "compare.png", "steps.png"]
    assert json.loads((tmp_path / "compare.json").read_text()) == {k: v for k, v in report.items() if k != "out"}
    assert report["num_images"] == 5
    assert report["settings"]["steps"] == ["constant:6", "linear:6-2", "linear:2-6"]
    first, second, third = report["policies"]
    assert (first["speedup"], first["counts"]) == (1.0, [6, 6, 6, 6])
    assert (second["counts"], third["counts"]) == ([6, 4, 3, 2], [2, 4, 5, 6])
    assert first["evaluations"] == first["evaluations_per_row"] * 5 * 16
    assert second["speedup"] == first["seconds"] / second["seconds"]
    table = disa(*arguments, "--device", "cpu", "--out", tmp_path).out
    assert all(policy in table for policy in report["settings"]["steps"])


def test_a_table_is_only_resampled_for_what_is_asked(disa: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "table.json").write_text("[4, 3, 2, 2]")
    policies = ("--steps", f"table:{tmp_path / 'table.json'}", "--steps", "constant:2")
    arguments = ("compare", "--model", model, *policies, "--seeds", "0-1", "--out", tmp_path / "out")
    assert disa(*arguments, "--num-ar-steps", 4, "--json").json()["policies"][0]["counts"] == [4, 3, 2, 2]
    resampled = disa(*arguments, "--num-ar-steps", 7)
    assert resampled.code == 0
    assert re.fullmatch(r"warning: table:.* has 4 counts and is resampled to 7\n", resampled.err)


@pytest.fixture
def small_digits(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mar-digits`, but small, and its embedded weights too."""
    monkeypatch.setitem(PRESETS, "mar-digits", small.changed(small.PRESET, name="mar-digits", page=""))
    monkeypatch.setattr("disa.weights.package.resources.files", lambda package: model / "embedded")
    (model / "embedded/weights").mkdir(parents=True, exist_ok=True)
    (model / "embedded/weights/mar-digits.safetensors").write_bytes((model / "model.safetensors").read_bytes())


@pytest.mark.usefixtures("small_digits")
def test_demo_compares_the_original_with_disa_and_its_reverse(disa: Command, tmp_path: Path) -> None:
    report = disa("demo", "--quick", "--out", tmp_path, "--json").json()
    asked = [policy["steps"] for policy in report["policies"]]
    assert asked == ["constant:6", "linear:4-2", "linear:10-1", "linear:1-6"]
    assert report["num_images"] == 20
    assert only_whole(tmp_path) == ["compare.json", "compare.png", "steps.png"]


@pytest.mark.usefixtures("small_digits")
def test_bench_measures_every_policy_and_batch_size(disa: Command) -> None:
    sizes = ("--batch-size", 1, "--batch-size", 3)
    report = disa("bench", "--untrained", *sizes, "--repeats", 2, "--device", "cpu", "--json").json()
    cells = [(timing["steps"], timing["batch_size"]) for timing in report["timings"]]
    assert cells == [("constant:6", 1), ("linear:4-2", 1), ("constant:6", 3), ("linear:4-2", 3)]
    assert all(timing["images_per_second"] == 1 / timing["seconds_per_image"] > 0 for timing in report["timings"])
    assert [timing["evaluations_per_row"] for timing in report["timings"][:2]] == [
        12,
        2 * (2 * 4 + 3 * 3 + 5 * 2 + 6 * 2) / 16,
    ]
    assert (report["untrained"], report["repeats"], report["num_ar_steps"]) == (True, 2, 4)
    assert "linear:4-2" in disa("bench", "--untrained", "--batch-size", 1, "--repeats", 1).out


def test_presets_lists_all_of_them(disa: Command) -> None:
    assert set(disa("presets", "--json").json()) == set(PRESETS)
    assert all(name in disa("presets").out for name in PRESETS)


def test_convert_makes_a_folder_that_sample_takes(
    disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "small", small.PRESET)
    checkpoint, out = tmp_path / "last.pth", tmp_path / "out"
    torch.save({"model": small.official_weights(seed=1), "model_ema": small.official_weights()}, checkpoint)
    report = disa("convert", checkpoint, "--model", "small", "--out", out, "--json").json()
    assert report == {"out": str(out), "files": {name: (out / name).stat().st_size for name in report["files"]}}
    assert files(out) == ["config.json", "model.safetensors"]
    assert disa("sample", "--model", out, *QUICK, "--out", tmp_path / "drawn").code == 0
    names = disa("convert", out, "--model", "small", "--official", "--out", tmp_path / "back").out
    assert names.startswith("small.safetensors  ")


@pytest.mark.usefixtures("small_digits")
def test_train_answers_in_json(disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []

    def train(*arguments: Any, **options: Any) -> dict[str, Any]:
        called.append((arguments, options))
        return {"name": "mar-digits", "loss": 0.5}

    monkeypatch.setattr(training, "train", train)
    report = disa("train", "mar-digits", "--iterations", 3, "--seed", 5, "--out", tmp_path, "--json").json()
    assert report == {"name": "mar-digits", "loss": 0.5, "out": str(tmp_path)}
    ((name, out, seed, recipe, resume), _) = called[0]
    assert (name, out, seed, recipe.iterations, resume) == ("mar-digits", tmp_path, 5, 3, True)


def test_train_makes_the_classifier(disa: Command, tmp_path: Path) -> None:
    report = disa("train", "digits-classifier", "--iterations", 1, "--out", tmp_path, "--json").json()
    assert report["name"] == "digits-classifier"
    assert 0 <= report["held_out_accuracy"] <= 1
    assert files(tmp_path) == ["digits-classifier.safetensors"]


# -- help and completion -------------------------------------------------------------------------------------------

COMMANDS = (
    "sample", "describe", "bulk", "serve", "studio", "compare", "evaluate", "demo", "bench", "evidence", "calibrate",
    "tune", "fit-probe", "presets", "convert", "train",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(disa: Command, command: str) -> None:
    done = disa(command, "--help")
    assert (done.code, done.err) == (0, "")
    assert f"Example: disa {command}" in done.out
    assert "--json" in done.out


def test_help_names_every_command(disa: Command) -> None:
    callbacks = [command.callback for command in cli.app.registered_commands]
    assert {callback.__name__.replace("_", "-") for callback in callbacks if callback} == set(COMMANDS)
    assert all(command in disa("--help").out for command in COMMANDS)
    bare = disa()
    assert (bare.code, bare.err) == (2, "")
    assert "Usage" in bare.out


def test_completion() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("the completion of bash needs bash")
    program = "import sys; sys.argv[0] = 'disa'; from disa.cli import main; main()"
    # Typer looks which shell it was started from.
    shown = [bash, "-c", '"$0" -c "$1" --show-completion bash; exit $?', sys.executable, program]
    done = subprocess.run(shown, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F _disa_completion disa" in done.stdout
    # What the shell asks when the user has typed `disa sam`.
    asked = {"_DISA_COMPLETE": "complete_bash", "COMP_WORDS": "disa sam", "COMP_CWORD": "1"}
    answer = [sys.executable, "-c", program]
    done = subprocess.run(answer, env=os.environ | asked, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["sample"]


# -- mistakes ------------------------------------------------------------------------------------------------------


def test_numbers_and_ranges() -> None:
    assert parse_numbers("3", "seeds") == [3]
    assert parse_numbers("0-3", "seeds") == [0, 1, 2, 3]
    assert parse_numbers("1,5,8-9,5", "seeds") == [1, 5, 8, 9, 5]
    assert parse_labels("none") is None
    assert parse_box("1,0,3,2") == [1, 0, 3, 2]


BAD_SAMPLES = [
    (["--model", "mar-tiny"], "unknown model 'mar-tiny': expected one that `disa presets` lists, a folder"),
    (["--model", "./absent/folder"], "there is no folder absent/folder"),
    (["--model", "."], "is not a model folder of disa"),
    (["--steps", "quadratic:50-5"], "unknown step policy 'quadratic:50-5': expected constant:N, two-stage:50-5"),
    (["--steps", "linear:50"], "unknown step policy 'linear:50'"),
    (["--steps", "constant:0"], "at least 1 denoising step, found 0"),
    (["--steps", "linear:5-0"], "at least 1 denoising step, found 0"),
    (["--steps", "constant:-3"], "unknown step policy 'constant:-3'"),
    (["--steps", "table:absent.json"], "cannot read the table absent.json"),
    (["--solver", "eulerian"], "unknown solver 'eulerian': expected one of ddpm, ddim"),
    (["--grid", "square"], "unknown grid 'square': expected one of clipped-950"),
    (["--ramp", "steep"], "unknown guidance ramp 'steep': expected linear, constant, falling, power"),
    (["--dtype", "fp8"], "unknown dtype 'fp8': expected fp32, bf16 or tf32"),
    (["--device", "gpu"], "the device 'gpu' cannot be used here"),
    (["--labels", "10"], "labels must be 0 to 9, found 10"),
    (["--labels", "cat"], "labels must be whole numbers like 3, 0-7 or 1,5,9; found 'cat'"),
    (["--labels", "1.5"], "found '1.5'"),
    (["--labels", ""], "found ''"),
    (["--labels", "3-"], "found '3-'"),
    (["--labels", "7-0"], "labels '7-0' is an empty range: write the smaller number first"),
    (["--labels", "1,7-0"], "labels '7-0' is an empty range"),
    (["--labels", "0-2", "--seeds", "0-1"], "there are 3 and 2: give as many of both"),
    (["--seeds", "-1"], "seeds must be whole numbers like 3, 0-7 or 1,5,9; found '-1'"),
    (["--seeds", str(1 << 64)], "a seed must be a whole number from 0 to 2**64 - 1"),
    (["--seeds", "0-999999999999"], "there are too many seeds: expected at most 1000000"),
    (["--num-ar-steps", "0"], "the number of AR steps must be 1 to 16 (tokens to draw), found 0"),
    (["--num-ar-steps", "17"], "1 to 16 (tokens to draw), found 17"),
    (["--num-ar-steps", "many"], "--num-ar-steps must be a whole number, found 'many'"),
    (["--batch-size", "0"], "the batch size must be 1 or more, found 0"),
    (["--guidance", "nan"], "--guidance must be a number, found 'nan'"),
    (["--guidance", "strong"], "--guidance must be a number, found 'strong'"),
    (
        ["--solver", "ddim", "--temperature", "0.9"],
        "temperature scales the noise that ddpm and euler-maruyama add; ddim adds none",
    ),
    (
        ["--solver", "ddim", "--eta", "0.5", "--temperature", "0.9"],
        "temperature scales the noise that ddpm and euler-maruyama add; eta scales that of ddim",
    ),
    (["--eta", "0.5"], "eta belongs to ddim and dpm-solver++-2, not to ddpm"),
    (["--solver", "ddim", "--eta", "1.5"], "eta must be a number from 0 to 1, found 1.5"),
    (["--temperature", "-1"], "temperature must be a number, 0 or more, found -1.0"),
    (["--vae", "kl16.ckpt"], "mar-digits has no autoencoder, its tokens are pixels: leave kl16.ckpt out"),
    (["--guidance-interval", "0.9"], "interval must be two numbers like 0-0.9, found '0.9'"),
    (["--guidance-progress", "all"], "progress must be two numbers like 0-0.9, found 'all'"),
    (
        ["--guidance-progress", "0.9-0.1"],
        "the guidance progress must be two shares 0 <= low <= high <= 1",
    ),
    (["--per-label", "0"], "'--per-label'"),
    (["--per-label", "2", "--labels", "3", "--seeds", "0-2"], "2 images per label need 2 seeds, found 3"),
    (["--size", "8"], "size must be height and width like 512x768, found '8'"),
    (["--height", "9"], "height and width must be multiples of 2, found 9x8"),
    (["--guidance-interval", "0.9-0.1"], "two times 0 <= low <= high <= 1, found (0.9, 0.1)"),
    (["--checkpoint", "last.pth"], "a checkpoint needs the name of its model, one that `disa presets` lists"),
    (["--keep", "in.png"], "--keep and --box go together"),
    (["--keep", "absent.png", "--box", "0,0,1,1"], "absent.png cannot be read as a picture"),
    (["--keep", "absent.png", "--box", "0,0,1"], "found '0,0,1'"),
    (["--keep", "absent.png", "--box", "a,0,1,1"], "--box must be four whole numbers"),
    (["--colour", "red"], "no such option: --colour"),
    (["extra"], "unexpected extra argument"),
]


@pytest.mark.parametrize(("options", "words"), BAD_SAMPLES, ids=lambda value: value if isinstance(value, str) else "")
def test_sample_refuses(disa: Command, model: Path, tmp_path: Path, options: list[str], words: str) -> None:
    if "--keep" in options and "found 0,0,1" in words:
        Image.new("L", (8, 8)).save(tmp_path / "absent.png")
        options = [option.replace("absent.png", str(tmp_path / "absent.png")) for option in options]
    out = tmp_path / "out"
    defaults = {"--model": str(model), "--num-ar-steps": "4"}
    given = [item for name, value in defaults.items() if name not in options for item in (name, value)]
    assert words in complaint(disa("sample", *given, *options, "--out", out, "--json"))
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "no such command 'nothing'"),
        (["compare", "--steps", "constant:5"], "a comparison needs at least two step policies"),
        (["compare", "--steps", "constant:5", "--steps", "constant:5"], "each step policy can be compared once"),
        (["compare", "--steps", "constant:5", "--steps", "linear"], "unknown step policy 'linear'"),
        (["compare", "--labels", "3,99"], "labels must be 0 to 9, found 99"),
        (["compare", "--num-ar-steps", "0"], "AR steps must be 1 to 16"),
        (["bench", "--untrained", "--steps", "linear"], "unknown step policy 'linear'"),
        (["bench", "--repeats", "0"], "'--repeats'"),
        (["bench", "--batch-size", "0"], "'--batch-size'"),
        (["bench", "--untrained", "--dtype", "int8"], "unknown dtype 'int8'"),
        (["bench", "--untrained", "--model", "none"], "unknown model 'none'"),
        (["demo", "--images", "3"], "'--images'"),
        (["demo", "--images", "30", "--quick"], "leave --images out"),
        (["train", "mar-base"], "no recipe to train 'mar-base'"),
        (["train", "--iterations", "0"], "'--iterations'"),
        (["convert"], "missing argument"),
        (["convert", "absent.pth", "--model", "mar-digits"], "no checkpoint at absent.pth"),
        (["convert", "absent.pth", "--model", "mar-tiny"], "unknown model 'mar-tiny'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.usefixtures("small_digits")
def test_the_other_commands_refuse(disa: Command, tmp_path: Path, arguments: list[str], words: str) -> None:
    out = [] if arguments[0] in ("bench", "nothing") else ["--out", tmp_path / "out"]
    assert words in complaint(disa(*arguments, *out))
    assert not (tmp_path / "out").exists()


def test_a_bad_checkpoint_is_one_line(disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", small.PRESET)
    out, state = tmp_path / "out", small.official_weights()
    name = next(iter(state))
    bad = {
        "empty.pth": None,
        "nan.pth": state | {name: state[name] * torch.nan},
        "shape.pth": state | {name: torch.zeros(3)},
        "names.pth": {"a": torch.zeros(3)},
        "text.pth": state | {"a\x1b[31m\nTraceback": torch.zeros(3)},
    }
    for file, content in bad.items():
        path = tmp_path / file
        path.write_bytes(b"") if content is None else torch.save(content, path)
        said = complaint(disa("sample", "--model", "small", "--checkpoint", path, "--out", out))
        assert file in said
        assert "\x1b" not in said
        assert complaint(disa("convert", path, "--model", "small", "--out", out)) == said
    said = complaint(disa("sample", "--model", "small", "--checkpoint", tmp_path, "--out", out))
    assert "is a folder: expected a file" in said
    assert not out.exists()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/disa"])
def test_a_folder_that_cannot_be_written_is_found_before_drawing(
    disa: Command, model: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("disa.models.mar.model.MAR.begin", None)
    (tmp_path / "file").write_text("mine")
    for command in (["sample"], ["compare", "--steps", "constant:2", "--steps", "constant:1"]):
        done = disa(*command, "--model", model, "--num-ar-steps", 4, "--out", tmp_path / place)
        assert "cannot write to the folder" in complaint(done)
    assert (tmp_path / "file").read_text() == "mine"


def test_what_is_given_is_text_not_markup(disa: Command, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "[/red]:smile:"
    (out / "[bold]").mkdir(parents=True)
    (out / "[bold]" / "table.json").write_text("[2, 2, 1, 1]")
    table = f"table:{out}/[bold]/table.json"
    policies = ("--steps", table, "--steps", "constant:2")
    done = disa("compare", "--model", model, *policies, "--seeds", 0, "--num-ar-steps", 4, "--out", out)
    assert (done.code, done.err) == (0, "")
    assert f"are in {out}\n" in done.out
    assert "/[bold]/" in re.sub(r"[\s│]", "", done.out)


# -- full disks and Ctrl-C -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def full_after(count: int) -> Iterator[list[str]]:
    """A disk that takes so many more files, whose names it gives."""
    rename, renamed = os.replace, list[str]()

    def replace_until_full(source: Any, target: Any) -> None:
        if len(renamed) == count:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        renamed.append(Path(target).name)
        rename(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", replace_until_full)
        yield renamed


def test_a_disk_that_is_full_in_the_middle_of_writing(disa: Command, model: Path, tmp_path: Path) -> None:
    """Each file is the new one or the old one, and the rest is drawn when there is room again."""

    def contents() -> dict[str, bytes]:
        return {Path(name).name: (tmp_path / name).read_bytes() for name in only_whole(tmp_path)}

    arguments = ("sample", "--model", model, "--labels", 3, "--seeds", "0-3", *QUICK, "--out", tmp_path)
    with full_after(2) as renamed:
        said = complaint(disa(*arguments))
    assert f"could not write {tmp_path}/samples/seed000002_label0003.png: No space left on device" in said
    assert sorted(contents()) == renamed == ["seed000000_label0003.png", "seed000001_label0003.png"]
    assert disa(*arguments, "--resume", "--json").json()["drawn"] == 2
    before = contents()
    assert len(before) == 6
    # The size of batches changes no image, and so no file that is written again.
    with full_after(2) as renamed:
        complaint(disa(*arguments, "--batch-size", 3))
    assert renamed == ["seed000000_label0003.png", "seed000001_label0003.png"]
    assert contents() == before


def test_standard_output_that_nobody_reads_is_no_error() -> None:
    program = [sys.executable, "-c", "from disa.cli import main; main()", "presets", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(program, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start `disa sample` into tmp_path / "out" as its own process; it is ended after the test."""
    # Where the tests run in the background of a shell, SIGINT is ignored, and children inherit that.
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from disa.cli import main; main()"
    )
    started: list[subprocess.Popen[str]] = []

    def run(*options: object) -> subprocess.Popen[str]:
        arguments = ("sample", "--model", model, "--labels", 3, "--device", "cpu", "--out", tmp_path / "out", *options)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", program, *map(str, arguments)],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


def interrupt_when(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert without_progress(err) == "disa: stopped; only whole files were written.\n"


def test_ctrl_c_while_drawing(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--seeds", "0-999", "--num-ar-steps", 16, "--steps", "constant:900")
    interrupt_when(process, (out / "samples").is_dir)
    assert only_whole(out) == []


def drawn(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "samples").glob("seed*.png")}


def test_ctrl_c_while_writing(start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = start("--seeds", "0-4999", "--num-ar-steps", 1, "--steps", "constant:1", "--batch-size", 1000)
    interrupt_when(process, lambda: len(drawn(out)) > 3)
    assert 3 < len(drawn(out)) < 5_000
    only_whole(out)


@pytest.mark.long
def test_after_ctrl_c_what_was_drawn_is_kept_and_the_rest_resumed(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Byte by byte what one run without an interruption writes."""
    options = ("--seeds", "0-31", "--num-ar-steps", 16, "--steps", "constant:12", "--batch-size", 4)
    out, whole = tmp_path / "out", tmp_path / "whole"
    process = start(*options)
    interrupt_when(process, lambda: len(drawn(out)) >= 4)
    only_whole(out)
    kept = drawn(out)
    assert 4 <= len(kept) < 32
    times = {name: (out / "samples" / name).stat().st_mtime_ns for name in kept}
    printed, said = start(*options, "--resume", "--json").communicate(timeout=100)
    report = json.loads(printed)
    assert (without_progress(said), report["drawn"]) == ("", 32 - len(kept))
    assert {name: (out / "samples" / name).stat().st_mtime_ns for name in kept} == times
    assert start(*options, "--out", whole).wait(timeout=100) == 0
    assert only_whole(out) == only_whole(whole)
    assert drawn(out) == drawn(whole)
