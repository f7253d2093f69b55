"""A model and the thread that draws with it: orders that fit together become one batch.

An image depends on its seed and its request alone, so nobody can tell from a picture with which others it was drawn.
The thread takes the oldest order, and with it all others that are drawn by the same settings and still fit in the
batch. Between two AR steps it looks whether anybody still waits for the batch.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any

from disa.draw.folder import about_image, identities, image_file
from disa.draw.inputs import Inputs
from disa.draw.pictures import png, to_image
from disa.draw.preview import drawn_so_far
from disa.draw.room import NoRoom
from disa.draw.run import Turn
from disa.draw.sampler import Sampler
from disa.draw.samples import Samples
from disa.draw.settings import Settings, digest
from disa.errors import DisaError
from disa.runtime.memory import ran_out
from disa.serve.orders import Drawn, Event, Failed, Order, Preview
from disa.values import first_line

UNREAD = 2
"""Events of an order that wait to be read: with more of them, previews are left out."""
NO_ROOM = "there is no room for it now ({}): try again later, or ask for fewer or smaller images."
CLOSED = "the server ended before it was drawn."
LOG = logging.getLogger("disa.serve")


@dataclass
class _Share:
    """What was drawn of an order so far."""

    pictures: dict[int, bytes] = field(default_factory=dict)
    rewritten: dict[int, str] = field(default_factory=dict)
    evaluations: float = 0.0
    seconds: float = 0.0
    together: int = 0

    def drawn(self, count: int) -> Drawn:
        words = [self.rewritten[i] for i in range(count)] if self.rewritten else None
        pictures = [self.pictures[i] for i in range(count)]
        return Drawn(pictures, round(self.evaluations), self.seconds, self.together, words)


@dataclass(eq=False)
class _Task:
    """An order, and who waits for it."""

    order: Order
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    gone: bool = False
    """Whether nobody waits any more."""
    share: _Share = field(default_factory=_Share)

    def tell(self, event: Event) -> None:
        if self.gone or (isinstance(event, Preview) and self.events.qsize() >= UNREAD):
            return
        with suppress(RuntimeError):  # the loop may have ended meanwhile
            self.loop.call_soon_threadsafe(self.events.put_nowait, event)


class Drawer:
    """Draws orders one batch after the other, in a thread of its own."""

    def __init__(self, sampler: Sampler, base: Settings | None = None) -> None:
        """base: the options that hold where a request says nothing; its batch size is the most images of a batch."""
        self.sampler, self.base = sampler, base or Settings()
        self.batch_size: int = sampler.settings(self.base).batch_size
        self._waiting, self._changed, self._closed = deque[_Task](), Condition(), False
        self._thread = Thread(target=self._work, name="disa-drawer", daemon=True)
        self._thread.start()

    async def draw(self, order: Order) -> AsyncGenerator[Event, None]:
        """What happens to an order, to its end. Whoever closes this iterator gives the order up."""
        task = _Task(order, asyncio.get_running_loop())
        with self._changed:
            if self._closed:
                yield Failed(CLOSED)
                return
            self._waiting.append(task)
            self._changed.notify()
        try:
            while True:
                yield (event := await task.events.get())
                if not isinstance(event, Preview):
                    return
        finally:
            task.gone = True

    def close(self) -> None:
        """Give all orders up and end the thread, within an AR step."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()
        for task in self._waiting:
            task.tell(Failed(CLOSED))

    # -- in the thread -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while tasks := self._next():
            self._try(tasks)

    def _next(self) -> list[_Task]:
        """The orders of the next batch, when there are some; none when all is over."""
        with self._changed:
            while True:
                self._waiting = deque(task for task in self._waiting if not task.gone)
                if self._closed or self._waiting:
                    break
                self._changed.wait()
            return [] if self._closed else self._fitting()

    def _fitting(self) -> list[_Task]:
        """The oldest order, and those behind it that fit in its batch; they wait no longer."""
        first = self._waiting[0]
        chosen, free = [first], self.batch_size - len(first.order)
        for task in list(self._waiting)[1:]:
            if task.order.together == first.order.together and len(task.order) <= free:
                chosen.append(task)
                free -= len(task.order)
        for task in chosen:
            self._waiting.remove(task)
        return chosen

    def _try(self, tasks: list[_Task]) -> None:
        """Draw orders together; where that fails, each alone, so that one does not spoil the others."""
        try:
            _Batch(self, tasks).draw(lambda: self._closed)
            return
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].tell(_failed(error, tasks[0].order))
                return
        for task in tasks:  # nothing holds the batch that failed, and its memory, any more
            self._try([task])


class _Batch:
    """Orders that are drawn together."""

    def __init__(self, drawer: Drawer, tasks: list[_Task]) -> None:
        """Raises DisaError where they cannot be drawn."""
        self.sampler, self.tasks = drawer.sampler, tasks
        self.inputs = joined([task.order.inputs for task in tasks])
        self.owners = [(task, place) for task in tasks for place in range(len(task.order))]
        for task in tasks:
            task.share = _Share()
        settings = Settings.of(drawer.base, **tasks[0].order.options | {"batch_size": drawer.batch_size})
        self.run = drawer.sampler.start(self.inputs, settings)
        self.about = self.run.about()
        self.identities = identities(digest(self.about), self.inputs)

    def draw(self, ended: Callable[[], bool]) -> None:
        """To the end, or until nobody waits for it. ended: whether all is over."""
        for turn in self.run:
            if ended():
                for task in self.tasks:
                    task.tell(Failed(CLOSED))
            if ended() or all(task.gone for task in self.tasks):
                return
            self._show(turn)
            if turn.samples is not None:
                self._keep(turn.samples)
        for task in self.tasks:
            task.tell(task.share.drawn(len(task.order)))

    def _show(self, turn: Turn) -> None:
        """Tell those who asked for it what is drawn so far."""
        owners = [self.owners[i] for i in turn.batch]
        watched = [
            row for row, (task, _) in enumerate(owners) if turn.step.ar_step in task.order.previews and not task.gone
        ]
        if not watched:
            return
        found = dict[_Task, dict[int, bytes]]()
        images = drawn_so_far(self.sampler, turn.step.state, watched).cpu()
        for row, image in zip(watched, images, strict=True):
            task, place = owners[row]
            found.setdefault(task, {})[place] = png(to_image(image))
        for task, pictures in found.items():
            task.tell(Preview(pictures, turn.step.ar_step))

    def _keep(self, samples: Samples) -> None:
        """The pictures of a finished batch, and each order's share of what they took."""
        words = samples.rewritten or [None] * len(samples)
        for i, image, rewritten in zip(samples.places, samples.images, words, strict=True):
            task, place = self.owners[i]
            told = about_image(self.inputs, i, self.identities[i], self.about, rewritten)
            task.share.pictures[place] = image_file(image, told)
            task.share.evaluations += samples.evaluations / len(samples)
            task.share.together = max(task.share.together, len(samples))
            if rewritten is not None:
                task.share.rewritten[place] = rewritten
        for task in dict.fromkeys(self.owners[i][0] for i in samples.places):
            task.share.seconds += samples.seconds


def _failed(error: Exception, order: Order) -> Failed:
    """What is told of an order that could not be drawn."""
    ended = error.__cause__
    if isinstance(error, NoRoom):
        return Failed(NO_ROOM.format(error.found), 503)
    if ended is not None and ran_out(ended):
        return Failed(NO_ROOM.format(first_line(ended)), 503)
    if isinstance(error, DisaError):
        # Without options of its own a request asks for what the server itself chose.
        return Failed(str(error), 400 if order.options else 500)
    LOG.error("an order could not be drawn", exc_info=error)
    return Failed(f"drawing failed ({type(error).__name__}: {first_line(error)}).")


def joined(parts: list[Inputs]) -> Inputs:
    """Inputs of one sort, labels or prompts or neither, one after the other."""
    first = parts[0]

    def of(name: str) -> Any:
        return None if getattr(first, name) is None else [value for part in parts for value in getattr(part, name)]

    return Inputs(of("seeds"), of("labels"), of("prompts"), first.negative_prompt)
