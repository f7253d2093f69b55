"""Files that were read before: a download is as it was, a local file may change, and the record of both survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import small
from disa.errors import DisaError
from disa.models.registry import PRESETS
from disa.models.spec import HubFile
from disa.weights.convert import convert
from disa.weights.load import load_model
from disa.weights.trust import check_hash, hash_file, hash_record

FROM_HUB = small.changed(small.PRESET, weights=HubFile("some/repo", "weights.safetensors"))


def load(path: Path) -> dict[str, Tensor]:
    return load_model(small.PRESET, path).state_dict()


def saved(path: Path, seed: int = 0) -> Path:
    torch.save(small.weights(seed=seed), path)
    return path


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(value, other[name]) for name, value in one.items())


def recorded() -> dict[str, dict[str, object]]:
    return json.loads(hash_record().read_text())


# -- local files -----------------------------------------------------------------------------------------------------


def test_a_local_file_that_was_written_anew_loads_with_one_warning(tmp_path: Path, cache: Path) -> None:
    path = saved(tmp_path / "checkpoint-last.pth", seed=0)
    with warnings.catch_warnings(action="error"):
        load(path)
        load(path)
    assert hash_record().parent == cache
    for seed in (1, 2):
        saved(path, seed)
        os.utime(path, ns=(seed, seed))
        with pytest.warns(UserWarning, match="checkpoint-last.pth was written anew since it was last read") as caught:
            assert equal(load(path), small.weights(seed=seed))
        assert len(caught) == 1
        with warnings.catch_warnings(action="error"):
            load(path)


@pytest.mark.parametrize("change", ["replaced", "shorter", "removed and back", "a link to another"])
def test_every_way_to_change_a_local_file(tmp_path: Path, change: str) -> None:
    path = saved(tmp_path / "last.pth", seed=0)
    load(path)
    other = saved(tmp_path / "other.pth", seed=1)
    os.utime(other, ns=(5, 5))
    if change == "replaced":
        os.replace(other, path)
    elif change == "shorter":
        torch.save({name: value.half() for name, value in small.weights(seed=1).items()}, path)
    elif change == "removed and back":
        path.unlink()
        path.write_bytes(other.read_bytes())
    else:
        path.unlink()
        path.symlink_to(other)
    with warnings.catch_warnings(action="ignore"):
        found = load(path)
    assert all(torch.allclose(found[name].float(), value, atol=1e-2) for name, value in small.weights(seed=1).items())


def test_nothing_of_a_large_local_file_is_hashed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("disa.weights.trust.hash_file", lambda _: pytest.fail("all of the file was read"))
    load(saved(tmp_path / "weights.pth"))


def test_a_file_that_disa_writes_again_is_not_a_changed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "small", small.PRESET)
    for seed in (0, 1):
        start = saved(tmp_path / f"{seed}.pth", seed)
        with warnings.catch_warnings(action="error"):
            convert(start, "small", tmp_path / "out", official=True)
            assert equal(load(tmp_path / "out/small.safetensors"), small.weights(seed=seed))


# -- downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the hub's client returns for the weights of `FROM_HUB`."""
    path = tmp_path / "blob"
    save_file(small.weights(seed=0), path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_args, **_kwargs: str(path))
    return path


def test_a_download_that_changed_is_refused(download: Path) -> None:
    load_model(FROM_HUB)
    (entry,) = recorded().values()
    assert entry["sha256"] == hash_file(download)
    os.utime(download)  # touched, but the same
    load_model(FROM_HUB)
    save_file(small.weights(seed=1), download)
    with pytest.raises(DisaError, match="is not the file that was first seen here") as caught:
        load_model(FROM_HUB)
    assert str(hash_record()) in str(caught.value)
    hash_record().unlink()
    assert equal(load_model(FROM_HUB).state_dict(), small.weights(seed=1))


def test_a_broken_download_is_not_what_the_next_is_compared_with(download: Path) -> None:
    whole = download.read_bytes()
    download.write_bytes(whole[:-5])
    with pytest.raises(DisaError, match="Get it again"):
        load_model(FROM_HUB)
    download.write_bytes(whole)
    load_model(FROM_HUB)


# -- the record ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "record", ["", "[]", "{", "null", '{"KEY": 3}', '{"KEY": {"sha256": 5}}', '{"KEY": {}}', "\xff", "[" * 100_000]
)
def test_a_damaged_record_counts_as_none(download: Path, tmp_path: Path, record: str) -> None:
    path = saved(tmp_path / "weights.pth")
    for key in (str(path), "hub:some/repo/weights.safetensors"):
        hash_record().write_bytes(record.replace("KEY", key).encode("latin-1"))
        load(path)
        load_model(FROM_HUB)
        assert set(recorded()) == {str(path), "hub:some/repo/weights.safetensors"}


def test_a_record_that_cannot_be_written_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISA_CACHE", str(tmp_path / "file" / "cache"))
    path = saved(tmp_path / "weights.pth")
    with pytest.warns(UserWarning, match="could not be recorded"):
        assert equal(load(path), small.weights())


def test_other_entries_stay_in_the_record(tmp_path: Path) -> None:
    for name in ("one", "hub:two", "three"):
        (tmp_path / "file").write_text(name)
        check_hash(name, tmp_path / "file")
    assert set(recorded()) == {"one", "hub:two", "three"}


WRITER = """
import sys
from pathlib import Path
from disa.weights.trust import check_hash
for count in range(int(sys.argv[3])):
    check_hash(f"hub:{sys.argv[1]}-{count}", Path(sys.argv[2]))
"""


def test_processes_that_record_at_once_lose_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("weights")
    names, each = ("a", "b", "c"), 15
    command = [sys.executable, "-W", "error", "-c", WRITER]
    running = [subprocess.Popen([*command, name, str(tmp_path / "file"), str(each)]) for name in names]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    assert set(recorded()) == {f"hub:{name}-{count}" for name in names for count in range(each)}
