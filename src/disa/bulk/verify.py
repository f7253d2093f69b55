"""Whether a run on disk is what it says: every file whole, each image once, and some of them drawn again."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

from disa.bulk.job import machine_of
from disa.bulk.shards import Container, Entry, Manifest
from disa.bulk.store import Shards
from disa.bulk.worker import Drawn, Failed, Worker, asked_for, chunk_of
from disa.draw.inputs import Inputs
from disa.errors import DisaError

TOLERANCE = 2.0
"""Levels of 255: the largest mean absolute difference of an image that is drawn again on another device or with another
version of PyTorch, or by a processor with other instructions. On the CPU with the same ones it is equal to the bit."""
MOST_TOLD = 20


@dataclass
class Findings:
    """What is wrong, and what was looked at."""

    num_images: int
    missing: int = 0
    doubled: int = 0
    damaged: list[str] = field(default_factory=list)
    """Files and images that are not what a manifest says."""
    spans: list[str] = field(default_factory=list)
    """The first ids that are missing, as `5-9`."""
    redrawn: list[int] = field(default_factory=list)
    """Ids."""
    exact: bool = True
    """Whether these had to be equal to the bit."""
    drawn_with: list[dict[str, Any]] = field(default_factory=list)
    """Device, PyTorch and instructions that the run was drawn with, see `machine_of`."""
    drawn_again_with: dict[str, Any] = field(default_factory=dict)
    differing: dict[int, float] = field(default_factory=dict)
    """Ids, and the mean absolute difference in levels of 255."""

    @property
    def is_good(self) -> bool:
        return not (self.missing or self.doubled or self.damaged or self.differing)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"good": self.is_good}


def check_files(run: Shards, inputs: Inputs) -> tuple[Findings, np.ndarray]:
    """Read everything: every hash, and which images are missing or doubled. Also [M] the ids that are there."""
    found, times = Findings(run.record.num_images), np.zeros(run.record.num_images, dtype=np.int64)
    containers = [*run.whole().values(), *(part for parts in run.parts().values() for part in parts)]
    for container in containers:
        _check(container, run.record.digest, inputs, times, found)
    found.missing, found.doubled = int((times == 0).sum()), int((times > 1).sum())
    found.spans = spans(np.flatnonzero(times == 0), MOST_TOLD)
    return found, np.flatnonzero(times > 0)


def check_some(
    run: Shards, worker: Worker, inputs: Inputs, there: Sequence[int], count: int, found: Findings, seed: int
) -> None:
    """Draw a random sample again, and compare. worker: has begun. there: ids to choose from. Raises DisaError."""
    chosen = sorted(random.Random(seed).sample(list(map(int, there)), min(count, len(there))))
    if not chosen:
        return
    result = worker.draw(chunk_of(chosen, inputs))
    if isinstance(result, Failed):
        raise DisaError(f"the sample could not be drawn again: {result.reason}")
    here = machine_of(worker.about)
    found.redrawn, found.exact = chosen, here["device"] == "cpu" and run.record.drawn_with == [here]
    found.drawn_with, found.drawn_again_with = run.record.drawn_with, here
    stored = _stored(run, set(chosen))
    for entry, content in _pairs(result):
        if (difference := _difference(stored[entry.id], content)) > (0.0 if found.exact else TOLERANCE):
            found.differing[entry.id] = difference


def spans(ids: Iterable[int], most: int) -> list[str]:
    """The first runs of ids: `5`, `7-9`."""
    ordered = np.fromiter(ids, dtype=np.int64)
    parts = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1) if len(ordered) else []
    return [f"{part[0]}" if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts[:most]]


def _check(container: Container, digest: str, inputs: Inputs, times: np.ndarray, found: Findings) -> None:
    """One shard or part, image after image."""
    try:
        manifest = Manifest.read(container.manifest)
    except ValueError as error:
        found.damaged.append(f"{container.manifest}: {error}")
        return
    if manifest.digest != digest:
        found.damaged.append(f"{container.manifest}: it is of another run")
        return
    entries = {entry.name: entry for entry in manifest.entries}
    try:
        for name, content in container.contents():
            entry = entries.get(name)
            if entry is None or not entry.is_of(content) or not _is_asked(entry, inputs):
                found.damaged.append(f"{container.tar}: {name} is not what the manifest says")
            else:
                times[entry.id] += 1
    except DisaError as error:
        found.damaged.append(str(error))


def _is_asked(entry: Entry, inputs: Inputs) -> bool:
    """Whether this seed with this label or prompt is what the run asks for under this id."""
    told = {"seed": entry.seed, "label": entry.label, "prompt": entry.prompt}
    return 0 <= entry.id < len(inputs) and told == asked_for(inputs, entry.id)


def _stored(run: Shards, ids: set[int]) -> dict[int, bytes]:
    shards, whole, parts = {i // run.record.shard_size for i in ids}, run.whole(), run.parts()
    containers = [each for shard in shards for each in ([whole[shard]] if shard in whole else parts[shard])]
    contents = (pair for container in containers for pair in container.contents())
    return {i: content for name, content in contents if (i := int(name.partition(".")[0])) in ids}


def _pairs(drawn: Drawn) -> Iterable[tuple[Entry, bytes]]:
    return zip(drawn.entries, drawn.contents, strict=True)


def _difference(one: bytes, other: bytes) -> float:
    """The mean absolute difference of two PNG files, in levels of 255; infinity for other sizes."""
    first, second = (np.asarray(Image.open(BytesIO(content))).astype(np.int16) for content in (one, other))
    return float(np.abs(first - second).mean()) if first.shape == second.shape else float("inf")
