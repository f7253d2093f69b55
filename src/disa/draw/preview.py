"""Pictures of what is under way."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from disa.draw.loaded import Loaded
from disa.runtime.surroundings import undisturbed


@undisturbed()
def drawn_so_far(loaded: Loaded, state: Any, images: slice | list[int]) -> Tensor:
    """What is drawn of some images of a batch, gray where nothing is; the state stays as it is.

    state: that of an `ARStep`. images: their places in the batch. Returns [N, channels, height, width] in [0, 1].
    FlowAR's first scales are shown as they are, coarse.
    """
    latents, undrawn = loaded.model.preview(state)
    size = loaded.model.config.latent_size if undrawn is None else tuple(latents.shape[-2:])
    drawn = loaded.decode(functional.interpolate(latents[images], size, mode="nearest"))
    if undrawn is None:
        return drawn
    gray = functional.interpolate(undrawn[images].float(), tuple(drawn.shape[-2:]), mode="nearest") > 0
    return drawn.masked_fill(gray, 0.5)
