"""What sampling returns.

Shapes: N images of a call, C latent channels, H x W latents.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from disa.draw.prompts import slug
from disa.errors import DisaError
from disa.files import make_folder, write_json, write_text, write_whole

OUTPUT_TYPES = ("pt", "np", "pil", "latent")


@dataclass(frozen=True)
class Wanted:
    """What to draw, one per seed: labels, prompts with what guidance leads away from, or neither."""

    labels: list[int] | None
    seeds: list[int]
    prompts: list[str] | None = None
    negative_prompt: str | None = None

    def part(self, chosen: slice) -> Wanted:
        """Some of it."""
        labels, prompts = (values and values[chosen] for values in (self.labels, self.prompts))
        return replace(self, labels=labels, seeds=self.seeds[chosen], prompts=prompts)


@dataclass(frozen=True)
class TraceStep:
    """One AR step, over all batches. rows: drawn; steps: asked per row, mean; evaluations: made."""

    ar_step: int
    rows: int
    steps: float
    evaluations: int
    seconds_backbone: float
    seconds_head: float


@dataclass(frozen=True)
class Samples:
    """What `sample` returns.

    images: [N, channels, height, width] in [0, 1] (`pt`), [N, height, width, channels] (`np`), a list (`pil`), or None
    (`latent`). latents: [N, C, H, W]. evaluations: of the denoising network on one row, counted at the network.
    seconds: wall time of drawing and decoding. rewritten: what was drawn for each prompt, where prompts are rewritten.
    """

    images: Any
    latents: Tensor
    labels: list[int] | None
    seeds: list[int]
    evaluations: int
    evaluations_per_row: float
    seconds: float
    seconds_backbone: float
    seconds_head: float
    seconds_decode: float
    trace: list[TraceStep]
    settings: dict[str, Any] = field(default_factory=dict)
    prompts: list[str] | None = None
    rewritten: list[str] | None = None

    def report(self) -> dict[str, Any]:
        """Everything but tensors, for JSON."""
        numbers = {name: getattr(self, name) for name in (
            "evaluations", "evaluations_per_row", "seconds", "seconds_backbone", "seconds_head", "seconds_decode",
        )}  # fmt: skip
        asked: dict[str, Any] = {"labels": self.labels} if self.prompts is None else {"prompts": self.prompts}
        asked |= {} if self.rewritten is None else {"rewritten": self.rewritten}
        return {
            "settings": self.settings, **asked, "seeds": self.seeds,
            **numbers, "trace": [asdict(step) for step in self.trace],
        }  # fmt: skip

    def file_names(self) -> list[str]:
        """A name for each image, by its seed and what it was drawn from."""
        if self.prompts is not None:
            asked = [f"_{slug(prompt)}" for prompt in self.prompts]
        else:
            asked = [f"_label{label:04d}" for label in self.labels] if self.labels else [""] * len(self.seeds)
        return [f"seed{seed:06d}{about}.png" for seed, about in zip(self.seeds, asked, strict=True)]

    def save(self, folder: Path) -> dict[str, Any]:
        """Write images (`pt`), `grid.png` and `trace.json`, which is the report with the names; returns it."""
        names = self.file_names()
        for name, image in zip(names, self.images, strict=True):
            _write_picture(folder / name, image)
        _write_grid(folder / "grid.png", self.images, self.prompts or ())
        return self._write_trace(folder, names)

    def save_for_geneval(self, folder: Path, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The same in the layout that GenEval's evaluation reads: a folder for each entry of its list of prompts.

        entries: each with its "prompt", in the order of the images, of which each has equally many.
        """
        count, names = len(self.seeds) // len(entries), []
        for i, entry in enumerate(entries):
            images, place = self.images[i * count : (i + 1) * count], f"{i:05d}"
            make_folder(folder / place / "samples")
            write_text(folder / place / "metadata.jsonl", json.dumps(entry) + "\n")
            for j, image in enumerate(images):
                names.append(f"{place}/samples/{j:05d}.png")
                _write_picture(folder / names[-1], image)
            _write_grid(folder / place / "grid.png", images)
        return self._write_trace(folder, names)

    def _write_trace(self, folder: Path, names: list[str]) -> dict[str, Any]:
        report = self.report() | {"files": names}
        write_json(folder / "trace.json", report)
        return report


def _write_picture(path: Path, image: Tensor) -> None:
    from disa.draw.pictures import png, to_image  # pillow is needed only for writing

    write_whole(path, lambda file: file.write(png(to_image(image))))


def _write_grid(path: Path, images: Tensor, captions: Sequence[str] = ()) -> None:
    from disa.draw.pictures import grid, png

    write_whole(path, lambda file: file.write(png(grid(images, captions=captions))))


def check_output_type(name: str) -> None:
    """One clear error, before any work."""
    if name not in OUTPUT_TYPES:
        raise DisaError(f"unknown output type {name!r}: expected one of {', '.join(OUTPUT_TYPES)}.")


def convert(images: Tensor | None, output_type: str) -> Any:
    """images [N, channels, height, width] in [0, 1] as the output type has them."""
    if images is None or output_type == "pt":
        return images
    if output_type == "np":
        return images.permute(0, 2, 3, 1).numpy()
    from disa.draw.pictures import to_image  # pillow is needed for nothing else here

    return [to_image(image) for image in images]
