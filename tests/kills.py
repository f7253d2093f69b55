"""Kill commands at random moments, and look at what is on the disk.

    python tests/kills.py sample --times 30 --seed 0
    python tests/kills.py all --writes          at every call that changes a folder, one after the other
    python tests/kills.py train --fresh         start Python anew each time, so that its start is killed too

After each kill the files must be whole and of one run, the command is given again, and what it leaves must be bit for
bit what a run leaves that nobody killed. Prints a table; exits with 1 if anything else was found.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import small
from disa import cli
from disa.draw.pictures import text_of
from disa.tiny import tasks
from disa.tiny import train as training
from disa.weights.folders import codec_files, load_folder, model_files, write_folder

CALLS = ("replace", "unlink", "mkdir", "rmdir", "open", "fsync")
"""What changes a folder, in the module os."""
QUICK = ("--steps", "constant:2", "--num-ar-steps", "4", "--batch-size", "3", "--device", "cpu", "--json")
Content = dict[str, bytes]


@dataclass(frozen=True)
class Scenario:
    """A command that is killed."""

    prepare: Callable[[Path], object]
    """Makes what the command needs, in the folder of all runs."""
    before: Callable[[Path, Path], object]
    """Makes what is in the folder that the command writes into; the first is that of all runs."""
    command: Callable[[Path, Path], list[object]]
    again: tuple[str, ...] = ()
    """What is added when it is given again."""
    check: Callable[[Path, Content, Content], None] = lambda folder, old, new: None
    """Looks at a folder after a kill; what it held before, and what a run leaves that nobody kills."""


def contents(folder: Path) -> Content:
    """Every file, without what differs from run to run: times, and a training's state."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_timeless(json.loads(content)), sort_keys=True).encode()
        if path.name != "state.pt":
            found[str(path.relative_to(folder))] = content
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        counts = (
            "seconds",
            "images_counted",
            "evaluations",
            "backbone_tokens",
            "operations",
            "rows",
            "drawn",
            "iterations_this_run",
            "steps",
        )
        return {key: _timeless(part) for key, part in value.items() if not key.startswith(counts)}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


# -- what must hold after a kill -----------------------------------------------------------------------------------


def check_whole(folder: Path) -> None:
    """Every file under its own name can be read to its end."""
    for path in (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")):
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
            assert path.parent.name != "samples" or json.loads(text_of(path, "disa"))["identity"], path
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as stored:
                assert all(stored[name].size for name in stored.files)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)


def check_images(folder: Path, old: Content, new: Content) -> None:
    """Images of the old run or of the new one, and a trace that tells of none that is not there."""
    found = {name: content for name, content in contents(folder).items() if name.startswith("samples/seed")}
    assert found.items() <= old.items() or found.items() <= new.items(), "images of two runs"
    if (folder / "trace.json").exists():
        trace = json.loads((folder / "trace.json").read_text())
        assert trace["images_counted"] <= len(found), "a trace of images that are not there"


def check_model(folder: Path, old: Content, new: Content) -> None:
    """One model, whatever it takes to see it."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    if config.exists() and weights.exists():
        assert json.loads(config.read_text())["sha256"] == sha256(weights.read_bytes()).hexdigest(), "two models"
    if config.exists():
        assert _visible(folder) in (old, new), "files of two models"
    if old or config.exists() or (folder / ".unfinished.disa").exists():
        load_folder(folder)
        assert _visible(folder) in (old, new), "the model is lost"


def check_training(folder: Path, old: Content, new: Content) -> None:
    if (folder / "config.json").exists() or (folder / ".unfinished.disa").exists():
        check_model(folder, old, new)


def check_plan(folder: Path, old: Content, new: Content) -> None:
    """The old plan with its plot or the new one; beside them what an interrupted measurement goes on from."""
    found = _visible(folder)
    found.pop("measured.npz", None)
    assert found.items() <= old.items() or found.items() <= new.items(), "a plan and the plot of another"
    assert not old or "plan.json" in found, "no plan"


def check_table(folder: Path, old: Content, new: Content) -> None:
    """The old table or the new one, alone or with its own plot."""
    found = _visible(folder)
    assert found.items() <= old.items() or found.items() <= new.items(), "a table and the plot of another"
    assert not old or "table.json" in found, "no table"


def _visible(folder: Path) -> Content:
    return {name: content for name, content in contents(folder).items() if not Path(name).name.startswith(".")}


# -- the commands --------------------------------------------------------------------------------------------------


def _sample(model: Path, out: Path, *options: str) -> list[object]:
    return ["sample", "--model", model, "--labels", "0-3", "--per-label", "3", *QUICK, "--out", out, *options]


def _model(folder: Path, seed: int) -> None:
    """A model of pixels, with an autoencoder and a tokenizer beside it."""
    vae = {f"vae/{name}": content for name, content in codec_files(small_codec(seed)).items()}
    words = {f"tokenizer/{name}": f"{seed}".encode() for name in ("tokenizer.json", "merges.txt")}
    preset = small.changed(small.PRESET, name="mine", codec=small_codec(seed).model.config)
    write_folder(folder, model_files(preset, small.weights(seed=seed)) | vae | words)


@functools.cache
def small_codec(seed: int) -> Any:
    from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig

    torch.manual_seed(seed)
    config = SmallVAEConfig(
        in_channels=1, latent_channels=1, half_width=8, quarter_width=16, full_width=8, eighth_width=8, linear=True
    )
    return SmallCodec(SmallVAE(config))


def _calibrate(model: Path, out: Path, budget: str) -> list[object]:
    asked = ("--seeds", "0-1", "--reference", "8", "--num-ar-steps", "2", "--device", "cpu", "--json")
    return ["calibrate", "--counts-only", "--model", model, "--budget", budget, *asked, "--out", out]


def _plan(model: Path, out: Path, budget: str) -> list[object]:
    asked = ("--seeds", "0-3", "--most", "2", "--num-ar-steps", "2", "--batch-size", "2", "--device", "cpu", "--json")
    return ["calibrate", "--model", model, "--budget", budget, *asked, "--out", out]


SCENARIOS = {
    "sample": Scenario(
        prepare=lambda work: small.folder(work / "model"),
        before=lambda work, out: None,
        command=lambda work, out: _sample(work / "model", out),
        again=("--resume",),
        check=check_images,
    ),
    "replace": Scenario(
        prepare=lambda work: small.folder(work / "model"),
        before=lambda work, out: run(_sample(work / "model", out, "--guidance", "3")),
        command=lambda work, out: _sample(work / "model", out, "--replace"),
        check=check_images,
    ),
    "train": Scenario(
        prepare=lambda work: None,
        before=lambda work, out: None,
        command=lambda work, out: ["train", "xar-digits", "--iterations", "7", "--out", out, "--json"],
        check=check_training,
    ),
    "convert": Scenario(
        prepare=lambda work: _model(work / "model", 1),
        before=lambda work, out: _model(out, 0),
        command=lambda work, out: ["convert", work / "model", "--out", out, "--json"],
        check=check_model,
    ),
    "convert-in-place": Scenario(
        prepare=lambda work: None,
        before=lambda work, out: _model(out, 0),
        command=lambda work, out: ["convert", out, "--set", "guidance=3.5", "--name", "other", "--out", out, "--json"],
        check=check_model,
    ),
    "calibrate": Scenario(
        prepare=lambda work: small.folder(work / "model"),
        before=lambda work, out: run(_calibrate(work / "model", out, "0.6")),
        command=lambda work, out: _calibrate(work / "model", out, "0.4"),
        check=check_table,
    ),
    "plan": Scenario(
        prepare=lambda work: small.folder(work / "model"),
        before=lambda work, out: run(_plan(work / "model", out, "1.5")),
        command=lambda work, out: _plan(work / "model", out, "2"),
        check=check_plan,
    ),
}


def run(arguments: list[object]) -> None:
    """A command in this process, as the shell would run it; trainings are tiny, and save every second iteration."""
    task, recipe = tasks.RECIPES["xar-digits"]
    argv, train, sys.argv = sys.argv, training.train, ["disa", *map(str, arguments)]
    tasks.RECIPES["xar-digits"] = task, replace(recipe, batch_size=4, warmup=2)
    training.train = functools.partial(train, save_every=2)
    torch.set_num_threads(1)
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{' '.join(sys.argv)} ended with {end.code}") from end
    finally:
        sys.argv, training.train, tasks.RECIPES["xar-digits"] = argv, train, (task, recipe)


# -- kills ---------------------------------------------------------------------------------------------------------


def start(arguments: list[object], fresh: bool, dies_at: int = 0) -> int:
    """The id of a process that runs the command; dies_at: at which call of `CALLS` it kills itself."""
    if fresh:
        program = [sys.executable, __file__, "--run", *map(str, arguments)]
        return subprocess.Popen(program, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).pid
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        with at_call(dies_at, lambda: os.kill(os.getpid(), signal.SIGKILL)):
            run(arguments)
        code = 0
    finally:
        os._exit(code)


def _quiet() -> contextlib.redirect_stdout[io.StringIO]:
    return contextlib.redirect_stdout(io.StringIO())


@contextlib.contextmanager
def at_call(number: int, act: Callable[[], object]) -> Iterator[Callable[[], int]]:
    """Call `act` before that call of `CALLS`, and before each one after it. Yields how many there were."""
    before, count = {name: getattr(os, name) for name in CALLS}, 0

    def counting(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if 0 < number <= count:
            act()
        return call(*arguments, **options)

    try:
        for name, call in before.items():
            setattr(os, name, functools.partial(counting, call))
        yield lambda: count
    finally:
        for name, call in before.items():
            setattr(os, name, call)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_apart(arguments: list[object], fresh: bool = False) -> None:
    """A command in a process of its own."""
    assert wait(start(arguments, fresh)) == 0, "the command cannot be given again"


@dataclass(frozen=True)
class Prepared:
    """A command, what was there before it, and what a run leaves that nobody kills."""

    scenario: Scenario
    work: Path
    old: Content
    new: Content
    seconds: float
    once: Callable[[list[object]], object]
    """Runs a command to its end."""

    @classmethod
    def of(cls, scenario: Scenario, work: Path, once: Callable[[list[object]], object]) -> Prepared:
        scenario.prepare(work)
        with _quiet():
            scenario.before(work, work / "old")
        shutil.copytree(work / "old", work / "whole") if (work / "old").exists() else None
        started = time.monotonic()
        once(scenario.command(work, work / "whole"))
        seconds = time.monotonic() - started
        return cls(scenario, work, contents(work / "old"), contents(work / "whole"), seconds, once)

    def folder(self, name: str) -> Path:
        """A folder as it is before the command."""
        if (self.work / "old").exists():
            shutil.copytree(self.work / "old", self.work / name)
        return self.work / name

    def look(self, out: Path) -> str:
        """What is there after a kill. Raises AssertionError."""
        check_whole(out)
        self.scenario.check(out, self.old, self.new)
        found = _visible(out) if out.exists() else {}
        return "old" if found == self.old else "new" if found == self.new else "part"

    def finish(self, out: Path) -> None:
        """Give the command again, and compare. Raises AssertionError."""
        samples = {path: path.read_bytes() for path in out.glob("samples/seed*.png")} if self.scenario.again else {}
        times = {path: path.stat().st_mtime_ns for path in samples}
        self.once([*self.scenario.command(self.work, out), *self.scenario.again])
        found = contents(out)
        left = [name for name in found if Path(name).name.startswith(".")]
        assert not left, f"left over: {left}"
        assert found == self.new, f"differs: {sorted(dict(found.items() ^ self.new.items()))}"
        assert all(path.read_bytes() == content for path, content in samples.items())
        assert times == {path: path.stat().st_mtime_ns for path in samples}, "drawn twice"


def kill(prepared: Prepared, moments: list[tuple[float, int]], fresh: bool) -> tuple[Counter[str], list[str]]:
    """States after kills at moments, each of which is a time or the number of a call; and what was wrong."""
    states, failures = Counter[str](), list[str]()
    for i, (seconds, call) in enumerate(moments):
        out = prepared.folder(f"out{i}")
        child = start(prepared.scenario.command(prepared.work, out), fresh, call)
        if not call:
            time.sleep(seconds)
            os.kill(child, signal.SIGKILL)
        ended = wait(child) == 0
        try:
            states[f"{'ended' if ended else 'killed'}, {prepared.look(out)}"] += 1
            prepared.finish(out)
        except (AssertionError, OSError, ValueError, RuntimeError) as error:
            failures.append(
                f"{f'call {call}' if call else f'{seconds:.3f} s'}: {type(error).__name__}: {error} ({out})"
            )
        else:
            shutil.rmtree(out)
    return states, failures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=[*SCENARIOS, "all"])
    parser.add_argument("--times", type=int, default=30, help="kills at random moments, spread over a whole run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--writes", action="store_true", help="kill at every call that changes a folder instead")
    parser.add_argument("--fresh", action="store_true", help="start Python anew for each run")
    parser.add_argument("--work", type=Path, help="a folder for what is written; removed if all is well")
    asked = parser.parse_args()
    chance, failed = random.Random(asked.seed), False
    for name in SCENARIOS if asked.command == "all" else [asked.command]:
        work = Path(tempfile.mkdtemp(prefix=f"kills-{name}-", dir=asked.work))
        os.environ["DISA_CACHE"] = str(work / "cache")
        prepared = Prepared.of(SCENARIOS[name], work, functools.partial(run_apart, fresh=asked.fresh))
        if asked.writes:
            moments = [(0.0, i + 1) for i in range(calls_of(prepared))]
        else:
            share = [(i + chance.random()) / asked.times for i in range(asked.times)]
            moments = [(1.02 * prepared.seconds * each, 0) for each in share]
        states, failures = kill(prepared, moments, asked.fresh)
        told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
        print(f"{name}: {len(moments)} kills in runs of {prepared.seconds:.2f} s ({told}), {len(failures)} failures")
        for failure in failures:
            print(f"  {failure}")
        failed = failed or bool(failures)
        if not failures:
            shutil.rmtree(work)
    sys.exit(failed)


def calls_of(prepared: Prepared) -> int:
    """How many calls a run makes that change a folder."""
    out = prepared.folder("counted")
    with at_call(0, lambda: None) as count, _quiet():
        run(prepared.scenario.command(prepared.work, out))
        return count()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--run"]:
        run(list(sys.argv[2:]))
    else:
        main()
