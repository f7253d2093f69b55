"""In which order the tokens of an image are drawn, and how many in each AR step: `Order` and `Counts` by their text.

Both are known before anything is drawn: an order follows from the image's seed (`disa.core.places`), counts from the
number of tokens. So an image does not depend on its batch. Nothing heavy is imported here.

Shapes: K AR steps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from disa.core.counts import MOST_AR_STEPS
from disa.errors import DisaError
from disa.reading import read_json
from disa.values import many, named, path, shown, text, whole_number

ORDERS = ("random", "raster", "checkerboard", "halton")
ORDER_FORMS = "random, raster, checkerboard:3 or halton"
CURVES = ("cosine", "exp", "linear", "log")
COUNT_FORMS = f"{', '.join(CURVES)}, stages:24-6-2 or table:FILE"
MOST_STAGES = 16
STEEPNESS = 5.0
"""Of the curves `exp` and `log`, as eMIGM has them."""


@dataclass(frozen=True)
class Order:
    """In which order the tokens of an image are drawn.

    | name | order |
    |---|---|
    | `random` | uniformly random |
    | `raster` | row by row, from the top left |
    | `checkerboard` | in stages, random in each: coarse first, every other place last (GtR, arXiv 2510.17171) |
    | `halton` | a Halton sequence, moved around the image by the seed (arXiv 2503.17076) |
    """

    name: str = "random"
    stages: int = 0
    """Of a checkerboard."""

    def __str__(self) -> str:
        return f"{self.name}:{self.stages}" if self.stages else self.name


RANDOM = Order()


def parse_order(value: Any) -> Order:
    """From its text; an order as it is. Raises DisaError."""
    if isinstance(value, Order):
        return value
    found = re.fullmatch(r"([a-z]+)(?::([0-9]+))?", text(value, "an order").strip())
    if found is None or found[1] not in ORDERS or (found[2] and found[1] != "checkerboard"):
        raise DisaError(f"unknown order {shown(value)}: expected {ORDER_FORMS}.")
    if found[1] != "checkerboard":
        return Order(found[1])
    stages = whole_number(found[2] or 3, "the stages of a checkerboard")
    if not 2 <= stages <= MOST_STAGES:
        raise DisaError(f"a checkerboard has 2 to {MOST_STAGES} stages, found {shown(stages)}.")
    return Order("checkerboard", stages)


@dataclass(frozen=True)
class Counts:
    """How many tokens each AR step draws.

    | name | tokens that are left |
    |---|---|
    | `cosine` | a cosine: few tokens first, many last (MaskGIT, MAR section 3.4) |
    | `exp` | 1 - e^-5s of the share s of AR steps to come: fewer still at first (eMIGM, arXiv 2503.07197) |
    | `linear` | equally many in each AR step |
    | `log` | ln(1 + (e^5 - 1) s) of the same share: many tokens first, few last (the same) |
    | `stages` | so many AR steps for each stage of a checkerboard, whose tokens they share equally |
    | `table` | as a file says; for another number of tokens in proportion |
    """

    name: str = "cosine"
    values: tuple[int, ...] = ()
    """AR steps of each stage, or the tokens of each AR step of a table."""
    source: str = field(default="", compare=False)
    """The file that a table was read from."""

    def __str__(self) -> str:
        if self.name == "stages":
            return f"stages:{'-'.join(map(str, self.values))}"
        return f"table:{self.source}" if self.name == "table" else self.name

    def to_json(self) -> dict[str, Any]:
        """By the names of the options of drawing; a table's content too, since its file can change."""
        return {"counts": str(self)} | ({"tokens_drawn": list(self.values)} if self.name == "table" else {})

    @property
    def num_ar_steps(self) -> int | None:
        """The only number of AR steps that there is; None for any."""
        return {"stages": sum(self.values), "table": len(self.values)}.get(self.name)

    def masked(self, num_tokens: int, num_ar_steps: int) -> list[int]:
        """[K + 1] tokens still masked before each AR step and after the last; every AR step draws one or more. Raises
        DisaError where that cannot be."""
        self.check_ar_steps(num_ar_steps)
        if num_tokens < num_ar_steps:
            raise DisaError(f"{num_ar_steps} AR steps draw at least as many tokens, found {num_tokens} to draw.")
        found = [num_tokens]
        for k, left in enumerate(self._left(num_tokens, num_ar_steps), 1):
            found.append(max(num_ar_steps - k, min(found[-1] - 1, left)))
        return [*found, 0]

    def known(self, num_tokens: int, num_ar_steps: int) -> list[float]:
        """[K] the share of an image that is drawn before each AR step."""
        return [1 - masked / num_tokens for masked in self.masked(num_tokens, num_ar_steps)[:-1]]

    def check_ar_steps(self, num_ar_steps: int) -> None:
        """Refuse another number of AR steps than these counts are for. Raises DisaError."""
        own = self.num_ar_steps
        if own is not None and own != num_ar_steps:
            raise DisaError(f"the counts {self} make {own} AR steps: leave {num_ar_steps} out.")

    def _left(self, num_tokens: int, num_ar_steps: int) -> list[int]:
        """[K - 1] tokens that would be left after AR steps 1 to K - 1."""
        steps = range(1, num_ar_steps)
        if self.name == "linear":
            return [num_tokens * (num_ar_steps - k) // num_ar_steps for k in steps]
        if self.name == "exp":
            shares = [math.expm1(-STEEPNESS * (1 - k / num_ar_steps)) / math.expm1(-STEEPNESS) for k in steps]
            return [math.floor(num_tokens * share) for share in shares]
        if self.name == "log":
            shares = [math.log1p(math.expm1(STEEPNESS) * (1 - k / num_ar_steps)) / STEEPNESS for k in steps]
            return [math.floor(num_tokens * share) for share in shares]
        if self.name == "stages":
            return self._left_by_stages(num_tokens)
        if self.name == "table":
            drawn, total = accumulate(self.values[:-1]), sum(self.values)
            return [num_tokens - num_tokens * count // total for count in drawn]
        return [math.floor(num_tokens * math.cos(math.pi / 2 * k / num_ar_steps)) for k in steps]

    def _left_by_stages(self, num_tokens: int) -> list[int]:
        halvings = len(self.values) - 1
        ends = [0, *(num_tokens * 2**stage // 2**halvings for stage in range(halvings + 1))]
        drawn = list[int]()
        for stage, ((start, end), count) in enumerate(zip(pairwise(ends), self.values, strict=True), 1):
            if end - start < count:
                raise DisaError(
                    f"stage {stage} of {self} has {count} AR steps, and {end - start} of {num_tokens} tokens: "
                    "give it fewer AR steps."
                )
            drawn += [start + (end - start) * (i + 1) // count for i in range(count)]
        return [num_tokens - count for count in drawn[:-1]]


COSINE = Counts()


def parse_counts(value: Any) -> Counts:
    """From their text; counts as they are. Raises DisaError."""
    if isinstance(value, Counts):
        return value
    name, _, rest = text(value, "counts of tokens").strip().partition(":")
    if name in CURVES and not rest:
        return Counts(name)
    if name == "stages" and re.fullmatch("[0-9]+(-[0-9]+)*", rest):
        return Counts(name, _numbers(rest.split("-"), f"the AR steps of a stage of {shown(value)}", MOST_STAGES))
    if name == "table" and rest:
        place = path(rest, "a table of tokens")
        content = read_json(place, "the table")
        listed = content.get("tokens") if isinstance(content, dict) else content
        if not isinstance(listed, list):
            raise DisaError(f'the table {named(place)} must be a list of whole numbers or {{"tokens": [...]}}.')
        values = _numbers(listed, f"the tokens of an AR step in {named(place)}", MOST_AR_STEPS)
        return Counts(name, values, rest)
    raise DisaError(f"unknown counts {shown(value)}: expected {COUNT_FORMS}.")


def _numbers(values: Sequence[Any], what: str, most: int) -> tuple[int, ...]:
    """One or more whole numbers from 1 on."""
    if not 1 <= len(values) <= most:
        raise DisaError(f"{what}: expected 1 to {most} numbers, found {len(values)}.")
    found = tuple(many(list(values), whole_number, what))
    if wrong := [value for value in found if not 1 <= value <= MOST_AR_STEPS]:
        raise DisaError(f"{what} must be 1 to {MOST_AR_STEPS}, found {shown(wrong[0])}.")
    return found
