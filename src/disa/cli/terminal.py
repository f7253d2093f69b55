"""Standard input, output and error as a user has them: closed, full, or unable to show a letter."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys

UNHEARD = 1
"""The exit code where all was done, but nobody could be told."""
UNPRINTED = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EDQUOT)


def prepare() -> None:
    """Letters that standard output cannot show are replaced; what is closed goes nowhere, and not into a file that is
    opened later and gets its number."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def plain(text: str) -> str:
    """A text on one line, without what a terminal would obey instead of showing it."""
    line = " ".join(text.split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def say(text: str) -> None:
    """One line on standard error, if anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(plain(text), file=sys.stderr, flush=True)


def is_of_output(error: OSError) -> bool:
    """Whether printing failed: files have names."""
    return error.filename is None and error.errno in UNPRINTED


def finish(code: int) -> int:
    """Print what is still to be printed; the exit code, which is another one where that fails."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return code or unheard(error)
    return code


def unheard(error: OSError) -> int:
    """Nobody can be told what was done; the exit code. Whoever closed a pipe knows that."""
    if error.errno != errno.EPIPE:
        say(f"disa: nothing can be printed here: {error.strerror}. Files that were written are whole.")
    # Python flushes standard output once more at its end: into nothing.
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return UNHEARD
