"""Options that several commands share, in groups that know what to do with them, and how their texts are read."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from disa.draw.prompts import pair_per_prompt, read_prompts
from disa.errors import DisaError

if TYPE_CHECKING:
    from disa.draw.sampler import Sampler, Settings
    from disa.draw.samples import Wanted
    from disa.models.harmon.text import Text
    from disa.models.spec import Preset

MOST_NUMBERS = 1_000_000
PROMPT_TOKENS = 24

Vae = Annotated[Path | None, typer.Option(help="The autoencoder: kl16.ckpt, its safetensors, or a diffusers folder.")]
Policies = Annotated[list[str] | None, typer.Option("--steps", help="A step policy; give it several times.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[Path, typer.Option(help="Folder for what is written.")]


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its parameters that are groups of options in their place, as Typer reads them."""
    kinds = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            hints = get_type_hints(groups[name], include_extras=True)
            found = [(field.name, field.default, hints[field.name]) for field in fields(groups[name])]
        else:
            found = [(name, parameter.default, kinds[name])]
        parameters += [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
            for option, default, kind in found
        ]

    @wraps(command)
    def run(**given: Any) -> None:
        made = {name: kind(**{f.name: given.pop(f.name) for f in fields(kind)}) for name, kind in groups.items()}
        command(**made, **given)

    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


# -- groups of options ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Which model, and where it runs."""

    model: Annotated[
        str, typer.Option(help="A preset (see `disa presets`), a folder that disa wrote, or a hub id.")
    ] = "mar-digits"
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights for the preset: official .pth, .safetensors, or ours.")
    ] = None
    vae: Vae = None
    tokenizer: Annotated[
        str | None, typer.Option(help="The tokenizer of a model that takes prompts: a folder or a hub id.")
    ] = None
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")] = None
    dtype: Annotated[str, typer.Option(help="fp32 or bf16.")] = "fp32"

    def load(self, check: Callable[[Preset], None] = lambda preset: None, text: Text | None = None) -> Sampler:
        """The sampler. check: refuses models that do not fit, before weights are read where possible."""
        from disa.draw.sampler import Sampler
        from disa.models.registry import PRESETS

        if self.model in PRESETS:
            check(PRESETS[self.model])
        loaded = Sampler.load(self.model, self.checkpoint, self.vae, self.device, self.dtype, text or self.tokenizer)
        check(loaded.preset)
        return loaded


@dataclass(frozen=True)
class Asked:
    """What is to be drawn."""

    labels: Annotated[
        str | None,
        typer.Option(help="Classes: 3, 0-7 or 1,5,9; `none` for no class; 0-9 by default.", show_default=False),
    ] = None
    prompt: Annotated[
        list[str] | None, typer.Option(help="For models that draw from words; give it several times.")
    ] = None
    prompts: Annotated[
        Path | None, typer.Option(help='A file of prompts: a JSON list, or lines as {"prompt": ...}, as GenEval has.')
    ] = None
    per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Images of each prompt, with the seeds given, or 0, 1, ...")
    ] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None
    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds: 0, 0-7 or 1,5,9; paired with labels or prompts, a single one is repeated; "
                          "0 by default."),
    ] = None  # fmt: skip

    def read(self) -> Request:
        """Read texts and files. Raises DisaError."""
        entries = [{"prompt": prompt} for prompt in self.prompt or ()]
        negative = [] if self.negative_prompt is None else [self.negative_prompt]
        if not all(prompt.strip() for prompt in [*(self.prompt or ()), *negative]):
            raise DisaError("a prompt is empty: expected words.")
        if self.prompts is not None:
            entries += read_prompts(self.prompts)
        with_prompts = {"--negative-prompt": self.negative_prompt, "--per-prompt": self.per_prompt}
        lonely = [name for name, value in with_prompts.items() if value is not None and not entries]
        if lonely:
            raise DisaError(f"{lonely[0]} goes with prompts: give --prompt or --prompts.")
        if entries and self.labels is not None:
            raise DisaError("a model draws from labels or from prompts: give --labels or --prompt, not both.")
        labels = None if self.labels is None else parse_labels(self.labels)
        seeds = None if self.seeds is None else parse_numbers(self.seeds, "seeds")
        return Request(entries, self.labels is not None, labels, seeds, self.per_prompt, self.negative_prompt)


@dataclass(frozen=True)
class AskedInTurn(Asked):
    """The same where labels and prompts are repeated until there are as many as seeds.

    Each command says which seeds it takes by default.
    """

    seeds: Annotated[
        str | None,
        typer.Option(help="Seeds: 0, 0-7 or 1,5,9, with labels or prompts in turn. For the default see above."),
    ] = None

    def load(self, source: Source, count: int, first_seed: int = 0) -> tuple[Sampler, Wanted]:
        """The sampler and what is asked of it: `count` seeds from `first_seed` on, if none are given."""
        request = self.read()
        sampler = source.load(lambda preset: request.filled(preset, count, first_seed).check(preset))
        return sampler, request.filled(sampler.preset, count, first_seed).repeated(count)


@dataclass(frozen=True)
class Request:
    """What was asked for, read. entries: prompts, each with what its file says beside it."""

    entries: list[dict[str, Any]]
    labelled: bool
    labels: list[int] | None
    seeds: list[int] | None
    per_prompt: int | None
    negative_prompt: str | None

    @property
    def prompts(self) -> list[str]:
        return [entry["prompt"] for entry in self.entries]

    def filled(self, preset: Preset, count: int, first_seed: int = 0) -> Request:
        """With seeds from `first_seed` on, `count` or one per prompt if these are more; and where a model of scenes is
        given no prompt, with captions that its training held out, others for another first seed."""
        entries = self.entries
        if preset.defaults.quality == "shapes" and not entries and not self.labelled:
            from disa.tiny.scenes import held_out_captions

            number = count if self.seeds is None else len(self.seeds)
            entries = [{"prompt": caption} for caption in held_out_captions(number, first_seed)]
        seeds = self.seeds
        if seeds is None:
            seeds = list(range(first_seed, first_seed + (self.per_prompt or max(count, len(entries)))))
        return replace(self, entries=entries, seeds=seeds)

    def check(self, preset: Preset) -> None:
        """Labels for a model of prompts, or the other way round, is a mistake."""
        if preset.prompts and not self.entries:
            also = ", not --labels" if self.labelled else ""
            raise DisaError(f"{preset.name} draws from prompts: give --prompt or --prompts{also}.")
        if self.entries and not preset.prompts:
            raise DisaError(f"{preset.name} draws from labels: give --labels, not prompts.")

    def wanted(self) -> Wanted:
        """As `sample` pairs: labels or prompts and seeds one to one, a single one repeated."""
        from disa.draw.sampler import pair, pair_prompts
        from disa.draw.samples import Wanted

        if not self.entries:
            return Wanted(*pair(self.labels if self.labelled else list(range(10)), self.seeds or [0]))
        if self.per_prompt is not None:
            prompts, seeds = pair_per_prompt(self.prompts, self.seeds, self.per_prompt)
        else:
            prompts, seeds = pair_prompts(self.prompts, self.seeds or [0])
        return Wanted(None, seeds, prompts, self.negative_prompt)

    def repeated(self, count: int) -> Wanted:
        """As `compare` pairs: labels or prompts are taken in turn until there are as many as seeds.

        count: seeds where none are given; more where there are more prompts, so that none is left out.
        """
        from disa.draw.samples import Wanted

        if self.per_prompt is not None:
            return self.wanted()
        seeds = list(range(max(count, len(self.entries)))) if self.seeds is None else self.seeds
        if len(self.entries) > len(seeds):
            raise DisaError(f"{len(self.entries)} prompts need as many seeds or more, found {len(seeds)}.")
        if self.entries:
            return Wanted(None, seeds, _in_turn(self.prompts, len(seeds)), self.negative_prompt)
        labels = self.labels if self.labelled else list(range(10))
        return Wanted(labels and _in_turn(labels, len(seeds)), seeds)


@dataclass(frozen=True)
class Solving:
    """How denoising goes."""

    solver: Annotated[
        str | None,
        typer.Option(
            help="MAR, Harmon: ddpm, ddim, dpm-solver. FlowAR, xAR: euler, heun, euler-maruyama. All: dpm-solver++-2."
        ),
    ] = None
    grid: Annotated[
        str | None,
        typer.Option(help="Time grid. MAR and Harmon: clipped-950, full, ddim-980, dpm-950, uniform, logsnr. "
                          "FlowAR and xAR: flowar-split, xar-em, uniform, shifted-3."),
    ] = None  # fmt: skip
    guidance: Annotated[float | None, typer.Option("--guidance", help="Classifier-free guidance; 1 is off.")] = None
    num_ar_steps: Annotated[
        int | None, typer.Option(help="AR steps: MAR, Harmon at most one per token; else fixed by the model.")
    ] = None
    size: Annotated[
        str | None, typer.Option(help="HEIGHTxWIDTH in pixels, such as 512x768, for models that draw other shapes.")
    ] = None

    def settings(self, sampler: Sampler, steps: str | None = None) -> Settings:
        """The preset's, except for what is given. Raises DisaError."""
        height, width = parse_size(self.size)
        return sampler.settings(
            steps, self.solver, self.grid, self.guidance, num_ar_steps=self.num_ar_steps, height=height, width=width,
            **self._others(),
        )  # fmt: skip

    def _others(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Drawing(Solving):
    """The same with everything that changes images."""

    ramp: Annotated[str | None, typer.Option(help="Guidance over AR steps: linear or constant.")] = None
    interval: Annotated[
        str | None,
        typer.Option("--guidance-interval", help="Times where guidance acts, such as 0-0.9; 0 is data, 1 is noise."),
    ] = None
    temperature: Annotated[float | None, typer.Option(help="Scale of the noise that ddpm and euler-maruyama add.")] = (
        None
    )
    eta: Annotated[float | None, typer.Option(help="How much noise ddim adds: 0 none, 1 as much as ddpm.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Images drawn together. It changes speed, not images.")] = None
    rewrite: Annotated[
        bool | None,
        typer.Option("--rewrite/--no-rewrite", help="Draw what the model's language model makes of a prompt when asked "
                     "to say more; as the preset says by default.", show_default=False),
    ] = None  # fmt: skip

    def _others(self) -> dict[str, Any]:
        return {
            "ramp": self.ramp, "temperature": self.temperature, "eta": self.eta, "batch_size": self.batch_size,
            "interval": parse_interval(self.interval), "rewrite": self.rewrite,
        }  # fmt: skip


# -- texts ---------------------------------------------------------------------------------------------------------


def parse_numbers(text: str, what: str) -> list[int]:
    """`3`, `0-7` and `1,5,8-9` -> whole numbers."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            span = range(int(first), int(last if dash else first) + 1)
        except ValueError as error:
            raise DisaError(f"{what} must be whole numbers like 3, 0-7 or 1,5,9; found {text!r}.") from error
        if not span:
            raise DisaError(f"{what} {part!r} is an empty range: write the smaller number first.")
        if span[-1] - span[0] >= MOST_NUMBERS:
            raise DisaError(f"{what} {part!r} is too long a range: draw at most {MOST_NUMBERS} at a time.")
        numbers += span
    return numbers


def parse_labels(text: str) -> list[int] | None:
    """As numbers; `none` for images without a class."""
    return None if text == "none" else parse_numbers(text, "labels")


def parse_interval(text: str | None) -> tuple[float, float] | None:
    """`0-0.9` -> (0.0, 0.9)."""
    if text is None:
        return None
    try:
        low, high = map(float, text.split("-"))
    except ValueError as error:
        raise DisaError(f"the guidance interval must be two times like 0-0.9, found {text!r}.") from error
    return low, high


def parse_size(text: str | None) -> tuple[int, int] | tuple[None, None]:
    """`512x768` -> height and width."""
    if text is None:
        return None, None
    try:
        height, width = map(int, text.lower().split("x"))
    except ValueError as error:
        raise DisaError(f"--size must be height and width like 512x768, found {text!r}.") from error
    return height, width


def parse_box(text: str) -> list[int]:
    """`0,0,2,4` -> four edges."""
    try:
        return [int(edge) for edge in text.split(",")]
    except ValueError as error:
        raise DisaError(f"--box must be four whole numbers, top,left,bottom,right; found {text!r}.") from error


def _in_turn(values: list[Any], count: int) -> list[Any]:
    return [values[i % len(values)] for i in range(count)]
