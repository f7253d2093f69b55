"""What one worker does: it loads the model once, and draws chunks."""

from __future__ import annotations

import gc
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from disa.bulk.job import Job, machine_of
from disa.bulk.shards import Entry
from disa.draw.folder import about_image, identities, image_file
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import digest
from disa.errors import DisaError
from disa.values import first_line


@dataclass(frozen=True)
class Chunk:
    """Images that are drawn together."""

    ids: list[int]
    """In their order, all of one shard."""
    inputs: Inputs
    """Of these images."""


@dataclass(frozen=True)
class Drawn:
    """A finished chunk."""

    entries: list[Entry]
    contents: list[bytes]
    """Of the PNG file of each."""
    seconds: float
    """From the chunk to its files, in the worker."""
    evaluations: int
    features: Any = None
    """What `Looking` made of them, if asked."""


@dataclass(frozen=True)
class Failed:
    """A chunk that could not be drawn."""

    reason: str
    refused: bool = False
    """Whether disa refuses what is asked, and so would do it everywhere."""


@dataclass(frozen=True)
class Ready:
    """A worker that has loaded its model, and what looks at its images."""

    about: dict[str, Any]
    """The weights, every option and the device: `Run.about`."""
    digest: str
    versions: dict[str, str]
    drawn_with: dict[str, Any]
    """What decides rounding there: `machine_of`."""
    pid: int
    machine: str
    looks: str = ""
    """What looks at its images, to the last weight; empty for nothing."""


Looking = Callable[[torch.device, tuple[int, int, int]], tuple[str, Callable[[Sequence[bytes]], Any]]]
"""What is begun in a worker to look at images while they are there: given its device and the shape of images (channels,
height, width), it says what it is, and gives a function from the files of a chunk's images to whatever is told of them.
It travels to workers, so it is a function of a module with some arguments (`functools.partial`)."""


class Worker:
    """A model, and what is drawn with it. It draws the same images wherever it is."""

    def __init__(
        self,
        job: Job,
        device: str | None,
        num_threads: int | None = None,
        looking: Looking | None = None,
        sampler: Sampler | None = None,
    ) -> None:
        """sampler: the model, if it is loaded already."""
        self.job, self.device, self.num_threads, self.sampler = job, device, num_threads, sampler
        self.looking = looking

    def begin(self, inputs: Inputs) -> Ready | Failed:
        """Load the model. inputs: of any image of the run, which is checked but not drawn."""
        try:
            self.sampler = self.sampler or self.job.load(self.device, self.num_threads)
            self.settings = self.sampler.settings(self.job.settings())
            self.about = self.sampler.start(inputs, self.settings).about()
            self.digest = digest(self.about)
            shape = self.sampler.shape_of(self.settings.size)
            looks, self.look = self.looking(self.sampler.device, shape) if self.looking else ("", None)
        except Exception as error:  # whatever it is, the driver must be told, and no other process can
            return Failed(_reason(error))
        told = self.about, self.digest, versions(self.about), machine_of(self.about)
        return Ready(*told, os.getpid(), platform.node(), looks)

    def draw(self, chunk: Chunk) -> Drawn | Failed:
        """Draw a chunk: all of its images, or none."""
        try:
            return self._draw(chunk)
        except Exception as error:  # the others are to be drawn whatever is wrong with these
            gc.collect()  # what the chunk held may be what the next one needs
            return Failed(_reason(error), isinstance(error, DisaError))

    def _draw(self, chunk: Chunk) -> Drawn:
        assert self.sampler is not None
        found: dict[int, tuple[Entry, bytes]] = {}
        started, evaluations, known = time.perf_counter(), 0, identities(self.digest, chunk.inputs)
        for samples in self.sampler.start(chunk.inputs, self.settings).batches():
            evaluations += samples.evaluations
            words = samples.rewritten or [None] * len(samples)
            for i, image, rewritten in zip(samples.places, samples.images, words, strict=True):
                content = image_file(image, about_image(chunk.inputs, i, known[i], self.about, rewritten))
                asked, known_by = asked_for(chunk.inputs, i), sha256(content).hexdigest()
                found[i] = Entry(chunk.ids[i], sha256=known_by, rewritten=rewritten, **asked), content
        ordered = [found[i] for i in range(len(chunk.ids))]
        entries, contents = [entry for entry, _ in ordered], [content for _, content in ordered]
        features = self.look(contents) if self.look else None
        return Drawn(entries, contents, time.perf_counter() - started, evaluations, features)


def asked_for(inputs: Inputs, i: int) -> dict[str, Any]:
    """What image i is to be drawn from, as a manifest tells it."""
    return {
        "seed": inputs.seeds[i],
        "label": None if inputs.labels is None else inputs.labels[i],
        "prompt": None if inputs.prompts is None else inputs.prompts[i],
    }


def chunk_of(ids: Sequence[int], inputs: Inputs) -> Chunk:
    """inputs: of the whole run."""
    places = [int(i) for i in ids]
    return Chunk(places, inputs.part(places))


def versions(about: dict[str, Any]) -> dict[str, str]:
    """Of what must be the same in the driver and in all workers."""
    try:
        own = version("disa")
    except PackageNotFoundError:  # the sources alone
        own = "unknown"
    return {"disa": own, "torch": about["torch"]}


def _reason(error: Exception) -> str:
    """What is wrong, on one line."""
    told = first_line(error)
    return told if isinstance(error, DisaError) else f"{type(error).__name__}: {told}"
