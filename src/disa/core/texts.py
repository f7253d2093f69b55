"""Step policies by their text, and tables of counts from files.

| text | policy |
|---|---|
| `constant:50`, or `50` alone | as many steps in every AR step |
| `linear:50-5`, `cosine:50-5`, `two-stage:50-5` | from early to late |
| `table:FILE` | the counts in a file, see `table` |
| `linear:50-5/drawn`, and others with this end | the same over the share of the image that is drawn |
| `plan:FILE@8.5` | the counts of a plan for 8.5 evaluations per row, or without `@` for its own budget |

Spaces around the parts are left out. Numbers are digits of ASCII and whole. Everything else is refused, with a text
that is near to it and would be taken. Policies that look need a model beside their text: see
`adaptive.parse` and `plans.planned`.
"""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from disa import values
from disa.core import steps
from disa.core.counts import denoising_steps
from disa.core.steps import Constant, Cosine, Linear, Schedule, Table, TwoStage
from disa.errors import DisaError
from disa.reading import read_json
from disa.values import LONGEST_SHOWN, named, path, shown, whole_number

ADAPTIVE = ("mlp", "variance", "straight", "frequency")
ANNEALED = {kind.name: kind for kind in (TwoStage, Linear, Cosine)}
NAMES = ("constant", *ANNEALED, "table", "plan", *ADAPTIVE)
FORMS = (
    "constant:N, two-stage:50-5, linear:50-5, cosine:50-5, table:FILE or plan:FILE@8.5 "
    "(with a model also plan@8.5, straight@8.5, mlp, variance, frequency:50-5)"
)
_STRICT = re.compile(r"(?:([a-z-]+)\s*:\s*)?([0-9]+)(?:\s*-\s*([0-9]+))?")
_LOOSE = re.compile(r"([a-z]*(?:[ _-]?stage)?)[^a-z0-9]*([0-9.]+(?:e[0-9]+)?)(?:[^a-z0-9]+([0-9.]+(?:e[0-9]+)?))?\W*")


def parse(text: str) -> Schedule:
    """The policy that `text` names, such as `linear:50-5`. Raises DisaError."""
    if values.text(text, "a step policy").rstrip().endswith(steps.DRAWN):
        return _over_drawn(text.rstrip().removesuffix(steps.DRAWN))
    name, _, rest = text.partition(":")
    if name.strip() == "table" and rest:
        return table(rest)
    if steps.named(text) == "plan":
        from disa.core.plans import parse_plan  # needs NumPy, which schedules do without

        plan, budget = parse_plan(text)
        return plan.steps(budget)
    if is_adaptive(text):
        raise DisaError(f"the step policy {shown(text)} needs a model: ask for `sampler.settings(steps=...).steps`.")
    policy = _schedule(text)
    if policy is None:
        raise DisaError(f"unknown step policy {shown(text)}: expected {FORMS}.{near(text)}")
    return policy


def _over_drawn(text: str) -> Schedule:
    if steps.named(text) == "plan" or text.endswith(steps.DRAWN):
        raise DisaError(f"{shown(text)} cannot go by the share of the image that is drawn: leave {steps.DRAWN} out.")
    return parse(text).over_drawn()


def is_adaptive(text: str) -> bool:
    """Whether it is the text of a policy that looks."""
    return steps.named(text) in ADAPTIVE


def table(file: str | Path) -> Table:
    """Counts from a JSON file, as `disa calibrate` writes it. Raises DisaError.

    | taken | refused |
    |---|---|
    | a list of whole numbers, one per AR step | an empty one, one with anything else in it, bools too |
    | an object with such a list under `counts`, whatever else it says | one without |
    | `measured_for`, an object or absent | anything else under that name |
    | what `disa.reading.read_json` takes | all else: NaN, a key twice, over 8 MiB, deep nesting |
    """
    place = path(file, "a table")
    content = read_json(place, "the table")
    values = content.get("counts") if isinstance(content, dict) else content
    if not isinstance(values, list):
        raise DisaError(f'the table {named(place)} must be a list of whole numbers or {{"counts": [...]}}.')
    for number, value in enumerate(values, 1):
        if type(value) is not int:
            raise DisaError(f"count {number} of the table {named(place)} must be a whole number, found {shown(value)}.")
    measured_for = content.get("measured_for", {}) if isinstance(content, dict) else {}
    if not isinstance(measured_for, dict):
        found = shown(measured_for)
        raise DisaError(f"the table {named(place)} must say what it was measured for as an object, found {found}.")
    try:
        return Table(tuple(values), str(file), measured_for)
    except DisaError as error:
        raise DisaError(f"the table {named(place)} cannot be used: {error}") from error


def near(text: str) -> str:
    """A sentence to add to a message, with a space before it, where a text that would be taken is near."""
    given = text.strip()
    plain = "".join(str(unicodedata.digit(letter, letter)) for letter in given.casefold())
    name, colon, rest = given.partition(":")
    meant, numbers = "", _LOOSE.fullmatch(plain) if len(text) <= LONGEST_SHOWN else None
    if numbers and (numbers[1] or plain[0].isdigit()):
        meant = _meant(*numbers.groups())
    elif not colon and given.endswith((".json", ".safetensors")):
        meant = f"{'table' if given.endswith('.json') else 'mlp'}:{given}"
    elif known := [found for found in get_close_matches(name.casefold(), NAMES, n=1) if found in (*ADAPTIVE, "table")]:
        meant = f"{known[0]}{colon}{rest}"
    return f" Did you mean {meant}?" if meant and meant != given and len(meant) <= LONGEST_SHOWN else ""


def _meant(name: str, first: str, second: str | None) -> str:
    """The text that is taken, of a name and numbers as they may be written; empty where there is none."""
    [known] = get_close_matches(name, NAMES, n=1) or ["" if name else "linear" if second else "constant"]
    numbers = [_digits(number) for number in (first, second) if number is not None]
    meant = f"{known}:{'-'.join(numbers)}"
    with suppress(DisaError):
        if known in ADAPTIVE or _schedule(meant):
            return meant
    return ""


def _digits(number: str) -> str:
    """`5e1` and `50.0` as 50."""
    try:
        return str(whole_number(float(number), "a number"))
    except (DisaError, ValueError):
        return number


def _schedule(text: str) -> Schedule | None:
    """None for what is no text of a schedule. Raises DisaError where its numbers are out of bounds."""
    found = _STRICT.fullmatch(text.strip())
    if found is None:
        return None
    name = found[1] or "constant"
    counts = [denoising_steps(number) for number in found.groups()[1:] if number]
    if name == "constant" and len(counts) == 1:
        return Constant(*counts)
    return ANNEALED[name](*counts) if name in ANNEALED and len(counts) == 2 else None
