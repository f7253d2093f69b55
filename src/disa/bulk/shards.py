"""One shard or part of a run: a tar of PNG files, and beside it a manifest that tells what is in it.

    000012.tar     000012000.png, 000012001.png, ...    in the order of their ids
    000012.json    the digest of the run, and of each image its id, seed, label or prompt, and the SHA-256 of its file

The tar is written first and the manifest second, each whole or not at all. So what has a manifest is there, and a tar
without one is what an interruption has left. Nothing in either depends on when, where or in which order images were
drawn: runs of one job end in equal files.
"""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from disa.errors import DisaError
from disa.files import write_whole
from disa.reading import json_in

SHARDS, PARTS = "shards", "parts"
"""Folders of a run."""
LONGEST_MANIFEST = 1 << 28
OURS = re.compile(r"\d{6,}(-\d{9,})?\.(tar|json)", re.ASCII)
"""Names of shards, which are their numbers, and of parts, which end in their first id."""


@dataclass(frozen=True)
class Entry:
    """What a manifest tells of an image."""

    id: int
    seed: int
    sha256: str
    """Of its PNG file."""
    label: int | None = None
    prompt: str | None = None
    rewritten: str | None = None
    """What was drawn for the prompt, where prompts are rewritten."""

    @property
    def name(self) -> str:
        return f"{self.id:09d}.png"

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def is_of(self, content: bytes) -> bool:
        """Whether these are the bytes of its file."""
        return sha256(content).hexdigest() == self.sha256


@dataclass(frozen=True)
class Manifest:
    digest: str
    entries: list[Entry]
    """In the order of their ids."""

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Raises ValueError, which says in a few words what is wrong."""
        found = json_in(path, LONGEST_MANIFEST)
        try:
            return cls(str(found["digest"]), [Entry(**image) for image in found["images"]])
        except (KeyError, TypeError) as error:
            raise ValueError("it is no manifest of disa") from error


@dataclass(frozen=True)
class Container:
    """A shard or a part, by the folder that it is in and its name."""

    folder: Path
    name: str

    @property
    def tar(self) -> Path:
        return self.folder / f"{self.name}.tar"

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.name}.json"

    def write(self, digest: str, entries: Sequence[Entry], contents: Iterable[bytes]) -> None:
        """entries, contents: of the same images, in the order of their ids. Raises DisaError."""
        write_whole(self.tar, lambda file: _write_tar(file, entries, contents))
        told = json.dumps({"digest": digest, "images": [entry.to_json() for entry in entries]})
        write_whole(self.manifest, lambda file: file.write(told.encode() + b"\n"))

    def remove(self) -> None:
        """The manifest first: without it a tar is nothing."""
        self.manifest.unlink(missing_ok=True)
        self.tar.unlink(missing_ok=True)

    def entries(self) -> list[Entry]:
        """Raises DisaError where its manifest cannot be read."""
        try:
            return Manifest.read(self.manifest).entries
        except ValueError as error:
            raise damaged(self.manifest, str(error)) from error

    def contents(self) -> Iterator[tuple[str, bytes]]:
        """The names and bytes of its files, one after the other. Raises DisaError where the tar cannot be read."""
        try:
            with tarfile.open(self.tar, "r:") as tar:
                for member in tar:
                    yield member.name, _bytes(tar, member)
        except (tarfile.TarError, OSError, EOFError) as error:
            raise damaged(self.tar, str(error)) from error

    def read(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """The bytes of these of its images. Raises DisaError where they cannot be read or have another hash."""
        try:
            with tarfile.open(self.tar, "r:") as tar:
                members = {member.name: member for member in tar.getmembers()}
                for entry in entries:
                    if (member := members.get(entry.name)) is None:
                        raise tarfile.ReadError(f"{entry.name} is not in it")
                    if not entry.is_of(content := _bytes(tar, member)):
                        raise tarfile.ReadError(f"{entry.name} is not what the manifest says")
                    yield content
        except (tarfile.TarError, OSError, EOFError) as error:
            raise damaged(self.tar, str(error)) from error


def damaged(path: Path, reason: str) -> DisaError:
    return DisaError(f"{path} cannot be read ({reason}): remove it, and its images are drawn again by --resume.")


def joined(containers: Iterable[Container]) -> tuple[list[Entry], Iterator[bytes]]:
    """The images of several parts in the order of their ids, each id once; their files are read one at a time. Raises
    DisaError, also where a file is not what its manifest says."""
    found = {entry.id: (entry, container) for container in containers for entry in container.entries()}
    ordered = [found[i] for i in sorted(found)]

    def contents() -> Iterator[bytes]:
        # One tar is open at a time: a shard may have a part for each of its images.
        for container, images in groupby(ordered, key=lambda pair: pair[1]):
            yield from container.read([entry for entry, _ in images])

    return [entry for entry, _ in ordered], contents()


def containers_in(folder: Path) -> dict[str, Container]:
    """What is whole in a folder, by name: a tar with its manifest."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    stems = sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and OURS.fullmatch(name))
    return {stem: Container(folder, stem) for stem in stems if f"{stem}.tar" in names}


def clear_halves(folder: Path) -> None:
    """Remove what has a tar or a manifest alone: an interruption has left it, or someone has removed the other."""
    whole = containers_in(folder)
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.stem not in whole:
            with suppress(FileNotFoundError):
                path.unlink()


def _write_tar(file: IO[bytes], entries: Sequence[Entry], contents: Iterable[bytes]) -> None:
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for entry, content in zip(entries, contents, strict=True):
            add_file(tar, entry.name, content)


def add_file(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """A file without a time or an owner, so that equal contents are equal tars."""
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, BytesIO(content))


def _bytes(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise tarfile.ReadError(f"{member.name} is no file")
    content = file.read()
    if len(content) != member.size:
        raise EOFError(f"{member.name} is cut off")
    return content
