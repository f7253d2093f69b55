"""What the studio keeps of each browser tab, as long as it is open: its pictures, and what it does just now."""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from threading import Event, Lock
from typing import Any

MOST_VISITORS, MOST_PICTURES = 64, 100


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn picture."""

    name: str
    """Of its file."""
    content: bytes
    """PNG with everything that it was drawn from."""
    caption: str
    model: str
    latents: Any
    """[1, C, H, W]."""


@dataclass(eq=False)
class Visitor:
    """A browser tab."""

    pictures: deque[Picture] = field(default_factory=lambda: deque(maxlen=MOST_PICTURES))
    """The last ones drawn, oldest first."""
    under_way: dict[str, Event] = field(default_factory=dict)
    """What is done for it, by name; an event that is set ends it."""
    edited: Any = None
    """The picture on the easel."""
    compared: Any = None
    """What was compared last."""
    gone: bool = False

    def begin(self, what: str) -> Event:
        """What ends this piece of work; another one of its name ends now. To be called before anything is waited for:
        what is to stop, or whose visitor leaves, before it began would be done for nobody."""
        self.stop(what)
        self.under_way[what] = event = Event()
        if self.gone:  # looked at last, as whoever leaves looks last at what is under way
            self.stop(what)
        return event

    def stop(self, what: str) -> None:
        """End a piece of work, if there is one."""
        if (event := self.under_way.pop(what, None)) is not None:
            event.set()

    def leave(self) -> None:
        """End everything, and whatever begins later."""
        self.gone = True
        for what in list(self.under_way):
            self.stop(what)


class Visitors:
    """All of them, by the name that gradio has for a tab. Of too many, those who were not seen for longest go."""

    def __init__(self) -> None:
        self._known, self._lock = OrderedDict[str, Visitor](), Lock()

    def __len__(self) -> int:
        return len(self._known)

    def visitor(self, name: str) -> Visitor:
        """That of a tab."""
        with self._lock:
            found = self._known.setdefault(name, Visitor())
            self._known.move_to_end(name)
            gone = [self._known.popitem(last=False)[1] for _ in range(len(self._known) - MOST_VISITORS)]
        for visitor in gone:
            visitor.leave()
        return found

    def leave(self, name: str) -> None:
        """A tab was closed."""
        with self._lock:
            gone = self._known.pop(name, None)
        if gone is not None:
            gone.leave()
