"""How far a work is: a bar in a notebook or on a terminal, elsewhere a line on standard error every few seconds.

What is said first is how long the whole takes: extrapolated from the first turns, once there are some.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from importlib import import_module
from itertools import accumulate
from typing import Any, Protocol

SECONDS_BETWEEN_LINES = 5.0
SECONDS_BETWEEN_BARS = 0.1


class Advance(Protocol):
    """One more turn is done, or so many of all. note: what else is told of it."""

    def __call__(self, completed: int | None = None, note: str = "") -> None: ...


@contextlib.contextmanager
def progress(title: str, work: int | Sequence[float]) -> Iterator[Advance]:
    """Tell how far a work is. work: the number of its turns; or of each what it costs, beside the others."""
    clock = Clock(range(work + 1) if isinstance(work, int) else [0.0, *accumulate(work)])
    if (display := _of_notebook()) is not None:
        way = _notebook(title, clock, display)
    else:
        way = _bar(title, clock) if sys.stderr.isatty() else _lines(title, clock)
    with way as show:

        def advance(completed: int | None = None, note: str = "") -> None:
            clock.turn(completed)
            show(note)

        yield advance


@dataclass
class Clock:
    """The time that a work takes. It starts with the first turn that is done: that one also pays for what is read and
    prepared, and an earlier run may have done those before it."""

    spent: Sequence[float]
    """After so many turns, from 0 on."""
    done: int = 0
    first: int = 0
    started: float | None = None

    @property
    def total(self) -> int:
        return len(self.spent) - 1

    def turn(self, completed: int | None) -> None:
        """One more is done, or so many of all."""
        self.done = min(self.total, self.done + 1 if completed is None else completed)
        if self.started is None:
            self.started, self.first = time.monotonic(), self.done

    @property
    def left(self) -> float | None:
        """Seconds that are left; None where that cannot be told yet."""
        spent = self.spent[self.done] - self.spent[self.first]
        if self.started is None or spent <= 0:
            return None
        return (time.monotonic() - self.started) / spent * (self.spent[-1] - self.spent[self.done])


def spoken(seconds: float) -> str:
    """About how long: `20 seconds`, `3 minutes`, `2 hours`."""
    for size, name in ((3600.0, "hour"), (60.0, "minute")):
        if seconds >= 1.5 * size:
            return f"{round(seconds / size)} {name}s"
    return f"{max(1, round(seconds))} second{'' if round(seconds) <= 1 else 's'}"


@contextlib.contextmanager
def _lines(title: str, clock: Clock) -> Iterator[Callable[[str], None]]:
    last, said = time.monotonic(), False

    def show(note: str) -> None:
        nonlocal last, said
        now, left = time.monotonic(), clock.left
        soon = SECONDS_BETWEEN_LINES if said or (left or 0.0) < SECONDS_BETWEEN_LINES else 0.0
        if clock.done == clock.total or now - last < soon:
            return
        last, said = now, True
        told = [f"{clock.done} of {clock.total}", note, _told(left)]
        # Nobody may be listening, or the disk be full: the work goes on.
        with contextlib.suppress(OSError, ValueError):
            print(f"{title}: {', '.join(part for part in told if part)}", file=sys.stderr, flush=True)

    yield show


def _told(left: float | None) -> str:
    return "" if left is None else f"about {spoken(left)} left"


def _of_notebook() -> Any:
    """What shows something below the cell of a notebook that runs this; None elsewhere."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return None if getattr(shell, "kernel", None) is None else import_module("IPython.display").display


@contextlib.contextmanager
def _notebook(title: str, clock: Clock, display: Any) -> Iterator[Callable[[str], None]]:
    """Plain HTML, which every program for notebooks shows; it is gone at the end."""
    shown, last = display({"text/html": "", "text/plain": ""}, raw=True, display_id=True), 0.0

    def show(note: str) -> None:
        nonlocal last
        if (now := time.monotonic()) - last < SECONDS_BETWEEN_BARS and clock.done < clock.total:
            return
        last, left = now, _told(clock.left) if clock.done < clock.total else ""
        told = ", ".join(part for part in (f"{clock.done} of {clock.total}", note, left) if part)
        bar = f'<progress value="{clock.done}" max="{clock.total}"></progress>'
        content = {"text/html": f"{escape(title)} {bar} {escape(told)}", "text/plain": f"{title}: {told}"}
        shown.update(content, raw=True)

    try:
        yield show
    finally:
        shown.update({"text/html": "", "text/plain": ""}, raw=True)


@contextlib.contextmanager
def _bar(title: str, clock: Clock) -> Iterator[Callable[[str], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[told]}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=clock.total, told="")

        def show(note: str) -> None:
            told = [note, _told(clock.left)]
            bar.update(task, completed=clock.done, told=", ".join(part for part in told if part))

        yield show
