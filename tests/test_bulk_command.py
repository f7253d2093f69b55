"""`disa bulk` with a model: the same images whoever draws them, and what users are told."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import types
from functools import partial
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import small
import soak
from command import Command, complaint, files
from disa.bulk.job import Record
from disa.bulk.on_ray import share_of
from disa.bulk.worker import Worker
from disa.draw.folder import TEXT
from disa.draw.pictures import text_of
from disa.evaluate import images
from disa.evaluate.features import cache
from disa.models.registry import find_preset

QUICK = ("--steps", "constant:2", "--num-ar-steps", 2, "--device", "cpu", "--workers", 0)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("model"))


@pytest.fixture
def run(disa: Command, model: Path, tmp_path: Path, one_thread: None) -> Path:
    """Thirty images."""
    out = tmp_path / "run"
    asked = ("--labels", "0-9", "--per-label", 3, "--out", out)
    assert disa("bulk", "--model", model, *asked, *QUICK, "--json").json()["drawn"] == 30
    return out


def images_in(folder: Path) -> dict[str, bytes]:
    found = dict[str, bytes]()
    for path in sorted((folder / "shards").glob("*.tar")):
        with tarfile.open(path) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar}  # pyright: ignore[reportOptionalMemberAccess]
    return found


@pytest.mark.parametrize("how", [("--batch-size", 7), ("--chunk", 64, "--batch-size", 64), ("--chunk", 1)])
def test_images_do_not_depend_on_batch_and_chunk(
    disa: Command, model: Path, run: Path, tmp_path: Path, how: tuple[object, ...]
) -> None:
    asked = ("--labels", "0-9", "--per-label", 3, "--out", tmp_path / "other")
    assert disa("bulk", "--model", model, *asked, *QUICK, *how).code == 0
    assert soak.contents(tmp_path / "other" / "shards") == soak.contents(run / "shards")


def test_images_are_those_of_sample(disa: Command, model: Path, run: Path, tmp_path: Path) -> None:
    """To the byte: the same pictures, which say the same of themselves."""
    out = tmp_path / "sample"
    asked = ("--labels", "0-9", "--per-label", 3, "--out", out)
    assert disa("sample", "--model", model, *asked, *QUICK[:-2]).code == 0
    assert sorted(images_in(run).values()) == sorted(path.read_bytes() for path in (out / "samples").iterdir())


def test_what_is_missing_is_drawn_again_with_another_batch_size(disa: Command, run: Path) -> None:
    before = soak.contents(run / "shards")
    (run / "shards" / "000000.json").unlink()
    assert disa("bulk", "--resume", run, "--workers", 0, "--batch-size", 4, "--json").json()["drawn"] == 30
    assert soak.contents(run / "shards") == before
    assert disa("bulk", "--resume", run, "--workers", 0, "--json").json()["drawn"] == 0


def test_another_drawing_is_refused_with_what_differs(disa: Command, run: Path, tmp_path: Path) -> None:
    said = complaint(disa("bulk", "--resume", run, "--workers", 0, "--guidance", 3))
    assert "holds another run (guidance is 3.0, not 1.0)" in said
    other = small.folder(tmp_path / "other", seed=1)
    assert "holds another run (weights is " in complaint(
        disa("bulk", "--resume", run, "--workers", 0, "--model", other)
    )
    # The same weights elsewhere are the same run.
    moved = small.folder(tmp_path / "moved")
    assert disa("bulk", "--resume", run, "--workers", 0, "--model", moved).code == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give --out, or --resume, --verify, --status or --export"),
        (("--resume", "RUN", "--out", "other"), "leave --out out"),
        (("--resume", "RUN", "--verify", "RUN"), "give one of --resume and --verify"),
        (("--resume", "RUN", "--labels", "3"), "run.json: leave labels, prompts and seeds out"),
        (("--status", "RUN", "--guidance", "3"), "leave guidance out"),
        (("--status", "RUN", "--workers", "2"), "these options are of drawing alone: leave --workers out"),
        (("--verify", "RUN", "--address", "auto", "--chunk", "2"), "leave --address, --chunk out"),
        (("--status", "RUN", "--evaluate", "digits-classifier"), "of drawing alone: leave --evaluate out"),
        (("--resume", "RUN", "--sample", "3"), "--sample goes with --verify"),
        (("--export", "RUN"), "--export and --as go together"),
        (("--export", "RUN", "--as", "adm"), "--export needs --out"),
        (("--export", "RUN", "--as", "jpeg", "--out", "x"), "unknown form 'jpeg'"),
        (("--export", "RUN", "--as", "geneval", "--out", "x"), "was drawn from labels"),
        (("--out", "RUN"), "holds a run already: go on with disa bulk --resume"),
        (("--resume", "nowhere"), "there is no run in nowhere"),
        (("--status", "nowhere"), "there is no run in nowhere"),
        (("--resume", "RUN", "--workers", "two"), "--workers must be a whole number"),
        (("--resume", "RUN", "--workers", "0", "--checkpoint", "nowhere.pth"), "nowhere.pth"),
    ],
)
def test_mistakes_are_one_line(
    disa: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    assert told in complaint(disa("bulk", *(str(run) if each == "RUN" else each for each in arguments)))
    assert files(tmp_path) == before


def test_images_that_fail_end_with_1_and_the_rest_is_there(
    disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Worker._draw

    def some(self: Worker, chunk: Any) -> Any:
        if 3 in chunk.ids:
            raise MemoryError("too large")
        return draw(self, chunk)

    monkeypatch.setattr(Worker, "_draw", some)
    done = disa("bulk", "--model", model, "--labels", "0-4", *QUICK, "--out", tmp_path / "out", "--chunk", 2)
    assert (done.code, done.err) == (1, "")
    assert "4 images of 5 are in" in done.out
    assert "image 3 could not be drawn: MemoryError: too large" in done.out
    monkeypatch.undo()
    assert "1 image of" in complaint(disa("bulk", "--export", tmp_path / "out", "--as", "adm", "--out", tmp_path / "x"))
    assert disa("bulk", "--resume", tmp_path / "out", "--workers", 0, "--json").json()["drawn"] == 1


def test_ctrl_c_says_how_to_go_on(disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, handler = Worker._draw, signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupted(self: Worker, chunk: Any) -> Any:
        if chunk.ids[0] == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return draw(self, chunk)

    monkeypatch.setattr(Worker, "_draw", interrupted)
    out = tmp_path / "out"
    try:
        done = disa("bulk", "--model", model, "--labels", "0-7", *QUICK, "--chunk", 2, "--out", out)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert done.code == 130
    assert done.err == f"disa: stopped with 4 of 8 images drawn: go on with disa bulk --resume {out}\n"
    monkeypatch.undo()
    assert disa("bulk", "--resume", out, "--workers", 0, "--json").json()["drawn"] == 4


# -- features while drawing ----------------------------------------------------------------------------------------

DIGITS = (
    *("bulk", "--model", "mar-digits", "--labels", "0-9", "--per-label", 4, "--steps", "constant:1"),
    *("--num-ar-steps", 1, "--device", "cpu", "--workers", 0),
)
"""Forty images of 32x32 in grey."""


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of sixteen images."""
    usual = Record.__init__.__defaults__
    assert usual is not None
    monkeypatch.setattr(Record.__init__, "__defaults__", (16, *usual[1:]))


class Looks:
    """Counts what an evaluation decodes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, decoded = 0, images.decoded

        def counted(content: bytes) -> np.ndarray:
            self.count += 1
            return decoded(content)

        monkeypatch.setattr(images, "decoded", counted)

    def evaluate(self, disa: Command, run: Path) -> tuple[int, dict[str, Any]]:
        """How many pictures were decoded, and what was found."""
        self.count = 0
        found = disa("evaluate", run, "--against", "digits", "--resamples", 20, "--device", "cpu", "--json").json()
        return self.count, found | {"images": ""}


def close(found: Any, expected: Any) -> bool:
    """Equal, and numbers within 1e-9."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(close(found[name], expected[name]) for name in expected)
    return found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)


def test_what_is_drawn_with_features_is_evaluated_without_a_look(
    disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, small_shards: None
) -> None:
    looks, plain = Looks(monkeypatch), tmp_path / "plain"
    assert disa(*DIGITS, "--out", plain).code == 0
    decoded, expected = looks.evaluate(disa, plain)
    assert decoded == 40
    for chunk in (1, 7, 16):
        shutil.rmtree(cache())
        run, how = tmp_path / f"{chunk}", ("--evaluate", "digits-classifier", "--chunk", chunk, "--batch-size", chunk)
        assert disa(*DIGITS, *how, "--out", run, "--json").json()["drawn"] == 40
        assert len(list(cache().iterdir())) == 3  # of a shard each
        assert soak.contents(run / "shards") == soak.contents(plain / "shards")
        decoded, found = looks.evaluate(disa, run)
        assert decoded == 0
        assert close(found, expected)


def test_features_survive_an_interruption(
    disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None, small_shards: None
) -> None:
    """Of what was drawn with them, whoever draws the rest; what was drawn without is looked at later."""
    looks, draw = Looks(monkeypatch), Worker._draw

    def stopped(self: Worker, chunk: Any) -> Any:
        if 24 in chunk.ids:
            raise KeyboardInterrupt
        return draw(self, chunk)

    for again, unseen in ((("--evaluate", "digits-classifier"), 0), ((), 24)):
        run = tmp_path / f"{unseen}"
        with monkeypatch.context() as patch:
            patch.setattr(Worker, "_draw", stopped)
            assert disa(*DIGITS, "--evaluate", "digits-classifier", "--chunk", 4, "--out", run).code == 130
        assert disa("bulk", "--resume", run, "--workers", 0, "--chunk", 8, *again, "--json").json()["drawn"] == 16
        assert looks.evaluate(disa, run)[0] == unseen
        shutil.rmtree(cache())


def test_features_that_do_not_fit_are_refused_before_anything_is_drawn(
    disa: Command, model: Path, tmp_path: Path
) -> None:
    asked = ("bulk", "--model", model, "--labels", 3, *QUICK, "--out", tmp_path / "out")
    for features, told in {
        "digits-classifier": "digits-classifier takes images of 32x32, and those that are drawn have 8x8",
        "inceptoin": "unknown features 'inceptoin'",
        "dinov2:nowhere": "holds no DINOv2 weights",
    }.items():
        assert told in complaint(disa(*asked, "--evaluate", features))
        assert not (tmp_path / "out" / "run.json").exists()


# -- what is made of a run -----------------------------------------------------------------------------------------


def test_verify_draws_some_again(disa: Command, run: Path, tmp_path: Path) -> None:
    report = disa("bulk", "--verify", run, "--sample", 5, "--json").json()
    assert (report["good"], report["exact"], len(report["redrawn"])) == (True, True, 5)
    here = {"device": "cpu", "torch": torch.__version__, "instructions": torch.backends.cpu.get_cpu_capability()}
    assert (report["drawn_with"], report["drawn_again_with"]) == ([here], here)
    said = disa("bulk", "--verify", run, "--sample", 1).out
    assert f"these with cpu and torch {torch.__version__} ({here['instructions']} instructions)" in said
    # Whole files of other pictures, whose hashes are those in the manifest.
    tar, manifest = run / "shards" / "000000.tar", run / "shards" / "000000.json"
    picture = io.BytesIO()
    Image.new("L", (8, 8)).save(picture, format="PNG")
    told = json.loads(manifest.read_text())
    with tarfile.open(tar, "w") as file:
        for entry in told["images"]:
            about = tarfile.TarInfo(f"{entry['id']:09d}.png")
            about.size = len(picture.getvalue())
            file.addfile(about, io.BytesIO(picture.getvalue()))
            entry["sha256"] = sha256(picture.getvalue()).hexdigest()
    manifest.write_text(json.dumps(told))
    done = disa("bulk", "--verify", run, "--sample", 3, "--json")
    report = json.loads(done.out)
    assert (done.code, report["missing"], report["damaged"], len(report["differing"])) == (1, 0, [], 3)


@pytest.mark.parametrize("other", [{"instructions": "AVX9"}, {"torch": "1.0"}, {"device": "cuda"}])
def test_bits_are_compared_only_where_the_machine_is_the_same(disa: Command, run: Path, other: dict[str, str]) -> None:
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | {"drawn_with": [told["drawn_with"][0] | other]}))
    report = disa("bulk", "--verify", run, "--sample", 2, "--json").json()
    assert (report["good"], report["exact"]) == (True, False)
    assert next(iter(other.values())) in disa("bulk", "--verify", run, "--sample", 1).out


def test_status_and_report(disa: Command, run: Path) -> None:
    told = disa("bulk", "--status", run, "--json").json()
    assert (told["there"], told["num_images"], told["running"]) == (30, 30, False)
    assert told["last"]["workers"][0]["images"] == 30
    assert "30 of 30 images" in disa("bulk", "--status", run).out
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "30 of 30 images" in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page


def test_exports(disa: Command, run: Path, tmp_path: Path) -> None:
    images = list(images_in(run).values())
    for form in ("adm", "png", "webdataset"):
        assert disa("bulk", "--export", run, "--as", form, "--out", tmp_path / form).code == 0
    array = np.load(tmp_path / "adm.npz")["arr_0"]
    assert (array.shape, array.dtype) == ((30, 8, 8, 3), np.uint8)
    for pixels, content in zip(array, images, strict=True):
        assert np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))
    assert [path.read_bytes() for path in sorted((tmp_path / "png").iterdir())] == images
    with tarfile.open(tmp_path / "webdataset" / "000000.tar") as tar:
        names = tar.getnames()
        labels = [tar.extractfile(name).read() for name in names if name.endswith(".cls")]  # pyright: ignore[reportOptionalMemberAccess]
    assert names[:3] == ["000000000.png", "000000000.cls", "000000000.json"]
    assert labels == [str(i // 3).encode() for i in range(30)]
    assert "is there already" in complaint(disa("bulk", "--export", run, "--as", "png", "--out", tmp_path / "png"))
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


@pytest.mark.slow
def test_prompts_and_their_exports(disa: Command, tmp_path: Path, one_thread: None) -> None:
    assert find_preset("harmon-shapes").prompts
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(json.dumps({"prompt": text, "tag": i}) + "\n" for i, text in enumerate(["one star", "two"]))
    )
    out = tmp_path / "out"
    asked = ("bulk", "--model", "harmon-shapes", "--prompts", prompts, *QUICK, "--json")
    assert disa(*asked, "--per-prompt", 2, "--out", out).json()["drawn"] == 4
    assert disa("bulk", "--export", out, "--as", "geneval", "--out", tmp_path / "geneval").code == 0
    names = [f"0000{i}/{name}" for i in (0, 1) for name in ("metadata.jsonl", "samples/00000.png", "samples/00001.png")]
    assert files(tmp_path / "geneval") == names
    assert json.loads((tmp_path / "geneval/00001/metadata.jsonl").read_text()) == {"prompt": "two", "tag": 1}
    about = json.loads(text_of(tmp_path / "geneval/00001/samples/00001.png", TEXT))
    assert (about["prompt"], about["seed"]) == ("two", 1)
    again = disa("bulk", "--export", out, "--as", "geneval2", "--out", tmp_path / "geneval2")
    assert "takes one image of each prompt" in complaint(again)
    assert disa(*asked, "--out", tmp_path / "once").json()["drawn"] == 2
    assert disa("bulk", "--export", tmp_path / "once", "--as", "geneval2", "--out", tmp_path / "geneval2").code == 0
    paths = json.loads((tmp_path / "geneval2" / "image_paths.json").read_text())
    assert list(paths) == ["one star", "two"]
    assert all(Path(path).is_file() for path in paths.values())


# -- Ray -----------------------------------------------------------------------------------------------------------

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.mark.parametrize(
    ("cores", "workers", "share"),
    [([8], 2, 4), ([8], 3, 2), ([2], 3, 0.666), ([4, 4], 3, 2), ([4, 2], 2, 2), ([1], 1, 1), ([16, 16], 2, 16)],
)
def test_workers_share_cores_within_machines(cores: list[float], workers: int, share: float) -> None:
    assert share_of(cores, workers) == pytest.approx(share)


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "no Ray answers at 127.0.0.1:1"),
        ("ray://127.0.0.1:1", "no Ray answers at ray://127.0.0.1:1"),
        ("nowhere", "the address must be local, auto, HOST:PORT or ray://HOST:PORT, found 'nowhere'"),
        ("auto", "cannot use Ray at auto: version mismatch"),
    ],
)
def test_an_address_without_ray_is_one_line(
    disa: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, told: str
) -> None:

    def init(**options: object) -> None:
        raise RuntimeError("version mismatch: the cluster has Ray 1, this process Ray 2\nand more lines")

    monkeypatch.setitem(sys.modules, "ray", types.SimpleNamespace(init=init))
    out = tmp_path / "out"
    said = complaint(
        disa("bulk", "--model", model, "--labels", 3, *QUICK[:-2], "--workers", 1, "--address", address, "--out", out)
    )
    assert told in said
    assert not (out / "shards").exists() or files(out / "shards") == []


def test_without_ray_it_says_what_to_install(model: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['ray'] = None; from disa.__main__ import main; main()"
    command = [sys.executable, "-c", program, "bulk", "--model", model, "--labels", "3", "--workers", "1"]
    command += ["--num-ar-steps", "2", "--out", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "disa: several workers need Ray: pip install 'disa[bulk]', or draw in this process with --workers 0.\n"
    )


def without_memory(place: str, device: object, shape: object) -> tuple[str, Any]:
    """What looks at images in a worker: of the first chunk that has an image, its process is killed as the kernel kills
    one; from then on several images at once find no memory."""

    def look(contents: list[bytes]) -> None:
        if not Path(place).exists():
            Path(place).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if len(contents) > 1:
            import resource

            limit, most = resource.getrlimit(resource.RLIMIT_AS)
            resource.setrlimit(resource.RLIMIT_AS, (1 << 30, most))
            try:
                np.ones(1 << 32)
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (limit, most))

    return "", look


@needs_ray
@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_workers_without_memory_lose_nothing(
    disa: Command, model: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray.exceptions

    assert issubclass(ray.exceptions.OutOfMemoryError, ray.exceptions.RayError)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), *sys.path]))
    monkeypatch.setattr(
        sys.modules["disa.cli.bulk"], "_looking", lambda features: partial(without_memory, str(tmp_path / "killed"))
    )
    out = tmp_path / "out"
    asked = ("--labels", "0-9", "--per-label", 3, *QUICK[:-2], "--workers", 1, "--chunk", 10, "--out", out)
    done = disa("bulk", "--model", model, *asked, "--json").json()
    assert (done["drawn"], done["failures"]) == (30, {})
    assert done["deaths"] == 1
    assert soak.contents(out / "shards") == soak.contents(run / "shards")


@needs_ray
@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The short form of `python tests/soak.py`: a worker and a driver are killed. A chunk takes some tenths of a second
    and the run many, since a driver tells who its workers are every two seconds."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    slow = ("--steps", "constant:10", "--num-ar-steps", "16", "--device", "cpu")
    draws = ["--model", str(model), "--labels", "0-9", "--per-label", "30", *slow]
    undisturbed = soak.Soak(tmp_path / "undisturbed", draws, ["--workers", "0", "--batch-size", "64"])
    assert undisturbed.start().wait() == 0
    run = soak.Soak(tmp_path / "killed", draws, ["--workers", "2", "--chunk", "7"])
    process = run.start()
    for victim in ("worker", "driver"):
        assert run.wait_until_drawing(process), soak.log_of(run)
        assert run.kill(victim, process), soak.log_of(run)
    process.wait()
    assert run.start().wait() == 0, soak.log_of(run)
    assert soak.compare(run.folder, undisturbed.folder) == []
