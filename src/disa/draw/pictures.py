"""Pictures as PNG bytes: single images, grids of them, and grids side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

MARGIN = 2
TITLE_HEIGHT = 18
PNG_END = b"IEND\xaeB`\x82"
CAPTION_WIDTH, LETTER_WIDTH, LINE_HEIGHT, MOST_LINES = 144, 6, 14, 3


def png(image: Image.Image, texts: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a PNG file, with texts in it by their keywords."""
    buffer, info = BytesIO(), PngInfo()
    for keyword, text in (texts or {}).items():
        info.add_text(keyword, text)
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def text_of(path: Path, keyword: str) -> str:
    """The text of a keyword in a PNG file. Raises KeyError where it is none, is not whole or has no such text."""
    try:
        content = path.read_bytes()
        with Image.open(BytesIO(content)) as image:
            text = getattr(image, "text", {})
    except (OSError, SyntaxError, ValueError) as error:
        raise KeyError(keyword) from error
    if not content.endswith(PNG_END):
        raise KeyError(keyword)
    return str(text[keyword])


def is_foreign(path: Path, keyword: str) -> bool:
    """Whether this is a picture without a text of that keyword, or no file. What is no picture is none of others."""
    try:
        with Image.open(path) as image:
            return keyword not in image.info
    except (OSError, SyntaxError, ValueError):
        return path.is_dir()


def as_image(image: Any) -> Image.Image:
    """A picture from any output type: a tensor [channels, height, width], an array [height, width, channels], both in
    [0, 1], or a picture."""
    if isinstance(image, Image.Image):
        return image
    return to_image(torch.from_numpy(image).permute(2, 0, 1) if isinstance(image, np.ndarray) else image)


def to_image(image: Tensor) -> Image.Image:
    """[channels, height, width] in [0, 1] -> a picture."""
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def grid(
    images: Tensor | Sequence[Any], columns: int | None = None, smallest: int = 64, captions: Sequence[str] = ()
) -> Image.Image:
    """Images, [N, channels, height, width] in [0, 1] or a list of any output type, in rows; small ones are enlarged to
    `smallest` pixels, or as far as a caption below each needs."""
    columns = columns or min(len(images), max(1, round((len(images) * 1.6) ** 0.5)))
    tiles = [_enlarged(as_image(image), max(smallest, CAPTION_WIDTH) if captions else smallest) for image in images]
    letters = tiles[0].width // LETTER_WIDTH
    lines = [wrap(caption, letters, max_lines=MOST_LINES, placeholder=" ...") for caption in captions]
    words = max(map(len, lines), default=0) * LINE_HEIGHT
    width, height = tiles[0].width + MARGIN, tiles[0].height + MARGIN + words
    rows = -(-len(tiles) // columns)
    sheet = Image.new(tiles[0].mode, (columns * width + MARGIN, rows * height + MARGIN), _grey(tiles[0].mode, 96))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(LINE_HEIGHT - 3)
    for i, tile in enumerate(tiles):
        corner = MARGIN + i % columns * width, MARGIN + i // columns * height
        sheet.paste(tile, corner)
        for j, line in enumerate(lines[i] if captions else ()):
            draw.text((corner[0], corner[1] + tile.height + j * LINE_HEIGHT), line, _grey(sheet.mode, 255), font)
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


def foresight_sheet(columns: Mapping[str, tuple[Tensor, Tensor]]) -> Image.Image:
    """Titled columns, left to right, of what is drawn and below it what is predicted, image after image.

    Both [N, channels, height, width] in [0, 1].
    """
    pairs = {title: torch.stack(pair, dim=1).flatten(0, 1) for title, pair in columns.items()}
    sheet, names = side_by_side(pairs, columns=1, smallest=64), ("drawn", "predicted")
    num_rows = len(next(iter(pairs.values())))
    font = ImageFont.load_default(13)
    left = int(max(map(font.getlength, names))) + 3 * MARGIN
    page = Image.new("RGB", (left + sheet.width, sheet.height), "white")
    page.paste(sheet, (left, 0))
    draw, height = ImageDraw.Draw(page), (sheet.height - TITLE_HEIGHT - MARGIN) // num_rows
    draw.text((MARGIN, 1), "AR steps", fill="black", font=font)
    for row in range(num_rows):
        middle = TITLE_HEIGHT + MARGIN + row * height + height // 2
        draw.text((MARGIN, middle), names[row % 2], fill="black", font=font, anchor="lm")
    return page


def _enlarged(image: Image.Image, smallest: int) -> Image.Image:
    factor = -(-smallest // min(image.size))
    size = image.width * factor, image.height * factor
    return image if factor <= 1 else image.resize(size, Image.Resampling.NEAREST)


def _grey(mode: str, value: int) -> int | tuple[int, int, int]:
    return value if mode == "L" else (value, value, value)
