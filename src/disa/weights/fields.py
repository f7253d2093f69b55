"""Dataclasses of plain values from JSON that nobody vouches for."""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from disa.errors import DisaError
from disa.values import shown

LARGEST = 1 << 24
DEEPEST = 512
"""Blocks of one part: building a model of a billion would never end."""
MAY_BE_ZERO = {"eighth_width", "encoder_attention_levels", "temperature", "guidance", "interval"}
MAY_BE_EMPTY = {"encoder_attention_levels"}


def read_fields(kind: type, content: Any, where: str) -> Any:
    """The dataclass `kind` of plain values, from what JSON says of it.

    where: what messages call it. Every value must have its field's type and be in range, and no field be unknown.
    Raises DisaError, which names the field.
    """
    if not isinstance(content, dict):
        raise DisaError(f"{where} is {shown(content)}: expected an object.")
    hints, known = get_type_hints(kind), {field.name: field for field in fields(kind)}
    if unknown := sorted(set(content) - set(known)):
        raise DisaError(f"{where} has an unknown field {shown(unknown[0])}: expected {', '.join(known)}.")
    if missing := [name for name, field in known.items() if name not in content and _is_required(field)]:
        raise DisaError(f"{where}.{missing[0]} is missing.")
    values = {}
    for name, value in content.items():
        try:
            values[name] = _value(hints[name], value, name)
        except ValueError as error:
            raise DisaError(f"{where}.{name} is {shown(value)}: expected {error}.") from error
    try:
        return kind(**values)
    except DisaError as error:
        raise DisaError(f"{where}: {error}") from error


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _value(kind: Any, value: Any, name: str) -> Any:
    """One value of that type. Raises ValueError, which says what was expected."""
    choices = get_args(kind)
    if NoneType in choices:
        return None if value is None else _value(choices[0], value, name)
    if get_origin(kind) is tuple:
        return _several(choices, value, name)
    if kind is bool:
        if type(value) is not bool:
            raise ValueError("true or false")
        return value
    if kind is str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > 200:
            raise ValueError("a text of at most 200 printable characters")
        return value
    return _number(kind, value, name)


def _several(kinds: tuple[Any, ...], value: Any, name: str) -> tuple[Any, ...]:
    any_length = kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or len(value) > 64:
        raise ValueError("a list")
    if len(value) != len(kinds) if not any_length else not value and name not in MAY_BE_EMPTY:
        raise ValueError("a list of one or more" if any_length else f"a list of {len(kinds)}")
    return tuple(_value(kinds[0], each, name) for each in value)


def _number(kind: type, value: Any, name: str) -> int | float:
    least, most = 0 if name in MAY_BE_ZERO else 1, DEEPEST if "depth" in name or "layers" in name else LARGEST
    if kind is int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value
    # Guidance may be below 0; it is a number like any other there.
    positive = name != "guidance"
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > most or (positive and value < 0):
        raise ValueError("a finite number" if name in MAY_BE_ZERO else "a finite number above 0")
    if not value and name not in MAY_BE_ZERO:
        raise ValueError("a finite number above 0")
    return float(value)
