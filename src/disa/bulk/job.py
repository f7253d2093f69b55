"""What a run draws: `run.json`, from which any process on any machine can draw any image of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from disa.bulk.shards import PARTS, SHARDS, containers_in
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.draw.settings import NO_IDENTITY, Settings
from disa.errors import DisaError
from disa.files import write_json
from disa.reading import read_json
from disa.runtime import threads
from disa.values import command, named

RUN, FORMAT = "run.json", 1
SHARD_SIZE = 1000
"""Images of a shard."""
LONGEST_RUN = 1 << 30
SOURCE = ("model", "checkpoint", "weights_key", "vae", "tokenizer", "dtype")


@dataclass(frozen=True)
class Job:
    """What to draw, and with what. All of it is plain JSON."""

    source: dict[str, Any]
    """Where the weights are: `SOURCE`, keywords of `Sampler.load` but for `model`."""
    options: dict[str, Any]
    """Options of drawing that are not left to the model: `Settings.given`."""
    lists: dict[str, Any]
    """Keywords of `Inputs.listed`, without the prompts."""
    entries: list[dict[str, Any]] = field(default_factory=list)
    """Every prompt, with what its file says beside it."""

    @cached_property
    def inputs(self) -> Inputs:
        """What is to be drawn; the id of an image is its place in it. Raises DisaError."""
        asked: dict[str, Any] = {"prompts": [entry["prompt"] for entry in self.entries]} if self.entries else {}
        return Inputs.listed(**self.lists | asked)

    def settings(self) -> Settings:
        """How to draw, as far as it is not left to the model. Raises DisaError."""
        return Settings.of(**self.options)

    def load(self, device: str | None, num_threads: int | None = None) -> Sampler:
        """The model of this job. Raises DisaError."""
        threads.use(num_threads)
        others = {name: self.source[name] for name in SOURCE if name != "model"}
        return Sampler.load(self.source["model"], device=device, **others)


@dataclass(frozen=True)
class Record:
    """What run.json holds."""

    job: Job
    settings: dict[str, Any]
    """The weights and every option: `Run.about`."""
    digest: str
    """Of these settings; every image of the run has it in its identity."""
    num_images: int
    shard_size: int = SHARD_SIZE
    drawn_with: list[dict[str, Any]] = field(default_factory=list)
    """Every combination of device, PyTorch and instructions that has drawn for this run, see `machine_of`."""

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Raises DisaError where the folder holds no run."""
        path = folder / RUN
        if not path.exists():
            raise DisaError(f"there is no run in {named(folder)}: expected a folder that `disa bulk --out` has made.")
        found = read_json(path, "the run", LONGEST_RUN)
        try:
            if found["format"] > FORMAT:
                raise DisaError(f"{path} was written by a later version of disa: use that one.")
            job = Job(**{name: found[name] for name in ("source", "options", "lists", "entries")})
            rest = ("settings", "digest", "num_images", "shard_size", "drawn_with")
            return cls(job, **{name: found[name] for name in rest})
        except (KeyError, TypeError) as error:
            raise DisaError(f"{path} is not a run of disa: {error} is missing or of another kind.") from error

    def write(self, folder: Path) -> None:
        """Raises DisaError."""
        told = asdict(self)
        write_json(folder / RUN, {"format": FORMAT, **told.pop("job"), **told})

    def with_device(self, machine: dict[str, Any]) -> Record:
        """The same, and that a worker on such a machine draws for it."""
        return self if machine in self.drawn_with else replace(self, drawn_with=[*self.drawn_with, machine])

    def check_same(self, about: Mapping[str, Any], of_now: str, folder: Path) -> None:
        """Refuse to mix images of two kinds in one run. about, of_now: the settings now, and their digest. Raises
        DisaError, which says what differs."""
        if of_now == self.digest:
            return
        names = sorted({*about, *self.settings} - NO_IDENTITY)
        differing = [name for name in names if about.get(name) != self.settings.get(name)]
        parts = [f"{name} is {_short(about.get(name))}, not {_short(self.settings.get(name))}" for name in differing]
        told = ", ".join(parts)
        raise DisaError(f"{folder} holds another run ({told}): give what it was begun with, or another folder.")


def check_new(folder: Path) -> None:
    """Refuse to begin a run where one is, or where images of one are. Raises DisaError."""
    if (folder / RUN).exists():
        raise DisaError(f"{folder} holds a run already: go on with {command('disa', 'bulk', '--resume', folder)}.")
    if any(containers_in(folder / name) for name in (SHARDS, PARTS)):
        raise DisaError(f"{folder} holds images of a run, but not its {RUN}: choose another folder.")


def machine_of(about: Mapping[str, Any]) -> dict[str, Any]:
    """What decides rounding where this is called: the kind of device, PyTorch, and the processor's instructions that it
    uses, as AVX2 or AVX512."""
    device = str(about["device"]).partition(":")[0]
    return {"device": device, "torch": about["torch"], "instructions": torch.backends.cpu.get_cpu_capability()}


def _short(value: Any) -> str:
    """A value for a message; of a hash the beginning."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:8]}..."
