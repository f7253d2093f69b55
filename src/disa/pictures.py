"""Pictures as PNG bytes: image grids, and the plots of `disa compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN = 2
TITLE_HEIGHT = 18


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def to_image(image: Tensor) -> Image.Image:
    """[channels, height, width] in [0, 1] -> a picture."""
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def grid(images: Tensor, columns: int | None = None, smallest: int = 64) -> Image.Image:
    """images [N, channels, height, width] in [0, 1] in rows; small ones are enlarged to `smallest` pixels."""
    columns = columns or min(len(images), max(1, round((len(images) * 1.6) ** 0.5)))
    tiles = [_enlarged(to_image(image), smallest) for image in images]
    width, height = tiles[0].width + MARGIN, tiles[0].height + MARGIN
    rows = -(-len(tiles) // columns)
    sheet = Image.new(tiles[0].mode, (columns * width + MARGIN, rows * height + MARGIN), _grey(tiles[0].mode, 96))
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + i % columns * width, MARGIN + i // columns * height))
    return sheet


def side_by_side(sets: Mapping[str, Tensor], columns: int = 8, smallest: int = 48) -> Image.Image:
    """One titled grid per entry, left to right; image i has the same place in all of them."""
    sheets = {title: grid(images, columns, smallest).convert("RGB") for title, images in sets.items()}
    gap = 3 * MARGIN
    font = ImageFont.load_default(13)
    widths = [max(sheet.width, int(font.getlength(title)) + gap) for title, sheet in sheets.items()]
    height = max(sheet.height for sheet in sheets.values())
    page = Image.new("RGB", (sum(widths) + gap * (len(sheets) - 1), height + TITLE_HEIGHT), "white")
    draw, left = ImageDraw.Draw(page), 0
    for width, (title, sheet) in zip(widths, sheets.items(), strict=True):
        draw.text((left + MARGIN, 1), title, fill="black", font=font)
        page.paste(sheet, (left, TITLE_HEIGHT))
        left += width + gap
    return page


def steps_plot(counts: Mapping[str, Sequence[float]]) -> bytes:
    """Denoising steps of every AR step, a line per policy."""
    return _plot(counts, "AR step", "denoising steps per token", "where the denoising steps go")


def _plot(lines: Mapping[str, Sequence[float]], x: str, y: str, title: str) -> bytes:
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    for name, values in lines.items():
        axes.step(range(len(values)), values, where="mid", label=name)
    axes.set(xlabel=x, ylabel=y, title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _enlarged(image: Image.Image, smallest: int) -> Image.Image:
    factor = -(-smallest // min(image.size))
    size = image.width * factor, image.height * factor
    return image if factor <= 1 else image.resize(size, Image.Resampling.NEAREST)


def _grey(mode: str, value: int) -> int | tuple[int, int, int]:
    return value if mode == "L" else (value, value, value)
