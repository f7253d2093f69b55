"""What the name of a model means, and commands that work when they are pasted."""

from __future__ import annotations

import json
import os
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import small
from command import Command, complaint
from disa.codecs.kl16 import VAEConfig
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import PRESETS, find_preset
from disa.values import command
from disa.weights.folders import save_model
from disa.weights.named import find_model
from disa.weights.package import read_embedded

OF_MAR = "mar-base, mar-large or mar-huge"
QUICK = ("--labels", "3", "--seeds", "0", "--steps", "constant:2", "--num-ar-steps", "2", "--device", "cpu")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, without a network."""

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", fail)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def official(name: str = "mar-digits") -> dict[str, torch.Tensor]:
    return find_preset(name).official_names().to_official(dict(read_embedded(name)))


def refusal(name: Any, **more: Any) -> str:
    with pytest.raises(DisaError) as caught:
        Sampler.load(name, device="cpu", **more)
    message = str(caught.value)
    assert "\n" not in message
    assert 15 < len(message) < 450
    return message


# -- presets and folders -------------------------------------------------------------------------------------------


def test_a_name_that_is_a_preset_and_a_folder_is_the_preset_and_says_so(here: Path) -> None:
    small.folder(here / "mar-base", name="mine")
    with pytest.warns(UserWarning, match=r"^mar-base is the preset of that name, .* for the folder give \./mar-base$"):
        assert find_model("mar-base") is PRESETS["mar-base"]
    with warnings.catch_warnings(action="error"):
        for name in ("./mar-base", "mar-base/", Path("mar-base"), here / "mar-base", str(here / "mar-base")):
            assert Sampler.load(name, device="cpu").preset.name == "mine"
        # With a checkpoint only the preset can be meant.
        assert find_model("mar-base", Path("x.pth")) is PRESETS["mar-base"]
        (here / "mar-large").mkdir()
        assert find_model("mar-large") is PRESETS["mar-large"]


def test_a_folder_in_the_home_is_found(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(here))
    small.folder(here / "models/mine")
    for name in ("~/models/mine", Path("~/models/mine")):
        assert find_model(name) == here / "models/mine"
    small.folder(here / "~odd")
    assert find_model("./~odd") == find_model("~odd") == Path("~odd")


def test_a_folder_named_like_a_hub_id_is_the_folder(here: Path) -> None:
    for name in ("runs/mine", "LTH14/mar"):
        small.folder(here / name)
        assert find_model(name) == Path(name)


def test_a_link_to_a_folder_is_the_folder(here: Path) -> None:
    small.folder(here / "real")
    (here / "link").symlink_to("real")
    assert Sampler.load("link", device="cpu").preset.spec.architecture == small.CONFIG
    (here / "broken").symlink_to("nowhere")
    assert "there is no folder broken" in refusal(Path("broken"))


@pytest.mark.parametrize("out", ["mar-digits", "my models/x y", "-odd", "~tilde", "a'b\"c", "$HOME", "runs/mine", "ä"])
def test_the_printed_command_works(here: Path, disa: Command, out: str) -> None:
    state = official()
    state["class_emb.weight"] = state["class_emb.weight"] * 0  # plainly another model
    torch.save({"model_ema": state}, "mine.pth")
    done = disa("convert", "mine.pth", "--model", "mar-digits", f"--out={out}")
    assert (done.code, done.err) == (0, "")
    (line,) = re.findall(r"load it with: (.*)", done.out)
    words = shlex.split(line)
    assert words[:3] == ["disa", "sample", "--model"]
    done = disa(*words[1:], *QUICK, "--out", "pictures", "--json")
    expected = Sampler.load(here / out, device="cpu").about()
    assert len(done.json()["files"]) == 1
    trace = json.loads(Path("pictures/trace.json").read_text())
    assert expected["weights"] in json.dumps(trace)


def test_a_command_for_prompts_has_one(here: Path, disa: Command) -> None:
    pytest.importorskip("transformers")
    torch.save(official("harmon-shapes"), "mine.pth")
    done = disa("convert", "mine.pth", "--model", "harmon-shapes", "--out", "harmon-shapes")
    (line,) = re.findall(r"load it with: (.*)", done.out)
    assert shlex.split(line)[3:] == ["./harmon-shapes", "--prompt", "a red circle"]
    assert find_model("./harmon-shapes") == Path("harmon-shapes")


def test_an_autoencoder_that_is_not_with_a_model_is_told(here: Path, disa: Command) -> None:
    config = VAEConfig(latent_channels=1, block_widths=(8, 8), layers_per_block=1, norm_groups=4,
                       encoder_attention_levels=())  # fmt: skip
    digits = find_preset("mar-digits")
    for assets, words in ((PRESETS["mar-base"].assets, "jadechoghari/mar on the hub"), (digits.assets, "")):
        preset = small.changed(small.PRESET, codec=config, name="mine")
        save_model(here / "mine", small.changed(preset, **vars(assets)), small.weights())
        done = disa("convert", "mine", "--out", "out")
        assert ("its autoencoder is not with it" in done.out) is bool(words)
        assert words in done.out


def test_commands_can_be_pasted() -> None:
    assert command("disa", "sample", "--model", Path("mar-base")) == "disa sample --model ./mar-base"
    assert command("x", Path("/a b"), Path("-c"), Path("~d"), "e f") == "x '/a b' ./-c './~d' 'e f'"
    assert command("x", Path("../a"), Path(".b"), Path("owner/name")) == "x ../a .b ./owner/name"


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_file_of_weights_leads_to_checkpoint(here: Path, disa: Command) -> None:
    (here / "h i").mkdir()
    torch.save({"model_ema": official()}, "h i/plain.pth")
    save_file({name: value.clone() for name, value in official("xar-digits").items()}, "xar.safetensors")
    torch.save({"a": torch.zeros(1)}, "other.pth")
    for path, preset in (
        ("h i/plain.pth", "mar-digits"),
        ("xar.safetensors", "xar-digits"),
        ("other.pth", "mar-digits"),
    ):
        said = complaint(disa("sample", "--model", path, "--out", "o"))
        (line,) = re.findall("`(.*)`", said)
        assert shlex.split(line)[1:] == ["sample", "--model", preset, "--checkpoint", f"./{path}"]
        assert (f"It has weights of {preset}" in said) is (path != "other.pth")
    (line,) = re.findall("`(.*)`", refusal("h i/plain.pth"))
    options = [] if "xar" in line else ["--num-ar-steps", "2"]
    done = disa(*shlex.split(line)[1:], "--labels", "3", "--steps", "constant:2", *options, "--out", "o", "--json")
    assert done.code == 0


def test_a_file_of_our_folder_leads_to_the_folder(here: Path) -> None:
    small.folder(here / "mar-base")
    for name in ("model.safetensors", "config.json"):
        assert "give its folder, as in `disa sample --model ./mar-base`" in refusal(f"mar-base/{name}")


def test_things_that_are_neither_are_one_line(here: Path) -> None:
    os.mkfifo(here / "pipe")
    assert "pipe is neither a folder nor a file" in refusal("./pipe")
    (here / "notes.txt").write_text("hello")
    assert "notes.txt is a file, not a model" in refusal("notes.txt")
    assert "a checkpoint" not in refusal("a/b/c")
    assert refusal("a/b/c") == "there is no folder a/b/c."
    assert refusal(Path("mar-base")) == "there is no folder mar-base. The preset is named mar-base."
    assert "there is no folder" in refusal("x" * 5000 + "/")


def test_a_checkpoint_needs_a_preset(here: Path) -> None:
    small.folder(here / "mine")
    assert "mine is a folder with weights of its own" in refusal("mine", checkpoint="x.pth")
    assert "a checkpoint needs the name of its model, one that `disa presets` lists" in refusal(
        "owner/name", checkpoint="x.pth"
    )
    assert refusal("mar_base", checkpoint="x.pth").endswith("found 'mar_base'. Did you mean mar-base?")
    assert "is where the weights of" in refusal("LTH14/mar", checkpoint="x.pth")


# -- near names ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("mar_base", "mar-base"), ("MAR-Base", "mar-base"), ("Mar_Digits", "mar-digits"), ("mar-b", "mar-base"),
        ("FlowAR-S", "flowar-small"), ("flowar_huge", "flowar-huge"), ("xAR-L", "xar-large"),
        (" mar-base ", "mar-base"),
        ("harmon-1_5b", "harmon-1.5b"), ("Harmon-0.5B", "harmon-0.5b"), ("harmon-shape", "harmon-shapes"),
    ],
)  # fmt: skip
def test_a_near_name_is_told(name: str, near: str) -> None:
    assert refusal(name).endswith(f"Did you mean {near}?")
    with pytest.raises(DisaError, match=f"Did you mean {re.escape(near)}"):
        find_preset(name)


@pytest.mark.parametrize(
    ("name", "presets"),
    [
        ("LTH14/mar", OF_MAR), ("lth14/MAR", OF_MAR), ("jadechoghari/mar", OF_MAR), ("jadechoghari/mar@main", OF_MAR),
        ("OliverRen/FlowAR", "flowar-small, flowar-large or flowar-huge"), ("github.com/LTH14/mar", OF_MAR),
        ("OliverRen/xAR", "xar-base, xar-large or xar-huge"), ("wusize/Harmon", "harmon-0.5b or harmon-1.5b"),
        ("wusize/Harmon-1_5B", "harmon-1.5b"), ("https://huggingface.co/wusize/Harmon-0_5B", "harmon-0.5b"),
    ],
)  # fmt: skip
def test_projects_of_presets_lead_to_them(name: str, presets: str) -> None:
    assert f"is where the weights of {presets} come from: give" in refusal(name)


@pytest.mark.parametrize(
    "name", [None, 3, b"mar-base", ["mar-base"], "", " ", "a\0b", "\ud800", True, "a b/c", "a--b/c"]
)
def test_what_is_no_name_is_one_line(name: Any) -> None:
    refusal(name)


def test_addresses_lead_to_the_hub_id() -> None:
    assert (
        refusal("https://huggingface.co/some/model")
        == "https://huggingface.co/some/model is an address: give some/model instead."
    )
    assert "there is no folder some/model, and no hub repository could be got" in refusal("some/model")
