"""Tensors that follow from a setting alone, such as the times of a grid, kept where a captured graph reads them.

Copied from the host while a graph is captured they would be copied again, or be gone, when it is replayed. So what is
recorded is called once before with a table that keeps them, and captured with the same table, which stays with the
graph. Anywhere else they are made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from threading import local

from torch import Tensor

_here = local()


def constant(key: Hashable, make: Callable[[], Tensor]) -> Tensor:
    """What `make` makes; within `kept_in` the one that was made for this key first."""
    table: dict[Hashable, Tensor] | None = getattr(_here, "table", None)
    if table is None:
        return make()
    if key not in table:
        table[key] = make()
    return table[key]


@contextmanager
def kept_in(table: dict[Hashable, Tensor]) -> Iterator[None]:
    """Keep constants in a table."""
    _here.table = table
    try:
        yield
    finally:
        _here.table = None
