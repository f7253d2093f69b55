"""The folder of a run, as the one process that draws into it and all that read it see it.

    run.json          what is drawn, and with what
    parts/            chunks that are drawn, of shards that are not whole yet
    shards/           shards that are whole
    progress.json     how far it is, for `--status`
    report.html       samples, speed and failures, to look at

Killed between any two lines, every image is there or is not: a chunk is a part under a temporary name, synced, renamed;
once all ids of a shard are there its parts are joined into one file, and only then removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from disa.bulk.job import Record, check_new
from disa.bulk.shards import PARTS, SHARDS, Container, Entry, clear_halves, containers_in, joined
from disa.errors import DisaError
from disa.files import Hold, make_folder, only_writer


class Shards:
    """What is there of a run, for reading."""

    def __init__(self, folder: Path, record: Record) -> None:
        self.folder, self.record = folder, record

    @property
    def num_shards(self) -> int:
        return -(-self.record.num_images // self.record.shard_size)

    def ids_of(self, shard: int) -> range:
        size = self.record.shard_size
        return range(shard * size, min((shard + 1) * size, self.record.num_images))

    def whole(self) -> dict[int, Container]:
        """Shards that are whole, by number."""
        found = containers_in(self.folder / SHARDS)
        return {_shard_of(name): container for name, container in found.items()}

    def parts(self) -> dict[int, list[Container]]:
        """Parts of each shard that is not whole."""
        whole, found = self.whole(), dict[int, list[Container]]()
        for name, container in containers_in(self.folder / PARTS).items():
            if (shard := _shard_of(name)) not in whole:
                found.setdefault(shard, []).append(container)
        return found

    def there(self) -> np.ndarray:
        """[N] booleans: which images are drawn. Raises DisaError where the manifest of a part cannot be read."""
        there = np.zeros(self.record.num_images, dtype=bool)
        # Parts before shards: a driver that draws meanwhile removes parts only when their shard is written.
        for part in chain.from_iterable(self.parts().values()):
            try:
                there[[entry.id for entry in part.entries()]] = True
            except DisaError:
                if part.manifest.exists():
                    raise
        for shard in self.whole():
            ids = self.ids_of(shard)
            there[ids.start : ids.stop] = True
        return there

    def images(self) -> Iterator[tuple[Entry, bytes]]:
        """Every image that is there with the bytes of its file, in the order of the ids. Raises DisaError."""
        whole, parts = self.whole(), self.parts()
        for shard in range(self.num_shards):
            containers = [whole[shard]] if shard in whole else parts.get(shard, [])
            yield from zip(*joined(containers), strict=True)


class Keep(Protocol):
    """Where goes what is told of images beside their files. digests: the SHA-256 of these, in their order."""

    def add(self, digests: Sequence[str], features: Any) -> None:
        """Of a chunk."""
        ...

    def join(self, digests: Sequence[str], chunks: Sequence[Sequence[str]]) -> None:
        """Before chunks become one file: digests of that, and of each of these."""
        ...


class Store(Shards):
    """The same for the one process that draws; no other one can have it meanwhile."""

    def __init__(self, folder: Path, record: Record, is_new: bool = False, keep: Keep | None = None) -> None:
        """Finishes or clears what a killed process left. is_new: the run is begun, not gone on with. Raises DisaError
        where another process draws into it."""
        super().__init__(make_folder(folder), record)
        self._keep = keep
        self._hold: Hold | None = only_writer(folder)
        if is_new:
            check_new(folder)
        for name in (SHARDS, PARTS):
            clear_halves(make_folder(folder / name))
        self.record.write(folder)
        self._clear_parts()
        self._there = self.there()
        self._parts = self.parts()
        for shard in list(self._parts):
            self._join(shard)

    def missing(self) -> np.ndarray:
        """[M] ids that are still to be drawn, in their order."""
        return np.flatnonzero(~self._there)

    @property
    def num_there(self) -> int:
        return int(self._there.sum())

    def told(self, record: Record) -> None:
        """Something else is known of the run now."""
        if record != self.record:
            self.record = record
            record.write(self.folder)

    def add(self, entries: Sequence[Entry], contents: Sequence[bytes], features: Any = None) -> None:
        """The images of a chunk, all of one shard, in the order of their ids, and what is told of them beside. Raises
        DisaError."""
        if self._keep is not None and features is not None:
            self._keep.add(_digests(entries), features)
        shard = entries[0].id // self.record.shard_size
        part = Container(self.folder / PARTS, f"{shard:06d}-{entries[0].id:09d}")
        part.write(self.record.digest, entries, contents)
        self._there[[entry.id for entry in entries]] = True
        self._parts.setdefault(shard, []).append(part)
        self._join(shard)

    def close(self) -> None:
        """Leave no empty folder, and let others in."""
        with suppress(OSError):
            (self.folder / PARTS).rmdir()
        self._hold = None

    def _join(self, shard: int) -> None:
        """Make one file of a shard's parts, once all of it is there."""
        ids = self.ids_of(shard)
        if not self._there[ids.start : ids.stop].all():
            return
        entries, contents = joined(self._parts[shard])
        if len(entries) != len(ids):
            raise DisaError(f"parts of shard {shard} in {self.folder} went while it was drawn: draw it with --resume.")
        if self._keep is not None:
            self._keep.join(_digests(entries), [_digests(part.entries()) for part in self._parts[shard]])
        Container(self.folder / SHARDS, f"{shard:06d}").write(self.record.digest, entries, contents)
        for part in self._parts.pop(shard):
            part.remove()

    def _clear_parts(self) -> None:
        """Parts of shards that are whole: an interruption came before they were removed."""
        whole = self.whole()
        for name, part in containers_in(self.folder / PARTS).items():
            if _shard_of(name) in whole:
                part.remove()


def _digests(entries: Sequence[Entry]) -> list[str]:
    return [entry.sha256 for entry in entries]


def _shard_of(name: str) -> int:
    return int(name.partition("-")[0])
