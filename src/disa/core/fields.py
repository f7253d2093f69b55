"""Fields whose rows go along grids of their own, as `disa.core.ragged` evaluates them together.

Shapes: R rows, T times, D width, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from disa.core.problem import Field, Prediction, TimeGrid


class RaggedField(Field):
    """The base of fields whose rows can go along grids of their own."""

    def on_each(self, rows: Tensor, grids: Sequence[TimeGrid], sizes: Sequence[int]) -> BoundEach | None:
        """Bind rows (indices [R]) to grids: the first ones, so many, to the first, and so on. None where rows of each
        grid have to be bound apart."""
        raise NotImplementedError

    def in_rows(self) -> FieldInRows | None:
        """The same for rows that are each told their own time; None where a denoising step of all is no such call."""
        return None


class BoundEach(Protocol):
    """A field whose rows go along grids of their own: those of the first grid come first, and no grid is longer than
    one before it, so that the rows which still go on are always the first ones."""

    @property
    def costs(self) -> Sequence[Sequence[int]]:
        """[n] of each grid, as in `Bound.costs`."""
        ...

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        """What the network says at x [R', *shape]: the rows that make so many denoising steps, each in its own."""
        ...


class FieldInRows(Protocol):
    """A field that is told in each call which time each row is at, by tensors: nothing in it goes by their values."""

    def costs(self, grid: TimeGrid) -> Sequence[int]:
        """[n] as in `Bound.costs`."""
        ...

    def embedded(self, network_times: Tensor) -> Tensor:
        """What a row is told of its time, for each of the times [T] that the network is fed: [T, D]."""
        ...

    def __call__(self, x: Tensor, times: Tensor, guided: Tensor | None) -> Prediction:
        """What the network says at x [R', *shape] of the first rows. times: [R', D] embedded; guided: [R'] whether
        guidance acts on each, None where it acts on none and costs nothing."""
        ...
