"""What `disa serve --ray` does when its workers are killed, with Ray Serve itself: `python tests/serve_ray.py`.

Clients ask for images while, now and then, a worker is killed with SIGKILL. Every request must be answered, with the
image that is drawn alone. It needs `pip install "ray[serve]"`, two cores and some minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from base64 import b64decode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from disa.draw.folder import about_image, identities, image_file
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import digest
from serving import Client

STEPS = "constant:20"


def workers_of(pid: int) -> list[int]:
    """The replicas among the descendants of a process."""
    parents, names = {}, {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(place.name)] = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            names[int(place.name)] = (place / "cmdline").read_text()
        except OSError:
            continue

    def within(each: int | None) -> bool:
        return each == pid or (each is not None and within(parents.get(each)))

    return [each for each, name in names.items() if name.startswith("ray::ServeReplica") and within(each)]


def alone(count: int) -> list[bytes]:
    """The files of the images, drawn here one by one."""
    sampler, found = Sampler.load("mar-digits", device="cpu"), []
    for i in range(count):
        inputs = Inputs.paired(i, i % 10)
        run = sampler.start(inputs, steps=STEPS)
        about = run.about()
        (samples,) = run.batches()
        (identity,) = identities(digest(about), inputs)
        found.append(image_file(samples.images[0], about_image(inputs, 0, identity, about)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--kills", type=int, default=2)
    asked = parser.parse_args()
    expected = alone(asked.requests)
    command = [sys.executable, "-m", "disa", "serve", "--port", "0", "--json", "--ray", "--workers", "2"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    client = Client(int(json.loads(server.stdout.readline())["url"].rpartition(":")[2]))
    done, killed = [], []

    def one(i: int) -> bool:
        found = client.ask({"prompt": str(i % 10), "seed": i, "steps": STEPS})
        done.append(i)
        return found.status == 200 and b64decode(found.json["data"][0]["b64_json"]) == expected[i]

    def kill() -> None:
        for k in range(asked.kills):
            while len(done) < (k + 1) * asked.requests // (asked.kills + 2):
                time.sleep(0.05)
            for worker in workers_of(server.pid)[:1]:
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

    killer = threading.Thread(target=kill)
    killer.start()
    started = time.monotonic()
    with ThreadPoolExecutor(asked.clients) as pool:
        right = sum(pool.map(one, range(asked.requests)))
    seconds = time.monotonic() - started
    killer.join()
    server.send_signal(signal.SIGTERM)
    code = server.wait(120)
    told = {
        "requests": asked.requests,
        "right": right,
        "killed": len(killed),
        "seconds": round(seconds, 1),
        "exit": code,
    }
    print(json.dumps(told))
    sys.exit(not (right == asked.requests and len(killed) == asked.kills and code == 0))


if __name__ == "__main__":
    main()
