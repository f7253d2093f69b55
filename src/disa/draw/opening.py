"""Pictures from outside, files and Pillow's: read as a viewer shows them, in 8 bits of grey (L) or colour (RGB).

| what a picture has | how it is read |
|---|---|
| an orientation (EXIF, XMP, a TIFF tag) | turned and mirrored as it says |
| transparency, in channels, a palette or a colour | on white |
| a colour profile (ICC) | as sRGB; a profile that is damaged or does not fit is as good as none |
| CMYK, YCbCr, LAB, HSV, a palette | as RGB |
| 16 bits, or 12 in a TIFF | by the range of these bits: 65535 is white; RGB by its upper 8 bits |
| whole numbers of 32 bits | white is 255 where all are at most that, else 65535; refused below 0 and above |
| floats | white is 1 where all are at most that, else 255; refused below 0, above 255, and where not finite |
| several pictures: animated, pages | the first |

Refused quickly, with what it is: no regular file, over `MOST_BYTES`, `MOST_PIXELS` or `LONGEST_SIDE`, a video, a
document, a web page and the like, a camera's raw data, and what ends early or is damaged. Gamma and brightness beside a
profile (gAMA in PNG, gain maps) are not read.
"""

from __future__ import annotations

import logging
import stat
import warnings
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

from disa.errors import DisaError
from disa.values import ROUNDING, first_line, path

# Without a handler, what Pillow logs of damaged files would be printed beside the error that names them.
logging.getLogger("PIL").addHandler(logging.NullHandler())

MOST_PIXELS = 100_000_000
LONGEST_SIDE = 1_000_000
MOST_BYTES = 300_000_000

# What Pillow opens without any other program, HEIF and JPEG XL where a plugin of it is registered.
FORMATS = (
    *("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "ICO", "QOI", "PSD", "PCX", "SGI"),
    *("TGA", "HEIF", "JXL"),
)
# The value of EXIF's orientation -> what makes it upright.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Descriptions of profiles that are sRGB itself: a conversion would only round.
SRGB = ("sRGB", "sRGB built-in", "sRGB IEC61966-2.1")
EXIF_ORIENTATION, TIFF_KIND, TIFF_BITS = 274, 254, 258

# First bytes of what is taken for a picture, from a place on -> what it is.
OTHERS = (
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript document"),
    (0, b"\xc5\xd0\xd3\xc6", "a PostScript document"),
    (0, b"PK\x03\x04", "a zip archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (0, b"\x1aE\xdf\xa3", "a video"),
    (8, b"AVI ", "a video"),
    (0, b"FLV\x01", "a video"),
    (0, b"\x00\x00\x01\xba", "a video"),
    (8, b"WAVE", "a sound"),
    (0, b"ID3", "a sound"),
    (0, b"OggS", "a sound or a video"),
    (0, b"\x93NUMPY", "an array of NumPy"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR picture, which Pillow does not read"),
    (0, b"#?RADIANCE", "an HDR picture, which Pillow does not read"),
    (0, b"\xff\x0a", "a JPEG XL picture, which Pillow does not read"),
    (4, b"JXL ", "a JPEG XL picture, which Pillow does not read"),
    *((8, brand, "a HEIC picture, which Pillow does not read") for brand in (b"heic", b"heix", b"mif1", b"msf1")),
    (4, b"ftyp", "a video"),
    (4, b"moov", "a video"),
    *((0, begin, "a damaged picture") for begin in (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM")),
    (8, b"WEBP", "a damaged picture"),
    (0, b"version https://git-lfs", "a pointer of Git LFS, not the file itself (`git lfs pull` gets it)"),
)
LONGEST_HEAD = 512


def open_picture(file: str | Path) -> Image.Image:
    """A picture file. Raises DisaError."""
    place, head = path(file, "a picture"), b""
    try:
        _check_file(place)
        with place.open("rb") as opened, warnings.catch_warnings():
            # Pillow's warnings tell of what is refused or mended here.
            warnings.simplefilter("ignore")
            head = opened.read(LONGEST_HEAD)
            return _shown(identified(opened))
    except UnidentifiedImageError as error:
        raise _unreadable(place, f"{_kind(head)}. Expected a PNG, JPEG or the like") from error
    except Exception as error:  # a damaged file raises whatever its decoder stumbles over
        raise _unreadable(place, _reason(error)) from error


def as_shown(picture: Image.Image) -> Image.Image:
    """A picture of Pillow that a caller has. Raises DisaError."""
    try:
        return _shown(picture)
    except Exception as error:  # it may be of a file that is read only now
        raise DisaError(f"a picture of mode {picture.mode} cannot be read: {_reason(error)}.") from error


class _NotTaken(ValueError):
    """Why a picture is refused."""


def _unreadable(place: Path, reason: str) -> DisaError:
    return DisaError(f"{place} cannot be read as a picture: {reason}.")


def _reason(error: Exception) -> str:
    """What is wrong, for a message."""
    if isinstance(error, _NotTaken):
        return str(error)
    if isinstance(error, OSError):
        return error.strerror or f"it is damaged, {first_line(error)}"
    if "MAX_TEXT" in str(error):  # of Pillow, for texts beside the pixels
        return "the texts in it are too long: save it without them"
    return "it is damaged"


# -- files ---------------------------------------------------------------------------------------------------------


def _check_file(place: Path) -> None:
    about = place.stat()
    if stat.S_ISDIR(about.st_mode):
        raise _NotTaken("it is a folder")
    if not stat.S_ISREG(about.st_mode):
        raise _NotTaken("it is a pipe or a device, not a file")
    if not about.st_size:
        raise _NotTaken("it is empty")
    if about.st_size > MOST_BYTES:
        raise _NotTaken(f"it has {about.st_size / 1e6:.0f} MB, and at most {MOST_BYTES / 1e6:.0f} are read")


def identified(file: IO[bytes]) -> Image.Image:
    """A picture that is not decoded yet, of a format and size that can be. Raises what Pillow does, or ValueError."""
    Image.init()
    try:
        image = Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:
        raise _NotTaken(f"it has more than {MOST_PIXELS // 10**6} million pixels: make it smaller") from error
    if image.width * image.height > MOST_PIXELS or max(image.size) > LONGEST_SIDE:
        raise _NotTaken(
            f"it has {image.height} x {image.width} pixels, and at most {MOST_PIXELS // 10**6} million are read, "
            f"{LONGEST_SIDE} along a side: make it smaller"
        )
    if image.format == "TIFF" and int(getattr(image, "tag_v2", {}).get(TIFF_KIND, 0)) & 1:
        raise _NotTaken("its first picture is a preview, as in a camera's raw data: save it as JPEG or PNG")
    return image


def _kind(head: bytes) -> str:
    """What a file is that no decoder of Pillow takes."""
    for start, begin, what in OTHERS:
        if head.startswith(begin, start):
            return f"it is {what}"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml")):
        return "it is an SVG drawing" if b"<svg" in text else "it is XML"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "it is a web page"
    return "it is a text" if head.isascii() and b"\0" not in head else "it has no format that Pillow knows"


# -- pixels --------------------------------------------------------------------------------------------------------


def _shown(image: Image.Image) -> Image.Image:
    """As the table above has it. Raises what its decoder does, and `_NotTaken` where there is no such meaning."""
    clear = _clear_colour(image)
    image.load()
    if clear is not None:
        image.info["transparency"] = clear
    turn, profile = TURNS.get(_orientation(image)), image.info.get("icc_profile")
    flat = _flat(image)
    if profile:
        flat = _in_srgb(flat, profile)
    if flat.mode not in ("L", "RGB"):
        flat = flat.convert("RGB")
    upright = flat if turn is None else flat.transpose(turn)
    upright.info = {}  # none of it is left to do
    return upright


def _flat(image: Image.Image) -> Image.Image:
    """Without transparency and in 8 bits: L, RGB or CMYK."""
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        return _in_8_bits(image)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    if mode == "LAB":
        image = _converted(image, ImageCms.createProfile("LAB"))
    if image.has_transparency_data:
        page, above = Image.new("RGB", image.size, "white"), image.convert("RGBA")
        page.paste(above, mask=above.getchannel("A"))
        image = page
    if mode in ("1", "L", "LA", "La"):
        return image.convert("L")
    return image if image.mode == "CMYK" else image.convert("RGB")


def _in_8_bits(image: Image.Image) -> Image.Image:
    """Whole numbers of 16 or 32 bits, and floats."""
    pixels = np.asarray(image)
    low, high = float(pixels.min()), float(pixels.max())
    if not np.isfinite((low, high)).all():
        raise _NotTaken("it holds values that are not finite numbers")
    if image.mode == "F":
        white, least, most = 1 if high <= 1 + ROUNDING else 255, -ROUNDING, 255 + ROUNDING
    elif image.mode == "I":
        # What a PGM counts up to is scaled to 65535 by Pillow.
        white, least, most = 255 if high <= 255 and image.format != "PPM" else 65535, 0, 65535
    else:
        white, least, most = 2 ** _bits(image) - 1, 0, 65535
    if low < least or high > most:
        expected = "floats from 0 to 1 or to 255" if image.mode == "F" else "whole numbers from 0 to 65535"
        raise _NotTaken(f"it holds values from {low:g} to {high:g}, and {expected} are read: scale it")
    scaled = np.multiply(pixels, 255 / white, dtype=np.float32)
    scaled = np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)
    if isinstance(clear := image.info.get("transparency"), int):
        scaled[pixels == clear] = 255
    return Image.fromarray(scaled)


def _bits(image: Image.Image) -> int:
    """Of a grey picture of up to 16 bits."""
    bits: Any = getattr(image, "tag_v2", {}).get(TIFF_BITS, 16)
    return int(bits[0] if isinstance(bits, tuple) else bits)


def _clear_colour(image: Image.Image) -> int | tuple[int, ...] | None:
    """The transparent colour of a PNG that is yet to be decoded, as its pixels will be: Pillow has it as the file."""
    clear, tile = image.info.get("transparency"), getattr(image, "tile", None)
    if image.format != "PNG" or not tile:
        return None
    if tile[0].args in ("L;2", "L;4") and isinstance(clear, int):
        return clear * (85 if tile[0].args == "L;2" else 17)
    return tuple(value >> 8 for value in clear) if tile[0].args == "RGB;16B" and isinstance(clear, tuple) else None


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(EXIF_ORIENTATION)
    except Exception:  # damaged EXIF data is no reason to refuse a picture
        return None


def _in_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Pixels by a colour profile as those of sRGB."""
    try:
        own = ImageCms.ImageCmsProfile(BytesIO(profile))
        if ImageCms.getProfileDescription(own).strip() in SRGB:
            return image
        found = _converted(image, own)
    except (ImageCms.PyCMSError, OSError, TypeError, ImportError):
        return image
    return found.convert("L") if image.mode == "L" else found


def _converted(image: Image.Image, profile: Any) -> Image.Image:
    found = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert found is not None
    return found
