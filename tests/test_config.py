"""`config.json` as it may come: other encodings, other libraries, damaged, and architectures that cannot be."""

from __future__ import annotations

import copy
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import small
from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import PRESETS, find_preset
from disa.weights.config import changed, from_json, to_json
from disa.weights.convert import convert
from disa.weights.folders import load_folder, save_codec
from disa.weights.package import in_package, read_embedded
from disa.weights.tokenizers import find_tokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small.folder(tmp_path / "model")


def refusal(act: Callable[[], object]) -> str:
    """One line, and soon: in seconds of the processor, which others may be busy."""
    began = time.process_time()
    with pytest.raises(DisaError) as caught:
        act()
    assert time.process_time() - began < 10
    message = str(caught.value)
    assert "\n" not in message
    assert 15 < len(message) < 500
    return message


def text_of(folder: Path) -> str:
    return (folder / "config.json").read_text()


# -- encodings and places ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_are_read(folder: Path, encoding: str, tmp_path: Path) -> None:
    (folder / "config.json").write_bytes(text_of(folder).encode(encoding))
    assert load_folder(folder)[0].spec.architecture == small.CONFIG
    # Whether a folder is ours is asked in the same way.
    convert(folder, None, tmp_path / "copy")


def test_links_and_read_only_folders_are_read(folder: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (folder / name).rename(tmp_path / "blobs" / name)
        (folder / name).symlink_to(tmp_path / "blobs" / name)
        (folder / name).chmod(0o444)
    folder.chmod(0o555)
    (tmp_path / "link").symlink_to(folder)
    assert load_folder(tmp_path / "link")[0].spec.architecture == small.CONFIG
    folder.chmod(0o755)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "it is empty"), (" \n", "it is empty"), ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"), ("{'a': 1}", "in line 1, column 2"),
        ('{\n"a": 1,\n}', "in line 3, column 1"), ("{} {}", "it is not JSON"), 
        ("x" * (2 << 20), "longer than 1 MiB"),
        ('{"a": ' + "9" * 10_000 + "}", "a number of over 100 digits"), ("\udcff", "it is not UTF-8 text"),
    ],
)  # fmt: skip
def test_what_is_not_json_is_told(folder: Path, content: str, words: str) -> None:
    (folder / "config.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    message = refusal(lambda: Sampler.load(folder, device="cpu"))
    assert words in message
    assert "is not a model folder of disa (config.json: " in message


def test_a_config_that_is_no_file_is_told(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "(config.json: it is not there)" in refusal(lambda: load_folder(folder))
    os.mkfifo(folder / "config.json")
    assert "(config.json: it is a pipe or a device, not a file)" in refusal(lambda: load_folder(folder))
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "(config.json: it is a folder, not a file)" in refusal(lambda: load_folder(folder))


@pytest.mark.parametrize("content", ["[]", "3", "null", '"disa"', "{}", '{"library": "disa"}'])
def test_other_json_is_told(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json cannot be used: " in refusal(lambda: load_folder(folder))


def test_weights_and_their_hash(folder: Path) -> None:
    said = json.loads(text_of(folder))
    for sha256, words in ((5, "sha256 is 5"), ("0" * 64, "its SHA-256 differs"), (["x"], "sha256 is ['x']")):
        (folder / "config.json").write_text(json.dumps({**said, "sha256": sha256}))
        assert words in refusal(lambda: load_folder(folder))
    del said["sha256"]
    (folder / "config.json").write_text(json.dumps(said))
    with pytest.warns(UserWarning, match="has no sha256: whether model.safetensors is whole is not known"):
        assert load_folder(folder)[0].spec.architecture == small.CONFIG
    (folder / "model.safetensors").unlink()
    assert "model.safetensors is missing: config.json describes a model" in refusal(lambda: load_folder(folder))


# -- folders of others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, "is a model of transformers ('llama')"),
        ({"architectures": ["X"]}, "is a model of transformers"),
        ({"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.30"}, "is a model of diffusers ('UNet2DCond"),
        ({"_class_name": "AutoencoderKL"}, "is an autoencoder of diffusers ('AutoencoderKL'), not a model: give it as"),
    ],
)  # fmt: skip
def test_folders_of_other_libraries_are_named(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert words in refusal(lambda: Sampler.load(tmp_path, device="cpu"))


def test_a_small_autoencoder_is_no_model(tmp_path: Path) -> None:
    save_codec(tmp_path / "vae", SmallCodec(SmallVAE(SmallVAEConfig())))
    assert "is an autoencoder of disa, not a model: give it as --vae" in refusal(lambda: Sampler.load(tmp_path / "vae"))


@pytest.mark.parametrize("said", [None, {"model_type": "harmon"}])
def test_weights_in_a_folder_that_is_not_ours_lead_to_checkpoint(tmp_path: Path, said: Any) -> None:
    preset = find_preset("xar-digits")
    state = preset.official_names().to_official(dict(read_embedded(preset.name)))
    folder = tmp_path / "hub"
    folder.mkdir()
    save_file({name: value.clone() for name, value in state.items()}, folder / "weights.safetensors")
    if said is not None:
        (folder / "config.json").write_text(json.dumps(said))
    message = refusal(lambda: Sampler.load(folder, device="cpu"))
    assert f"It has weights of xar-digits: give `disa sample --model xar-digits --checkpoint {folder}`." in message
    assert Sampler.load("xar-digits", folder, device="cpu").preset is preset


# -- tokenizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["beside", "tokenizer"])
def test_everything_of_a_tokenizer_is_kept(tmp_path: Path, place: str) -> None:
    hub, preset = tmp_path / "hub", find_preset("harmon-shapes")
    words = hub if place == "beside" else hub / "tokenizer"
    words.mkdir(parents=True)
    names = ["special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "chat_template.jinja",
             "chat_template.json", "generation_config.json", "tokenizer.model"]  # fmt: skip
    for path in in_package("shapes-tokenizer").iterdir():
        (words / path.name).write_bytes(path.read_bytes())
    for name in names:
        (words / name).write_text("{}")
    (hub / "README.md").write_text("")
    (hub / "config.json").write_text('{"model_type": "harmon"}')
    state = preset.official_names().to_official(dict(read_embedded(preset.name)))
    order = sorted(state)
    for number, part in enumerate((order[:50], order[50:]), 1):
        save_file({name: state[name].clone() for name in part}, hub / f"model-{number:05}-of-00002.safetensors")
    files = convert(hub, preset.name, tmp_path / "out")
    kept = {name.removeprefix("tokenizer/") for name in files if name.startswith("tokenizer/")}
    assert kept == {*names, "tokenizer.json", "tokenizer_config.json"}
    assert all((tmp_path / "out/tokenizer" / name).read_bytes() == (words / name).read_bytes() for name in kept)
    # From there they go on, under official names too.
    convert(tmp_path / "out", None, tmp_path / "again")
    convert(tmp_path / "out", None, tmp_path / "official", official=True)
    for out in ("again", "official"):
        assert {path.name for path in (tmp_path / out / "tokenizer").iterdir()} == kept
    assert find_tokenizer(hub, preset) == words
    assert find_tokenizer(hub / words.relative_to(hub) / "tokenizer.json", preset) == words


def test_a_tokenizer_whose_kind_only_the_models_config_tells_keeps_that(tmp_path: Path) -> None:
    preset = find_preset("harmon-shapes")
    state = preset.official_names().to_official(dict(read_embedded(preset.name)))
    (tmp_path / "hub").mkdir()
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "hub/model.safetensors")
    (tmp_path / "hub/tokenizer.json").write_bytes((in_package("shapes-tokenizer") / "tokenizer.json").read_bytes())
    (tmp_path / "hub/config.json").write_text('{"model_type": "qwen2"}')
    assert "tokenizer/config.json" in convert(tmp_path / "hub/model.safetensors", preset.name, tmp_path / "out")


def test_models_of_labels_take_no_tokenizer_along(tmp_path: Path) -> None:
    preset = find_preset("mar-digits")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    state = preset.official_names().to_official(dict(read_embedded(preset.name)))
    save_file({name: value.clone() for name, value in state.items()}, tmp_path / "model.safetensors")
    assert set(convert(tmp_path, "mar-digits", tmp_path / "out")) == {"model.safetensors", "config.json"}


def test_what_an_earlier_conversion_left_is_told(tmp_path: Path) -> None:
    folder, out = small.folder(tmp_path / "model"), tmp_path / "out"
    save_codec(out / "vae", SmallCodec(SmallVAE(SmallVAEConfig())))
    with pytest.raises(DisaError, match="is there already, and would be taken for the new model's: remove"):
        convert(folder, None, out)


@pytest.mark.parametrize("source", ["missing", "owner/name/x", "mar-digits.txt"])
def test_a_tokenizer_that_is_not_there_is_told(source: str) -> None:
    message = refusal(lambda: find_tokenizer(source, find_preset("harmon-0.5b")))
    assert f"no tokenizer at '{source}': expected a folder with tokenizer.json, or a hub id" in message


# -- architectures -------------------------------------------------------------------------------------------------

HUGE = 10**9
WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("mar", {"encoder_heads": 7}, "encoder_heads = 7 must divide encoder_width = 128"),
    ("mar", {"decoder_heads": 256}, "decoder_heads = 256 must divide"),
    ("mar", {"patch_size": 3}, "cannot be cut into patches of 3"),
    ("mar", {"patch_size": 16}, "cannot be cut into patches of 16"),
    ("mar", {"mlp_ratio": 1e-5}, "mlp_ratio = 1e-05 leaves nothing"),
    ("mar", {"mlp_ratio": 1e9}, "expected a finite number from"),
    ("mar", {"norm_eps": 0}, "expected a finite number from"),
    ("mar", {"buffer_size": 0}, "buffer_size is 0"),
    ("mar", {"latent_channels": 16}, "they must be equal"),
    ("mar", {"codec": None}, "its images have 8 channels: expected 1 or 3"),
    ("flowar", {"num_heads": 7}, "7 attention heads of width 128"),
    ("flowar", {"head_heads": 64}, "64 attention heads of width 128: each needs a multiple of 4"),
    ("flowar", {"scales": [8, 4]}, "must grow"),
    ("flowar", {"scales": []}, "a list of one or more"),
    ("flowar", {"scales": [1] * 65}, "a list of 64 at most"),
    ("flowar", {"scales": [0, 4]}, "scales is"),
    ("xar", {"cells": [3, 2]}, "cannot be cut into (3, 2) equal cells"),
    ("xar", {"cells": [16, 1]}, "cannot be cut into"),
    ("xar", {"num_heads": 3}, "num_heads = 3 must divide width = 128"),
    ("xar", {"num_heads": 64}, "multiples of 4 channels"),
    ("bitdance", {"group_size": 3}, "group_size = 3 tokens are no square"),
    ("bitdance", {"group_size": 25}, "cannot be cut into groups of 25"),
    ("bitdance", {"num_heads": 3}, "num_heads = 3 must divide width = 128"),
    ("bitdance", {"head_modulations": 2}, "head_modulations = 2 must divide head_depth = 3"),
    ("bitdance", {"group_size": 4}, "head_width = 160 must be a multiple of 64"),
    ("harmon", {"llm_heads": 3}, "llm_heads = 3 must divide llm_width"),
    ("harmon", {"llm_heads": 128}, "into even numbers of channels"),
    ("harmon", {"llm_kv_heads": 3}, "llm_kv_heads = 3 must divide llm_heads = 4"),
    ("harmon", {"max_positions": 44}, "must be more than the 44 places of an image"),
    ("harmon", {"rope_base": 0}, "rope_base is 0"),
    ("harmon", {"encoder_heads": 3}, "encoder_heads = 3 must divide"),
    ("mar", {"size": [33, 32]}, "defaults.size is [33, 32]: expected multiples of 4"),
    ("xar", {"size": [64, 64]}, "this model draws images of [32, 32] only"),
    ("xar", {"num_ar_steps": 5}, "the number of AR steps must be 4"),
    ("mar", {"rewrite": True}, "there are no prompts to rewrite"),
    ("mar", {"solver": "euler"}, "euler"),
    ("xar", {"solver": "ddpm"}, "ddpm"),
    ("mar", {"steps": "magic:3"}, "unknown step policy 'magic:3'"),
    ("mar", {"original": "constant:1000000000"}, "a row gets at most 10000 denoising steps"),
    ("mar", {"steps": "linear:0-0"}, "at least 1 denoising step"),
    *[
        (family, {name: HUGE if not isinstance(value, tuple) else [HUGE] * len(value)}, "from")
        for family, preset in small.EMBEDDED.items()
        for name, value in vars(PRESETS[preset].spec.architecture).items()
        if not isinstance(value, bool | float)
    ],
]  # fmt: skip


def said(family: str, values: dict[str, Any]) -> dict[str, Any]:
    content = copy.deepcopy(to_json(find_preset(small.EMBEDDED[family])))
    for name, value in values.items():
        part = next((content[each] for each in ("architecture", "defaults") if name in content[each]), content)
        part[name] = value
    return content


@pytest.mark.parametrize(("family", "values", "words"), WRONG, ids=str)
def test_an_architecture_that_cannot_be_is_refused_when_read(family: str, values: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: from_json(said(family, values)))


CODECS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "small-vae", "half_width": 12}, "multiples of 8"),
    ({"kind": "small-vae", "latent_channels": 4}, "they must be equal"),
    ({"kind": "small-vae", "in_channels": 2}, "its images have 2 channels"),
    ({"kind": "small-vae", "half_width": HUGE}, "from 1 to"),
    ({"kind": "kl16", "latent_channels": 8, "block_widths": [32] * 9}, "a list of 8 at most"),
    ({"kind": "kl16", "latent_channels": 8, "block_widths": []}, "a list of one or more"),
    ({"kind": "kl16", "latent_channels": 8, "block_widths": [HUGE]}, "from 1 to"),
    ({"kind": "kl16", "latent_channels": 8, "layers_per_block": HUGE}, "from 1 to 16"),
    ({"kind": "kl16", "latent_channels": 8, "norm_groups": 7}, "multiples of norm_groups = 7"),
    ({"kind": "kl16", "latent_channels": 8, "encoder_attention_levels": [5]}, "must lie in 0..4"),
    ({"kind": "kl16", "latent_channels": 8, "scale": 0}, "codec.scale is 0"),
    ({"kind": "kl16", "latent_channels": 8, "shift": "x"}, "codec.shift is 'x'"),
    ({"kind": "kl16", "latent_channels": 8, "means": [0.0]}, "must both have 8 numbers or none"),
    ({"kind": "kl16", "latent_channels": HUGE}, "from 1 to 4096"),
]


@pytest.mark.parametrize(("codec", "words"), CODECS, ids=str)
def test_an_autoencoder_that_cannot_be_is_refused_when_read(codec: dict[str, Any], words: str) -> None:
    assert words in refusal(lambda: from_json(said("mar", {"codec": codec})))


def test_the_deepest_models_that_are_read_are_refused_soon(folder: Path) -> None:
    """Their weights do not fit: that is found without building much."""
    content = json.loads(text_of(folder))
    content["architecture"] |= {"encoder_depth": 128, "decoder_depth": 128, "head_depth": 128}
    (folder / "config.json").write_text(json.dumps(content))
    assert "missing" in refusal(lambda: load_folder(folder))


TINY = {
    "mar": {"latent_size": [4, 4], "encoder_width": 32, "encoder_depth": 1, "decoder_width": 32, "decoder_depth": 1,
            "buffer_size": 3, "head_width": 32, "head_depth": 1},
    "flowar": {"scales": [1, 2, 4], "width": 32, "encoder_depth": 1, "decoder_depth": 1, "head_width": 32,
               "head_depth": 1},
    "xar": {"latent_size": [4, 4], "width": 32, "encoder_depth": 1, "decoder_depth": 1},
    "bitdance": {"latent_size": [4, 4], "width": 32, "depth": 1, "class_tokens": 2, "head_width": 64, "head_depth": 1},
}  # fmt: skip


@pytest.mark.parametrize("family", TINY)
def test_whatever_is_read_can_be_drawn(family: str, one_thread: None) -> None:
    """Every whole number of an architecture, changed: it is refused in one line, or the model draws."""
    base, drawn = changed(find_preset(small.EMBEDDED[family]), TINY[family]), 0
    for name, value in to_json(base)["architecture"].items():
        if name == "latent_channels" or isinstance(value, bool | float):
            continue
        tried = [1, 3, 24] if isinstance(value, int) else [[3, 3], [1, 3], [2, 4]]
        for other in tried:
            try:
                preset = changed(base, {name: other})
            except DisaError:
                continue
            sampler = Sampler(preset, small.randomised(preset.build()), device="cpu")
            made = sampler.sample([0], [1], steps="constant:1", output_type="latent")
            assert torch.isfinite(made.latents).all()
            drawn += 1
    assert drawn > 8


def test_a_smaller_image_takes_fewer_ar_steps() -> None:
    assert changed(find_preset("mar-digits"), {"latent_size": [4, 4]}).defaults.num_ar_steps == 16
    assert changed(find_preset("mar-digits"), {"latent_size": [4, 4], "num_ar_steps": 3}).defaults.num_ar_steps == 3


def test_a_name_of_another_kind_is_refused() -> None:
    with warnings.catch_warnings(action="error"):
        for name in ("", "a/b", "..", "-a", "x" * 101, None, 3, ["a"], "ä", "a b", "con\n"):
            assert "name is" in refusal(lambda name=name: from_json(said("mar", {"name": name})))
