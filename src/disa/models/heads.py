"""The diffusion head of MAR and Harmon: an MLP with adaptive layer norms, and the field it makes with guidance.

Shapes: R rows, C token channels, W head width, D condition width, n denoising steps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from disa.core.problem import Counter, Evaluate, Field, Prediction, TimeGrid
from disa.models.layers import TIME_FEATURES, embed_times
from disa.runtime.kernels import swish
from disa.runtime.packing import Linear
from disa.runtime.tiles import padding

LOOKAHEAD_VALUES = 1 << 21
"""How many modulation values are computed at once: enough to read the weights rarely, small enough for any machine."""


class ResidualBlock(nn.Module):
    """Modulated layer norm, two linear layers, gate."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = Linear(width, width)
        self.fc2 = Linear(width, width)

    def forward(self, h: Tensor, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return torch.addcmul(h, gate, self.fc2(self.fc1(modulate(self.norm(h), shift, scale), activation="swish")))


class DiffusionHead(nn.Module):
    """(x_t [R, C], t, condition [R, D]) -> noise [R, C] and variance value [R, C] (MAR, section 3.2 and appendix).

    The modulations of all blocks and of the output layer depend on time and condition alone, so they are one
    linear layer, which is evaluated for many denoising steps at once.
    """

    def __init__(self, channels: int, condition_width: int, width: int, depth: int) -> None:
        super().__init__()
        self.width = width
        self.time_in = Linear(TIME_FEATURES, width)
        self.time_out = Linear(width, width)
        self.condition = Linear(condition_width, width)
        self.input = Linear(channels, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(depth))
        self.modulation = Linear(width, (3 * depth + 2) * width)
        self.output = Linear(width, 2 * channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Prediction:
        """x: [R, C], t: [R], condition: [R, D]."""
        modulation = self.modulation(swish(self.time_table(t) + self.condition(condition)))
        return self.denoise(self.input(x), modulation)

    def time_table(self, times: Tensor) -> Tensor:
        """[n] -> [n, W]."""
        return embed_times(times, self.time_in, self.time_out)

    def denoise(self, h: Tensor, modulation: Tensor) -> Prediction:
        """h: [R, W] projected input, modulation: [R, (3 depth + 2) W]."""
        parts = modulation.view(len(h), -1, self.width).unbind(1)
        for i, block in enumerate(self.blocks):
            h = block(h, *parts[3 * i : 3 * i + 3])
        h = modulate(F.layer_norm(h, (self.width,), eps=1e-6), *parts[-2:])
        return Prediction(*self.output(h).float().chunk(2, dim=1))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return torch.addcmul(x + shift, x, scale)


@dataclass(frozen=True)
class HeadField(Field):
    """A head with its conditions and guidance: noise = unconditional + scale (conditional - unconditional).

    conditional, unconditional: [R, W], already projected. The variance is the conditional one, as officially. Outside
    of the interval of time the conditional half alone is evaluated.
    """

    head: DiffusionHead
    conditional: Tensor
    unconditional: Tensor | None
    scale: float
    counter: Counter
    interval: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(
        cls, head: DiffusionHead, condition: Tensor, unconditional: Tensor | None, scale: float, counter: Counter,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> HeadField:  # fmt: skip
        """Project the conditions [R, D] once for all denoising steps."""
        empty = None if unconditional is None else head.condition(unconditional)
        return cls(head, head.condition(condition), empty, scale, counter, interval)

    def select(self, rows: Tensor) -> HeadField:
        empty = None if self.unconditional is None else self.unconditional[rows]
        return replace(self, conditional=self.conditional[rows], unconditional=empty)

    def on(self, grid: TimeGrid) -> Evaluate:
        return _BoundHead(self, grid)


class _BoundHead:
    """A `HeadField` on one grid. Rows are padded once, here, so that no layer of a block has to do it."""

    def __init__(self, field: HeadField, grid: TimeGrid) -> None:
        self.field, self.head = field, field.head
        self.num_rows = len(field.conditional)
        halves = [half for half in (field.conditional, field.unconditional) if half is not None]
        inside = grid.within(field.interval)
        self.num_halves = [len(halves) if acts else 1 for acts in inside]
        self.padding = padding(self.num_rows, set(self.num_halves), field.conditional.device)
        self.condition = torch.cat([F.pad(half, (0, 0, 0, self.padding)) for half in halves])
        times = torch.tensor(grid.network_times, dtype=torch.float32, device=self.condition.device)
        self.times = self.head.time_table(times)
        rows, outputs = len(self.condition), self.head.modulation.out_features
        self.lookahead = max(1, min(len(times), LOOKAHEAD_VALUES // (rows * outputs)))
        self.first, self.modulations = -1, self.condition

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        num_halves = self.num_halves[denoise_step]
        self.field.counter.evaluations += num_halves * self.num_rows
        modulation = self._modulation(denoise_step)
        if self.padding:
            x = F.pad(x, (0, 0, 0, self.padding))
        h = self.head.input(x.to(self.condition.dtype))
        value, variance = self.head.denoise(h.repeat(num_halves, 1), modulation)
        assert variance is not None
        if num_halves == 2:
            conditional, unconditional = value.chunk(2)
            value = torch.lerp(unconditional, conditional, self.field.scale)
        return Prediction(value[: self.num_rows], variance[: self.num_rows])

    def _modulation(self, denoise_step: int) -> Tensor:
        """Modulations of all blocks at one denoising step, computed for a stretch of steps with as many halves."""
        if not 0 <= denoise_step - self.first < len(self.modulations) or self.first < 0:
            self.first, self.modulations = denoise_step, self.condition  # the old stretch makes room for the new
            ahead = self.num_halves[denoise_step : denoise_step + self.lookahead]
            stretch = next((i for i, halves in enumerate(ahead) if halves != ahead[0]), len(ahead))
            times = self.times[denoise_step : denoise_step + stretch]
            condition = self.condition[: ahead[0] * (self.num_rows + self.padding)]
            mixed = swish(times[:, None] + condition)
            self.modulations = self.head.modulation(mixed.view(-1, self.head.width)).view(*mixed.shape[:2], -1)
        return self.modulations[denoise_step - self.first]
