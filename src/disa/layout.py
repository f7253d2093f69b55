"""The names and shapes of a state dict, and what is said where they are not those that a model has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from disa.errors import DisaError

Layout = Mapping[str, tuple[int, ...]]
"""The name and shape of every tensor."""

NAMES_SHOWN = 3


def shapes(state: Mapping[str, Any]) -> Layout:
    """Of the tensors of a state dict, read or not; an entry that is none has no shape."""
    return {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}


def check_layout(
    state: Mapping[str, Tensor], expected: Layout, source: str = "the checkpoint", model: str = "this model"
) -> None:
    """Names and shapes, before any tensor is looked at. Raises DisaError."""
    check_names(expected, state, source, model)
    found = shapes(state)
    wrong = [name for name, shape in expected.items() if found[name] != tuple(shape)]
    if wrong:
        raise DisaError(
            f"{source} does not fit {model}: {len(wrong)} of its tensors {'have' if len(wrong) > 1 else 'has'} "
            f"another shape; {wrong[0]} should be {expected[wrong[0]]}, found {found[wrong[0]]}."
        )


def check_names(
    expected: Iterable[str], found: Iterable[str], source: str = "the checkpoint", model: str = "this model"
) -> None:
    """One line that says what is missing and what does not belong. Raises DisaError."""
    expected, found = set(expected), set(found)
    problems = [
        _some(kind, names) for kind, names in (("missing", expected - found), ("unexpected", found - expected)) if names
    ]
    if problems:
        raise DisaError(f"{source} does not fit {model}: of its tensors {' and '.join(problems)}.")


def _some(kind: str, names: set[str]) -> str:
    """How many names there are and the first few of them, on one line whatever a foreign file calls its entries."""
    shown = [" ".join(str(name).split()) for name in sorted(names, key=str)[:NAMES_SHOWN]]
    return f"{len(names)} {kind} ({', '.join(shown)}{', ...' if len(names) > NAMES_SHOWN else ''})"
