"""What sampling returns.

Shapes: N images of a call, C latent channels, H x W latents.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from disa.errors import DisaError

OUTPUT_TYPES = ("pt", "np", "pil", "latent")


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
    seconds: wall time of drawing and decoding.
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

    def report(self) -> dict[str, Any]:
        """Everything but tensors, for JSON."""
        numbers = {name: getattr(self, name) for name in (
            "evaluations", "evaluations_per_row", "seconds", "seconds_backbone", "seconds_head", "seconds_decode",
        )}  # fmt: skip
        asked = {"labels": self.labels} if self.prompts is None else {"prompts": self.prompts}
        return {
            "settings": self.settings, **asked, "seeds": self.seeds,
            **numbers, "trace": [asdict(step) for step in self.trace],
        }  # fmt: skip


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
    from disa.pictures import to_image  # pillow is needed for nothing else here

    return [to_image(image) for image in images]
