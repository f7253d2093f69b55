"""Options that several commands share, in groups that know what to do with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from disa.cli.reference import flag_of
from disa.cli.texts import parse_labels, parse_numbers
from disa.draw.prompts import read_prompts
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.values import number, path, whole_number

if TYPE_CHECKING:
    from disa.draw.inputs import Inputs
    from disa.draw.sampler import Sampler
    from disa.models.prompting import PromptText
    from disa.models.spec import Preset

PROMPT_TOKENS = 24
NUMBERS = {int: whole_number, float: number}


def path_option(flag: str, help: str) -> Any:
    """An option that is a path: one rule says what is one, whichever option it is."""
    return typer.Option(flag, help=help, parser=partial(path, what=flag), metavar="PATH")


Vae = Annotated[
    Path | None, path_option("--vae", "The autoencoder: kl16.ckpt, its safetensors, or a diffusers folder.")
]
WeightsKey = Annotated[
    str | None,
    typer.Option(help="Which entry of the checkpoint, as model or state.ema; its average, if it has one, by default."),
]
Policies = Annotated[list[str] | None, typer.Option("--steps", help="A step policy; give it several times.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Out = Annotated[Path, path_option("--out", "Folder for what is written.")]
Threads = Annotated[
    int | None,
    typer.Option(help="Threads that compute on the CPU; by default one per core that may be used.", show_default=False),
]


def flat(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of its parameters that are groups of options in their place, as Typer reads them.

    A parameter of the command's own takes the place of a group's option of that name.
    """
    kinds = get_type_hints(command, include_extras=True)
    groups: dict[str, Any] = {name: kind for name, kind in kinds.items() if is_dataclass(kind)}
    own = {name: parameter for name, parameter in inspect.signature(command).parameters.items() if name not in groups}
    taken, parameters = {name: [] for name in groups}, list[inspect.Parameter]()
    for name, parameter in inspect.signature(command).parameters.items():
        if name in groups:
            found = [each for each in _options(groups[name]) if each.name not in own]
            taken[name] = [each.name for each in found]
        else:
            found = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=kinds[name])]
        parameters += found

    @wraps(command)
    def run(**given: Any) -> None:
        made = {name: _made(kind, {option: given.pop(option) for option in taken[name]})
                for name, kind in groups.items()}  # fmt: skip
        command(**made, **given)

    run.__dict__["__signature__"] = inspect.Signature(parameters)
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _options(group: Any) -> Iterator[inspect.Parameter]:
    """The fields of a group as parameters of Typer; those of `Settings` say themselves what they are."""
    hints = get_type_hints(group, include_extras=True)
    for each in fields(group):
        kind = _drawing(each.name, each.metadata) if issubclass(group, Settings) else hints[each.name]
        yield inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=kind)


def _drawing(name: str, about: Any) -> Any:
    kind, flag = about["kind"], flag_of(name, about)
    # A number is read as everywhere else: Python would also take `1_0`.
    reader = NUMBERS.get(kind) and partial(NUMBERS[kind], what=flag)
    metavar = kind.__name__.upper() if reader else None
    option = typer.Option(flag, help=about["help"], show_default=False, parser=reader, metavar=metavar)
    return Annotated[kind | None, option]


def _made(group: Any, given: dict[str, Any]) -> Any:
    return group.of(**given) if issubclass(group, Settings) else group(**given)


# -- groups of options ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Which model, and where it runs."""

    model: Annotated[
        str, typer.Option(help="A preset (see `disa presets`), a folder that disa wrote, or a hub id.")
    ] = "mar-digits"
    checkpoint: Annotated[
        Path | None, path_option("--checkpoint", "Weights for the preset: official .pth, .safetensors, or ours.")
    ] = None
    weights_key: WeightsKey = None
    vae: Vae = None
    tokenizer: Annotated[
        str | None, typer.Option(help="The tokenizer of a model that takes prompts: a folder or a hub id.")
    ] = None
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu; the best there is by default.")] = None
    dtype: Annotated[str, typer.Option(help="fp32, bf16, or tf32: fp32 whose products CUDA rounds.")] = "fp32"
    threads: Threads = None

    def load(
        self,
        check: Callable[[Preset], object] = lambda preset: None,
        text: PromptText | None = None,
        offload: bool = False,
    ) -> Sampler:
        """The sampler. check: refuses models that do not fit, before weights are read where possible."""
        from disa.draw.sampler import Sampler
        from disa.models.registry import PRESETS, find_preset
        from disa.runtime import threads

        threads.use(self.threads)
        if self.model in PRESETS or not self.model.strip():
            check(find_preset(self.model))
        where = self.model, self.checkpoint, self.vae, self.device, self.dtype
        loaded = Sampler.load(*where, text or self.tokenizer, self.weights_key, offload=offload)
        check(loaded.preset)
        return loaded


@dataclass(frozen=True)
class Asked:
    """What is to be drawn."""

    labels: Annotated[
        str | None,
        typer.Option(
            help="Classes: 3, 0-7 or 1,5,9; `none` for no class; @FILE for a file of them (text, JSON or .npy); 0-9 by "
            "default.",
            show_default=False,
        ),
    ] = None
    prompt: Annotated[
        list[str] | None, typer.Option(help="For models that draw from words; give it several times.")
    ] = None
    prompts: Annotated[
        Path | None,
        path_option(
            "--prompts", "A file of prompts: text with one a line, JSON, JSON Lines, CSV or TSV; - is standard input."
        ),
    ] = None
    per_label: Annotated[
        int | None, typer.Option(min=1, help="Images of each label, with seeds 0, 1, ... if none are given.")
    ] = None
    per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Images of each prompt, with the seeds given, or 0, 1, ... for each.")
    ] = None
    negative_prompt: Annotated[str | None, typer.Option(help="What guidance leads away from.")] = None
    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds: 0, 0-7 or 1,5,9, or @FILE; paired with labels or prompts, a single one is repeated; 0 by "
            "default."
        ),
    ] = None

    @cached_property
    def entries(self) -> list[dict[str, Any]]:
        """Every prompt, with what its file says beside it; read once. Raises DisaError."""
        entries = [{"prompt": prompt} for prompt in self.prompt or ()]
        if not all(entry["prompt"].strip() for entry in entries):
            raise DisaError("a prompt is empty: expected words.")
        entries += [] if self.prompts is None else read_prompts(self.prompts)
        with_prompts = {"--negative-prompt": self.negative_prompt, "--per-prompt": self.per_prompt}
        lonely = [name for name, value in with_prompts.items() if value is not None and not entries]
        if lonely:
            raise DisaError(f"{lonely[0]} goes with prompts: give --prompt or --prompts.")
        if entries and self.labels is not None:
            raise DisaError("a model draws from labels or from prompts: give --labels or --prompt, not both.")
        if entries and self.per_label is not None:
            raise DisaError("--per-label goes with labels: give --per-prompt.")
        return entries

    def inputs(self, preset: Preset) -> Inputs:
        """As `sample` pairs: one to one, a single label, prompt or seed repeated; or so many of each. Raises
        DisaError."""
        from disa.draw.inputs import Inputs

        return Inputs.listed(**self.lists(preset))

    def lists(self, preset: Preset) -> dict[str, Any]:
        """The same as keywords of `Inputs.listed`, which JSON can hold. Raises DisaError."""
        return {
            **self._values(preset, self.entries),
            "count": self.per_prompt or self.per_label,
            "seeds": None if self.seeds is None else parse_numbers(self.seeds, "seeds"),
            "negative_prompt": self.negative_prompt,
        }

    def _values(self, preset: Preset, entries: list[dict[str, Any]]) -> dict[str, Any]:
        """Labels or prompts, whichever the model takes. Raises DisaError where the others are given."""
        if preset.prompts and not entries:
            also = "" if self.labels is None else ", not --labels"
            raise DisaError(f"{preset.name} draws from prompts: give --prompt or --prompts{also}.")
        if entries and not preset.prompts:
            raise DisaError(f"{preset.name} draws from labels: give --labels, not prompts.")
        if entries:
            return {"prompts": [entry["prompt"] for entry in entries]}
        if self.labels is not None:
            return {"labels": parse_labels(self.labels)}
        return {"labels": list(range(min(10, preset.spec.architecture.num_classes)))}


@dataclass(frozen=True)
class AskedInTurn(Asked):
    """The same where labels and prompts are repeated until there are as many as seeds.

    Each command says which seeds it takes by default.
    """

    seeds: Annotated[
        str | None,
        typer.Option(
            help="Seeds: 0, 0-7 or 1,5,9, or @FILE, with labels or prompts in turn. For the default see above."
        ),
    ] = None

    def load(self, source: Source, count: int, first_seed: int = 0) -> tuple[Sampler, Inputs]:
        """The sampler and what is asked of it: `count` seeds from `first_seed` on, if none are given."""
        sampler = source.load(lambda preset: self.in_turn(preset, count, first_seed))
        return sampler, self.in_turn(sampler.preset, count, first_seed)

    def in_turn(self, preset: Preset, count: int, first_seed: int = 0) -> Inputs:
        """Seeds are `count`, or one per prompt if these are more; where a model of scenes is given no prompt, it draws
        captions that its training held out, others for another first seed. Raises DisaError."""
        from disa.draw.inputs import Inputs

        seeds = None if self.seeds is None else parse_numbers(self.seeds, "seeds")
        entries = self.entries
        if preset.defaults.quality == "shapes" and not entries and self.labels is None:
            from disa.tiny.scenes import held_out_captions

            number = count if seeds is None else len(seeds)
            entries = [{"prompt": caption} for caption in held_out_captions(number, first_seed)]
        values, each = self._values(preset, entries), self.per_prompt or self.per_label
        if seeds is None and each is None:
            seeds = list(range(first_seed, first_seed + max(count, len(entries))))
        if each is None:
            return Inputs.in_turn(seeds, negative_prompt=self.negative_prompt, **values)
        return Inputs.each(each, seeds=seeds, first_seed=first_seed, negative_prompt=self.negative_prompt, **values)
