"""Objects taken apart into tensors and all else, and put together again on other tensors.

What is known: tensors, modules, dataclasses, lists, tuples and dictionaries of these, `Parted` objects, and plain
values that can be hashed. A request is a plain value: its tensors are read where a generation begins.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, Self, TypeVar, runtime_checkable

from torch import Tensor, nn

from disa.core.request import Request

T = TypeVar("T")
CHANGES = {"changes": True}
"""Metadata of a number in a dataclass that may change between two calls which are otherwise alike: it is taken out as a
tensor is. Code that decides by its value decides by another field."""


class Unknown(Exception):
    """An object that cannot be taken apart."""


@runtime_checkable
class Parted(Protocol):
    """An object that is no dataclass, and knows its own tensors."""

    def parts(self) -> tuple[Hashable, Sequence[Tensor]]:
        """All else about it, and its tensors."""
        ...

    def with_parts(self, parts: Sequence[Tensor]) -> Self:
        """The same with other tensors; what happens to it leaves this one as it is."""
        ...


def apart(value: Any) -> tuple[Hashable, list[Any]]:
    """What two objects have in common where they differ in tensors and changing numbers alone, and these, in order.
    Raises Unknown."""
    found = list[Any]()
    return _structure(value, found), found


def assigned(value: Any) -> list[Any]:
    """The same tensors and numbers, without those of `Parted` objects, which change as they like."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [part for each in value for part in assigned(each)]
    if isinstance(value, dict):
        return [part for each in value.values() for part in assigned(each)]
    if is_dataclass(value) and not isinstance(value, type | Request | Parted):
        return [part for each in fields(value) for part in assigned(getattr(value, each.name))]
    return []


def _structure(value: Any, found: list[Any]) -> Hashable:
    if isinstance(value, Tensor):
        found.append(value)
        return tuple(value.shape), value.dtype, value.device
    if isinstance(value, nn.Module):
        return id(value)
    if isinstance(value, Request):
        asked = value.num_ar_steps, value.guidance, value.token_grid, value.order, value.counts, value.reuse
        return value.batch_size, *asked, value.labels is None
    if isinstance(value, list | tuple):
        return type(value), *(_structure(each, found) for each in value)
    if isinstance(value, dict):
        return dict, *((key, _structure(each, found)) for key, each in value.items())
    if isinstance(value, Parted):
        about, parts = value.parts()
        return type(value), about, *(_structure(part, found) for part in parts)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(_of_field(value, each, found) for each in fields(value))
    if isinstance(value, bool | int | float | str | None):
        return value
    raise Unknown(type(value).__name__)


def _of_field(owner: Any, each: Any, found: list[Any]) -> Hashable:
    value = getattr(owner, each.name)
    if each.metadata.get("changes"):
        found.append(value)
        return "changes"
    return _structure(value, found)


def rebuilt(template: T, parts: Iterator[Any]) -> T:
    """An object like the template that has other tensors and changing numbers, in the order of `apart`."""
    value: Any = template
    if isinstance(value, Tensor):
        return next(parts)
    if isinstance(value, list | tuple):
        every = [rebuilt(each, parts) for each in value]
        return type(value)(*every) if hasattr(value, "_fields") else type(value)(every)  # pyright: ignore
    if isinstance(value, dict):
        return {key: rebuilt(each, parts) for key, each in value.items()}  # pyright: ignore[reportReturnType]
    if isinstance(value, Parted):
        return value.with_parts([next(parts) for _ in value.parts()[1]])  # pyright: ignore[reportReturnType]
    if not is_dataclass(value) or isinstance(value, Request):
        return template
    return _with_fields(
        value,
        lambda each, old: next(parts) if each.metadata.get("changes") else rebuilt(old, parts),
    )


def fresh(template: T) -> T:
    """A copy whose lists and dataclasses are its own, down to tensors, which it shares: assigning to fields of the copy
    leaves the template as it is."""
    value: Any = template
    if isinstance(value, list):
        return [fresh(each) for each in value]  # pyright: ignore[reportReturnType]
    if not is_dataclass(value) or isinstance(value, type | Request):
        return template
    return _with_fields(value, lambda _, old: fresh(old))


def _with_fields(value: Any, new: Callable[[Any, Any], Any]) -> Any:
    made = copy(value)
    for each in fields(value):
        object.__setattr__(made, each.name, new(each, getattr(value, each.name)))
    return made
