"""What a terminal cannot show or take, what is told while a work goes on, and options that say nothing."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small
from command import Command, complaint, only_whole
from disa import __version__, cli
from disa.cli.texts import parse_labels, parse_numbers
from disa.draw.inputs import Inputs
from disa.errors import DisaError
from disa.progress import progress, spoken
from disa.study import calibrate, fit, planning
from disa.study.compare import Comparison, PolicyResult
from disa.study.metrics import Spread

QUICK = ("--num-ar-steps", 1, "--steps", "constant:1", "--device", "cpu")
PROGRAM = "from disa.cli import main; main()"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of 16 tokens."""
    return small.folder(tmp_path_factory.mktemp("models") / "model")


# -- letters -------------------------------------------------------------------------------------------------------

ENCODINGS = ("cp1252", "cp932", "ascii", "latin-1", "utf-16", "koi8-r")
Printed = Callable[..., tuple[int, str]]


@pytest.fixture(params=ENCODINGS)
def printed(request: pytest.FixtureRequest, disa: Command, monkeypatch: pytest.MonkeyPatch) -> Printed:
    """Run a command where standard output has only some letters."""

    def run(*arguments: object) -> tuple[int, str]:
        content = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding=request.param))
        code = disa(*arguments).code
        return code, content.getvalue().decode(request.param)

    return run


@pytest.mark.parametrize("width", ["20", "80"])
def test_help_in_every_encoding(printed: Printed, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "dumb")
    names = [each.callback.__name__.replace("_", "-") for each in cli.app.registered_commands if each.callback]
    for name in names:
        code, said = printed(name, "--help")
        assert code == 0
        assert "Usage" in said


def test_tables_and_paths_in_every_encoding(printed: Printed, model: Path, tmp_path: Path) -> None:
    code, said = printed("presets")
    assert (code, "mar-digits" in said) == (0, True)
    for name in ("模型 ★", "ünïcode", os.fsdecode(b"undecodable \xff\xfe")):
        out = tmp_path / name
        code, said = printed("sample", "--model", model, "--labels", 3, *QUICK, "--out", out)
        assert code == 0
        assert "1 image: " in said
        assert only_whole(out) == ["grid.png", "samples/seed000000_label0003.png", "trace.json"]


def test_errors_show_no_control_characters_and_stay_on_one_line(disa: Command, model: Path, tmp_path: Path) -> None:
    for name in ("\x1b[31mred", "two\nlines", os.fsdecode(b"\xff"), "模型"):
        said = complaint(disa("sample", "--model", model, "--keep", tmp_path / name, "--box", "0,0,1,1"))
        assert "\x1b" not in said


# -- streams -------------------------------------------------------------------------------------------------------


def started(redirections: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """A command as a shell runs it."""
    words = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *words], capture_output=True, text=True, timeout=100
    )


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
@pytest.mark.parametrize(
    ("redirections", "code", "out", "err"),
    [
        ("", 0, f"disa {__version__}\n", ""),
        (">&-", 0, "", ""),
        ("2>&-", 0, f"disa {__version__}\n", ""),
        ("<&-", 0, f"disa {__version__}\n", ""),
        ("<&- >&- 2>&-", 0, "", ""),
        (">/dev/full", 1, "", "disa: nothing can be printed here: No space left on device. Files that were written "
                              "are whole.\n"),
        ("2>/dev/full", 0, f"disa {__version__}\n", ""),
        (">/dev/full 2>/dev/full", 1, "", ""),
    ],
)  # fmt: skip
def test_streams_that_are_closed_or_full(redirections: str, code: int, out: str, err: str) -> None:
    done = started(redirections, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (code, out, err)


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
@pytest.mark.parametrize(("redirections", "code"), [("<&- >&- 2>&-", 0), (">/dev/full 2>/dev/full", 1)])
def test_what_cannot_be_told_is_done_all_the_same(model: Path, tmp_path: Path, redirections: str, code: int) -> None:
    out = tmp_path / "out"
    done = started(redirections, "sample", "--model", model, "--labels", 3, *QUICK, "--out", out)
    assert done.returncode == code
    assert only_whole(out) == ["grid.png", "samples/seed000000_label0003.png", "trace.json"]


@pytest.mark.skipif(os.name == "nt", reason="there is no sh")
def test_a_mistake_keeps_its_code_where_nobody_listens() -> None:
    assert started(">&- 2>&-", "smaple").returncode == 2
    assert started(">/dev/full 2>/dev/full", "smaple").returncode == 2


# -- commands and options ------------------------------------------------------------------------------------------


def test_version(disa: Command) -> None:
    done = disa("--version")
    assert (done.code, done.out, done.err) == (0, f"disa {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["smaple"], "no such command 'smaple'. Did you mean 'sample'? See `disa --help`."),
        (["xyz"], "no such command 'xyz'. See `disa --help`."),
        (["sample", "--labls", "3"], "no such option: --labls. Did you mean --labels? See `disa sample --help`."),
        (["fit-probe", "--sed", "3"], "no such option: --sed. Did you mean --seed? See `disa fit-probe --help`."),
        (["sample", "--qqq"], "no such option: --qqq. See `disa sample --help`."),
        (["sample", "--model", "mar-digit"], "Did you mean mar-digits?"),
        (["sample", "--solver", "eulr"], "Did you mean euler?"),
        (["sample", "--grid", "unifrm"], "Did you mean uniform?"),
        (["sample", "--ramp", "linaer"], "Did you mean linear?"),
        (["train", "mar-digts"], "Did you mean mar-digits?"),
        (["train", "--vae", ""], "--vae must be a path, found ''"),
    ],
)
def test_the_nearest_name_is_told(disa: Command, tmp_path: Path, arguments: list[str], said: str) -> None:
    out = ["--out", tmp_path] if arguments[0] in ("train", "sample") and "--qqq" not in arguments else []
    assert said in complaint(disa(*arguments, *out))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", ""], "--out must be a path, found ''"),
        (["--out", " "], "--out must be a path, found ' '"),
        (["--out", "x" * 300], "File name too long"),
        (["--out", "/dev/null"], "cannot write to the folder /dev/null"),
        (["--out", "/dev/null/below"], "cannot write to the folder /dev/null/below"),
        (["--model", ""], "unknown model ''"),
        (["--checkpoint", ""], "--checkpoint must be a path, found ''"),
        (["--prompts", ""], "--prompts must be a path, found ''"),
        (["--keep", "", "--box", "0,0,1,1"], "--keep must be a path, found ''"),
        (["--tokenizer", "words"], "mar-digits draws from labels and has no tokenizer: leave words out"),
        (["--rewrite"], "mar-digits draws from labels: there are no prompts to rewrite"),
        (["--box", "0,0,1,1"], "--keep and --box go together"),
        (["--size", "8x8", "--height", "8"], "size says height and width: leave height out"),
        (["--size", "8x8", "--height", "8", "--width", "8"], "leave height and width out"),
        (["--solver", "ddpm@uniform", "--grid", "full"], "the solver ddpm@uniform says its own grid: leave grid out"),
        (["--solver", "ddim:eta=0.5", "--eta", "0.2"], "the solver ddim:eta=0.5 says its own eta: leave eta out"),
        (["--resume", "--replace"], "give one of the two"),
        (["--geneval"], "--geneval goes with prompts"),
        (["--negative-prompt", "a cat"], "--negative-prompt goes with prompts"),
        (["--per-prompt", "1000000000"], "--per-prompt goes with prompts"),
        (["--per-label", "1000000000"], "at most 10000000 images at a time, found 10000000000"),
        (["--seeds", "0-999999999999"], "there are too many seeds: expected at most 1000000"),
        (["--labels", "0-9," * 200_000 + "3"], "there are too many labels: expected at most 1000000"),
        (["--labels", "1," * 2_000_000 + "1"], "there are too many labels: expected at most 1000000"),
        (["--labels", "9" * 100_000], "labels must be whole numbers like 3"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_says_nothing_is_refused_at_once(
    disa: Command, model: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    began = time.monotonic()
    out = [] if "--out" in options else ["--out", tmp_path / "out"]
    source = [] if {"--checkpoint", "--model"} & set(options) else ["--model", model]
    assert said in complaint(disa("sample", *source, *QUICK, *options, *out))
    assert not (tmp_path / "out").exists()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ramp", "linear"], "guidance's ramp says nothing where guidance is 1, which is off"),
        (["--ramp", "linear", "--guidance-interval", "0-0.5"], "guidance's ramp and interval say nothing"),
    ],
)
def test_options_of_guidance_that_is_off_are_warned_of_once(
    disa: Command, model: Path, tmp_path: Path, options: list[str], said: str
) -> None:
    done = disa("sample", "--model", model, "--labels", 3, *QUICK, "--guidance", 1, *options, "--out", tmp_path)
    assert done.code == 0
    assert done.err.startswith(f"warning: {said}")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["evidence", "--varied", "9", "--seeds", "0-3", "--num-ar-steps", "4"],
            "--varied must be at most the 4 images drawn, found 9",
        ),
        (["evidence", "--draws", "1000000000"], "'--draws'"),
        (["calibrate", "--counts-only", "--budget", "0.5", "--reference", "1000000000"], "'--reference'"),
        (["calibrate", "--most", "65"], "'--most'"),
        (["bench", "--batch-size", "1000000000"], "'--batch-size'"),
        (["demo", "--images", "1000000000"], "'--images'"),
        (["fit-probe", "--out", ""], "--out must be a path"),
    ],
)
def test_the_other_commands_refuse(
    disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    source = [] if arguments[0] in ("demo", "train") else ["--model", model]
    assert said in complaint(disa(*arguments, *source))
    assert not list(tmp_path.iterdir())


def test_fit_images_say_nothing_to_a_model_that_predicts_itself(disa: Command, tmp_path: Path) -> None:
    said = complaint(disa("evidence", "--model", "flowar-digits", "--fit-images", 64, "--out", tmp_path / "out"))
    assert "flowar-digits predicts its tokens itself: leave --fit-images out" in said


def test_a_negative_prompt_without_words_is_none() -> None:
    for nothing in ("", " ", "\n"):
        assert Inputs.paired(0, prompts="a cat", negative_prompt=nothing).negative_prompt is None


# -- files of labels and seeds -------------------------------------------------------------------------------------


def test_labels_and_seeds_from_files(disa: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("\ufeff1 2\n3-5,7\n", encoding="utf-8")
    (tmp_path / "l.json").write_text("[1, 2.0, 3]")
    np.save(tmp_path / "l.npy", np.arange(5))
    assert parse_labels(f"@{tmp_path / 'l.txt'}") == [1, 2, 3, 4, 5, 7]
    assert parse_labels(f"@{tmp_path / 'l.json'}") == [1, 2, 3]
    assert parse_numbers(f"@{tmp_path / 'l.npy'}", "seeds") == [0, 1, 2, 3, 4]
    given = ("--labels", f"@{tmp_path / 'l.npy'}", "--seeds", f"@{tmp_path / 'l.npy'}", "--out", tmp_path / "out")
    report = disa("sample", "--model", model, *QUICK, *given, "--json").json()
    assert (report["labels"], report["seeds"]) == ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4])


def test_fifty_of_each_of_a_thousand_classes_are_read_from_a_file(tmp_path: Path) -> None:
    labels = [i // 50 for i in range(50_000)]
    (tmp_path / "labels.txt").write_text("\n".join(map(str, labels)))
    assert parse_labels(f"@{tmp_path / 'labels.txt'}") == labels


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b"", "holds no labels"),
        ("a.txt", b"1,x", "labels must be whole numbers like 3, 0-7 or 1,5,9; found 'x' in"),
        ("a.txt", b"0-1000001", "there are too many labels in"),
        ("a.txt", b"\xff\xfe\x00", "is no text: expected labels"),
        ("a.json", b"[1,", "begins as a JSON list and is none"),
        ("a.json", b"[]", "there are 0 labels in"),
        ("a.json", b"[1, true]", "must be a whole number, found True"),
        ("a.json", b"[[1]]", "must be a whole number, found"),
        ("a.json", b"[" * 100_000, "begins as a JSON list and is none"),
        ("a.npy", b"\x93NUMPY\x01\x00", "is not a whole array of numbers"),
    ],
)
def test_bad_files_of_labels(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DisaError) as error:
        parse_labels(f"@{tmp_path / name}")
    assert said in str(error.value)
    assert name in str(error.value)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array([1.5]), "must be a whole number, found 1.5"),
        (np.zeros((2, 2)), "expected one dimension"),
        (np.array(3), "expected one dimension"),
        (np.array(["a"]), "must be a whole number, found 'a'"),
        (np.array([{}]), "is not a whole array of numbers"),
    ],
)
def test_arrays_that_are_no_labels(tmp_path: Path, array: Any, said: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(DisaError, match=r"a\.npy") as error:
        parse_labels(f"@{tmp_path / 'a.npy'}")
    assert said in str(error.value)


# -- how far a work is ---------------------------------------------------------------------------------------------


class Time:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr("disa.progress.time", clock)
    return clock


def lines_of(clock: Time, work: Any, seconds: list[float]) -> None:
    with progress("drawing", work) as advance:
        for each in seconds:
            clock.now += each
            advance()


def test_lines_come_every_few_seconds_and_the_first_one_says_how_long(
    clock: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    lines_of(clock, 100, [1.0] * 100)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "drawing: 2 of 100, about 2 minutes left"
    assert lines[1] == "drawing: 7 of 100, about 2 minutes left"
    assert lines[-1] == "drawing: 97 of 100, about 3 seconds left"
    assert len(lines) == 20


def test_what_is_quick_says_nothing(clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    lines_of(clock, 30, [0.1] * 30)
    lines_of(clock, 1, [60.0])
    lines_of(clock, 0, [])
    assert capsys.readouterr() == ("", "")


def test_turns_that_cost_more_are_foreseen(clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    lines_of(clock, [1.0] * 10 + [100.0] * 10, [0.1] * 2)
    assert capsys.readouterr().err == "drawing: 2 of 20, about 2 minutes left\n"


def test_what_an_earlier_run_did_is_not_counted_as_quick(clock: Time, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("training", 1000) as advance:
        for done in (900, 901):
            clock.now += 10
            advance(done, note="loss 0.5")
    assert capsys.readouterr().err.splitlines() == [
        "training: 900 of 1000, loss 0.5",
        "training: 901 of 1000, loss 0.5, about 16 minutes left",
    ]


def test_a_work_goes_on_where_nobody_listens(clock: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    lines_of(clock, 10, [10.0] * 10)


def test_a_terminal_sees_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress("drawing", 3) as advance:
        for _ in range(3):
            advance(note="loss 0.5")
    assert "drawing" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "1 second"),
        (1.4, "1 second"),
        (89, "89 seconds"),
        (90, "2 minutes"),
        (3600, "60 minutes"),
        (5400, "2 hours"),
    ],
)
def test_times_are_spoken(seconds: float, said: str) -> None:
    assert spoken(seconds) == said


def test_python_tells_how_far_it_is_if_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("disa.progress.SECONDS_BETWEEN_LINES", 0.0)
    sampler = small.sampler()
    silent = sampler.sample([3, 5], 0)
    assert capsys.readouterr() == ("", "")
    told = sampler.sample([3, 5], 0, progress_bar=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("drawing: 1 of 4")
    assert torch.equal(told.images, silent.images)


def test_json_stays_alone_on_standard_output(
    disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = disa("sample", "--model", model, "--labels", 3, "--num-ar-steps", 4, "--out", tmp_path, "--json")
    assert done.err == ""
    monkeypatch.setattr("disa.progress.SECONDS_BETWEEN_LINES", 0.0)
    done = disa("sample", "--model", model, "--labels", 3, "--num-ar-steps", 4, "--out", tmp_path, "--json")
    assert done.err.startswith("drawing: 1 of 4")
    assert json.loads(done.out)["labels"] == [3]


def test_every_turn_of_a_measurement_is_foreseen(short_paths: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "ITERATIONS", 20)
    sampler, turns = small.sampler(), list[int]()
    inputs, settings = Inputs.in_turn(range(8), [3]), sampler.settings(batch_size=3, num_ar_steps=2)
    calibrate.calibrate(sampler, inputs, settings, ["2"], 8, lambda: turns.append(0))
    assert len(turns) == len(calibrate.work(inputs, settings, 1.0))
    turns.clear()
    planning.make_plan(sampler, inputs.part(slice(5)), settings, 2, 2, on_turn=lambda: turns.append(0))
    assert len(turns) == len(planning.work(settings, 5, 2))
    turns.clear()
    fit.fit_probe(sampler, inputs, settings, on_turn=lambda: turns.append(0))
    assert len(turns) == len(calibrate.work(inputs, settings, 1.0))


# -- too few images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.9, 1.1, ""),
        (-7.0, 22.0, "30 images are few: what constant:2 scores lies between -7.00 and 22.00, and constant:1 differs "
                     "by -0.10 to 0.20. Draw more to tell small differences."),
    ],
)  # fmt: skip
def test_few_images_are_said_to_be_few(low: float, high: float, said: str) -> None:
    policies = [
        PolicyResult(steps, 1, 1.0, 1.0, 0.5, 0.5, 1.0, [1.0], None, difference)
        for steps, difference in (("constant:2", None), ("constant:1", Spread(0.1, -0.1, 0.2, 0.1, 0.0)))
    ]
    inputs = Inputs.paired(range(30), 3)
    assert Comparison(policies, [], inputs, {}, headline=Spread(1.0, low, high, 0.1, 0.0)).too_few == said
