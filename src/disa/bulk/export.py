"""A whole run in the forms that others read. Each is written under a temporary name and appears at once, or not at all.

| form | what is written | who reads it |
|---|---|---|
| `adm` | one .npz: `arr_0`, uint8 [N, height, width, 3] | ADM's evaluator and its kin |
| `png` | a folder of N PNG files and nothing else | pytorch-fid, clean-fid, torch-fidelity |
| `geneval` | a folder for each prompt: samples/ and metadata.jsonl | GenEval's evaluator |
| `geneval2` | PNG files, and image_paths.json, which has the file of each prompt | GenEval 2's evaluator |
| `webdataset` | a folder of tars: PNG, class or prompt, and JSON of each image | webdataset |
"""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from disa.bulk.shards import Entry, add_file
from disa.bulk.store import Shards
from disa.draw.folder import Layout
from disa.errors import DisaError
from disa.files import make_folder, write_whole
from disa.values import counted, named, one_of

IMAGE_PATHS = "image_paths.json"
Images = Iterator[tuple[Entry, bytes]]


def export(run: Shards, form: str, target: Path) -> Path:
    """Write a whole run; returns the file or folder. Raises DisaError where images are missing or something is there
    already."""
    write = FORMS[one_of(form, FORMS, "form")]
    if missing := int((~run.there()).sum()):
        raise DisaError(f"{counted(missing, 'image')} of {run.folder} are missing: draw them with --resume first.")
    if target.suffix != ".npz" and form == "adm":
        target = target.with_name(f"{target.name}.npz")
    if os.path.lexists(target) and not (target.is_dir() and not any(target.iterdir())):
        raise DisaError(f"{named(target)} is there already: choose another name.")
    make_folder(target.parent)
    write(run, target)
    return target


def _adm(run: Shards, target: Path) -> None:
    """One image at a time goes into the file: NumPy's own format within an uncompressed zip."""
    images = run.images()
    _, first = next(images)
    shape = _rgb(first).shape

    def write(file: IO[bytes]) -> None:
        with (
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
            archive.open("arr_0.npy", "w", force_zip64=True) as array,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": (run.record.num_images, *shape)}
            np.lib.format.write_array_header_1_0(array, header)  # pyright: ignore[reportArgumentType]
            array.write(_rgb(first).tobytes())
            for entry, content in images:
                if (pixels := _rgb(content)).shape != shape:
                    raise DisaError(f"image {entry.id} has another size than the first: this form has one for all.")
                array.write(pixels.tobytes())

    write_whole(target, write)


def _png(run: Shards, target: Path) -> None:
    with _appearing(target) as folder:
        for entry, content in run.images():
            (folder / entry.name).write_bytes(content)


def _geneval(run: Shards, target: Path) -> None:
    layout = Layout.geneval(run.record.job.inputs, _entries(run))
    with _appearing(target) as folder:
        for name, text in layout.notes.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for entry, content in run.images():
            path = folder / layout.names[entry.id]
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)


def _geneval2(run: Shards, target: Path) -> None:
    prompts = [entry["prompt"] for entry in _entries(run)]
    if len(set(prompts)) != run.record.num_images:
        raise DisaError("GenEval 2 takes one image of each prompt: draw each once, without --per-prompt.")
    with _appearing(target) as folder:
        paths = dict[str, str]()
        for entry, content in run.images():
            (folder / entry.name).write_bytes(content)
            paths[entry.prompt or ""] = str(target.absolute() / entry.name)
        (folder / IMAGE_PATHS).write_text(json.dumps(paths, indent=1) + "\n")


def _webdataset(run: Shards, target: Path) -> None:
    images = run.images()
    with _appearing(target) as folder:
        for shard in range(run.num_shards):
            with tarfile.open(folder / f"{shard:06d}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
                for entry, content in islice(images, len(run.ids_of(shard))):
                    _add_sample(tar, entry, content)


def _add_sample(tar: tarfile.TarFile, entry: Entry, content: bytes) -> None:
    key = entry.name.removesuffix(".png")
    add_file(tar, entry.name, content)
    if entry.label is not None:
        add_file(tar, f"{key}.cls", str(entry.label).encode())
    if entry.prompt is not None:
        add_file(tar, f"{key}.txt", entry.prompt.encode())
    add_file(tar, f"{key}.json", json.dumps(entry.to_json()).encode())


FORMS: dict[str, Callable[[Shards, Path], None]] = {
    "adm": _adm,
    "png": _png,
    "geneval": _geneval,
    "geneval2": _geneval2,
    "webdataset": _webdataset,
}


def _entries(run: Shards) -> list[dict[str, object]]:
    """Every prompt of the run, with what its file says. Raises DisaError."""
    if not run.record.job.entries:
        raise DisaError(f"{run.folder} was drawn from labels: this form is for prompts.")
    return run.record.job.entries


def _rgb(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(content)).convert("RGB"))


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when all of it is there. Raises DisaError for a full disk."""
    folder = target.with_name(f".{target.name}.unfinished")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        yield folder
        os.replace(folder, target)
    except OSError as error:
        raise DisaError(f"could not write {named(target)}: {error.strerror or error}. Nothing was changed.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
