"""The kind of a file, told by what is in it: its name says nothing.

| what it is | what happens |
|---|---|
| .safetensors, under any name | read |
| what torch.save wrote, zipped or of the older form, under any name | read |
| an index of shards (JSON with a weight_map) | its shards are read |
| a pointer of Git LFS, git-xet, git-annex or DVC | refused: how to get the file that it stands for |
| a web page, an answer of a server, another text | refused: what it begins with |
| packed by gzip, zip, tar and others | refused: unpack it |
| ONNX, GGUF, HDF5, NumPy, TensorFlow, TorchScript, a picture | refused by name: what is needed instead |
| empty, only zeros, unknown | refused: get it again |
| a named pipe, a socket, a device | refused without being opened |
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from disa.errors import DisaError
from disa.values import counted, did_you_mean, shown

SAFETENSORS, ZIPPED, LEGACY, INDEX = "safetensors", "zipped", "legacy", "index"
BEGINNING, LONGEST_INDEX, MOST_NEIGHBOURS = 1024, 25_000_000, 1000
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
EXPECTED = "Expected a .safetensors file or a PyTorch checkpoint (.pth, .pt, .bin, .ckpt)"

PACKED = {
    b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!\x1a\x07": "rar", b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip
OTHERS = {
    b"GGUF": "a GGUF file", b"ggml": "a GGML file", b"lmgg": "a GGML file", b"\x89HDF\r\n": "an HDF5 file of Keras",
    b"\x93NUMPY": "a NumPy array", b"\x89PNG": "a picture", b"\xff\xd8\xff": "a picture", b"GIF8": "a picture",
    b"%PDF": "a PDF document", b"\x7fELF": "a program", b"MZ": "a program", b"SQLite format 3": "a database",
}  # fmt: skip
POINTERS = {
    b"version https://git-lfs": ("a pointer of Git LFS", "run `git lfs pull`"),
    b"# xet version": ("a pointer of git-xet", "install git-xet and run `git xet checkout`"),
    b"/annex/objects": ("a pointer of git-annex", "run `git annex get`"),
    b"outs:\n": ("a pointer of DVC", "run `dvc pull`"),
}
WEB = ("<!doctype", "<html", "<head", "<body", "<?xml", "<!--", "<script")
ONNX = {bytes([8, version]) for version in range(3, 20)}
"""Every ONNX file begins with the version of its format."""
NO_FILES = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
# The number that the older form begins with; newer pickles say before it how long they are.
_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."


def kind_of(path: Path) -> str:
    """One of the kinds that are read. Raises DisaError, which names any other kind and what to do."""
    begins, size = _beginning(path)
    if begins[:4] == b"PK\3\4":
        return ZIPPED
    if begins[:1] == b"\x80" and _MAGIC in (begins[2 : 2 + len(_MAGIC)], begins[11 : 11 + len(_MAGIC)]):
        return LEGACY
    # The length of the header; any text would be a far longer one.
    if begins[8:9] == b"{" and int.from_bytes(begins[:8], "little") < 1 << 48:
        return SAFETENSORS
    text = _text_of(begins)
    if text.startswith("{") and size <= LONGEST_INDEX and b'"weight_map"' in path.read_bytes():
        return INDEX
    raise DisaError(f"{path} {_about(begins, size, text)}")


def about_archive(entries: Iterable[str]) -> str:
    """What a zip file is that torch.save did not write, and what to do."""
    names = [name for name in entries if not name.endswith("/")]
    endings = {name.rpartition(".")[2] for name in names}
    if any(f"/{name}".endswith("/constants.pkl") for name in names):
        return "it is a TorchScript program, which is code: save its state_dict() by torch.save"
    if names and endings <= {"npy"}:
        return "it holds NumPy arrays (.npz): save a state dict of tensors by torch.save"
    inside = sorted(name for name in names if name.endswith(ENDINGS))
    if inside:
        return f"it is a zip archive that holds {shown(inside[0])}: unpack it"
    return f"it is a zip archive of something else ({counted(len(names), 'file')})"


def _beginning(path: Path) -> tuple[bytes, int]:
    """The first bytes of a file that can be read at any place, and its size. Raises DisaError."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            kind = next((name for is_it, name in NO_FILES if is_it(about.st_mode)), "no file")
            raise DisaError(f"{path} is {kind}. {EXPECTED}.")
        with path.open("rb") as file:
            return file.read(BEGINNING), about.st_size
    except FileNotFoundError as error:
        raise DisaError(f"no checkpoint at {path}: {_nearest(path)}") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise DisaError(f"{shown(str(path))} cannot be read: {reason or error}.") from error


def _nearest(path: Path) -> str:
    if path.is_symlink():
        return f"it is a link to {shown(str(path.readlink()))}, which is not there. Get the file that it stands for."
    near = did_you_mean(path.name, (other.name for other in _files_beside(path)))
    return f"expected a .safetensors, .pth or .ckpt file.{near}"


def _files_beside(path: Path) -> list[Path]:
    try:
        return list(islice(path.parent.iterdir(), MOST_NEIGHBOURS))
    except OSError:
        return []


def _text_of(begins: bytes) -> str:
    """The beginning of a text without the space before it; empty where it is no text."""
    try:
        text = begins.decode("utf-8-sig", "strict" if len(begins) < BEGINNING else "ignore").lstrip()
    except UnicodeDecodeError:
        return ""
    return text if all(letter.isprintable() or letter.isspace() for letter in text) else ""


def _about(begins: bytes, size: int, text: str) -> str:
    """What a file is that is not read, and what to do: the rest of a sentence that its path begins."""
    for start, (pointer, act) in POINTERS.items():
        if start in begins[:BEGINNING].split(b"\n")[0] + b"\n":
            return f"is {pointer}, not the file that it stands for: {act} in its folder."
    for start, packed in PACKED.items():
        if begins.startswith(start):
            return f"is packed by {packed}: unpack it first. {EXPECTED}."
    for start, other in OTHERS.items():
        if begins.startswith(start):
            return f"is {other}. {EXPECTED}."
    if begins[257:262] == b"ustar":
        return f"is a tar archive: unpack it with `tar -xf`. {EXPECTED}."
    if begins[4:8] == b"TFL3" or (begins[:1] == b"\x08" and b"onnx" in begins.lower()) or begins[:2] in ONNX:
        return f"is a model of ONNX or TensorFlow. {EXPECTED}."
    if begins[:1] == b"\x80" and begins[1:2] <= b"\5":
        return f"is a pickle that torch.save did not write: save it by torch.save. {EXPECTED}."
    if not size:
        return "is empty. Get it again."
    if text:
        return _about_text(text)
    if not begins.strip(b"\0"):
        return "begins with nothing but zeros: it was not got to its end. Get it again."
    return f"is damaged, cut off or of an unknown kind. {EXPECTED}. Get it again."


def _about_text(text: str) -> str:
    if text.lower().startswith(WEB):
        return "is a web page, not weights: the link leads to a page or needs a log-in. Get the file itself."
    what = "JSON" if text[0] in "{[" else "a text"
    return f"is {what}, not weights: it begins with {shown(text.splitlines()[0][:60])}. {EXPECTED}."
