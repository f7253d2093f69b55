"""What `disa tune` found, for reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from disa.study.metrics import Spread

NEGLIGIBLE = 0.1
"""The share of the tolerance below which a loss counts as none. A deterministic solver draws the same images but for
little, so that losses far below what anyone would mind are known surely."""


def is_worse(loss: Spread, tolerance: float) -> bool:
    """Whether a loss is told from one that counts as none."""
    return loss.low > NEGLIGIBLE * tolerance


@dataclass(frozen=True)
class Found:
    """A setting, and what it keeps and saves."""

    name: str
    options: dict[str, Any]
    """Beside the original's."""
    seconds_per_image: float
    speedup: float
    evaluations_per_row: float
    loss: Spread
    bound: float
    """What the loss is below, one-sided and at 5 %."""
    images: int

    def report(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"loss": told(self.loss)}


def told(loss: Spread) -> dict[str, float]:
    """A loss for JSON."""
    return {"value": loss.value, "low": loss.low, "high": loss.high, "std": loss.std}


@dataclass(frozen=True)
class Tuned:
    """What `tune` found."""

    original: Found
    front: list[Found]
    """The settings that were confirmed, the fastest first."""
    tolerance: float
    unit: float
    """The distance that is a loss of 1: twice that of two images of the original."""
    chance: Spread
    """The loss of one half of the original's own images against the other, which share no seeds."""
    alone: list[tuple[str, float, float]]
    """Of each way on top of the mildest steps: its name, its speed-up over these, and the loss it adds."""
    searched: list[tuple[str, float, float]]
    """Of the mixes that the front was found among: name, speed-up and loss on the seeds of the search."""
    seconds: float

    @property
    def best(self) -> Found | None:
        """The fastest setting that is not told apart from the original (`is_worse`) and surely loses no more than the
        tolerance, as all slower ones do. Asked from the slowest on, up to the first that may lose more, so many
        questions err no more often than one (fixed sequence: Maurer, Hothorn and Lehmacher 1995)."""
        found = None
        for each in reversed(self.front):
            if each.bound > self.tolerance:
                break
            found = found if is_worse(each.loss, self.tolerance) else each
        return found

    def report(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        ways = [{"way": name, "speedup": speedup, "loss": loss} for name, speedup, loss in self.alone]
        mixes = [{"settings": name, "speedup": speedup, "loss": loss} for name, speedup, loss in self.searched]
        best = self.best
        return {
            "tolerance": self.tolerance,
            "unit": self.unit,
            "original": self.original.report(),
            "front": [found.report() for found in self.front],
            "best": None if best is None else best.name,
            "chance": told(self.chance),
            "alone": ways,
            "searched": mixes,
            "seconds": self.seconds,
        }
