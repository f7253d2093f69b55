"""What a visitor has filled in, as inputs and settings.

| field | taken |
|---|---|
| labels | `3`, `0-7`, `1,5,9`; `none`, or nothing, for no class |
| prompts | one a line |
| seeds | as labels; one of either is repeated, or as many of both |
| steps | a step policy; counts parted by commas, one per AR step |
| solver, guidance, recipe, AR steps | as everywhere; nothing leaves them to the model |
| more | other options of drawing as NAME=VALUE, parted by spaces |
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, fields
from typing import Any

from disa.draw.inputs import Inputs
from disa.draw.prompts import LONGEST_PROMPT
from disa.draw.room import most_steps
from disa.draw.sampler import Sampler
from disa.draw.settings import NO_CHANGE, Settings
from disa.errors import DisaError
from disa.values import counted, did_you_mean, number, shown, spans, whole_number

MOST_IMAGES, MOST_STEPS, MOST_PIXELS = 16, 1000, 1 << 22
TABLE = re.compile(r"\d{1,6}(\s*,\s*\d{1,6})+", re.ASCII)
TRUTHS = {"true": True, "false": False}
KINDS = {each.name: each.metadata["kind"] for each in fields(Settings)}


@dataclass(frozen=True)
class Form:
    """The fields, as the page has them."""

    model: str = ""
    labels: str = ""
    prompts: str = ""
    seeds: str = ""
    steps: str = ""
    solver: str = ""
    guidance: str = ""
    recipe: str = ""
    num_ar_steps: str = ""
    more: str = ""

    def inputs(self, sampler: Sampler) -> Inputs:
        """What to draw. Raises DisaError."""
        seeds = spans((self.seeds or "0").split(","), "seeds")
        _check_count(len(seeds))
        if sampler.preset.prompts:
            return _counted(Inputs.paired(seeds, prompts=self._prompts()))
        words = self.labels.strip()
        labels = None if words in ("", "none") else spans(words.split(","), "labels")
        _check_count(len(labels or ()))
        return _counted(Inputs.paired(seeds, labels=labels))

    def _prompts(self) -> list[str]:
        prompts = [line.strip() for line in self.prompts.splitlines() if line.strip()]
        if not prompts:
            raise DisaError("a prompt is empty: expected words.")
        if long := [prompt for prompt in prompts if len(prompt) > LONGEST_PROMPT]:
            raise DisaError(f"a prompt has {len(long[0])} characters: expected at most {LONGEST_PROMPT}.")
        _check_count(len(prompts))
        return prompts

    def options(self) -> dict[str, Any]:
        """The options of drawing that are given. Raises DisaError."""
        given = {
            "steps": _steps(self.steps),
            "solver": self.solver.strip() or None,
            "guidance": number(self.guidance, "guidance") if self.guidance.strip() else None,
            "recipe": self.recipe.strip() or None,
            "num_ar_steps": whole_number(self.num_ar_steps, "AR steps") if self.num_ar_steps.strip() else None,
        }
        return {name: value for name, value in given.items() if value is not None} | options_of(self.more)

    def settings(self, sampler: Sampler, **changed: Any) -> Settings:
        """How to draw, filled in for the model. changed: options that count before those given. Raises DisaError."""
        asked = Settings.of(**self.options() | changed)
        height, width = asked.size or sampler.own_size
        pixels = (asked.height or height) * (asked.width or width)
        if pixels > MOST_PIXELS:
            raise DisaError(f"an image has at most {MOST_PIXELS} pixels here, found {pixels}.")
        found = sampler.settings(asked)
        if (most := most_steps(found)) > MOST_STEPS:
            raise DisaError(f"an AR step has at most {MOST_STEPS} denoising steps here, found {most}.")
        return found


def options_of(words: str) -> dict[str, Any]:
    """Options by their texts, such as `linear:50-5 solver=ddim guidance=2`: the first may be a step policy alone.
    Raises DisaError."""
    try:
        parts = shlex.split(words)
    except ValueError as error:
        raise DisaError(f"the options {shown(words)} have a quotation mark without its other half.") from error
    found = dict[str, Any]()
    for place, part in enumerate(parts):
        name, equal, value = part.partition("=")
        if not place and name not in KINDS and (":" in name or "@" in name or not equal):
            name, value = "steps", part
        elif not equal or name not in KINDS:
            near = did_you_mean(name, KINDS)
            raise DisaError(f"options are written as NAME=VALUE, such as solver=ddim: found {shown(part)}.{near}")
        if name in NO_CHANGE:
            raise DisaError(f"{name} is the studio's: leave it out, it changes no image.")
        found[name] = _steps(value) if name == "steps" else TRUTHS.get(value, value) if KINDS[name] is bool else value
    return found


def _steps(words: str) -> Any:
    """A step policy, or counts."""
    words = words.strip()
    return [int(count) for count in words.split(",")] if TABLE.fullmatch(words) else words or None


def _counted(inputs: Inputs) -> Inputs:
    _check_count(len(inputs))
    return inputs


def _check_count(count: int) -> None:
    if count > MOST_IMAGES:
        raise DisaError(f"the studio draws at most {counted(MOST_IMAGES, 'image')} at a time, found {count}.")
