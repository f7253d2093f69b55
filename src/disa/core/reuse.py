"""What of the backbone is kept from earlier AR steps: `Reuse` by its text, and what each AR step computes then.

Which AR steps compute what is known before anything is drawn and is the same for all images, so an image does not
depend on its batch. Nothing heavy is imported here.

Shapes: K AR steps.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from disa.core.counts import MOST_AR_STEPS
from disa.errors import DisaError
from disa.values import shown, text

REUSE_FORMS = "none, residual:9, tokens:2 or residual:9+tokens:2"
WARM = 5
"""AR steps at the beginning that compute the unconditional half in any case: there it changes most (LazyMAR)."""


@dataclass(frozen=True)
class Turn:
    """What the backbone computes in an AR step."""

    num_halves: int
    """1, or 2 with the unconditional half."""
    ahead: tuple[int, ...] = ()
    """The later AR steps that add the difference between the halves as it is in this one."""
    adds: bool = False
    """Whether the unconditional half is the conditional one and the difference that was kept."""
    light: bool = False
    """Whether only new tokens are computed, beside the keys and values of the others as they were."""
    keeps: bool = False
    """Whether the next AR step needs keys and values of this one."""


@dataclass(frozen=True)
class Reuse:
    """What is kept.

    | text | what it does |
    |---|---|
    | `none` | nothing is kept |
    | `residual:9` | the unconditional half is computed in every 9th guided AR step alone, after the first 5 |
    | `tokens:2` | all tokens are computed in every 2nd AR step alone, after the first half of them |

    In between, the unconditional half is the conditional one and the difference that there was (LazyMAR, arXiv
    2503.12450), and what is computed are the tokens drawn last, those to draw and the buffer (ReCAP, arXiv 2505.19089).
    """

    residual: int = 0
    """Guided AR steps from one that computes both halves to the next; 0 where all do."""
    tokens: int = 0
    """AR steps from one that computes all tokens to the next; 0 where all do."""

    @property
    def kinds(self) -> list[str]:
        """The names of what is kept."""
        return [name for name in ("residual", "tokens") if getattr(self, name)]

    def __str__(self) -> str:
        return "+".join(f"{kind}:{getattr(self, kind)}" for kind in self.kinds) or "none"

    def turns(self, guided: Sequence[bool]) -> list[Turn]:
        """[K] of AR steps that are guided or not."""
        places = [k for k, acts in enumerate(guided) if acts]
        own = {k for n, k in enumerate(places) if not self.residual or n < WARM or (n - WARM) % self.residual == 0}
        halves = [2 if k in own else 1 for k in range(len(guided))]
        ahead: list[tuple[int, ...]] = [()] * len(guided)
        for n, k in enumerate(places):
            if k in own:
                ahead[k] = tuple(takewhile(lambda place: place not in own, places[n + 1 :]))
        light = [self._is_light(k, halves, ahead) for k in range(len(guided))]
        return [
            Turn(halves[k], ahead[k], acts and k not in own, light[k], k + 1 < len(guided) and light[k + 1])
            for k, acts in enumerate(guided)
        ]

    def _is_light(self, k: int, halves: Sequence[int], ahead: Sequence[Sequence[int]]) -> bool:
        """Of AR step k: never where there is something to compute that was not kept."""
        first = (len(halves) + 1) // 2
        falls_due = not self.tokens or k < first or (k - first) % self.tokens == 0
        return not (falls_due or ahead[k] or halves[k] > halves[k - 1])


NONE = Reuse()


def parse_reuse(value: Any) -> Reuse:
    """From its text; as it is otherwise. Raises DisaError."""
    if isinstance(value, Reuse):
        return value
    given = text(value, "reuse").replace(" ", "")
    if given == "none":
        return NONE
    parts = [re.fullmatch("(residual|tokens):([0-9]{1,9})", part) for part in given.split("+")]
    found = {part[1]: int(part[2]) for part in parts if part}
    if len(found) != len(parts):
        raise DisaError(f"unknown reuse {shown(value)}: expected {REUSE_FORMS}.")
    if wrong := [f"{name}:{every}" for name, every in found.items() if not 1 <= every <= MOST_AR_STEPS]:
        raise DisaError(f"reuse counts AR steps from 1 to {MOST_AR_STEPS}, found {wrong[0]}.")
    return Reuse(**found)
