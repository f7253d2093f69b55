"""Training: a stopped run resumes as if never stopped, and what it writes can be loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from disa.draw.sampler import Sampler
from disa.errors import DisaError
from disa.tiny import tasks
from disa.tiny import train as training

MODELS = ("mar-digits", "flowar-digits", "xar-digits")
RECIPE = replace(tasks.find_recipe("mar-digits"), iterations=4, batch_size=4, warmup=2)


class Stopped(Exception):
    pass


def stop_after(iteration: int):
    def on_step(done: int, total: int, loss: float) -> None:
        if done == iteration:
            raise Stopped

    return on_step


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
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


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_the_loss_falls_and_the_files_are_whole(name: str, tmp_path: Path) -> None:
    untrained = training.Trainer(name, 0, replace(RECIPE, batch_size=8)).held_out_loss()
    summary = training.train(name, tmp_path, 0, replace(RECIPE, iterations=40, batch_size=8, warmup=5))
    assert json.loads((tmp_path / "training.json").read_text()) == summary
    assert summary["held_out_loss"] < 0.95 * untrained
    with Image.open(tmp_path / "loss.png") as picture:
        assert min(picture.size) > 200


@pytest.mark.slow
def test_the_autoencoder_learns_and_normalises_its_latents(tmp_path: Path) -> None:
    recipe = replace(tasks.find_recipe("digits-vae"), iterations=30, batch_size=16, warmup=3, ema=0.5)
    untrained = training.Trainer("digits-vae", 0, recipe).held_out_loss()
    summary = training.train("digits-vae", tmp_path, 0, recipe)
    assert summary["held_out_loss"] < 0.5 * untrained
    sampler = Sampler.load("mar-digits", vae=tmp_path)
    images, _ = tasks.digits("train")
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
