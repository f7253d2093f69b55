"""FlowAR, xAR and BitDance through what serves every model: sampler, folders, official files, commands, comparison."""

import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import small
from disa import cli
from disa.core.texts import parse
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Preset
from disa.study.compare import compare
from disa.weights.convert import convert
from disa.weights.load import load_model
from small import changed

FAMILIES = ("flowar", "xar", "bitdance")
SIZES = {"flowar": "flowar-small", "xar": "xar-base", "bitdance": "bitdance-base"}
QUICK = {"steps": "linear:4-2", "batch_size": 3}


def shrunk(name: str) -> Preset:
    """The embedded preset with a network that every test can afford; the latents stay those of the digits."""
    if name == small.BITDANCE.name:
        return small.BITDANCE
    preset = find_preset(name)
    shape = {"width": 32, "encoder_depth": 1, "decoder_depth": 1, "num_heads": 2}
    if name.startswith("flowar"):
        shape |= {"head_width": 32, "head_depth": 1, "head_heads": 2}
    return changed(preset, architecture=replace(preset.spec.architecture, **shape), page="https://example.org")


def weights(preset: Preset) -> dict[str, Tensor]:
    """Random everywhere, under our names."""
    return small.randomised(preset.build()).state_dict()


@pytest.fixture(params=FAMILIES)
def preset(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Preset:
    """A small model of each family, known under its embedded name."""
    preset = shrunk(f"{request.param}-digits")
    monkeypatch.setitem(PRESETS, preset.name, preset)
    return preset


@pytest.fixture
def official(preset: Preset, tmp_path: Path) -> Path:
    """An official training checkpoint: with buffers that follow from the architecture, and with a moving average."""
    state = preset.official_names().to_official(weights(preset))
    if preset.spec.family != "bitdance":
        state |= {"mask": torch.zeros(1, 1, 2, 2), "encoder_blocks.0.attn.rope.freqs": torch.zeros(4)}
    path = tmp_path / "checkpoint.pth"
    torch.save({"model_ema": state, "model": {name: value + 1 for name, value in state.items()}}, path)
    return path


def sampler(preset: Preset) -> Sampler:
    return Sampler(preset, load_model_of(preset), device="cpu")


def load_model_of(preset: Preset):
    model = preset.build()
    model.load_state_dict(weights(preset))
    return model


# -- weights ---------------------------------------------------------------------------------------------------------


def test_an_official_checkpoint_loads_its_average(preset: Preset, official: Path) -> None:
    expected = weights(preset)
    assert all(torch.equal(value, expected[name]) for name, value in load_model(preset, official).state_dict().items())


def test_a_converted_folder_draws_the_same_images(preset: Preset, official: Path, tmp_path: Path) -> None:
    files = convert(official, preset.name, tmp_path / "folder")
    assert set(files) == {"model.safetensors", "config.json"}
    about = json.loads((tmp_path / "folder" / "config.json").read_text())
    assert (about["family"], about["name"]) == (preset.spec.family, preset.name)
    first = sampler(preset).sample([3, 5], [0, 1], steps="linear:4-2")
    second = Sampler.load(tmp_path / "folder", device="cpu").sample([3, 5], [0, 1], steps="linear:4-2")
    assert torch.equal(first.latents, second.latents)


def test_official_names_are_written_back(preset: Preset, official: Path, tmp_path: Path) -> None:
    convert(official, preset.name, tmp_path / "names", official=True)
    again = load_model(preset, tmp_path / "names" / f"{preset.name}.safetensors")
    assert all(torch.equal(value, weights(preset)[name]) for name, value in again.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_of_another_size_names_it(family: str, tmp_path: Path) -> None:
    """Of the official sizes, at the cost of no memory: a tensor that repeats one value is stored once."""
    found, wanted = find_preset(SIZES[family]), find_preset(f"{family}-large")
    with torch.device("meta"):
        shapes = found.official_names().to_official(found.build().state_dict())
    state = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
    torch.save(state, tmp_path / "small.pth")
    with pytest.raises(DisaError, match=f"It is a checkpoint of {found.name}: load it as that"):
        load_model(wanted, tmp_path / "small.pth")


def test_another_family_is_refused(preset: Preset, official: Path) -> None:
    other = find_preset("mar-base")
    with pytest.raises(DisaError, match="does not fit this model"):
        load_model(other, official)


@pytest.mark.parametrize("broken", ["nan", "truncated", "shape", "missing"])
def test_a_damaged_checkpoint_is_one_clear_error(preset: Preset, tmp_path: Path, broken: str) -> None:
    state, path = preset.official_names().to_official(weights(preset)), tmp_path / "broken.pth"
    name = next(iter(state))
    if broken == "nan":
        state[name] = state[name].clone().fill_(float("nan"))
    elif broken == "shape":
        state[name] = state[name][:-1]
    elif broken == "missing":
        del state[name]
    torch.save(state, path)
    if broken == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DisaError) as error:
        load_model(preset, path)
    assert len(str(error.value).splitlines()) == 1
    assert "broken.pth" in str(error.value)


# -- drawing ---------------------------------------------------------------------------------------------------------


def test_an_image_does_not_depend_on_its_batch(preset: Preset) -> None:
    model = sampler(preset)
    labels, seeds = [3, 5, 7, 1, 0], [4, 9, 2, 7, 1]
    whole = model.sample(labels, seeds, steps="linear:4-2", batch_size=5)
    parts = model.sample(labels[::-1], seeds[::-1], steps="linear:4-2", batch_size=2)
    assert torch.equal(whole.latents, parts.latents.flip(0))
    assert torch.equal(whole.images, parts.images.flip(0))


def rows_at_first(preset: Preset) -> int:
    """Of one image: both halves of a BitDance draw in the first AR step, where nothing is guided."""
    return 2 if preset.spec.family == "bitdance" else 1


def test_evaluations_and_rows_are_counted(preset: Preset) -> None:
    result = sampler(preset).sample([1, 2], [0, 1], steps="constant:4", grid="uniform", interval=(0.0, 1.0))
    first = 2 * rows_at_first(preset)
    assert [step.rows for step in result.trace] == [first, 2, 2, 2]
    # Nothing is guided in the first AR step; afterwards every evaluation counts two.
    assert [step.evaluations for step in result.trace] == [4 * first, 16, 16, 16]
    limited = sampler(preset).sample([1, 2], [0, 1], steps="constant:4", grid="uniform", interval=(0.0, 0.5))
    assert [step.evaluations for step in limited.trace] == [4 * first, 12, 12, 12]
    assert sampler(preset).sample([1], 0, steps="constant:4", grid="uniform", guidance=1.0).evaluations == 16


def test_policies_start_from_the_same_noise_and_can_be_compared(preset: Preset) -> None:
    model = sampler(preset)
    result = compare(model, ["constant:6", "linear:6-2"], Inputs.paired([0, 1], [0, 1]), model.settings(batch_size=2))
    assert [policy.steps for policy in result.policies] == ["constant:6", "linear:6-2"]
    assert result.policies[1].counts == [6, 4, 3, 2]
    assert result.policies[1].evaluations < result.policies[0].evaluations


@cache
def end_of_the_path(name: str) -> Tensor:
    """Latents at the end of the probability-flow ODE, gone along in many small steps."""
    options = {"steps": "constant:100", "solver": "euler", "grid": "shifted-2", "interval": (0.0, 1.0)}
    return sampler(shrunk(name)).sample([1], [0], output_type="latent", **options).latents


@pytest.mark.parametrize("solver", ["euler", "heun", "euler-maruyama", "dpm-solver++-2"])
@pytest.mark.parametrize("policy", ["constant:3", "two-stage:5-2", "linear:5-2", "cosine:5-1", "linear:2-5"])
def test_every_policy_goes_with_every_solver(preset: Preset, solver: str, policy: str) -> None:
    model, asked = sampler(preset), parse(policy).counts(4)
    options = {"steps": policy, "solver": solver, "grid": "shifted-2", "interval": (0.0, 1.0), "output_type": "latent"}
    found = model.sample([1, 2], [0, 1], **options)
    # Nothing is guided in the first AR step; afterwards every evaluation counts two.
    first = 2 * rows_at_first(preset) * asked[0]
    assert [step.evaluations for step in found.trace] == [first, *(4 * count for count in asked[1:])]
    assert torch.equal(model.sample([2], [1], **options).latents, found.latents[1:])
    if preset.spec.family == "bitdance":
        assert torch.equal(found.latents.abs(), torch.ones(2, 8, 8, 8))
        return
    exact = end_of_the_path(preset.name)
    # Noise that is added on the way leads to another image of the same kind.
    assert ((found.latents[:1] - exact).norm() < 0.5 * exact.norm()) == (solver != "euler-maruyama")
    assert 0.5 < found.latents.std() / exact.std() < 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ar_steps": 3}, "the number of AR steps must be 4, found 3"),
        ({"solver": "ddpm"}, "needs a model that predicts noise; this one predicts velocity: choose"),
        ({"grid": "clipped-950"}, "unknown grid 'clipped-950': expected one of uniform"),
        ({"interval": (0.9, 0.1)}, "the guidance interval must be"),
    ],
)
def test_mistakes_are_found_before_any_work(preset: Preset, options: dict, message: str) -> None:
    with pytest.raises(DisaError, match=message):
        sampler(preset).settings(**options)


def test_known_tokens_cannot_be_kept(preset: Preset) -> None:
    with pytest.raises(DisaError, match="cannot keep known tokens; use a MAR model"):
        sampler(preset).sample([1], known=torch.zeros(1, 8, 8, 8), mask=torch.ones(1, 8, 8, dtype=torch.bool))


# -- the command line ------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["disa", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_sample_writes_pictures(
    preset: Preset, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = ("--model", preset.name, "--checkpoint", official, "--device", "cpu", "--steps", "linear:4-2")
    options += ("--guidance-interval", "0-0.7", "--labels", "3-4", "--seeds", "7", "--out", out, "--json")
    assert run(monkeypatch, "sample", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["settings"]["model"] == preset.name
    with Image.open(out / "samples" / "seed000007_label0003.png") as picture:
        assert picture.size == (32, 32)


def test_a_picture_to_keep_is_refused_before_anything_is_written(
    preset: Preset, official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (32, 32)).save(tmp_path / "picture.png")
    options = ("--model", preset.name, "--checkpoint", official, "--keep", tmp_path / "picture.png", "--box", "0,0,2,2")
    assert run(monkeypatch, "sample", *options, "--out", tmp_path / "out") == 2
    assert "cannot keep known tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("bitdance-base", "mar-base"),
        ("xar-base", "bitdance-base"),
        ("bitdance-base-4x", "bitdance-base-16x"),
        ("bitdance-base", "bitdance-base-4x"),
        ("emigm-base", "mar-base"),
        ("mar-base", "emigm-base"),
        ("emigm-xsmall", "emigm-small"),
    ],
)
def test_a_checkpoint_of_another_model_names_it(given: str, wanted: str, tmp_path: Path):
    """MAR-B and eMIGM-B differ in one tensor, as 4x and 16x do. Of the official sizes, at the cost of no memory: one
    value is stored once."""
    preset = find_preset(given)
    with torch.device("meta"):
        shapes = preset.official_names().to_official(preset.build().state_dict())
    torch.save({name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}, tmp_path / "other.pt")
    with pytest.raises(DisaError, match=f"It is a checkpoint of {re.escape(given)}: load it as that"):
        load_model(find_preset(wanted), tmp_path / "other.pt")
