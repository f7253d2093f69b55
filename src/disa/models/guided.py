"""Classifier-free guidance, composed once: a family supplies a plain network, the guided field is made here.

Shapes: R rows, P halves of them (conditional first, then unconditional; three where a picture is edited), n denoising
steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from disa.core.constants import constant
from disa.core.fields import BoundEach, FieldInRows, RaggedField
from disa.core.problem import Bound, Prediction, TimeGrid
from disa.runtime.fused import guided, number_for
from disa.runtime.parts import CHANGES

LOOKAHEAD_VALUES = 1 << 21
"""How many modulation values are computed at once: enough to read the weights rarely, small enough for any machine."""


class BoundNetwork(Protocol):
    """A network on a grid."""

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        """What it says at x [R, *shape] under each condition, [P, R', *shape] with the R rows first.

        P is what `Network.on` was told for this denoising step. R' may be larger than R: rows that pad a tile. Of any
        type: the field's answer is float32.
        """
        ...


class Network(Protocol):
    """A denoising network with one or two conditions for each of its rows, without guidance."""

    @property
    def num_halves(self) -> int:
        """1, or 2 where the rows have an unconditional half, too."""
        ...

    def on(self, grid: TimeGrid, num_halves: Sequence[int]) -> BoundNetwork:
        """Bind to the n times of a grid; num_halves: [n] how many halves are wanted in each denoising step."""
        ...

    def select(self, rows: Tensor) -> Network:
        """The same for some rows only (indices [R'])."""
        ...


@dataclass(frozen=True, eq=False)
class Together:
    """The rows that make a denoising step together, each in its own: of these the conditional half is evaluated, then
    the unconditional half of those that are guided."""

    count: int
    """The first rows, so many."""
    guided: Tensor
    """[G] indices."""
    grids: Tensor
    """[count] the grid of each."""


def rows_together(sizes: Sequence[int], costs: Sequence[Sequence[int]], device: torch.device) -> list[Together]:
    """[n] those of each denoising step. sizes: rows of each grid; costs: [n] of each, of which none is longer than one
    before it."""
    grids = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    found = list[Together]()
    for step in range(len(costs[0])):
        now = [cost[step] for cost in costs if len(cost) > step]
        count = sum(sizes[: len(now)])
        guided = torch.tensor(now)[grids[:count]].sub(1).nonzero().flatten()
        found.append(Together(count, guided.to(device), grids[:count].to(device)))
    return found


class RaggedNetwork(Network):
    """The base of networks whose rows can go along grids of their own."""

    def on_each(self, rows: Tensor, grids: Sequence[TimeGrid], together: list[Together]) -> BoundNetwork:
        """Bind rows (indices [R]) to grids, as `RaggedField.on_each` has them. What it says is [count + G, *shape]."""
        raise NotImplementedError

    def embedded(self, network_times: Tensor) -> Tensor:
        """As `FieldInRows.embedded`."""
        raise NotImplementedError

    def at(self, x: Tensor, times: Tensor, num_halves: int) -> Prediction:
        """What it says at x [R', *shape] of the first rows under so many conditions [P, R', *shape]; times: [R', D]
        embedded."""
        raise NotImplementedError


@dataclass(frozen=True)
class Guided(RaggedField):
    """unconditional + scale (conditional - unconditional), and the variance of the conditional half.

    Where the scale is exactly 1, outside of the interval of time (`Guidance.interval`), and where the network has no
    unconditional half, the conditional half alone is evaluated. A network with a third condition, without the picture
    that the other two have, is guided three ways: source_scale is that of the picture, and where both scales are 1 the
    conditional rows alone are evaluated.
    """

    network: Network
    scale: float | Tensor = field(metadata=CHANGES)
    interval: tuple[float, float] = (0.0, 1.0)
    source_scale: float = 1.0
    mixes: bool = True
    """Whether one of the scales is another number than 1."""

    def __post_init__(self) -> None:
        if not isinstance(self.scale, Tensor):
            object.__setattr__(self, "mixes", self.scale != 1 or self.source_scale != 1)

    def select(self, rows: Tensor) -> Guided:
        return replace(self, network=self.network.select(rows))

    def on(self, grid: TimeGrid) -> Bound:
        costs = self.costs(grid)
        return _BoundGuided(self.network.on(grid, costs), costs, self.scale, self.source_scale)

    def on_each(self, rows: Tensor, grids: Sequence[TimeGrid], sizes: Sequence[int]) -> BoundEach | None:
        if not isinstance(self.network, RaggedNetwork) or self.network.num_halves > 2:
            return None
        costs = [self.costs(grid) for grid in grids]
        together = rows_together(sizes, costs, rows.device)
        return _BoundGuidedEach(self.network.on_each(rows, grids, together), together, costs, self.scale)

    def in_rows(self) -> FieldInRows | None:
        if not isinstance(self.network, RaggedNetwork) or self.network.num_halves > 2:
            return None
        return _GuidedInRows(self, self.network)

    def costs(self, grid: TimeGrid) -> list[int]:
        """[n] halves of each denoising step."""
        most = self.network.num_halves if self.mixes else 1
        return [most if acts else 1 for acts in grid.within(self.interval)]


class _BoundGuided:
    def __init__(self, network: BoundNetwork, costs: Sequence[int], scale: float | Tensor, source_scale: float) -> None:
        self.network, self.costs, self.scale, self.source_scale = network, costs, scale, source_scale

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        self.scale = number_for(x, self.scale)
        value, variance = self.network(x, denoise_step)
        if len(value) == 3:  # what the picture adds to nothing takes the place of the unconditional half
            both, picture, nothing = value.float().unbind(0)
            return Prediction(
                (torch.lerp(nothing, picture, self.source_scale) + self.scale * (both - picture))[: len(x)]
            )
        said = guided(value, variance, self.scale)
        return Prediction(*(each[: len(x)] for each in said))


class _BoundGuidedEach:
    def __init__(
        self,
        network: BoundNetwork,
        together: list[Together],
        costs: Sequence[Sequence[int]],
        scale: float | Tensor,
    ) -> None:
        self.network, self.together, self.costs, self.scale = network, together, costs, scale

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        value, variance = self.network(x, denoise_step)
        guided, count = self.together[denoise_step].guided, len(x)
        mixed = value[:count]
        if len(guided) == count:
            mixed = torch.lerp(value[count:], mixed, self.scale)
        elif len(guided):
            mixed = mixed.index_copy(0, guided, torch.lerp(value[count:], mixed[guided], self.scale))
        return Prediction(mixed, None if variance is None else variance[:count])


class _GuidedInRows:
    def __init__(self, field: Guided, network: RaggedNetwork) -> None:
        self.costs, self.embedded, self.network, self.scale = field.costs, network.embedded, network, field.scale

    def __call__(self, x: Tensor, times: Tensor, guided: Tensor | None) -> Prediction:
        if guided is None:
            value, variance = self.network.at(x, times, 1)
            return Prediction(value[0], None if variance is None else variance[0])
        value, variance = self.network.at(x, times, 2)
        # A scale of 1 by a number of the kernel: one beside it would be copied from the host.
        scales = self._scale(value).expand(len(x)).masked_fill(~guided, 1.0).view(-1, *[1] * (x.dim() - 1))
        return Prediction(torch.lerp(value[1], value[0], scales), None if variance is None else variance[0])

    def _scale(self, like: Tensor) -> Tensor:
        return self.scale if isinstance(self.scale, Tensor) else like.new_full((), self.scale)


class Lookahead:
    """Modulations of a stretch of denoising steps, computed together: they depend on time and condition alone.

    num_halves: [n] of each denoising step; a stretch holds steps with equally many. values: modulation values of all
    halves in one denoising step.
    """

    def __init__(self, num_halves: Sequence[int], values: int) -> None:
        self.num_halves = num_halves
        self.most = max(1, LOOKAHEAD_VALUES // values)
        self.first, self.stretch = 0, torch.empty(0)

    def at(self, denoise_step: int, compute: Callable[[slice, int], Tensor]) -> Tensor:
        """Those of one denoising step.

        compute: maps a slice of denoising steps and the number of halves to modulations [stretch, ...]. It is not kept:
        a method of the owner would make a circle, which holds its tensors until Python looks for circles.
        """
        if not 0 <= denoise_step - self.first < len(self.stretch):
            self.first, self.stretch = denoise_step, torch.empty(0)  # the old stretch makes room for the new
            ahead = self.num_halves[denoise_step : denoise_step + self.most]
            length = next((i for i, halves in enumerate(ahead) if halves != ahead[0]), len(ahead))
            self.stretch = compute(slice(denoise_step, denoise_step + length), ahead[0])
        return self.stretch[denoise_step - self.first]


def network_times(grid: TimeGrid, device: torch.device) -> Tensor:
    """[n] what time embeddings are fed, float32."""

    def make() -> Tensor:
        return torch.tensor(grid.network_times, dtype=torch.float32).to(device, non_blocking=True)

    return constant(("network times", grid.network_times.tobytes(), device), make)


def halves_to_come(scales: Sequence[float], ar_step: int, num_halves: int) -> int:
    """How many halves a backbone that caches keys and values needs: both as long as this AR step or a later one is
    guided, since what is guided attends to all that was drawn before."""
    return num_halves if any(scale != 1 for scale in scales[ar_step:]) else 1


def ramp_by_ar_steps(num_ar_steps: int) -> list[float]:
    """[K] k / (K - 1), or 1 where K is 1: the ramp of families whose guidance grows with AR steps, not with tokens."""
    last = num_ar_steps - 1
    return [k / last if last else 1.0 for k in range(num_ar_steps)]
