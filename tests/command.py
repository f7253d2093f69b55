"""A command of `disa` as a test sees it: what it returned and printed, and the files it left."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Done:
    """What one command returned and printed."""

    code: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        assert (self.code, self.err) == (0, "")
        assert self.out.count("\n") == 1
        return json.loads(self.out)


def without_progress(err: str) -> str:
    """Standard error without the lines that tell how far a work is, which come where a machine is slow."""
    return re.sub(r"^(drawing|measuring): \d+ of .*\n", "", err, flags=re.MULTILINE)


Command = Callable[..., Done]


def complaint(done: Done) -> str:
    """The one line that a refused command says; nothing on standard output."""
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("disa: ")
    assert done.err.count("\n") == 1
    assert len(done.err) < 500
    return done.err


def files(folder: Path) -> list[str]:
    """Every file below `folder`, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def only_whole(folder: Path) -> list[str]:
    """The files below `folder`, all of which can be read to their end."""
    names = files(folder)
    assert not [name for name in names if Path(name).name.startswith(".")]
    for name in names:
        if name.endswith(".png"):
            with Image.open(folder / name) as image:
                image.load()
        else:
            json.loads((folder / name).read_text())
    return names
