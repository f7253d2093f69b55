"""The driver: what is missing is listed once and handed out in chunks, and every chunk that comes back is written.

There is no barrier. A worker that is done gets the next chunk before its last one is written. A shard is cut into
chunks of nearly equal size, which are handed out in the order of their ids: shards become whole one after the other,
and few parts wait on the disk, however long the run is. The last chunks are ever smaller, so that workers end together.

A chunk that fails is drawn again image by image, so that one bad image spoils no other; one whose worker died is first
drawn again as it is. An image that fails alone three times is given up and told of at the end.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field

import numpy as np

from disa.bulk.crew import Crew, Died, Outcome
from disa.bulk.store import Store
from disa.bulk.worker import Drawn, chunk_of
from disa.draw.inputs import Inputs
from disa.errors import DisaError
from disa.files import write_whole
from disa.values import counted

PROGRESS = "progress.json"
MOST_TRIES = 3
"""Of an image that is drawn alone, before it is given up."""
MOST_FAILURES = 100
"""Images that may fail before any is drawn: then something is wrong with the run, not with them."""
SMALLEST_CHUNK = 4
"""At the end of a run, unless all chunks are smaller: to draw fewer images takes a worker about as long."""
CHUNKS_PER_WORKER = 4
"""At least, so that no worker waits long for the last one."""
SECONDS_BETWEEN_REPORTS = 2.0


class Queue:
    """Ids that are to be drawn, in chunks, and how often each has failed."""

    def __init__(self, chunks: Iterator[np.ndarray]) -> None:
        self._chunks = deque(chunks)
        self._deaths, self._tries = set[tuple[int, int]](), dict[int, int]()
        self.failures: dict[int, str] = {}

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def take(self) -> np.ndarray:
        return self._chunks.popleft()

    def again(self, ids: list[int], reason: str, died: bool) -> None:
        """A chunk was not drawn."""
        key = ids[0], len(ids)
        if len(ids) > 1 and died and key not in self._deaths:
            self._deaths.add(key)
            self._chunks.appendleft(np.array(ids))
        elif len(ids) > 1:
            self._chunks.extend(np.array([i]) for i in ids)
        else:
            tries = self._tries[ids[0]] = self._tries.get(ids[0], 0) + 1
            if tries < MOST_TRIES:
                self._chunks.append(np.array(ids))
            else:
                self.failures[ids[0]] = reason


@dataclass
class Progress:
    """How far a run is; `progress.json` holds it."""

    num_images: int
    there_before: int
    chunk: int
    drawn: int = 0
    evaluations: int = 0
    seconds: float = 0.0
    """Since the first worker was ready."""
    seconds_writing: float = 0.0
    deaths: int = 0
    finished: bool = False
    workers: list[dict[str, object]] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)

    @property
    def num_there(self) -> int:
        return self.there_before + self.drawn

    @property
    def images_per_second(self) -> float:
        return self.drawn / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        rate = self.images_per_second
        return (self.num_images - self.num_there) / rate if rate else None


class Driver:
    """Draws what is missing in a store. `progress` tells how far it is."""

    def __init__(self, store: Store, crew: Crew, inputs: Inputs, chunk: int) -> None:
        """chunk: images of a chunk, at most."""
        self.store, self.crew, self.inputs = store, crew, inputs
        missing = store.missing()
        chunk = chunk_size(len(missing), len(crew.members), min(chunk, store.record.shard_size))
        self.queue = Queue(split(missing, store.record.shard_size, chunk, len(crew.members)))
        self.progress = Progress(store.record.num_images, store.num_there, chunk)
        self._started: float | None = None
        self._reported, self._known = -math.inf, 0

    def run(self, on_progress: Callable[[Progress], object] = lambda progress: None) -> Progress:
        """Draw to the end. Raises DisaError; what was drawn until then is there."""
        try:
            while self.queue or self.crew.is_busy:
                self._hand_out()
                outcome = self.crew.wait()
                self._hand_out()
                if outcome is not None:
                    self._take(outcome)
                self._tell(on_progress)
            self.progress.finished = True
        finally:
            with suppress(DisaError):  # a full disk has been told of
                self._report()
        return self.progress

    def _hand_out(self) -> None:
        while self.queue and self.crew.has_free:
            self._started = self._started or time.monotonic()
            self.crew.hand_out(chunk_of(self.queue.take().tolist(), self.inputs))

    def _take(self, outcome: Outcome) -> None:
        result, told = outcome.result, self.progress
        if isinstance(result, Drawn):
            started = time.monotonic()
            self.store.add(result.entries, result.contents, result.features)
            told.seconds_writing += time.monotonic() - started
            told.drawn += len(result.entries)
            told.evaluations += result.evaluations
            return
        died = isinstance(result, Died)
        told.deaths += died
        self.queue.again(outcome.chunk.ids, result.reason, died)
        told.failures = self.queue.failures
        if not told.drawn and len(told.failures) >= MOST_FAILURES:
            raise DisaError(f"the first {counted(len(told.failures), 'image')} all failed: {result.reason}")

    def _tell(self, on_progress: Callable[[Progress], object]) -> None:
        if self._started is not None:
            self.progress.seconds = time.monotonic() - self._started
        self.progress.workers = [vars(member) for member in self.crew.members]
        for ready in self.crew.began[self._known :]:
            self.store.told(self.store.record.with_device(ready.drawn_with))
        self._known = len(self.crew.began)
        on_progress(self.progress)
        if time.monotonic() - self._reported > SECONDS_BETWEEN_REPORTS:
            self._report()

    def _report(self) -> None:
        self._reported = time.monotonic()
        content = json.dumps(asdict(self.progress)).encode() + b"\n"
        write_whole(self.store.folder / PROGRESS, lambda file: file.write(content), synced=False)


def chunk_size(num_missing: int, num_workers: int, most: int) -> int:
    """Images of a chunk: so few that every worker gets several."""
    return max(1, min(most, num_missing // (CHUNKS_PER_WORKER * max(1, num_workers))))


def split(missing: np.ndarray, shard_size: int, chunk: int, num_workers: int) -> Iterator[np.ndarray]:
    """Ids in chunks, each of one shard and of at most `chunk`. missing: [M] in their order.

    Where several workers draw, a chunk is at most half of a worker's share of what is left (guided self-scheduling,
    Polychronopoulos and Kuck 1987), so that none has a large one when the others are done.
    """
    left, least = len(missing), min(chunk, SMALLEST_CHUNK)
    edges = np.flatnonzero(np.diff(missing // shard_size)) + 1
    for of_shard in np.split(missing, edges):
        while len(of_shard):
            most = chunk if num_workers == 1 else max(least, min(chunk, left // (2 * num_workers)))
            size = -(-len(of_shard) // -(-len(of_shard) // most))
            yield of_shard[:size]
            of_shard, left = of_shard[size:], left - size
