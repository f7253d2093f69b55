"""The vocabulary that models, policies and solvers share. It imports none of them.

Shapes: B images, L tokens per image, R rows, C token channels, K AR steps, n denoising steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError

RAMPS = ("linear", "constant")


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance, its ramp over AR steps and its interval of denoising time.

    scale: 1 is off. ramp: `linear` grows from 1 with the share of the image that is known (Muse, as MAR has it),
    `constant` is `scale` everywhere. interval: guidance acts where low <= t <= high, t from 0 (data) to 1 (noise)
    (Kynkäänniemi et al. 2024); outside of it the unconditional half is not evaluated.
    """

    scale: float = 1.0
    ramp: str = "linear"
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.ramp not in RAMPS:
            raise DisaError(f"unknown guidance ramp {self.ramp!r}: expected one of {', '.join(RAMPS)}.")
        if not np.isfinite(self.scale):
            raise DisaError(f"guidance must be a finite number, found {self.scale}.")
        if len(self.interval) != 2 or not 0 <= self.interval[0] <= self.interval[1] <= 1:
            raise DisaError(f"the guidance interval must be two times 0 <= low <= high <= 1, found {self.interval}.")

    @property
    def active(self) -> bool:
        return self.scale != 1.0

    def at(self, progress: float) -> float:
        """The scale when the share `progress` of the image will be known after this AR step."""
        return self.scale if self.ramp == "constant" else 1 + (self.scale - 1) * progress


@dataclass(frozen=True)
class Prompts:
    """Tokenised prompts. ids: [N, P] token ids, padded on the right with any id; lengths: [N] real ones in each row."""

    ids: Tensor
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or tuple(self.lengths.shape) != (len(self.ids),):
            found = f"{tuple(self.ids.shape)} and {tuple(self.lengths.shape)}"
            raise DisaError(f"prompts are ids [N, P] with lengths [N], found {found}.")
        shortest, longest = (int(end) for end in self.lengths.aminmax()) if len(self.ids) else (1, 0)
        if not 1 <= shortest <= longest <= self.ids.shape[1]:
            raise DisaError(
                f"the lengths of prompts must be 1 to {self.ids.shape[1]} (columns of ids), "
                f"found {shortest} to {longest}."
            )

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> Prompts:
        """From token ids of any lengths."""
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.zeros(len(rows), max(map(len, rows), default=0), dtype=torch.int64)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        return cls(ids, lengths)


@dataclass(frozen=True)
class Request:
    """What is to be drawn, apart from how.

    labels: [B] class indices, or prompts: one per image, followed by one unconditional prompt per image where guidance
    is active; neither for an unconditional image. known: [B, C, H, W] latents that are given, and mask: [B, h, w]
    booleans over tokens, True where a token is to be drawn; both None to draw everything. token_grid: rows and columns
    of tokens, None for those that the model was made for. Raises DisaError where these do not go together.
    """

    batch_size: int
    num_ar_steps: int
    labels: Tensor | None = None
    guidance: Guidance = Guidance()
    known: Tensor | None = None
    mask: Tensor | None = None
    prompts: Prompts | None = None
    token_grid: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and self.prompts is not None:
            raise DisaError("labels and prompts are alternatives: found both.")
        rows = self.batch_size * (2 if self.guidance.active else 1)
        if self.prompts is not None and len(self.prompts) not in {rows, 2 * self.batch_size}:
            also = " and as many unconditional ones after them, for guidance" if self.guidance.active else ""
            raise DisaError(f"expected {self.batch_size} prompts{also}: {rows} rows, found {len(self.prompts)}.")
        if self.token_grid is not None and min(self.token_grid) < 1:
            raise DisaError(f"an image has at least one row and one column of tokens, found {self.token_grid}.")
        if (self.known is None) != (self.mask is None):
            given, missing = ("mask", "known") if self.known is None else ("known", "mask")
            raise DisaError(f"known latents and the mask of what to draw go together: found {given} without {missing}.")

    def check_fits(self, model: str, *takes: str) -> None:
        """Refuse labels, prompts or a token grid that a model does not take. Raises DisaError."""
        for name in ("labels", "prompts", "token_grid"):
            if getattr(self, name) is not None and name not in takes:
                expected, found = (words.replace("_", " ") for words in (" and ".join(takes), name))
                raise DisaError(f"{model} cannot take {found}: expected {expected}, found {found}.")


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

    def on(self, grid: TimeGrid) -> Evaluate:
        """Bind to the n times of a grid; the result maps (x [R, *shape], denoise_step) to a `Prediction`."""
        ...

    def select(self, rows: Tensor) -> Field:
        """The same field for some rows only (indices [R'])."""
        ...


@dataclass(frozen=True)
class TimeGrid:
    """The times that n denoising steps visit.

    network_times: [n] what the time embedding is fed. levels: [n + 1] where the state is at each evaluation and at
    the end, in the measure of the process (alpha-bar for a diffusion, t for a flow); float64. times: [n] the share of
    noise time at each evaluation, from 0 (data) to 1 (noise) in every process; float64. finishes: whether data is
    reached at the end; the first part of a grid stops before, and what is only done at the end is not done there.
    """

    network_times: np.ndarray
    levels: np.ndarray
    times: np.ndarray
    finishes: bool = True

    @property
    def num_evaluations(self) -> int:
        return len(self.network_times)

    def part(self, first: int, stop: int, count: int) -> TimeGrid:
        """From evaluation `first` to before `stop` (0..n) in `count` evaluations, evenly: larger steps if these are
        fewer than there are."""
        places = np.linspace(first, stop, count + 1).round().astype(int)
        finishes = self.finishes and stop == self.num_evaluations
        return TimeGrid(self.network_times[places[:-1]], self.levels[places], self.times[places[:-1]], finishes)

    def within(self, interval: tuple[float, float]) -> list[bool]:
        """[n] whether each evaluation lies in the interval of time; both ends do."""
        low, high = interval
        return [low <= t <= high for t in self.times.tolist()]


@dataclass(frozen=True)
class Watch:
    """A policy's answer that it looks at the path first: each row then goes on in its own number of steps.

    num_steps: asked for the grid that all rows begin on. num_looks: evaluations, evenly along the share `until` of
    those of the grid. go_on: maps what the last look changed [R], the mean squared difference of two data predictions,
    to the evaluations of the rest [R], at least 1 each; more than the grid still has are not made.
    """

    num_steps: int
    num_looks: int
    until: float
    go_on: Callable[[Tensor], Tensor]

    def stop(self, num_evaluations: int) -> int:
        """The index of the evaluation before which a grid of so many is left."""
        stop = int(num_evaluations * self.until)
        if not 2 <= self.num_looks <= stop < num_evaluations:
            raise DisaError(f"a grid of {num_evaluations} evaluations is too short to look {self.num_looks} times "
                            "and to go on from there: ask for more early steps.")  # fmt: skip
        return stop


class Process(Protocol):
    """What converts between data, noise and the network's prediction, and which grids it knows."""

    predicts: str

    def grid(self, name: str, num_steps: int) -> TimeGrid: ...


@dataclass(frozen=True)
class DenoisingProblem:
    """One group of tokens to be drawn: everything a policy may look at and a solver needs.

    image, position: [R] which image of the batch a row belongs to, and where in it. shape: of one row.
    condition: [R, D] what the network is conditioned on, for policies that look; [R, L, D] where rows are groups.
    rows_to_come: rows that later AR steps draw, per image; None where that is not known.
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
    rows_to_come: int | None = None

    @property
    def num_rows(self) -> int:
        return len(self.image)

    @property
    def device(self) -> torch.device:
        return self.image.device

    def select(self, rows: Tensor) -> DenoisingProblem:
        """The same problem for some rows only (indices [R'])."""
        condition = None if self.condition is None else self.condition[rows]
        return replace(
            self, field=self.field.select(rows), image=self.image[rows], position=self.position[rows],
            condition=condition,
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


class Architecture(Protocol):
    """What every architecture says of itself, whatever else it holds."""

    @property
    def num_classes(self) -> int: ...

    @property
    def num_tokens(self) -> int:
        """Tokens that one image takes, over all AR steps."""
        ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def latent_size(self) -> tuple[int, int]:
        """Rows and columns of the latent image."""
        ...


class ARState(Protocol):
    """One generation under way, made by `begin`: everything that changes lives here, nothing on the model."""

    counter: Counter


class ARModel(Protocol):
    """What a model implements: it states problems and takes in solutions, it never solves them."""

    @property
    def config(self) -> Architecture: ...

    @property
    def process(self) -> Process: ...

    def check(self, num_ar_steps: int, num_unknown: int | None) -> None:
        """Refuse a number of AR steps; num_unknown: tokens to draw where others are given, else None."""
        ...

    def begin(self, request: Request, noise: Noise) -> Any:
        """Check the request and return its `ARState`."""
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
