"""Kill a bulk run again and again, go on with it, and compare what it ends with to a run that nobody disturbed.

    python tests/soak.py --images 20000 --kills 24 --out soak.json

Killed with SIGKILL at random moments are, in turn: the driver; one worker; the driver and every process that it
started, Ray's included. Afterwards every shard must equal that of the other run to the last byte, with nothing missing,
nothing doubled and no temporary file left. With `--evaluate` workers compute features of what they draw, and `disa
evaluate` must then tell the numbers that it tells of the other run, whose pictures it looks at. Prints what was done,
and ends with one line of JSON; exits with 1 if it is not so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VICTIMS = ("driver", "worker", "all")
PATIENCE = 900.0
"""Seconds until a driver must be seen to draw, or to end."""


@dataclass
class Soak:
    """A run that is killed. `draws`: what the command is given beside the folder."""

    folder: Path
    draws: Sequence[str]
    crewing: Sequence[str]
    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """A driver that begins the run, or goes on with it."""
        begun = (self.folder / "run.json").exists()
        how = ["--resume", str(self.folder)] if begun else [*self.draws, "--out", str(self.folder)]
        self.starts += 1
        log = self.folder.with_name(f"driver-{self.starts}.log").open("wb")
        command = [sys.executable, "-m", "disa", "bulk", *how, *self.crewing]
        self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        log.close()
        return self.process

    def kill(self, victim: str, process: subprocess.Popen[bytes]) -> bool:
        """Whether there was something to kill."""
        if victim == "worker":
            pids = self.workers_of(process)[:1]
        elif victim == "driver":
            pids = [process.pid]
        else:
            pids = [process.pid, *descendants(process.pid)]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.kills[victim] += bool(pids)
        return bool(pids)

    def workers_of(self, process: subprocess.Popen[bytes]) -> list[int]:
        """The processes of a driver's workers, as soon as it has told of any; none where it has ended before."""
        while process.poll() is None:
            told = [each["pid"] for each in self.progress().get("workers", ()) if each.get("pid")]
            if known := [pid for pid in told if pid in descendants(process.pid)]:
                return known
            time.sleep(0.05)
        return []

    def progress(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return json.loads((self.folder / "progress.json").read_text())
        return {}

    def wait_until_drawing(self, process: subprocess.Popen[bytes]) -> bool:
        """Until this driver has drawn something; False where it has ended before."""
        before, deadline = self.seen(), time.monotonic() + PATIENCE
        while process.poll() is None:
            if self.seen() > before:
                return True
            assert time.monotonic() < deadline, "nothing is drawn"
            time.sleep(0.05)
        return False

    def seen(self) -> tuple[int, ...]:
        """Something that grows with every chunk that is written."""
        counts = (sum(1 for _ in (self.folder / name).glob("*.json")) for name in ("shards", "parts"))
        return tuple(counts)


def soak(run: Soak, num_kills: int, longest: float, chance: random.Random) -> None:
    """Kill until it has been killed so often, at moments up to `longest` seconds after the first image of a driver;
    then let it end."""
    process, done = run.start(), 0
    while done < num_kills:
        if not run.wait_until_drawing(process):
            assert process.returncode == 0, log_of(run)
            return  # all is drawn
        time.sleep(longest * chance.random())
        victim = VICTIMS[done % len(VICTIMS)]
        if process.poll() is None and run.kill(victim, process):
            done += 1
            print(f"kill {done} of {num_kills}: {victim}, {run.seen()} shards and parts there", flush=True)
        if victim != "worker":
            process.wait()
            process = run.start()
    process.wait()
    while process.returncode != 0:
        assert run.starts < 3 * num_kills + 9, log_of(run)
        process = run.start()
        process.wait()


def compare(run: Path, undisturbed: Path) -> list[str]:
    """What is wrong."""
    found = [f"left over: {path.relative_to(run)}" for path in run.rglob("*") if path.name.startswith(".")]
    found += ["left over: parts"] if (run / "parts").exists() else []
    shards, expected = contents(run / "shards"), contents(undisturbed / "shards")
    found += [f"{name} is there in one run only" for name in sorted(shards.keys() ^ expected.keys())]
    found += [f"{name} differs" for name in sorted(shards.keys() & expected.keys()) if shards[name] != expected[name]]
    verified = subprocess.run(
        [sys.executable, "-m", "disa", "bulk", "--verify", str(run), "--json"], capture_output=True, text=True
    )
    if verified.returncode:
        found.append(f"--verify: {verified.stdout}{verified.stderr}")
    return found


def compare_numbers(run: Path, undisturbed: Path, features: str) -> list[str]:
    """What is wrong with the numbers of an evaluation. Features of the undisturbed run are kept nowhere yet."""
    told = []
    for folder, cache in ((run, None), (undisturbed, run.with_name("other-cache"))):
        command = [sys.executable, "-m", "disa", "evaluate", str(folder), "--against", "digits", "--json"]
        environment = os.environ | ({} if cache is None else {"DISA_CACHE": str(cache)})
        done = subprocess.run([*command, "--features", features], capture_output=True, text=True, env=environment)
        if done.returncode:
            return [f"evaluate: {done.stderr}"]
        told.append(json.loads(done.stdout) | {"images": ""})
    return [] if close(*told) else [f"evaluate: {told[0]} is not {told[1]}"]


def close(found: Any, expected: Any) -> bool:
    """Equal, and numbers within 1e-9."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[name], expected[name]) for name in expected)
    if isinstance(expected, float):
        return math.isclose(found, expected, rel_tol=1e-9)
    return found == expected


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def descendants(pid: int) -> list[int]:
    """All processes that a process has started, and those that they have."""
    parents = dict(_parents())
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def _parents() -> Iterator[tuple[int, int]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            yield int(path.parent.name), int(path.read_text().rpartition(")")[2].split()[1])


def log_of(run: Soak) -> str:
    return run.folder.with_name(f"driver-{run.starts}.log").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mar-digits")
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", default="constant:1")
    parser.add_argument("--num-ar-steps", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--longest", type=float, default=20.0, help="seconds to a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--evaluate", help="features that workers compute while they draw, as digits-classifier")
    parser.add_argument("--work", type=Path, help="a folder for the runs; removed if all is well")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    asked = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="soak-", dir=asked.work))
    os.environ["DISA_CACHE"] = str(work / "cache")
    draws = ["--model", asked.model, "--labels", "0-9", "--per-label", str(asked.images // 10), "--device", "cpu"]
    draws += ["--steps", asked.steps, "--num-ar-steps", str(asked.num_ar_steps)]
    chunk = ["--chunk", str(asked.chunk)]
    started = time.monotonic()
    undisturbed = Soak(work / "undisturbed", draws, [*chunk, "--workers", "0"])
    assert undisturbed.start().wait() == 0, log_of(undisturbed)
    alone, started = time.monotonic() - started, time.monotonic()
    features = ["--evaluate", asked.evaluate] if asked.evaluate else []
    run = Soak(work / "killed", draws, [*chunk, *features, "--workers", str(asked.workers)])
    soak(run, asked.kills, asked.longest, random.Random(asked.seed))
    kept = len(list((work / "cache" / "features").glob("*.npz")))
    found = compare(run.folder, undisturbed.folder)
    found += compare_numbers(run.folder, undisturbed.folder, asked.evaluate) if asked.evaluate else []
    result = {
        "images": asked.images,
        "workers": asked.workers,
        "kills": dict(run.kills),
        "starts": run.starts,
        "evaluate": asked.evaluate,
        "files_of_features": kept,
        "seconds": round(time.monotonic() - started, 1),
        "seconds_undisturbed": round(alone, 1),
        "wrong": found,
    }
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
    if not found:
        shutil.rmtree(work)
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
