"""Pictures as PNG bytes: single images, grids of them, and grids side by side."""

from __future__ import annotations

import math
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
CAPTION_WIDTH, LETTER_WIDTH, LINE_HEIGHT, MOST_LINES, LONGEST_CAPTION = 144, 6, 14, 3, 300
MOST_PIXELS = 1 << 25
"""Of a sheet's images: Pillow warns of pictures with more than 89 million pixels, and refuses those of twice that."""
LONGEST_SIDE = 8192
"""Of an image of a sheet."""
TITLE_LETTERS = 60


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
    [0, 1], or a picture; or from the path of one of ours."""
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, Path):
        with Image.open(image) as opened:
            return opened.copy()
    return to_image(torch.from_numpy(image).permute(2, 0, 1) if isinstance(image, np.ndarray) else image)


def to_image(image: Tensor) -> Image.Image:
    """[channels, height, width] in [0, 1] -> a picture."""
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


# -- sheets --------------------------------------------------------------------------------------------------------


def grid(
    images: Tensor | Sequence[Any],
    columns: int | None = None,
    smallest: int = 64,
    captions: Sequence[str] = (),
    most_pixels: int = MOST_PIXELS,
) -> Image.Image:
    """Images, [N, channels, height, width] in [0, 1] or a list of what `as_image` takes, in rows.

    Small ones are enlarged to `smallest` pixels, or as far as a caption below each needs; large ones are made smaller,
    so that all of them have at most `most_pixels`.
    """
    columns = columns or min(len(images), max(1, round((len(images) * 1.6) ** 0.5)))
    first = as_image(images[0])
    size = _tile_size(first.size, max(smallest, CAPTION_WIDTH) if captions else smallest, most_pixels // len(images))
    font = ImageFont.load_default(LINE_HEIGHT - 3)
    lines = [_wrapped(caption, size[0], font) for caption in captions]
    words = max(map(len, lines), default=0) * LINE_HEIGHT
    width, height, rows = size[0] + MARGIN, size[1] + MARGIN + words, -(-len(images) // columns)
    sheet = Image.new(first.mode, (columns * width + MARGIN, rows * height + MARGIN), _grey(first.mode, 96))
    for i, image in enumerate(images):
        corner = MARGIN + i % columns * width, MARGIN + i // columns * height
        sheet.paste(_resized(as_image(image), size), corner)
        if captions and lines[i]:
            sheet.paste(_caption(lines[i], (size[0], words), sheet.mode, font), (corner[0], corner[1] + size[1]))
    return sheet


def side_by_side(sets: Mapping[str, Tensor], columns: int = 8, smallest: int = 48) -> Image.Image:
    """One titled grid per entry, left to right; image i has the same place in all of them."""
    share = MOST_PIXELS // len(sets)
    sheets = {
        title: grid(images, columns, smallest, most_pixels=share).convert("RGB") for title, images in sets.items()
    }
    gap = 3 * MARGIN
    font = ImageFont.load_default(13)
    titled = [(shortened(title, TITLE_LETTERS), sheet) for title, sheet in sheets.items()]
    widths = [max(sheet.width, int(font.getlength(title)) + gap) for title, sheet in titled]
    height = max(sheet.height for sheet in sheets.values())
    page = Image.new("RGB", (sum(widths) + gap * (len(sheets) - 1), height + TITLE_HEIGHT), "white")
    draw, left = ImageDraw.Draw(page), 0
    for width, (title, sheet) in zip(widths, titled, strict=True):
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


def shortened(text: str, most: int) -> str:
    """A text of at most so many letters, without some of its middle."""
    return text if len(text) <= most else f"{text[: most // 2 - 2]} ... {text[len(text) - most // 2 + 3 :]}"


def _tile_size(size: tuple[int, int], smallest: int, most_pixels: int) -> tuple[int, int]:
    """Width and height of an image of a sheet: a multiple of its own, or smaller where that is too large."""
    width, height = size
    most = min(math.sqrt(most_pixels / (width * height)), LONGEST_SIDE / max(size))
    factor = min(-(-smallest // min(size)), int(most)) if most >= 1 else most
    return max(1, int(width * factor)), max(1, int(height * factor))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    larger = size[0] >= image.width and size[1] >= image.height
    return image.resize(size, Image.Resampling.NEAREST if larger else Image.Resampling.BOX)


def _wrapped(caption: str, width: int, font: Any) -> list[str]:
    """A caption in lines of at most about so many pixels."""
    caption = caption[:LONGEST_CAPTION]
    letters = int(width / max(LETTER_WIDTH, font.getlength(caption) / max(1, len(caption))))
    return wrap(caption, max(1, letters), max_lines=MOST_LINES, placeholder=" ...")


def _caption(lines: Sequence[str], size: tuple[int, int], mode: str, font: Any) -> Image.Image:
    """Lines on a strip of their own, so that none reaches into the next image."""
    strip = Image.new(mode, size, _grey(mode, 96))
    draw = ImageDraw.Draw(strip)
    for i, line in enumerate(lines):
        draw.text((0, i * LINE_HEIGHT), line, _grey(mode, 255), font)
    return strip


def _grey(mode: str, value: int) -> int | tuple[int, int, int]:
    return value if mode == "L" else (value, value, value)
