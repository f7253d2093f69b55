"""The binary autoencoder, and whole BitDance models in files and folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import small
from disa.codecs.binary import BinaryAE, BinaryCodec, BinaryConfig
from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import PRESETS, find_preset
from disa.models.spec import Preset
from disa.weights.convert import convert
from disa.weights.folders import save_codec
from disa.weights.load import load_codec, load_model

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = BinaryConfig(latent_channels=8, block_widths=(32, 32, 64), layers_per_block=1, in_channels=1)
PRESET = small.changed(small.BITDANCE, name="mine", codec=CONFIG, embedded_codec="")


def codec(config: BinaryConfig = CONFIG) -> BinaryCodec:
    return BinaryCodec(small.randomised(BinaryAE(config)))


def model(preset: Preset = PRESET) -> Any:
    return small.randomised(preset.build())


def images(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# -- the autoencoder ---------------------------------------------------------------------------------------------------


def test_the_published_one_has_its_published_size():
    with torch.device("meta"):
        network = BinaryAE(BinaryConfig())
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(460e6, rel=0.01)
    assert (BinaryConfig().stride, BinaryConfig().finest_width) == (16, 256)


def test_latents_are_signs_whatever_the_noise():
    latents = codec().encode(images(3), torch.randn(3, 8, 8, 8))
    assert latents.shape == (3, 8, 8, 8)
    assert set(latents.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(latents, codec().encode(images(3)))


def test_an_image_does_not_depend_on_its_batch():
    used, pictures = codec(), images(5)
    latents = used.encode(pictures)
    decoded = used.decode(latents)
    assert decoded.shape == pictures.shape
    for part in (slice(1), slice(1, 4)):
        assert torch.equal(used.encode(pictures[part]), latents[part])
        assert torch.equal(used.decode(latents[part]), decoded[part])


def test_a_size_that_cannot_be_cut_is_one_clear_error():
    with pytest.raises(DisaError, match="must be multiples of 4, found 30 x 32"):
        codec().encode(images(1)[:, :, :30])
    with pytest.raises(DisaError, match="multiples of 32"):
        BinaryConfig(block_widths=(32, 48))


@pytest.mark.parametrize("prefix", ["", "vae."])
@pytest.mark.parametrize("container", [True, False])
def test_an_official_file_is_read(tmp_path: Path, prefix: str, container: bool):
    state: dict[str, Any] = {f"{prefix}{name}": value for name, value in codec().network.state_dict().items()}
    state |= {"loss.discriminator.main.0.weight": torch.zeros(3)}
    torch.save({"state_dict": state} if container else state, tmp_path / "ae.pt")
    latents = codec().encode(images(2))
    assert torch.equal(load_codec(PRESET, tmp_path / "ae.pt").decode(latents), codec().decode(latents))


@pytest.mark.parametrize("damage", ["missing", "shape", "nan"])
def test_a_damaged_file_is_one_clear_error(tmp_path: Path, damage: str):
    state = codec().network.state_dict()
    name = "decoder.conv_in.weight"
    if damage == "missing":
        del state[name]
    elif damage == "shape":
        state[name] = state[name][:, :4]
    else:
        state[name] = state[name] * float("nan")
    torch.save(state, tmp_path / "ae.pt")
    with pytest.raises(DisaError, match=name) as error:
        load_codec(PRESET, tmp_path / "ae.pt")
    assert str(error.value).startswith(f"{tmp_path / 'ae.pt'} cannot be used: ")


def test_autoencoders_of_other_kinds_are_told_apart(tmp_path: Path):
    binary = save_codec(tmp_path / "binary", codec())
    other = save_codec(tmp_path / "other", codec(replace(CONFIG, block_widths=(32, 64, 64))))
    small_one = save_codec(tmp_path / "small", SmallCodec(SmallVAE(SmallVAEConfig())))
    with pytest.raises(DisaError, match="it is a binary autoencoder of disa, mar-base needs a KL-16"):
        load_codec(find_preset("mar-base"), binary)
    with pytest.raises(DisaError, match=r"its block_widths is \(32, 64, 64\), the model's is \(32, 32, 64\)"):
        load_codec(PRESET, other)
    with pytest.raises(DisaError, match="does not fit the autoencoder of this model"):
        load_codec(PRESET, small_one)
    with pytest.raises(DisaError, match=r"give one with vae=FILE \(ae_d16c32.pt\)"):
        load_codec(PRESET)


# -- whole models ------------------------------------------------------------------------------------------------------


def test_a_model_draws_the_same_after_it_was_saved_and_converted(tmp_path: Path):
    sampler = Sampler(PRESET, model(), codec(), device="cpu")
    expected = sampler.sample([3, 5], [0, 1])
    assert expected.images.shape == (2, 1, 32, 32)
    folder = sampler.save_pretrained(tmp_path / "folder")
    convert(folder, None, tmp_path / "copy")
    for place in (folder, tmp_path / "copy"):
        again = Sampler.load(place, device="cpu")
        assert (again.preset.spec, again.preset.defaults) == (PRESET.spec, PRESET.defaults)
        drawn = again.sample([3, 5], [0, 1])
        assert torch.equal(drawn.images, expected.images)
        assert drawn.settings == expected.settings


def test_an_official_checkpoint_is_converted_with_its_average(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(PRESETS, PRESET.name, PRESET)
    state = PRESET.official_names().to_official(model().state_dict())
    average = {name: value + 1 for name, value in state.items()}
    torch.save({"model": state, "ema": average, "opt": {}}, tmp_path / "official.pt")
    torch.save(codec().network.state_dict(), tmp_path / "ae.pt")
    convert(tmp_path / "official.pt", "mine", tmp_path / "folder", tmp_path / "ae.pt")
    again = Sampler.load(tmp_path / "folder", device="cpu")
    found = PRESET.official_names().to_official(load_model(PRESET, tmp_path / "official.pt").state_dict())
    assert all(torch.equal(found[name], value) for name, value in average.items())
    assert again.sample([1], 0, steps="constant:1").images.shape == (1, 1, 32, 32)
