"""What images are compared with: a set of images, the mean and covariance of its features, or both.

| given | images | mean and covariance |
|---|---|---|
| whatever `images` takes | yes | of these |
| `adm_in256_stats.npz`, and others with `mu` and `sigma` | no | of Inception's features |
| `VIRTUAL_imagenet256_labeled.npz`, with `arr_0` too | yes | of Inception's features, and of all of ImageNet |
| a file that `write_statistics` made | no | of the features that it names |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch

from disa.errors import DisaError
from disa.evaluate.features import Features, OnPart, check_fits, extract
from disa.evaluate.images import ARRAY, Images, array_in, arrays_in, open_images
from disa.evaluate.spaces import INCEPTION, Space
from disa.files import write_whole
from disa.study.metrics import Gaussian
from disa.values import named
from disa.values import path as path_of

MEAN, COVARIANCE, COUNT, OF = "mu", "sigma", "num_images", "features"


@dataclass(frozen=True)
class Statistics:
    """The mean and covariance of features, in a file."""

    gaussian: Gaussian
    of: str
    """The identity of the space, or the name alone where the file does not tell more."""

    def is_of(self, space: Space) -> bool:
        return self.of in (space.name, space.identity)


@dataclass(frozen=True)
class Reference:
    """images or statistics, or both."""

    place: str
    images: Images | None = None
    statistics: Statistics | None = None

    def check(self, images: Images, space: Space) -> None:
        """Raises DisaError where these images cannot be compared with it in this space."""
        if self.images is not None:
            check_fits(self.images, space)
            if self.images.size != images.size:
                own, other = ("x".join(map(str, size)) for size in (self.images.size, images.size))
                raise DisaError(
                    f"the reference {named(self.place)} has images of {own}, and {named(images.place)} of {other}: "
                    "give one with images of the same size."
                )
        elif self.statistics is None or not self.statistics.is_of(space):
            of = self.statistics.of.partition(":")[0] if self.statistics else "nothing"
            other = " of other weights" if of == space.name else ""
            raise DisaError(
                f"{named(self.place)} has statistics of {of} features{other}, and these are {space.name}: give a "
                "reference with images, or the features that it was made with."
            )

    def features(self, space: Space, device: torch.device, on_part: OnPart = lambda count: None) -> Features | None:
        """Of its images; None where it has none."""
        return None if self.images is None else extract(self.images, space, device, on_part)

    def gaussian(self, space: Space, features: Features | None) -> Gaussian:
        """That of the file where it is of this space, else that of the images' features."""
        if self.statistics is not None and self.statistics.is_of(space):
            return self.statistics.gaussian
        assert features is not None
        return features.gaussian


def open_reference(given: str | Path) -> Reference:
    """Raises DisaError."""
    path = path_of(given, "a reference")
    names = arrays_in(path) if path.is_file() else []
    statistics = read_statistics(path) if {MEAN, COVARIANCE} <= {*names} else None
    if statistics is not None and ARRAY not in names:
        return Reference(str(path), statistics=statistics)
    return Reference(str(given), open_images(given), statistics)


def read_statistics(path: Path) -> Statistics:
    """Raises DisaError."""
    try:
        names = arrays_in(path)
        count = float(array_in(path, COUNT)) if COUNT in names else float("inf")
        of = str(array_in(path, OF)) if OF in names else INCEPTION
        return Statistics(Gaussian.of(array_in(path, MEAN), array_in(path, COVARIANCE), count), of)
    except (ValueError, TypeError) as error:
        raise DisaError(f"{named(path)} cannot be read: its statistics are no numbers.") from error
    except DisaError as error:
        told = str(error)
        raise DisaError(told if str(path) in told else f"{named(path)} cannot be used: {told}") from error


def write_statistics(path: Path, gaussian: Gaussian, space: Space) -> Path:
    """A reference for later, and a part to be merged with others (`Gaussian.merged`). Raises DisaError."""
    arrays = {
        MEAN: gaussian.mean.numpy(),
        COVARIANCE: gaussian.covariance.numpy(),
        COUNT: np.array(gaussian.count),
        OF: np.array(space.identity),
    }

    def write(file: IO[bytes]) -> None:
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]

    return write_whole(path, write)
