"""`disa serve` as a process: how it starts, what it refuses, and that it ends in order."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

import small
from command import Command, complaint
from serving import Client, until

MANY = {"settings": {"num_ar_steps": 16}, "steps": "constant:60"}


@contextmanager
def running(*options: object) -> Iterator[tuple[subprocess.Popen[str], Client]]:
    command = [
        sys.executable,
        "-m",
        "disa",
        "serve",
        "--port",
        "0",
        "--json",
        "--num-ar-steps",
        "4",
        *map(str, options),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        first = process.stdout.readline()
        assert first, process.communicate()
        told = json.loads(first)
        yield process, Client(int(told["url"].rpartition(":")[2]))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_what_was_accepted_is_answered_before_the_end(tmp_path: Path, signum: signal.Signals) -> None:
    model = small.folder(tmp_path / "model")
    with running("--model", model, "--batch-size", 2) as (process, client), ThreadPoolExecutor(8) as pool:
        asked = [{"prompt": str(i), "seed": i} | MANY | {"steps": "constant:20"} for i in range(8)]
        found = [pool.submit(client.ask, each) for each in asked]
        until(lambda: client.get("/healthz").json["open_requests"] >= 8 - sum(each.done() for each in found))
        process.send_signal(signum)
        assert [each.result().status for each in found] == [200] * 8
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out, err) == (0, "", "")
        with pytest.raises(OSError, match="refused"):
            client.get("/healthz")


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    model = small.folder(tmp_path / "model")
    with running("--model", model, "--batch-size", 1) as (process, client):
        waiting = [client.open({"prompt": "3", "n": 16, "stream": i == 0} | MANY) for i in range(3)]
        until(lambda: client.get("/healthz").json["open_requests"] == 3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (1, "disa: stopped; 3 requests had no answer yet.\n")
        for each in waiting:
            each.close()


def test_options_hold_where_a_request_says_nothing(tmp_path: Path) -> None:
    model = small.folder(tmp_path / "model")
    (tmp_path / "keys").write_text(f"# of the test\n{'k' * 20}\n")
    options = ("--model", model, "--steps", "constant:3", "--api-key-file", tmp_path / "keys", "--max-images", 2)
    with running(*options) as (_, client):
        key = {"Authorization": f"Bearer {'k' * 20}"}
        first, second = ({"prompt": "3", "seed": 1} | more for more in ({}, {"steps": "constant:3"}))
        assert client.ask(first, key).pictures == client.ask(second, key).pictures
        assert client.ask(first).status == 401
        assert client.ask(first | {"n": 3}, key).status == 400


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), "give --api-key-file"),
        (("--host", "nowhere.invalid", "--api-key-file", "keys"), "cannot listen on nowhere.invalid"),
        (("--api-key-file", "missing"), "cannot read the keys missing"),
        (("--workers", 2), "go with --ray"),
        (("--timeout", "nan"), "--timeout must be a finite number"),
        (("--steps", "linear"), "unknown step policy"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_served(
    disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys").write_text("k" * 20)
    assert words in complaint(
        disa("serve", "--model", small.folder(tmp_path / "model"), "--port", 0, "--num-ar-steps", 4, *options)
    )


def test_a_port_that_is_taken(disa: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        told = complaint(disa("serve", "--model", small.folder(tmp_path / "model"), "--port", port))
    assert f"cannot listen on 127.0.0.1, port {port}" in told


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named_with_its_extra(disa: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert complaint(disa("serve")) == f'disa: serving needs {name}: pip install "disa[serve]".\n'
