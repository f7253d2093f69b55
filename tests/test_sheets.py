"""Sheets of pictures: all of them can be opened again, whatever is shown on them."""

from __future__ import annotations

import math
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import small
from disa.draw.inputs import Inputs
from disa.draw.pictures import MOST_PIXELS, foresight_sheet, grid, shortened, side_by_side
from disa.study.plots import steps_plot

MANY, LARGE = (3000, (1, 8, 8)), (100, (1, 1200, 1200))


def images(count: int, shape: tuple[int, ...]) -> Tensor:
    """Equal ones, which take the memory of one."""
    return torch.linspace(0, 1, math.prod(shape)).view(1, *shape).expand(count, *shape)


def check_can_be_opened(sheet: Image.Image) -> None:
    """Pillow warns of what is larger, and refuses twice as much."""
    assert sheet.width * sheet.height < 1.5 * MOST_PIXELS < 89_000_000
    assert max(sheet.size) < 65_000


@pytest.mark.parametrize(
    ("count", "shape"),
    [MANY, LARGE, (4, (3, 16, 16384)), (4, (3, 16384, 16)), (1, (1, 1, 30_000)), (1, (1, 5900, 5900))],
)
def test_a_grid_is_bounded(count: int, shape: tuple[int, ...]) -> None:
    check_can_be_opened(grid(images(count, shape)))


def test_what_fits_keeps_its_pixels() -> None:
    sheet = np.array(grid(images(100, (1, 256, 256))))
    assert (sheet[2:258, 2:258] == (images(1, (1, 256, 256))[0, 0] * 255).round().numpy()).all()
    # Small ones are enlarged by a whole number.
    assert (
        np.array(grid(images(1, (1, 8, 8))))[2:66:8, 2:66:8] == np.array(grid(images(1, (1, 8, 8))))[9:66:8, 9:66:8]
    ).all()


def test_columns_of_many_policies_are_bounded() -> None:
    sets = {f"counts:{','.join(map(str, range(256)))},{i}: 1.0 s": images(40, (1, 256, 256)) for i in range(20)}
    check_can_be_opened(side_by_side(sets))


def test_sheets_of_large_images_are_bounded() -> None:
    pair = images(4, (1, 2048, 1024)), images(4, (1, 2048, 1024))
    check_can_be_opened(foresight_sheet({f"{k} of 6": pair for k in range(1, 7)}))


@pytest.mark.parametrize(
    "caption", ["", "W" * 300, "一只猫在桌子上看着窗外的雨" * 9, "line\nbreak\x1b[1m", "x " * 500_000, "😀 ü"]
)
@pytest.mark.timeout(20)
def test_a_caption_stays_below_its_image(caption: str) -> None:
    alone = np.array(grid(images(2, (1, 48, 48)), columns=2, captions=["", "a cat"]))
    beside = np.array(grid(images(2, (1, 48, 48)), columns=2, captions=[caption, "a cat"]))
    width = alone.shape[1] // 2
    height = min(len(alone), len(beside))
    assert (alone[:height, width + 1 :] == beside[:height, width + 1 :]).all()


def test_what_is_left_of_a_long_text_has_both_ends() -> None:
    assert shortened("short", 60) == "short"
    cut = shortened("counts:" + "1," * 300 + ": 1.0 s, 2.0x", 60)
    assert len(cut) <= 60
    assert cut.startswith("counts:1,1,")
    assert cut.endswith(": 1.0 s, 2.0x")


def test_a_plot_of_long_names_is_drawn() -> None:
    counts = list(range(1, 257))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        content = steps_plot({"counts:" + ",".join(map(str, counts)): counts, "constant:5": [5] * 256})
    assert Image.open(BytesIO(content)).size == (840, 480)


def test_the_overview_holds_the_first_hundred(tmp_path: Path) -> None:
    sampler = small.sampler()
    report = sampler.sample_into(tmp_path, Inputs(list(range(103)), [3] * 103), steps="constant:1", num_ar_steps=1)
    assert len(report["files"]) == len(list((tmp_path / "samples").glob("*.png"))) == 103
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.size == (13 * 66 + 2, 8 * 66 + 2)
