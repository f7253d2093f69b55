"""Whether a server loses or mixes up requests, and what batching brings: `python benchmarks/serve.py`.

`disa serve` is started twice, with batches and without, and many clients ask each for images, every one with a label
and a seed of its own. Every answer must be the PNG file, byte for byte, that is drawn here alone. Throughput is that of
whole answers; the two servers are asked in turn, in so many rounds, so that what else the machine does falls on both.
Where it does much, images per second of the server's own processor time tell more. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import machine, note, publish

from disa.draw.folder import about_image, identities, image_file
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import digest

BATCH_SIZE = 32
RATES = ("images_per_second", "images_per_processor_second")


def expected(model: str, drawn: dict[str, Any], count: int) -> list[bytes]:
    """The files, image i with label i mod 10 and seed i, each drawn alone. drawn: options of drawing."""
    sampler, found = Sampler.load(model, device="cpu"), []
    for i in range(count):
        inputs = Inputs.paired(i, i % 10)
        run = sampler.start(inputs, batch_size=1, **drawn)
        about = run.about()
        (samples,) = run.batches()
        found.append(image_file(samples.images[0], about_image(inputs, 0, identities(digest(about), inputs)[0], about)))
    return found


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    pid: int

    def processor_seconds(self) -> float:
        """What it has computed so far, with all of its threads."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(model: str, drawn: dict[str, Any], batch_size: int, clients: int) -> Iterator[Server]:
    """A server with batches of that size."""
    own = [word for name, value in drawn.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    options = ("--model", model, *own, "--batch-size", str(batch_size), "--queue", str(2 * clients))
    command = [sys.executable, "-m", "disa", "serve", "--port", "0", "--json", "--device", "cpu", "--timeout", "3600"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Server(int(json.loads(process.stdout.readline())["url"].rpartition(":")[2]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        if process.wait(60):
            raise SystemExit(f"the server ended with {process.returncode}")


def ask(port: int, i: int) -> tuple[bytes | None, float, int]:
    """The file that is answered, the seconds that takes, and with how many images it was drawn."""
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3600)
    body = json.dumps({"prompt": str(i % 10), "seed": i})
    connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = json.loads(answer.read())
    connection.close()
    seconds = time.perf_counter() - started
    if answer.status != 200:
        note(f"request {i}: {answer.status} {content}")
        return None, seconds, 0
    return base64.b64decode(content["data"][0]["b64_json"]), seconds, content["disa"]["drawn_together"]


def measure(server: Server, wanted: list[bytes], part: range, clients: int) -> dict[str, Any]:
    """One round of requests."""
    started, before = time.perf_counter(), server.processor_seconds()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda i: ask(server.port, i), part))
    seconds, computed = time.perf_counter() - started, server.processor_seconds() - before
    return {
        "images_per_second": len(part) / seconds,
        "images_per_processor_second": len(part) / computed,
        "latency": statistics.median(took for _, took, _ in answers),
        "together": statistics.mean(count for _, _, count in answers),
        "lost": sum(content is None for content, _, _ in answers),
        "others": sum(
            content is not None and content != wanted[i] for i, (content, _, _) in zip(part, answers, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mar-digits")
    parser.add_argument("--steps", default="linear:50-5")
    parser.add_argument("--num-ar-steps", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE, help="the most images of a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    drawn = {"steps": asked.steps, "num_ar_steps": asked.num_ar_steps}
    wanted = expected(asked.model, drawn, asked.requests)
    note(f"{asked.requests} images were drawn alone")
    rounds: dict[int, list[dict[str, Any]]] = {asked.batch_size: [], 1: []}
    size = -(-asked.requests // asked.rounds)
    with ExitStack() as stack:
        servers = {each: stack.enter_context(serving(asked.model, drawn, each, asked.clients)) for each in rounds}
        for server in servers.values():
            ask(server.port, 0)  # hashes of weights and the first kernels
        for first in range(0, asked.requests, size):
            part = range(first, min(first + size, asked.requests))
            for batch_size, server in servers.items():
                rounds[batch_size].append(measure(server, wanted, part, asked.clients))
                note(f"batches of up to {batch_size}: {rounds[batch_size][-1]}")
    result: dict[str, Any] = {name: value for name, value in vars(asked).items() if name != "out"}
    for name, found in (("batched", rounds[asked.batch_size]), ("alone", rounds[1])):
        middle = {key: statistics.median(each[key] for each in found) for key in (*RATES, "latency")}
        middle["together"] = statistics.mean(each["together"] for each in found)
        result[name] = middle | {key: sum(each[key] for each in found) for key in ("lost", "others")}
    for rate in RATES:
        pairs = zip(rounds[asked.batch_size], rounds[1], strict=True)
        ratios = sorted(batched[rate] / alone[rate] for batched, alone in pairs)
        result[f"ratio_of_{rate}"] = {"median": statistics.median(ratios), "least": ratios[0], "most": ratios[-1]}
    publish(result | machine(), asked.out)
    sys.exit(any(result[name][key] for name in ("batched", "alone") for key in ("lost", "others")))


if __name__ == "__main__":
    main()
