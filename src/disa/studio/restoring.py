"""The settings that a picture of disa was drawn by, from the text in its file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from PIL import Image

from disa.core.steps import describe
from disa.draw.folder import TEXT, identities
from disa.draw.inputs import Inputs
from disa.draw.pictures import text_of
from disa.draw.sampler import Sampler
from disa.draw.settings import NO_CHANGE, Settings, digest
from disa.errors import DisaError
from disa.reading import parse_json
from disa.studio.form import Form
from disa.values import plain_number, text, whole_number

OWN_FIELDS = ("steps", "solver", "guidance", "num_ar_steps", "recipe")
NO_PICTURE = "this picture does not say what it was drawn from: expected a PNG that disa wrote, as it was written."


@dataclass(frozen=True)
class Told:
    """What a picture says of itself."""

    model: str
    seed: int
    label: int | None
    prompt: str | None
    options: dict[str, Any]
    """Of drawing, as JSON has them."""
    identity: str

    @classmethod
    def read(cls, file: Path) -> Told:
        """Raises DisaError."""
        try:
            about = parse_json(text_of(file, TEXT))
            settings = about["settings"]
            label, prompt = about.get("label"), about.get("prompt")
            return cls(
                text(settings["model"], "model"),
                whole_number(about["seed"], "seed", 0, 2**64 - 1),
                None if label is None else whole_number(label, "label"),
                None if prompt is None else text(prompt, "prompt"),
                _options(settings),
                text(about["identity"], "identity"),
            )
        except (KeyError, TypeError, ValueError, AttributeError, DisaError, Image.DecompressionBombError) as error:
            raise DisaError(NO_PICTURE) from error

    def form(self, sampler: Sampler) -> Form:
        """The fields that ask for this picture. Raises DisaError where its settings are not those of the model."""
        chosen = sampler.settings(**self.options)
        own = sampler.settings(steps=self.options.get("steps"), num_ar_steps=chosen.num_ar_steps)
        own_values = own.to_json()
        others = {
            name: value
            for name, value in chosen.to_json().items()
            if name in _NAMES and name not in OWN_FIELDS and value != own_values.get(name)
        }
        steps = self.options.get("steps", "")
        return Form(
            self.model,
            "none" if self.label is None else f"{self.label}",
            self.prompt or "",
            f"{self.seed}",
            ", ".join(map(str, steps)) if isinstance(steps, list) else f"{steps}",
            "" if _same(chosen.solver, own.solver) else describe(chosen.solver),
            plain_number(chosen.guidance.scale),
            "none" if sampler.recipe else "",
            f"{chosen.num_ar_steps}",
            " ".join(f"{name}={_words(name, value)}" for name, value in others.items()),
        )

    def is_drawn_by(self, sampler: Sampler, inputs: Inputs, settings: Settings) -> bool:
        """Whether these draw the very same picture."""
        sampler.prepare()
        return self.identity in identities(digest(sampler.start(inputs, settings).about()), inputs)


_NAMES = {each.name: each for each in fields(Settings)}


def _options(settings: dict[str, Any]) -> dict[str, Any]:
    """The options of drawing among what a file tells; a table by its counts, as its own file may be elsewhere."""
    found = {
        name: value
        for name, value in settings.items()
        if name in _NAMES and name not in NO_CHANGE | {"recipe"} and value is not None
    }
    if "step_counts" in settings and not str(settings.get("steps", "")).startswith(("plan", "straight")):
        found["steps"] = [whole_number(count, "a count") for count in settings["step_counts"]]
    return found


def _same(one: Any, other: Any) -> bool:
    return describe(one) == describe(other)


def _words(name: str, value: Any) -> str:
    """A value of JSON as it is written in a field."""
    if isinstance(value, bool):
        return str(value).lower()
    between = "x" if name == "size" else "-"
    return between.join(map(str, value)) if isinstance(value, list) else str(value)
