"""Training: a stopped run resumes as if never stopped, and what it writes can be loaded."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from command import Command, complaint, files
from disa.codecs.small import SmallCodec
from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.stopping import Stopped as StoppedBySignal
from disa.tiny import tasks
from disa.tiny import train as training
from disa.tiny.classifier import load_classifier, train_classifier
from disa.tiny.data import digits
from disa.weights.folders import save_codec

MODELS = "mar-digits", "flowar-digits", "xar-digits", pytest.param("bitdance-digits", marks=pytest.mark.long)
RECIPE = replace(tasks.find_recipe("mar-digits"), iterations=4, batch_size=4, warmup=2)


class Stopped(Exception):
    pass


def stop_after(iteration: int):
    def on_step(done: int, total: int, loss: float) -> None:
        if done == iteration:
            raise Stopped

    return on_step


@pytest.mark.long
@pytest.mark.parametrize("name", ["mar-digits", "xar-digits"])
def test_a_stopped_run_resumes_to_the_same_weights(name: str, tmp_path: Path) -> None:
    whole = training.train(name, tmp_path / "whole", 3, RECIPE, save_every=1)
    with pytest.raises(Stopped):
        training.train(name, tmp_path / "parts", 3, RECIPE, on_step=stop_after(3), save_every=1)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = training.train(name, tmp_path / "parts", 3, RECIPE, save_every=1)
    assert (whole["iterations_this_run"], resumed["iterations_this_run"]) == (4, 2)
    first, second = (Sampler.load(str(tmp_path / part)).model.state_dict() for part in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole["held_out_loss"] == resumed["held_out_loss"]


@pytest.mark.long
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls_and_the_files_are_whole(name: str, tmp_path: Path) -> None:
    untrained = training.Trainer(name, 0, replace(RECIPE, batch_size=8)).held_out_loss()
    summary = training.train(name, tmp_path, 0, replace(RECIPE, iterations=16, batch_size=8, warmup=3))
    assert json.loads((tmp_path / "training.json").read_text()) == summary
    assert summary["held_out_loss"] < 0.97 * untrained
    with Image.open(tmp_path / "loss.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.slow
def test_the_autoencoder_learns_and_normalises_its_latents(tmp_path: Path) -> None:
    recipe = replace(tasks.find_recipe("digits-vae"), iterations=30, batch_size=16, warmup=3, ema=0.5)
    untrained = training.Trainer("digits-vae", 0, recipe).held_out_loss()
    summary = training.train("digits-vae", tmp_path, 0, recipe)
    assert summary["held_out_loss"] < 0.5 * untrained
    sampler = Sampler.load("mar-digits", vae=tmp_path)
    images, _ = digits("train")
    latents = sampler.encode(images[:200] / 2 + 0.5)
    assert latents.shape == (200, 8, 8, 8)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(8), atol=0.1, rtol=0)
    assert latents.std((0, 2, 3)).max() < 1.1  # below 1 by the share of posterior noise, which `encode` leaves out


@pytest.mark.parametrize("name", MODELS)
def test_seeds_make_different_batches_and_one_seed_the_same(name: str) -> None:
    task = tasks.find_task(name, RECIPE)
    assert isinstance(task, tasks.ImageTask)
    first, again, other = (task.batch("train", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_visible_and_masked_tokens_partition_the_image() -> None:
    task = tasks.find_task("mar-digits", RECIPE)
    assert isinstance(task, tasks.MARTask)
    for seed in range(20):
        visible, masked = task.split_tokens(64, torch.Generator().manual_seed(seed))
        together = torch.cat([visible, masked], 1).sort(1).values
        assert torch.equal(together, torch.arange(64).expand(4, -1))
        assert masked.shape[1] >= 1


def mar_task(**recipe: float) -> tasks.MARTask:
    task = tasks.find_task("mar-digits", replace(RECIPE, **recipe))
    assert isinstance(task, tasks.MARTask)
    return task


def test_noisy_times_weigh_as_an_error_of_the_velocity_up_to_a_limit() -> None:
    weights = mar_task(velocity_weight=5.0).weights
    relative = weights / weights[0]
    abar = torch.tensor(tasks.MAR.process.alpha_bar[: len(weights)], dtype=torch.float32)
    assert weights.mean().item() == pytest.approx(1)
    torch.testing.assert_close(relative[abar > 0.2], abar[0] / abar[abar > 0.2])
    torch.testing.assert_close(relative[abar < 0.2], torch.full_like(relative[abar < 0.2], 5 * abar[0].item()))
    assert torch.equal(mar_task(velocity_weight=1.0).weights, torch.ones(len(weights)))


def test_visible_tokens_fade_and_blur_image_by_image() -> None:
    tokens = torch.randn(500, 64, 32, generator=torch.Generator().manual_seed(0))

    def made(fading: float, blurring: float) -> torch.Tensor:
        return mar_task(fading=fading, blurring=blurring).imperfect(tokens, torch.Generator().manual_seed(1))

    assert torch.equal(made(0, 0), tokens)
    faded = made(0.2, 0) / tokens
    torch.testing.assert_close(faded, faded[:, :1, :1].expand_as(faded))
    assert 0.8 <= faded.min() < 0.81
    assert 0.99 < faded.max() <= 1.0001
    blur = (made(0, 0.3) - tokens).flatten(1).std(1)
    assert blur.min() < 0.01
    assert 0.28 < blur.max() < 0.32


def test_the_held_out_loss_is_the_official_one_whatever_the_recipe() -> None:
    plain, other = mar_task(velocity_weight=1, fading=0, blurring=0), mar_task()
    model = plain.build(0)

    def losses(split: tasks.Split) -> list[float]:
        return [task.loss(model, split, torch.Generator().manual_seed(2)).item() for task in (plain, other)]

    assert losses("test")[0] == losses("test")[1]
    assert losses("train")[0] != losses("train")[1]


@pytest.mark.parametrize("content", [b"", b"not a state", {"name": "another"}, {"no": "name"}])
def test_a_foreign_state_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "state.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(DisaError, match=r"state\.pt"):
        training.train("mar-digits", tmp_path, 0, RECIPE)


@pytest.mark.parametrize("lacking", ["average", "optimisers", "weight"])
def test_a_state_of_another_version_is_refused(lacking: str) -> None:
    state = training.Trainer("mar-digits", 0, RECIPE).state()
    if lacking == "weight":
        del state["model"]["encoder_positions"]
    else:
        state[lacking] = type(state[lacking])()
    with pytest.raises(DisaError, match="another version of disa"):
        training.Trainer("mar-digits", 0, RECIPE).restore(state)


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(DisaError, match="mar-digits"):
        training.Trainer("mar-letters")


def test_an_autoencoder_takes_no_other(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match="leave the other one out"):
        training.Trainer("digits-vae", vae=tmp_path)


# -- stopped, and taken up again -----------------------------------------------------------------------------------

XAR = replace(tasks.find_recipe("xar-digits"), iterations=4, batch_size=2, warmup=2)
KEPT = ("model.safetensors", "config.json", "training.json", "loss.png", "state.pt")


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal; where tests run in the background, it is ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def signalled(iteration: int, signum: int) -> Callable[[int, int, float], None]:
    def on_step(done: int, total: int, loss: float) -> None:
        if done == iteration:
            os.kill(os.getpid(), signum)

    return on_step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a whole run with seed 3."""
    folder = tmp_path_factory.mktemp("finished")
    training.train("xar-digits", folder, 3, XAR)
    return folder


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize(("signum", "code", "iteration"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 4)])
def test_a_run_that_is_told_to_stop_is_saved_and_goes_on(
    tmp_path: Path, finished: Path, signum: int, code: int, iteration: int
) -> None:
    """Long before the first checkpoint, and after the last iteration."""
    with pytest.raises(StoppedBySignal, match=f"stopped after {iteration} of 4 iterations, which are kept") as stopped:
        training.train("xar-digits", tmp_path, 3, XAR, on_step=signalled(iteration, signum))
    command = f"disa train xar-digits --seed 3 --iterations 4 --out {tmp_path}"
    assert (stopped.value.code, str(stopped.value).endswith(f" Go on: {command}")) == (code, True)
    assert files(tmp_path) == ["state.pt"]
    again = training.train("xar-digits", tmp_path, 3, XAR)
    assert again["iterations_this_run"] == 4 - iteration
    for name in ("model.safetensors", "config.json", "loss.png"):
        assert (tmp_path / name).read_bytes() == (finished / name).read_bytes()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("ctrl_c")
def test_the_command_stops_with_one_line(disa: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = training.Trainer.step

    def step_and_stop(self: training.Trainer) -> float:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(training.Trainer, "step", step_and_stop)
    done = disa("train", "xar-digits", "--iterations", 3, "--out", tmp_path / "a folder", "--json")
    assert (done.code, done.out) == (130, "")
    command = f"disa train xar-digits --iterations 3 --out '{tmp_path / 'a folder'}'"
    assert done.err == f"disa: stopped after 1 of 3 iterations, which are kept. Go on: {command}\n"


@pytest.mark.parametrize(
    ("seen", "seed", "recipe", "words"),
    [
        ("state.pt", 1, XAR, "seed is 3 there, 1 here"),
        ("state.pt", 3, replace(XAR, iterations=9), "iterations is 4 there, 9 here"),
        ("state.pt", 3, replace(XAR, batch_size=3), "batch_size is 2 there, 3 here"),
        ("state.pt", 3, replace(XAR, learning_rate=2e-3), "learning_rate is 0.0012 there, 0.002 here"),
        ("training.json", 1, XAR, "seed is 3 there, 1 here"),
        ("training.json", 3, replace(XAR, iterations=9), "iterations is 4 there, 9 here"),
    ],
)
def test_another_run_is_refused(
    tmp_path: Path, finished: Path, seen: str, seed: int, recipe: tasks.Recipe, words: str
) -> None:
    """Where the state is gone, the summary still knows the seed and the iterations."""
    folder = tmp_path / "folder"
    shutil.copytree(finished, folder)
    if seen == "training.json":
        (folder / "state.pt").unlink()
    before = {name: (folder / name).read_bytes() for name in files(folder)}
    with pytest.raises(DisaError) as refused:
        training.train("xar-digits", folder, seed, recipe)
    message = str(refused.value)
    assert message.startswith(f"{folder / seen} is of another training: {words}. ")
    assert message.endswith(f"disa train xar-digits --seed 3 --iterations 4 --out {folder}")
    assert {name: (folder / name).read_bytes() for name in files(folder)} == before


def test_another_model_and_another_autoencoder_are_refused(tmp_path: Path, finished: Path) -> None:
    with pytest.raises(DisaError, match=r"name is 'xar-digits' there, 'flowar-digits' here"):
        training.train("flowar-digits", finished, 3, XAR)
    codec = tasks.find_task("digits-vae").build(7)
    vae = save_codec(tmp_path / "vae", SmallCodec(codec))
    with pytest.raises(DisaError, match="it has another autoencoder"):
        training.train("xar-digits", finished, 3, XAR, vae=vae)


def test_a_finished_run_is_left_as_it_is(finished: Path) -> None:
    before = {name: (finished / name).read_bytes() for name in KEPT if name != "training.json"}
    assert training.train("xar-digits", finished, 3, XAR)["iterations_this_run"] == 0
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_a_run_that_is_begun_anew_replaces_the_other_at_its_end(tmp_path: Path, finished: Path) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(finished, folder)
    results = {name: (folder / name).read_bytes() for name in KEPT[:4]}
    with pytest.raises(Stopped):
        training.train("xar-digits", folder, 4, XAR, resume=False, on_step=stop_after(3), save_every=1)
    assert {name: (folder / name).read_bytes() for name in results} == results
    summary = training.train("xar-digits", folder, 4, XAR)
    assert (summary["seed"], summary["iterations_this_run"]) == (4, 2)
    assert (folder / "model.safetensors").read_bytes() != results["model.safetensors"]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "loss.png", "training.json"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, name: str, resume: bool) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DisaError, match=f"{name} is not of a training: choose another folder"):
        training.train("xar-digits", tmp_path, 3, XAR, resume=resume)
    assert files(tmp_path) == [name]


@pytest.mark.usefixtures("ctrl_c")
def test_the_classifier_stops_goes_on_and_refuses_another_run(disa: Command, tmp_path: Path, one_thread: None) -> None:
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts" / "digits-classifier.safetensors"
    parts.parent.mkdir()
    accuracy = train_classifier(whole, 1, 3)
    with pytest.raises(StoppedBySignal) as stopped:
        train_classifier(parts, 1, 3, signalled(2, signal.SIGINT))
    command = f"disa train digits-classifier --seed 1 --iterations 3 --out {parts.parent}"
    assert str(stopped.value) == f"stopped after 2 of 3 iterations, which are kept. Go on: {command}"
    asked = ("train", "digits-classifier", "--out", parts.parent, "--iterations")
    assert "digits-classifier.state.pt is of another training: seed is 1 there, 0 here" in complaint(disa(*asked, 3))
    assert disa(*asked, 3, "--seed", 1, "--json").json()["held_out_accuracy"] == accuracy
    first, second = (load_classifier(path).state_dict() for path in (whole, parts))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert files(parts.parent) == [parts.name]
    before = parts.read_bytes()
    for other, words in (((3,), "seed is 1 there, 0 here"), ((4, "--seed", 1), "iterations is 3 there, 4 here")):
        said = complaint(disa(*asked, *other))
        assert words in said
        assert said.endswith(f"{command}\n")
    assert parts.read_bytes() == before
    assert disa(*asked, 1, "--restart", "--json").code == 0
    parts.write_bytes(b"theirs")
    assert "is not a digit classifier: choose another folder" in complaint(disa(*asked, 3, "--restart"))
