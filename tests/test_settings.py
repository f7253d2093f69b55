"""`Settings`: the one list of options, its texts and objects, and what it says of a drawing."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import small
from command import Command
from disa.cli.options import flat
from disa.cli.reference import flag_of, page
from disa.core.diffusion import CosineDiffusion
from disa.core.problem import DenoisingProblem, TimeGrid
from disa.core.request import Guidance
from disa.core.solvers import DDIM, DDPM, Euler
from disa.core.steps import Constant, Linear, Table, describe
from disa.draw.sampler import Sampler
from disa.draw.settings import NO_CHANGE, Settings, digest, option
from disa.errors import DisaError

ROOT = Path(__file__).resolve().parents[1]
CHANGED: dict[str, Any] = {
    "steps": "linear:5-2",
    "solver": "ddim",
    "grid": "logsnr",
    "temperature": 0.5,
    "eta": 0.5,
    "guidance": 3.0,
    "ramp": "constant",
    "interval": (0.0, 0.9),
    "progress": (0.5, 1.0),
    "source_guidance": 2.0,
    "num_ar_steps": 3,
    "order": "checkerboard:3",
    "counts": "linear",
    "reuse": "residual:2",
    "size": (12, 8),
    "height": 12,
    "width": 12,
    "rewrite": True,
    "batch_size": 2,
    "graphs": "auto",
}


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


def one(problem: DenoisingProblem) -> int:
    return 1 + problem.ar_step


# -- one list ------------------------------------------------------------------------------------------------------


def test_the_page_of_options_is_made_from_the_fields() -> None:
    assert (ROOT / "docs/options.md").read_text() == page()


@pytest.mark.parametrize("command", ["sample", "compare", "evidence", "calibrate", "fit-probe", "bench"])
def test_every_command_that_draws_has_every_option(
    disa: Command, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = disa(command, "--help").out
    words = set(text.replace("│", " ").replace("/", " ").replace(",", " ").split())
    missing = [each.name for each in fields(Settings) if flag_of(each.name, each.metadata).split("/")[0] not in words]
    assert not missing


@dataclass(frozen=True)
class More(Settings):
    """The settings with an option that there is not yet."""

    tint: str | None = option("Which tint images have.")


def test_a_new_option_is_a_new_field() -> None:
    """The command line, JSON, the digest and the page of options have it without another edit."""
    seen = list[Settings]()

    def draw(settings: More) -> None:
        seen.append(settings)

    parameters = inspect.signature(flat(draw)).parameters
    told = parameters["tint"].annotation.__metadata__[0]
    assert "--tint" in (told.default, *(told.param_decls or ()))
    flat(draw)(**dict.fromkeys(parameters) | {"tint": "sepia"})
    assert seen == [More.of(tint="sepia")]
    assert seen[0].to_json()["tint"] == "sepia"
    assert digest(seen[0].to_json()) != digest(More().to_json())
    assert "| `--tint` | `tint` | Which tint images have. |" in page(More)


def test_every_option_is_tried_below() -> None:
    others = {"recipe"}  # is tried in test_recipes.py
    assert set(CHANGED) | others == {each.name for each in fields(Settings)}


@pytest.mark.parametrize("name", sorted(set(CHANGED) - {"rewrite"}))
def test_different_settings_are_told_apart(sampler: Sampler, name: str) -> None:
    """In JSON, and by the digest if images change."""
    base: dict[str, Any] = {"solver": "ddim", "grid": "uniform"} if name == "eta" else {}
    before, after = sampler.settings(**base), sampler.settings(**(base | {name: CHANGED[name]}))
    one, other = (sampler.about() | settings.to_json() for settings in (before, after))
    assert json.loads(json.dumps(one)) == one
    assert one != other
    assert (digest(one) != digest(other)) is (name not in NO_CHANGE)


def test_other_weights_are_other_drawings(sampler: Sampler) -> None:
    other = small.sampler(seed=1)
    one, two = (each.about() | each.settings().to_json() for each in (sampler, other))
    assert one != two
    assert digest(one) != digest(two)
    assert digest(one) == digest(one | {"device": "elsewhere", "threads": 99})


# -- objects and texts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "same"),
    [
        ({"solver": DDIM("uniform", eta=0.5)}, {"solver": "ddim@uniform:eta=0.5"}),
        ({"solver": "ddim@uniform:eta=0.5"}, {"solver": "ddim", "grid": "uniform", "eta": 0.5}),
        ({"solver": DDIM("logsnr"), "grid": "uniform"}, {"solver": "ddim@uniform"}),
        ({"solver": "ddpm"}, {"solver": "ddpm@uniform"}),
        ({"solver": DDPM("uniform", 0.5)}, {"temperature": 0.5}),
        ({"steps": Linear(5, 2)}, {"steps": "linear:5-2"}),
        ({"steps": 5}, {"steps": "constant:5"}),
        ({"guidance": Guidance(3.0, "constant")}, {"guidance": 3.0, "ramp": "constant"}),
        ({"guidance": "3"}, {"guidance": 3.0}),
        ({"interval": "0-0.9"}, {"interval": [0.0, 0.9]}),
        ({"size": "12x8"}, {"height": 12, "width": 8}),
        ({"guidance": 3, "interval": (0, 1)}, {"guidance": np.float32(3), "interval": "0-1"}),
        ({"num_ar_steps": np.int64(4), "size": [12, 8]}, {"num_ar_steps": "4", "size": (12, 8)}),
    ],
)
def test_an_object_is_as_good_as_its_text(sampler: Sampler, options: dict[str, Any], same: dict[str, Any]) -> None:
    one, other = sampler.settings(**options), sampler.settings(**same)
    assert one == other == sampler.settings(Settings(**options))
    assert json.dumps(one.to_json()) == json.dumps(other.to_json())
    assert sampler.settings(steps=str(one.steps), solver=str(one.solver), guidance=one.guidance, size=one.size) == one


def test_a_list_of_steps_is_a_table(sampler: Sampler) -> None:
    settings = sampler.settings(steps=[5, 4, 2, 2])
    assert isinstance(settings.steps, Table)
    assert [settings.steps.at(k, 4) for k in range(4)] == [5, 4, 2, 2]
    assert isinstance(sampler.settings(steps=torch.tensor(5)).steps, Constant)


def test_tables_of_other_counts_are_other_drawings(sampler: Sampler, tmp_path: Path) -> None:
    """Two lists have no names, and a file may hold other counts than before."""
    lists = [sampler.settings(steps=counts, num_ar_steps=2).to_json() for counts in ([5, 4], [5, 3])]
    path, files = tmp_path / "table.json", []
    for counts in ("[5, 4]", "[5, 3]"):
        path.write_text(counts)
        files.append(sampler.settings(steps=f"table:{path}", num_ar_steps=2).to_json())
    assert len({digest(each) for each in (*lists, *files)}) == 4


def test_another_configuration_or_tokenizer_is_another_drawing(sampler: Sampler) -> None:
    told = sampler.about() | sampler.settings().to_json()
    assert len({digest(told | change) for change in ({}, {"spec": "other"}, {"tokenizer": "other"})}) == 3
    architecture = replace(sampler.spec.architecture, norm_eps=1e-5)
    other = small.sampler()
    other.preset = replace(other.preset, spec=replace(other.spec, architecture=architecture))
    assert other.weights_hash == sampler.weights_hash
    assert other.about()["spec"] != told["spec"]


def test_settings_can_be_changed_in_part(sampler: Sampler) -> None:
    settings = sampler.settings(solver="ddim@uniform:eta=0.5", guidance=3.0, ramp="constant")
    cooler = sampler.settings(settings, eta=0.2)
    assert str(cooler.solver) == "ddim@uniform:eta=0.2"
    assert cooler.guidance == settings.guidance
    assert sampler.settings(settings) == settings
    assert sampler.settings(settings, guidance=2).guidance == Guidance(2.0, "constant")


def evenly(process: CosineDiffusion, num_steps: int) -> TimeGrid:
    """A grid of one's own, which is the uniform one."""
    return process.grid("uniform", num_steps)


def test_a_grid_may_be_a_function(sampler: Sampler) -> None:
    with pytest.warns(UserWarning, match="test_settings:evenly is known to this program alone"):
        own = sampler.sample(3, 0, solver="ddim", grid=evenly, steps=3)
    assert own.settings["solver"] == f"ddim@{__name__}:evenly"
    with pytest.warns(UserWarning, match="known to this program alone"):
        again = sampler.sample(3, 0, solver=DDIM(evenly), steps=3)
    plain = sampler.sample(3, 0, solver="ddim@uniform", steps=3)
    assert torch.equal(own.images, plain.images)
    assert torch.equal(again.images, plain.images)
    assert own.settings != plain.settings


@dataclass(frozen=True)
class Own:
    early: int

    def __call__(self, problem: DenoisingProblem) -> int:
        return self.early


def test_policies_of_ones_own_are_told_apart_by_what_is_plain_in_them() -> None:
    nameless = {
        3: lambda problem: 3,
        4: lambda problem: 4,
    }
    parts = [Own(3), Own(4), partial(Own, 3), partial(Own, 4), *nameless.values(), one]
    texts = [describe(part) for part in parts]
    assert len(set(texts)) == len(texts)
    assert texts[0] == f"{__name__}:Own(early=3)"
    assert "0x" not in "".join(texts)


def test_a_policy_of_ones_own_is_named_with_a_warning(sampler: Sampler) -> None:
    with pytest.warns(UserWarning, match="test_settings:one is known to this program alone"):
        samples = sampler.sample(3, 0, steps=one, num_ar_steps=2)
    assert samples.settings["steps"] == f"{__name__}:one"
    assert [step.steps for step in samples.trace] == [1, 2]


# -- mistakes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidence": 2.0}, "there is no option 'guidence' of drawing. Did you mean guidance"),
        ({"solver": Euler()}, "needs a model that predicts velocity"),
        ({"solver": "ddim", "temperature": 0.5}, "temperature scales the noise"),
        ({"solver": "ddpm", "eta": 0.5}, r"eta belongs to ddim and dpm-solver\+\+-2, not to ddpm"),
        ({"solver": "ddim@uniform:beta=3"}, "beta"),
        ({"steps": 0}, "at least 1 denoising step, found 0"),
        ({"steps": 2.5}, "steps"),
        ({"guidance": "much"}, "guidance must be a number, found 'much'"),
        ({"guidance": float("nan")}, "guidance must be a finite number"),
        ({"progress": (0.9, 0.1)}, "the guidance progress must be"),
        ({"interval": "1"}, "^interval must be two numbers like 0-0.9, found '1'"),
        ({"size": "12"}, "size must be height and width like 512x768, found '12'"),
        ({"size": (12, 9)}, "height and width must be multiples of 2"),
        ({"size": 12}, "size must be height and width like 512x768, found 12"),
        ({"interval": 0.5}, "interval must be two numbers like 0-0.9, found 0.5"),
        ({"guidance": [1, 2]}, "guidance must be a number, found"),
        ({"solver": 5}, "solver must be a solver or its text, found 5"),
        ({"grid": 5}, "grid must be the name of a grid, or a function .*, found 5"),
        ({"num_ar_steps": 4.5}, "num_ar_steps must be a whole number, found 4.5"),
        ({"rewrite": "false"}, "rewrite must be true or false, found 'false'"),
        ({"batch_size": 0}, "the batch size must be 1 or more, found 0"),
        ({"rewrite": 1}, "draws from labels: there are no prompts to rewrite"),
    ],
)
def test_mistakes_are_one_clear_error(sampler: Sampler, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DisaError, match=message):
        sampler.settings(**options)
