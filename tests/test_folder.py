"""A folder of samples: written as drawn, resumed by what an image is, never mixed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import small
from command import Command, complaint, files
from disa.draw.folder import MOST_SHOWN, Layout, SampleFolder
from disa.draw.inputs import Inputs
from disa.draw.pictures import text_of
from disa.draw.sampler import Sampler
from disa.draw.settings import digest
from disa.errors import DisaError

QUICK: dict[str, Any] = {"steps": "constant:2", "num_ar_steps": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


def opened(sampler: Sampler, folder: Path, inputs: Inputs, if_used: str = "refuse", **options: Any):
    """A folder for these inputs, and the places that are to be drawn."""
    run = sampler.start(inputs, **(QUICK | options))
    target = SampleFolder(folder, inputs, run.about(), Layout.flat(inputs))
    return target, target.open(if_used)


def drawn(sampler: Sampler, folder: Path, inputs: Inputs, if_used: str = "refuse", **options: Any) -> dict[str, Any]:
    """Draw what is missing in a folder; its trace."""
    target, missing = opened(sampler, folder, inputs, if_used, **options)
    if missing:
        for samples in sampler.start(inputs.part(missing), **(QUICK | options)).batches():
            target.write(samples, [missing[place] for place in samples.places])
    return target.finish()


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "samples").glob("*.png"))}


def test_images_overview_and_trace_stand_apart(sampler: Sampler, tmp_path: Path) -> None:
    trace = drawn(sampler, tmp_path, Inputs.paired([7, 8], [3, 5]))
    names = ["samples/seed000007_label0003.png", "samples/seed000008_label0005.png"]
    assert files(tmp_path) == ["grid.png", *names, "trace.json"]
    assert trace == json.loads((tmp_path / "trace.json").read_text())
    assert (trace["files"], trace["images_counted"]) == (names, 2)
    assert trace["evaluations"] == sum(step["evaluations"] for step in trace["trace"]) > 0
    about = json.loads(text_of(tmp_path / names[0], "disa"))
    assert (about["seed"], about["label"]) == (7, 3)
    assert about["settings"].items() <= trace["settings"].items()
    assert digest(about["settings"]) == trace["digest"]


def test_batches_are_on_the_disk_before_the_next_is_drawn(sampler: Sampler, tmp_path: Path) -> None:
    inputs = Inputs.each(5, labels=[3])
    target, missing = opened(sampler, tmp_path, inputs)
    assert missing == [0, 1, 2, 3, 4]
    seen = []
    for samples in sampler.start(inputs, **QUICK).batches():
        target.write(samples, samples.places)
        seen.append(len(bytes_of(tmp_path)))
    assert seen == [2, 4, 5]


def test_equal_images_are_equal_files_whatever_the_batch(sampler: Sampler, tmp_path: Path) -> None:
    inputs = Inputs.paired([7, 8, 9], [3, 5, 3])
    for size in (1, 3):
        drawn(sampler, tmp_path / f"{size}", inputs, batch_size=size)
    assert bytes_of(tmp_path / "1") == bytes_of(tmp_path / "3")


def test_what_is_missing_is_drawn_and_equals_a_run_without_interruption(sampler: Sampler, tmp_path: Path) -> None:
    inputs = Inputs.each(3, labels=[3, 4])
    whole = drawn(sampler, tmp_path / "whole", inputs)
    drawn(sampler, tmp_path / "parts", inputs.part(slice(0, 4)))
    names = [Path(name).name for name in whole["files"]]
    folder = tmp_path / "parts" / "samples"
    (folder / names[1]).unlink()
    (folder / names[2]).write_bytes((folder / names[2]).read_bytes()[:-9])
    (folder / f".{names[3]}.0123abcd").write_bytes(b"half")
    kept = (folder / names[0]).stat().st_mtime_ns
    _, missing = opened(sampler, tmp_path / "parts", inputs, "resume")
    assert missing == [1, 2, 4, 5]
    again = drawn(sampler, tmp_path / "parts", inputs, "resume")
    assert (folder / names[0]).stat().st_mtime_ns == kept
    assert bytes_of(tmp_path / "parts") == bytes_of(tmp_path / "whole")
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert again["files"] == whole["files"]
    assert opened(sampler, tmp_path / "parts", inputs, "resume")[1] == []


def test_a_name_is_not_an_identity(sampler: Sampler, tmp_path: Path) -> None:
    """The same seed and label, drawn otherwise, is another image under the same name."""
    inputs = Inputs.paired([7], [3])
    drawn(sampler, tmp_path, inputs)
    for options in ({"guidance": 3.0}, {"interval": (0.0, 0.5)}, {"steps": "constant:3"}):
        with pytest.raises(DisaError, match=r"holds 1 image of another run .*--replace"):
            opened(sampler, tmp_path, inputs, "resume", **options)
    before = bytes_of(tmp_path)
    assert opened(sampler, tmp_path, inputs, "refuse", batch_size=1)[1] == [0]
    drawn(sampler, tmp_path, inputs, "replace", guidance=3.0)
    assert bytes_of(tmp_path) != before
    with pytest.raises(DisaError, match="unknown choice 'mix'"):
        opened(sampler, tmp_path, inputs, "mix")


def test_images_of_another_run_are_replaced_and_nothing_else(sampler: Sampler, tmp_path: Path) -> None:
    drawn(sampler, tmp_path, Inputs.paired([1, 2], [3, 3]))
    own = tmp_path / "samples" / "mine.png"
    Image.new("L", (4, 4)).save(own)
    drawn(sampler, tmp_path, Inputs.paired([5], [3]), "replace")
    assert sorted(bytes_of(tmp_path)) == ["mine.png", "seed000005_label0003.png"]


def test_what_is_replaced_stays_until_there_is_something_to_replace_it(sampler: Sampler, tmp_path: Path) -> None:
    """Then all of it goes, with what is told of it: no trace or overview tells of images that are not there."""
    drawn(sampler, tmp_path, Inputs.paired([1, 2], [3, 3]))
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    new = Inputs.paired([2, 5, 6, 7], [4, 3, 3, 3])
    target, missing = opened(sampler, tmp_path, new, "replace")
    assert missing == [0, 1, 2, 3]
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before
    batches = sampler.start(new, **QUICK).batches()
    target.write(next(batches), [0, 1])
    names = [f"samples/{name}.png" for name in ("seed000002_label0004", "seed000005_label0003")]
    assert files(tmp_path) == [*names, "trace.json"]
    assert json.loads((tmp_path / "trace.json").read_text())["images_counted"] == 2
    # The same drawing again replaces nothing, and keeps what is told of it.
    drawn(sampler, tmp_path, new, "resume")
    before = files(tmp_path)
    opened(sampler, tmp_path, new, "replace")
    assert files(tmp_path) == before


def test_every_image_has_a_file_of_its_own() -> None:
    names = Layout.flat(Inputs.paired([7, 7, 7, 8], [3, 3, 4, 3])).names
    assert names == [
        "samples/seed000007_label0003.png",
        "samples/seed000007_label0003_2.png",
        "samples/seed000007_label0004.png",
        "samples/seed000008_label0003.png",
    ]
    prompts = Layout.flat(Inputs.paired([1] * 3, prompts=["a cat", "a cat!", "a cat"])).names
    assert len(set(prompts)) == 3


def test_the_overview_has_a_bound(sampler: Sampler, tmp_path: Path) -> None:
    drawn(sampler, tmp_path, Inputs.each(MOST_SHOWN + 30, labels=[3]), num_ar_steps=1, steps="constant:1")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width * grid.height < 1.5 * MOST_SHOWN * 66**2


def test_a_sampler_draws_into_a_folder(sampler: Sampler, tmp_path: Path) -> None:
    inputs = Inputs.each(2, labels=[3, 4])
    drawn(sampler, tmp_path / "by hand", inputs)
    trace = sampler.sample_into(tmp_path / "into", inputs, **QUICK)
    assert (trace["drawn"], trace["images_counted"]) == (4, 4)
    assert bytes_of(tmp_path / "into") == bytes_of(tmp_path / "by hand")
    (tmp_path / "into" / trace["files"][2]).unlink()
    assert sampler.sample_into(tmp_path / "into", inputs, if_used="resume", **QUICK)["drawn"] == 1
    assert bytes_of(tmp_path / "into") == bytes_of(tmp_path / "by hand")
    with pytest.raises(DisaError, match="of another run"):
        sampler.sample_into(tmp_path / "into", inputs, guidance=3.0, **QUICK)


def test_samples_save_themselves(sampler: Sampler, tmp_path: Path) -> None:
    for kind in ("pt", "np", "pil"):
        samples = sampler.sample([3, 4], [5, 6], output_type=kind, **QUICK)
        trace = samples.save(str(tmp_path / kind))
        assert trace["files"] == Layout.flat(samples.inputs).names
    assert bytes_of(tmp_path / "pt") == bytes_of(tmp_path / "np") == bytes_of(tmp_path / "pil")
    assert len(bytes_of(tmp_path / "pt")) == 2
    with pytest.raises(DisaError, match="these are latents"):
        sampler.sample(3, 5, output_type="latent", **QUICK).save(tmp_path / "latents")


# -- the command ---------------------------------------------------------------------------------------------------


def test_sample_refuses_resumes_and_replaces(disa: Command, tmp_path: Path) -> None:
    model = small.folder(tmp_path / "model")
    base = ("sample", "--model", model, "--steps", "constant:2", "--num-ar-steps", 2, "--out", tmp_path / "out")
    assert disa(*base, "--labels", "3-4", "--per-label", 2, "--json").json()["drawn"] == 4
    assert disa(*base, "--labels", "3-4", "--per-label", 2, "--resume", "--json").json()["drawn"] == 0
    assert "holds 3 images of another run" in complaint(disa(*base, "--labels", 3, "--seeds", 0))
    assert "give one of the two" in complaint(disa(*base, "--labels", 3, "--resume", "--replace"))
    report = disa(*base, "--labels", "3-4", "--per-label", 3, "--resume", "--json").json()
    assert (report["drawn"], report["seeds"]) == (2, [0, 2, 4, 1, 3, 5])
    assert report["images_counted"] == 6
    assert disa(*base, "--labels", 9, "--seeds", 1, "--replace", "--json").json()["drawn"] == 1
    assert files(tmp_path / "out") == ["grid.png", "samples/seed000001_label0009.png", "trace.json"]


@pytest.mark.long
def test_kill_9_keeps_what_is_drawn(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "disa", "sample", "--labels", "0-9", "--per-label", "16", "--steps", "constant:3"),
        *("--num-ar-steps", "8", "--batch-size", "10", "--device", "cpu", "--out", str(tmp_path / "out"), "--json"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    folder, deadline = tmp_path / "out" / "samples", time.monotonic() + 120
    while len(list(folder.glob("seed*.png"))) < 30:
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {path.name: path.read_bytes() for path in folder.glob("seed*.png")}
    assert 30 <= len(kept) < 160
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert 0 < report["drawn"] <= 160 - len(kept) + 1
    assert len(list(folder.iterdir())) == 160
    assert all((folder / name).read_bytes() == content for name, content in kept.items())


# -- what others have in the folder --------------------------------------------------------------------------------


def test_files_of_others_are_never_replaced(sampler: Sampler, tmp_path: Path) -> None:
    """Whatever is asked for: a picture under a name of ours, an overview, a trace, a folder in the way."""
    inputs = Inputs.paired([5, 6], [3, 3])
    picture = Image.new("L", (4, 4))
    for name in ("samples/seed000005_label0003.png", "grid.png", "trace.json"):
        for if_used in ("refuse", "resume", "replace"):
            out = tmp_path / if_used / Path(name).stem
            (out / name).parent.mkdir(parents=True)
            (out / name).write_text('{"mine": 1}') if name == "trace.json" else picture.save(out / name)
            before = (out / name).read_bytes()
            with pytest.raises(DisaError, match=f"{name} was not written by disa: move it, or choose another folder"):
                drawn(sampler, out, inputs, if_used)
            assert ((out / name).read_bytes(), files(out)) == (before, [name])
    (tmp_path / "other" / "samples" / "seed000005_label0003.png").mkdir(parents=True)
    with pytest.raises(DisaError, match="was not written by disa"):
        drawn(sampler, tmp_path / "other", inputs)


def test_files_of_others_beside_ours_stay(sampler: Sampler, tmp_path: Path) -> None:
    mine = ("metadata.jsonl", "notes.txt", "samples/mine.png", "samples/.hidden", "00000/samples/theirs.png",
            "00000/metadata.jsonl", "model/config.json")  # fmt: skip
    drawn(sampler, tmp_path, Inputs.paired([1, 2], [3, 3]))
    for name in mine:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("mine")
    Image.new("L", (4, 4)).save(tmp_path / "00000/samples/theirs.png")
    for if_used, seed in (("replace", 5), ("resume", 5), ("replace", 6)):
        drawn(sampler, tmp_path, Inputs.paired([seed], [3]), if_used)
        assert files(tmp_path) == sorted([*mine, "grid.png", "trace.json", f"samples/seed00000{seed}_label0003.png"])


def test_folders_of_earlier_versions_are_replaced(sampler: Sampler, tmp_path: Path) -> None:
    """Their overviews did not say what they are."""
    drawn(sampler, tmp_path, Inputs.paired([1, 2], [3, 3]))
    with Image.open(tmp_path / "grid.png") as grid:
        grid.load()
    grid.info.clear()
    grid.save(tmp_path / "grid.png")
    (tmp_path / "trace.json").unlink()
    drawn(sampler, tmp_path, Inputs.paired([5], [3]), "replace")
    assert files(tmp_path) == ["grid.png", "samples/seed000005_label0003.png", "trace.json"]


def test_images_in_the_places_of_others_are_another_run(sampler: Sampler, tmp_path: Path) -> None:
    """GenEval's folders tell by their numbers what is in them."""

    def opened_for(prompts: list[int], if_used: str) -> list[int]:
        inputs = Inputs.paired([0] * len(prompts), prompts)
        layout = Layout.geneval(inputs, [{"prompt": str(prompt)} for prompt in prompts])
        run = sampler.start(inputs, **QUICK)
        target = SampleFolder(tmp_path, inputs, run.about(), layout)
        missing = target.open(if_used)
        if missing:
            target.fill(run.only(missing).batches(), missing)
        return missing

    assert opened_for([3, 4, 5], "refuse") == [0, 1, 2]
    assert opened_for([3, 4, 5], "resume") == []
    assert opened_for([3, 4, 5, 6], "resume") == [3]
    for prompts in ([4, 3, 5, 6], [3, 4, 5], [3, 3, 4]):
        with pytest.raises(DisaError, match="of another run"):
            opened_for(prompts, "resume")
    assert opened_for([4, 3], "replace") == [0, 1]
    assert [json.loads((tmp_path / f"0000{i}/metadata.jsonl").read_text())["prompt"] for i in (0, 1)] == ["4", "3"]
    assert not (tmp_path / "00002").exists()


def test_a_trace_of_another_run_without_its_images_goes(sampler: Sampler, tmp_path: Path) -> None:
    drawn(sampler, tmp_path, Inputs.paired([1], [3]))
    (tmp_path / "samples" / "seed000001_label0003.png").unlink()
    target, _ = opened(sampler, tmp_path, Inputs.paired([1, 2], [3, 3]), guidance=3.0)
    run = sampler.start(Inputs.paired([1, 2], [3, 3]), guidance=3.0, **QUICK)
    target._last_trace = float("inf")
    target.write(next(run.batches()), [0, 1])
    assert "trace.json" not in files(tmp_path)
    assert "grid.png" not in files(tmp_path)


def test_linked_folders_are_drawn_into(sampler: Sampler, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "out").symlink_to(real)
    (tmp_path / "elsewhere").mkdir()
    (real / "samples").symlink_to(tmp_path / "elsewhere")
    inputs = Inputs.paired([1, 2], [3, 3])
    drawn(sampler, tmp_path / "out", inputs)
    drawn(sampler, tmp_path / "out", Inputs.paired([5], [3]), "replace")
    assert files(tmp_path / "elsewhere") == ["seed000005_label0003.png"]
    assert (real / "samples").is_symlink()
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    with pytest.raises(DisaError, match="cannot write to the folder"):
        drawn(sampler, tmp_path / "nowhere", inputs)


def test_a_folder_that_cannot_be_written_is_refused_before_drawing(sampler: Sampler, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        with pytest.raises(DisaError, match="cannot write to the folder"):
            opened(sampler, tmp_path / place, Inputs.paired([1], [3]))
        with pytest.raises(DisaError, match="cannot write to the folder"):
            sampler.sample(3, 1, **QUICK).save(tmp_path / place)


def test_an_error_in_the_middle_keeps_and_tells_what_was_drawn(sampler: Sampler, tmp_path: Path) -> None:
    inputs = Inputs.each(5, labels=[3])
    target, missing = opened(sampler, tmp_path, inputs)

    def batches() -> Any:
        yield next(sampler.start(inputs, **QUICK).batches())
        raise MemoryError

    target._last_trace = float("inf")
    with pytest.raises(MemoryError):
        target.fill(batches(), missing)
    assert json.loads((tmp_path / "trace.json").read_text())["images_counted"] == len(bytes_of(tmp_path)) == 2
