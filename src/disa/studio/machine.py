"""The one thread that computes: what visitors ask for takes turns in it, AR step by AR step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

T = TypeVar("T")


class Machine:
    """Pieces of work, in the order in which they came: whoever asks for the next AR step waits for those of others.

    As each piece is alone, what it takes is its own time, however many visitors there are.
    """

    def __init__(self) -> None:
        self._waiting = SimpleQueue[tuple[Callable[[], Any], Future[Any]]]()
        Thread(target=self._work, name="disa-studio", daemon=True).start()

    def do(self, work: Callable[[], T]) -> T:
        """Wait for a piece of work, and return or raise what it does."""
        future = Future[T]()
        self._waiting.put((work, future))
        return future.result()

    def breathe(self) -> None:
        """Within a long piece of work: let those who wait have a turn."""
        for _ in range(self._waiting.qsize()):
            self._next()

    def _work(self) -> None:
        while True:
            self._next()

    def _next(self) -> None:
        work, future = self._waiting.get()
        try:
            found = work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(found)
