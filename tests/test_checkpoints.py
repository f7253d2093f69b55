"""Weights are data: what loads, what is refused and how it is said, hashes, and files that are whole or not there."""

from __future__ import annotations

import argparse
import errno
import json
import os
import resource
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import small
from disa.codecs import kl16 as vae
from disa.errors import DisaError
from disa.files import make_folder, write_text, write_whole
from disa.models.mar.model import MAR
from disa.models.registry import PRESETS
from disa.models.spec import HubFile
from disa.weights.convert import convert
from disa.weights.folders import load_folder, save_model
from disa.weights.load import load_codec, load_model


@pytest.fixture(autouse=True)
def small_presets() -> Iterator[None]:
    """The presets, but small ones: `small`, and `wide` and `deep` of the same family."""
    configs = {
        "small": small.CONFIG,
        "wide": replace(small.CONFIG, head_width=48),
        "deep": replace(small.CONFIG, head_depth=3),
    }
    before = dict(PRESETS)
    PRESETS.clear()
    PRESETS.update({name: small.changed(small.PRESET, name=name, architecture=configs[name]) for name in configs})
    yield
    PRESETS.clear()
    PRESETS.update(before)


def load(path: Path, average: bool = True) -> dict[str, Tensor]:
    return load_model(PRESETS["small"], path, average).state_dict()


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def refusal(act: Callable[[], object]) -> str:
    """The message of the DisaError that `act` raises: one line, of a length that can be read."""
    with pytest.raises(DisaError) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message
    assert 20 < len(message) < 500
    return message


# -- what loads ----------------------------------------------------------------------------------------------------


def training_checkpoint(path: Path) -> Path:
    """As the official training writes it: command line, optimiser and all."""
    content = {
        "model": small.official_weights(seed=1),
        "model_ema": small.official_weights(seed=0),
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "epoch": 399,
        "scaler": {},
        "args": argparse.Namespace(model="mar_base", lr=None, img_size=256),
    }
    return saved(content, path)


def test_an_official_training_checkpoint_loads_its_average(tmp_path: Path) -> None:
    path = training_checkpoint(tmp_path / "checkpoint-last.pth")
    assert equal(load(path), small.weights(seed=0))
    assert equal(load(path, average=False), small.weights(seed=1))


def test_every_form_of_the_weights_loads(tmp_path: Path) -> None:
    ours, official = small.weights(), small.official_weights()
    save_file(ours, tmp_path / "ours.safetensors")
    save_file({name: value.clone() for name, value in official.items()}, tmp_path / "official.safetensors")
    parameters = OrderedDict((name, torch.nn.Parameter(value)) for name, value in official.items())
    paths = [
        tmp_path / "ours.safetensors", tmp_path / "official.safetensors",
        saved(ours, tmp_path / "bare.pth"), saved({"model": parameters}, tmp_path / "model.ckpt"),
        saved({"state_dict": official}, tmp_path / "lightning.ckpt"),
    ]  # fmt: skip
    for path in paths:
        assert equal(load(path), ours), path


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_load(tmp_path: Path, dtype: torch.dtype) -> None:
    stored = {name: value.to(dtype) for name, value in small.official_weights().items()}
    model = load_model(PRESETS["small"], saved({"model_ema": stored}, tmp_path / "half.pth"))
    assert equal(model.state_dict(), {name: value.to(dtype) for name, value in small.weights().items()})
    sampler = small.Sampler(PRESETS["small"], model, device="cpu")
    assert sampler.model.no_class.dtype == torch.float32
    assert torch.isfinite(sampler.sample(3, 0).latents).all()


# -- what is refused -----------------------------------------------------------------------------------------------


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return os.symlink, ("nowhere", str(self.path))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, zipped: bool) -> None:
    crater, path = tmp_path / "crater", tmp_path / "bomb.pth"
    torch.save({"model": small.official_weights(), "bomb": Bomb(crater)}, path, _use_new_zipfile_serialization=zipped)
    message = refusal(lambda: load(path))
    assert "bomb.pth was refused: it holds code (posix.symlink)" in message
    assert "weights_only" not in message
    assert not os.path.lexists(crater)
    torch.load(path, weights_only=False)
    assert os.path.lexists(crater), "the bomb of this test is a dud"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"weights{suffix}"
    save_file(small.weights(), path) if suffix == ".safetensors" else saved(small.weights(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "Get it again" in refusal(lambda: load(path)) or suffix == ".pth"
    # The broken download is not what the whole file is compared with.
    path.write_bytes(whole)
    assert equal(load(path), small.weights())


@pytest.mark.parametrize(
    "content",
    [b"<html>404</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\n", b"\x89PNG\r\n\x1a\n"],
)
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_other_files_are_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    assert str(path) in refusal(lambda: load(path))


NAME = "encoder_blocks.0.attn.qkv.weight"
MODULATION = "diffloss.net.res_blocks.0.adaLN_modulation.1.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({NAME: torch.zeros(96, 31)}, [NAME, "should be (96, 32), found (96, 31)", "1 of its tensors has"]),
        ({MODULATION: torch.zeros(96, 31)}, [MODULATION, "found (96, 31)"]),
        ({MODULATION: torch.zeros(1).expand(1 << 44, 32)}, [MODULATION, "found (17592186044416, 32)"]),
        ({NAME: torch.zeros(96, 32, 1)}, ["found (96, 32, 1)"]),
        ({NAME: torch.zeros(96, 32, dtype=torch.int64)}, [NAME, "is int64", "floating-point"]),
        ({NAME: torch.zeros(96, 32).to(torch.float8_e4m3fn)}, [NAME, "is float8_e4m3fn"]),
        ({NAME: torch.full((96, 32), torch.nan)}, [NAME, "damaged", "not finite"]),
        ({NAME: torch.full((96, 32), -torch.inf)}, [NAME, "damaged", "not finite"]),
        ({NAME: torch.zeros(96, 32).to_sparse()}, [NAME, "plain tensors", "unusual tensor"]),
        ({NAME: torch.zeros(96, 32, device="meta")}, [NAME, "unusual tensor"]),
        ({NAME: [1.0, 2.0]}, [NAME, "is of type list"]),
        ({NAME: None}, [NAME, "is of type NoneType"]),
        ({7: torch.zeros(1)}, ["named tensors", "one is called 7"]),
        ({"a\nb": torch.zeros(1)}, ["named tensors", r"'a\nb'"]),
        ({"a" * 300: torch.zeros(1)}, ["named tensors"]),
        ({"extra": torch.zeros(1)}, ["1 unexpected (extra)"]),
    ],
)
def test_a_wrong_tensor_is_named(tmp_path: Path, change: dict[Any, Any], words: list[str]) -> None:
    path = saved({"model": small.official_weights() | change}, tmp_path / "changed.pth")
    message = refusal(lambda: load(path))
    assert all(word in message for word in [str(path), *words]), message
    assert "load it as that" not in message


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    state = small.official_weights()
    del state[NAME]
    message = refusal(lambda: load(saved(state, tmp_path / "short.pth")))
    assert f"1 missing ({NAME})" in message


def test_another_family_is_refused(tmp_path: Path) -> None:
    state = {f"generator.layer{i}.weight": torch.zeros(2, 2) for i in range(50)}
    message = refusal(lambda: load(saved(state, tmp_path / "gan.pth")))
    assert "missing" in message
    assert "50 unexpected (generator.layer0.weight, generator.layer1.weight, generator.layer10.weight, ...)" in message


@pytest.mark.parametrize("size", ["wide", "deep"])
@pytest.mark.parametrize("make", [small.weights, small.official_weights])
def test_another_size_of_the_family_is_named(tmp_path: Path, make: Callable[..., Any], size: str) -> None:
    path = saved(make(PRESETS[size].spec.architecture), tmp_path / "other.pth")
    assert refusal(lambda: load(path)).endswith(f"It is a checkpoint of {size}: load it as that.")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "it holds a list"),
        (torch.zeros(3), "it holds a Tensor"),
        ({}, "it is empty"),
        ({"model": {}}, "it is empty"),
        ({"epoch": 3, "loss": 0.1}, "'epoch' is of type int"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    path = saved(content, tmp_path / "odd.pth")
    assert words in refusal(lambda: load(path))


def test_nothing_is_half_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model gets tensors only after all of the file was checked, its last tensor included."""
    monkeypatch.setattr(MAR, "load_state_dict", lambda *_args, **_kwargs: pytest.fail("half loaded"))
    state = small.weights()
    last = list(state)[-1]
    assert last in refusal(lambda: load(saved(state | {last: state[last] * torch.nan}, tmp_path / "nan.pth")))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no checkpoint at" in refusal(lambda: load(tmp_path / "absent.pth"))
    assert f"{tmp_path} is a folder: expected a file" in refusal(lambda: load(tmp_path))


def test_the_hub_failing_is_one_line_with_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no network\nat all")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    hub = small.changed(small.PRESET, weights=HubFile("some/repo", "weights.safetensors"))
    message = refusal(lambda: load_model(hub))
    assert (
        "could not get weights.safetensors from the hub repository some/repo (the hub cannot be reached: no network)"
        in message
    )
    assert small.PRESET.assets.page in message
    assert "there is no folder some/repo" in refusal(lambda: small.Sampler.load("some/repo", device="cpu"))
    assert "no weights on the hub: give a checkpoint" in refusal(lambda: load_model(small.PRESET))


# -- our folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_model(tmp_path / "model", small.PRESET, small.weights())


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = json.loads((folder / "config.json").read_text())
    change(about)
    (folder / "config.json").write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.clear(), "has no format and no preset"),
        (lambda about: about["architecture"].update(colour=3), "architecture has an unknown field 'colour'"),
        (lambda about: about["architecture"].update(latent_size=8), "architecture.latent_size is 8"),
        (lambda about: about["architecture"].update(latent_size=[8]), "expected a list of 2"),
        (lambda about: about["architecture"].update(latent_size=[8, 3]), "cut into patches of 2"),
        (lambda about: about["architecture"].update(latent_size=[1 << 11, 1 << 11]), "found (1, 20, 32)"),
        (lambda about: about["architecture"].update(head_width="32"), "head_width is '32'"),
        (lambda about: about["architecture"].update(head_width=True), "head_width is True"),
        (lambda about: about["architecture"].update(head_width=32.0), "head_width is 32.0"),
        (
            lambda about: about["architecture"].update(mlp_ratio=float("nan")),
            "the number NaN, which is not finite",
        ),
        (lambda about: about["architecture"].update(encoder_heads=0), "encoder_heads is 0"),
        (lambda about: about["architecture"].update(encoder_heads=5), "encoder_heads = 5 must divide encoder_width"),
        (lambda about: about["architecture"].update(encoder_depth=1 << 40), "a whole number from 1 to 128"),
        (lambda about: about["architecture"].update(head_depth=3), "missing"),
        (lambda about: about.update(architecture=[]), "architecture is []: expected an object"),
        (lambda about: about.update(family="gan"), "family is 'gan': expected one of mar, flowar, xar, harmon"),
        (lambda about: about.update(family=["mar"]), "family is ['mar']"),
        (lambda about: about.update(family="xar"), "architecture has an unknown field"),
        (lambda about: about.update(name="../small"), "name is '../small'"),
        (lambda about: about.update(name=""), "name is ''"),
        (lambda about: about.update(name={"a": 1}), "name is {'a': 1}"),
        (lambda about: about.update(format=3), "this version of disa reads 2: update disa"),
        (lambda about: about.update(format=[[]] * 99), "format is a list"),
        (lambda about: about.pop("codec"), "codec is missing"),
        (lambda about: about.update(codec="kl16"), "codec is 'kl16': expected null or an object"),
        (lambda about: about.update(codec={"kind": "gan"}), "whose kind is kl16 or small-vae"),
        (lambda about: about.update(codec={"kind": "kl16", "block_widths": [3]}), "multiples of norm_groups"),
        (lambda about: about.update(codec={"kind": "small-vae"}), "latent_channels is 8: they must be equal"),
        (lambda about: about["defaults"].pop("num_ar_steps"), "defaults.num_ar_steps is missing"),
        (lambda about: about["defaults"].update(num_ar_steps=0), "defaults.num_ar_steps is 0"),
        (lambda about: about["defaults"].update(guidance="2"), "defaults.guidance is '2'"),
        (
            lambda about: about["defaults"].update(guidance=float("inf")),
            "the number Infinity, which is not finite",
        ),
        (lambda about: about["defaults"].update(ramp="up"), "unknown guidance ramp 'up'"),
        (lambda about: about["defaults"].update(interval=[0.9, 0.1]), "0 <= low <= high <= 1"),
        (lambda about: about["defaults"].update(solver="magic"), "magic"),
        (lambda about: about["defaults"].update(steps=50), "defaults.steps is 50"),
        (lambda about: about["defaults"].update(steps="linear:\n5-3"), "printable"),
        (lambda about: about["defaults"].update(steps="table:/etc/hosts"), "expected a step policy that reads no file"),
        (lambda about: about["defaults"].update(original="mlp:9-2:../p"), "expected a step policy that reads no file"),
        (lambda about: about["defaults"].update(spending="50"), "defaults.spending is '50'"),
        (lambda about: about["defaults"].update(variance_by="luck"), "defaults.variance_by is 'luck'"),
        (lambda about: about["defaults"].update(size=[512]), "defaults.size is [512]"),
        (lambda about: about["defaults"].update(rewrite=1), "defaults.rewrite is 1"),
        (lambda about: about["defaults"].update(seed=1), "defaults has an unknown field 'seed'"),
        (lambda about: about.update(sha256="0"), "its SHA-256 differs"),
    ],
)
def test_a_changed_config_is_refused(folder: Path, change: Callable[[dict[str, Any]], object], words: str) -> None:
    load_folder(folder)
    change_config(folder, change)
    assert words in refusal(lambda: load_folder(folder))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a":' * 100_000, "{}" + " " * (1 << 20), "[]", "null", "3", '"mar"', "", "{", "\xff\xfe",
        '{"format": ' + "9" * 10_000 + "}", '{"library": "disa", "format": 2}',
    ],
)  # fmt: skip
def test_a_config_that_is_no_config_is_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(lambda: load_folder(folder))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda about: about.update(preset="large"), "unknown model 'large'"),
        (lambda about: about.update(preset=["small"]), "unknown model"),
        (lambda about: about["architecture"].update(head_width=0), "head_width is 0"),
    ],
)
def test_a_changed_config_of_the_first_format_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    as_the_first_format(folder)
    change_config(folder, change)
    assert words in refusal(lambda: load_folder(folder))


def as_the_first_format(folder: Path) -> None:
    """Rewrite a folder's `config.json` as the first format had it."""

    def rewrite(about: dict[str, Any]) -> None:
        about["preset"] = about["name"]
        for key in ("format", "name", "codec", "defaults", "assets"):
            del about[key]

    change_config(folder, rewrite)


def test_a_folder_of_the_first_format_loads(folder: Path) -> None:
    as_the_first_format(folder)
    preset, model, _ = load_folder(folder)
    assert preset == small.PRESET
    assert equal(model.state_dict(), small.weights())


def test_keys_beside_the_known_ones_are_ignored(folder: Path) -> None:
    change_config(folder, lambda about: about.update(_name_or_path="hub", architectures=["MAR"]))
    assert load_folder(folder)[0] == small.PRESET


def test_a_folder_that_is_not_whole_is_refused(folder: Path, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert "its SHA-256 differs. Copy the folder again" in refusal(lambda: load_folder(folder))
    weights.unlink()
    assert "model.safetensors is missing" in refusal(lambda: load_folder(folder))
    (folder / "config.json").write_bytes(b"\xff")
    assert "is not a model folder of disa" in refusal(lambda: load_folder(folder))
    assert "expected model.safetensors and config.json" in refusal(lambda: load_folder(tmp_path))


# -- convert -------------------------------------------------------------------------------------------------------


def test_converting_there_and_back_is_bit_equal(tmp_path: Path) -> None:
    start, ours, back = training_checkpoint(tmp_path / "official.pth"), tmp_path / "ours", tmp_path / "back"
    files = convert(start, "small", ours)
    assert files == {name: (ours / name).stat().st_size for name in ("model.safetensors", "config.json")}
    assert equal(load_file(ours / "model.safetensors"), small.weights())
    assert set(convert(ours, "small", back, official=True)) == {"small.safetensors"}
    assert equal(load_file(back / "small.safetensors"), small.official_weights())
    convert(back / "small.safetensors", "small", tmp_path / "again")
    assert (tmp_path / "again/model.safetensors").read_bytes() == (ours / "model.safetensors").read_bytes()
    convert(start, "small", tmp_path / "last", average=False)
    assert equal(load_folder(tmp_path / "last")[1].state_dict(), small.weights(seed=1))


def test_a_folder_may_be_written_again(tmp_path: Path) -> None:
    convert(saved(small.weights(seed=0), tmp_path / "0.pth"), "small", tmp_path / "model")
    convert(tmp_path / "model", "small", tmp_path / "copy")
    convert(saved(small.weights(seed=1), tmp_path / "1.pth"), "small", tmp_path / "model")
    convert(tmp_path / "model", "small", tmp_path / "copy")
    assert equal(load_file(tmp_path / "copy/model.safetensors"), small.weights(seed=1))


def test_what_cannot_be_converted_writes_nothing(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    nan = saved({name: value * torch.nan for name, value in small.weights().items()}, tmp_path / "nan.pth")
    assert "not finite" in refusal(lambda: convert(nan, "small", out))
    assert "unknown model 'mar-base'" in refusal(lambda: convert(nan, "mar-base", out))
    assert "is a folder of small, not of wide" in refusal(lambda: convert(folder, "wide", out))
    assert "its tokens are pixels" in refusal(lambda: convert(folder, "small", out, codec=nan))
    assert not out.exists()


# -- the autoencoder -----------------------------------------------------------------------------------------------


@pytest.fixture
def coded(small_presets: None) -> dict[str, Tensor]:
    """`small` with an autoencoder, whose official weights these are."""
    pytest.importorskip("diffusers")
    PRESETS["small"] = small.changed(small.PRESET, codec=small.CODEC)  # taken back by small_presets
    torch.manual_seed(0)
    return vae.to_official(vae.build(small.CODEC).state_dict(), small.CODEC)


def test_every_form_of_the_autoencoder_loads(coded: dict[str, Tensor], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", PRESETS["small"], small.weights())
    preset, expected = PRESETS["small"], vae.from_official(coded, small.CODEC)
    official = saved({"model": coded, "step": 3}, tmp_path / "kl16.ckpt")
    files = convert(folder, "small", tmp_path / "both", codec=official)
    assert [name for name in files if name.startswith("vae/")] == [
        "vae/diffusion_pytorch_model.safetensors", "vae/config.json",
    ]  # fmt: skip
    save_file(expected, tmp_path / "kl16.safetensors")
    for path in (official, tmp_path / "both/vae", tmp_path / "kl16.safetensors"):
        assert equal(load_codec(preset, path).model.state_dict(), expected)
    # A folder takes its autoencoder along.
    convert(tmp_path / "both", "small", tmp_path / "copy")
    assert (tmp_path / "copy/vae/config.json").is_file()


def test_a_wrong_autoencoder_is_refused(coded: dict[str, Tensor], tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", PRESETS["small"], small.weights())
    preset, name = PRESETS["small"], "decoder.conv_out.weight"
    wrong = {
        "missing": {key: value for key, value in coded.items() if key != name},
        "another": {"generator.weight": torch.zeros(3)},
        "shape": coded | {name: torch.zeros(3)},
        "nan": coded | {name: coded[name] * torch.nan},
    }
    for kind, state in wrong.items():
        path = saved({"model": state}, tmp_path / f"{kind}.ckpt")
        message = refusal(lambda path=path: load_codec(preset, path))
        assert str(path) in message
        assert (name in message) is (kind != "another")
    assert "holds several files of weights: give one, another.ckpt, " in refusal(lambda: load_codec(preset, tmp_path))
    assert "it holds no KL autoencoder" in refusal(lambda: load_codec(preset, folder))
    assert "give one with vae=FILE" in refusal(lambda: load_codec(preset))
    out = tmp_path / "out"
    assert "not finite" in refusal(lambda: convert(folder, "small", out, codec=tmp_path / "nan.ckpt"))
    assert not out.exists()


# -- whole files or none -------------------------------------------------------------------------------------------


def full(*_args: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_half(file: Any) -> None:
    file.write(b"half")
    full()


def interrupted(file: Any) -> None:
    file.write(b"half")
    raise KeyboardInterrupt


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = write_text(tmp_path / "file", "old")
    monkeypatch.setattr(os, call, full)
    message = refusal(lambda: write_text(path, "new"))
    assert message == f"could not write {path}: No space left on device. Nothing was changed."
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_stops_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert "No space left" in refusal(lambda: write_whole(path, write_half))
    with pytest.raises(KeyboardInterrupt):
        write_whole(path, interrupted)
    assert list(tmp_path.iterdir()) == []


def interrupt_before_line(number: int, act: Callable[[], object]) -> bool:
    """Ctrl-C before that line of Python, counting those of libraries too; False if `act` ended before it."""
    left = number

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal left
        left -= event == "line"
        if left == 0 and event == "line":
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


def test_ctrl_c_at_any_line_of_a_write_leaves_whole_files(tmp_path: Path) -> None:
    path, lines, whole = tmp_path / "file", 0, {"old": 0, "new": 0}
    stopped = True
    while stopped:
        path.write_text("old")
        lines += 1
        stopped = interrupt_before_line(lines, lambda: write_text(path, "new"))
        whole[path.read_text()] += 1
        assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "new"
    assert whole["old"] > 10


def test_the_old_weights_survive_a_full_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", full)
    refusal(lambda: save_model(folder, small.PRESET, small.weights(seed=1)))
    assert equal(load_folder(folder)[1].state_dict(), small.weights(seed=0))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_files_have_the_permissions_that_the_user_wants(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        assert write_text(tmp_path / "file", "").stat().st_mode & 0o777 == 0o640
    finally:
        os.umask(old)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/disa"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert "Choose another one" in refusal(lambda: make_folder(tmp_path / place))
    assert (tmp_path / "file").read_text() == ""


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("a really full disk needs the mount command")
    if done.returncode:
        pytest.skip(f"a really full disk needs the right to mount one: {done.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_really_full_disk(tiny_disk: Path) -> None:
    good = write_text(tiny_disk / "good", "x" * 30_000)
    assert "No space left on device" in refusal(lambda: write_text(good, "y" * 50_000))
    message = refusal(lambda: save_model(tiny_disk / "model", small.PRESET, small.weights()))
    assert "No space left on device" in message
    big = {"state": torch.zeros(20_000)}
    assert "No space left on device" in refusal(lambda: write_whole(good, lambda file: torch.save(big, file)))
    assert good.read_text() == "x" * 30_000
    assert [path for path in tiny_disk.rglob("*") if path.is_file()] == [good]


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """The same where nothing can be mounted: the kernel refuses to write beyond a limit."""
    good = write_text(tmp_path / "good", "old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        messages = [
            refusal(lambda: write_text(good, "y" * 50_000)),
            refusal(lambda: write_whole(good, lambda file: torch.save({"state": torch.zeros(20_000)}, file))),
        ]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert all("File too large" in message for message in messages)
    assert good.read_text() == "old"
    assert list(tmp_path.iterdir()) == [good]
