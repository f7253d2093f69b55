"""Training: a stopped run resumes as if never stopped, and what it writes can be loaded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from disa.errors import DisaError
from disa.sampler import Sampler
from disa.tiny import train as training

RECIPE = replace(training.find_recipe("mar-digits"), iterations=4, batch_size=4, warmup=2)


class Stopped(Exception):
    pass


def stop_after(iteration: int):
    def on_step(done: int, total: int, loss: float) -> None:
        if done == iteration:
            raise Stopped

    return on_step


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole = training.train("mar-digits", tmp_path / "whole", 3, RECIPE, save_every=1)
    with pytest.raises(Stopped):
        training.train("mar-digits", tmp_path / "parts", 3, RECIPE, on_step=stop_after(3), save_every=1)
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    resumed = training.train("mar-digits", tmp_path / "parts", 3, RECIPE, save_every=1)
    assert (whole["iterations_this_run"], resumed["iterations_this_run"]) == (4, 2)
    first, second = (Sampler.load(str(tmp_path / name)).model.state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole["held_out_loss"] == resumed["held_out_loss"]


@pytest.mark.slow
def test_the_loss_falls_and_the_files_are_whole(tmp_path: Path) -> None:
    summary = training.train("mar-digits", tmp_path, 0, replace(RECIPE, iterations=40, batch_size=8, warmup=5))
    state = json.loads((tmp_path / "training.json").read_text())
    assert state == summary
    assert summary["held_out_loss"] < 0.9  # an untrained head predicts no noise: a loss of about 1
    with Image.open(tmp_path / "loss.png") as picture:
        assert min(picture.size) > 200


def test_seeds_make_different_batches_and_one_seed_the_same() -> None:
    trainer = training.Trainer("mar-digits", 0, RECIPE)
    first, again, other = (trainer.batch(seed) for seed in (1, 1, 2))
    assert torch.equal(first.noise, again.noise)
    assert first.noise.shape != other.noise.shape or not torch.equal(first.noise, other.noise)


def test_visible_and_masked_tokens_partition_the_image() -> None:
    trainer = training.Trainer("mar-digits", 0, RECIPE)
    for seed in range(20):
        batch = trainer.batch(seed)
        together = torch.cat([batch.visible, batch.masked], 1).sort(1).values
        assert torch.equal(together, torch.arange(64).expand(4, -1))
        assert batch.masked.shape[1] >= 1
        assert batch.t.max() <= 950


@pytest.mark.parametrize("content", [b"", b"not a state", {"name": "another"}, {"no": "name"}])
def test_a_foreign_state_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "state.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(DisaError, match=r"state\.pt"):
        training.train("mar-digits", tmp_path, 0, RECIPE)


def test_an_unknown_recipe_is_named() -> None:
    with pytest.raises(DisaError, match="mar-digits"):
        training.Trainer("mar-letters")
