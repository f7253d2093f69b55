"""A folder of samples, written as they are drawn: nothing is lost by an interruption, and nothing drawn twice.

    samples/seed000007_label0003.png    an image each, and nothing else: the folder for FID
    grid.png                            the first images, for looking at
    trace.json                          settings, counts and times

An image knows what it was drawn from: its PNG holds an identity, a hash of the settings, the weights, the label or
prompt and the seed. So what is there already is known by what it is, not by its name.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor

from disa.draw.inputs import Inputs
from disa.draw.pictures import as_image, grid, png, text_of
from disa.draw.prompts import slug
from disa.draw.settings import NO_IDENTITY, digest
from disa.draw.trace import TraceStep
from disa.errors import DisaError
from disa.files import clear_unfinished, make_folder, write_json, write_text, write_whole
from disa.values import counted

SAMPLES, OVERVIEW, TRACE, METADATA = "samples", "grid.png", "trace.json", "metadata.jsonl"
MOST_SHOWN = 100
"""Images of an overview."""
SECONDS_BETWEEN_TRACES = 5.0
IF_USED = ("refuse", "resume", "replace")
NOT_IN_IMAGES = NO_IDENTITY - {"model"}
"""Settings that an image's file leaves out: they do not decide it, so that equal images are equal files."""


@dataclass(frozen=True)
class Layout:
    """Where images go."""

    names: list[str]
    """[N] of their files, below the folder."""
    overviews: dict[str, list[int]]
    """The file of each overview, and the places of the images that it shows."""
    notes: dict[str, str] = field(default_factory=dict)
    """Other files, and the texts in them."""

    @classmethod
    def flat(cls, inputs: Inputs) -> Layout:
        """All images in one folder, named by seed and label or prompt; equal ones are numbered."""
        names, taken = [], dict[str, int]()
        for i, seed in enumerate(inputs.seeds):
            about = ""
            if inputs.prompts is not None:
                about = f"_{slug(inputs.prompts[i])}"
            elif inputs.labels is not None:
                about = f"_label{inputs.labels[i]:04d}"
            name = f"seed{seed:06d}{about}"
            taken[name] = taken.get(name, 0) + 1
            names.append(f"{SAMPLES}/{name}{'' if taken[name] == 1 else f'_{taken[name]}'}.png")
        return cls(names, {OVERVIEW: list(range(min(len(names), MOST_SHOWN)))})

    @classmethod
    def geneval(cls, inputs: Inputs, entries: Sequence[dict[str, Any]]) -> Layout:
        """What GenEval's evaluation reads: a folder for each entry of its list, of which each has equally many images.

        entries: each with its "prompt", in the order of the images.
        """
        count = len(inputs) // len(entries)
        names = [f"{i:05d}/{SAMPLES}/{j:05d}.png" for i in range(len(entries)) for j in range(count)]
        overviews = {
            f"{i:05d}/{OVERVIEW}": list(range(i * count, i * count + min(count, MOST_SHOWN)))
            for i in range(len(entries))
        }
        notes = {f"{i:05d}/{METADATA}": json.dumps(entry) + "\n" for i, entry in enumerate(entries)}
        return cls(names, overviews, notes)


class Drawn(Protocol):
    """What is written of a finished batch; `Samples` are such."""

    @property
    def images(self) -> Any: ...

    @property
    def trace(self) -> list[TraceStep]: ...

    @property
    def seconds(self) -> float: ...

    @property
    def seconds_decode(self) -> float: ...

    @property
    def rewritten(self) -> list[str] | None: ...

    @property
    def places(self) -> list[int]: ...

    def __len__(self) -> int: ...


class SampleFolder:
    """Images of one call in a folder, whole or not at all."""

    def __init__(self, folder: Path, inputs: Inputs, settings: dict[str, Any], layout: Layout) -> None:
        """settings: the model and every option, see `Run.about`."""
        self.folder, self.inputs, self.settings, self.layout = folder, inputs, settings, layout
        self.digest = digest(settings)
        self.identities = identities(self.digest, inputs)
        self.trace: list[TraceStep] = []
        self.numbers = {"images_counted": 0, "seconds": 0.0, "seconds_decode": 0.0}
        self.rewritten: dict[int, str] = {}
        self._last_trace = 0.0

    def open(self, if_used: str = "refuse") -> list[int]:
        """Make the folder ready; returns the places of the images that are still to be drawn.

        if_used: `refuse` a folder with other images in it; `resume`: the same, and draw only what is missing;
        `replace` what disa wrote there. Raises DisaError.
        """
        if if_used not in IF_USED:
            raise DisaError(f"unknown choice {if_used!r} for a used folder: expected {', '.join(IF_USED)}.")
        found = {name: found for name in self._pictures() if (found := self._identity(name)) is not None}
        own = set(self.identities)
        others = [name for name, found in found.items() if found not in own]
        if others and if_used != "replace":
            raise DisaError(
                f"{self.folder} holds {counted(len(others), 'image')} of another run ({others[0]}): choose another "
                "folder, or replace them (--replace)."
            )
        make_folder(self.folder)
        clear_unfinished(self.folder)
        if others:
            self._remove(others)
        for name in {str(Path(name).parent) for name in self.layout.names}:
            make_folder(self.folder / name)
            clear_unfinished(self.folder / name)
        for name, text in self.layout.notes.items():
            write_text(self.folder / name, text)
        if if_used != "resume":
            return list(range(len(self.inputs)))
        self._read_trace()
        return [i for i, name in enumerate(self.layout.names) if found.get(name) != self.identities[i]]

    def write(self, samples: Drawn, places: Sequence[int]) -> None:
        """The images of a batch; places: [B] where they stand in the inputs of the folder."""
        if samples.rewritten is not None:
            self.rewritten |= dict(zip(places, samples.rewritten, strict=True))
        for i, image in zip(places, samples.images, strict=True):
            content = png(as_image(image), {"disa": json.dumps(self._about(i))})
            # What a power failure leaves half written has no end, and is drawn again.
            write_whole(
                self.folder / self.layout.names[i], lambda file, content=content: file.write(content), synced=False
            )
        steps = zip(self.trace, samples.trace, strict=True)
        self.trace = [TraceStep.sum(pair) for pair in steps] if self.trace else list(samples.trace)
        self.numbers["images_counted"] += len(samples)
        self.numbers["seconds"] += samples.seconds
        self.numbers["seconds_decode"] += samples.seconds_decode
        if time.monotonic() - self._last_trace > SECONDS_BETWEEN_TRACES:
            self.write_trace()

    def fill(self, batches: Iterable[Drawn], missing: Sequence[int]) -> dict[str, Any]:
        """Write batches as they come, then overviews and the trace, which is returned.

        missing: the places that `open` gave; the batches are those of a run of these images alone (`Run.only`). What
        was drawn before an interruption is told by the trace.
        """
        try:
            for samples in batches:
                self.write(samples, [missing[place] for place in samples.places])
        except KeyboardInterrupt:
            if self.trace:
                self.write_trace()
            raise
        return self.finish() | {"drawn": len(missing)}

    def finish(self) -> dict[str, Any]:
        """Write overviews and the trace; returns the trace."""
        for name, places in self.layout.overviews.items():
            self._write_overview(name, places)
        return self.write_trace()

    def write_trace(self) -> dict[str, Any]:
        """Write the trace of what was drawn so far; returns it."""
        report = self._report()
        write_json(self.folder / TRACE, report)
        self._last_trace = time.monotonic()
        return report

    # -- what is there -------------------------------------------------------------------------------------------

    def _remove(self, names: Sequence[str]) -> None:
        """Images of another run, with what is told of them: overviews, the trace, and folders that are then empty."""
        for name in names:
            (self.folder / name).unlink()
        for folder in {self.folder, *(self.folder.joinpath(name).parents[1] for name in names)}:
            for name in (OVERVIEW, TRACE, METADATA):
                (folder / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (folder / SAMPLES).rmdir()
                folder.rmdir()

    def _pictures(self) -> list[str]:
        """Images that are in the folder, by their names below it."""
        folders = [self.folder / SAMPLES, *self.folder.glob(f"[0-9]*/{SAMPLES}")]
        return [str(path.relative_to(self.folder)) for folder in folders for path in sorted(folder.glob("*.png"))]

    def _identity(self, name: str) -> str | None:
        """Of an image in the folder, if disa wrote it and it is whole."""
        try:
            return str(json.loads(text_of(self.folder / name, "disa"))["identity"])
        except (ValueError, KeyError, TypeError):
            return None

    def _about(self, i: int) -> dict[str, Any]:
        """What an image's file says of it."""
        asked = (
            {"prompt": self.inputs.prompts[i]}
            if self.inputs.prompts is not None
            else {"label": None if self.inputs.labels is None else self.inputs.labels[i]}
        )
        drawn = {} if i not in self.rewritten else {"rewritten": self.rewritten[i]}
        told = {name: value for name, value in self.settings.items() if name not in NOT_IN_IMAGES}
        return {"identity": self.identities[i], "seed": self.inputs.seeds[i], **asked, **drawn, "settings": told}

    # -- the trace -----------------------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        evaluations, rows = (sum(getattr(step, name) for step in self.trace) for name in ("evaluations", "rows"))
        rewritten = [self.rewritten.get(i) for i in range(len(self.inputs))]
        return {
            "settings": self.settings,
            "digest": self.digest,
            **self.inputs.numbers(),
            **({"rewritten": rewritten} if self.rewritten else {}),
            "evaluations": evaluations,
            "evaluations_per_row": evaluations / rows if rows else 0.0,
            **self.numbers,
            "seconds_backbone": sum(step.seconds_backbone for step in self.trace),
            "seconds_head": sum(step.seconds_head for step in self.trace),
            "trace": [asdict(step) for step in self.trace],
            "files": self.layout.names,
        }

    def _read_trace(self) -> None:
        """Go on counting where a trace of the same drawing ended."""
        try:
            found = json.loads((self.folder / TRACE).read_text())
            if found["digest"] != self.digest or not set(found["files"]) <= set(self.layout.names):
                return
            trace = [TraceStep(**step) for step in found["trace"]]
            numbers = {name: type(value)(found[name]) for name, value in self.numbers.items()}
            words = dict(zip(found["files"], found.get("rewritten", []), strict=False))
            rewritten = {i: words[name] for i, name in enumerate(self.layout.names) if words.get(name) is not None}
        except (OSError, ValueError, KeyError, TypeError):
            return
        self.trace, self.numbers, self.rewritten = trace, numbers, rewritten

    def _write_overview(self, name: str, places: Sequence[int]) -> None:
        pictures = [Image.open(self.folder / self.layout.names[i]) for i in places]
        prompts = self.inputs.prompts if name == OVERVIEW else None
        captions = [] if prompts is None else [prompts[i] for i in places]
        write_whole(self.folder / name, lambda file: file.write(png(grid(pictures, captions=captions))))


def identities(of_run: str, inputs: Inputs) -> list[str]:
    """[N] of each image a hash of everything that it is drawn from. of_run: the digest of the settings."""
    kept = [_per_image(value, len(inputs)) for value in (inputs.known, inputs.mask)]
    asked = inputs.prompts if inputs.prompts is not None else inputs.labels or [None] * len(inputs)
    told = zip(asked, inputs.seeds, *kept, strict=True)
    about = of_run, "label" if inputs.prompts is None else "prompt", inputs.negative_prompt
    return [sha256(json.dumps([*about, *image]).encode()).hexdigest()[:32] for image in told]


def _per_image(value: Tensor | None, num_images: int) -> list[str | None]:
    """Hashes of latents or masks, one that all images share made once."""
    if value is None:
        return [None] * num_images
    # As bytes first: NumPy has no bfloat16.
    plain = [row.detach().cpu().contiguous().view(torch.uint8).numpy() for row in value]
    rows = [sha256(row.tobytes()).hexdigest() for row in plain]
    return [*rows] * (num_images // len(rows))
