"""Draw on two Ray nodes, kill one of them, and compare what the run ends with to one that nobody disturbed.

    python tests/two_nodes.py

Both nodes are on this machine, at 127.0.0.1 and 127.0.0.2, each with one core and one worker of a tiny model. Once the
second one has drawn something, all of its processes are killed with SIGKILL, as if its machine had gone. The run must
end by itself with exit code 0 and no image given up, and its shards must equal those of `--workers 0` to the last byte.
Prints what was done, and ends with one line of JSON; exits with 1 if it is not so. Linux only: it needs /proc, and the
whole of 127.0.0.0/8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import small
import soak

HEAD, SECOND = "127.0.0.1", "127.0.0.2"
PATIENCE = 180.0
"""Seconds for a node to come, and for its first image."""


@contextlib.contextmanager
def node(log: Path, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Ray node of one core, whose processes are killed at the end. `ray stop` would end those of others too."""
    ray = str(Path(sys.executable).with_name("ray"))
    command = [ray, "start", "--block", "--num-cpus", "1", "--object-store-memory", str(1 << 28), *options]
    with log.open("wb") as file, subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> int:
    """Kill a process with all that it has started; returns how many there were."""
    pids = [process.pid, *soak.descendants(process.pid)]
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    return len(pids)


def until(happens: Callable[[], bool], what: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < deadline, f"{what} did not happen: {log.read_text()}"
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server((HEAD, 0)) as server:
        return server.getsockname()[1]


def started(log: Path) -> Callable[[], bool]:
    return lambda: "Ray runtime started" in log.read_text()


def drawn_on(run: soak.Soak, process: subprocess.Popen[bytes]) -> dict[str, int]:
    """Workers that are on this node now, and how many images each has drawn."""
    pids = set(soak.descendants(process.pid))
    return {each["name"]: each["images"] for each in run.progress().get("workers", ()) if each["pid"] in pids}


def draw_and_kill(run: soak.Soak, work: Path, address: str) -> dict[str, object]:
    """Draw with both nodes, and kill the second one meanwhile."""
    port, logs = address.rpartition(":")[2], [work / f"node-{i}.log" for i in (1, 2)]
    begin = ["--head", "--port", port, "--node-ip-address", HEAD, "--include-dashboard", "false"]
    begin += ["--temp-dir", str(work / "ray")]
    with node(logs[0], *begin):
        until(started(logs[0]), "the start of the first node", logs[0])
        with node(logs[1], "--address", address, "--node-ip-address", SECOND) as second:
            until(started(logs[1]), "the start of the second node", logs[1])
            driver = run.start()
            log = run.folder.with_name("driver-1.log")
            until(
                lambda: driver.poll() is not None or any(drawn_on(run, second).values()),
                "an image of the second node",
                log,
            )
            assert driver.poll() is None, f"it ended before anything was killed: {log.read_text()}"
            lost = drawn_on(run, second)
            killed = kill(second)
            print(f"{killed} processes of the second node killed, which had drawn {lost}", flush=True)
        code = driver.wait()
    told = run.progress()
    print(log.read_text(), end="", flush=True)
    return {
        "exit_code": code,
        "images_of_workers": {each["name"]: each["images"] for each in told["workers"]},
        "lost_workers": list(lost),
        "deaths": told["deaths"],
        "failures": len(told["failures"]),
        "seconds": round(told["seconds"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--chunk", type=int, default=8)
    asked = parser.parse_args()
    # Nodes and driver know each other by a token, which everyone else on this machine does not have.
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    os.environ.update(OMP_NUM_THREADS="1", RAY_USAGE_STATS_ENABLED="0")
    work = Path(tempfile.mkdtemp(prefix="disa-", dir="/tmp"))  # Ray's sockets need a short name
    draws = ["--model", str(small.folder(work / "model")), "--labels", "0-9", "--per-label", str(asked.images // 10)]
    draws += ["--steps", "constant:4", "--num-ar-steps", "8", "--device", "cpu"]
    undisturbed = soak.Soak(work / "undisturbed", draws, ["--workers", "0", "--batch-size", "64"])
    assert undisturbed.start().wait() == 0, soak.log_of(undisturbed)
    address = f"{HEAD}:{free_port()}"
    (work / "two").mkdir()
    crewing = ["--workers", "2", "--address", address, "--chunk", str(asked.chunk), "--batch-size", str(asked.chunk)]
    run = soak.Soak(work / "two" / "run", draws, crewing)
    result = draw_and_kill(run, work, address)
    wrong = soak.compare(run.folder, undisturbed.folder)
    wrong += [f"{name}: {result[name]}" for name in ("exit_code", "failures") if result[name]]
    wrong += ["no worker died"] if not result["deaths"] else []
    print(json.dumps({"images": asked.images, **result, "wrong": wrong}))
    if not wrong:
        shutil.rmtree(work, ignore_errors=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
