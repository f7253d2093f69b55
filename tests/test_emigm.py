"""eMIGM on tiny random weights: its shared mask token, which AR steps are guided, its files, and its autoencoder."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from conftest import GOLDEN
from disa.codecs import dc
from disa.codecs.dc import DCCodec, DCConfig
from disa.core.noise import SeededNoise
from disa.core.orders import Counts
from disa.core.request import Guidance, Request
from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.emigm.config import EMIGMConfig
from disa.models.emigm.model import EMIGM
from disa.models.emigm.names import official_names
from disa.models.mar.model import MAR
from disa.models.registry import PRESETS, find_preset
from disa.study.compare import compare
from disa.weights.config import changed, from_json, to_json
from disa.weights.convert import convert
from disa.weights.folders import save_codec
from disa.weights.load import load_codec, load_model
from golden import report

pytestmark = pytest.mark.usefixtures("one_thread")

PRESET = small.EMIGM
CONFIG = PRESET.spec.architecture
LABELS, SEEDS = [3, 9, 0], [5, 6, 1 << 40]
DC = DCConfig(
    latent_channels=4, block_widths=(16, 32, 32), encoder_layers=(0, 1, 1), decoder_layers=(0, 2, 1),
    attention_levels=1,
)  # fmt: skip


def model(config: EMIGMConfig = CONFIG) -> EMIGM:
    return small.randomised(EMIGM(config))


def sampler(**values: Any) -> Sampler:
    return Sampler(small.changed(PRESET, **values), model(), device="cpu")


def official(config: EMIGMConfig = CONFIG) -> dict[str, Tensor]:
    return official_names(config).to_official(model(config).state_dict())


# -- recorded runs -----------------------------------------------------------------------------------------------------

RECORDED = sorted(GOLDEN.with_name("golden-more").glob("emigm_*.json"))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_it_reproduces_the_official_code(path: Path):
    line, _ = report(path)
    assert line.endswith("  ok"), line


# -- architecture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "megabytes"),
    [
        ("emigm-xsmall", 276),
        ("emigm-small", 387),
        ("emigm-base", 832),
        ("emigm-large", 1910),
        ("emigm-huge", 3770),
        ("emigm-xsmall-512", 418),
        ("emigm-small-512", 529),
        ("emigm-base-512", 977),
        ("emigm-large-512", 1910),
    ],
)
def test_published_models_have_the_size_of_their_files(name: str, megabytes: int):
    preset = find_preset(name)
    with torch.device("meta"):
        built: Any = preset.build()
    assert sum(p.numel() for p in built.parameters()) * 4e-6 == pytest.approx(megabytes, rel=0.003)
    assert from_json(to_json(preset)) == preset


def test_the_mask_token_is_the_vector_of_no_class():
    shared, apart = model(), model(replace(CONFIG, shares_mask_token=False))
    assert "mask_token" not in shared.state_dict()
    assert set(apart.state_dict()) - set(shared.state_dict()) == {"mask_token"}
    values = shared.state_dict() | {"mask_token": shared.no_class[None].clone()}
    apart.load_state_dict(values)
    own = MAR(small.CONFIG)
    own.load_state_dict(values)
    tokens, everything = torch.randn(2, 16, 4), torch.arange(16).expand(2, -1)
    visible, embedding = everything[:, ::3], torch.randn(2, 32)
    found = [each.condition(tokens, embedding, visible, everything) for each in (shared, apart, own)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_unequal_widths_cannot_share_a_mask_token():
    with pytest.raises(DisaError, match="encoder_width = 32 and decoder_width = 48 must be equal where shares"):
        replace(CONFIG, decoder_width=48)
    assert replace(CONFIG, decoder_width=48, shares_mask_token=False).decoder_width == 48


# -- files -------------------------------------------------------------------------------------------------------------


def test_the_official_average_of_the_mask_token_does_not_count(tmp_path: Path):
    """As in the official evaluation: an average has the plain value under one of its two names."""
    state = official()
    assert torch.equal(state["mask_token"], state["fake_latent"])
    for names in ({"mask_token", "fake_latent"}, {"mask_token"}):
        given = {name: value for name, value in state.items() if name not in {"mask_token", "fake_latent"} - names}
        given |= {"fake_latent": state["fake_latent"] + 1} if "fake_latent" in names else {}
        path = tmp_path / f"{len(names)}.pth"
        torch.save({"model_ema": given, "model": {name: value + 9 for name, value in given.items()}}, path)
        loaded = load_model(PRESET, path).state_dict()
        assert all(torch.equal(value, loaded[name]) for name, value in model().state_dict().items())
    torch.save(state | {"fake_latent": state["fake_latent"][0]}, tmp_path / "odd.pth")
    with pytest.raises(DisaError, match=r"fake_latent should be \(1, 32\), found \(32,\)"):
        load_model(PRESET, tmp_path / "odd.pth")


def test_a_checkpoint_with_a_mask_token_of_its_own_says_how_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("disa.weights.fitting.PRESETS", {PRESET.name: PRESET})
    monkeypatch.setitem(PRESETS, PRESET.name, PRESET)
    said = argparse.Namespace(use_unsup_cfg=False, class_num=10)
    torch.save({"model": official(replace(CONFIG, shares_mask_token=False)), "args": said}, tmp_path / "own.pth")
    with pytest.raises(DisaError, match=r"It fits after .*--set shares_mask_token=false --name NAME"):
        load_model(PRESET, tmp_path / "own.pth")
    options = {"values": {"shares_mask_token": False}, "name": "mine"}
    convert(tmp_path / "own.pth", PRESET.name, tmp_path / "folder", **options)
    assert "mask_token" in Sampler.load(tmp_path / "folder", device="cpu").model.state_dict()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"counts": "table:/etc/passwd"}, "defaults.counts is .*: expected one of cosine, exp, linear, log"),
        ({"progress": [0.7, 0.2]}, "the guidance progress must be two shares"),
        ({"ramp": "square"}, "guidance ramp"),
        ({"solver": "dpm-solver++-3s", "grid": "nextstep"}, "unknown grid 'nextstep'"),
    ],
)
def test_defaults_that_cannot_be_are_refused(values: dict[str, Any], message: str):
    with pytest.raises(DisaError, match=message):
        changed(PRESET, values)


# -- drawing -----------------------------------------------------------------------------------------------------------


def test_defaults_say_counts_and_which_ar_steps_are_guided():
    settings = sampler().settings()
    told = settings.to_json()
    assert (told["counts"], told["progress"], told["ramp"]) == ("exp", [0.3, 0.7], "constant")
    assert str(settings.solver) == "dpm-solver++-3s@emigm"
    trace = sampler().sample(LABELS, SEEDS, output_type="latent", steps="constant:3").trace
    assert [step.rows // 3 for step in trace] == [1, 1, 3, 11]
    assert [step.evaluations // step.rows for step in trace] == [3, 6, 6, 3]
    everywhere = sampler().sample(LABELS, SEEDS, output_type="latent", counts="linear", progress=(0, 1)).trace
    assert [step.rows // 3 for step in everywhere] == [4, 4, 4, 4]
    assert [step.evaluations // step.rows for step in everywhere] == [10, 8, 6, 4]


@pytest.mark.parametrize(
    ("ramp", "shares"),
    [
        ("linear", [0.25, 0.5, 0.75, 1]),
        ("power", [1 / 16, 1 / 4, 9 / 16, 1]),
        ("cubic", [1 / 64, 1 / 8, 27 / 64, 1]),
        ("exp", [0.713495, 0.917915, 0.976482, 0.993262]),
        ("cosine", [0.382683, 0.707107, 0.923880, 1]),
        ("falling", [0.75, 0.5, 0.25, 0]),
    ],
)
def test_a_ramp_ends_at_all_of_an_image(ramp: str, shares: list[float]):
    """MAR's ends one token before."""
    request = Request(1, 4, torch.tensor([3]), Guidance(3.0, ramp), counts=Counts("linear"))
    found = model().begin(request, SeededNoise([0])).scales
    assert found == pytest.approx([1 + 2 * share for share in shares], abs=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"solver": "ddpm", "grid": "full", "temperature": 0.6, "ramp": "linear"},
        {"solver": "ddim", "grid": "uniform", "counts": "log", "order": "halton"},
        {"solver": "dpm-solver++-2", "grid": "emigm", "reuse": "residual:2+tokens:2", "num_ar_steps": 7},
        {"steps": "cosine:6-1/drawn", "grid": "logsnr"},
        {"steps": "frequency:5-2"},
    ],
    ids=str,
)
def test_an_image_does_not_depend_on_its_batch(options: dict[str, Any]):
    whole = sampler().sample(LABELS, SEEDS, output_type="latent", **options).latents
    part = sampler().sample(LABELS[1:], SEEDS[1:], output_type="latent", batch_size=1, **options).latents
    assert torch.isfinite(whole).all()
    assert torch.equal(whole[1:], part)


def test_known_tokens_are_kept():
    mask = torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 1:3] = True
    known = torch.rand(1, 1, 8, 8)
    drawn = sampler().sample(1, 0, known=known, mask=mask, num_ar_steps=3, output_type="latent").latents
    assert torch.equal(drawn[:, :, :2], known[:, :, :2])
    assert not torch.equal(drawn[:, :, 2:6], known[:, :, 2:6])


def test_policies_are_compared():
    settings = sampler().settings(batch_size=2)
    found = compare(sampler(), ["constant:6", "linear:6-2"], Inputs.paired(SEEDS, LABELS), settings)
    assert [policy.counts for policy in found.policies] == [[6] * 4, [6, 4, 3, 2]]
    assert found.policies[1].evaluations < found.policies[0].evaluations


def test_a_converted_checkpoint_draws_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, PRESET.name, PRESET)
    torch.save({"model": official()}, tmp_path / "official.pth")
    convert(tmp_path / "official.pth", PRESET.name, tmp_path / "folder")
    again = Sampler.load(tmp_path / "folder", device="cpu")
    assert (again.preset.spec, again.preset.defaults) == (PRESET.spec, PRESET.defaults)
    first = sampler().sample(LABELS, SEEDS, output_type="latent").latents
    assert torch.equal(again.sample(LABELS, SEEDS, output_type="latent").latents, first)


# -- the autoencoder of 512 px -----------------------------------------------------------------------------------------


def codec(config: DCConfig = DC) -> DCCodec:
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return DCCodec(dc.build(config).requires_grad_(False))


def pictures(count: int) -> Tensor:
    return torch.rand(count, 3, 16, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def with_codec(tmp_path: Path, **values: Any) -> Path:
    return save_codec(tmp_path / "vae", codec(replace(DC, **values)))


WITH_DC = small.changed(
    PRESET, codec=DC, architecture=replace(CONFIG, latent_channels=4, patch_size=1, latent_size=(4, 4))
)


def test_the_published_one_is_built():
    pytest.importorskip("diffusers")
    with torch.device("meta"):
        network = dc.build(DCConfig())
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(323.4e6, rel=0.001)
    assert (DCConfig().stride, DCConfig().finest_width) == (32, 128)


def test_latents_are_scaled_and_do_not_depend_on_noise_or_batch():
    used, images = codec(), pictures(3)
    latents = used.encode(images, torch.randn(3, 4, 4, 2))
    with torch.no_grad():
        plain = used.network.encode(images, return_dict=False)[0]
        torch.testing.assert_close(latents, plain * 0.3189)
        torch.testing.assert_close(used.decode(latents), used.network.decode(plain, return_dict=False)[0])
    assert torch.equal(used.encode(images[1:2]), latents[1:2])
    assert torch.equal(used.decode(latents[:1]), used.decode(latents)[:1])


def test_a_folder_of_diffusers_is_read_and_written(tmp_path: Path):
    expected = codec().decode(torch.ones(1, 4, 2, 2))
    place = with_codec(tmp_path)
    assert torch.equal(load_codec(WITH_DC, place).decode(torch.ones(1, 4, 2, 2)), expected)
    weights = place / "diffusion_pytorch_model.safetensors"
    bare = weights.rename(tmp_path / "dc.safetensors")
    assert torch.equal(load_codec(WITH_DC, bare).decode(torch.ones(1, 4, 2, 2)), expected)
    drawing = Sampler(WITH_DC, model(WITH_DC.spec.architecture), load_codec(WITH_DC, bare), device="cpu")
    folder = drawing.save_pretrained(tmp_path / "model")
    first, again = (each.sample(LABELS, SEEDS) for each in (drawing, Sampler.load(folder, device="cpu")))
    assert first.images.shape == (3, 3, 16, 16)
    assert torch.equal(first.images, again.images)


def test_another_autoencoder_is_one_clear_error(tmp_path: Path):
    with pytest.raises(DisaError, match=r"its scaling_factor is 0\.41.*, the model's is 0.3189: give the autoencoder"):
        load_codec(WITH_DC, with_codec(tmp_path, scale=0.41407))
    with pytest.raises(DisaError, match="does not fit the autoencoder of this model"):
        load_codec(WITH_DC, with_codec(tmp_path / "deeper", encoder_layers=(1, 1, 1)))
    with pytest.raises(DisaError, match=r"give one with vae=FILE \(the folder dc-ae-f32c32-in-1.0-diffusers\)"):
        load_codec(WITH_DC)
    with pytest.raises(DisaError, match=r"it holds no KL autoencoder .*, mar-base needs one such as kl16\.ckpt"):
        load_codec(find_preset("mar-base"), with_codec(tmp_path / "for-mar"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decoder_layers": (1, 1)}, "as many encoder_layers and decoder_layers as block_widths"),
        ({"attention_levels": 4}, "attention_levels must be 1 to 3"),
        ({"block_widths": (16, 32, 48)}, "multiples of 32 where it attends"),
        ({"latent_channels": 5}, "latent_channels = 5"),
    ],
)
def test_a_shape_that_cannot_be_is_one_clear_error(values: dict[str, Any], message: str):
    with pytest.raises(DisaError, match=message):
        replace(DC, **values)
