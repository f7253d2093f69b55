"""What a request asks for once it was checked, and what is told of it while it is drawn. All of it can be sent to
another process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from disa.draw.inputs import Inputs


@dataclass(frozen=True)
class Order:
    """The images of one request."""

    inputs: Inputs
    options: dict[str, Any]
    """Of `Settings`, as JSON has them; what is left out is the server's choice."""
    together: str
    """Orders in which this is equal may be drawn in one batch."""
    previews: tuple[int, ...] = ()
    """The AR steps after which the images are shown."""

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True)
class Preview:
    """Images of an order under way."""

    pictures: dict[int, bytes]
    """PNG files by the images' places in the order."""
    ar_step: int


@dataclass(frozen=True)
class Drawn:
    """A finished order."""

    pictures: list[bytes]
    """PNG files with everything that they were drawn from."""
    evaluations: int
    """Of the order's share of its batches."""
    seconds: float
    """Of drawing, without the time in the queue."""
    together: int
    """The images that were drawn in the largest of its batches, of this order and of others."""
    rewritten: list[str] | None = None
    """What was drawn for each prompt, where prompts are rewritten."""


@dataclass(frozen=True)
class Failed:
    """An order that could not be drawn."""

    reason: str
    status: int = 500
    """Of the answer: 400 where what the request asked for is the reason, 503 where it is too little memory."""


Event = Preview | Drawn | Failed
"""Previews may be left out where nobody is quick enough to read them; then one of the others ends an order."""
