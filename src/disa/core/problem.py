"""The vocabulary that models, policies and solvers share. It imports none of them.

Shapes: B images, L tokens per image, R rows, C token channels, K AR steps, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from disa.core.counts import denoising_steps
from disa.core.request import Request
from disa.errors import DisaError
from disa.values import shown, whole_number


class Prediction(NamedTuple):
    """What the network says at (x, t)."""

    value: Tensor
    """[R, *shape] noise or velocity, see `Process.predicts`."""
    variance: Tensor | None = None
    """[R, *shape] of a network that learns its variance."""

    def select(self, rows: Tensor) -> Prediction:
        """That of some rows (indices [R'])."""
        return Prediction(self.value[rows], None if self.variance is None else self.variance[rows])


class Bound(Protocol):
    """A field on a grid. It changes nothing outside of itself, so that it can be captured and replayed."""

    @property
    def costs(self) -> Sequence[int]:
        """[n] evaluations of one row in each denoising step: 2 where guidance acts, else 1."""
        ...

    def __call__(self, x: Tensor, denoise_step: int) -> Prediction:
        """What the network says at x [R, *shape] in a denoising step of the grid."""
        ...


class Field(Protocol):
    """The denoising network with its condition and guidance bound to it."""

    def on(self, grid: TimeGrid) -> Bound:
        """Bind to the n times of a grid."""
        ...

    def select(self, rows: Tensor) -> Field:
        """The same field for some rows only (indices [R'])."""
        ...


@dataclass(frozen=True, eq=False)
class TimeGrid:
    """The times that n denoising steps visit; all arrays are float64."""

    network_times: np.ndarray
    """[n] what the time embedding is fed."""
    levels: np.ndarray
    """[n + 1] where the state is at each evaluation and at the end, in the measure of the process: alpha-bar for a
    diffusion, t for a flow."""
    times: np.ndarray
    """[n] the time of each evaluation from 0 (data) to 1 (noise), in every process; guidance goes by it."""

    @property
    def num_evaluations(self) -> int:
        return len(self.network_times)

    def part(self, first: int, stop: int, count: int) -> TimeGrid:
        """From evaluation `first` to before `stop` (0..n) in `count` evaluations, evenly: larger steps if these are
        fewer than there are."""
        places = np.linspace(first, stop, count + 1).round().astype(int)
        return TimeGrid(self.network_times[places[:-1]], self.levels[places], self.times[places[:-1]])

    def within(self, interval: tuple[float, float]) -> list[bool]:
        """[n] whether each evaluation lies in the interval of time; both ends do."""
        low, high = interval
        return [low <= t <= high for t in self.times.tolist()]


Grid = str | Callable[[Any, int], TimeGrid]
"""A grid by its name, or of one's own: from a process and a number of denoising steps to their times."""


class Process(Protocol):
    """The path between data and noise: its grids, and every conversion between data, noise and what the network says.

    A state x, what the network says of it (`value`), data and noise are [R, *shape]. A level is an entry of
    `TimeGrid.levels`.
    """

    predicts: str
    """What the network says: `noise` or `velocity`."""
    learns_variance: bool
    """Whether it gives a variance, too."""
    shows_data_in_noise: bool
    """Whether one evaluation of pure noise tells which data are to be expected."""
    even_grid: str
    """The name of the grid whose steps suit solvers of order 2 and more."""

    def grid(self, name: Grid, num_steps: int) -> TimeGrid:
        """The grid of that name, or that a function makes, for `num_steps` denoising steps. Raises DisaError."""
        ...

    def grid_at(self, times: np.ndarray) -> TimeGrid:
        """The grid that visits these times [n], as near as the process has them, and ends at the data."""
        ...

    def scales(self, level: float) -> tuple[float, float]:
        """alpha and sigma at a level, where the state is alpha data + sigma noise."""
        ...

    def data(self, x: Tensor, value: Tensor, level: float) -> Tensor:
        """The data that the network expects at x, as a new tensor."""
        ...

    def noised(self, data: Tensor, noise: Tensor, level: float) -> Tensor:
        """The state at a level between data and noise."""
        ...

    def flow_grid(self, num_steps: int) -> tuple[TimeGrid, np.ndarray]:
        """About `num_steps` evaluations that are even in the t of a flow, and that t [n + 1], from noise to 0.

        In the coordinates of a flow the state is (1 - t) data + t noise (Liu et al. 2023); only there the path of a
        single datum is straight and gone along evenly.
        """
        ...

    def flow_scale(self, level: float) -> float:
        """A state of this process divided by this is that state in the coordinates of a flow."""
        ...

    def velocity(self, x: Tensor, value: Tensor, level: float) -> Tensor:
        """Noise - data, both as predicted at x: the velocity of the probability-flow ODE in those coordinates."""
        ...


@dataclass(frozen=True, eq=False)
class DenoisingProblem:
    """One group of tokens to be drawn: everything a policy may look at and a solver needs."""

    field: Field
    process: Process
    shape: tuple[int, ...]
    """Of one row."""
    image: Tensor
    """[R] the image of the batch that each row belongs to."""
    position: Tensor
    """[R] where in its image each row is; noise goes by it."""
    ar_step: int
    num_ar_steps: int
    condition: Tensor | None = None
    """What the network is conditioned on, for policies that look: [R, D], or [R, L, D] where a row is a group."""
    guidance: float = 1.0
    """The scale in this AR step."""
    rows_to_come: int | None = None
    """Rows of each image that later AR steps draw; None where that is not known."""
    known: float | None = None
    """The share of the image that is known before this AR step; None where a model does not say."""
    operations: int = 0
    """Of one evaluation of one row, as `Work` counts them; 0 where a model does not say."""

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return f"DenoisingProblem({self.num_rows} rows of {shape}, AR step {self.ar_step} of {self.num_ar_steps})"

    @property
    def num_rows(self) -> int:
        return len(self.image)

    @property
    def device(self) -> torch.device:
        return self.image.device

    def select(self, rows: Tensor) -> DenoisingProblem:
        """The same problem for some rows only (indices [R'])."""
        condition = None if self.condition is None else self.condition[rows]
        return replace(self.places(rows), field=self.field.select(rows), condition=condition)

    def places(self, rows: Tensor) -> DenoisingProblem:
        """The places of some rows, which noise goes by, without their own field and condition."""
        return replace(self, image=self.image[rows], position=self.position[rows], condition=None)


@dataclass(frozen=True)
class Look:
    """All rows make their first evaluations together; then each gets its number of denoising steps.

    It needs a solver whose ways all begin alike, see `disa.core.solver.Looking`.
    """

    go_on: Callable[[Tensor], Tensor]
    """From what the second evaluation changed in the predicted data [R], as a mean square, to the denoising steps of
    each row in all, 2 or more, as a policy answers with counts."""

    def __post_init__(self) -> None:
        if not callable(self.go_on):
            raise DisaError(f"a look goes on by a function from changes to counts, found {shown(self.go_on)}.")


@dataclass(frozen=True, eq=False)
class Plan:
    """What a step policy answers: either counts, or a look before they are chosen."""

    counts: int | Tensor | None = None
    """Denoising steps of all rows, or of each [R] int64."""
    look: Look | None = None

    @classmethod
    def of(cls, answer: Any) -> Plan:
        """From whatever a policy answers. Raises DisaError.

        | answer | plan |
        |---|---|
        | a whole number, as `disa.values` has it | that for all rows |
        | a list, tuple, array or tensor of whole numbers, of any type of numbers and on any device | one per row |
        | a `Look`, or a `Plan` of either | a look |

        Refused: bools, parts of a step, counts below 1 or beyond `MOST_STEPS`, nested lists and other dimensions,
        iterators, and everything else.
        """
        if isinstance(answer, Plan) and (answer.counts is None) != (answer.look is None):
            return answer if answer.look else cls.of(answer.counts)
        if isinstance(answer, Look):
            return cls(look=answer)
        if isinstance(answer, list | tuple) or getattr(answer, "ndim", 0):
            return cls(_each_row(answer))
        with suppress(DisaError):
            answer = whole_number(answer, "an answer")
        if type(answer) is not int:
            raise _unusable(answer)
        return cls(denoising_steps(answer))


def _each_row(answer: Any) -> Tensor:
    """[R] int64 of a policy's answer."""
    try:
        counts = torch.as_tensor(answer)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _unusable(answer) from error
    numbers = not (counts.dtype == torch.bool or counts.is_complex() or counts.is_quantized)
    if counts.dim() != 1 or not len(counts) or counts.layout is not torch.strided or not numbers:
        raise _unusable(answer)
    whole = counts.to(torch.int64)
    if counts.is_floating_point() and not torch.equal(whole.to(counts.dtype), counts):
        raise _unusable(answer)
    for end in whole.aminmax():
        denoising_steps(int(end))
    return whole


def _unusable(answer: Any) -> DisaError:
    kind = f" of {str(answer.dtype).removeprefix('torch.')}" if hasattr(answer, "dtype") else ""
    return DisaError(
        "a step policy answers with a whole number, an int64 tensor with one count per row, a Look or a Plan: "
        f"found {shown(answer)}{kind}."
    )


class Noise(Protocol):
    """Every random number of a generation."""

    def orders(self, num_tokens: int) -> Tensor:
        """[B, L] a permutation per image; generation walks it from its end."""
        ...

    def initial(self, problem: DenoisingProblem) -> Tensor:
        """[R, *shape] standard normal: where denoising starts."""
        ...

    def added(self, problem: DenoisingProblem, num_steps: int) -> Tensor:
        """[num_steps, R, *shape] standard normal: what a stochastic solver adds in each denoising step."""
        ...


class Preview(NamedTuple):
    """Images under way."""

    latents: Tensor
    """[B, C, H, W]."""
    undrawn: Tensor | None = None
    """[B, 1, h, w] booleans over tokens, True where the latents mean nothing yet; None where the image is whole, if
    coarse."""


class ARModel(Protocol):
    """What the loop needs of a model: it states problems and takes in solutions, it never solves them."""

    def begin(self, request: Request, noise: Noise) -> Any:
        """Check the request. Returns the state of one generation, which holds all that changes."""
        ...

    def pose(self, state: Any) -> DenoisingProblem:
        """The backbone pass of the next AR step."""
        ...

    def accept(self, state: Any, tokens: Tensor) -> None:
        """Take in the tokens [R, *shape] of the problem posed last."""
        ...

    def finish(self, state: Any) -> Tensor:
        """Latents [B, C, H, W]."""
        ...


class Moment(Protocol):
    """A point in time, such as a float in seconds, or an event of a device, which is read when one is subtracted."""

    def __sub__(self, earlier: Any, /) -> float:
        """Seconds from an earlier one to this."""
        ...


@dataclass(frozen=True, eq=False)
class Moments:
    """When an AR step began, and when its parts were done."""

    started: Moment
    posed: Moment
    solved: Moment
    accepted: Moment

    @property
    def seconds_backbone(self) -> float:
        return (self.posed - self.started) + (self.accepted - self.solved)

    @property
    def seconds_head(self) -> float:
        return self.solved - self.posed


@dataclass(frozen=True, eq=False)
class ARStep:
    """One turn of the AR loop, as it is yielded."""

    ar_step: int
    problem: DenoisingProblem
    steps: int | Tensor
    """Denoising steps that were asked for, of all rows or of each [R]."""
    tokens: Tensor
    """[R, *shape]."""
    evaluations: int
    """Made in this AR step, by the solver and by the policy."""
    moments: Moments
    state: Any = None
    """The model's, after this AR step."""
    backbone_tokens: int = 0
    """Tokens that blocks of the backbone ran over, outside of evaluations, see `Work`."""
    operations: int = 0
    """Of the backbone, and of all evaluations, see `Work`."""

    @property
    def seconds_backbone(self) -> float:
        """Time in `pose` and `accept`; waits for the device if its clock does."""
        return self.moments.seconds_backbone

    @property
    def seconds_head(self) -> float:
        """Time in the policy and in the denoising loop, likewise."""
        return self.moments.seconds_head

    def __repr__(self) -> str:
        rows, steps = self.problem.num_rows, self.problem.num_ar_steps
        return f"ARStep({self.ar_step} of {steps}, {rows} rows, {self.evaluations} evaluations)"
