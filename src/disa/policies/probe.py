"""What `disa fit-probe` writes and adaptive policies read: a probe, and how every score goes with a model's error.

The file is `.safetensors`; its metadata have the numbers under `disa`, as JSON. What is read is checked here:

| part | taken | refused |
|---|---|---|
| file | up to 64 MiB of whole safetensors | all else, other tensors than those named here |
| every tensor | floating-point numbers of any width, all finite | integers, NaN, infinity |
| `probe.*` | mean and scale [D + 1], input [H, D + 1], output [2, H]; scales above 0 | other shapes |
| `importance.NAME` | [J] | empty, another J than `later` |
| `later.NAME` | [J, Q], each row a quantile function, which does not fall | empty, other shapes |
| slope | 0 and more; 0 is a score that says nothing, and all rows are alike | below 0: scores grow with the error |
| power | above 0, to 16 | 0 and less: more steps must take error off |
| intercept, threshold | finite | all else |
| `about` | an object with `measured_for`, an object | all else |

NAME is one of the scores of disa or a researcher's own; each has all three of numbers, importance and quantiles.

Shapes: D condition width, H hidden width, J shares of the AR steps, Q quantiles, R rows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.core.problem import DenoisingProblem
from disa.errors import DisaError
from disa.policies.scores import Predicted, Probe, Score
from disa.reading import parse_json
from disa.values import counted, first_line, named, number, shown
from disa.weights.build import DTYPES
from disa.weights.stored import open_safetensors, read_stored

LARGEST_FILE = 64 << 20
LARGEST = 1e12
STEEPEST = 16.0
"""No solver has an error that falls as steeply; beyond, the gains of more steps are no longer numbers."""
NUMBERS = ("slope", "intercept", "power", "threshold")
PROBE = {f"probe.{name}" for name in ("mean", "scale", "input.weight", "input.bias", "output.weight", "output.bias")}


@dataclass(frozen=True, eq=False)
class ErrorModel:
    """How a score goes with the error of a model, measured on its own drawings. Raises DisaError.

    The log of the error after one denoising step is intercept + slope score; it falls as n^-power.
    """

    slope: float
    intercept: float
    power: float
    threshold: float
    """The gain, as a log, at which the preset's budget is spent."""
    importance: Tensor
    """[J] the log of what an error of a row in each J-th of the AR steps does to the whole image."""
    later: Tensor
    """[J, Q] quantiles of the needs of all rows after the first 1/J, 2/J, ... of the AR steps; after the last of them
    there are none, so these are of the last AR step."""

    def __post_init__(self) -> None:
        bounds = {"slope": 0.0, "power": 0.0}
        for name in NUMBERS:
            found = number(getattr(self, name), f"the {name}", bounds.get(name, -LARGEST), LARGEST)
            object.__setattr__(self, name, found)
        if not 0 < self.power <= STEEPEST:
            raise DisaError(f"the power must be above 0 and at most {STEEPEST:g}, found {self.power:g}.")
        for name, dims in (("importance", 1), ("later", 2)):
            _check(name, getattr(self, name), dims)
        if len(self.importance) != len(self.later):
            found = f"{len(self.importance)} and {len(self.later)}"
            raise DisaError(f"importance and later must have equally many parts, found {found}.")
        # Interpolated quantiles may fall by a rounding error.
        if (self.later.diff(dim=1) < -1e-5 * self.later.abs().amax().clamp(min=1)).any():
            raise DisaError("later must be quantiles, which do not fall within a row.")

    def need(self, score: Tensor, share: float) -> Tensor:
        """[R] the log of the error after one denoising step; share: of the AR steps that are made."""
        important = self.importance[int(share * len(self.importance) + 1e-9)]
        return self.intercept + self.slope * score.cpu().double() + important

    def to_come(self, problem: DenoisingProblem) -> Tensor:
        """[Q] needs of the rows of later AR steps."""
        made = (problem.ar_step + 1) / problem.num_ar_steps * len(self.later)
        return self.later[math.ceil(made - 1e-9) - 1]


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A probe, the error model of every score, and what they were measured on."""

    probe: Probe
    error_models: Mapping[str, ErrorModel]
    about: Mapping[str, Any]

    @property
    def measured_for(self) -> Mapping[str, Any]:
        return self.about["measured_for"]

    @property
    def width(self) -> int:
        """Of the condition that it was fitted on."""
        return len(self.probe.mean) - 1

    def predicted(self, output: int) -> Score:
        """One of the probe's two predictions as a score."""
        return Predicted(self.probe, output)

    def tensors(self) -> dict[str, Tensor]:
        state = {f"probe.{name}": value for name, value in self.probe.state_dict().items()}
        state |= {f"later.{name}": known.later.float() for name, known in self.error_models.items()}
        return state | {f"importance.{name}": known.importance.float() for name, known in self.error_models.items()}

    @cached_property
    def hash(self) -> str:
        """SHA-256 of all that it holds."""
        found = hashlib.sha256(json.dumps(self.metadata(), sort_keys=True).encode())
        for name, value in sorted(self.tensors().items()):
            found.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return found.hexdigest()

    def metadata(self) -> dict[str, str]:
        lines = {name: {key: getattr(known, key) for key in NUMBERS} for name, known in self.error_models.items()}
        return {"disa": json.dumps({"about": dict(self.about), "knowledge": lines})}

    @classmethod
    def read(cls, path: Path) -> FittedProbe:
        """From a file. Raises DisaError."""
        try:
            if not path.exists():
                raise DisaError(f"no probe at {named(path)}: expected a file that `disa fit-probe` wrote.")
            return _fitted(*_content(path))
        except (OSError, ValueError) as error:
            reason = f"{named(path)} is not a probe: {first_line(error)}"
            raise DisaError(f"{reason}. Expected a file that `disa fit-probe` wrote.") from error


def _content(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors and the JSON of a file. Raises OSError or ValueError, which say what is wrong."""
    if not path.is_file():
        raise ValueError("it is not a file")
    if path.stat().st_size > LARGEST_FILE:
        raise ValueError(f"it is longer than {LARGEST_FILE >> 20} MiB")
    try:
        stored, said = open_safetensors(path)
        return read_stored(stored), str(said.get("disa", ""))
    except DisaError as error:
        raise ValueError(f"it {str(error).removeprefix(f'{path} ')}") from error


def _fitted(state: Mapping[str, Tensor], said: str) -> FittedProbe:
    """Raises ValueError, which says what is wrong."""
    if not said:
        raise ValueError("it says nothing of itself")
    content = parse_json(said)
    lines = _object(_object(content, "what it says").get("knowledge"), "knowledge")
    about = _object(content.get("about"), "about")
    _object(about.get("measured_for"), "measured_for")
    if not lines:
        raise ValueError("it knows no score")
    parts = {f"{part}.{name}" for name in lines for part in ("importance", "later")}
    if wrong := sorted(name for name, value in state.items() if value.dtype not in DTYPES):
        raise ValueError(f"{shown(wrong[0])} is no tensor of floating-point numbers")
    if others := sorted(set(state) - parts - PROBE):
        raise ValueError(f"it has an unknown tensor {shown(others[0])}")
    if missing := sorted(parts - set(state)):
        raise ValueError(f"it has no tensor {shown(missing[0])}")
    error_models = {}
    for name, line in lines.items():
        numbers = _object(line, f"what it knows of {shown(name)}")
        if set(numbers) != set(NUMBERS) or not all(type(value) in (int, float) for value in numbers.values()):
            raise ValueError(f"of {shown(name)} it must know {', '.join(NUMBERS)}, each a number")
        try:
            importance, later = (state[f"{part}.{name}"].double() for part in ("importance", "later"))
            error_models[name] = ErrorModel(**numbers, importance=importance, later=later)
        except DisaError as error:
            raise ValueError(f"of {shown(name)}, {error}") from error
    return FittedProbe(_probe(state), error_models, about)


def _probe(state: Mapping[str, Tensor]) -> Probe:
    """The small network, of tensors whose shapes are checked first. Raises ValueError."""
    own = {name.removeprefix("probe."): value.float() for name, value in state.items() if name.startswith("probe.")}
    if missing := [name for name in ("mean", "input.bias") if name not in own or own[name].dim() != 1]:
        raise ValueError(f"probe.{missing[0]} must be a tensor of 1 dimension")
    with torch.device("meta"):
        probe = Probe(len(own["mean"]), len(own["input.bias"]))
    for name, like in probe.state_dict().items():
        found = own.get(name)
        if found is None or found.shape != like.shape:
            shape = "none" if found is None else tuple(found.shape)
            raise ValueError(f"probe.{name} must have shape {tuple(like.shape)}, found {shape}")
        if not torch.isfinite(found).all():
            raise ValueError(f"probe.{name} must be finite numbers")
    if not len(own["mean"]) > 1 or not (own["scale"] > 0).all():
        raise ValueError("probe.scale must be above 0, for 2 values or more")
    probe.load_state_dict(own, assign=True)
    return probe.requires_grad_(False).eval()


def _check(name: str, value: Any, dims: int) -> None:
    """Raises DisaError for what is no tensor of so many dimensions with finite numbers in it."""
    if not isinstance(value, Tensor) or value.dim() != dims or not value.numel():
        what = f"a tensor of {counted(dims, 'dimension')} that is not empty"
        raise DisaError(f"{name} must be {what}, found {shown(value)}.")
    if not torch.isfinite(value).all():
        raise DisaError(f"{name} must be finite numbers.")


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be an object, found {shown(value)}")
    return value
