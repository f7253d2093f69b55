"""Autoencoders as people have them: what diffusers reads is read, with its own scale; all else is refused in a line."""

from __future__ import annotations

import errno
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import small
from command import Command, complaint
from disa.codecs import kl16
from disa.codecs.kl16 import KL16Codec, VAEConfig
from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import find_preset
from disa.models.spec import Preset
from disa.weights.autoencoders import find_files
from disa.weights.convert import convert
from disa.weights.folders import save_codec, save_model
from disa.weights.load import load_codec

pytest.importorskip("diffusers")

NARROW = VAEConfig(latent_channels=4, block_widths=(8, 16, 16), layers_per_block=1, norm_groups=4,
                   encoder_attention_levels=(2,))  # fmt: skip
PRESET = small.changed(find_preset("mar-digits"), name="mine", codec=NARROW)
LATENTS = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
STEM = "diffusion_pytorch_model"


def network(config: VAEConfig = NARROW) -> Any:
    torch.manual_seed(0)
    return kl16.build(config).requires_grad_(False).eval()


NETWORK = network()
STATE: dict[str, Tensor] = dict(NETWORK.state_dict())
OFFICIAL = kl16.to_official(STATE, NARROW)
PICTURE = KL16Codec(NETWORK).decode(LATENTS)


def drawn(place: Path, preset: Preset = PRESET) -> Tensor:
    """What it decodes; a warning is an error."""
    with warnings.catch_warnings(action="error"):
        return load_codec(preset, place).decode(LATENTS)


def folder(place: Path, state: dict[str, Tensor], name: str = f"{STEM}.safetensors", **said: Any) -> Path:
    """As diffusers writes one; what is said as None is left out of its config.json."""
    place.mkdir(parents=True, exist_ok=True)
    config = {**json.loads(NETWORK.to_json_string()), **said}
    (place / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return written(place / name, state).parent


def written(path: Path, state: Any) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous().clone() for name, value in state.items()}, path, {"format": "pt"})
    else:
        torch.save(state, path)
    return path


def renamed(state: dict[str, Tensor], **names: str) -> dict[str, Tensor]:
    new = {}
    for name, value in state.items():
        for old, other in names.items():
            name = name.replace(f".{old.replace('__', '.')}.", f".{other}.")
        new[name] = value
    return new


OLD = renamed(STATE, to_q="query", to_k="key", to_v="value", to_out__0="proj_attn")
OLD_CONVOLUTIONS = {
    name: value[:, :, None, None] if value.ndim == 2 and "attentions" in name else value for name, value in OLD.items()
}
LOSS = {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(4, 3, 4, 4),
        "model_ema.decay": torch.zeros(()), "model_ema.num_updates": torch.zeros((), dtype=torch.int32),
        "model_ema.encoderconv_inweight": torch.zeros(2)}  # fmt: skip

FILES: dict[str, tuple[str, Any]] = {
    "the published one": ("kl16.ckpt", {"model": OFFICIAL}),
    "bare": ("kl16.pth", OFFICIAL),
    "official names in safetensors": ("kl16.safetensors", OFFICIAL),
    "diffusers' names in safetensors": ("kl16.safetensors", STATE),
    "diffusers' names in a pickle": ("vae.pt", STATE),
    "latent diffusion's training": ("last.ckpt", {"state_dict": OFFICIAL | LOSS, "epoch": 3}),
    "old names": ("old.safetensors", OLD),
    "old names, convolutions": ("old.bin", OLD_CONVOLUTIONS),
    "official names, linear maps": ("linear.ckpt", {
        name: value[:, :, 0, 0] if ".attn" in name and value.ndim == 4 else value for name, value in OFFICIAL.items()
    }),
}  # fmt: skip


@pytest.mark.parametrize("form", FILES)
def test_every_file_is_read(form: str, tmp_path: Path) -> None:
    name, content = FILES[form]
    assert torch.equal(drawn(written(tmp_path / name, content)), PICTURE)


@pytest.mark.parametrize("prefix", ["module.", "first_stage_model.", "vae.", "_orig_mod.", "module.first_stage_model."])
@pytest.mark.parametrize("state", [OFFICIAL, STATE, OLD], ids=["official", "diffusers", "old"])
def test_a_prefix_is_stripped_and_said(prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    # What wraps a whole model is left out of all names by whoever reads a file of weights.
    alone = prefix in ("module.", "_orig_mod.")
    others = {} if alone else {"model.diffusion_model.out.weight": torch.zeros(3), "encoder.x": torch.zeros(1)}
    path = written(tmp_path / "x.ckpt", {f"{prefix}{name}": value for name, value in (state | LOSS).items()} | others)
    with pytest.warns(UserWarning, match="stands under|is left out") as told:
        codec = load_codec(PRESET, path)
    assert prefix in str(told[0].message)
    assert torch.equal(codec.decode(LATENTS), PICTURE)


def without_config(place: Path) -> Path:
    (folder(place, STATE) / "config.json").unlink()
    return place


def indexed(place: Path) -> Path:
    folder(place / "vae", STATE)
    (place / "model_index.json").write_text("{}")
    return place


def official_file(place: Path) -> Path:
    place.mkdir()
    return written(place / "kl16.ckpt", {"model": OFFICIAL}).parent


def shards(place: Path, ending: str) -> Path:
    names = sorted(STATE)
    for number, part in enumerate((names[:40], names[40:80], names[80:]), 1):
        folder(place, {name: STATE[name] for name in part}, f"{STEM}-{number:05}-of-00003.{ending}")
    (place / f"{STEM}.{ending}.index.json").write_text('{"weight_map": {"a": "../../secret.safetensors"}}')
    return place


FOLDERS: dict[str, Callable[[Path], Path]] = {
    "plain": lambda place: folder(place, STATE),
    "without a config": without_config,
    "a pickle": lambda place: folder(place, STATE, f"{STEM}.bin"),
    "old names": lambda place: folder(place, OLD),
    "old names in a pickle": lambda place: folder(place, OLD_CONVOLUTIONS, f"{STEM}.bin"),
    "shards": lambda place: shards(place, "safetensors"),
    "shards of pickles": lambda place: shards(place, "bin"),
    "a pipeline": lambda place: folder(place / "vae", STATE).parent,
    "a pipeline with an index": indexed,
    "its file": lambda place: folder(place, STATE) / f"{STEM}.safetensors",
    "one official file": official_file,
    "the variant non_ema alone": lambda place: folder(place, STATE, f"{STEM}.non_ema.safetensors"),
    "a variant beside": lambda place: written(
        folder(place, STATE) / f"{STEM}.fp16.safetensors", {"broken": torch.zeros(1)}
    ).parent,
    "a pickle beside": lambda place: written(folder(place, STATE) / f"{STEM}.bin", {"broken": torch.zeros(1)}).parent,
    "no scale in the config": lambda place: folder(place, STATE, scaling_factor=None),
    "the config of an old version": lambda place: folder(
        place, STATE, **dict.fromkeys(("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention",
                                       "shift_factor", "latents_mean", "latents_std", "force_upcast", "_class_name"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FOLDERS)
def test_every_folder_is_read(form: str, tmp_path: Path) -> None:
    assert torch.equal(drawn(FOLDERS[form](tmp_path / "given")), PICTURE)


@pytest.mark.parametrize("name", [f"{STEM}.fp16.safetensors", f"{STEM}.fp16.bin"])
def test_the_half_precision_variant_alone_is_read(name: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "half", {key: value.half() for key, value in STATE.items()}, name)
    codec = load_codec(PRESET, place).to("cpu", torch.float32)
    assert (codec.decode(LATENTS) - PICTURE).abs().max() < 0.02 * PICTURE.abs().max()


def test_our_own_folder_of_a_model_is_read_as_its_autoencoder(tmp_path: Path) -> None:
    save_codec(save_model(tmp_path / "model", small.PRESET, small.weights()) / "vae", KL16Codec(NETWORK))
    assert torch.equal(drawn(tmp_path / "model"), PICTURE)


# -- their own scale -----------------------------------------------------------------------------------------------

MEANS, DEVIATIONS = [0.5, -0.25, 0.0, 1.0], [2.0, 0.5, 1.0, 4.0]


@pytest.mark.parametrize(
    ("said", "latents"),
    [
        ({"scaling_factor": 0.5}, LATENTS / 0.5 * 0.2325),
        ({"shift_factor": 0.125}, LATENTS + 0.125 * 0.2325),
        ({"shift_factor": -0.125, "scaling_factor": 1}, (LATENTS - 0.125) * 0.2325),
        ({"latents_mean": MEANS, "latents_std": DEVIATIONS},
         LATENTS * torch.tensor(DEVIATIONS)[:, None, None] + torch.tensor(MEANS)[:, None, None] * 0.2325),
    ],
)  # fmt: skip
def test_its_own_scale_counts_and_is_said(said: dict[str, Any], latents: Tensor, tmp_path: Path) -> None:
    """latents: those that the model's own scale decodes to the same picture."""
    place = folder(tmp_path / "own", STATE, **said)
    for given in (place, place / f"{STEM}.safetensors", folder(tmp_path / "pipe/vae", STATE, **said).parent):
        with pytest.warns(UserWarning, match=r"has its own scale .*; mine had scale 0.2325, shift 0$"):
            codec = load_codec(PRESET, given)
        torch.testing.assert_close(codec.decode(LATENTS), KL16Codec(NETWORK).decode(latents), rtol=1e-4, atol=1e-5)
        images = torch.rand(1, 3, 8, 8)
        sample = KL16Codec(NETWORK).encode(images) / 0.2325
        torch.testing.assert_close(codec.raw(codec.encode(images)), sample, rtol=1e-4, atol=1e-5)


def own_sampler(vae: Path) -> Sampler:
    config = replace(small.CONFIG, latent_size=(4, 4), patch_size=1, latent_channels=4)
    preset = small.changed(small.PRESET, name="mine", architecture=config, codec=NARROW)
    return Sampler(preset, small.randomised(preset.build()), vae, device="cpu")


@pytest.mark.filterwarnings("ignore:the autoencoder")
def test_its_scale_is_kept_and_tells_runs_apart(tmp_path: Path) -> None:
    told = {}
    for name, said in {"usual": {}, "scaled": {"scaling_factor": 0.5}, "shifted": {"shift_factor": 0.1}}.items():
        own = own_sampler(folder(tmp_path / name, STATE, **said))
        images = own.sample(3, 0).images
        told[name] = own.about()["vae"]
        saved = own.save_pretrained(tmp_path / f"{name}-saved")
        convert(saved, None, tmp_path / f"{name}-copy")
        for place in (saved, tmp_path / f"{name}-copy"):
            with warnings.catch_warnings(action="error"):
                again = Sampler.load(place, device="cpu")
                assert torch.equal(again.sample(3, 0).images, images)
    assert len(set(told.values())) == 3


def test_convert_keeps_the_scale_of_a_given_one(tmp_path: Path) -> None:
    plain = own_sampler(folder(tmp_path / "usual", STATE))
    plain._codec = None
    saved = plain.save_pretrained(tmp_path / "model")
    with pytest.warns(UserWarning, match="has its own scale 0.5, shift 0.1"):
        convert(saved, None, tmp_path / "out", folder(tmp_path / "own", STATE, scaling_factor=0.5, shift_factor=0.1))
    spec = Sampler.load(tmp_path / "out", device="cpu").spec
    assert isinstance(spec.codec, VAEConfig)
    assert (spec.codec.scale, spec.codec.shift) == (0.5, 0.1)
    said = json.loads((tmp_path / "out/vae/config.json").read_text())
    assert (said["scaling_factor"], said["shift_factor"]) == (0.5, 0.1)


@pytest.mark.parametrize("missing", [("quant_conv",), ("post_quant_conv",), ("quant_conv", "post_quant_conv")])
def test_networks_without_quantising_convolutions_are_read(missing: tuple[str, ...], tmp_path: Path) -> None:
    config = replace(NARROW, **dict.fromkeys(missing, False))
    other = network(config)
    expected, state = KL16Codec(other).decode(LATENTS), dict(other.state_dict())
    flags = {f"use_{name}": False for name in missing}
    places = [
        folder(tmp_path / "said", state, f"{STEM}.safetensors", **flags),
        written(tmp_path / "plain.safetensors", state),
        written(tmp_path / "official.ckpt", kl16.to_official(state, config)),
    ]
    for place in places:
        assert torch.equal(drawn(place), expected)
    save_codec(tmp_path / "again", load_codec(PRESET, places[0]))
    assert torch.equal(drawn(tmp_path / "again"), expected)


# -- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"latent_channels": 16}, "it makes latents of 16 channels, mine draws latents of 4"),
        ({"block_out_channels": [8, 16], "down_block_types": ["DownEncoderBlock2D"] * 2,
          "up_block_types": ["UpDecoderBlock2D"] * 2}, "its latents are 2 times smaller than images, those of mine 4"),
        ({"block_out_channels": [8, 8, 16]}, "its block_widths is [8, 8, 16], that of mine's autoencoder is"),
        ({"layers_per_block": 2}, "its layers_per_block is 2"),
        ({"norm_num_groups": 2}, "its norm_groups is 2"),
        ({"norm_num_groups": 3}, "multiples of norm_groups = 3"),
        ({"in_channels": 1, "out_channels": 1}, "its in_channels is 1"),
        ({"out_channels": 1}, "out_channels is 1, but in_channels is 3"),
        ({"down_block_types": ["DownEncoderBlock2D"] * 3}, "its encoder_attention_levels is []"),
        ({"up_block_types": ["AttnUpDecoderBlock2D"] * 3}, "blocks are of other types"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"mid_block_add_attention": False}, "mid_block_add_attention is False"),
        ({"_class_name": "AutoencoderTiny"}, "its class is 'AutoencoderTiny': expected AutoencoderKL"),
        ({"_class_name": "VQModel"}, "its class is 'VQModel'"),
        ({"scaling_factor": 0}, "scaling_factor must be a number"),
        ({"scaling_factor": float("nan")}, "holds the number NaN, which is not finite"),
        ({"scaling_factor": "big"}, "scaling_factor must be a number"),
        ({"shift_factor": [1]}, "shift_factor must be a number"),
        ({"latents_mean": [0.0]}, "latents_mean is [0.0]: expected one number for each of 4 channels"),
        ({"latents_mean": [0.0] * 4}, "means and deviations must both have 4 numbers or none"),
        ({"latents_mean": [0.0] * 4, "latents_std": [0.0] * 4}, "deviations must be above 0"),
        ({"latents_mean": [0.0] * 3 + ["x"], "latents_std": [1.0] * 4}, "latents_mean must be a number"),
        ({"block_out_channels": [8] * 60}, "block_out_channels has 60 entries"),
        ({"block_out_channels": "wide"}, "block_out_channels is 'wide'"),
        ({"latent_channels": 10**9}, "latent_channels must be a whole number from 1 to 4096"),
        ({"layers_per_block": 10**9}, "layers_per_block must be a whole number from 1 to 16"),
        ({"use_quant_conv": False}, "unexpected (quant_conv.bias, quant_conv.weight)"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_one_line(said: dict[str, Any], words: str, tmp_path: Path) -> None:
    refused(folder(tmp_path / "other", STATE, **said), words)


def refused(place: Path, words: str, preset: Preset = PRESET) -> None:
    with pytest.raises(DisaError) as caught:
        load_codec(preset, place)
    message = str(caught.value)
    assert words in message
    assert str(place) in message
    assert "\n" not in message
    assert len(message) < 400


@pytest.mark.parametrize("names", ["official", "diffusers"])
def test_files_of_another_kind_of_latents_say_so(names: str, tmp_path: Path) -> None:
    """As Stable Diffusion's autoencoder for a model of another number of channels, or of another stride."""
    for config, words in (
        (replace(NARROW, latent_channels=8), "it makes latents of 8 channels, mine draws latents of 4"),
        (replace(NARROW, block_widths=(8, 16, 16, 16)), "its latents are 8 times smaller than images, those of mine 4"),
        (replace(NARROW, block_widths=(8, 16), encoder_attention_levels=()), "its latents are 2 times smaller"),
    ):
        state = dict(network(config).state_dict())
        refused(written(tmp_path / "x.ckpt", kl16.to_official(state, config) if names == "official" else state), words)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, "\xff", "3", '"x"'])
def test_a_damaged_config_is_one_line(text: str, tmp_path: Path) -> None:
    place = folder(tmp_path / "vae", STATE)
    (place / "config.json").write_bytes(text.encode("latin-1"))
    refused(place, "cannot be used")


def test_two_autoencoders_in_one_file_are_told(tmp_path: Path) -> None:
    both = {f"{name}.{key}": value for name in ("teacher", "student") for key, value in OFFICIAL.items()}
    refused(written(tmp_path / "both.ckpt", both), "it holds several autoencoders, under 'student.' and 'teacher.'")


def test_the_small_one_and_the_large_one_are_told_apart(tmp_path: Path) -> None:
    config = SmallVAEConfig()
    small_one = save_codec(tmp_path / "small", SmallCodec(SmallVAE(config)))
    refused(small_one, "it is a small autoencoder of disa, mine needs a KL-16")
    refused(small_one / f"{STEM}.safetensors", "it is a small autoencoder of disa, mine needs a KL-16")
    digits = find_preset("mar-digits")
    refused(folder(tmp_path / "large", STATE), "is a KL autoencoder, mar-digits needs a small one", digits)
    refused(written(tmp_path / "kl16.ckpt", {"model": OFFICIAL}), "is a KL autoencoder, mar-digits needs", digits)
    as_folder, as_file = (load_codec(digits, place) for place in (small_one, small_one / f"{STEM}.safetensors"))
    assert torch.equal(as_folder.decode(torch.ones(1, 8, 2, 2)), as_file.decode(torch.ones(1, 8, 2, 2)))
    other = save_codec(tmp_path / "other", SmallCodec(SmallVAE(replace(config, latent_channels=4))))
    refused(other, "does not fit mar-digits: its latent_channels is 4, the model's is 8", digits)
    refused(other / f"{STEM}.safetensors", "its latent_channels is 4", digits)


def test_places_without_an_autoencoder_are_one_line(tmp_path: Path, disa: Command) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "there is no autoencoder in")
    for name in ("a.ckpt", "b.pth"):
        written(tmp_path / "empty" / name, {"model": OFFICIAL})
    refused(tmp_path / "empty", "holds several files of weights: give one, a.ckpt or b.pth")
    said = complaint(disa("sample", "--model", "mar-digits", "--vae", tmp_path / "none", "--out", tmp_path / "out"))
    assert f"there is no autoencoder at {tmp_path / 'none'}" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may read everything
    with pytest.raises(DisaError, match=rf"^cannot look into {re.escape(str(tmp_path))}: Permission denied\.$"):
        find_files(tmp_path)


def test_shards_of_one_variant_stay_together(tmp_path: Path) -> None:
    for name in (f"{STEM}.fp16-00001-of-00002.safetensors", f"{STEM}.fp16-00002-of-00002.safetensors",
                 f"{STEM}.other-00001-of-00001.safetensors", "notes.txt"):  # fmt: skip
        (tmp_path / name).write_text("")
    assert [path.name for path in find_files(tmp_path).weights] == [
        f"{STEM}.fp16-00001-of-00002.safetensors", f"{STEM}.fp16-00002-of-00002.safetensors",
    ]  # fmt: skip
