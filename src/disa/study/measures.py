"""What a measure of quality is, as `compare` uses it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from torch import Tensor

from disa.draw.inputs import Inputs
from disa.study.certainty import Corrected, corrected
from disa.study.metrics import Resampled, Spread

FEWEST_IMAGES = 20


@dataclass(frozen=True)
class Measured:
    """How good the images of every policy are."""

    qualities: Sequence[Any]
    """A dataclass of numbers for each policy."""
    headlines: Sequence[Resampled]
    """The number that each policy is judged by."""
    yardsticks: Any = None
    """What real data score, as a dataclass of numbers."""
    bounds: tuple[float, float] = (-math.inf, math.inf)
    """Between which every headline is."""

    def headline(self, policy: int) -> Spread:
        """The number that a policy is judged by."""
        return self.headlines[policy].spread().within(*self.bounds)

    def difference(self, policy: int, base: int = 0) -> Spread:
        """A policy's headline minus another one's, paired by seed."""
        return (self.headlines[policy] - self.headlines[base]).spread()

    @property
    def differences(self) -> list[Spread | None]:
        """To the first policy; None for itself."""
        return [None, *(self.difference(policy) for policy in range(1, len(self.headlines)))]

    @property
    def corrected(self) -> list[Corrected | None]:
        """The differences as one family, see `disa.study.certainty`."""
        return [None, *corrected([each for each in self.differences if each is not None])]

    @property
    def of_family(self) -> list[Spread | None]:
        """The differences with the intervals that are corrected for how many there are."""
        found = zip(self.differences, self.corrected, strict=True)
        return [one and family and replace(one, low=family.low, high=family.high) for one, family in found]


class Measure(Protocol):
    """Images are [N, channels, height, width] in [0, 1], one tensor per policy, all for the same request.

    columns: titles of the cells that a policy has in a table.
    """

    @property
    def columns(self) -> tuple[str, ...]: ...

    def refusal(self, images: Tensor, inputs: Inputs) -> str:
        """Why these images cannot be measured; empty if they can."""
        ...

    def measure(self, images: Sequence[Tensor], inputs: Inputs) -> Measured: ...

    def cells(self, quality: Any, difference: Spread | None) -> list[str]: ...

    def note(self, quality: Any, yardsticks: Any) -> str:
        """What a reader of the table must know, from the first policy's quality."""
        ...
