"""Features of a set of images, and where they are kept.

A part of a set, some hundred images, is looked up by what it is: the contents of its images and the space. So features
are computed once, an interrupted evaluation goes on where it was, and a run that grew needs only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError, warn
from disa.evaluate.images import Images
from disa.evaluate.spaces import Space
from disa.files import make_folder, write_whole
from disa.runtime.surroundings import undisturbed
from disa.study.metrics import Gaussian
from disa.study.sums import UNREADABLE
from disa.values import named
from disa.weights.trust import hash_record

PART = 512
BATCH = 64

OnPart = Callable[[int], object]


@dataclass(frozen=True)
class Features:
    """values: float32 [N, D]; logits: [N, K], or None."""

    values: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance, merged of those of parts: all in float64 at once would be twice the memory."""
        return Gaussian.merged([Gaussian.fit(part) for part in self.values.split(8 * PART)])

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        logits = [part.logits for part in parts if part.logits is not None]
        return cls(torch.cat([part.values for part in parts]), torch.cat(logits) if logits else None)


def check_fits(images: Images, space: Space) -> None:
    """Raises DisaError where a space cannot take such images."""
    if space.size is not None and images.size != space.size:
        wanted, found = ("x".join(map(str, size)) for size in (space.size, images.size))
        raise DisaError(f"{space.name} takes images of {wanted}, and those of {named(images.place)} have {found}.")


@undisturbed()
def extract(images: Images, space: Space, device: torch.device, on_part: OnPart = lambda count: None) -> Features:
    """The features of all images, kept for later. on_part is called with the size of each part that is done. Raises
    DisaError."""
    check_fits(images, space)
    found = []
    for start in range(0, len(images), PART):
        part = range(start, min(start + PART, len(images)))
        found.append(_of_part(images, part, space, device))
        on_part(len(part))
    return Features.joined(found)


def _of_part(images: Images, part: range, space: Space, device: torch.device) -> Features:
    path = _place(images, part, space)
    if (kept := _read(path, len(part))) is not None:
        return kept
    batches = [part[start : start + BATCH] for start in range(0, len(part), BATCH)]
    computed = Features.joined([_computed(images, batch, space, device) for batch in batches])
    if not computed.values.isfinite().all():
        raise DisaError(f"{space.name} gives features that are no numbers: its weights are damaged.")
    _keep(path, computed)
    return computed


def _computed(images: Images, batch: range, space: Space, device: torch.device) -> Features:
    pixels = torch.from_numpy(np.stack([_pixels(images, i, space) for i in batch])).permute(0, 3, 1, 2)
    features, logits = space.network(pixels.contiguous().to(device))
    return Features(features.float().cpu(), None if logits is None else logits.float().cpu())


def _pixels(images: Images, i: int, space: Space) -> np.ndarray:
    """uint8 [height, width, channels of the space]. Grey becomes colour; only what is grey becomes grey."""
    found, entry = images.pixels(i), images.entries[i]
    if found.shape[:2] != entry.size:
        raise DisaError(f"{entry.name} of {named(images.place)} is turned by its EXIF data: save it upright.")
    if space.channels == 1:
        if (found != found[..., :1]).any():
            raise DisaError(f"{space.name} takes grey images, and {entry.name} of {named(images.place)} is coloured.")
        return found[..., :1]
    return np.broadcast_to(found, (*found.shape[:2], 3))


# -- what is kept --------------------------------------------------------------------------------------------------


def cache() -> Path:
    """Where features are kept: `features` in $DISA_CACHE, or in the user's cache folder. It can be removed."""
    return hash_record().with_name("features")


def _place(images: Images, part: range, space: Space) -> Path:
    told = "\n".join([space.identity, *(images.entries[i].digest for i in part)])
    return cache() / f"{sha256(told.encode()).hexdigest()[:40]}.npz"


def _read(path: Path, count: int) -> Features | None:
    """None where nothing is kept, or what is no longer whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: torch.from_numpy(stored[name]) for name in stored.files}
        values, logits = found["values"], found.get("logits")
    except UNREADABLE:
        return None
    whole = values.ndim == 2 and len(values) == count and bool(values.isfinite().all())
    return Features(values, logits) if whole and (logits is None or len(logits) == count) else None


def _keep(path: Path, features: Features) -> None:
    """Where there is no room, the work goes on without."""
    arrays = {"values": features.values.numpy()}
    if features.logits is not None:
        arrays["logits"] = features.logits.numpy()

    def write(file: IO[bytes]) -> None:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    try:
        make_folder(path.parent)
        write_whole(path, write, synced=False)
    except DisaError as error:
        warn(f"features are not kept for later: {error}")
