"""Images of many settings for the same inputs, drawn batch after batch and kept as features.

Shapes: N images, B of a batch, D features.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.files import write_whole
from disa.study.likeness import energy_distance, spread_within
from disa.study.metrics import Spread
from disa.study.sums import UNREADABLE

Features = Callable[[Tensor], Tensor]
"""Images uint8 [B, channels, height, width] -> features [B, D]."""


@dataclass
class Drawn:
    """What was drawn with a setting: the features of its first N images, and what they took."""

    features: list[np.ndarray] = field(default_factory=list)
    """Of each batch [B, D]."""
    seconds: list[float] = field(default_factory=list)
    """Of each batch, decoding included."""
    evaluations_per_row: float = 0.0

    def __len__(self) -> int:
        return sum(map(len, self.features))

    def first(self, count: int) -> np.ndarray:
        return np.concatenate(self.features)[:count]

    @property
    def seconds_per_image(self) -> float:
        """The median over batches."""
        return float(np.median([taken / len(part) for taken, part in zip(self.seconds, self.features, strict=True)]))


class Pool:
    """The images of many settings for the same inputs, as features. keep: a folder for such features, or None."""

    def __init__(self, sampler: Sampler, inputs: Inputs, features: Features, keep: Path | None) -> None:
        self.sampler, self.inputs, self.features, self.keep = sampler, inputs, features, keep
        self.groups = inputs.labels if inputs.prompts is None else inputs.prompts
        self.drawn = dict[str, Drawn]()

    def of(self, settings: Settings) -> Drawn:
        """What there is of a setting, of this search or of one before it."""
        key = self._key(settings)
        if key not in self.drawn:
            self.drawn[key] = self._read(key)
        return self.drawn[key]

    def batches(self, settings: Settings, count: int) -> Iterator[None]:
        """Draw until there are `count` images; a batch at each turn."""
        drawn = self.of(settings)
        if len(drawn) >= count:
            return
        run = self.sampler.start(self.inputs.part(slice(len(drawn), count)), settings)
        for samples in run.batches():
            pixels = (samples.images * 255).round().to(torch.uint8).to(self.sampler.device)
            drawn.features.append(self.features(pixels).float().cpu().numpy())
            drawn.seconds.append(samples.seconds)
            drawn.evaluations_per_row = samples.evaluations_per_row
            self._write(self._key(settings), drawn)
            yield

    def distance(self, settings: Settings, original: Settings, count: int) -> Spread:
        """How far the first images of a setting are from the original's."""
        own, theirs = (self.of(each).first(count) for each in (settings, original))
        return energy_distance(own, theirs, self.groups_of(count))

    def spread(self, settings: Settings, count: int) -> float:
        """The mean distance of two images of a setting with the same label or prompt."""
        return spread_within(self.of(settings).first(count), self.groups_of(count))

    def groups_of(self, count: int) -> Sequence[Hashable] | None:
        """The labels or prompts of the first inputs, within which images are compared; None without any."""
        return None if self.groups is None else self.groups[:count]

    def _key(self, settings: Settings) -> str:
        with warnings.catch_warnings(action="ignore"):  # they are for who draws
            about = self.sampler.start(self.inputs.part(slice(1)), settings).about()
        # Where and how it is drawn, too, since seconds are kept.
        told = [about, self.inputs.seeds[0], self.groups, self.inputs.negative_prompt]
        return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:24]

    def _read(self, key: str) -> Drawn:
        if self.keep is None:
            return Drawn()
        try:
            with np.load(self.keep / f"{key}.npz", allow_pickle=False) as stored:
                about, features = json.loads(str(stored["about"])), stored["features"]
            parts = np.split(features, np.cumsum(about.pop("sizes"))[:-1])
            return Drawn(parts, **about)
        except UNREADABLE:
            return Drawn()

    def _write(self, key: str, drawn: Drawn) -> None:
        if self.keep is None:
            return
        names = ("seconds", "evaluations_per_row")
        about = {name: getattr(drawn, name) for name in names} | {"sizes": [len(part) for part in drawn.features]}

        def write(file: IO[bytes]) -> None:
            np.savez(file, about=json.dumps(about), features=np.concatenate(drawn.features))

        write_whole(self.keep / f"{key}.npz", write, synced=False)
