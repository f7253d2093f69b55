"""The workers of a run as the driver sees them: it hands a chunk to a free one, and waits for the next outcome."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

from disa.bulk.worker import Chunk, Drawn, Failed, Ready, Worker
from disa.draw.inputs import Inputs
from disa.errors import DisaError


@dataclass(frozen=True)
class Died:
    """A worker ended while it drew a chunk."""

    reason: str


@dataclass
class Member:
    """What is told of one worker."""

    name: str
    state: str = "starting"
    """`starting`, `drawing` or `waiting`."""
    images: int = 0
    seconds: float = 0.0
    """Of drawing."""
    seconds_between: float = 0.0
    """From handing out a chunk to having it back, beside drawing it."""
    deaths: int = 0
    pid: int | None = None
    machine: str = ""

    def began(self, ready: Ready) -> None:
        self.state, self.pid, self.machine = "waiting", ready.pid, ready.machine

    def drew(self, drawn: Drawn, seconds: float) -> None:
        """seconds: since the chunk was handed out."""
        self.images += len(drawn.entries)
        self.seconds += drawn.seconds
        self.seconds_between += seconds - drawn.seconds


@dataclass(frozen=True)
class Outcome:
    """What became of a chunk."""

    chunk: Chunk
    result: Drawn | Failed | Died


class Crew(Protocol):
    """Workers. Whoever hands out looks at `has_free` first."""

    @property
    def members(self) -> list[Member]: ...

    @property
    def began(self) -> list[Ready]:
        """What each worker that has loaded its model said, in their order."""
        ...

    @property
    def has_free(self) -> bool: ...

    @property
    def is_busy(self) -> bool:
        """Whether an outcome is to come."""
        ...

    def hand_out(self, chunk: Chunk) -> None: ...

    def wait(self) -> Outcome | None:
        """The next outcome; None where there was none for a second. Raises DisaError where no worker can draw."""
        ...

    def close(self) -> None:
        """End the workers."""
        ...


class Alone:
    """A crew of one worker in this process: nothing but disa is needed."""

    def __init__(self, worker: Worker, inputs: Inputs) -> None:
        """inputs: of any image of the run. Raises DisaError."""
        ready = worker.begin(inputs)
        if isinstance(ready, Failed):
            raise DisaError(ready.reason)
        self.began = [ready]
        self._worker = worker
        self._chunk: Chunk | None = None
        self.members = [Member("this process")]
        self.members[0].began(ready)

    @property
    def has_free(self) -> bool:
        return self._chunk is None

    @property
    def is_busy(self) -> bool:
        return self._chunk is not None

    def hand_out(self, chunk: Chunk) -> None:
        self._chunk = chunk
        self.members[0].state = "drawing"

    def wait(self) -> Outcome | None:
        chunk, self._chunk = self._chunk, None
        if chunk is None:
            return None
        started = time.perf_counter()
        result = self._worker.draw(chunk)
        self.members[0].state = "waiting"
        if isinstance(result, Drawn):
            self.members[0].drew(result, time.perf_counter() - started)
        return Outcome(chunk, result)

    def close(self) -> None: ...
