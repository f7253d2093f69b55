"""Whatever ends a command, the disk holds whole files of one run, and the next run goes on or clears up.

`python tests/kills.py` does the same with kill -9, at random moments and everywhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

import kills
import small
from command import Command, complaint, files
from disa.draw.folder import SampleFolder
from disa.errors import DisaError
from disa.files import (
    JOURNAL,
    clear_unfinished,
    finish_writing,
    make_folder,
    only_writer,
    write_each,
    write_text,
    write_together,
    write_whole,
)
from disa.models.registry import PRESETS
from disa.stopping import keeping_handlers, stop_later
from disa.weights.convert import convert
from disa.weights.folders import load_folder, model_files, write_folder


class Killed(BaseException):
    pass


def killed() -> None:
    raise Killed


def texts(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in files(folder)}


# -- commands ------------------------------------------------------------------------------------------------------


LONG = pytest.mark.long


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("convert", 6),
        ("sample", 28),
        pytest.param("convert-in-place", 4, marks=LONG),
        pytest.param("replace", 8, marks=LONG),
        pytest.param("calibrate", 11, marks=LONG),
        pytest.param("plan", 36, marks=LONG),
    ],
)
def test_a_command_that_is_killed_before_a_write(
    name: str, every: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None, short_paths: None
) -> None:
    """From some call on, nothing reaches the disk any more: neither what is to be written nor what is to be cleared."""
    prepared = kills.Prepared.of(kills.SCENARIOS[name], tmp_path, kills.run)
    calls = kills.calls_of(prepared)
    assert calls > 20
    seen = set[str]()
    for call in range(1, calls + 1, every):
        out = prepared.folder(f"out{call}")
        with pytest.raises(Killed), kills.at_call(call, killed):
            kills.run(prepared.scenario.command(tmp_path, out))
        seen.add(prepared.look(out))
        prepared.finish(out)
    assert "old" in seen
    assert "part" in seen or "new" in seen
    capsys.readouterr()


COUNTS, PLAN = "calibrate --counts-only", "calibrate"
FULL: dict[str, tuple[object, ...]] = {
    "sample": ("--labels", "0-3", "--replace", "--steps", "constant:1", "--num-ar-steps", 2),
    "compare": ("--steps", "constant:2", "--steps", "constant:1", "--seeds", "0-19", "--num-ar-steps", 2),
    COUNTS: ("--budget", "0.5", "--seeds", "0-1", "--reference", 8, "--num-ar-steps", 2),
    PLAN: ("--budget", 2, "--seeds", "0-3", "--most", 2, "--num-ar-steps", 1),
    "evidence": ("--seeds", "0-3", "--draws", 2, "--draw-steps", 2, "--varied", 1, "--path-steps", 2,
                 "--fit-images", 8, "--num-ar-steps", 4),
    "fit-probe": ("--seeds", "0-7", "--num-ar-steps", 4),
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "call"), [*((command, "write") for command in FULL), ("sample", "replace"), ("compare", "replace")]
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(
    disa: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    call: str,
    one_thread: None,
    short_paths: None,
) -> None:
    model, out = small.folder(tmp_path / "model"), tmp_path / "out"
    target = out / "probe.safetensors" if command == "fit-probe" else out
    arguments = (*command.split(), "--model", model, *FULL[command], "--device", "cpu", "--out", target)
    assert disa(*arguments).code == 0
    before = kills.contents(out)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr("disa.files._Part._create", full)
    said = complaint(disa(*arguments, "--guidance", 3))
    assert f"could not write {out}" in said
    assert "No space left on device" in said
    if (command, call) == ("sample", "replace"):  # renaming needs no room, but for this disk
        assert files(out) == []
    else:
        assert kills.contents(out) == before


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_one_line(
    disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    """What was drawn is kept and told of, and nothing temporary stays."""
    write, handler = SampleFolder.write, signal.signal(signal.SIGINT, signal.default_int_handler)

    def write_and_die(self: SampleFolder, *arguments: Any) -> None:
        write(self, *arguments)
        os.kill(os.getpid(), signum)

    monkeypatch.setattr(SampleFolder, "write", write_and_die)
    model, before = small.folder(tmp_path / "model"), signal.getsignal(signal.SIGTERM)
    try:
        done = disa("sample", "--model", model, "--labels", "0-3", *kills.QUICK, "--out", tmp_path / "out")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert (done.code, done.out, done.err) == (code, "", "disa: stopped; only whole files were written.\n")
    assert len(files(tmp_path / "out")) == 4
    assert "trace.json" in files(tmp_path / "out")
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_python_starts(signum: signal.Signals, tmp_path: Path) -> None:
    """No traceback, however early it comes."""
    program = (
        "import signal, sys, os; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'typer': os.kill(os.getpid(), int(sys.argv.pop()))\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from disa.__main__ import main; main()"
    )
    command = [sys.executable, "-c", program, "presets", str(int(signum))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (128 + signum, "")
    assert done.stderr == "disa: stopped; only whole files were written.\n"


def test_the_second_signal_ends_at_once() -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with stop_later() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signum == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, handler)


def test_handlers_of_a_library_do_not_stay() -> None:
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    with keeping_handlers():
        for signum in before:
            signal.signal(signum, lambda *_: None)
    assert {signum: signal.getsignal(signum) for signum in before} == before


# -- one file and several ------------------------------------------------------------------------------------------


def stopped_at_every_call(folder: Path, before: dict[str, str], act: Callable[[Path], object]) -> list[Path]:
    """Folders in which an act was killed at its first, second, ... call that changes the disk; the last was not."""
    ended, folders = False, list[Path]()
    while not ended:
        out = folder / f"{len(folders)}"
        for name, text in before.items():
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(text)
        ended = True
        with contextlib.suppress(Killed), kills.at_call(len(folders) + 1, killed):
            ended = False
            act(out)
            ended = True
        folders.append(out)
    return folders


OLD = {"config.json": "old", "model": "old", "vae/model": "old"}
NEW = {"config.json": "new", "model": "new", "vae/model": "new"}


def write_new(folder: Path) -> None:
    write_together(folder, {"model": b"new", "vae/model": b"new"}, {"config.json": b"new"})


@pytest.mark.parametrize("before", [OLD, {}, {**OLD, ".mine.0123abcd": "mine", "mine.txt": "mine"}])
def test_files_that_belong_together_are_all_old_or_all_new(tmp_path: Path, before: dict[str, str]) -> None:
    seen = list[str]()
    for out in stopped_at_every_call(tmp_path, before, write_new):
        there = {name: text for name, text in texts(out).items() if name in OLD} if out.exists() else {}
        if "config.json" in there:
            assert len(set(there.values())) == 1
        make_folder(out)
        place = out / "vae"
        if place.exists():
            make_folder(place)
        assert texts(out) in (before, {**before, **NEW})
        seen.append("new" if texts(out) != before else "old")
        write_new(out)
        assert texts(out) == {**before, **NEW}
    assert seen == sorted(seen, reverse=True)
    assert seen.count("old") > 10
    assert seen.count("new") > 10


@pytest.mark.parametrize("first", [make_folder, clear_unfinished, finish_writing])
@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_within_is_made_ready_first(tmp_path: Path, first: Callable[[Path], object], linked: bool) -> None:
    seen = set[str]()
    for out in stopped_at_every_call(tmp_path, OLD, write_new):
        place = out / "vae"
        if linked:
            place = out.with_name(f"{out.name}-link")
            place.symlink_to(out / "vae")
        first(place)
        if first is not clear_unfinished:
            assert len({(out / name).read_text() for name in OLD if (out / name).exists()}) == 1
        make_folder(out)
        make_folder(place)
        assert texts(out) in (OLD, NEW)
        seen.add((out / "model").read_text())
    assert seen == {"old", "new"}


def test_whoever_reads_a_model_finishes_what_was_written(tmp_path: Path) -> None:
    def convert_it(out: Path) -> None:
        write_folder(out, model_files(small.PRESET, small.weights(seed=1)))

    seen = set[float]()
    first, second = (small.weights(seed=seed)["encoder_positions"].sum().item() for seed in (0, 1))
    for i in range(1, 46, 4):
        out = tmp_path / str(i)
        write_folder(out, model_files(small.PRESET, small.weights(seed=0)))
        with contextlib.suppress(Killed), kills.at_call(i, killed):
            convert_it(out)
        found = load_folder(out)[1].state_dict()["encoder_positions"].sum().item()
        assert found in (first, second)
        seen.add(found)
        assert not (out / JOURNAL).exists()
    assert seen == {first, second}


@pytest.mark.parametrize(
    "journal",
    [
        '{"token": "01234567", "files": ["../victim"], "telling": ["../victim"]}',
        '{"token": "01234567", "files": [], "telling": ["/etc/hostname"]}',
        '{"token": "../../..", "files": ["victim"], "telling": []}',
        '{"token": 7}',
        "[" * 100_000,
        "",
    ],
)
def test_a_journal_of_someone_else_changes_nothing(tmp_path: Path, journal: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("victim", ".victim.01234567.disa"):
        (tmp_path / name).write_text(name)
    (out / JOURNAL).write_text(journal)
    finish_writing(out)
    make_folder(out)
    assert (tmp_path / "victim").read_text() == "victim"
    assert (out / JOURNAL).read_text() == journal


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_in_the_place_of_a_journal_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / JOURNAL)
    finish_writing(tmp_path)
    assert (tmp_path / JOURNAL).is_fifo()


def test_threads_that_ask_at_once_share_the_right_to_write(tmp_path: Path) -> None:
    start, found = threading.Barrier(8), list[object]()

    def ask(folder: Path) -> None:
        start.wait()
        with contextlib.suppress(DisaError):
            found.append(only_writer(folder))

    for i in range(10):
        found.clear()
        folder = make_folder(tmp_path / str(i))
        threads = [threading.Thread(target=ask, args=(folder,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 8
        assert len(set(map(id, found))) == 1


def test_two_that_write_at_once_do_not_mix(tmp_path: Path) -> None:
    def write(word: bytes) -> None:
        for _ in range(20):
            write_together(tmp_path, {"a": word, "b": word}, {"c": word})

    threads = [threading.Thread(target=write, args=(word,)) for word in (b"x", b"y")]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        with only_writer(tmp_path):
            pass
    found = texts(tmp_path)
    assert sorted(found) == ["a", "b", "c"]
    assert len(set(found.values())) == 1


HOLD = """
import sys, time
from pathlib import Path
from disa.files import only_writer, write_whole
hold = only_writer(Path(sys.argv[1]))
def wait(file):
    print("ready", flush=True)
    sys.stdin.read()
write_whole(Path(sys.argv[1]) / "theirs.png", wait)
"""


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds a folder and is in the middle of a file in it."""
    (tmp_path / "held").mkdir()
    command = [sys.executable, "-c", HOLD, str(tmp_path / "held")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_what_a_running_process_writes_stays_and_its_folder_is_refused(other: Any, tmp_path: Path) -> None:
    held = tmp_path / "held"
    make_folder(held)
    [temporary] = files(held)
    for act in (only_writer, write_new):
        with pytest.raises(DisaError, match=r"another process writes into .*held"):
            act(held)
    assert files(held) == [temporary]
    other.kill()
    other.wait()
    make_folder(held)
    assert files(held) == []
    only_writer(held)


def test_two_commands_draw_into_one_folder(disa: Command, other: Any, tmp_path: Path) -> None:
    model = small.folder(tmp_path / "model")
    said = complaint(disa("sample", "--model", model, "--labels", 3, *kills.QUICK[:-1], "--out", tmp_path / "held"))
    assert "another process writes into" in said
    assert len(files(tmp_path / "held")) == 1


def test_only_our_own_temporary_files_are_cleared(tmp_path: Path) -> None:
    mine = (".notes.0123abcd", ".backup.20261127", ".config.json.20261127", ".a.txt.0123abcd", "x.png.0123abcd",
            ".0123abcd.disa", "a.0123abcd.disa", ".x.0123abcd.disa.bak")  # fmt: skip
    ours = (".seed000001.png.0123abcd", ".trace.json.5616ec80", ".seed000001.png.0123abcd.disa")
    for name in (*mine, *ours):
        (tmp_path / name).write_text("")
    (tmp_path / ".link.0123abcd.disa").symlink_to(tmp_path / "elsewhere")
    (tmp_path / ".folder.0123abcd.disa").mkdir()
    make_folder(tmp_path)
    assert files(tmp_path) == sorted([*mine, ".link.0123abcd.disa"])
    assert (tmp_path / ".folder.0123abcd.disa").is_dir()


def test_a_link_is_replaced_and_what_it_points_to_stays(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "ours")
    assert texts(tmp_path) == {"link": "ours", "target": "theirs"}


def test_long_names_can_be_written(tmp_path: Path) -> None:
    for letter in ("x", "é"):
        name = letter * (255 // len(letter.encode()))
        assert write_text(tmp_path / name, "new").read_text() == "new"


def test_without_room_for_all_none_is_written(tmp_path: Path) -> None:
    def stop() -> None:
        raise Killed

    with pytest.raises(Killed):
        write_each({tmp_path / "a": b"", tmp_path / "b": b""}, stop)
    assert files(tmp_path) == []
    (tmp_path / "b").mkdir()
    with pytest.raises(DisaError, match="could not write"):
        write_whole(tmp_path / "b", lambda file: file.write(b"x"))
    assert files(tmp_path) == []


def test_it_is_said_how_many_have_their_names(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(DisaError, match=r"could not write .*b: .*\. 1 of 3 files were written before\.$"):
        write_each({tmp_path / name: b"" for name in "abc"})
    assert files(tmp_path) == ["a"]


def test_an_error_that_is_none_of_the_disk_stays_what_it_is(tmp_path: Path) -> None:
    def fail(file: object) -> None:
        raise RuntimeError("wrong shape")

    with pytest.raises(RuntimeError, match="wrong shape") as caught:
        write_whole(tmp_path / "a", fail)
    assert caught.value.__cause__ is None
    assert files(tmp_path) == []


# -- models --------------------------------------------------------------------------------------------------------


def test_convert_replaces_no_model_of_others(tmp_path: Path) -> None:
    source, out = small.folder(tmp_path / "source"), tmp_path / "out"
    for name in ("config.json", "model.safetensors"):
        write_text(make_folder(out) / name, "{}")
        with pytest.raises(DisaError, match=rf"{name} was not written by disa: choose another folder\."):
            convert(source, None, out)
        assert texts(out) == {name: "{}"}
        (out / name).unlink()
    convert(source, None, out)
    convert(small.folder(tmp_path / "other", seed=1), None, out)
    assert load_folder(out)[1].state_dict()["encoder_positions"].equal(small.weights(seed=1)["encoder_positions"])


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "tokenizer/tokenizer.json"])
def test_convert_takes_no_part_of_another_model(tmp_path: Path, name: str) -> None:
    out = small.folder(tmp_path / "out")
    write_text(make_folder((out / name).parent) / Path(name).name, '"another"')
    before = kills.contents(out)
    with pytest.raises(DisaError, match=r"would be taken for the new model's: remove .*, or choose another folder"):
        convert(small.folder(tmp_path / "source", seed=1), None, out)
    assert kills.contents(out) == before


def test_convert_does_not_replace_its_own_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", small.PRESET)
    for name in ("small", "model"):
        source = tmp_path / f"{name}.safetensors"
        save_file(small.official_weights(), source)
        before = kills.contents(tmp_path)
        with pytest.raises(DisaError, match="would be replaced by what is read from it: choose another folder"):
            convert(source, "small", tmp_path, official=name == "small")
        assert kills.contents(tmp_path) == before
