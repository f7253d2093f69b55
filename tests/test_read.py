"""A file of weights from outside: which of it the weights are, what kind of file it is, and what it may cost."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import functools
import gzip
import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

import small
from command import Command
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.models.registry import PRESETS
from disa.weights.convert import convert
from disa.weights.fitting import preset_of
from disa.weights.load import load_model
from disa.weights.read import read_tensors
from disa.weights.stored import read_stored

RAW, AVERAGE = small.official_weights(seed=1), small.official_weights(seed=0)
NAMES = list(RAW)


def saved(content: Any, path: Path, zipped: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


def loaded(path: Path, average: bool = True, key: str | None = None) -> tuple[str, list[str]]:
    """Which weights were loaded, and what was said."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = load_model(small.PRESET, path, average, key).state_dict()
    which = [name for name, seed in (("raw", 1), ("average", 0)) if equal(state, small.weights(seed=seed))]
    return " ".join(which), [str(each.message) for each in caught if "written anew" not in str(each.message)]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def refused(path: Path, **options: Any) -> str:
    """The message of the DisaError: one line, of a length that can be read."""
    with pytest.raises(DisaError) as caught, warnings.catch_warnings(action="ignore"):
        load_model(small.PRESET, path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert 20 < len(message) < 500
    return message


def prefixed(prefix: str, state: dict[str, Tensor] = RAW) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def inside(name: str, state: dict[str, Tensor] = RAW) -> dict[str, Tensor]:
    """Wrappers of parts of a model: their names are inside of its names."""
    return {key.replace("blocks.0.", f"blocks.0.{name}."): value for key, value in state.items()}


# -- the average -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "model_ema", "ema", "EMA", "state_dict_ema", "ema_state_dict", "ema_model", "params_ema", "ema_weights",
        "model_ema_state_dict", "ema_0.9999", "ema0.9999", "model_ema1", "swa_model", "averaged_model", "G_ema",
        "net_ema", "modelEMA", "shadow", "unet_ema", "model_avg", "polyak",
    ],
)  # fmt: skip
@pytest.mark.parametrize("raw", ["model", "state_dict", "net"])
def test_the_average_is_taken_by_every_name_in_use(tmp_path: Path, raw: str, name: str) -> None:
    path = saved({raw: RAW, "epoch": 3, name: AVERAGE}, tmp_path / "c.pth")
    which, said = loaded(path)
    assert which == "average"
    assert len(said) <= 1
    assert loaded(path, average=False)[0] == "raw"
    assert loaded(path, key=raw) == ("raw", [])
    assert loaded(path, key=name) == ("average", [])


@pytest.mark.parametrize("name", ["ema_decay", "schema", "gemarkung", "teacher", "average_loss"])
def test_what_only_sounds_like_an_average_is_none(tmp_path: Path, name: str) -> None:
    path = saved({"model": RAW, name: torch.tensor(0.9)}, tmp_path / "c.pth")
    which, (said,) = loaded(path)
    assert which == "raw"
    assert said == f"{path}: it holds no average, so model is taken."


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"state": {"model": RAW, "ema": AVERAGE}}, "state.ema"),
        ({"state_dict": RAW, "callbacks": {"EMA{'decay': 0.9}": {"ema_state_dict": AVERAGE}}}, None),
        ({"state_dict": RAW, "callbacks": [{"ema_weights": AVERAGE}]}, "callbacks.0.ema_weights"),
        ({"model": RAW, "extra_state": {"ema": AVERAGE}}, "extra_state.ema"),
        ({"model": RAW, "model_ema": {"module": AVERAGE, "decay": 0.99}}, "model_ema.module"),
        ({"model": RAW, "ema": {"shadow": AVERAGE, "num_updates": torch.tensor(3)}}, "ema.shadow"),
        ({"state_dict": prefixed("model.") | prefixed("ema_model.", AVERAGE)}, "state_dict.ema_model"),
        (prefixed("model.") | prefixed("model_ema.", AVERAGE), "model_ema"),
        (
            prefixed("online_model.") | prefixed("ema_model.module.", AVERAGE) | {"initted": torch.tensor(1.0)},
            "ema_model",
        ),
        (
            prefixed("model.")
            | {f"model_ema.{name.replace('.', '')}": value for name, value in AVERAGE.items()}
            | {"model_ema.decay": torch.tensor(0.9), "first_stage_model.a.weight": torch.zeros(3)},
            "model_ema",
        ),
    ],
)
def test_an_average_in_containers_and_behind_prefixes(tmp_path: Path, content: Any, key: str | None) -> None:
    path = saved(content, tmp_path / "c.ckpt")
    which, said = loaded(path)
    assert which == "average"
    assert len(said) <= 1
    assert loaded(path, average=False)[0] == "raw"
    if key:
        assert loaded(path, key=key)[0] == "average"


@pytest.mark.parametrize("empty", [None, {}, [], collections.OrderedDict(), nn.Linear(2, 2)])
def test_an_empty_average_is_said(tmp_path: Path, empty: Any) -> None:
    path = saved({"model": RAW, "model_ema": empty}, tmp_path / "c.pth")
    what = "a whole module" if isinstance(empty, nn.Module) else "empty"
    assert loaded(path) == ("raw", [f"{path}: it holds no average, as its model_ema is {what}, so model is taken."])
    assert "--weights-key" not in refused(path, weights_key="model_ema")


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ({"ema": {"decay": 0.99, "shadow_params": list(AVERAGE.values())}}, "ema.shadow_params"),
        ({"model_ema": list(AVERAGE.values())}, "model_ema"),
        ({"optimizer_states": [{"opt": {}, "ema": tuple(AVERAGE.values())}]}, "optimizer_states.0.ema"),
    ],
)
def test_an_average_without_names_is_refused(tmp_path: Path, content: dict[str, Any], key: str) -> None:
    path = saved({"model": RAW, **content}, tmp_path / "c.pth")
    assert f"a list of tensors without names ({key})" in refused(path)
    assert "--weights-key model " in refused(path)
    assert loaded(path, key="model")[0] == loaded(path, average=False)[0] == "raw"
    assert "without names" in refused(path, weights_key=key)


def test_an_average_that_is_damaged_says_which_and_what_else_there_is(tmp_path: Path) -> None:
    bad = AVERAGE | {NAMES[3]: AVERAGE[NAMES[3]] * torch.nan}
    path = saved({"model": RAW, "model_ema": bad}, tmp_path / "c.pth")
    assert f"{path} (model_ema) is damaged: {NAMES[3]} holds values that are not finite" in refused(path)
    assert "--weights-key model " in refused(path)
    assert loaded(path, key="model") == ("raw", [])


@pytest.mark.parametrize("first", ["student", "model_ema1"])
def test_between_two_equals_nothing_is_guessed(tmp_path: Path, first: str) -> None:
    second = {"student": "teacher", "model_ema1": "model_ema2"}[first]
    path = saved({first: RAW, second: AVERAGE}, tmp_path / "c.pth")
    said = refused(path)
    assert f"several sets of weights, {first} and {second}" in said
    assert f"--weights-key {first} " in said
    assert loaded(path, key=second) == ("average", [])
    assert loaded(saved({first: RAW, second: RAW}, path))[0] == "raw"  # there is nothing to choose


# -- containers and prefixes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["module", "net", "state_dict", "model_state_dict", "weights", "params", "generator", "var_wo_ddp", "state", "x y"],
)
def test_a_container_alone_is_found_and_said(tmp_path: Path, name: str) -> None:
    path = saved({name: RAW, "epoch": 3, "step": torch.tensor(5)}, tmp_path / "c.pth")
    assert loaded(path) == ("raw", [f"{path}: it holds no average, so {name} is taken."])
    nested = saved({"state": {name: RAW}, "optimizer": {"state": {"a.weight": RAW}}}, tmp_path / "n.pth")
    assert loaded(nested) == ("raw", [f"{nested}: it holds no average, so state.{name} is taken."])
    assert loaded(nested, key="state") == ("raw", [f"{nested}: state.{name} is taken."])


@pytest.mark.parametrize(
    "prefix",
    [
        "module.", "_orig_mod.", "model.", "net.", "ema.", "ema_model.module.", "module._orig_mod.",
        "_orig_mod.module.", "model.module.net._orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "denoiser.",
    ],
)  # fmt: skip
@pytest.mark.parametrize("container", [None, "state_dict"])
def test_a_prefix_of_wrappers_is_left_out_and_said(tmp_path: Path, prefix: str, container: str | None) -> None:
    state = prefixed(prefix)
    path = saved({container: state} if container else state, tmp_path / "c.pth")
    which, (said,) = loaded(path)
    assert which == "raw"
    assert prefix.rstrip(".") in said
    save_file(state, tmp_path / "c.safetensors")
    assert loaded(tmp_path / "c.safetensors")[0] == "raw"


@pytest.mark.parametrize("name", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_parts_are_left_out(tmp_path: Path, name: str) -> None:
    assert loaded(saved(inside(name), tmp_path / "c.pth"))[0] == "raw"


def test_counters_of_wrappers_are_left_out(tmp_path: Path) -> None:
    state = prefixed("module.") | {"n_averaged": torch.tensor(7), "steps": torch.tensor([7])}
    assert loaded(saved({"ema_state_dict": state}, tmp_path / "c.pth"))[0] == "raw"


def test_our_own_names_behind_a_prefix(tmp_path: Path) -> None:
    ours = {f"module.{name}": value for name, value in small.weights(seed=1).items()}
    assert loaded(saved(ours, tmp_path / "c.pth"))[0] == "raw"


def test_other_networks_beside_the_model_are_passed_over(tmp_path: Path) -> None:
    others = {f"layers.{i}.weight": torch.zeros(3) for i in range(200)}
    path = saved({"vae": others, "generator": RAW, "discriminator": others}, tmp_path / "c.pth")
    assert loaded(path) == ("raw", [f"{path}: it holds no average, so generator is taken."])
    flat = saved(prefixed("denoiser.") | prefixed("loss.", others), tmp_path / "flat.pth")
    which, (said,) = loaded(flat)
    assert which == "raw"
    assert "200 tensors beside it are left out" in said


def test_a_tensor_too_many_is_still_refused(tmp_path: Path) -> None:
    path = saved({"module": prefixed("module.", RAW | {"extra.weight": torch.zeros(1)})}, tmp_path / "c.pth")
    assert "1 unexpected (extra.weight)" in refused(path)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        (
            "model_ena",
            ["has no entry 'model_ena'", "it has model, model_ema, epoch or args", "Did you mean model_ema?"],
        ),
        ("epoch", ["no weights in its entry epoch", "3"]),
        ("args", ["no weights in its entry args"]),
        ("", ["has no entry ''"]),
        ("model.nothing", ["has no entry 'model.nothing'"]),
        ("a\nb", ["has no entry"]),
        ("x" * 5000, ["has no entry"]),
    ],
)
def test_a_key_that_is_not_there(tmp_path: Path, key: str, words: list[str]) -> None:
    content = {"model": RAW, "model_ema": AVERAGE, "epoch": 3, "args": argparse.Namespace(a=1)}
    said = refused(saved(content, tmp_path / "c.pth"), weights_key=key)
    assert all(word in said for word in words), said


def test_a_key_for_a_file_without_entries(tmp_path: Path) -> None:
    assert "nothing but tensors, so leave it out" in refused(saved(AVERAGE, tmp_path / "c.pth"), weights_key="model")


def test_the_key_works_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disa: Command) -> None:
    monkeypatch.setitem(PRESETS, "small", small.PRESET)
    path = saved({"first": RAW, "second": AVERAGE}, tmp_path / "c.pth")
    sampler = Sampler.from_pretrained("small", checkpoint=str(path), device="cpu", weights_key="second")
    assert equal(sampler.model.state_dict(), small.weights(seed=0))
    convert(path, "small", tmp_path / "ours", weights_key="first")
    assert equal(read_tensors(tmp_path / "ours/model.safetensors"), small.weights(seed=1))
    options = ("--model", "small", "--device", "cpu", "--labels", "3", "--out", tmp_path / "out")
    done = disa("sample", *options, "--checkpoint", path, "--weights-key", "second")
    assert done.code == 0, done.err
    assert done.err == ""
    done = disa("convert", path, "--model", "small", "--weights-key", "third", "--out", tmp_path / "no")
    assert done.code == 2
    assert "has no entry 'third': it has first or second" in done.err
    done = disa("sample", "--model", "mar-digits", "--weights-key", "model")
    assert done.code == 2
    assert "give a checkpoint" in done.err
    done = disa("sample", "--model", tmp_path / "ours", "--weights-key", "model")
    assert done.code == 2
    assert "leave the weights key out" in done.err


# -- what lies beside the weights ------------------------------------------------------------------------------------


class Colour(enum.Enum):
    RED = 1


class Config(dict):
    """Of somebody's own: a dictionary whose entries are attributes."""

    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)
        self.__dict__ = self


def quantised() -> Tensor:
    with warnings.catch_warnings(action="ignore"):  # that these are to go
        return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


HARMLESS = {
    "NumPy scalar": np.float64(2.5), "NumPy array": np.arange(5.0), "NumPy dtype": np.dtype("float32"),
    "object array": np.array([{}, None], dtype=object), "path": Path("/data"), "date": datetime.datetime.now(),
    "namespace": argparse.Namespace(lr=np.float32(1e-4), out=Path("x")), "device": torch.device("cpu"),
    "dtype": torch.float16, "size": torch.Size([3]), "ordered": collections.OrderedDict(a=1),
    "default": collections.defaultdict(list, a=[1]), "counter": collections.Counter("abc"), "set": {1, (2, 3)},
    "frozen set": frozenset([1]), "tuple keys": {(1, 2): 3}, "enum": Colour.RED, "enum key": {Colour.RED: 1},
    "config": Config(a=1, b=Config(c=2)), "class": Config, "function": gzip.open, "slice": slice(3), "range": range(3),
    "complex": 1j, "bytes": b"ab", "array of bytes": bytearray(b"ab"), "deque": collections.deque([1]),
    "partial": functools.partial(gzip.open, "x"), "rng": torch.get_rng_state(), "sparse": torch.eye(3).to_sparse(),
    "module": nn.Linear(2, 2), "quantised": quantised(),
    "meta": torch.empty(3, device="meta"), "generator": np.random.default_rng(0),
}  # fmt: skip


@pytest.mark.parametrize("kind", HARMLESS)
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 5])
def test_anything_may_lie_beside_the_weights(tmp_path: Path, kind: str, zipped: bool, protocol: int) -> None:
    path = tmp_path / "c.pth"
    content = {"before": HARMLESS[kind], "model_ema": AVERAGE, "args": argparse.Namespace(x=[HARMLESS[kind]])}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    assert loaded(path) == ("average", [])


def test_weights_in_containers_of_any_class(tmp_path: Path) -> None:
    for state in (Config(**AVERAGE), collections.defaultdict(None, AVERAGE), collections.OrderedDict(AVERAGE)):
        assert loaded(saved(Config(model_ema=state), tmp_path / "c.pth")) == ("average", [])


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, act: Callable[..., Any], *arguments: Any) -> None:
        self.act, self.arguments = act, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.act, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "first", "value", "key", "state"])
def test_nothing_in_a_file_is_run(tmp_path: Path, zipped: bool, place: str) -> None:
    crater = tmp_path / "crater"
    bombs = {
        "partial": (Bomb(functools.partial, os.mkdir, str(crater)), True),
        "harmless module": (Bomb(np.save, str(crater), np.zeros(1)), False),
        "method": (Bomb(Path.touch, crater), False),
        "system": (Bomb(os.system, f"touch {crater}"), True),
        "eval": (Bomb(eval, f"open({str(crater)!r}, 'w')"), True),
        "process": (Bomb(subprocess.call, ["touch", str(crater)]), True),
    }
    path = tmp_path / "c.pth"
    for kind, (bomb, plain) in bombs.items():
        content: Any = {"model_ema": AVERAGE, "bomb": bomb}
        if place == "first":
            content = {"bomb": bomb, "model_ema": AVERAGE}
        elif place == "value":
            content = {"model_ema": AVERAGE | {NAMES[0]: bomb}}
        elif place == "key":
            content = {"model_ema": AVERAGE, "names": {bomb: 1}}
        elif place == "state":
            content = argparse.Namespace(model_ema=AVERAGE, bomb=bomb)
        saved(content, path, zipped)
        if plain:
            assert "it holds code (" in refused(path), kind
        elif place == "value":
            assert NAMES[0] in refused(path)
        else:
            assert loaded(path)[0] == "average", kind
        assert not crater.with_suffix(".npy").exists()
        assert not crater.exists()
    torch.load(path, weights_only=False)
    assert crater.exists(), "the bombs of this test are duds"


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_reaches_nothing_of_ours(tmp_path: Path, protocol: int) -> None:
    """Fields for what is no object of the file's: a function of ours, or the class that stands for one of another."""
    for target in (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cargparse\nNamespace\n", b"ccollections\nOrderedDict\n"):
        fields = b"N}(X\x08\x00\x00\x00__code__K\x01X\x01\x00\x00\x00aK\x01u\x86b."
        path = tmp_path / "c.pth"
        path.write_bytes(zipped_pickle(b"\x80" + bytes([protocol]) + target + fields))
        refused(path)
    assert not hasattr(argparse.Namespace, "a")
    assert loaded(saved({"model_ema": AVERAGE}, tmp_path / "good.pth")) == ("average", [])


@pytest.mark.parametrize(("content", "what"), [(nn.Linear(2, 2), "Linear"), ({"model": nn.Linear(2, 2)}, "Linear")])
def test_a_whole_module_is_named(tmp_path: Path, content: Any, what: str) -> None:
    for zipped in (True, False):
        said = refused(saved(content, tmp_path / "c.pth", zipped))
        assert "state_dict()" in said
        assert f"torch.nn.modules.linear.{what}" in said


# -- the kind of a file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["c.safetensors", "C.SAFETENSORS", "c", "c.pth", "c.pt", "c.bin", "c.ckpt", "c.pth.tar", "模型.x", "index.json"],
)
def test_a_file_is_told_by_its_content(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    for content in (save(AVERAGE), pickled(AVERAGE, True), pickled(AVERAGE, False)):
        path.write_bytes(content)
        assert loaded(path) == ("average", [])


def pickled(content: Any, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in entries.items():
            file.writestr(name, content)
    return buffer.getvalue()


def zipped_pickle(content: bytes) -> bytes:
    return archive({"archive/data.pkl": content, "archive/version": b"3\n", "archive/data/0": b"\0" * 16})


def legacy_pickle(content: bytes) -> bytes:
    heads = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(head, 2) for head in heads) + content + pickle.dumps([], 2)


def tar(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        info = tarfile.TarInfo("c.pth")
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=AVERAGE[NAMES[0]].numpy(), b=AVERAGE[NAMES[1]].numpy())
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 832000000\n"
OTHERS: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "LFS": (lambda: LFS, ["pointer of Git LFS", "git lfs pull"]),
    "LFS with a mark and returns": (lambda: b"\xef\xbb\xbf" + LFS.replace(b"\n", b"\r\n"), ["git lfs pull"]),
    "xet": (lambda: b"# xet version 0\nfilesize = 9\nhash = 'a'\n", ["git-xet"]),
    "annex": (lambda: b"/annex/objects/SHA256E-s1--a\n", ["git-annex"]),
    "DVC": (lambda: b"outs:\n- md5: a\n  path: c.pth\n", ["dvc pull"]),
    "page": (lambda: b"<!DOCTYPE html><html><body>Sign in</body></html>", ["a web page"]),
    "page after a space": (lambda: b"\n\n  <HTML>\n<head>", ["a web page"]),
    "error of a server": (lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["a web page"]),
    "text": (lambda: b"Access to model X is restricted.\n", ["a text", "Access to model X is restricted."]),
    "JSON": (lambda: b'{"error": "Repository not found"}', ["JSON", "Repository not found"]),
    "empty": (lambda: b"", ["is empty", "Get it again"]),
    "zeros": (lambda: bytes(5000), ["zeros", "Get it again"]),
    "noise": (lambda: b"\xfe\xdc\x01" * 999, ["unknown kind", "Get it again"]),
    "gzip": (lambda: gzip.compress(pickled(AVERAGE, True)), ["gzip", "unpack it"]),
    "tar": (lambda: tar(pickled(AVERAGE, True)), ["tar archive", "unpack it"]),
    "zip of a checkpoint": (lambda: archive({"x/c.pth": pickled(AVERAGE, True)}), ["'x/c.pth'", "unpack it"]),
    "zip of something else": (lambda: archive({"a.txt": b"a", "b.txt": b"b"}), ["zip archive", "2 files"]),
    "packed anew": (lambda: archive({"archive/data.pkl": b"N."}, zipfile.ZIP_DEFLATED), ["packed anew"]),
    "TorchScript": (lambda: archive({"m/data.pkl": b"N.", "m/constants.pkl": b"N."}), ["TorchScript", "state_dict()"]),
    "npz": (arrays, ["NumPy arrays", ".npz"]),
    "npy": (lambda: b"\x93NUMPY\x01\x00v", ["a NumPy array"]),
    "ONNX": (lambda: b"\x08\x07\x12\x07pytorch\x1a\x052.1.0:", ["ONNX"]),
    "GGUF": (lambda: b"GGUF\x03\x00\x00\x00", ["GGUF"]),
    "HDF5": (lambda: b"\x89HDF\r\n\x1a\n", ["HDF5"]),
    "picture": (lambda: b"\x89PNG\r\n\x1a\n", ["a picture"]),
    "pickle": (lambda: pickle.dumps({"a": np.zeros(3)}), ["a pickle that torch.save did not write"]),
    "other byte order": (
        lambda: archive({"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"big"}), ["another byte order"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
def test_other_files_are_named_for_what_they_are(tmp_path: Path, kind: str, name: str) -> None:
    make, words = OTHERS[kind]
    path = tmp_path / name
    path.write_bytes(make())
    said = refused(path)
    assert all(word in said for word in [str(path), *words]), said


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
def test_a_checkpoint_that_was_cut_off(tmp_path: Path, zipped: bool, share: float) -> None:
    path, whole = tmp_path / "c.pth", pickled({"model_ema": AVERAGE}, zipped)
    path.write_bytes(whole[: int(len(whole) * share)])
    assert "Get it again" in refused(path)


def test_what_is_no_file_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for path, kind in ((tmp_path / "pipe", "a named pipe"), (tmp_path / "socket", "a socket"),
                           (Path("/dev/zero"), "a device"), (Path("/dev/stdin"), "is ")):  # fmt: skip
            assert kind in refused(path)
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert "it is a link to" in refused(tmp_path / "link")
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "below", Path("a" * 5000), Path("a\0b")):
        refused(path)
    saved(AVERAGE, tmp_path / "checkpoint-last.pth")
    assert "Did you mean checkpoint-last.pth?" in refused(tmp_path / "chekpoint-last.pth")


# -- folders and shards ------------------------------------------------------------------------------------------------


def shards(folder: Path, ending: str = "safetensors") -> Path:
    """A folder of two shards with their index, whose path is returned."""
    folder.mkdir()
    names = [f"model-0000{i}-of-00002.{ending}" for i in (1, 2)]
    for i, name in enumerate(names):
        part = {key: AVERAGE[key].contiguous() for key in NAMES[i::2]}
        save_file(part, folder / name) if ending == "safetensors" else torch.save(part, folder / name)
    index = folder / f"model.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {key: names[i % 2] for i, key in enumerate(NAMES)}}))
    return index


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_an_index_and_its_folder_read_the_shards(tmp_path: Path, ending: str) -> None:
    index = shards(tmp_path / "model", ending)
    assert loaded(index) == loaded(index.parent) == ("average", [])
    first = index.parent / f"model-00001-of-00002.{ending}"
    assert "It is one of 2 files of model: give their folder." in refused(first)
    (index.parent / f"old.{ending}").write_bytes(first.read_bytes())
    assert loaded(index.parent) == ("average", [])  # what the index does not list is left alone
    first.unlink()
    assert "2 files, of which 1 is not there: get model-00001-of-00002" in refused(index)


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        ({}, "lists no files"),
        ({"a": "../model.safetensors"}, "no file beside it"),
        ({"a": "/etc/passwd"}, "no file beside it"),
        ({"a": ".."}, "no file beside it"),
        ({"a": ""}, "no file beside it"),
        ({"a": 3}, "expected file names"),
        ([], "expected file names"),
        (None, "expected file names"),
    ],
)
def test_an_index_that_lists_no_shards_is_refused(tmp_path: Path, listed: Any, words: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": listed}))
    assert words in refused(index)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    for text in ('{"weight_map": {', '{"weight_map":' * 100_000):
        index.write_text(text)
        assert "Get it again" in refused(index)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.bin", "last.pth", "model.SAFETENSORS"])
def test_a_folder_with_one_checkpoint_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(PRESETS, "small", small.PRESET)
    folder = tmp_path / "hub"
    folder.mkdir()
    saved(AVERAGE, folder / name)
    for beside in ("optimizer.pt", "training_args.bin", "rng_state.pth", "scheduler.pt"):
        saved({"a": 1}, folder / beside)
    (folder / "config.json").write_text('{"architectures": ["MAR"]}')
    assert loaded(folder) == ("average", [])
    convert(folder, "small", tmp_path / "ours")
    assert equal(read_tensors(tmp_path / "ours/model.safetensors"), small.weights(seed=0))


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], ["a folder without weights"]),
        (["checkpoint-1.pth", "checkpoint-2.pth"], ["2 checkpoints", "checkpoint-1.pth or checkpoint-2.pth"]),
        ([".metadata", "__0_0.distcp"], ["a distributed checkpoint", "dcp_to_torch"]),
        (["data.pkl", "version"], ["unpacked"]),
        (["zero_to_fp32.py", "latest"], ["DeepSpeed"]),
        (["saved_model.pb"], ["TensorFlow"]),
    ],
)
def test_other_folders_are_named(tmp_path: Path, files: list[str], words: list[str]) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"x")
    said = refused(folder)
    assert all(word in said for word in [str(folder), "expected a file", *words]), said


# -- headers that lie, and what reading costs --------------------------------------------------------------------------


def header(entries: Any, body: bytes = b"", length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(*shape: Any, at: tuple[Any, Any] = (0, 4), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(at)}


@pytest.mark.parametrize(
    "content",
    [
        header({}, length=100 << 30), header({}, length=(1 << 63) + 1),
        header({"a": entry(25 << 30, at=(0, 100 << 30))}),
        header({"a": entry(2, at=(0, 8)), "b": entry(2, at=(4, 12))}, bytes(12)),
        header({"a": entry(1), "b": entry(1)}, bytes(4)), header({"a": entry(1), "b": entry(1, at=(8, 12))}, bytes(12)),
        header({"a": entry(1)}, bytes(5)), header({"a": entry(-1, at=(0, -4))}), header({"a": entry(1.0)}, bytes(4)),
        header({"a": entry(1, dtype=[1])}, bytes(4)), header({"a": entry(10**30, 0, at=(0, 0))}), header({"a": None}),
        header({"a": entry(*[1] * 1000)}, bytes(4)), header(b'{"a":' * 100_000), header(b'{"a":' + b"[" * 100_000),
        header(b'{"\xff": 1}'), header(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,0]}}'),
        header({f"t{i}": entry(0, at=(0, 0)) for i in range(200_000)}), header({"a": entry(0, at=(0, 0)), "": 3}),
        save(AVERAGE) + b"x", save(AVERAGE)[:-1],
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    assert "Get it again" in refused(path)


@pytest.mark.parametrize("name", ["a\nb", "\x1b[31m", "x" * 300, "\ud800"])
def test_odd_names_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "c.safetensors"
    path.write_bytes(header({name: entry(0, at=(0, 0))}))
    assert "named tensors" in refused(path)


def test_empty_and_single_tensors_are_read(tmp_path: Path) -> None:
    state = {
        "a": torch.zeros(0, 3), "b": torch.tensor(2.5), "c": torch.ones(2, 3).t(), "d": torch.arange(6.0)[2:4],
        "e": torch.ones(1).expand(4), "f": torch.tensor(True), "g": torch.ones(2, dtype=torch.complex64),
    }  # fmt: skip
    for path in (saved(state, tmp_path / "c.pth"), saved(state, tmp_path / "old.pth", zipped=False)):
        assert equal(read_tensors(path), state)
    plain = {name: value.contiguous() for name, value in state.items()}
    save_file(plain, tmp_path / "c.safetensors")
    assert equal(read_tensors(tmp_path / "c.safetensors"), plain)


def tensor(count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, key: str = "0") -> bytes:
    """A pickle of {"w": a tensor}, whatever is stored of it."""

    def whole(number: int) -> bytes:
        return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)

    def text(letters: str) -> bytes:
        return b"X" + struct.pack("<I", len(letters)) + letters.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + whole(count) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(whole, numbers)) + b"t" for numbers in (shape, stride))
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + whole(offset) + sizes + b"\x89}tR"
    return b"\x80\x02}" + text("w") + made + b"s."


LYING = [
    tensor(25 << 30, (25 << 30,), (1,)), tensor(4, (1 << 40,), (1,)), tensor(4, (4,), (-1,)), tensor(4, (1,), (1,), -3),
    tensor(4, (-4,), (1,)), tensor(4, (4,), (1,), key="../version"), tensor(4, (1 << 62, 1 << 62), (0, 0)),
    tensor(4, (0, 1 << 62), (1, 1)), tensor(4, (1,) * 200, (1,) * 200), tensor(4, (1,), ()), tensor(-4, (1,), (1,)),
]  # fmt: skip
FIFTY_GB = struct.pack("<Q", 50 << 30)
GREEDY = {
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.", "text": b"\x80\x02\x8d" + b"\xff" * 7 + b"\x3fx.",
    "number": b"\x80\x02\x8b\xff\xff\xff\x7f.", "bytes": b"\x80\x05\x8e" + FIFTY_GB + b".",
    "array": b"\x80\x05\x96" + FIFTY_GB + b".", "frame": b"\x80\x04\x95" + FIFTY_GB + b"N.",
    "digits": b"\x80\x02I" + b"9" * 10**6 + b"\n.",
    "names": b"\x80\x02" + b"".join(b"ca\nb%d\n0" % i for i in range(20_000)) + b"N.", "end": b"\x80\x02",
    "doubling": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(100)) + b".",
    "itself": b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", "tuples": b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.",
}  # fmt: skip


@pytest.mark.parametrize("wrap", [zipped_pickle, legacy_pickle])
def test_a_pickle_that_lies_is_refused(tmp_path: Path, wrap: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "c.pth"
    for content in LYING:
        path.write_bytes(wrap(content))
        assert "damaged" in refused(path)


@pytest.mark.parametrize("kind", GREEDY)
@pytest.mark.parametrize("wrap", [zipped_pickle, legacy_pickle])
def test_a_pickle_that_asks_for_much_gets_little(tmp_path: Path, kind: str, wrap: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "c.pth"
    path.write_bytes(wrap(GREEDY[kind]))
    assert str(path) in refused(path)


def test_bounds_of_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved({"model_ema": AVERAGE}, tmp_path / "c.pth")
    for bound, few in (("MOST_PICKLED", 1000), ("MOST_READS", 1000), ("MOST_DIRECTORY", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(f"disa.weights.pickled.{bound}", few)
            assert "more" in refused(path)
    bomb = archive({"archive/data.pkl": bytes(50_000_000)}, zipfile.ZIP_DEFLATED)
    path.write_bytes(bomb)
    assert "packed anew" in refused(path)


MEASURE = """
import resource, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1]]
import small
from disa.errors import DisaError
from disa.weights.load import load_model
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[2:]:
    try:
        load_model(small.PRESET, Path(path))
    except DisaError as error:
        print(error, file=sys.stderr)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_only_what_is_needed_is_read(tmp_path: Path) -> None:
    """Files of 100 MB to 1 GB of which 261 kB are needed, or nothing."""
    large = {"model_ema": AVERAGE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(1 << 25)}}}}
    paths = [saved(large, tmp_path / "c.pth"), saved(large, tmp_path / "old.pth", zipped=False)]
    paths.append(tmp_path / "wrong.safetensors")
    with paths[-1].open("wb") as file:
        file.write(header({"a": entry(1 << 28, at=(0, 1 << 30))}))
        file.truncate(file.tell() + (1 << 30))  # takes no room on the disk
    command = [sys.executable, "-c", MEASURE, Path(__file__).parent, *paths]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "unexpected (a)" in done.stderr
    assert done.stderr.count("does not fit") == 1
    assert int(done.stdout) < 60


def test_a_file_that_is_written_anew_leaves_loaded_weights_alone(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    for content in (save(AVERAGE), pickled(AVERAGE, True)):
        path.write_bytes(content)
        model = load_model(small.PRESET, path)
        with path.open("r+b") as file:  # in its place, as training does
            file.truncate(100)
        assert equal(model.state_dict(), small.weights(seed=0))


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    from disa.weights.read import find

    for name, content in (("c.safetensors", save(AVERAGE)), ("c.pth", pickled(AVERAGE, True))):
        path = tmp_path / name
        path.write_bytes(content)
        state = find(path).state
        path.write_bytes(content + b"x")
        with pytest.raises(DisaError, match="changed while it was read"):
            read_stored(state)


# -- dtypes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zipped", [True, False, None])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_kept(tmp_path: Path, dtype: torch.dtype, zipped: bool | None) -> None:
    state = {name: value.to(dtype) for name, value in AVERAGE.items()}
    path = tmp_path / "c"
    save_file(state, path) if zipped is None else saved(state, path, zipped)
    assert equal(read_tensors(path), state)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.bool, torch.complex64])
def test_other_numbers_are_refused_by_name(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in AVERAGE.items()}
    save_file(state, tmp_path / "c.safetensors")
    for path in (tmp_path / "c.safetensors", saved(state, tmp_path / "c.pth")):
        said = refused(path)
        assert f"is {str(dtype)[6:]}" in said
        assert ("bfloat16" in said) is ("float8" in str(dtype))


def test_numbers_that_pytorch_does_not_have_are_refused(tmp_path: Path) -> None:
    content = header({name: entry(*value.shape, at=(4 * i, 4 * i + 4), dtype="F4")
                      for i, (name, value) in enumerate(AVERAGE.items())}, bytes(4 * len(AVERAGE)))  # fmt: skip
    (tmp_path / "c.safetensors").write_bytes(content)
    assert "is F4, a kind of numbers" in refused(tmp_path / "c.safetensors")


class Pair:
    """An object that can be a key."""

    def __init__(self, both: Any) -> None:
        self.one = self.other = both


def without_end(depth: int) -> Any:
    """An object whose text holds 2^depth others."""
    return functools.reduce(lambda found, _: Pair(found), range(depth), None)  # pyright: ignore[reportArgumentType]


# The same numbers stand in thousands of places.
MANY = dict.fromkeys(range(100_000), 1)


@pytest.mark.parametrize(
    "beside",
    [
        {10**5000: {"a": 1}},
        {torch.zeros(1): {"a": 1}},
        {without_end(60): {"a": 1}},
        {"x" * 10_000_000: [[] for _ in range(3000)]},
        {"log": [MANY] * 3000},
        {"log": [[[[[[MANY] * 3000]]]]]},
        {f"ema_{i}": MANY for i in range(3000)},
    ],
    ids=["long number", "tensor", "object", "long name", "wide", "deep", "averages"],
)
def test_names_and_numbers_without_end_cost_little(tmp_path: Path, beside: dict[Any, Any]) -> None:
    path = saved({"model": RAW, **beside}, tmp_path / "c.pth")
    started = time.process_time()
    assert loaded(path)[1]
    assert time.process_time() - started < 5


def test_a_hint_reads_no_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = PRESETS["mar-digits"].build().state_dict()
    path = saved(state, tmp_path / "c.pth")
    monkeypatch.setattr("disa.weights.read.read_stored", None)
    assert preset_of(path) == "mar-digits"
