"""A crew of Ray actors, each with the model on a GPU or on some cores of its own. The one module that imports Ray.

Ray places the actors, carries chunks and images, and tells of an actor that died; then another one is begun here, and
the driver hands the chunk out again. Ray's own `max_restarts` and `max_task_retries` are left at 0: with retries by Ray
a chunk that kills every worker would be tried for ever, and never be reported.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from disa.bulk.crew import Died, Member, Outcome
from disa.bulk.job import Job
from disa.bulk.worker import Chunk, Drawn, Failed, Looking, Ready, Worker
from disa.draw.inputs import Inputs
from disa.errors import DisaError
from disa.runtime.threads import granted_cores
from disa.stopping import STOPPED, Stopped, keeping_handlers, stop_later
from disa.values import counted, first_line, shown

CORES_PER_WORKER = 4
"""Where there is no GPU and nobody says how many workers there are to be."""
MOST_DEATHS = 3
"""Of a worker, one after the other, while it loads the model."""
MOST_FAILED = 2
"""Chunks in a row that a worker may fail where something can be drawn: then another one is begun in its place, because
an error of a GPU stays with the process that it came to."""
PATIENCE, WAIT = 600.0, 1.0
"""Seconds: for the first worker to begin, and for an outcome."""
CONNECT = 5.0
TRIES = 3
"""To start Ray here: it gives up after half a minute, which is short on a busy machine."""
OBJECTS = 1 << 29
"""Bytes of images that are on their way to the driver, where Ray is started here."""


@dataclass
class _Hand:
    """One actor, and what it is doing."""

    member: Member
    actor: Any = None
    ref: Any = None
    """Of what it will answer; None while it waits for a chunk."""
    chunk: Chunk | None = None
    """None while it loads the model."""
    handed_out: float = 0.0
    """When."""
    deaths: int = 0
    """Since it was ready last."""
    failed: int = 0
    """Chunks, since it drew one last."""


class RayCrew:
    """See `Crew`. address: `local` starts Ray here, `auto` takes what runs here, others name where it runs."""

    def __init__(
        self,
        job: Job,
        sample: Inputs,
        expected: Ready,
        workers: int | None,
        address: str,
        device: str | None,
        looking: Looking | None = None,
    ) -> None:
        """sample: inputs of any image of the run. expected: what the driver found; each worker must find the same.
        workers: None for one per GPU, or one per few cores. Raises DisaError."""
        self._ray = connect(address)
        try:
            self._job, self._sample, self._expected, self._device = job, sample, expected, device
            self._looking = looking
            self._share, count = self._shares(workers)
            self._hands = [_Hand(Member(f"worker {i + 1}")) for i in range(count)]
            self.began, self._started = list[Ready](), time.monotonic()
            for hand in self._hands:
                self._start(hand)
        except BaseException:
            self.close()
            raise

    @property
    def members(self) -> list[Member]:
        return [hand.member for hand in self._hands]

    @property
    def has_free(self) -> bool:
        return any(hand.ref is None for hand in self._hands)

    @property
    def is_busy(self) -> bool:
        """Workers that only load the model are not waited for once all is drawn."""
        return any(hand.chunk is not None for hand in self._hands)

    def hand_out(self, chunk: Chunk) -> None:
        hand = next(hand for hand in self._hands if hand.ref is None)
        hand.handed_out = time.perf_counter()
        hand.chunk, hand.ref, hand.member.state = chunk, hand.actor.draw.remote(chunk), "drawing"

    def wait(self) -> Outcome | None:
        with stop_later() as stop:  # an exception of ours within Ray's calls would be lost in them
            outcome = self._wait()
        if stop.signum:
            raise Stopped(STOPPED, stop.signum)
        return outcome

    def _wait(self) -> Outcome | None:
        refs = {hand.ref: hand for hand in self._hands if hand.ref is not None}
        done, _ = self._ray.wait(list(refs), num_returns=1, timeout=WAIT)
        if not done:
            if not self.began and time.monotonic() - self._started > PATIENCE:
                raise DisaError(f"no worker could begin within {PATIENCE:.0f} s: see what `ray status` says.")
            return None
        hand = refs[done[0]]
        try:
            result = self._ray.get(hand.ref)
        except self._ray.exceptions.RayError as error:
            return self._died(hand, first_line(error))
        hand.ref = None
        if hand.chunk is None:
            self._ready(hand, result)
            return None
        chunk, hand.chunk = hand.chunk, None
        hand.member.state = "waiting"
        if isinstance(result, Drawn):
            hand.failed = 0
            hand.member.drew(result, time.perf_counter() - hand.handed_out)
        elif not result.refused:
            self._failed(hand)
        return Outcome(chunk, result)

    def close(self) -> None:
        self._ray.shutdown()

    # -- actors --------------------------------------------------------------------------------------------------

    def _start(self, hand: _Hand) -> None:
        hand.member.state, hand.member.pid = "starting", None
        threads = max(1, int(self._share["num_cpus"])) if self._share["num_cpus"] else None
        options = self._share | {"max_restarts": 0, "scheduling_strategy": "SPREAD"}
        hand.actor = self._ray.remote(**options)(Worker).remote(self._job, self._device, threads, self._looking)
        hand.chunk, hand.ref, hand.failed = None, hand.actor.begin.remote(self._sample), 0

    def _ready(self, hand: _Hand, result: Ready | Failed) -> None:
        """Raises DisaError where it does not draw what the driver would."""
        if isinstance(result, Failed):
            raise DisaError(
                f"{hand.member.name} cannot load the model: {result.reason} Every machine needs the files at the same "
                "paths."
            )
        for name, here in self._expected.versions.items():
            there = result.versions.get(name, "another version")
            if there.partition("+")[0] != here.partition("+")[0]:
                raise DisaError(
                    f"{hand.member.name} on {result.machine} has {name} {there}, and this process {here}: install the "
                    "same version on every machine."
                )
        if result.digest != self._expected.digest:
            raise DisaError(
                f"{hand.member.name} on {result.machine} would draw other images: it has other weights or settings "
                "than this process."
            )
        if result.looks != self._expected.looks:
            raise DisaError(
                f"{hand.member.name} on {result.machine} has other weights for --evaluate than this process: every "
                "machine needs the same file at the same path."
            )
        hand.deaths = 0
        hand.member.began(result)
        self.began.append(result)

    def _died(self, hand: _Hand, reason: str) -> Outcome | None:
        """Begin another one in its place; tell what it was drawing. Raises DisaError where none can begin."""
        chunk = hand.chunk
        hand.member.deaths += 1
        hand.deaths += chunk is None
        if hand.deaths >= MOST_DEATHS:
            raise DisaError(f"{hand.member.name} died {MOST_DEATHS} times while it loaded the model: {reason}")
        self._replace(hand)
        return None if chunk is None else Outcome(chunk, Died(f"its worker died: {reason}"))

    def _failed(self, hand: _Hand) -> None:
        """Begin another one in its place if it fails whatever it gets. Where nobody has drawn anything, it is not the
        worker that is wrong."""
        hand.failed += 1
        if hand.failed >= MOST_FAILED and any(member.images for member in self.members):
            hand.member.deaths += 1
            self._replace(hand)

    def _replace(self, hand: _Hand) -> None:
        self._ray.kill(hand.actor)
        self._start(hand)

    def _shares(self, workers: int | None) -> tuple[dict[str, float], int]:
        """What each worker gets of the machines, and how many workers there are. Raises DisaError."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = int(sum(node.get("GPU", 0) for node in nodes))
        if gpus and (self._device or "cuda").startswith("cuda"):
            if ":" in (self._device or ""):
                raise DisaError(f"Ray gives each worker a GPU of its own: say --device cuda, not {self._device}.")
            if workers and workers > gpus:
                raise DisaError(f"{counted(workers, 'worker')} need a GPU each, and there are {gpus}: take fewer.")
            return {"num_cpus": 0, "num_gpus": 1}, workers or gpus
        cores = [float(node.get("CPU", 0)) for node in nodes]
        if not sum(cores):
            raise DisaError("Ray has no cores to give: start it with some, as in `ray start --num-cpus 8`.")
        count = workers or max(1, int(sum(cores)) // CORES_PER_WORKER)
        return {"num_cpus": share_of(cores, count), "num_gpus": 0}, count


def share_of(cores: Sequence[float], workers: int) -> float:
    """Cores that each of so many workers gets, at most, where none can reach over two machines. cores: of each."""
    fits = (machine / count for machine in cores for count in range(1, workers + 1) if machine)
    most = max(each for each in fits if sum(int(machine / each + 1e-9) for machine in cores) >= workers)
    return math.floor(most) if most >= 1 else math.floor(most * 1000) / 1000


def connect(address: str) -> Any:
    """Ray, started or joined. Raises DisaError where that is not possible."""
    # Set before Ray is imported: nothing is sent anywhere, and messages about single workers are ours.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise DisaError(
            "several workers need Ray: pip install 'disa[bulk]', or draw in this process with --workers 0."
        ) from error
    _check_reachable(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    own = {"num_cpus": granted_cores(), "object_store_memory": OBJECTS, "include_dashboard": False}
    tries = TRIES if address == "local" else 1
    for left in reversed(range(tries)):
        try:
            with keeping_handlers():  # Ray sets its own, which would end the driver without a word
                ray.init(address=address, **quiet, **(own if address == "local" else {}))
            break
        except Exception as error:  # Ray raises errors of many kinds, among them for versions that differ
            if not left:
                raise DisaError(f"cannot use Ray at {address}: {first_line(error)}.") from error
            ray.shutdown()
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    return ray


def _check_reachable(address: str) -> None:
    """Find at once that nobody listens: Ray would try for minutes. Raises DisaError."""
    if address in ("local", "auto"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise DisaError(f"the address must be local, auto, HOST:PORT or ray://HOST:PORT, found {shown(address)}.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT).close()
    except (OSError, OverflowError) as error:
        raise DisaError(
            f"no Ray answers at {address} ({getattr(error, 'strerror', None) or error}): start it there with `ray "
            "start --head`, or leave --address out."
        ) from error
