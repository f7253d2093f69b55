"""What the backbone computes, counted where its blocks run.

A block says what it runs over while it runs; `Work` listens between `with` and its end. Nothing is kept on a model. Who
replays what a block has done without running it, such as a captured graph, adds what was counted at its capture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from itertools import pairwise
from typing import Any


class Work:
    """Backbone tokens and operations, counted while it is entered; it may be entered again, and within another one,
    which counts them too."""

    def __init__(self) -> None:
        self.tokens = 0
        """Backbone tokens: one token of one row through one block. A block whose other tokens only feed keys and
        values runs over these, too."""
        self.operations = 0
        """Multiplications and additions of matrix products, as `torch.utils.flop_counter` counts them."""
        self._outer: list[Token[Work | None]] = []

    def add(self, tokens: int, operations: int) -> None:
        """Count, here and in those that this one was entered in."""
        self.tokens += tokens
        self.operations += operations
        if self._outer and isinstance(outer := self._outer[-1].old_value, Work):
            outer.add(tokens, operations)

    def __enter__(self) -> Work:
        self._outer.append(_LISTENING.set(self))
        return self

    def __exit__(self, *_: Any) -> None:
        _LISTENING.reset(self._outer.pop())


_LISTENING: ContextVar[Work | None] = ContextVar("work", default=None)


def ran(tokens: int, operations: int) -> None:
    """Say that a block ran over so many tokens, the rows counted, or that a layer beside the blocks ran (0 tokens)."""
    if (work := _LISTENING.get()) is not None:
        work.add(tokens, operations)


@contextmanager
def unheard() -> Iterator[None]:
    """What runs meanwhile is counted nowhere."""
    token = _LISTENING.set(None)
    try:
        yield
    finally:
        _LISTENING.reset(token)


def product(rows: int, *widths: int) -> int:
    """Operations of so many rows through linear layers from each width to the next."""
    return sum(2 * rows * width * out for width, out in pairwise(widths))


def attention(rows: int, queries: int, keys: int, width: int) -> int:
    """Operations of attention over `width` channels of all heads together, without its linear layers."""
    return 4 * rows * queries * keys * width
