"""What sampling returns.

Shapes: N images, C latent channels, H x W latents, K AR steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.draw.inputs import Inputs
from disa.draw.trace import TraceStep
from disa.errors import DisaError
from disa.values import counted, one_of, path

OUTPUT_TYPES = ("pt", "np", "pil", "latent")
MOST_SHOWN, LARGEST_SHOWN = 24, 160
"""Images, and pixels of a side, in a notebook."""


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """Images, what they were drawn from, and what drawing took."""

    inputs: Inputs
    """What was asked for: `labels`, `prompts` and `seeds` are its lists."""
    images: Any
    """[N, channels, height, width] in [0, 1] (`pt`), [N, height, width, channels] (`np`), a list (`pil`), or None
    (`latent`)."""
    latents: Tensor
    """[N, C, H, W], float32."""
    trace: list[TraceStep]
    """[K] every AR step, over all images."""
    seconds: float
    """Wall time of drawing and decoding."""
    seconds_decode: float
    about: Callable[[], dict[str, Any]] = dict
    """Tells `settings`, once they are asked for: the hash of large weights takes seconds."""
    rewritten: list[str] | None = None
    """What was drawn for each prompt, where prompts are rewritten."""
    places: list[int] = field(default_factory=list)
    """[N] which of the images of the call these are."""

    def __repr__(self) -> str:
        size = "latents " + "x".join(map(str, self.latents.shape[1:]))
        return (
            f"Samples({counted(len(self), 'image')}, {size}, {self.evaluations} evaluations, "
            f"{self.evaluations_per_row:.1f} per row, {self.seconds:.2f} s)"
        )

    def _repr_png_(self) -> bytes | None:
        """The first images, no larger than a page, for notebooks; None of latents."""
        if self.images is None:
            return None
        from disa.draw.pictures import as_image, grid, png  # pillow is needed for nothing else here

        shown = [as_image(image).copy() for image in self.images[:MOST_SHOWN]]
        for image in shown:
            image.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
        return png(grid(shown, captions=(self.prompts or [])[:MOST_SHOWN]))

    def __len__(self) -> int:
        return len(self.inputs)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"about": partial(dict, self.settings)}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The model and every option, as JSON has them: different for different drawings."""
        return self.about()

    @property
    def labels(self) -> list[int] | None:
        return self.inputs.labels

    @property
    def prompts(self) -> list[str] | None:
        return self.inputs.prompts

    @property
    def seeds(self) -> list[int]:
        return self.inputs.seeds

    @property
    def rows(self) -> int:
        """Rows that were drawn."""
        return sum(step.rows for step in self.trace)

    @property
    def evaluations(self) -> int:
        """Calls of the denoising network on one row."""
        return sum(step.evaluations for step in self.trace)

    @property
    def evaluations_per_row(self) -> float:
        return self.evaluations / self.rows

    @property
    def backbone_tokens(self) -> int:
        """Tokens that blocks of the backbone ran over."""
        return sum(step.backbone_tokens for step in self.trace)

    @property
    def operations(self) -> int:
        """Of matrix products: of the backbone, and of all evaluations; without the autoencoder."""
        return sum(step.operations for step in self.trace)

    @property
    def seconds_backbone(self) -> float:
        return sum(step.seconds_backbone for step in self.trace)

    @property
    def seconds_head(self) -> float:
        return sum(step.seconds_head for step in self.trace)

    @classmethod
    def join(cls, parts: Sequence[Samples]) -> Samples:
        """Several batches as one, in the order of the inputs. Raises DisaError where there is none."""
        if not parts:
            raise DisaError("there is nothing to join: every batch was handed out already.")
        if len(parts) == 1:
            return parts[0]
        places = [place for part in parts for place in part.places]
        order = sorted(range(len(places)), key=places.__getitem__)
        first = parts[0]
        return cls(
            inputs=_joined([part.inputs for part in parts], order),
            images=_in_order([part.images for part in parts], order),
            latents=torch.cat([part.latents for part in parts])[order],
            trace=[TraceStep.sum(steps) for steps in zip(*(part.trace for part in parts), strict=True)],
            seconds=sum(part.seconds for part in parts),
            seconds_decode=sum(part.seconds_decode for part in parts),
            about=first.about,
            rewritten=_in_order([part.rewritten for part in parts], order),
            places=[places[i] for i in order],
        )

    def report(self) -> dict[str, Any]:
        """Everything but tensors, for JSON."""
        numbers = ["evaluations", "evaluations_per_row", "backbone_tokens", "operations"]
        numbers += ["seconds", "seconds_backbone", "seconds_head", "seconds_decode"]
        rewritten = {} if self.rewritten is None else {"rewritten": self.rewritten}
        return {
            "settings": self.settings,
            **self.inputs.numbers(),
            **rewritten,
            **{name: getattr(self, name) for name in numbers},
            "trace": [asdict(step) for step in self.trace],
        }

    def save(self, folder: str | Path, if_used: str = "refuse") -> dict[str, Any]:
        """Write the images, an overview and `trace.json` into a folder; returns the trace with the files' names.

        if_used: `refuse` a folder that holds images of another run, or `replace` them. Raises DisaError.
        """
        if self.images is None:
            raise DisaError("there are no images to save: these are latents. Draw with another output type.")
        from disa.draw.folder import Layout, SampleFolder  # pillow is needed only for writing

        written = SampleFolder(path(folder, "the folder"), self.inputs, self.settings, Layout.flat(self.inputs))
        written.open(if_used)
        written.write(self, range(len(self)))
        return written.finish()


def _joined(parts: Sequence[Inputs], order: Sequence[int]) -> Inputs:
    def of(name: str) -> Any:
        return _in_order([getattr(part, name) for part in parts], order)

    tensors = {name: _per_image(parts, name, order) for name in ("known", "mask", "source")}
    return replace(parts[0], seeds=of("seeds"), labels=of("labels"), prompts=of("prompts"), **tensors)


def _per_image(parts: Sequence[Inputs], name: str, order: Sequence[int]) -> Tensor | None:
    """Known latents or masks: one for all images, or one for each."""
    values = [getattr(part, name) for part in parts]
    shared = any(value is None or len(value) != len(part) for value, part in zip(values, parts, strict=True))
    return values[0] if shared else torch.cat(values)[list(order)]


def _in_order(parts: Sequence[Any], order: Sequence[int]) -> Any:
    """Lists, arrays or tensors of several batches as one; None where they are."""
    if any(part is None for part in parts):
        return None
    if isinstance(parts[0], list):
        values = [value for part in parts for value in part]
        return [values[i] for i in order]
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))[list(order)]
    import numpy as np

    return np.concatenate(parts)[list(order)]


def check_output_type(name: str) -> None:
    """One clear error, before any work."""
    one_of(name, OUTPUT_TYPES, "output type")


def convert(images: Tensor | None, output_type: str) -> Any:
    """images [N, channels, height, width] in [0, 1] as the output type has them."""
    if images is None or output_type == "pt":
        return images
    if output_type == "np":
        return images.permute(0, 2, 3, 1).numpy()
    from disa.draw.pictures import to_image  # pillow is needed for nothing else here

    return [to_image(image) for image in images]
