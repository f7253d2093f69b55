"""How BitDance's embedded models are trained."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from disa.draw.sampler import Sampler
from disa.models.bitdance.presets import DIGITS, DIGITS_CODEC
from disa.stopping import Stopped
from disa.tiny import bits, task, tasks
from disa.tiny.bits import BitDanceTask, BitsTask
from disa.tiny.train import train
from disa.weights.load import load_codec

pytestmark = pytest.mark.usefixtures("one_thread")

BITS = replace(tasks.find_recipe("digits-bits"), iterations=3, batch_size=4, warmup=1)
RECIPE = replace(tasks.find_recipe("bitdance-digits"), iterations=3, batch_size=2, warmup=1)


@pytest.fixture(autouse=True)
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {split: tuple(part[:6] for part in task.digits(split)) for split in ("train", "test")}
    for module in (bits, task):
        monkeypatch.setattr(module, "digits", lambda split: some[split])


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bits")
    train("digits-bits", folder, 0, BITS)
    return folder


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_autoencoder_learns_through_its_signs() -> None:
    made = BitsTask("digits-bits", BITS)
    model = made.build(0)
    made.loss(model, "train", random()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    assert float(model.encoder.conv_in.weight.grad.norm()) > 0  # pyright: ignore[reportOptionalMemberAccess]
    assert torch.equal(made.loss(model, "test", random(3)), made.loss(model, "test", random(3)))


def test_what_was_trained_is_an_autoencoder_of_the_digits(autoencoder: Path) -> None:
    codec = load_codec(DIGITS, autoencoder)
    latents = codec.encode(task.digits("test")[0])
    assert latents.shape[1:] == (DIGITS_CODEC.latent_channels, *DIGITS.spec.architecture.latent_size)
    assert set(latents.unique().tolist()) <= {-1.0, 1.0}


def test_bits_are_flipped_as_often_as_the_recipe_says(autoencoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = BitDanceTask("bitdance-digits", replace(RECIPE, batch_size=32, label_dropout=0.5), autoencoder), []

    class Model:
        def to_tokens(self, latents: Tensor) -> Tensor:
            return latents.flatten(2).transpose(1, 2)

        def embed(self, labels: Tensor, dropped: Tensor) -> Tensor:
            seen.append(dropped.float().mean().item())
            return labels

        def loss(self, latents: Tensor, embedding: Tensor, flipped: Tensor, t: Tensor, noise: Tensor) -> Tensor:
            seen.append(flipped.float().mean().item())
            assert len(t) == len(noise) == RECIPE.copies * 32 * 64
            assert 0.25 < t.median() < 0.4  # sigmoid(-0.8) is 0.31
            return t.mean()

    model: Any = Model()
    made.loss(model, "train", random())
    assert seen[0] == pytest.approx(0.5, abs=0.2)
    assert seen[1] == pytest.approx(made.flips / 2, abs=0.005)


def test_a_stopped_training_ends_as_an_unbroken_one_and_its_model_draws(autoencoder: Path, tmp_path: Path) -> None:
    train("bitdance-digits", tmp_path / "whole", 1, RECIPE, vae=autoencoder)

    def stop(done: int, total: int, loss: float) -> None:
        if done == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped):
        train("bitdance-digits", tmp_path / "broken", 1, RECIPE, vae=autoencoder, on_step=stop)
    train("bitdance-digits", tmp_path / "broken", 1, RECIPE, vae=autoencoder)
    whole, broken = (tmp_path / name / "model.safetensors" for name in ("whole", "broken"))
    assert whole.read_bytes() == broken.read_bytes()
    sampler = Sampler.load(tmp_path / "whole", device="cpu")
    assert sampler.sample([3], 0, steps="constant:1").images.shape == (1, 1, 32, 32)
