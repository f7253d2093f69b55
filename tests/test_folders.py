"""A model of one's own, other than every preset: saved, loaded, converted and drawn bit-equal from its folder.

Hostile and damaged folders are in test_checkpoints.py.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import small
from command import Command, complaint
from disa.codecs import kl16
from disa.codecs.base import LatentCodec
from disa.codecs.kl16 import KL16Codec, VAEConfig
from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig
from disa.draw.pictures import to_image
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import find_preset
from disa.models.spec import Preset
from disa.weights.config import changed, from_json, parse_values, to_json
from disa.weights.convert import convert
from disa.weights.folders import save_model

TINY = {
    "mar": {"latent_size": (4, 4), "encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1,
            "buffer_size": 3, "head_width": 32, "head_depth": 1},
    "flowar": {"scales": (1, 2, 4), "width": 32, "decoder_depth": 1, "head_width": 32, "head_depth": 1},
    "xar": {"latent_size": (4, 4), "width": 32, "encoder_depth": 1, "decoder_depth": 1},
    "bitdance": {"latent_size": (4, 4), "width": 32, "depth": 1, "class_tokens": 2, "head_width": 64, "head_depth": 1},
    "harmon": {"latent_size": (4, 4), "encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1,
               "buffer_size": 3, "head_width": 32, "head_depth": 1, "llm_width": 32, "llm_hidden": 48, "llm_depth": 1},
}  # fmt: skip
AR_STEPS = {"mar": 5, "flowar": 3, "xar": 4, "bitdance": 16, "harmon": 5}
OTHER_AR_STEPS: dict[str, dict[str, Any]] = {
    "mar": {"num_ar_steps": 3},
    "flowar": {"scales": (2, 4), "num_ar_steps": 2},
    "xar": {"cells": (1, 2), "num_ar_steps": 2},
    "bitdance": {"group_size": 4, "num_ar_steps": 4},
    "harmon": {"num_ar_steps": 7},
}
OTHER_SMALL = SmallVAEConfig(
    in_channels=3, latent_channels=2, half_width=8, quarter_width=16, full_width=8, eighth_width=8, linear=True
)
NARROW_KL = VAEConfig(
    latent_channels=4, block_widths=(8, 16), layers_per_block=1, norm_groups=4, encoder_attention_levels=(1,)
)
VARIANTS: dict[str, dict[str, Any]] = {
    "renamed": {},
    "seven classes": {"num_classes": 7},
    "other AR steps": {},
    "pixel space": {"codec": None, "latent_channels": 3},
    "another small codec": {"codec": OTHER_SMALL, "latent_channels": 2},
    "narrow KL codec": {"codec": NARROW_KL, "latent_channels": 4},
    "other defaults": {
        "guidance": 1.75,
        "steps": "cosine:4-2",
        "batch_size": 1,
        "ramp": "constant",
        "interval": (0.1, 0.8),
    },
}


def mine(family: str, variant: str) -> Preset:
    """A preset that is not in the registry, and whose name is not either."""
    preset = find_preset(small.EMBEDDED[family])
    values = {**TINY[family], "num_ar_steps": AR_STEPS[family], "steps": "linear:3-2", "rewrite": False, "name": "mine"}
    values |= OTHER_AR_STEPS[family] if variant == "other AR steps" else VARIANTS[variant]
    fields = asdict(preset.spec.architecture)
    own = {name: values.pop(name) for name in list(values) if name in fields}
    return small.changed(preset, architecture=replace(preset.spec.architecture, **own), **values)


def codec_of(preset: Preset) -> LatentCodec | None:
    """Random weights for its autoencoder; None for pixels and for the one of the package."""
    config = preset.spec.codec
    torch.manual_seed(0)
    if config == OTHER_SMALL:
        return SmallCodec(SmallVAE(OTHER_SMALL))
    return KL16Codec(kl16.build(NARROW_KL)) if config == NARROW_KL else None


def asked(preset: Preset) -> dict[str, Any]:
    what = {"prompts": ["a red circle", "two squares"]} if preset.prompts else {"labels": [1, 0]}
    return {**what, "seeds": [3, 1 << 40]}


@pytest.fixture(params=[(family, variant) for family in small.EMBEDDED for variant in VARIANTS], ids=" ".join)
def own(request: pytest.FixtureRequest) -> Sampler:
    """A sampler of a model that no preset describes."""
    family, variant = request.param
    if family == "harmon":
        pytest.importorskip("transformers")
    if variant == "narrow KL codec":
        pytest.importorskip("diffusers")
    preset = mine(family, variant)
    return Sampler(preset, small.randomised(preset.build()), codec_of(preset), device="cpu")


def test_it_draws_the_same_after_it_was_saved_and_converted(
    own: Sampler, tmp_path: Path, disa: Command, one_thread: None
) -> None:
    preset = own.preset
    expected = own.sample(**asked(preset))
    folder = own.save_pretrained(tmp_path / "folder")
    convert(folder, None, tmp_path / "copy")
    for place in (folder, tmp_path / "copy"):
        again = Sampler.load(place, device="cpu")
        assert (again.preset.spec, again.preset.defaults) == (preset.spec, preset.defaults)
        drawn = again.sample(**asked(preset))
        assert torch.equal(drawn.latents, expected.latents)
        assert torch.equal(drawn.images, expected.images)
        assert drawn.settings == expected.settings
    words = ("--prompt", "a red circle", "--prompt", "two squares") if preset.prompts else ("--labels", "1,0")
    done = disa(
        "sample", "--model", folder, *words, "--seeds", f"3,{1 << 40}", "--device", "cpu", "--out", tmp_path, "--json"
    )
    for name, image in zip(done.json()["files"], expected.images, strict=True):
        with Image.open(tmp_path / name) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(to_image(image)))


def test_official_names_and_options_make_the_same_folder(own: Sampler, tmp_path: Path) -> None:
    """From a preset of the package by `--set` alone, as for a checkpoint of someone else's training."""
    folder = own.save_pretrained(tmp_path / "folder")
    convert(folder, None, tmp_path / "official", official=True)
    said, base = to_json(own.preset), find_preset(small.EMBEDDED[own.preset.spec.family])
    before = to_json(base)
    values = {
        name: value
        for part in ("architecture", "defaults")
        for name, value in said[part].items()
        if value != before[part][name]
    }
    texts = [f"{name}={json.dumps(value)}" for name, value in {**values, "codec": said["codec"]}.items()]
    codec = folder / "vae" if (folder / "vae").is_dir() else None
    official = tmp_path / "official/mine.safetensors"
    convert(official, base.name, tmp_path / "again", codec, values=parse_values(texts), name="mine")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", small.EMBEDDED.values())
def test_json_there_and_back(name: str) -> None:
    preset = find_preset(name)
    assert from_json(json.loads(json.dumps(to_json(preset)))) == preset


def test_models_of_fixed_ar_steps_follow_their_architecture() -> None:
    preset = changed(find_preset("xar-digits"), {"cells": [1, 4]}, "rows")
    assert (preset.name, preset.defaults.num_ar_steps) == ("rows", 4)
    assert changed(find_preset("flowar-digits"), {"scales": [1, 4]}).defaults.num_ar_steps == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--set", "colour=3"), "mar models have no 'colour': expected one of latent_size, latent_channels"),
        (("--set", "num_classes"), "expected FIELD=VALUE, such as num_classes=7, found 'num_classes'"),
        (("--set", "num_classes=many"), "architecture.num_classes is 'many': expected a whole number from 1"),
        (("--set", "num_ar_steps=0"), "defaults.num_ar_steps is 0"),
        (("--set", "encoder_heads=7"), "encoder_heads = 7 must divide encoder_width = 128"),
        (("--set", 'codec={"kind": "kl16"}'), "codec.latent_channels is 16: they must be equal"),
        (("--set", "codec=" + "[" * 100_000), "codec is"),
        (("--name", "a/b"), "name is 'a/b'"),
    ],
)
def test_options_that_cannot_be_are_named(disa: Command, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    checkpoint = tmp_path / "weights.pth"
    torch.save(small.weights(), checkpoint)
    done = disa("convert", checkpoint, "--model", "mar-digits", *options, "--out", tmp_path / "out")
    assert words in complaint(done)
    assert not (tmp_path / "out").exists()


def test_only_defaults_of_a_folder_can_be_set_anew(tmp_path: Path) -> None:
    folder = small.folder(tmp_path / "model")
    convert(folder, None, tmp_path / "quick", values={"steps": "linear:2-1", "num_ar_steps": 2}, name="quick")
    about = json.loads((tmp_path / "quick/config.json").read_text())
    assert (about["name"], about["defaults"]["steps"], about["defaults"]["num_ar_steps"]) == ("quick", "linear:2-1", 2)
    with pytest.raises(DisaError, match="only defaults can be set anew"):
        convert(folder, None, tmp_path / "other", values={"num_classes": 7})


# -- what a checkpoint would fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["mar", "flowar", "xar"])
@pytest.mark.parametrize("official", [False, True])
def test_a_checkpoint_of_other_classes_says_how_to_load_it(tmp_path: Path, family: str, official: bool) -> None:
    base = find_preset(small.EMBEDDED[family])
    other = small.changed(base, architecture=replace(base.spec.architecture, num_classes=7))
    state = small.randomised(other.build()).state_dict()
    path = tmp_path / "seven.pth"
    torch.save(other.official_names().to_official(state) if official else state, path)
    with pytest.raises(DisaError) as caught:
        Sampler.load(base.name, path, device="cpu")
    command = f"`disa convert {path} --model {base.name} --set num_classes=7 --name NAME`"
    assert str(caught.value).endswith(f"It fits after {command}.")
    assert "\n" not in str(caught.value)
    convert(path, base.name, tmp_path / "out", values={"num_classes": 7}, name="seven")
    found = Sampler.load(tmp_path / "out", device="cpu").model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in state.items())


def test_the_command_line_in_a_checkpoint_is_used(tmp_path: Path) -> None:
    """Another depth changes names, not only shapes, but the official training says it."""
    base = find_preset("mar-digits")
    architecture = replace(base.spec.architecture, num_classes=7, head_depth=2, head_width=64)
    other = small.changed(base, architecture=architecture)
    state = other.official_names().to_official(small.randomised(other.build()).state_dict())
    said = argparse.Namespace(class_num=7, diffloss_d=2, diffloss_w=64, img_size=32, vae_stride=4, lr=None, model="mar")
    torch.save({"model_ema": state, "args": said}, tmp_path / "trained.pth")
    with pytest.raises(DisaError, match="--set num_classes=7 --set head_width=64 --set head_depth=2 --name NAME"):
        Sampler.load("mar-digits", tmp_path / "trained.pth", device="cpu")


def test_what_fits_nothing_gets_no_advice(tmp_path: Path) -> None:
    state = small.weights() | {"mask_token": torch.zeros(1, 1, 31)}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(DisaError) as caught:
        Sampler.load("mar-digits", tmp_path / "odd.pth", device="cpu")
    assert "It fits" not in str(caught.value)


def test_a_folder_of_the_first_format_draws_with_the_presets_defaults(tmp_path: Path) -> None:
    base = find_preset("mar-digits")
    preset = small.changed(base, architecture=replace(base.spec.architecture, num_classes=7))
    folder = save_model(tmp_path / "old", preset, small.weights(preset.spec.architecture))
    about = json.loads((folder / "config.json").read_text())
    old = {key: about[key] for key in ("library", "family", "architecture", "sha256")}
    (folder / "config.json").write_text(json.dumps({**old, "preset": "mar-digits"}))
    found = Sampler.load(folder, device="cpu")
    assert (found.preset.spec, found.preset.defaults) == (preset.spec, base.defaults)
    assert found.sample([6], [0], steps="constant:2", num_ar_steps=2).images.shape == (1, 1, 32, 32)
