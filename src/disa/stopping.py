"""Ctrl-C and SIGTERM: work ends in order, and says with one line how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPED = "stopped; only whole files were written."
INTERRUPTED = 128 + signal.SIGINT
"""What a process ends with after Ctrl-C, as a shell has it."""


class Stopped(BaseException):
    """Work was asked to end, and did. It is no Exception: nobody may take it for a mistake that can be passed over.

    The text says how to go on; `code` is what the process ends with, as a shell has it of this signal.
    """

    def __init__(self, text: str, signum: int) -> None:
        super().__init__(text)
        self.code = 128 + signum


@dataclass
class Stop:
    """Whether someone wants the work to end."""

    signum: int = 0
    """0, or the signal that came."""


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM raises `Stopped`, as Ctrl-C raises KeyboardInterrupt: files are closed and cleared on the way out."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(STOPPED, signum)

    with _handled({signal.SIGTERM: stop}):
        yield


@contextmanager
def stop_later() -> Iterator[Stop]:
    """The first Ctrl-C or SIGTERM only sets `signum`, for whoever must not be stopped in the middle; the second one is
    as it was before."""
    stop = Stop()

    def note(signum: int, frame: FrameType | None) -> None:
        stop.signum = signum
        for each, handler in before.items():
            signal.signal(each, handler)

    with _handled(dict.fromkeys(SIGNALS, note)) as before:
        yield stop


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Whatever handlers a library sets within, those before are back afterwards."""
    in_main = threading.current_thread() is threading.main_thread()
    before = {each: signal.getsignal(each) for each in SIGNALS} if in_main else {}
    try:
        yield
    finally:
        for each, handler in before.items():
            if handler is not None:  # one that was not set by Python cannot be set again
                signal.signal(each, handler)


@contextmanager
def _handled(handlers: dict[signal.Signals, Any]) -> Iterator[dict[signal.Signals, Any]]:
    """Other handlers for a while; yields those before. What is ignored stays so, and threads have no signals."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # A handler that was not set by Python is None, and cannot be set again.
        before = {each: signal.getsignal(each) for each in handlers}
        before = {each: old for each, old in before.items() if old not in (None, signal.SIG_IGN)}
    try:
        for each in before:
            signal.signal(each, handlers[each])
        yield before
    finally:
        for each, old in before.items():
            signal.signal(each, old)
