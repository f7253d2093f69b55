"""A folder of samples, written as they are drawn: nothing is lost by an interruption, and nothing drawn twice.

    samples/seed000007_label0003.png    an image each, and nothing else: the folder for FID
    grid.png                            the first images, for looking at
    trace.json                          settings, counts and times

An image knows what it was drawn from: its PNG holds an identity, a hash of the settings, the weights, the label or
prompt and the seed. So what is there already is known by what it is, not by its name.

Whatever ends the process, the folder holds images of one run, each whole, and a trace that tells of no image that is
not there. For each batch that is the order: its images under temporary names; with the first batch, what tells of
another run and then the images of that run are removed; the batch gets its names; now and then, the trace is written.
So what is replaced stays until there is something to replace it, and a disk that is full leaves it alone. Only one
process at a time draws into a folder, and what disa did not write is never removed or replaced.
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
from torch import Tensor

from disa.draw.inputs import Inputs
from disa.draw.pictures import as_image, grid, is_foreign, png, text_of
from disa.draw.prompts import slug
from disa.draw.settings import NO_IDENTITY, digest
from disa.draw.trace import TraceStep
from disa.errors import DisaError
from disa.files import Hold, clear_unfinished, make_folder, only_writer, write_each, write_json, write_whole
from disa.reading import json_in
from disa.values import counted, one_of

SAMPLES, OVERVIEW, TRACE, METADATA = "samples", "grid.png", "trace.json", "metadata.jsonl"
TEXT = "disa"
"""The keyword under which a PNG says what it is."""
MOST_SHOWN = 100
"""Images of an overview."""
SECONDS_BETWEEN_TRACES = 5.0
LONGEST_TRACE = 1 << 30
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
        self._hold: Hold | None = None
        self._others: list[str] = []
        self._used = self._begun = False

    def open(self, if_used: str = "refuse") -> list[int]:
        """Make the folder ready; returns the places of the images that are still to be drawn.

        if_used: `refuse` a folder with other images in it; `resume`: the same, and draw only what is missing;
        `replace` what disa wrote there, as soon as there are new images. Raises DisaError.
        """
        one_of(if_used, IF_USED, "choice")
        make_folder(self.folder)
        self._hold = only_writer(self.folder)
        expected = dict(zip(self.layout.names, self.identities, strict=True))
        there = {name: self._identity(name) for name in self._pictures()}
        self._others = [name for name, found in there.items() if found not in (None, expected.get(name))]
        if self._others and if_used != "replace":
            raise DisaError(
                f"{self.folder} holds {counted(len(self._others), 'image')} of another run ({self._others[0]}): choose "
                "another folder, or replace them (--replace)."
            )
        self._used = any(there.values())
        self._check_foreign([name for name in there if name in expected])
        for place in self._sample_folders():
            clear_unfinished(place)
            clear_unfinished(place.parent)
        for place in self._places():
            make_folder(place)
        if if_used != "resume":
            return list(range(len(self.inputs)))
        self._read_trace()
        return [i for i, name in enumerate(self.layout.names) if there.get(name) != self.identities[i]]

    def write(self, samples: Drawn, places: Sequence[int]) -> None:
        """The images of a batch; places: [B] where they stand in the inputs of the folder."""
        if samples.rewritten is not None:
            self.rewritten |= dict(zip(places, samples.rewritten, strict=True))
        contents = self._notes() | {
            self.folder / self.layout.names[i]: self._file(i, image)
            for i, image in zip(places, samples.images, strict=True)
        }
        # What a power failure leaves half written has no end, and is drawn again.
        write_each(contents, self._begin)
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
        except BaseException:
            if self.trace:
                with contextlib.suppress(DisaError):
                    self.write_trace()
            self._hold = None
            raise
        return self.finish() | {"drawn": len(missing)}

    def finish(self) -> dict[str, Any]:
        """Write overviews and the trace; returns the trace."""
        write_each(self._notes(), self._begin)
        for name, places in self.layout.overviews.items():
            self._write_overview(name, places)
        self._hold = None
        return self.write_trace()

    def write_trace(self) -> dict[str, Any]:
        """Write the trace of what was drawn so far; returns it."""
        report = self._report()
        write_json(self.folder / TRACE, report)
        self._last_trace = time.monotonic()
        return report

    # -- what is there -------------------------------------------------------------------------------------------

    def _notes(self) -> dict[Path, bytes]:
        """What is written with the first images."""
        return {} if self._begun else {self.folder / name: text.encode() for name, text in self.layout.notes.items()}

    def _begin(self) -> None:
        """Before the first image gets its name: remove what is of another run."""
        if not self._begun and (self._others or not self._is_of_this_run(_read_json(self.folder / TRACE))):
            self._remove(self._others)
            for place in self._places():
                place.mkdir(parents=True, exist_ok=True)
        self._begun = True

    def _places(self) -> list[Path]:
        """Folders in which something is written."""
        return sorted({(self.folder / name).parent for name in [*self.layout.names, *self.layout.overviews]})

    def _remove(self, names: Sequence[str]) -> None:
        """Images of another run, after what is told of them: the trace, overviews; and folders that are then empty."""
        folders = {self.folder, *(self.folder.joinpath(name).parents[1] for name in names)}
        for folder in sorted(folders):
            if _is_trace(_read_json(folder / TRACE)):
                (folder / TRACE).unlink()
            if self._is_overview(folder / OVERVIEW):
                (folder / OVERVIEW).unlink()
            if names and folder != self.folder:
                (folder / METADATA).unlink(missing_ok=True)
        for name in names:
            (self.folder / name).unlink(missing_ok=True)
        for folder in sorted(folders - {self.folder}):
            with contextlib.suppress(OSError):
                (folder / SAMPLES).rmdir()
                folder.rmdir()

    def _check_foreign(self, names: Sequence[str]) -> None:
        """Files in the way that disa did not write. Raises DisaError."""
        foreign = [name for name in names if is_foreign(self.folder / name, TEXT)]
        foreign += [name for name in self.layout.overviews if not self._is_overview(self.folder / name)]
        foreign += [] if _is_trace(_read_json(self.folder / TRACE)) else [TRACE]
        foreign = [name for name in foreign if (self.folder / name).exists()]
        if foreign:
            raise DisaError(f"{self.folder / foreign[0]} was not written by disa: move it, or choose another folder.")

    def _is_overview(self, path: Path) -> bool:
        """Whether disa wrote it. Earlier versions did not say so in the file."""
        return path.is_file() and (self._used or not is_foreign(path, TEXT))

    def _pictures(self) -> list[str]:
        """Images that are in the folder, by their names below it."""
        found = (path for folder in self._sample_folders() for path in sorted(folder.glob("*.png")))
        return [str(path.relative_to(self.folder)) for path in found]

    def _sample_folders(self) -> list[Path]:
        """Where images may be."""
        return [self.folder / SAMPLES, *self.folder.glob(f"[0-9]*/{SAMPLES}")]

    def _identity(self, name: str) -> str | None:
        """Of an image in the folder, if disa wrote it and it is whole."""
        try:
            return str(json.loads(text_of(self.folder / name, TEXT))["identity"])
        except (ValueError, KeyError, TypeError):
            return None

    def _file(self, i: int, image: Any) -> bytes:
        about = about_image(self.inputs, i, self.identities[i], self.settings, self.rewritten.get(i))
        return image_file(image, about)

    # -- the trace -----------------------------------------------------------------------------------------------

    def _report(self) -> dict[str, Any]:
        names = ("evaluations", "rows", "backbone_tokens", "operations")
        evaluations, rows, tokens, operations = (sum(getattr(step, name) for step in self.trace) for name in names)
        rewritten = [self.rewritten.get(i) for i in range(len(self.inputs))]
        return {
            "settings": self.settings,
            "digest": self.digest,
            **self.inputs.numbers(),
            **({"rewritten": rewritten} if self.rewritten else {}),
            "evaluations": evaluations,
            "evaluations_per_row": evaluations / rows if rows else 0.0,
            "backbone_tokens": tokens,
            "operations": operations,
            **self.numbers,
            "seconds_backbone": sum(step.seconds_backbone for step in self.trace),
            "seconds_head": sum(step.seconds_head for step in self.trace),
            "trace": [asdict(step) for step in self.trace],
            "files": self.layout.names,
        }

    def _read_trace(self) -> None:
        """Go on counting where a trace of the same drawing ended."""
        try:
            found = _read_json(self.folder / TRACE)
            if not self._is_of_this_run(found):
                return
            trace = [TraceStep(**step) for step in found["trace"]]
            numbers = {name: type(value)(found[name]) for name, value in self.numbers.items()}
            words = dict(zip(found["files"], found.get("rewritten", []), strict=False))
            rewritten = {i: words[name] for i, name in enumerate(self.layout.names) if words.get(name) is not None}
        except (ValueError, KeyError, TypeError):
            return
        self.trace, self.numbers, self.rewritten = trace, numbers, rewritten

    def _is_of_this_run(self, trace: Any) -> bool:
        return _is_trace(trace) and trace["digest"] == self.digest and set(trace["files"]) <= set(self.layout.names)

    def _write_overview(self, name: str, places: Sequence[int]) -> None:
        pictures = [self.folder / self.layout.names[i] for i in places]
        prompts = self.inputs.prompts if name == OVERVIEW else None
        captions = [] if prompts is None else [prompts[i] for i in places]
        content = png(grid(pictures, captions=captions), {TEXT: json.dumps({"digest": self.digest})})
        write_whole(self.folder / name, lambda file: file.write(content))


def _is_trace(content: Any) -> bool:
    """Whether disa wrote it."""
    files = content.get("files") if isinstance(content, dict) and isinstance(content.get("digest"), str) else None
    return isinstance(files, list) and all(isinstance(name, str) for name in files)


def _read_json(path: Path) -> Any:
    """None where there is none, or it is no JSON."""
    try:
        return json_in(path, LONGEST_TRACE)
    except ValueError:
        return None


def image_file(image: Any, about: dict[str, Any]) -> bytes:
    """A PNG file of an image of any output type, which says what it was drawn from."""
    return png(as_image(image), {TEXT: json.dumps(about)})


def about_image(
    inputs: Inputs, i: int, identity: str, settings: dict[str, Any], rewritten: str | None = None
) -> dict[str, Any]:
    """What the file of image i says of it. settings: see `Run.about`. rewritten: what was drawn for its prompt."""
    asked = (
        {"prompt": inputs.prompts[i]}
        if inputs.prompts is not None
        else {"label": None if inputs.labels is None else inputs.labels[i]}
    )
    drawn = {} if rewritten is None else {"rewritten": rewritten}
    told = {name: value for name, value in settings.items() if name not in NOT_IN_IMAGES}
    return {"identity": identity, "seed": inputs.seeds[i], **asked, **drawn, "settings": told}


def identities(of_run: str, inputs: Inputs) -> list[str]:
    """[N] of each image a hash of everything that it is drawn from. of_run: the digest of the settings."""
    given = inputs.known, inputs.mask, *(() if inputs.source is None else (inputs.source,))
    kept = [_per_image(value, len(inputs)) for value in given]
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
