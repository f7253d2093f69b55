"""Picture files from outside: read as a viewer shows them, or refused in one line, quickly."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

import small
from command import Command, Done, complaint
from disa.draw import opening
from disa.draw.opening import as_shown, open_picture
from disa.draw.resizing import cropped, fitted, read_picture, squared
from disa.errors import DisaError

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(size: tuple[int, int], depth: int, colours: int, rows: list[bytes], *more: bytes) -> bytes:
    """A PNG file of a width and height, with more chunks before its pixels."""
    header = struct.pack(">IIBBBBB", *size, depth, colours, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return SIGNATURE + chunk(b"IHDR", header) + b"".join(more) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6


def written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "picture.png").write_bytes(content)
    return tmp_path / "picture.png"


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image).astype(int)


def far(image: Image.Image, colour: Any, place: tuple[int, int] = (0, 0)) -> int:
    """How far a pixel is from a colour."""
    return int(np.abs(pixels(image)[place[::-1]] - colour).max())


# -- orientation ---------------------------------------------------------------------------------------------------

SEEN = Image.new("RGB", (48, 32), "white")
SEEN.paste((255, 0, 0), (0, 0, 16, 16))
SEEN.paste((0, 0, 255), (16, 0, 48, 16))
SEEN.paste((0, 128, 0), (0, 16, 16, 32))

# How the camera stored what is to be seen.
STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif", "a.mpo"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_picture_is_upright(tmp_path: Path, orientation: int, name: str) -> None:
    image, options = STORED[orientation](SEEN), {"exif": exif(orientation)}
    if name == "a.mpo":
        options |= {"format": "MPO", "save_all": True, "append_images": [image]}
    if name == "a.tif":
        options = {"tiffinfo": {0x0112: orientation}}
    found = open_picture(saved(tmp_path / name, image, **options))
    assert found.size == SEEN.size
    for place in [(4, 4), (40, 4), (4, 28), (40, 28)]:
        assert far(found, pixels(SEEN)[place[::-1]], place) < 40
    # What was turned is not turned again.
    assert as_shown(found).size == SEEN.size


@pytest.mark.parametrize("content", [b"Exif\0\0junk", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\xff" * 40])
def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path, content: bytes) -> None:
    assert open_picture(saved(tmp_path / "a.jpg", SEEN, exif=content)).size == SEEN.size


def test_values_of_orientation_that_mean_nothing_turn_nothing(tmp_path: Path) -> None:
    for value in (0, 9, 65535):
        assert open_picture(saved(tmp_path / "a.png", SEEN, exif=exif(value))).size == SEEN.size


# -- depths and modes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "order"), [("a.png", "<u2"), ("a.png", ">u2"), ("a.tif", "<u2"), ("a.tif", ">u2"), ("a.pgm", "<u2")]
)
def test_16_bits_are_scaled(tmp_path: Path, name: str, order: str) -> None:
    ramp = np.linspace(0, 65535, 256).round().astype(order)[None].repeat(2, 0)
    found = pixels(open_picture(saved(tmp_path / name, Image.fromarray(ramp))))
    assert (found == np.arange(256)).all()


def test_a_dark_16_bit_picture_stays_dark(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "a.pgm"):
        found = open_picture(saved(tmp_path / name, Image.fromarray(np.full((2, 2), 200, np.uint16))))
        assert pixels(found).max() == 1


def test_12_bits_of_a_tiff_are_scaled(tmp_path: Path) -> None:
    # Two values of 12 bits in three bytes.
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    body = b"\xff\xf8\x00\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", 12) + body)
    assert pixels(open_picture(tmp_path / "a.tif")).tolist() == [[255, 128]]


@pytest.mark.parametrize(
    ("top", "level"), [(1.0, 255), (0.5, 128), (0.0, 0), (1.0005, 255), (1.01, 1), (200.0, 200), (255.0, 255)]
)
def test_floats_are_of_one_or_of_255(tmp_path: Path, top: float, level: int) -> None:
    found = open_picture(saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, top]], np.float32))))
    assert (found.mode, pixels(found).tolist()) == ("L", [[0, level]])


@pytest.mark.parametrize(
    ("dtype", "value", "said"),
    [
        (np.float32, -0.5, "values from -0.5 to 0, and floats from 0 to 1 or to 255 are read"),
        (np.float32, 256, "values from 0 to 256"),
        (np.float32, float("nan"), "values that are not finite numbers"),
        (np.float32, float("inf"), "values that are not finite numbers"),
        (np.int32, -1, "values from -1 to 0, and whole numbers from 0 to 65535 are read"),
        (np.int32, 70000, "values from 0 to 70000"),
    ],
)
def test_numbers_that_fit_no_range_are_refused(tmp_path: Path, dtype: Any, value: float, said: str) -> None:
    path = saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, value]], dtype)))
    with pytest.raises(DisaError, match=f"cannot be read as a picture: it holds {said}"):
        open_picture(path)


@pytest.mark.parametrize(("value", "level"), [(200, 200), (30000, 117), (65535, 255)])
def test_whole_numbers_of_32_bits(tmp_path: Path, value: int, level: int) -> None:
    found = open_picture(saved(tmp_path / "a.tif", Image.fromarray(np.array([[0, value]], np.int32))))
    assert pixels(found).tolist() == [[0, level]]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # Transparent colours: of each depth, as the file has them.
        (png((2, 1), 16, GREY, [struct.pack(">2H", 1000, 40000)], chunk(b"tRNS", b"\x03\xe8")), [[255, 156]]),
        (png((2, 1), 8, GREY, [bytes([3, 90])], chunk(b"tRNS", b"\0\3")), [[255, 90]]),
        (png((2, 1), 4, GREY, [b"\x35"], chunk(b"tRNS", b"\0\3")), [[255, 85]]),
        (png((2, 1), 2, GREY, [b"\x60"], chunk(b"tRNS", b"\0\1")), [[255, 170]]),
        (png((2, 1), 1, GREY, [b"\x00"], chunk(b"tRNS", b"\0\0")), [[255, 255]]),
        (png((1, 1), 8, RGB, [bytes([1, 2, 3])], chunk(b"tRNS", b"\0\1\0\2\0\3")), [[[255, 255, 255]]]),
        (png((1, 1), 16, RGB, [b"\1\7\2\7\3\7"], chunk(b"tRNS", b"\1\7\2\7\3\7")), [[[255, 255, 255]]]),
        # Channels of transparency, of 16 bits.
        (png((2, 1), 16, GREY_ALPHA, [b"\x80\0\xff\xff\0\0\0\0"]), [[[128] * 3, [255] * 3]]),
        (png((1, 1), 16, RGBA, [b"\xff\xff\0\0\0\0\x80\0"]), [[[255, 127, 127]]]),
        (png((1, 1), 16, RGB, [b"\xff\xff\x80\0\0\0"]), [[[255, 128, 0]]]),
    ],
)
def test_pngs_of_every_depth(tmp_path: Path, content: bytes, expected: list[Any]) -> None:
    assert pixels(open_picture(written(tmp_path, content))).tolist() == expected


def palette(**transparency: Any) -> Image.Image:
    """Red, of which all is transparent but a blue column."""
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.info |= transparency
    return image


def rgba_palette() -> Image.Image:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 0, 255, 255], "RGBA")
    image.putpixel((1, 0), 1)
    return image


CLEAR = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
CLEAR.putpixel((1, 0), (0, 0, 255, 255))


@pytest.mark.parametrize(
    ("image", "name"),
    [
        (CLEAR, "a.png"),
        (CLEAR, "a.webp"),
        (CLEAR, "a.tif"),
        (palette(transparency=0), "a.gif"),
        (palette(transparency=0), "a.png"),
        (palette(transparency=b"\0\xff"), "a.png"),
        (rgba_palette(), "a.png"),
    ],
)
def test_what_is_transparent_is_white(tmp_path: Path, image: Image.Image, name: str) -> None:
    options: dict[str, Any] = {"lossless": True, "exact": True} if name == "a.webp" else {}
    found = open_picture(saved(tmp_path / name, image, **options))
    assert pixels(found).tolist() == [[[255, 255, 255], [0, 0, 255]]]


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, 255),
        ("L", 100, 100),
        ("LA", (0, 128), 127),
        ("La", (0, 0), 255),
        ("P", 0, (0, 0, 0)),
        ("PA", (0, 0), (255, 255, 255)),
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
        ("LAB", (136, 208, 195), (255, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16", 30000, 117),
        ("I;16B", 30000, 117),
        ("I;16L", 30000, 117),
        ("I;16N", 30000, 117),
        ("I", 30000, 117),
        ("F", 0.5, 128),
    ],
)
def test_every_mode_of_pillow(mode: str, value: Any, expected: Any) -> None:
    found = as_shown(Image.new(mode, (2, 3), value))
    assert (found.size, found.mode) == ((2, 3), "L" if isinstance(expected, int) else "RGB")
    assert far(found, expected, (1, 2)) <= (12 if mode == "LAB" else 1)


def test_inks_of_a_jpeg_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    assert far(open_picture(path), (255, 0, 0), (8, 8)) < 8


def swapped_profile() -> bytes:
    """The profile of a screen whose red is blue and whose blue is red."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        profile = profile.replace(old, new)
    return profile.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_colour_profile_is_followed(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (2, 2), "red").convert(mode), icc_profile=swapped_profile())
    assert far(open_picture(path), (0, 0, 255)) <= 2


def test_a_profile_that_does_not_fit_is_left_out(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (b"junk", swapped_profile()[:200], srgb):
        assert (
            pixels(open_picture(saved(tmp_path / "a.png", SEEN, icc_profile=profile))).tolist() == pixels(SEEN).tolist()
        )
    grey = Image.new("L", (2, 2), 90)
    assert open_picture(saved(tmp_path / "b.png", grey, icc_profile=srgb)).getpixel((0, 0)) == 90


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif"])
def test_the_first_of_several_pictures_is_taken(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
    assert far(open_picture(path), (255, 0, 0), (8, 8)) < 8


# -- what is refused -----------------------------------------------------------------------------------------------


def header(width: int, height: int) -> bytes:
    """A PNG that says to be of a size, and has a single row of a pixel."""
    return png((width, height), 8, GREY, [b"\0"])


def sized(path: Path, begin: bytes, size: int) -> Path:
    path.write_bytes(begin)
    os.truncate(path, size)
    return path


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "absent": (lambda path: None, "No such file"),
    "folder": (lambda path: path.mkdir(), "it is a folder"),
    "pipe": (lambda path: os.mkfifo(path), "it is a pipe or a device"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a pipe or a device"),
    "loop": (lambda path: path.symlink_to(path.name), "symbolic links"),
    "empty": (lambda path: path.touch(), "it is empty"),
    "large": (lambda path: sized(path, b"RIFF\xff\xff\xff\x7fWEBPVP8 ", 10**11), "it has 100000 MB"),
    "declared": (lambda path: path.write_bytes(header(2**31 - 1, 2**31 - 1)), "more than 100 million pixels"),
    "110 million": (lambda path: path.write_bytes(header(11000, 10000)), "it has 10000 x 11000 pixels"),
    "200 million": (lambda path: path.write_bytes(header(20000, 10000)), "more than 100 million pixels"),
    "long": (lambda path: path.write_bytes(header(1_000_001, 1)), "it has 1 x 1000001 pixels"),
    "nothing": (lambda path: path.write_bytes(header(0, 1)), "it is a damaged picture"),
    "truncated": (lambda path: path.write_bytes(header(9000, 9000)), "truncated"),
    "cut": (lambda path: path.write_bytes(header(1, 1)[:20]), "cannot be read as a picture"),
    "bomb": (
        lambda path: path.write_bytes(
            png((1, 1), 8, GREY, [b"\0"], chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000))))
        ),
        "the texts in it are too long",
    ),
    "text": (lambda path: path.write_text("no picture"), "it is a text"),
    "noise": (lambda path: path.write_bytes(bytes(range(128, 256))), "it has no format that Pillow knows"),
    "svg": (lambda path: path.write_text('<?xml version="1.0"?>\n<svg xmlns="x"/>'), "it is an SVG drawing"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html>\n<html>404</html>"), "it is a web page"),
    "pdf": (lambda path: path.write_bytes(b"%PDF-1.7\n"), "it is a PDF document"),
    "postscript": (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "PostScript"),
    "zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(30)), "it is a zip archive"),
    "video": (lambda path: path.write_bytes(b"\0\0\0\x20ftypisom" + bytes(30)), "it is a video"),
    "heic": (lambda path: path.write_bytes(b"\0\0\0\x20ftypheic" + bytes(30)), "it is a HEIC picture"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "preview": (
        lambda path: Image.new("RGB", (4, 4)).save(path, format="TIFF", tiffinfo={254: 1}),
        "a preview, as in a camera's raw data",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.timeout(10)
@pytest.mark.filterwarnings("error")
def test_what_is_no_picture_is_named(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    make(tmp_path / "in.png")
    with pytest.raises(DisaError) as caught:
        open_picture(tmp_path / "in.png")
    assert str(caught.value).startswith(f"{tmp_path / 'in.png'} cannot be read as a picture: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_pillow_logs_is_not_printed(tmp_path: Path) -> None:
    """Of a TIFF with too many channels, which Pillow tells as an error of its log. Here pytest would catch it."""
    path = saved(tmp_path / "a.tif", SEEN)
    content, entry = path.read_bytes(), struct.pack("<HHI", 277, 3, 1)
    path.write_bytes(content.replace(entry + b"\3\0", entry + b"\xff\xff"))
    command = [sys.executable, "-m", "disa", "sample", "--keep", str(path), "--box", "0,0,1,1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "it is a damaged picture" in complaint(Done(done.returncode, done.stdout, done.stderr))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", SEEN)
    path.chmod(0)
    with pytest.raises(DisaError, match="Permission denied"):
        open_picture(path)


@pytest.mark.parametrize("name", ["", "a\0b", 3, None, b"a.png"])
def test_a_path_is_a_path(name: Any) -> None:
    with pytest.raises(DisaError, match="a picture must be a path"):
        open_picture(name)


def test_other_programs_are_not_started() -> None:
    """PostScript is drawn by another program, which a picture from outside must not start."""
    assert not {"EPS", "WMF", "FITS", "HDF5", "GRIB", "BUFR"} & set(opening.FORMATS)


# -- at the size of the model --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100_000, 1), (1, 100_000), (20_000, 3)])
@pytest.mark.timeout(20)
def test_the_square_of_a_long_picture_is_small(size: tuple[int, int]) -> None:
    square = squared(Image.new("L", size, 255))
    assert square.width == square.height < 10_000
    found = fitted(square, (3, 32, 32))
    assert found.shape == (1, 3, 32, 32)
    assert (found - 127 / 255).abs().mean() < 0.05


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (64, 64)])
def test_pictures_of_usual_sizes_are_padded_first(size: tuple[int, int]) -> None:
    """As officially: the order decides the pixels at the border."""
    image = Image.effect_noise(size, 90).convert("RGB")
    side = max(size)
    padded = Image.new("RGB", (side, side), (127, 127, 127))
    padded.paste(image, ((side - size[0]) // 2, (side - size[1]) // 2))
    expected = np.array(padded.resize((32, 32), Image.Resampling.BICUBIC), np.float32) / 255
    assert torch.equal(fitted(squared(image), (3, 32, 32)), torch.from_numpy(expected).permute(2, 0, 1)[None])


@pytest.mark.parametrize(
    ("size", "shape", "middle"),
    [
        ((64, 32), (32, 32), (32, 32)),
        ((32, 64), (32, 32), (32, 32)),
        ((64, 32), (16, 32), (64, 32)),
        ((100, 100), (16, 32), (100, 50)),
        ((1000, 1), (32, 32), (1, 1)),
    ],
)
def test_the_middle_is_cropped(size: tuple[int, int], shape: tuple[int, int], middle: tuple[int, int]) -> None:
    assert cropped(Image.new("L", size), shape).size == middle


def test_nothing_is_squashed(tmp_path: Path) -> None:
    """A square stays a square, and it is told that sides are cut off."""
    wide = Image.new("RGB", (64, 32), "white")
    wide.paste("black", (24, 8, 40, 24))
    path = saved(tmp_path / "wide.png", wide)
    with pytest.warns(UserWarning, match=r"32 x 64 pixels high and wide, the middle 32 x 32 are used"):
        found = read_picture(path, (1, 32, 32))
    places = (found[0, 0] < 0.5).nonzero()
    assert (places.min(0).values.tolist(), places.max(0).values.tolist()) == ([8, 8], [23, 23])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_picture(path, (1, 16, 32))


# -- the command line ----------------------------------------------------------------------------------------------

QUICK = ("--num-ar-steps", 2, "--steps", "constant:2", "--device", "cpu", "--labels", 3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("models") / "small")


def test_what_is_cut_off_is_told_in_one_line(disa: Command, model: Path, tmp_path: Path) -> None:
    picture = Image.new("L", (16, 8))
    picture.putdata([x * 15 for _ in range(8) for x in range(16)])
    path, out = saved(tmp_path / "in.png", picture), tmp_path / "out"
    done = disa("sample", "--model", model, "--keep", path, "--box", "0,0,1,2", *QUICK, "--out", out)
    assert done.code == 0
    assert done.err.count("\n") == 1
    assert "the middle 8 x 8 are used" in done.err
    with Image.open(out / "samples/seed000000_label0003.png") as image:
        assert (pixels(image)[2:] == pixels(picture)[2:, 4:12]).all()


def test_a_turned_picture_is_kept_as_it_is_seen(disa: Command, model: Path, tmp_path: Path) -> None:
    picture = Image.new("L", (8, 8))
    picture.putdata(range(0, 256, 4))
    path = saved(tmp_path / "in.png", STORED[6](picture), exif=exif(6))
    assert disa("sample", "--model", model, "--keep", path, "--box", "0,0,1,2", *QUICK, "--out", tmp_path).code == 0
    with Image.open(tmp_path / "samples/seed000000_label0003.png") as image:
        assert (pixels(image)[2:] == pixels(picture)[2:]).all()


def test_a_picture_is_looked_at_before_weights_are(disa: Command, tmp_path: Path) -> None:
    (tmp_path / "in.png").write_bytes(b"%PDF-1.7\n")
    options = ("--model", "mar-base", "--checkpoint", tmp_path / "absent.pth", "--keep", tmp_path / "in.png")
    assert "it is a PDF document" in complaint(disa("sample", *options, "--box", "0,0,1,1", "--out", tmp_path / "out"))
