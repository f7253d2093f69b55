"""What the embedded models are trained to do: their data, their loss and their recipe.

Shapes: B images, L tokens, C token channels, V visible and N masked tokens, S groups of tokens (scales or cells).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.checkpoints import load_codec, save_codec, save_model
from disa.diffusion import TrainingLoss
from disa.errors import DisaError
from disa.flow import FlowLoss
from disa.models.flowar import FlowAR
from disa.models.layers import initialise
from disa.models.mar import MAR
from disa.models.small_vae import SmallCodec, SmallVAE, SmallVAEConfig
from disa.models.vae import posterior_sample
from disa.models.xar import XAR
from disa.presets import PRESETS, Preset
from disa.tiny.classifier import augment
from disa.tiny.data import Split, digits


@dataclass(frozen=True)
class Recipe:
    """copies: timesteps drawn per masked token. learning_rate: peak after a linear warm-up; it falls along a cosine in
    each of the cycles, as many iterations each (warm restarts: Loshchilov and Hutter 2017)."""

    iterations: int
    batch_size: int = 32
    copies: int = 1
    learning_rate: float = 1.2e-3
    warmup: int = 200
    cycles: int = 1
    weight_decay: float = 0.02
    ema: float = 0.999
    label_dropout: float = 0.1
    kl_weight: float = 2e-4


class Task:
    """Something to train: `build` makes its model, `loss` is a function of the split and the random numbers.

    half: whether matrix products are in bfloat16, where the processor is made for it.
    """

    half = True

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.name, self.recipe = name, recipe

    def build(self, seed: int) -> Any:
        """The model with its first weights."""
        raise NotImplementedError

    def loss(self, model: Any, split: Split, random: torch.Generator) -> Tensor:
        """The loss of one random batch."""
        raise NotImplementedError

    def save(self, folder: Path, model: Any) -> None:
        """Write what was trained, in the layout that it is loaded from."""
        raise NotImplementedError


class AutoencoderTask(Task):
    """The autoencoder of the digits. Every second batch is turned, scaled and shifted, so that it knows more hands."""

    half = False  # the backward pass of convolutions in bfloat16 is ten times slower on a CPU

    def build(self, seed: int) -> SmallVAE:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallVAE(SmallVAEConfig()).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss(self, model: SmallVAE, split: Split, random: torch.Generator) -> Tensor:
        images, _ = digits(split)
        images = images[torch.randint(len(images), (self.recipe.batch_size,), generator=random)]
        if torch.rand((), generator=random) < 0.5:
            images = augment(images, random)
        return model.loss(images, self._noise(model, len(images), random), self.recipe.kl_weight)

    def save(self, folder: Path, model: SmallVAE) -> None:
        images, _ = digits("train")
        model.normalise(images, self._noise(model, len(images), torch.Generator().manual_seed(0)))
        save_codec(folder, SmallCodec(model))

    def _noise(self, model: SmallVAE, count: int, random: torch.Generator) -> Tensor:
        return torch.randn(count, model.config.latent_channels, 8, 8, generator=random)


class ImageTask(Task):
    """A model that draws digits, trained on samples of their latents."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        super().__init__(name, recipe)
        self.preset: Preset = PRESETS[name]

    def build(self, seed: int) -> Any:
        model = self.preset.build()
        initialise(model, seed)
        return model

    def save(self, folder: Path, model: Any) -> None:
        save_model(folder, self.preset, model.state_dict())

    @cached_property
    def _moments(self) -> dict[Split, tuple[Tensor, Tensor]]:
        """Per split: moments [N, 2 C, h, w] of the latents, normalised, and labels [N]."""
        codec = load_codec(self.preset)
        content: dict[Split, tuple[Tensor, Tensor]] = {}
        for split in ("train", "test"):
            images, labels = digits(split)
            content[split] = codec.moments(images), labels
        self._codec = codec
        return content

    def batch(self, split: Split, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, C, h, w], labels [B], and which labels are dropped [B]."""
        moments, labels = self._moments[split]
        size = self.recipe.batch_size
        chosen = torch.randint(len(labels), (size,), generator=random)
        noise = torch.randn(size, moments.shape[1] // 2, *moments.shape[2:], generator=random)
        latents = self._codec.normalised(posterior_sample(moments[chosen], noise))
        return latents, labels[chosen], torch.rand(size, generator=random) < self.recipe.label_dropout


class MARTask(ImageTask):
    """The mask rate is cos(pi/2 u), u uniform: the whole range that generation passes through, not MAR's 0.7 to 1."""

    objective = TrainingLoss(MAR.process)

    def loss(self, model: MAR, split: Split, random: torch.Generator) -> Tensor:
        latents, labels, dropped = self.batch(split, random)
        visible, masked = self.split_tokens(model.config.num_tokens, random)
        rows = self.recipe.copies * masked.numel()
        t = torch.randint(self.objective.num_timesteps, (rows,), generator=random)
        noise = torch.randn(rows, model.config.token_channels, generator=random)
        embedding = model.embed(labels, dropped)
        return model.loss(self.objective, latents, embedding, visible, masked, t, noise).loss.mean()

    def split_tokens(self, num_tokens: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Visible [B, V] and masked [B, N] token indices, ascending."""
        share = math.cos(math.pi / 2 * torch.rand((), generator=random).item())
        num_masked = max(1, math.ceil(share * num_tokens))
        orders = torch.rand(self.recipe.batch_size, num_tokens, generator=random).argsort(1)
        return orders[:, num_masked:].sort(1).values, orders[:, :num_masked].sort(1).values


class FlowARTask(ImageTask):
    """One time per image and scale, uniform."""

    objective = FlowLoss()

    def loss(self, model: FlowAR, split: Split, random: torch.Generator) -> Tensor:
        latents, labels, dropped = self.batch(split, random)
        config = model.config
        t = torch.rand(len(latents), config.num_ar_steps, generator=random)
        noise = torch.randn(len(latents), config.num_tokens, config.latent_channels, generator=random)
        return model.loss(self.objective, latents, model.embed(labels, dropped), t, noise)


class XARTask(ImageTask):
    """One time per image and cell, logit-normal (Esser et al. 2024)."""

    objective = FlowLoss()

    def loss(self, model: XAR, split: Split, random: torch.Generator) -> Tensor:
        latents, labels, dropped = self.batch(split, random)
        config = model.config
        t = torch.randn(len(latents), config.num_ar_steps, generator=random).sigmoid()
        noise = torch.randn(len(latents), config.num_tokens, config.latent_channels, generator=random)
        return model.loss(self.objective, latents, model.embed(labels, dropped), t, noise)


RECIPES: dict[str, tuple[Callable[[str, Recipe], Task], Recipe]] = {
    "digits-vae": (AutoencoderTask, Recipe(1_500, 64, learning_rate=2e-3, weight_decay=0.01)),
    "mar-digits": (MARTask, Recipe(11_000, cycles=2)),
    "flowar-digits": (FlowARTask, Recipe(3_200, 16, learning_rate=1e-3)),
    "xar-digits": (XARTask, Recipe(4_500)),
}


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises DisaError."""
    return _find(name)[1]


def find_task(name: str, recipe: Recipe | None = None) -> Task:
    """What is trained under that name, by its own recipe or another one. Raises DisaError."""
    task, own = _find(name)
    return task(name, recipe or own)


def _find(name: str) -> tuple[Callable[[str, Recipe], Task], Recipe]:
    if name not in RECIPES:
        raise DisaError(f"no recipe to train {name!r}: expected one of {', '.join(RECIPES)}.")
    return RECIPES[name]
