"""Sets of images to evaluate, and what each image tells of itself.

| given | which images |
|---|---|
| a folder that `disa sample` wrote | those in `samples`, of each prompt too, without the overviews |
| a folder with tar files, as `disa bulk` and WebDataset write them | the pictures in these |
| any other folder | all pictures in it and below |
| an .npz file in ADM's form | `arr_0`, uint8 [N, height, width, 3 or 1]; `arr_1`, if there, are labels [N] |
| `digits` | the real digits that come with scikit-learn |

All images of a set have one size. A set is indexed once, which finds what does not belong there before any work; after
that its pictures are read a few at a time. What disa drew tells its seed and its label or prompt.
"""

from __future__ import annotations

import json
import math
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from disa.draw.folder import SAMPLES, TEXT
from disa.draw.opening import MOST_BYTES, as_shown, identified, open_picture
from disa.draw.pictures import PNG_END
from disa.errors import DisaError
from disa.reading import bytes_in
from disa.study.sums import UNREADABLE
from disa.values import counted, named
from disa.values import path as path_of
from disa.weights.trust import hash_file

DIGITS = "digits"
ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".qoi"}
ARRAY, LABELS = "arr_0", "arr_1"


@dataclass(frozen=True)
class Entry:
    """What is known of an image without decoding it."""

    name: str
    digest: str
    """Of its content: equal images of one kind of file have equal ones."""
    size: tuple[int, int]
    """Height and width."""
    seed: int | None = None
    label: int | None = None
    prompt: str | None = None
    drawn: bool = False
    """Whether disa drew it."""

    @property
    def asked(self) -> tuple[int | None, int | str | None]:
        """The seed, and the label or prompt."""
        return self.seed, self.prompt if self.prompt is not None else self.label


@dataclass(frozen=True)
class Images:
    """A set of images of one size. pixels: an image by its index, uint8 [height, width, channels]."""

    place: str
    entries: list[Entry]
    pixels: Callable[[int], np.ndarray]
    files: tuple[range, ...] = ()
    """Which images lie in one file together, where several do."""

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.entries[0].size

    @property
    def labels(self) -> list[int] | None:
        """[N] the classes that were asked for, where every image tells one."""
        found = [entry.label for entry in self.entries if entry.label is not None]
        return found if len(found) == len(self) else None

    @property
    def prompts(self) -> list[str] | None:
        """[N] the prompts, where every image tells one."""
        found = [entry.prompt for entry in self.entries if entry.prompt is not None]
        return found if len(found) == len(self) else None

    def parts(self, most: int) -> list[range]:
        """All indices in their order, cut into parts of so many at most; none reaches over two files."""
        files = self.files or (range(len(self)),)
        return [file[start : start + most] for file in files for start in range(0, len(file), most)]

    def chosen(self, order: list[int]) -> Images:
        """Some of them, in this order."""
        if order == list(range(len(self))):
            return self
        entries = [self.entries[i] for i in order]
        return replace(self, entries=entries, pixels=lambda i: self.pixels(order[i]), files=())


def open_images(given: str | Path) -> Images:
    """The set of images that a text or path stands for, see above. Raises DisaError."""
    if str(given) == DIGITS:
        return _digits()
    place = path_of(given, "a set of images")
    if place.is_dir():
        found = _of_folder(place)
    elif place.is_file():
        found = _of_array(place)
    else:
        raise DisaError(f"{named(place)} is not there: expected a folder of images, an .npz file, or `{DIGITS}`.")
    return _checked(found)


def _checked(images: Images) -> Images:
    """Raises DisaError where there are no images, or some that do not belong to the others."""
    if not images.entries:
        raise DisaError(
            f"{named(images.place)} holds no images: expected a run of disa, pictures, or tar files of them."
        )
    sizes = Counter(entry.size for entry in images.entries)
    if len(sizes) > 1:
        (usual, _), *_, (other, _) = sizes.most_common()
        stray, fellow = (next(entry for entry in images.entries if entry.size == size) for size in (other, usual))
        raise DisaError(
            f"the images of {named(images.place)} have several sizes, as {stray.name} with {_shown(other)} and "
            f"{fellow.name} with {_shown(usual)}: move what is no sample, such as an overview, elsewhere."
        )
    strange = [entry.name for entry in images.entries if not entry.drawn]
    if 0 < len(strange) < len(images):
        raise DisaError(
            f"disa drew {counted(len(images) - len(strange), 'image')} of {named(images.place)}, but not "
            f"{strange[0]}: move it elsewhere."
        )
    return images


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


# -- folders -------------------------------------------------------------------------------------------------------


def _of_folder(folder: Path) -> Images:
    if tars := sorted({*folder.glob("*.tar"), *folder.glob("shards/*.tar"), *folder.glob("parts/*.tar")}):
        return _of_tars(folder, tars)
    places = [place for place in (folder / SAMPLES, *sorted(folder.glob(f"[0-9]*/{SAMPLES}"))) if place.is_dir()]
    files = [
        path
        for place in places or [folder]
        for path in sorted(place.rglob("*"))
        if _is_picture(path.name) and path.is_file()
    ]
    entries = [_entry(path, str(path.relative_to(folder))) for path in files]
    return Images(str(folder), entries, lambda i: _array(open_picture(files[i])))


def _is_picture(name: str) -> bool:
    return Path(name).suffix.lower() in ENDINGS and not Path(name).name.startswith(".")


def _entry(path: Path, name: str) -> Entry:
    try:
        return _told(bytes_in(path, MOST_BYTES), name)
    except (OSError, SyntaxError, ValueError) as error:
        open_picture(path)  # which says what is wrong with it
        raise DisaError(f"{path} cannot be read as a picture: it is damaged.") from error


def _told(content: bytes, name: str) -> Entry:
    """What the file of a picture tells. Raises what Pillow does, and DisaError for an overview of disa."""
    with identified(BytesIO(content)) as image:
        if image.format == "PNG" and PNG_END not in content:
            raise ValueError("it is cut off")
        text, size = image.info.get(TEXT), (image.height, image.width)
    entry = Entry(name, sha256(content).hexdigest(), size)
    about: Any = None
    with suppress(ValueError, TypeError):
        about = json.loads(text or "null")
    if not isinstance(about, dict):
        return entry
    if "identity" not in about:
        raise DisaError(f"{name} is an overview that disa wrote, and no sample: move it elsewhere.")
    return replace(entry, drawn=True, **{name: about.get(name) for name in ("seed", "label", "prompt")})


def _array(image: Image.Image) -> np.ndarray:
    """[height, width, channels] of a picture of 8 bits."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


# -- tar files -----------------------------------------------------------------------------------------------------


def _of_tars(folder: Path, tars: list[Path]) -> Images:
    """Images by their names: a run under way may have one in a part and, already, in a shard."""
    found: dict[str, tuple[Entry, Path, int, int]] = {}
    for path in tars:
        try:
            for name, content, start in _members(path):
                found.setdefault(name, (_told(content, name), path, start, len(content)))
        except (tarfile.TarError, OSError, EOFError, SyntaxError, ValueError) as error:
            raise DisaError(f"{named(path)} cannot be read: {str(error) or 'it is damaged'}.") from error
    ordered = [found[name] for name in sorted(found)]

    def pixels(i: int) -> np.ndarray:
        entry, path, start, length = ordered[i]
        with path.open("rb") as file:
            file.seek(start)
            content = file.read(length)
        if sha256(content).hexdigest() != entry.digest:
            raise DisaError(f"{path} was changed while it was evaluated: try again.")
        try:
            return decoded(content)
        except (DisaError, OSError, SyntaxError, ValueError) as error:
            raise DisaError(f"{entry.name} in {named(path)} cannot be read as a picture: it is damaged.") from error

    return Images(str(folder), [entry for entry, *_ in ordered], pixels, _files([path for _, path, *_ in ordered]))


def decoded(content: bytes) -> np.ndarray:
    """uint8 [height, width, channels] of the file of a picture. Raises what Pillow does, and DisaError."""
    return _array(as_shown(identified(BytesIO(content))))


def _files(paths: list[Path]) -> tuple[range, ...]:
    """Where the images of each file are. paths: of each image its file; images of one file may be apart."""
    edges = [0, *(i for i in range(1, len(paths)) if paths[i] != paths[i - 1]), len(paths)]
    return tuple(range(*pair) for pair in pairwise(edges))


def _members(path: Path) -> Iterator[tuple[str, bytes, int]]:
    """The pictures in a tar file: name, content, and where that begins."""
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member) if _is_picture(member.name) else None
            if file is not None:
                yield member.name, file.read(), member.offset_data


# -- arrays --------------------------------------------------------------------------------------------------------


def arrays_in(path: Path) -> list[str]:
    """The names of the arrays in an .npz file. Raises DisaError for any other file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise DisaError(f"{named(path)} is not an .npz file: expected one in ADM's form, with {ARRAY}.") from error


def array_in(path: Path, name: str) -> np.ndarray:
    """A small array of an .npz file. Raises DisaError."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return np.asarray(stored[name])
    except UNREADABLE as error:
        raise DisaError(f"{named(path)} cannot be read: its array {name} is damaged or holds objects.") from error


def _of_array(path: Path) -> Images:
    """Nothing but the images that are asked for is in memory: such a file may have 10 GB."""
    names = arrays_in(path)
    if ARRAY not in names:
        raise DisaError(f"{named(path)} holds no images: expected {ARRAY}, found {', '.join(names) or 'nothing'}.")
    try:
        shape, start = _header(path)
    except (*UNREADABLE, NotImplementedError) as error:
        raise DisaError(f"{named(path)} cannot be read: its array {ARRAY} is damaged.") from error
    count, height, width, channels = shape
    labels = _labels(array_in(path, LABELS), count, path) if LABELS in names else [None] * count
    digest, read = hash_file(path), _reader(path, start, height * width * channels)
    entries = [Entry(f"image {i}", f"{digest}:{i}", (height, width), label=labels[i]) for i in range(count)]
    return Images(str(path), entries, lambda i: np.frombuffer(read(i), dtype=np.uint8).reshape(height, width, channels))


def _header(path: Path) -> tuple[tuple[int, int, int, int], int]:
    """The shape of the images, and where they begin. Raises DisaError for other arrays."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{ARRAY}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)  # pyright: ignore[reportArgumentType]
        start, length = file.tell(), archive.getinfo(f"{ARRAY}.npy").file_size
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran or 0 in shape:
        advice = " Give (images * 255).round().astype('uint8')." if dtype.kind == "f" else ""
        raise DisaError(
            f"{ARRAY} of {named(path)} must be images of uint8 [N, height, width, 3], found {dtype} "
            f"{list(shape)}.{advice}"
        )
    if math.prod(shape) != length - start:
        raise ValueError("it is cut off")
    return (shape[0], shape[1], shape[2], shape[3]), start


def _labels(found: np.ndarray, count: int, path: Path) -> list[int]:
    if found.shape != (count,) or found.dtype.kind not in "iu":
        raise DisaError(
            f"{LABELS} of {named(path)} must be a class for each of {counted(count, 'image')}, "
            f"found {found.dtype} {list(found.shape)}."
        )
    return found.tolist()


def _reader(path: Path, start: int, length: int) -> Callable[[int], bytes]:
    """The bytes of an image by its index. The file stays open: a compressed one is then read once, not from its
    beginning for each image."""
    opened: list[IO[bytes]] = []

    def read(i: int) -> bytes:
        try:
            if not opened:
                opened.append(zipfile.ZipFile(path).open(f"{ARRAY}.npy"))  # noqa: SIM115  (it stays open)
            opened[0].seek(start + i * length)
            content = opened[0].read(length)
        except UNREADABLE as error:
            raise DisaError(f"{named(path)} cannot be read: image {i} is damaged.") from error
        if len(content) != length:
            raise DisaError(f"{named(path)} ends within image {i}: get it again.")
        return content

    return read


def _digits() -> Images:
    from disa.tiny.data import digits

    images, labels = digits("all")
    pixels = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    entries = [
        Entry(f"digit {i}", sha256(image.tobytes()).hexdigest(), image.shape[:2], label=label)
        for i, (image, label) in enumerate(zip(pixels, labels.tolist(), strict=True))
    ]
    return Images(DIGITS, entries, lambda i: pixels[i])
