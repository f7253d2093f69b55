"""Recipes: what a file gives, what is given beside it, and how a model keeps one."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

import small
from disa.draw.recipes import RECIPE, read_recipe
from disa.draw.sampler import Sampler
from disa.draw.settings import Settings, digest
from disa.errors import DisaError
from disa.models.registry import PRESETS
from disa.study.tuned import NEGLIGIBLE
from disa.weights.package import in_package
from published import narrow


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


def recipe(folder: Path, content: Any = None, **settings: Any) -> Path:
    place = folder / RECIPE
    place.write_text(json.dumps({"format": 1, "settings": settings} if content is None else content))
    return place


def test_a_recipe_gives_what_is_not_given(sampler: Sampler, tmp_path: Path) -> None:
    place = recipe(tmp_path, steps="linear:3-1", num_ar_steps=2, solver="ddim", eta=0.5)
    found = sampler.settings(recipe=str(place))
    assert (str(found.steps), found.num_ar_steps, str(found.solver)) == ("linear:3-1", 2, "ddim@ddim-980:eta=0.5")
    assert found.guidance.scale == 2.0
    found = sampler.settings(recipe=str(tmp_path), num_ar_steps=3, solver="ddpm")
    assert (str(found.steps), found.num_ar_steps, str(found.solver)) == ("linear:3-1", 3, "ddpm@uniform")


def test_images_are_those_of_its_options(sampler: Sampler, tmp_path: Path) -> None:
    place = recipe(tmp_path, steps="linear:3-1", num_ar_steps=2)
    by_recipe = sampler.sample([1], [7], recipe=str(place))
    by_hand = sampler.sample([1], [7], steps="linear:3-1", num_ar_steps=2)
    assert by_recipe.images.equal(by_hand.images)
    assert digest(by_recipe.settings) == digest(by_hand.settings)


def test_files_that_it_names_lie_beside_it(sampler: Sampler, tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(json.dumps({"counts": [4, 3, 2, 1]}))
    found = sampler.settings(recipe=str(recipe(tmp_path, steps="table:counts.json")))
    assert found.steps.counts(4) == [4, 3, 2, 1]


def test_steps_that_are_given_leave_the_solver_of_a_plan_out(tmp_path: Path) -> None:
    digits = Sampler.from_pretrained("mar-digits")
    place = str(recipe(tmp_path, steps="linear:4-1", solver="plan"))
    assert str(digits.settings(recipe=place).solver) == "plan"
    assert str(digits.settings(recipe=place, steps="plan@2.5").steps) == "plan@2.5"
    place = str(recipe(tmp_path, steps="plan@2.5"))
    assert str(digits.settings(recipe=place, steps="constant:3").solver) == "ddpm@clipped-950"


def test_a_model_keeps_the_recipe_that_it_was_loaded_with(tmp_path: Path) -> None:
    (tmp_path / "counts.json").write_text(json.dumps({"counts": [9, 8, 2, 1]}))
    place = recipe(tmp_path, steps="table:counts.json")
    weights = small.folder(tmp_path / "weights", num_ar_steps=4, steps="linear:4-2")
    sampler = Sampler.from_pretrained(weights, recipe=place)
    assert sampler.settings().steps.counts(4) == [9, 8, 2, 1]
    assert str(sampler.settings(recipe="none").steps) == "linear:4-2"
    folder = sampler.save_pretrained(tmp_path / "kept")
    (tmp_path / "counts.json").unlink()
    assert Sampler.from_pretrained(folder, recipe="fast").settings().steps.counts(4) == [9, 8, 2, 1]
    assert str(Sampler.from_pretrained(folder).settings().steps) == "linear:4-2"


def test_files_of_equal_names_are_kept_apart(tmp_path: Path) -> None:
    tables = {"steps": {"counts": [9, 8, 2, 1]}, "counts": {"tokens": [8, 4, 2, 2]}}
    for folder, content in tables.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.json").write_text(json.dumps(content))
    place = recipe(tmp_path, steps="table:steps/t.json/drawn", counts="table:counts/t.json")
    found = read_recipe(place)
    files = found.files()
    assert set(files) == {"t.json", "counts-t.json", RECIPE}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    kept = read_recipe(tmp_path).settings
    assert str(kept.steps).endswith("/drawn")
    assert [json.loads(files[name]) for name in ("t.json", "counts-t.json")] == list(tables.values())
    assert str(kept.counts) == str(found.settings.counts).replace("counts/t.json", "counts-t.json")


def test_where_there_is_no_fast_one_a_command_is_told(sampler: Sampler) -> None:
    with pytest.raises(DisaError, match=r"no recipe fast: make one with `disa tune --model small"):
        sampler.settings(recipe="fast")


SHIPPED = sorted(place for place in in_package("").glob("*-fast.json") if place.stem.removesuffix("-fast") in PRESETS)


@pytest.mark.parametrize("place", SHIPPED, ids=[place.stem for place in SHIPPED])
def test_a_recipe_that_ships_was_measured_without_a_loss(place: Path) -> None:
    content = json.loads(place.read_text())
    sampler = Sampler.from_pretrained(content["model"], recipe="fast", device="cpu")
    assert content["weights"] == sampler.weights_hash
    asked: dict[str, Any] = {"prompts": ["a red star"]} if sampler.preset.prompts else {"labels": [3]}
    measured = content["measured"]
    found = sampler.sample(**asked, seeds=[0], output_type="latent").evaluations_per_row
    assert found == pytest.approx(measured["evaluations_per_row"], rel=0.1)
    assert measured["loss"]["low"] <= NEGLIGIBLE * measured["tolerance"]
    assert 0 < measured["bound"] <= measured["tolerance"]
    assert measured["speedup"] > 3


SIZES = "base", "large", "huge"
TOKENS = "latent_size", "scales", "max_positions"
"""Fields that say how many tokens an image has, or may have."""


@pytest.mark.parametrize(
    ("name", "steps", "solver"),
    [
        *((f"mar-{size}", "linear:12-3", "dpm-solver++-2@logsnr") for size in SIZES),
        *((f"flowar-{size}", "constant:5", "heun@shifted-0.33") for size in ("small", *SIZES[1:])),
        *((f"xar-{size}", "linear:8-4", "heun@uniform") for size in SIZES),
        *((f"harmon-{size}", "linear:20-4", "ddpm@clipped-950") for size in ("0.5b", "1.5b")),
    ],
)
def test_published_models_are_drawn_by_what_their_family_bears(
    name: str, steps: str, solver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of random weights of that architecture, small."""
    if name.startswith("harmon"):
        pytest.importorskip("transformers")
    config: Any = PRESETS[name].spec.architecture
    tokens = {field: value for field, value in vars(config).items() if field in TOKENS}
    monkeypatch.setitem(PRESETS, name, small.changed(PRESETS[name], architecture=narrow(config, **tokens)))
    sampler = Sampler(PRESETS[name], PRESETS[name].build().eval(), device="cpu")
    with pytest.warns(UserWarning, match=f"fast was measured for model {PRESETS[name].spec.family}-(digits|shapes)"):
        found = sampler.settings(recipe="fast")
    assert (str(found.steps), str(found.solver)) == (steps, solver)
    assert str(found.reuse) == ("residual:9" if name.startswith(("mar", "harmon")) else "None")
    if name.startswith("mar"):
        assert found.num_ar_steps == 32
        assert found.counts is not None
        assert found.counts.known(256, 32)[0] == 0


FAMILIES = sorted(place for place in in_package("").glob("*-fast.json") if place not in SHIPPED)


@pytest.mark.parametrize("place", FAMILIES, ids=[place.stem for place in FAMILIES])
def test_what_a_family_is_drawn_by_shows_no_loss_and_is_for_any_weights(place: Path) -> None:
    """Its difference is one of a distance where there are digits, of a score where there are shapes."""
    content = json.loads(place.read_text())
    family, measured = place.stem.removesuffix("-fast"), content["measured"]
    preset = PRESETS[content["model"]]
    assert preset.spec.family == family
    worse = measured["difference"]["low"] if preset.defaults.quality == "digits" else -measured["difference"]["high"]
    assert worse <= 0
    assert measured["images"] >= 2000
    assert measured["speedup"] > 1.5
    assert not {"plan", "table"} & set(re.findall(r"[a-z]+", json.dumps(content["settings"])))


def test_a_recipe_of_another_model_is_used_with_a_warning(sampler: Sampler, tmp_path: Path) -> None:
    place = recipe(tmp_path, {"format": 1, "model": "mar-base", "settings": {"steps": "constant:2"}})
    with pytest.warns(UserWarning, match="measured for model mar-base"):
        assert str(sampler.settings(recipe=str(place)).steps) == "constant:2"
    about = {"format": 1, "model": "small", "weights": sampler.weights_hash, "settings": {}}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler.settings(recipe=str(recipe(tmp_path, about)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "expected an object of format 1"),
        ({"format": 2, "settings": {}}, "format 1, found 2"),
        ({"format": 1}, "options under `settings`"),
        ({"format": 1, "settings": {"recipe": "x"}}, "without another recipe"),
        ({"format": 1, "settings": {"stepz": "x"}}, "no option 'stepz'"),
        ({"format": 1, "settings": {"guidance": "much"}}, "guidance must be"),
        ({"format": 1, "model": 3, "settings": {}}, "model must be a text"),
    ],
)
def test_what_is_no_recipe_is_one_line(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(DisaError) as error:
        read_recipe(recipe(tmp_path, content))
    assert words in str(error.value)
    assert "no recipe that `disa tune` wrote" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_is_no_part_of_filled_in_settings(sampler: Sampler, tmp_path: Path) -> None:
    found = sampler.settings(recipe=str(recipe(tmp_path, steps="constant:2")))
    assert found.recipe is None
    assert "recipe" not in found.to_json()
    assert sampler.settings(Settings(recipe=str(tmp_path)), steps="constant:3").steps == sampler.settings(steps=3).steps
