"""Bulk drawing: what is on the disk, whatever draws it, fails or is killed. The model is a stub."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kills
from command import files
from disa.bulk.crew import Died
from disa.bulk.driver import MOST_FAILURES, chunk_size, split
from disa.bulk.job import Record
from disa.bulk.report import status
from disa.bulk.shards import Container, Manifest
from disa.bulk.store import Shards, Store
from disa.bulk.verify import check_files, spans
from disa.bulk.worker import Chunk, Drawn, Failed
from disa.errors import DisaError
from stub_crew import StubCrew, draw, drawn, record


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "shards").iterdir())}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A run of ten images in three shards, drawn without any trouble."""
    draw(tmp_path / "whole", record(10))
    return tmp_path / "whole"


def test_a_run_is_shards_with_manifests_and_nothing_else(whole: Path) -> None:
    names = [f"shards/00000{i}.{kind}" for i in range(3) for kind in ("json", "tar")]
    assert files(whole) == ["progress.json", "run.json", *names]
    assert not (whole / "parts").exists()
    manifest = Manifest.read(whole / "shards" / "000001.json")
    assert [(entry.id, entry.seed, entry.label) for entry in manifest.entries] == [(i, i, i) for i in range(4, 8)]
    assert [name for name, _ in Container(whole / "shards", "000001").contents()] == [
        f"00000000{i}.png" for i in range(4, 8)
    ]
    assert [entry.id for entry, _ in Shards(whole, record(10)).images()] == list(range(10))


@pytest.mark.parametrize(("workers", "chunk"), [(1, 1), (1, 64), (2, 3), (3, 2), (5, 1)])
def test_shards_are_equal_files_whoever_draws_them(tmp_path: Path, whole: Path, workers: int, chunk: int) -> None:
    draw(tmp_path / "other", record(10), StubCrew(workers), chunk)
    assert shards_of(tmp_path / "other") == shards_of(whole)


def test_a_run_that_is_killed_before_any_call_is_gone_on_with(tmp_path: Path, whole: Path) -> None:
    """From some call on nothing reaches the disk; what is missing is drawn again, and the end is the same. Every
    third call is tried."""

    def killed() -> None:
        raise KeyboardInterrupt

    of, call, seen, ended = record(10), 0, set[int](), False
    while not ended:
        call += 3
        folder = tmp_path / f"{call}"
        with contextlib.suppress(KeyboardInterrupt), kills.at_call(call, killed):
            draw(folder, of, chunk=2)
            ended = True
        if (folder / "run.json").exists():
            of = Record.read(folder)
        again = draw(folder, of, chunk=3)
        seen.add(again.there_before)
        assert shards_of(folder) == shards_of(whole)
        assert [name for name in files(folder) if Path(name).name.startswith(".")] == []
        assert not (folder / "parts").exists()
    assert seen == {0, 2, 4, 6, 8, 10}


def test_only_what_is_missing_is_drawn(tmp_path: Path, whole: Path) -> None:
    before = shards_of(whole)
    (whole / "shards" / "000001.tar").unlink()
    crew = StubCrew()
    assert draw(whole, Record.read(whole), crew, chunk=4).drawn == 4
    assert sorted(i for ids in crew.handed_out for i in ids) == [4, 5, 6, 7]
    assert shards_of(whole) == before
    assert draw(whole, Record.read(whole), crew).drawn == 0
    assert status(Shards(whole, Record.read(whole)))["there"] == 10


def test_files_of_others_in_a_run_stay(whole: Path) -> None:
    mine = [whole / "shards" / name for name in ("notes.json", "mine.tar", "1.json")]
    for path in mine:
        path.write_text("mine")
    draw(whole, Record.read(whole))
    assert [path.read_text() for path in mine] == ["mine"] * 3


def test_a_full_disk_loses_nothing(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, fsync, room = record(10), os.fsync, 9

    def full(descriptor: int) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DisaError, match=r"could not write .*No space left on device"):
            draw(tmp_path / "full", of, chunk=2)
    there = draw(tmp_path / "full", Record.read(tmp_path / "full")).there_before
    assert 0 < there < 10
    assert shards_of(tmp_path / "full") == shards_of(whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root of Linux can mount a small tmpfs")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_disk_that_is_full_loses_nothing(tmp_path: Path, small_disk: Path) -> None:
    """A real one, which is full while a part, a shard or a manifest is written."""

    def large(chunk: Chunk) -> Drawn:
        contents = [np.random.default_rng(i).bytes(29_000) for i in chunk.ids]
        hashes = [sha256(content).hexdigest() for content in contents]
        entries = [replace(entry, sha256=hash) for entry, hash in zip(drawn(chunk).entries, hashes, strict=True)]
        return Drawn(entries, contents, 0.0, len(entries))

    draw(tmp_path / "whole", record(10), StubCrew(answer=large))
    folder, of = small_disk / "run", record(10)
    with pytest.raises(DisaError, match=r"could not write .*No space left on device\. Nothing was changed"):
        draw(folder, of, StubCrew(answer=large), chunk=1)
    found = findings(folder)
    assert 0 < found.missing < 10
    assert (found.damaged, found.doubled) == ([], 0)
    assert [name for name in files(folder) if Path(name).name.startswith(".")] == []
    with pytest.raises(DisaError, match="No space left on device"):  # still
        draw(folder, Record.read(folder), StubCrew(answer=large), chunk=1)
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    assert draw(folder, Record.read(folder), StubCrew(answer=large)).failures == {}
    assert shards_of(folder) == shards_of(tmp_path / "whole")
    assert findings(folder).is_good


def test_a_shard_may_have_a_part_for_each_of_its_images(tmp_path: Path) -> None:
    """More than files that a process may have open."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 128), hard))
    try:
        draw(tmp_path, record(200, shard_size=200), chunk=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert findings(tmp_path).is_good


def drawn_and_read(folder: Path) -> None:
    draw(folder, Record.read(folder))
    list(Shards(folder, record(10)).images())


def test_a_damaged_part_or_shard_is_passed_on_to_nobody(tmp_path: Path, whole: Path) -> None:
    crew = StubCrew(answer=lambda chunk: Failed("not these") if chunk.ids[0] >= 2 else drawn(chunk))
    draw(tmp_path / "parts", record(10), crew, chunk=2)
    for folder, name in ((tmp_path / "parts" / "parts", "000000-000000000"), (whole / "shards", "000000")):
        container = Container(folder, name)
        container.tar.write_bytes(container.tar.read_bytes().replace(b"image 1image", b"image 1imagE"))
        told = rf"{name}\.tar cannot be read \(000000001.png is not what the manifest says\): remove it, and"
        with pytest.raises(DisaError, match=told):
            drawn_and_read(folder.parent)
        container.tar.unlink()
        draw(folder.parent, Record.read(folder.parent))
        assert findings(folder.parent).is_good


def test_what_is_there_can_be_told_while_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard becomes whole, and its parts go, between a list of them and a look at them."""
    crew = StubCrew(answer=lambda chunk: Failed("later") if 2 in chunk.ids else drawn(chunk))
    draw(tmp_path, record(10), crew, chunk=1)
    run, parts = Shards(tmp_path, Record.read(tmp_path)), Shards.parts

    def then_drawn(self: Shards) -> dict[int, list[Container]]:
        found = parts(self)
        monkeypatch.undo()
        draw(tmp_path, Record.read(tmp_path))
        return found

    monkeypatch.setattr(Shards, "parts", then_drawn)
    assert run.there().all()
    assert not (tmp_path / "parts").exists()


# -- what fails ----------------------------------------------------------------------------------------------------


def test_a_bad_image_is_told_of_and_the_others_are_drawn(tmp_path: Path, whole: Path) -> None:
    def answer(chunk: Chunk) -> Drawn | Failed:
        return Failed("not this one") if 5 in chunk.ids else drawn(chunk)

    crew, folder = StubCrew(2, answer), tmp_path / "bad"
    done = draw(folder, record(10), crew, chunk=4)
    assert (done.failures, done.drawn) == ({5: "not this one"}, 9)
    assert crew.handed_out.count([5]) == 3
    assert json.loads((folder / "progress.json").read_text())["failures"] == {"5": "not this one"}
    found, there = check_files(Shards(folder, record(10)), record(10).job.inputs)
    assert (found.missing, found.spans, len(there)) == (1, ["5"], 9)
    # The same again with workers that can.
    assert draw(folder, Record.read(folder)).failures == {}
    assert shards_of(folder) == shards_of(whole)


def test_the_chunk_of_a_dead_worker_is_handed_out_again(tmp_path: Path, whole: Path) -> None:
    deaths = 0

    def answer(chunk: Chunk) -> Drawn | Died:
        nonlocal deaths
        deaths += 1
        return Died("killed") if deaths in (1, 4) else drawn(chunk)

    crew = StubCrew(answer=answer)
    done = draw(tmp_path / "dead", record(10), crew, chunk=2)
    assert (done.deaths, done.failures) == (2, {})
    assert [crew.handed_out.count(ids) for ids in ([0, 1], [2, 3], [4, 5])] == [2, 1, 2]
    assert shards_of(tmp_path / "dead") == shards_of(whole)


def test_an_image_that_kills_its_worker_is_found(tmp_path: Path) -> None:
    crew = StubCrew(answer=lambda chunk: Died("out of memory") if 2 in chunk.ids else drawn(chunk))
    done = draw(tmp_path, record(10), crew, chunk=4)
    assert (done.failures, done.drawn) == ({2: "out of memory"}, 9)


def test_a_run_where_everything_fails_ends_soon(tmp_path: Path) -> None:
    crew = StubCrew(answer=lambda chunk: Failed("no model"))
    with pytest.raises(DisaError, match=f"the first {MOST_FAILURES} images all failed: no model"):
        draw(tmp_path, record(5000, 1000), crew, chunk=10)


# -- one driver, one run -------------------------------------------------------------------------------------------


def test_a_second_driver_is_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = "import sys; from pathlib import Path; from disa.files import only_writer\n"
    hold += "kept = only_writer(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", hold, str(whole)]
    monkeypatch.setattr("disa.files.PATIENCE", 0.0)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert status(Shards(whole, Record.read(whole)))["running"]
        with pytest.raises(DisaError, match="another process writes into"):
            draw(whole, Record.read(whole))
        other.communicate("")
    assert not status(Shards(whole, Record.read(whole)))["running"]
    assert draw(whole, Record.read(whole)).drawn == 0


def test_a_new_run_does_not_go_where_one_is(whole: Path) -> None:
    with pytest.raises(DisaError, match="holds a run already: go on with disa bulk --resume"):
        Store(whole, record(20), is_new=True)
    assert Record.read(whole).num_images == 10


def test_a_new_run_does_not_take_the_images_of_another(whole: Path) -> None:
    (whole / "run.json").unlink()
    with pytest.raises(DisaError, match=r"holds images of a run, but not its run\.json: choose another folder"):
        Store(whole, record(10, digest="another"), is_new=True)


def test_another_digest_is_refused_with_what_differs(whole: Path) -> None:
    about = {"guidance": 2.0, "weights": "a" * 64, "device": "cpu", "torch": "1"}
    kept = Record.read(whole)
    kept.check_same(about, kept.digest, whole)
    with pytest.raises(DisaError, match=r"another run \(guidance is 2.0, not None, weights is aaaaaaaa..., not None\)"):
        kept.check_same(about, "another", whole)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format": 1}', '{"format": 2}'])
def test_what_is_no_run_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(DisaError, match="there is no run in"):
        Record.read(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DisaError, match=r"run\.json"):
        Record.read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"drawn": 3}'])
def test_progress_that_is_not_ours_is_passed_over(whole: Path, text: str) -> None:
    (whole / "progress.json").write_text(text)
    assert status(Shards(whole, Record.read(whole)))["last"] is None


# -- verify --------------------------------------------------------------------------------------------------------


def findings(folder: Path, of: Record | None = None) -> Any:
    of = of or Record.read(folder)
    return check_files(Shards(folder, of), of.job.inputs)[0]


def test_a_whole_run_is_good(whole: Path) -> None:
    assert findings(whole).is_good


def test_damage_is_found(whole: Path) -> None:
    tar = whole / "shards" / "000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b"image 2image", b"image 2imagE"))
    found = findings(whole)
    assert (found.missing, found.spans, len(found.damaged)) == (1, ["2"], 1)
    tar.write_bytes(content[:1200])
    assert findings(whole).missing == 3
    tar.write_bytes(b"no tar")
    assert findings(whole).missing == 4
    tar.write_bytes(content)
    manifest = whole / "shards" / "000001.json"
    told = json.loads(manifest.read_text())
    for change in ({"digest": "another"}, {"images": "none"}):
        manifest.write_text(json.dumps(told | change))
        assert (findings(whole).spans, findings(whole).is_good) == (["4-7"], False)
    manifest.write_text(json.dumps(told).replace('"seed": 5', '"seed": 9'))
    assert findings(whole).spans == ["5"]


def test_images_that_are_there_twice_are_found(whole: Path) -> None:
    part, shard = Container(whole / "parts", "000002-000000008"), Container(whole / "shards", "000002")
    part.folder.mkdir()
    part.write(Record.read(whole).digest, shard.entries(), [content for _, content in shard.contents()])
    shard.remove()
    assert findings(whole).is_good
    twice = Container(whole / "parts", "000002-000000009")
    twice.write(Record.read(whole).digest, shard_entries := part.entries()[1:], [b"image 9" * 3])
    assert len(shard_entries) == 1
    assert findings(whole).doubled == 1
    # They are joined without the second.
    draw(whole, Record.read(whole))
    assert findings(whole).is_good


# -- numbers -------------------------------------------------------------------------------------------------------


def test_chunks_stay_in_their_shards_and_are_nearly_equal() -> None:
    missing = np.array([0, 1, 2, 3, 5, 9, 10, 11, 12, 13])
    assert [chunk.tolist() for chunk in split(missing, 5, 3, 1)] == [[0, 1], [2, 3], [5, 9], [10, 11], [12, 13]]
    assert [len(chunk) for chunk in split(np.arange(1000), 1000, 64, 1)] == [63] * 8 + [62] * 8
    assert list(split(np.array([], dtype=int), 5, 3, 1)) == []
    assert [chunk_size(*each) for each in ((1000, 2, 64), (100, 2, 64), (3, 8, 64), (0, 1, 64))] == [64, 12, 1, 1]


def test_the_last_chunks_are_small_where_several_draw() -> None:
    chunks = [len(chunk) for chunk in split(np.arange(2000), 1000, 64, 2)]
    assert sum(chunks) == 2000
    assert chunks[:24] == [63] * 8 + [62] * 8 + [63] * 8
    assert chunks[24:] == sorted(chunks[24:], reverse=True)
    assert chunks[-1] <= 4


def test_workers_of_unlike_speed_end_together() -> None:
    """One draws an image in a second, three in two. Handed out as they get free, none waits long for the last."""
    speeds, chunks = [1.0, 2.0, 2.0, 2.0], list(split(np.arange(5000), 1000, 64, 4))
    ends = [0.0] * 4
    for chunk in chunks:
        first = ends.index(min(ends))
        ends[first] += len(chunk) * speeds[first]
    assert max(ends) - min(ends) <= 2 * 2 * 4
    assert len(chunks) < 5000 / 64 + 4 * 10


def test_shards_become_whole_one_after_the_other(tmp_path: Path) -> None:
    most = 0

    def answer(chunk: Chunk) -> Drawn:
        nonlocal most
        most = max(most, len(list((tmp_path / "parts").glob("*.json"))))
        return drawn(chunk)

    draw(tmp_path, record(200, shard_size=10), StubCrew(2, answer), chunk=4)
    assert 0 < most <= 6  # two shards under way, of three chunks each


def test_spans() -> None:
    assert spans([1, 2, 3, 7, 9, 10], 9) == ["1-3", "7", "9-10"]
    assert spans([], 9) == []
    assert spans(range(0, 100, 2), 3) == ["0", "2", "4"]


def test_memory_does_not_grow_with_what_is_drawn(tmp_path: Path) -> None:
    """Beside the lists of what is asked, which are made before. An image that was kept would take hundreds of bytes."""

    class Forgetting(StubCrew):
        def hand_out(self, chunk: Chunk) -> None:
            super().hand_out(chunk)
            self.handed_out.clear()

    def peak(num_images: int) -> int:
        of = record(num_images, 500)
        assert len(of.job.inputs) == num_images
        tracemalloc.start()
        draw(tmp_path / f"{num_images}", of, Forgetting(), chunk=250)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(500)  # what is made once, whatever is drawn
    assert peak(3000) < peak(1000) + 2000 * 150
