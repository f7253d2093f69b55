"""Pictures at the size that a model takes: padded or cropped to its aspect ratio, resized, as tensors in [0, 1]."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from disa.draw.opening import open_picture
from disa.errors import DisaError, warn

LARGEST_SQUARE, SIDE_OF_LARGE = 8192, 2048


def squared(image: Image.Image) -> Image.Image:
    """Padded to a square with gray (127), the picture in the middle, as Harmon's official code does.

    A picture with a side above `LARGEST_SQUARE` is made smaller first: the square of a long one fits into no memory.
    """
    if max(image.size) > LARGEST_SQUARE:
        share = SIDE_OF_LARGE / max(image.size)
        width, height = (max(1, round(side * share)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    side = max(image.size)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image.convert("RGB"), ((side - image.width) // 2, (side - image.height) // 2))
    return square


def cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of a picture, as much as has the aspect ratio of `size` (height, width)."""
    share = min(image.height / size[0], image.width / size[1])
    height, width = (max(1, round(side * share)) for side in size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def fitted(image: Image.Image, shape: tuple[int, int, int]) -> Tensor:
    """A picture as [1, channels, height, width] in [0, 1], resized to `shape` (channels, height, width)."""
    channels, height, width = shape
    if channels not in (1, 3):
        raise DisaError(f"a picture has 1 channel or 3, and the model's images have {channels}.")
    picture = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
    return pixels.reshape(1, height, width, channels).permute(0, 3, 1, 2)


def filling(image: Image.Image, shape: tuple[int, int, int], name: str | Path) -> Tensor:
    """`cropped`, then `fitted`. Warns where something of the picture, called `name`, is cut off."""
    middle = cropped(image, shape[1:])
    if middle.size != image.size:
        warn(
            f"of {name}, which is {image.height} x {image.width} pixels high and wide, the middle "
            f"{middle.height} x {middle.width} are used: the image has another aspect ratio"
        )
    return fitted(middle, shape)


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """A picture file as [1, channels, height, width] in [0, 1], see `filling`. Raises DisaError."""
    return filling(open_picture(path), shape, path)
