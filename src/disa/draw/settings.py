"""How images are drawn: `Settings`, the only list of options.

Each field says what it is for, how its text is read and what it is part of. The command line, JSON, digests and
docs/options.md are made from the fields: a new option is a new field. Nothing heavy is imported here, so that `--help`
is quick; `for_model` in resolve.py fills a model's defaults in.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import partial
from hashlib import sha256
from typing import Any

from disa.core import steps
from disa.core.orders import COUNT_FORMS, ORDER_FORMS, parse_counts, parse_order
from disa.core.ramps import RAMPS
from disa.core.reuse import REUSE_FORMS, parse_reuse
from disa.core.steps import describe
from disa.errors import DisaError
from disa.values import did_you_mean, number, one_of, shown, text, truth, whole_number

NO_CHANGE = frozenset({"batch_size", "graphs"})
"""Options that change speed, not images."""
NO_IDENTITY = NO_CHANGE | {"model", "device", "threads", "torch"}
"""What is told of a run beside that which decides its images: the name of a model is not its weights."""
GRAPHS = "auto", "on", "off"
INTERVAL, SIZE = "two numbers like 0-0.9", "height and width like 512x768"
READ = {int: whole_number, float: number, str: text, bool: truth}


def option(
    help: str,
    *,
    kind: type = str,
    read: Callable[[Any], Any] | None = None,
    looks: str = "",
    objects_have: str = "",
    part_of: str = "",
    flag: str = "",
) -> Any:
    """A field that is an option.

    help: for a reader of `--help` and the docs. kind: its type on the command line. read: what a caller gives -> its
    value, where the kind alone does not say; it raises TypeError, ValueError or DisaError for what does not look as
    `looks` says. objects_have: an attribute by which an object is known that is taken as it is. part_of: the field that
    it changes a part of. flag: its name on the command line, where that is not the field's.
    """
    metadata = {
        "help": help,
        "kind": kind,
        "read": read,
        "looks": looks,
        "objects_have": objects_have,
        "part_of": part_of,
        "flag": flag,
    }
    return field(default=None, metadata=metadata)


def read_interval(value: Any) -> tuple[float, float]:
    """`0-0.9`, or two numbers -> (0.0, 0.9)."""
    low, high = value.split("-") if isinstance(value, str) else value
    return number(low, "the first"), number(high, "the second")


def read_size(value: Any) -> tuple[int, int]:
    """`512x768`, or two whole numbers -> height and width."""
    height, width = value.lower().split("x") if isinstance(value, str) else value
    return whole_number(height, "height"), whole_number(width, "width")


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """How to draw. None is what the model's defaults say.

    A value may be given as an object or as its text. Where an option is part of another one (`grid` of `solver`), it
    is put in there: filled-in settings have it in the object alone.
    """

    steps: Any = option(
        "Denoising steps of each row: constant:50, linear:50-5, cosine:50-5, two-stage:50-5, table:FILE, each over the "
        "share of the image that is drawn with /drawn behind it, as linear:50-5/drawn; a calibrated "
        "plan with its own times and solver, as plan@8.5 or plan:FILE@8.5 for 8.5 evaluations per row, or by row as "
        "straight@8.5; policies that look: mlp, variance, each with bounds and a budget, as mlp:50-5@20, and "
        "frequency:50-5, which gives a tenth of the tokens the early count."
    )
    solver: Any = option(
        "How denoising goes, alone or with its options, as ddim@uniform:eta=0.5. MAR, Harmon, eMIGM: ddpm, ddim, "
        "dpm-solver, dpm-solver++, dpm-solver++-3s (of order 3). Others: euler, heun, euler-maruyama, "
        "euler-maruyama-ode (its last step is Euler's), euler-maruyama-noisy (its last step adds noise, too). All: "
        "dpm-solver++-2, of order 2.",
        looks="a solver or its text",
        objects_have="takes",
    )
    grid: Any = option(
        "Times that denoising visits. MAR, Harmon, eMIGM: clipped-950, full, ddim-980, dpm-950, emigm, uniform, "
        "logsnr. Others: flowar-split, xar-em, bitdance, nextstep, nextstep-3 (any number), uniform, shifted-3.",
        looks="the name of a grid, or a function from a process and a number of steps to a TimeGrid",
        objects_have="__call__",
        part_of="solver",
    )
    temperature: float | None = option(
        "Scale of the noise that ddpm and euler-maruyama(-ode) add, and of that which rows begin with under a plan.",
        kind=float,
        part_of="solver",
    )
    eta: float | None = option(
        "How much noise is added, 0 to 1, by ddim (at 1 as much as by ddpm) and by dpm-solver++-2 (at 1 it is "
        "SDE-DPM-Solver++ 2M).",
        kind=float,
        part_of="solver",
    )
    guidance: Any = option("Classifier-free guidance, any scale; 1 is off.", kind=float, objects_have="scale")
    ramp: str | None = option(f"Guidance over AR steps: {', '.join(RAMPS)}.", part_of="guidance")
    interval: Any = option(
        "Denoising times where guidance acts, such as 0-0.9; 0 is data, 1 is noise.",
        read=read_interval,
        looks=INTERVAL,
        part_of="guidance",
        flag="--guidance-interval",
    )
    progress: Any = option(
        "AR steps where guidance acts, such as 0.2-1; 0 is the first, 1 the last.",
        read=read_interval,
        looks=INTERVAL,
        part_of="guidance",
        flag="--guidance-progress",
    )
    source_guidance: float | None = option(
        "Guidance by a picture that is edited, beside that by words; 1 leaves it to them.",
        kind=float,
        part_of="guidance",
    )
    num_ar_steps: Any = option("AR steps: MAR, Harmon, eMIGM at most one per token; others as the model has.", kind=int)
    order: Any = option(
        f"In which order MAR, Harmon and eMIGM draw tokens: {ORDER_FORMS}. Each image has its own, from its seed.",
        read=parse_order,
    )
    counts: Any = option(
        f"Tokens that MAR, Harmon and eMIGM draw in each AR step: {COUNT_FORMS}. Stages and tables say how many AR "
        "steps.",
        read=parse_counts,
    )
    reuse: Any = option(
        f"What of the backbone of MAR, Harmon and eMIGM is kept from earlier AR steps: {REUSE_FORMS}.",
        read=parse_reuse,
    )
    size: Any = option(
        "HEIGHTxWIDTH in pixels, such as 512x768, for models that draw other sizes.", read=read_size, looks=SIZE
    )
    height: int | None = option("Height in pixels alone.", kind=int, part_of="size")
    width: int | None = option("Width in pixels alone.", kind=int, part_of="size")
    rewrite: bool | None = option(
        "Draw what the model's language model makes of a prompt when asked to say more.", kind=bool
    )
    batch_size: Any = option("Images drawn together. It changes speed, not images.", kind=int)
    graphs: str | None = option(
        "Whether CUDA graphs are captured, from the second batch of a shape on, and replayed: auto, on, off. They are "
        "held against drawing without them first. It changes speed, not images; elsewhere it does nothing.",
        read=partial(one_of, known=GRAPHS, what="graphs"),
        looks="auto, on or off",
    )
    recipe: str | None = option(
        "Options that `disa tune` found together: fast, where the model has such a recipe, or the FILE of one. Those "
        "that are given beside it count; none draws without.",
        part_of="settings",
    )

    def __post_init__(self) -> None:
        for each in fields(self):
            if (value := getattr(self, each.name)) is not None:
                object.__setattr__(self, each.name, _value(each, value))

    def __repr__(self) -> str:
        given = ((each.name, getattr(self, each.name)) for each in fields(self))
        return f"Settings({', '.join(f'{name}={_text(value)}' for name, value in given if value is not None)})"

    @classmethod
    def of(cls, base: Settings | None = None, **options: Any) -> Settings:
        """Settings with some options changed; None leaves one as it is. Raises DisaError for unknown names.

        A number as guidance changes the scale alone: the ramp and the intervals of a base that is filled in stay.
        """
        known = {each.name: each for each in fields(cls)}
        for name in options:
            if name not in known:
                raise DisaError(
                    f"there is no option {name!r} of drawing.{did_you_mean(name, known)} There are {', '.join(known)}."
                )
        sides = [name for name in ("height", "width") if options.get(name) is not None]
        if options.get("size") is not None and sides:
            raise DisaError(f"size says height and width: leave {' and '.join(sides)} out.")
        if not isinstance(base, Settings | None):
            raise DisaError(f"settings must be Settings, found {shown(base)}: give options by their names.")
        base = base or cls()
        others = options.get("steps") is not None and options.get("solver") is None and base._is_filled
        if others and (steps.is_planned(options["steps"]) or steps.is_planned(base.steps)):
            base = replace(base, solver=None)  # a plan has its own, which goes with it
        changed = replace(base, **{name: value for name, value in options.items() if value is not None})
        if hasattr(base.guidance, "scale") and isinstance(changed.guidance, float):
            changed = replace(changed, guidance=replace(base.guidance, scale=changed.guidance))
        if base._is_filled and options.get("num_ar_steps") is None and changed.counts != base.counts:
            own, before = (None if counts is None else counts.num_ar_steps for counts in (changed.counts, base.counts))
            if own or before:  # as many AR steps as there were go with the counts that there were
                changed = replace(changed, num_ar_steps=own)
        return changed

    @property
    def _is_filled(self) -> bool:
        """Whether a model has filled the options in."""
        return not any(value is None for value in (self.steps, self.solver, self.guidance, self.batch_size))

    def given(self) -> dict[str, Any]:
        """The options that are not left to the model, as JSON has them; `Settings.of(**given)` reads them again."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: _text(value) for name, value in values.items() if value is not None}

    # -- identity ------------------------------------------------------------------------------------------------

    def to_json(self) -> dict[str, Any]:
        """Every option as a plain value; objects by their text. What is a part of another option is told there."""
        return {name: value for each in fields(self) for name, value in self._plain(each)}

    def _plain(self, each: Field[Any]) -> Iterator[tuple[str, Any]]:
        value = getattr(self, each.name)
        if hasattr(value, "to_json"):
            yield from value.to_json().items()
        elif value is not None or not each.metadata["part_of"]:
            yield each.name, _text(value)

    def num_turns(self, num_images: int) -> int:
        """AR steps of all batches that so many images make. Of settings that are filled in."""
        return -(-num_images // self.batch_size) * self.num_ar_steps

    @property
    def mean_steps(self) -> float:
        """Denoising steps of an AR step, the mean; 1 where only the model will tell. Of settings that are filled in."""
        if not isinstance(self.steps, steps.Schedule):
            return 1.0
        return sum(self.steps.counts(self.num_ar_steps)) / self.num_ar_steps


def digest(about: Mapping[str, Any]) -> str:
    """A hash of everything beside the inputs that decides an image. about: see `Run.about`."""
    told = {name: value for name, value in about.items() if name not in NO_IDENTITY}
    return sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _value(each: Field[Any], value: Any) -> Any:
    """What a caller gave for an option, as its value: equal ones are equal in JSON, too. Raises DisaError."""
    if each.name == "steps":
        return value if isinstance(value, str) else steps.of(value)
    about = each.metadata
    if about["objects_have"] and hasattr(value, about["objects_have"]) and not isinstance(value, type):
        return value
    if not about["looks"]:
        return about["read"](value) if about["read"] else READ[about["kind"]](value, each.name)
    try:
        return (about["read"] or partial(READ[about["kind"]], what=each.name))(value)
    except (TypeError, ValueError, DisaError) as error:
        raise DisaError(f"{each.name} must be {about['looks']}, found {shown(value)}.") from error


def _text(value: Any) -> Any:
    """A value as JSON has it; objects by their text."""
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, bool | int | float | str) else describe(value)
