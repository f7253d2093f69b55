"""A picture of which a part is drawn again: the picture itself, and the tokens that were painted over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from disa.draw.inputs import Inputs
from disa.draw.resizing import cropped, fitted
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings
from disa.draw.tensors import box_mask
from disa.errors import DisaError
from disa.studio.halves import HALVES

EASEL = 512
"""Pixels of the longer side of a picture while it is painted on."""
PAINTED = 0.1
"""The share of a token that is painted over where it is drawn again."""


@dataclass(frozen=True, eq=False)
class Edited:
    """A picture on the easel."""

    picture: Image.Image
    name: str
    model: str = ""
    latents: Tensor | None = None
    """Those that it was drawn as, where the model of that name has drawn it: nothing is lost by encoding it."""

    def known(self, sampler: Sampler, settings: Settings) -> Tensor:
        """[1, C, H, W] its latents. Raises DisaError."""
        height, width = settings.size or sampler.own_size
        own = self.model == sampler.preset.name and self.picture.size == (width, height)
        if self.latents is not None and own:
            return self.latents
        return sampler.encode(self.fitted(sampler, settings))

    def fitted(self, sampler: Sampler, settings: Settings) -> Tensor:
        """[1, channels, height, width] in [0, 1], its middle where it has another shape."""
        shape = sampler.shape_of(settings.size)
        return fitted(cropped(self.picture, shape[1:]), shape)

    def on_easel(self, sampler: Sampler, settings: Settings) -> Image.Image:
        """As it is painted on: enlarged without smoothing, or made smaller."""
        height, width = settings.size or sampler.own_size
        middle = cropped(self.picture, (height, width)).convert("RGB")
        share = EASEL / max(height, width)
        small = middle.resize((width, height), Image.Resampling.BICUBIC) if middle.size != (width, height) else middle
        size = max(1, round(width * share)), max(1, round(height * share))
        return small.resize(size, Image.Resampling.NEAREST if share > 1 else Image.Resampling.BICUBIC)


def mask_of(painted: Mapping[str, Any] | None, where: str, grid: tuple[int, int]) -> Tensor:
    """[1, h, w] the tokens to draw again. painted: what an `ImageEditor` says. Raises DisaError where there are
    none."""
    if where in HALVES:
        rows, columns = grid
        edges = [round(share * side) for share, side in zip(HALVES[where], (rows, columns) * 2, strict=True)]
        return box_mask(edges, grid)
    layers = [] if painted is None else [_alpha(layer) for layer in painted.get("layers") or ()]
    if not any(layer.any() for layer in layers):
        raise DisaError("nothing is painted over: paint what is to be drawn again, or choose a half.")
    shares = [functional.adaptive_avg_pool2d(layer[None], grid) for layer in layers]
    mask = torch.stack(shares).amax(0) >= PAINTED
    if not mask.any():  # a small dot: the token that has most of it
        whole = torch.stack(shares).amax(0)
        mask = whole == whole.amax()
    return mask


def _alpha(layer: Image.Image) -> Tensor:
    """[height, width] where a layer is painted on, in [0, 1]."""
    pixels = np.array(layer.convert("RGBA").getchannel("A"), dtype=np.float32)
    return (torch.from_numpy(pixels) > 0).float()


def inputs_of(edited: Edited, inputs: Inputs, sampler: Sampler, settings: Settings, mask: Tensor | None) -> Inputs:
    """What is to be drawn: the first label or prompt and seed, with what is kept of a picture; without a mask, all
    of it anew as the prompt says. Raises DisaError."""
    first = inputs.part([0])
    known = edited.known(sampler, settings)
    asked = {"labels": first.labels, "prompts": first.prompts}
    if mask is None:
        return Inputs(first.seeds, **asked, source=known)
    return Inputs(first.seeds, **asked, known=known, mask=mask)
