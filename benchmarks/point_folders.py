"""The images of points of a study: a sample folder each, all points in turn, chunk by chunk."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from policies_plan import inputs_of
from tables import ROOT
from torch import Tensor

from disa.draw.folder import TRACE, Layout, SampleFolder
from disa.draw.inputs import Inputs
from disa.draw.resizing import read_picture
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.evaluate.features import extract
from disa.evaluate.images import Images, open_images
from disa.evaluate.spaces import EFFICIENTNET, load_space, space_at_hand
from disa.files import write_json
from disa.progress import progress
from disa.study.likeness import energy_distance
from disa.study.measures import Measured
from disa.study.metrics import Spread
from disa.tiny.measures import MEASURES

CHUNK = 100
"""Images of a point before it is the next one's turn, so that a machine whose speed wanders is fair to all of them."""
CPU = "cpu.json"


class PointFolder:
    """The images of a point. `missing` are the places of those that are not there yet."""

    def __init__(self, sampler: Sampler, settings: Settings, path: Path, inputs: Inputs) -> None:
        """Raises DisaError where the folder holds other images."""
        self.sampler, self.settings, self.path, self.inputs = sampler, settings, path, inputs
        about = sampler.start(inputs.part([0]), self.settings).about()
        self.samples = SampleFolder(self.path, inputs, about, Layout.flat(inputs))
        self.missing = self.samples.open("resume")

    def draw(self, places: Sequence[int]) -> None:
        """Draw some of the images. What was finished before an interruption is kept."""
        cpu, started = self.cpu(), time.process_time()
        for samples in self.sampler.start(self.inputs.part(places), self.settings).batches():
            cpu = {"images": cpu["images"] + len(samples), "seconds": cpu["seconds"] + time.process_time() - started}
            self.samples.write(samples, [places[place] for place in samples.places])
            write_json(self.path / CPU, cpu)
            started = time.process_time()

    def cpu(self) -> dict[str, float]:
        """CPU seconds of drawing, which a trace does not have, and the images that took them."""
        path = self.path / CPU
        return json.loads(path.read_text()) if path.exists() else {"images": 0, "seconds": 0.0}

    def trace(self) -> dict[str, Any]:
        """Settings, counts and times of what is there."""
        return json.loads((self.path / TRACE).read_text())

    def images(self, count: int) -> Tensor:
        """The first ones, [count, channels, height, width] in [0, 1], with 8 bits."""
        paths = [self.path / name for name in self.samples.layout.names[:count]]
        return torch.cat([read_picture(path, self.sampler.image_shape) for path in paths])

    def opened(self, count: int) -> Images:
        """The first ones, in their order, as `disa evaluate` takes them."""
        images = open_images(self.path)
        places = {entry.name: place for place, entry in enumerate(images.entries)}
        return images.chosen([places[name] for name in self.samples.layout.names[:count]])

    def costs(self) -> dict[str, Any]:
        """Evaluations and times of all that was drawn."""
        trace, cpu = self.trace(), self.cpu()
        return {
            "evaluations_per_row": trace["evaluations_per_row"],
            "seconds_per_image": trace["seconds"] / trace["images_counted"],
            "cpu_seconds_per_image": cpu["seconds"] / cpu["images"],
            "backbone_tokens_per_image": trace["backbone_tokens"] / trace["images_counted"],
            "gflop_per_image": trace["operations"] / trace["images_counted"] / 1e9,
            "counts": [round(step["steps"], 2) for step in trace["trace"]],
        }


def draw_in_turn(folders: Mapping[str, PointFolder], num_images: int) -> None:
    """The first images of every point, by its name; those that are there stay, also where there are more."""
    turns = [
        (name, places)
        for start in range(0, num_images, CHUNK)
        for name, folder in folders.items()
        if (places := [i for i in folder.missing if start <= i < min(start + CHUNK, num_images)])
    ]
    for done, (name, places) in enumerate(turns):
        started = time.perf_counter()
        folders[name].draw(places)
        seconds = time.perf_counter() - started
        told = f"{len(places)} from {places[0]}"
        print(f"{done + 1}/{len(turns)} {name}: {told}, {seconds:.1f} s", flush=True)
    for each in folders.values():
        if all(i < num_images for i in each.missing):
            each.samples.finish()


def measured(sampler: Sampler, images: Sequence[Tensor], first_seed: int = 0) -> Measured:
    """The quality of the images of every point. Raises DisaError where they cannot be measured."""
    inputs, by = inputs_of(sampler, len(images[0]), first_seed), MEASURES[sampler.defaults.quality]
    if refusal := by.refusal(images[0], inputs):
        raise DisaError(f"what is drawn of {sampler.preset.name} cannot be measured: {refusal}.")
    return by.measure(images, inputs)


def energies(folders: Sequence[PointFolder], count: int) -> list[Spread | None]:
    """How far the first images of every point are from those of the first point; None for that point.

    Digits are compared with those of their label, by the features of `disa tune`. A caption comes once or twice:
    scenes are compared whatever their caption, by EfficientNet, which sees how they are drawn. What they show, a score
    says. Features are kept, as those of `disa evaluate`.
    """
    sampler, labels = folders[0].sampler, folders[0].inputs.labels
    name = EFFICIENTNET if labels is None else space_at_hand(sampler.image_shape[1:])
    space = load_space(name, sampler.device)
    with progress("features of images, settings", len(folders)) as advance:

        def features(folder: PointFolder) -> np.ndarray:
            found = extract(folder.opened(count), space, sampler.device).values.numpy()
            advance()
            return found

        original, *others = map(features, folders)
    groups = None if labels is None else labels[:count]
    return [None, *(energy_distance(each, original, groups) for each in others)]


def at_root(work: Callable[[], None]) -> int:
    """Do the work of a command from the project's root, from where tables are named; its exit code. A mistake of the
    user and Ctrl-C are one line."""
    os.chdir(ROOT)
    try:
        work()
    except DisaError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 0
