"""A crew without a model: it draws at once, fails or dies as a test wants, and so takes a million images."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from disa.bulk.crew import Died, Member, Outcome
from disa.bulk.driver import Driver, Progress
from disa.bulk.job import Job, Record
from disa.bulk.shards import Entry
from disa.bulk.store import Store
from disa.bulk.worker import Chunk, Drawn, Failed, Ready, asked_for

ABOUT = {"model": "stub", "device": "cpu", "torch": "0"}
MACHINE = {"device": "cpu", "torch": "0", "instructions": "none"}


def record(num_images: int, shard_size: int = 4, digest: str = "of the stub") -> Record:
    """A run of so many images, equally many of ten labels."""
    lists = {"labels": list(range(10)), "count": num_images // 10, "seeds": None, "negative_prompt": None}
    return Record(Job({}, {}, lists), ABOUT, digest, num_images, shard_size)


def drawn(chunk: Chunk) -> Drawn:
    """What stands for PNG files: a text that depends on the id alone."""
    contents = [f"image {i}".encode() * 3 for i in chunk.ids]
    entries = [
        Entry(i, sha256=sha256(content).hexdigest(), **asked_for(chunk.inputs, place))
        for place, (i, content) in enumerate(zip(chunk.ids, contents, strict=True))
    ]
    return Drawn(entries, contents, 0.0, len(entries))


class StubCrew:
    """Workers that answer when they are waited for, the last one first."""

    def __init__(self, workers: int = 1, answer: Callable[[Chunk], Drawn | Failed | Died] = drawn) -> None:
        self.members = [Member(f"stub {i}") for i in range(workers)]
        self.began = [Ready(ABOUT, "of the stub", {}, MACHINE, 0, "here")]
        self.handed_out: list[list[int]] = []
        self._answer, self._chunks = answer, list[Chunk]()

    @property
    def has_free(self) -> bool:
        return len(self._chunks) < len(self.members)

    @property
    def is_busy(self) -> bool:
        return bool(self._chunks)

    def hand_out(self, chunk: Chunk) -> None:
        self._chunks.append(chunk)
        self.handed_out.append(chunk.ids)

    def wait(self) -> Outcome | None:
        chunk = self._chunks.pop()
        return Outcome(chunk, self._answer(chunk))

    def close(self) -> None: ...


def draw(folder: Path, of: Record, crew: StubCrew | None = None, chunk: int = 3, **options: Any) -> Progress:
    """Draw what is missing in a folder, as the command does."""
    store = Store(folder, of, **options)
    try:
        return Driver(store, crew or StubCrew(), of.job.inputs, chunk).run()
    finally:
        store.close()
