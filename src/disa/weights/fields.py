"""Dataclasses of plain values from JSON that nobody vouches for.

| field | taken |
|---|---|
| whole numbers | those of `WHOLE`, by the field's name: a model of a billion blocks would never be built |
| other numbers | finite ones within `NUMBERS`, by the field's name |
| true or false | no number in its place |
| texts | up to 200 printable characters |
| lists | up to as many as `LONGEST` says, one or more unless nothing is a value, too |
"""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from disa.errors import DisaError
from disa.values import shown

T = TypeVar("T")

LARGEST = 1 << 24
WHOLE = {
    r".*depth": (1, 128),
    r"layers_per_block": (1, 16),
    r"(en|de)coder_layers": (0, 16),
    r"attention_levels": (1, 8),
    r"eighth_width": (0, 1 << 16),
    r".*(width|widths|hidden)": (1, 1 << 16),
    r".*(channels|heads|groups)|scales|cells|latent_size|patch_size": (1, 1 << 12),
    r"encoder_attention_levels": (0, 7),
    r"size": (1, 1 << 16),
    r"num_ar_steps|batch_size": (1, 1 << 20),
    r".*": (1, LARGEST),
}
"""The least and the most of a field: the first pattern that is its name counts."""
NUMBERS = {
    r"guidance|shift|means": (-LARGEST, LARGEST),
    r"temperature|interval|progress": (0, LARGEST),
    r"mlp_ratio": (1e-6, 256),
    r".*eps": (1e-30, 1),
    r"rope_base": (1, 1e12),
    r".*": (1e-30, LARGEST),
}
LONGEST = {r"block_widths|encoder_attention_levels|(en|de)coder_layers": 8, r"means|deviations": 1 << 12, r".*": 64}
MAY_BE_EMPTY = {"encoder_attention_levels", "means", "deviations"}


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
    any_length, most = kinds[-1] is Ellipsis, _of(LONGEST, name)
    if not isinstance(value, list | tuple):
        raise ValueError("a list")
    if any_length and not (bool(value) or name in MAY_BE_EMPTY):
        raise ValueError("a list of one or more")
    if len(value) > most or (not any_length and len(value) != len(kinds)):
        raise ValueError(f"a list of {len(kinds)}" if not any_length else f"a list of {most} at most")
    return tuple(_value(kinds[0], each, name) for each in value)


def _number(kind: type, value: Any, name: str) -> int | float:
    if kind is int:
        least, most = _of(WHOLE, name)
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return value
    least, most = _of(NUMBERS, name)
    if type(value) not in (int, float) or not math.isfinite(value) or not least <= value <= most:
        raise ValueError(f"a finite number from {least:g} to {most:g}")
    return float(value)


def _of(table: dict[str, T], name: str) -> T:
    return next(value for pattern, value in table.items() if re.fullmatch(pattern, name))
