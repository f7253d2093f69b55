"""Pictures as PNG bytes: image grids, and the plots of `disa compare` and `disa evidence`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from textwrap import wrap
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

MARGIN = 2
TITLE_HEIGHT = 18
CAPTION_WIDTH, LETTER_WIDTH, LINE_HEIGHT, MOST_LINES = 144, 6, 14, 3


def png(image: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def plot_png(figure: Any, dpi: int) -> bytes:
    """The same of a figure of matplotlib."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def to_image(image: Tensor) -> Image.Image:
    """[channels, height, width] in [0, 1] -> a picture."""
    pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def grid(
    images: Tensor, columns: int | None = None, smallest: int = 64, captions: Sequence[str] = ()
) -> Image.Image:  # fmt: skip
    """images [N, channels, height, width] in [0, 1] in rows; small ones are enlarged to `smallest` pixels, or as far as
    a caption below each needs."""
    columns = columns or min(len(images), max(1, round((len(images) * 1.6) ** 0.5)))
    tiles = [_enlarged(to_image(image), max(smallest, CAPTION_WIDTH) if captions else smallest) for image in images]
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


def steps_plot(counts: Mapping[str, Sequence[float]]) -> bytes:
    """Denoising steps of every AR step, a line per policy."""
    return _plot(counts, "AR step", "denoising steps per token", "where the denoising steps go")


def foresight_sheet(columns: Mapping[str, tuple[Tensor, Tensor]], smallest: int = 64) -> Image.Image:
    """Titled columns, left to right, of what is drawn and below it what is predicted, image after image.

    Both [N, channels, height, width] in [0, 1].
    """
    pairs = {title: torch.stack(pair, dim=1).flatten(0, 1) for title, pair in columns.items()}
    sheet, names = side_by_side(pairs, 1, smallest), ("drawn", "predicted")
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


def evidence_plot(curves: Mapping[str, Mapping[str, Any]], title: str) -> bytes:
    """The curves of `disa evidence` against the AR step, with quartiles as bands; absolute above, relative below."""
    from matplotlib.figure import Figure  # heavy

    panels = (
        ("error", "squared error of the prediction"), ("variance", "variance between draws"),
        ("straightness", "S: 0 is a straight path"), ("r2", "R2 of the prediction"),
        ("relative_variance", "variance / that of the tokens"), ("relative_straightness", "S / variance of the tokens"),
    )  # fmt: skip
    figure = Figure(figsize=(11, 5.6), layout="constrained")
    grid: Any = figure.subplots(2, 3, sharex=True)
    for axes, (name, label) in zip(grid.flat, panels, strict=True):
        curve = curves[name]
        ar_steps = range(1, len(curve["mean"]) + 1)
        axes.fill_between(ar_steps, curve["low"], curve["high"], alpha=0.25, linewidth=0)
        axes.plot(ar_steps, curve["mean"], marker="o", markersize=3)
        way = "up" if curve["expected"] > 0 else "down"
        axes.set_title(f"{label}\nSpearman {curve['correlation']:+.2f}, in the paper {way}", fontsize=10)
        axes.set_ylim(*((None, 1) if name == "r2" else (0, None)))
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in grid[1]:
        axes.set_xlabel("AR step")
    figure.suptitle(title)
    return plot_png(figure, 100)


def _plot(lines: Mapping[str, Sequence[float]], x: str, y: str, title: str) -> bytes:
    from matplotlib.figure import Figure  # heavy

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes: Any = figure.add_subplot()
    for name, values in lines.items():
        axes.step(range(len(values)), values, where="mid", label=name)
    axes.set(xlabel=x, ylabel=y, title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    return plot_png(figure, 120)


def _enlarged(image: Image.Image, smallest: int) -> Image.Image:
    factor = -(-smallest // min(image.size))
    size = image.width * factor, image.height * factor
    return image if factor <= 1 else image.resize(size, Image.Resampling.NEAREST)


def _grey(mode: str, value: int) -> int | tuple[int, int, int]:
    return value if mode == "L" else (value, value, value)


def calibration_plot(report: Mapping[str, Any], title: str) -> bytes:
    """The error curves of `disa calibrate`, their share of the final error, and the counts that were chosen."""
    from matplotlib import colormaps  # heavy
    from matplotlib.figure import Figure

    curves, chosen = report["curves"], report["counts"]
    colours = colormaps["viridis"](np.linspace(0, 0.92, len(chosen)))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (errors, gain, colour) in enumerate(zip(curves["errors"], curves["gains"], colours, strict=True)):
        label = f"AR step {k + 1}" if k in {0, len(chosen) // 2, len(chosen) - 1} else None
        left.loglog(curves["counts"], np.multiply(errors, gain), marker=".", color=colour, label=label)
    left.set(xlabel="denoising steps", ylabel="squared error x gain, per image", title="what a count costs in error")
    left.legend()
    right.bar(range(1, len(chosen) + 1), chosen, color=colours)
    right.set(xlabel="AR step", ylabel="denoising steps", title="what the budget is spent on")
    right.xaxis.get_major_locator().set_params(integer=True)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(title)
    return plot_png(figure, 100)
