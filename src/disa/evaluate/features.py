"""Features of a set of images, and where they are kept.

A part of a set, some hundred images, is looked up by what it is: the contents of its images and the space. So features
are computed once, an interrupted evaluation goes on where it was, and a run that grew needs only what is new. `Drawn`
keeps them while images are drawn.

A network always gets batches of one size, so that features of an image do not depend on which others are computed with
it, as far as its kernels treat all rows of a batch alike; those of the digits' classifier do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError, warn
from disa.evaluate.images import Images, decoded
from disa.evaluate.spaces import Space, load_space
from disa.files import make_folder, write_whole
from disa.runtime.surroundings import undisturbed
from disa.study.metrics import Gaussian
from disa.study.sums import UNREADABLE
from disa.values import named
from disa.weights.trust import hash_record

PART = 500
"""Images of a part, at most: a shard of `disa bulk` is two of them."""
BATCH = 32
"""Images that a network gets at a time, always: kernels for other sizes round in another way."""

OnPart = Callable[[int], object]


@dataclass(frozen=True)
class Features:
    """values: float32 [N, D]; logits: [N, K], or None."""

    values: Tensor
    logits: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, part: slice) -> Features:
        return Features(self.values[part], None if self.logits is None else self.logits[part])

    @cached_property
    def gaussian(self) -> Gaussian:
        """Mean and covariance, merged of those of parts: all in float64 at once would be twice the memory."""
        return Gaussian.merged([Gaussian.fit(part) for part in self.values.split(4096)])

    @classmethod
    def joined(cls, parts: Sequence[Features]) -> Features:
        logits = [part.logits for part in parts if part.logits is not None]
        return cls(torch.cat([part.values for part in parts]), torch.cat(logits) if logits else None)


def check_fits(images: Images, space: Space) -> None:
    """Raises DisaError where a space cannot take such images."""
    check_takes(space, (space.channels, *images.size), f"those of {named(images.place)}")


def check_takes(space: Space, shape: tuple[int, int, int], which: str) -> None:
    """shape: channels, height and width. Raises DisaError where a space cannot take such images."""
    if space.size is not None and shape[1:] != space.size:
        wanted, found = ("x".join(map(str, size)) for size in (space.size, shape[1:]))
        raise DisaError(f"{space.name} takes images of {wanted}, and {which} have {found}.")
    if space.channels < shape[0]:
        raise DisaError(f"{space.name} takes grey images, and {which} are coloured.")


@undisturbed()
def extract(images: Images, space: Space, device: torch.device, on_part: OnPart = lambda count: None) -> Features:
    """The features of all images, kept for later. on_part is called with the size of each part that is done. Raises
    DisaError."""
    check_fits(images, space)
    found = []
    for part in images.parts(PART):
        found.append(_of_part(images, part, space, device))
        on_part(len(part))
    return Features.joined(found)


def _of_part(images: Images, part: range, space: Space, device: torch.device) -> Features:
    path = _place([images.entries[i].digest for i in part], space.identity)
    if (kept := _read(path, len(part))) is not None:
        return kept
    computed = features_of((_pixels(images, i, space) for i in part), space, device)
    _keep(path, computed)
    return computed


@undisturbed()
def features_of(pixels: Iterable[np.ndarray], space: Space, device: torch.device) -> Features:
    """Of images uint8 [height, width, channels of the space], a batch of them in memory at a time. Raises DisaError."""
    found, left = list[Features](), iter(pixels)
    while batch := list(islice(left, BATCH)):
        filled = np.stack([*batch, *[batch[-1]] * (BATCH - len(batch))])
        features, logits = space.network(torch.from_numpy(filled).permute(0, 3, 1, 2).contiguous().to(device))
        told = Features(features.float().cpu(), None if logits is None else logits.float().cpu())
        found.append(told[: len(batch)])
    computed = Features.joined(found)
    if not computed.values.isfinite().all():
        raise DisaError(f"{space.name} gives features that are no numbers: its weights are damaged.")
    return computed


def _pixels(images: Images, i: int, space: Space) -> np.ndarray:
    found, entry = images.pixels(i), images.entries[i]
    if found.shape[:2] != entry.size:
        raise DisaError(f"{entry.name} of {named(images.place)} is turned by its EXIF data: save it upright.")
    return with_channels(found, space, f"{entry.name} of {named(images.place)}")


def with_channels(pixels: np.ndarray, space: Space, name: str) -> np.ndarray:
    """uint8 [height, width, channels of the space]. Grey becomes colour; only what is grey becomes grey. name: of the
    image, for an error. Raises DisaError."""
    if space.channels == 1:
        if (pixels != pixels[..., :1]).any():
            raise DisaError(f"{space.name} takes grey images, and {name} is coloured.")
        return pixels[..., :1]
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def looking(text: str, device: torch.device, shape: tuple[int, int, int]) -> tuple[str, Callable[..., Features]]:
    """What a worker needs to compute features of what it draws: the identity of the space, and a function from the
    bytes of pictures to their features. text: see `load_space`. shape: channels, height and width of all of them.
    Raises DisaError where the space takes no such images."""
    space = load_space(text, device)
    check_takes(space, shape, "those that are drawn")

    def features(contents: Iterable[bytes]) -> Features:
        pixels = (with_channels(decoded(each), space, "one that is drawn") for each in contents)
        return features_of(pixels, space, device)

    return space.identity, features


# -- what is kept --------------------------------------------------------------------------------------------------


def cache() -> Path:
    """Where features are kept: `features` in $DISA_CACHE, or in the user's cache folder. It can be removed."""
    return hash_record().with_name("features")


class Drawn:
    """Features of images that are being drawn, as `extract` will look for them. identity: of the space.

    Of the images of a chunk they are kept by `add`; once a file of many is made of several chunks, `join` keeps them by
    that file. What a process that was killed between the two leaves is computed again by whoever needs it.
    """

    def __init__(self, identity: str) -> None:
        self.identity = identity

    def add(self, digests: Sequence[str], features: Features) -> None:
        """digests: of the files of the images, in their order."""
        for start, part in zip(range(0, len(digests), PART), _cut(digests), strict=True):
            _keep(_place(part, self.identity), features[start : start + PART])

    def join(self, digests: Sequence[str], chunks: Sequence[Sequence[str]]) -> None:
        """digests: of the images of the file. chunks: of those that were added, which are given up. Nothing is kept
        where some are missing."""
        added = {_place(part, self.identity): part for chunk in chunks for part in _cut(chunk)}
        rows = dict[str, Features]()
        for path, part in added.items():
            if (found := _read(path, len(part))) is not None:
                rows |= {digest: found[i : i + 1] for i, digest in enumerate(part)}
        if rows.keys() >= {*digests}:
            self.add(digests, Features.joined([rows[digest] for digest in digests]))
        for path in added.keys() - {_place(part, self.identity) for part in _cut(digests)}:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _cut(digests: Sequence[str]) -> list[Sequence[str]]:
    return [digests[start : start + PART] for start in range(0, len(digests), PART)]


def _place(digests: Sequence[str], identity: str) -> Path:
    told = "\n".join([identity, *digests])
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
