"""Pictures as models take them, and masks for editing: what is kept, and which tokens are drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disa.errors import DisaError


def open_picture(path: Path) -> Image.Image:
    """A picture of any format that Pillow reads. Raises DisaError."""
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert("L" if image.mode in ("1", "L", "F") or image.mode.startswith("I") else "RGB")
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over
        raise DisaError(f"{path} cannot be read as a picture: {error}. Expected a PNG, JPEG or the like.") from error


def squared(image: Image.Image) -> Image.Image:
    """Padded to a square with gray (127), the picture in the middle, as Harmon's official code does."""
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    return square


def fitted(image: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """A picture as [1, channels, height, width] in [0, 1], resized to `shape` (channels, height, width)."""
    channels, height, width = shape
    picture = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
    return pixels.reshape(1, height, width, channels).permute(0, 3, 1, 2)


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """`open_picture`, then `fitted`."""
    return fitted(open_picture(path), shape)


def box_mask(edges: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """[1, h, w] booleans over tokens, true inside (top, left, bottom, right), the last two excluded."""
    rows, columns = grid
    if len(edges) != 4 or not (0 <= edges[0] < edges[2] <= rows and 0 <= edges[1] < edges[3] <= columns):
        raise DisaError(
            f"the box must be top,left,bottom,right in tokens within {rows} rows and {columns} columns, "
            f"found {','.join(map(str, edges))}."
        )
    mask = torch.zeros(1, rows, columns, dtype=torch.bool)
    mask[:, edges[0] : edges[2], edges[1] : edges[3]] = True
    return mask
