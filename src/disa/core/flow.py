"""The flow-matching process of FlowAR, xAR, BitDance and NextStep: named time grids and the training objective.

x_t = (1 - t) x_0 + t noise, and the network predicts the velocity v = dx/dt = noise - x_0 (Lipman et al. 2023; Liu et
al. 2023). t goes from 1 (noise) to 0 (data). Levels of a grid are t, in float64.

Shapes: B images, L tokens, C token channels, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from disa.core.grids import own_grid
from disa.core.problem import Grid, TimeGrid
from disa.errors import DisaError
from disa.values import did_you_mean, number, shown

BITDANCE, _BITDANCE_LAST = "bitdance", 0.05
"""A grid that ends in a step of that length, officially."""
NEXTSTEP, _NEXTSTEP_LAST = "nextstep", 0.04
"""The same of NextStep."""


@dataclass(frozen=True)
class FlowMatching:
    """The straight path between data and noise.

    embedding_scale: what the network is fed at t = 1, a whole number. from_noise: it is fed that at t = 0, as it counts
    times from noise to data, and no whole parts.
    """

    embedding_scale: int = 1000
    from_noise: bool = False
    predicts = "velocity"
    learns_variance = False
    shows_data_in_noise = True
    even_grid = "uniform"

    def grid(self, name: Grid, num_steps: int) -> TimeGrid:
        """The named grid for `num_steps` denoising steps; see `GRIDS`. Raises DisaError."""
        return _grid(self, name, num_steps) if isinstance(name, str) else own_grid(name, self, num_steps)

    def grid_at(self, times: np.ndarray) -> TimeGrid:
        """Exactly these times."""
        return TimeGrid(self.network_times(times), np.append(times, 0.0), times)

    def scales(self, level: float) -> tuple[float, float]:
        """1 - t and t."""
        return 1 - level, level

    def data(self, x: Tensor, value: Tensor, level: float) -> Tensor:
        """x - t velocity."""
        return x.sub(value, alpha=level)

    def noised(self, data: Tensor, noise: Tensor, level: float) -> Tensor:
        """(1 - t) data + t noise."""
        return torch.lerp(data, noise, level)

    def flow_grid(self, num_steps: int) -> tuple[TimeGrid, np.ndarray]:
        """The uniform grid and its t [n + 1]."""
        grid = self.grid("uniform", num_steps)
        return grid, grid.levels

    def flow_scale(self, level: float) -> float:
        """1: these are the coordinates of a flow."""
        return 1.0

    def velocity(self, x: Tensor, value: Tensor, level: float) -> Tensor:
        """What the network says."""
        return value

    def network_times(self, t: np.ndarray) -> np.ndarray:
        """What the time embedding is fed at times t: a product in float32, as officially, or the whole part of it."""
        if self.from_noise:
            return ((1 - t).astype(np.float32) * np.float32(self.embedding_scale)).astype(np.float64)
        return np.trunc(t.astype(np.float32) * np.float32(self.embedding_scale)).astype(np.float64)


@lru_cache(maxsize=4096)
def _grid(process: FlowMatching, name: str, num_steps: int) -> TimeGrid:
    times = _named(name)
    if num_steps < 1:
        raise DisaError(f"a row needs at least 1 denoising step, found {num_steps}.")
    levels = times(num_steps)
    network_times = process.network_times(levels[:-1])
    if name.startswith(BITDANCE):
        # Whatever the shift, the network is told that its last time is this one.
        network_times[-1] = process.network_times(np.array([_BITDANCE_LAST]))[0]
    return TimeGrid(network_times, levels, levels[:-1])


def _named(name: str) -> Callable[[int], np.ndarray]:
    """The function from n to t [n + 1] that a name stands for."""
    plain = name.replace("_", "-")
    if plain in GRIDS:
        return GRIDS[plain]
    kind = next((kind for kind in SHIFTED if plain.startswith(f"{kind}-")), None)
    if kind is None:
        known = f"{', '.join(GRIDS)}, or shifted-S with a number S, such as shifted-3"
        raise DisaError(
            f"unknown grid {shown(name)}: expected one of {known}.{did_you_mean(plain, [*GRIDS, 'shifted-3'])}"
        )
    # Beyond these bounds all times but one fall together.
    shift = number(plain.removeprefix(f"{kind}-"), f"S in the grid {shown(name)}", 1e-3, 1e3)
    return lambda num_steps: SHIFTED[kind](num_steps, shift)


def _uniform(num_steps: int) -> np.ndarray:
    return np.linspace(1, 0, num_steps + 1)


def shifted(t: np.ndarray, shift: float) -> np.ndarray:
    """Times moved towards noise where `shift` > 1, towards data below 1 (Esser et al. 2024, eq. 23)."""
    return shift * t / (1 + (shift - 1) * t)


def _flowar_split(num_steps: int) -> np.ndarray:
    """Half of the times in [0.3, 1] and half below 0.3; an odd n makes n - 1 steps, but 1 makes 1. 50 is uniform."""
    if num_steps in (1, 50):
        return _uniform(num_steps)
    half = num_steps // 2
    return np.concatenate([np.linspace(1, 0.3, half), np.linspace(0.25, 0, half + 1)])


def _xar_em(num_steps: int) -> np.ndarray:
    """n even times from 1 to 0.04, where the last step starts."""
    return np.append(np.linspace(1, 0.04, num_steps), 0.0)


def _bitdance(num_steps: int, shift: float = 1.0) -> np.ndarray:
    """n even steps from 1 to 0.05, then one of 0.05 more, as sums in float32. With a shift they do not end at 0."""
    share = np.linspace(0, 1 - _BITDANCE_LAST, num_steps + 1, dtype=np.float32)
    with np.errstate(divide="ignore"):
        share = (np.float32(1 / shift) / (np.float32(1 / shift) + (1 / share - 1))).astype(np.float32)
    from_noise = np.cumsum(np.append(np.float32(0), np.diff(share)), dtype=np.float32)
    levels = 1 - from_noise.astype(np.float64)
    return np.append(levels, 0.0 if shift == 1 else levels[-1] - _BITDANCE_LAST)


def _nextstep(num_steps: int, shift: float = 1.0) -> np.ndarray:
    """n even times from 1 to 0.04, then shifted, and one step of 0.04 more, not beyond the data: times that are shifted
    towards noise end before it."""
    if num_steps == 1:
        return _uniform(1)
    t = shifted(np.linspace(1, _NEXTSTEP_LAST, num_steps), shift)
    return np.append(t, max(0.0, t[-1] - _NEXTSTEP_LAST))


GRIDS: dict[str, Callable[[int], np.ndarray]] = {
    "uniform": _uniform,
    "flowar-split": _flowar_split,
    "xar-em": _xar_em,
    BITDANCE: _bitdance,
    NEXTSTEP: _nextstep,
}
"""n -> t [n + 1], beside `shifted-S` for any S > 0. Official: xar-em; flowar-split, which makes 2 (n // 2) evaluations
(at n = 1 the original makes none and returns noise; here it is one clean step); bitdance, which makes n + 1, with
`bitdance-S` for times that were shifted in training; and nextstep, with `nextstep-S` for times that are shifted (at
n = 1 the original fails; here it is one clean step). Others make exactly n."""
SHIFTED: dict[str, Callable[[int, float], np.ndarray]] = {
    "shifted": lambda num_steps, shift: shifted(_uniform(num_steps), shift),
    BITDANCE: _bitdance,
    NEXTSTEP: _nextstep,
}
"""Grids that end in a number: from n and a shift S to t."""


class FlowLoss:
    """The training objective of conditional flow matching (Lipman et al. 2023, eq. 23)."""

    def noised(self, start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t [B, L, C] from x_0 [B, L, C] at times t that broadcast to it, such as [B, 1, 1]."""
        return torch.lerp(start, noise, t)

    def error(self, velocity: Tensor, start: Tensor, noise: Tensor) -> Tensor:
        """Squared error [B, L] of a velocity [B, L, C] predicted at `noised(start, t, noise)`, mean over channels."""
        return (noise - start - velocity).square().mean(-1)
