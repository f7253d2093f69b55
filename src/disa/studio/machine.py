"""One thread that computes at a time: what visitors ask for takes turns, AR step by AR step."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Event, Thread
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

    def do_in_turns(self, work: Callable[[Callable[[], None]], T]) -> T:
        """Work that cannot return between its turns, in the thread that calls. It is given what ends a turn, and waits
        for the next one while those who asked before have theirs."""
        begun, over = self._lend()

        def next_turn() -> None:
            nonlocal begun, over
            ended = over
            begun, over = self._lend()
            ended.set()
            begun.wait()

        begun.wait()
        try:
            return work(next_turn)
        finally:
            over.set()

    def _lend(self) -> tuple[Event, Event]:
        """Ask for a turn of the calling thread: it has begun once the first event is set, and ends with the second."""
        begun, over = Event(), Event()

        def lent() -> None:
            begun.set()
            over.wait()

        self._waiting.put((lent, Future()))
        return begun, over

    def _work(self) -> None:
        while True:
            work, future = self._waiting.get()
            try:
                found = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(found)
