"""The body of a request, checked: everything that can be wrong with it is found here, before it waits for its turn.

| field | taken | refused |
|---|---|---|
| `prompt` | words; for models of labels a label such as "3", several such as "3, 5", or "none" | no words |
| `labels` | for models of labels: one, or a list of them | beside a prompt with words |
| `n` | 1 to the server's limit; with several labels, as many as these | all else |
| `seed` | one, from which the images count on; a list with one for each; by default drawn by lot | negative ones |
| `size` | "auto", or WIDTHxHEIGHT in pixels as OpenAI has it | more pixels than the server's limit |
| `steps` | a step policy as everywhere, without a file | more denoising steps than the server's limit |
| `settings` | an object with other options of drawing by their keywords | `batch_size`; solvers and plans in a file |
| `negative_prompt` | words, for models of prompts | for others |
| `response_format` | "b64_json"; "url", which is answered with a data URL | all else |
| `stream`, `partial_images` | true for events; how many previews of each image, by default one per AR step | all else |
| `model` | the name of the model that is served | all else |
| `quality`, `background`, `output_format` | what there is: "auto" or "standard", "auto" or "opaque", "png" | all else |
| `user` | a text, which nothing is made of | all else |

A field that is null is left out. All other fields are refused.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from typing import Any

from disa.core.plans import plan_parts
from disa.core.steps import named
from disa.draw.inputs import Inputs
from disa.draw.prompts import LONGEST_PROMPT
from disa.draw.recipes import FAST, NONE
from disa.draw.room import most_steps
from disa.draw.run import Run
from disa.draw.sampler import Sampler
from disa.draw.settings import NO_CHANGE, Settings, digest
from disa.reading import parse_json
from disa.serve.orders import Order
from disa.serve.refusals import Refused, refusing
from disa.values import counted, did_you_mean, many, one_of, shown, text, truth, whole_number

FIXED = {"quality": ("auto", "standard"), "background": ("auto", "opaque"), "output_format": ("png",)}
FIELDS = (
    *("prompt", "labels", "n", "seed", "size", "steps", "settings", "negative_prompt", "response_format"),
    *("stream", "partial_images", "model", "user", *FIXED),
)
FORMATS = ("b64_json", "url")
MOST_LEFT_TO_LOT = 2**32
LABELS = re.compile(r"\d{1,20}(\s*,\s*\d{1,20})*", re.ASCII)
SIZE = re.compile(r"(\d{1,6})x(\d{1,6})", re.ASCII)
WITHOUT_FILE = re.compile(r"(mlp|variance)(:(draws|head|probe))?(:[0-9]+-[0-9]+)?(:?@[0-9.]+)?")


@dataclass(frozen=True)
class Limits:
    """What a request may ask for at most."""

    images: int = 16
    pixels: int = 1 << 20
    """Of an image."""
    steps: int = 200
    """Denoising steps of an AR step."""


@dataclass(frozen=True)
class Asked:
    """A request that will be answered."""

    order: Order
    stream: bool
    as_url: bool
    size: tuple[int, int]
    """Height and width in pixels."""


class Reader:
    """Reads bodies for a model."""

    def __init__(self, sampler: Sampler, base: Settings, limits: Limits) -> None:
        self.sampler, self.base, self.limits = sampler, base, limits

    def read(self, body: bytes) -> Asked:
        """Raises Refused."""
        given = _fields(body)
        for name, taken in FIXED.items():
            if name in given:
                with refusing(name):
                    one_of(given[name], taken, name)
        with refusing("user"):
            text(given.get("user", ""), "user")
        self._check_model(given)
        inputs, options = self._inputs(given), self._options(given)
        settings = self._settings(options, given)
        with refusing("labels" if "labels" in given else "prompt"):
            grid = self.sampler.token_grid_of(settings.size)
            self.sampler.conditioner.check(replace(inputs, negative_prompt=None), settings, grid)
        if inputs.negative_prompt is not None:
            with refusing("negative_prompt"):
                self.sampler.conditioner.check(inputs, settings, grid)
        with refusing(None):
            Run(self.sampler, inputs, settings, room=False)  # others have memory now that this one has later
        negative = "" if inputs.negative_prompt is None else inputs.negative_prompt
        kind = "prompts" if inputs.prompts is not None else "none" if inputs.labels is None else "labels"
        stream = self._truth(given, "stream")
        order = Order(
            inputs,
            options,
            f"{digest(settings.to_json())} {kind} {negative}",
            self._previews(given, settings.num_ar_steps) if stream else (),
        )
        with refusing("response_format"):
            as_url = one_of(given.get("response_format", "b64_json"), FORMATS, "response_format") == "url"
        return Asked(order, stream, as_url, self.sampler.shape_of(settings.size)[1:])

    # -- what to draw --------------------------------------------------------------------------------------------

    def _check_model(self, given: dict[str, Any]) -> None:
        name = self.sampler.preset.name
        if (found := given.get("model", name)) != name:
            raise Refused(f"there is no model {shown(found)} here: expected {name}.", 404, "model")

    def _inputs(self, given: dict[str, Any]) -> Inputs:
        preset, more = self.sampler.preset, dict[str, Any]()
        if preset.prompts:
            values, name = self._prompts(given), "prompts"
            with refusing("negative_prompt"):
                more["negative_prompt"] = text(given.get("negative_prompt", ""), "negative_prompt")
        else:
            values, name = self._labels(given), "labels"
            if "negative_prompt" in given:
                raise Refused(f"{preset.name} draws from labels: leave it out.", param="negative_prompt")
        with refusing("n"):
            count = whole_number(given.get("n", len(values or [0])), "n", 1, self.limits.images)
        if values is not None and len(values) not in (1, count):
            raise Refused(f"there are {counted(len(values), 'label')} and n is {count}: leave n out.", param="n")
        more[name] = None if values is None else values * (count // len(values))
        with refusing("seed"):
            seeds = self._seeds(given.get("seed"), count)
        with refusing("labels" if name == "labels" else "prompt"):
            return Inputs(seeds, **more)

    def _prompts(self, given: dict[str, Any]) -> list[str]:
        if "labels" in given:
            raise Refused(
                f"{self.sampler.preset.name} draws from prompts: give a prompt, and no labels.", param="labels"
            )
        with refusing("prompt"):
            words = text(given.get("prompt", ""), "prompt")
        if not words.strip():
            raise Refused("a prompt is empty: expected words.", param="prompt")
        if len(words) > LONGEST_PROMPT:
            long = f"the prompt has {len(words)} characters: expected at most {LONGEST_PROMPT}."
            raise Refused(long, param="prompt")
        return [words]

    def _labels(self, given: dict[str, Any]) -> list[int] | None:
        """None for images without a class."""
        with refusing("prompt"):
            words = text(given.get("prompt", ""), "prompt").strip()
        if "labels" in given:
            if words:
                raise Refused("the labels say what to draw: leave the prompt empty.", param="prompt")
            with refusing("labels"):
                return self._bounded(many(given["labels"], whole_number, "labels"), "labels")
        if words == "none":
            return None
        if not LABELS.fullmatch(words):
            name, last = self.sampler.preset.name, self.sampler.preset.spec.architecture.num_classes - 1
            told = f"{name} draws from labels: give labels from 0 to {last}, or one as the prompt, such as"
            raise Refused(f'{told} "3"; found {shown(words)}.', param="prompt")
        with refusing("prompt"):
            return self._bounded([whole_number(part.strip(), "a label") for part in words.split(",")], "prompt")

    def _bounded(self, values: list[int], param: str) -> list[int]:
        if not 1 <= len(values) <= self.limits.images:
            raise Refused(f"expected 1 to {counted(self.limits.images, 'image')}, found {len(values)}.", param=param)
        return values

    def _seeds(self, given: Any, count: int) -> list[int]:
        if given is None:
            given = secrets.randbelow(MOST_LEFT_TO_LOT)
        if not isinstance(given, list):
            first = whole_number(given, "seed", 0, 2**64 - count)
            return list(range(first, first + count))
        if len(given) != count:
            raise Refused(f"expected a seed for each of {counted(count, 'image')}, found {len(given)}.", param="seed")
        return many(given, lambda value, what: whole_number(value, what, 0, 2**64 - 1), "seeds")

    # -- how to draw it ------------------------------------------------------------------------------------------

    def _options(self, given: dict[str, Any]) -> dict[str, Any]:
        """The options of drawing that are given, as JSON has them."""
        options = given.get("settings", {})
        if not isinstance(options, dict):
            raise Refused(f"settings must be an object of options, found {shown(options)}.", param="settings")
        options = {name: value for name, value in options.items() if value is not None}
        if own := [name for name in sorted(NO_CHANGE) if name in options]:
            raise Refused(f"{own[0]} is the server's: leave it out, it changes no image.", param="settings")
        for name in ("steps", "size"):
            if name in given and name in options:
                raise Refused(f"{name} is given twice: leave it out of settings.", param="settings")
        if "steps" in given:
            options["steps"] = given["steps"]
        if given.get("size", "auto") != "auto":
            with refusing("size"):
                found = SIZE.fullmatch(text(given["size"], "size"))
            if found is None:
                told = f'size must be "auto" or WIDTHxHEIGHT like 512x768, found {shown(given["size"])}.'
                raise Refused(told, param="size")
            options["size"] = [int(found[2]), int(found[1])]
        refuse_files(options)
        return options

    def _settings(self, options: dict[str, Any], given: dict[str, Any]) -> Settings:
        """Filled in for the model, and within the limits."""
        said_in = [name for name in ("steps", "size", "settings") if name in given]
        with refusing(said_in[0] if len(said_in) == 1 else None):
            asked = Settings.of(self.base, **options)
        height, width = asked.size or self.sampler.own_size
        pixels = (asked.height or height) * (asked.width or width)
        if pixels > self.limits.pixels:
            raise Refused(f"an image has at most {self.limits.pixels} pixels here, found {pixels}.", param="size")
        with refusing(said_in[0] if len(said_in) == 1 else None):
            settings = self.sampler.settings(asked)
        if (most := most_steps(settings)) > self.limits.steps:
            told = f"an AR step has at most {counted(self.limits.steps, 'denoising step')} here, found {most}."
            raise Refused(told, param="steps")
        return settings

    # -- how to answer -------------------------------------------------------------------------------------------

    def _truth(self, given: dict[str, Any], name: str) -> bool:
        with refusing(name):
            return truth(given.get(name, False), name)

    def _previews(self, given: dict[str, Any], num_ar_steps: int) -> tuple[int, ...]:
        """The AR steps after which images are shown: as many as are asked for, evenly. After the last they are
        finished."""
        most = num_ar_steps - 1
        with refusing("partial_images"):
            count = whole_number(given.get("partial_images", most), "partial_images", 0, 10_000)
        count = min(count, most)
        return tuple(sorted({(i + 1) * num_ar_steps // (count + 1) - 1 for i in range(count)}))


def _fields(body: bytes) -> dict[str, Any]:
    """Those that are given. Raises Refused."""
    try:
        given = parse_json(body)
    except ValueError as error:
        raise Refused(f"the body cannot be read: {error}.") from error
    if not isinstance(given, dict):
        raise Refused(f"the body must be a JSON object, found {shown(given)}.")
    for name in given:
        if name not in FIELDS:
            raise Refused(f"there is no field {shown(name)}.{did_you_mean(name, FIELDS)}", param=name[:100])
    return {name: value for name, value in given.items() if value is not None}


def refuse_files(options: dict[str, Any]) -> None:
    """A request may not name files of the server: neither are they read, nor does an error tell whether they are
    there. Raises Refused."""
    if options.get("recipe", FAST) not in (FAST, NONE):
        found = shown(options["recipe"])
        raise Refused(f"recipe may not name a file here: expected {FAST} or {NONE}, found {found}.", param="recipe")
    for name in ("steps", "solver", "counts"):
        words = options.get(name)
        if not isinstance(words, str):
            continue
        with refusing(name):
            words = text(words, name)
            kind = named(words)
            looks = kind in ("mlp", "variance") and not WITHOUT_FILE.fullmatch(words.strip())
            planned = kind in ("plan", "straight") and plan_parts(words)[0] is not None
            if kind == "table" or looks or planned:
                raise Refused(f"{name} may not name a file here, found {shown(words)}.", param=name)
