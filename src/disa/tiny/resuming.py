"""One training per folder: what goes on with it, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from disa import values
from disa.errors import DisaError
from disa.stopping import Stopped
from disa.values import counted, shown


def command(name: str, folder: Path, **options: Any) -> str:
    """The command that goes on with a training in a folder; options that are None or 0 are left out."""
    given = [part for flag, value in options.items() if value for part in (f"--{flag}", str(value))]
    return values.command("disa", "train", name, *given, "--out", folder)


def check_same(found: Mapping[str, Any], asked: Mapping[str, Any], path: Path, again: str) -> None:
    """Refuse what was made with other options. Those that `path` does not tell, as an earlier version wrote it, may be
    anything. again: what goes on with it. Raises DisaError."""
    for key in asked:
        if key in found and found[key] != asked[key]:
            differs = f"{key} is {shown(found[key])} there, {shown(asked[key])} here"
            what = "it has another autoencoder" if key == "autoencoder" else differs
            raise DisaError(
                f"{path} is of another training: {what}. Choose another folder, begin anew (--restart), or go on with "
                f"that one: {again}"
            )


def stopped(done: int, total: int, again: str, signum: int) -> Stopped:
    """What to raise when a training was asked to stop, and its state is written."""
    return Stopped(f"stopped after {done} of {counted(total, 'iteration')}, which are kept. Go on: {again}", signum)
