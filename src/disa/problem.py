"""The vocabulary that models, policies and solvers share. It imports none of them.

Shapes: B images, L tokens per image, R rows, C token channels, K AR steps, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError

RAMPS = ("linear", "constant")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance and its ramp over AR steps.

    scale: 1 is off. ramp: `linear` grows from 1 with the share of the image that is known (Muse, as MAR has it),
    `constant` is `scale` everywhere.
    """

    scale: float = 1.0
    ramp: str = "linear"

    def __post_init__(self) -> None:
        if self.ramp not in RAMPS:
            raise DisaError(f"unknown guidance ramp {self.ramp!r}: expected one of {', '.join(RAMPS)}.")
        if not np.isfinite(self.scale):
            raise DisaError(f"guidance must be a finite number, found {self.scale}.")

    @property
    def active(self) -> bool:
        return self.scale != 1.0

    def at(self, progress: float) -> float:
        """The scale when the share `progress` of the image will be known after this AR step."""
        return self.scale if self.ramp == "constant" else 1 + (self.scale - 1) * progress


@dataclass(frozen=True)
class Request:
    """What is to be drawn, apart from how.

    labels: [B] class indices, or None for an unconditional image. known: [B, C, H, W] latents that are given, and
    mask: [B, h, w] booleans over tokens, True where a token is to be drawn; both None to draw everything.
    """

    batch_size: int
    num_ar_steps: int
    labels: Tensor | None = None
    guidance: Guidance = Guidance()
    known: Tensor | None = None
    mask: Tensor | None = None


@dataclass
class Counter:
    """Evaluations made, counted where the network is called: one per row, guidance counts two."""

    evaluations: int = 0


class Prediction(NamedTuple):
    """What the network says at (x, t): noise or velocity, as the process defines, and its variance output if any.

    value, variance: [R, *shape].
    """

    value: Tensor
    variance: Tensor | None = None


Evaluate = Callable[[Tensor, int], Prediction]


class Field(Protocol):
    """The denoising network with its condition and guidance bound to it."""

    def on(self, network_times: np.ndarray) -> Evaluate:
        """Bind to the times [n] of a grid; the result maps (x [R, *shape], denoise_step) to a `Prediction`."""
        ...

    def select(self, rows: Tensor) -> Field:
        """The same field for some rows only (indices [R'])."""
        ...


@dataclass(frozen=True)
class TimeGrid:
    """The times that n denoising steps visit.

    network_times: [n] what the time embedding is fed. levels: [n + 1] where the state is at each evaluation and at
    the end, in the measure of the process (alpha-bar for a diffusion, t for a flow); float64.
    """

    network_times: np.ndarray
    levels: np.ndarray

    @property
    def num_evaluations(self) -> int:
        return len(self.network_times)


class Process(Protocol):
    """What converts between data, noise and the network's prediction, and which grids it knows."""

    predicts: str

    def grid(self, name: str, num_steps: int) -> TimeGrid: ...


@dataclass(frozen=True)
class DenoisingProblem:
    """One group of tokens to be drawn: everything a policy may look at and a solver needs.

    image, position: [R] which image of the batch a row belongs to, and where in it. shape: of one row.
    condition: [R, D] what the network is conditioned on, for policies that look.
    """

    field: Field
    process: Process
    shape: tuple[int, ...]
    image: Tensor
    position: Tensor
    ar_step: int
    num_ar_steps: int
    condition: Tensor | None = None
    guidance: float = 1.0

    @property
    def num_rows(self) -> int:
        return len(self.image)

    @property
    def device(self) -> torch.device:
        return self.image.device

    def select(self, rows: Tensor) -> DenoisingProblem:
        """The same problem for some rows only (indices [R'])."""
        condition = None if self.condition is None else self.condition[rows]
        return DenoisingProblem(
            self.field.select(rows), self.process, self.shape, self.image[rows], self.position[rows],
            self.ar_step, self.num_ar_steps, condition, self.guidance,
        )  # fmt: skip


class Noise(Protocol):
    """Every random number of a generation."""

    def orders(self, num_tokens: int) -> Tensor:
        """[B, L] a permutation per image; generation walks it from its end."""
        ...

    def initial(self, problem: DenoisingProblem) -> Tensor:
        """[R, *shape] standard normal: where denoising starts."""
        ...

    def steps(self, problem: DenoisingProblem, num_steps: int) -> Tensor:
        """[num_steps, R, *shape] standard normal: what a stochastic solver adds."""
        ...


class ARModel(Protocol):
    """What a model implements: it states problems and takes in solutions, it never solves them."""

    def begin(self, request: Request, noise: Noise) -> Any: ...

    def pose(self, state: Any) -> DenoisingProblem: ...

    def accept(self, state: Any, tokens: Tensor) -> None: ...

    def finish(self, state: Any) -> Tensor: ...


@dataclass(frozen=True)
class ARStep:
    """One turn of the AR loop, as it is yielded.

    steps: denoising steps asked for, one int or [R]. tokens: [R, *shape]. evaluations: made in this AR step.
    seconds_backbone, seconds_head: time in `pose` + `accept`, and in the denoising loop with its policy.
    """

    ar_step: int
    problem: DenoisingProblem
    steps: int | Tensor
    tokens: Tensor
    evaluations: int
    seconds_backbone: float
    seconds_head: float
    state: Any = field(repr=False, default=None)
