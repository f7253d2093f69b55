"""What the embedded models are trained to do: their data, their loss and their recipe.

Shapes: B images, L tokens, C token channels, V visible and N masked tokens, S groups of tokens (scales or cells).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from disa.codecs.base import posterior_sample
from disa.core.diffusion import TrainingLoss
from disa.core.flow import FlowLoss
from disa.errors import DisaError
from disa.models.flowar.model import FlowAR
from disa.models.harmon.model import Harmon
from disa.models.harmon.presets import SHAPES_CODEC
from disa.models.harmon.text import Text
from disa.models.layers import take
from disa.models.mar.model import MAR
from disa.models.xar.model import XAR
from disa.tiny import shapes
from disa.tiny.bits import BitDanceTask, BitsTask
from disa.tiny.captions import SHAPES
from disa.tiny.data import Split
from disa.tiny.scenes import Split as SceneSplit
from disa.tiny.start import look_nearby
from disa.tiny.task import AutoencoderTask, ImageTask, Recipe, Task
from disa.values import did_you_mean, shown
from disa.weights.folders import text_files


class ShapesAutoencoderTask(AutoencoderTask):
    """The autoencoder of the scenes."""

    config = SHAPES_CODEC

    def images(self, split: Split, random: torch.Generator) -> Tensor:
        return shapes.pictures(shapes.scenes(self.recipe.batch_size, _scenes_of(split), random))

    def typical_images(self) -> Tensor:
        return shapes.pictures(shapes.scenes(1000, "train", torch.Generator().manual_seed(0)))


class MaskedTask(ImageTask):
    """The mask rate is cos(pi/2 u), u uniform: the whole range that generation passes through, not MAR's 0.7 to 1."""

    objective = TrainingLoss(MAR.process)

    def split_tokens(
        self, num_tokens: int, random: torch.Generator, share: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Visible [B, V] and masked [B, N] token indices, ascending; share: of those masked, drawn if None."""
        if share is None:
            share = math.cos(math.pi / 2 * torch.rand((), generator=random).item())
        num_masked = max(1, math.ceil(share * num_tokens))
        orders = torch.rand(self.recipe.batch_size, num_tokens, generator=random).argsort(1)
        return orders[:, num_masked:].sort(1).values, orders[:, :num_masked].sort(1).values

    def times(self, masked: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Timesteps [m B N] and noise [m B N, C] for the masked tokens, m copies of each."""
        rows = self.recipe.copies * masked.numel()
        t = torch.randint(self.objective.num_timesteps, (rows,), generator=random)
        return t, torch.randn(rows, self.preset.spec.architecture.token_channels, generator=random)


class MARTask(MaskedTask):
    """MAR on the latents of digits. The held-out loss is the official one; that of the training differs in two ways.

    The squared error of the noise hardly sees what is decided at noisy times, such as which of two forms a digit takes.
    There it counts more, as an error of the velocity would (Salimans and Ho 2022, arXiv 2202.00512, section 4), up to a
    limit. And visible tokens are a little imperfect, as the model's own are, lest its errors add up over AR steps.
    """

    def build(self, seed: int) -> MAR:
        model = super().build(seed)
        look_nearby(model, seed)
        return model

    def loss(self, model: MAR, split: Split, random: torch.Generator) -> Tensor:
        latents, labels, dropped = self.batch(split, random)
        visible, masked = self.split_tokens(model.config.num_tokens, random)
        t, noise = self.times(masked, random)
        embedding = model.embed(labels, dropped)
        if split == "test":
            return model.loss(self.objective, latents, embedding, visible, masked, t, noise).loss.mean()
        tokens = model.patchify(latents)
        z = model.condition(self.imperfect(tokens, random), embedding, visible, masked)
        terms = model.head_loss(self.objective, tokens, z, masked, t, noise)
        return (self.weights[t] * terms.mse + terms.variational).mean()

    def imperfect(self, tokens: Tensor, random: torch.Generator) -> Tensor:
        """Tokens [B, L, C] with noise, then of less contrast, each image by a share of its own of what is allowed."""
        blur = self.recipe.blurring * torch.rand(len(tokens), 1, 1, generator=random)
        blurred = tokens + blur * torch.randn(tokens.shape, generator=random)
        return blurred * (1 - self.recipe.fading * torch.rand(len(tokens), 1, 1, generator=random))

    @cached_property
    def weights(self) -> Tensor:
        """[T] what a squared error of the noise counts at each timestep, 1 on average over those trained.

        An error of the velocity is that of the noise over abar.
        """
        abar = torch.tensor(MAR.process.alpha_bar[: self.objective.num_timesteps], dtype=torch.float32)
        weights = (1 / abar).clamp(max=self.recipe.velocity_weight)
        return weights / weights.mean()


class HarmonTask(MaskedTask):
    """Drawing scenes from their captions, describing them, and rewriting captions to all there is to say, together.

    The condition vectors are also asked for the expected token, in their first channels, because the head passes on too
    little of what it needs while it is young; and for what the token is part of, in the next, because what the words
    for shapes are worth is lost in the noise that nothing predicts.
    """

    def build(self, seed: int) -> Harmon:
        model = super().build(seed)
        look_nearby(model.mar, seed)
        return model

    @cached_property
    def text(self) -> Text:
        config = self.preset.spec.architecture
        return Text(shapes.tokenizer(), config.vocab_size, config.max_positions)

    def loss(self, model: Harmon, split: Split, random: torch.Generator) -> Tensor:
        scenes = shapes.scenes(self.recipe.batch_size, _scenes_of(split), random)
        latents = self.latents(scenes, random)
        some = scenes[: round(self.recipe.described * len(scenes))]
        ids, targets, image_token = shapes.answers(self.text, some, model.config.num_image_tokens())
        writing = model.describing_loss(latents[: len(some)], ids, targets, image_token)
        writing = writing + model.answering_loss(*shapes.rewritings(self.text, some, random))
        asked = shapes.told(scenes, self.recipe.told, random) if split == "train" else scenes
        return self._drawing_loss(model, asked, latents, random) + self.recipe.writing_weight * writing

    def latents(self, scenes: list[shapes.Captioned], random: torch.Generator) -> Tensor:
        """[B, C, h, w] samples for the pictures of scenes."""
        moments = self.codec.moments(shapes.pictures(scenes))
        noise = torch.randn(moments[:, moments.shape[1] // 2 :].shape, generator=random)
        return self.codec.normalised(posterior_sample(moments, noise))

    def files(self, model: Harmon) -> dict[str, bytes]:
        return super().files(model) | text_files(self.text)

    def _drawing_loss(
        self, model: Harmon, scenes: list[shapes.Captioned], latents: Tensor, random: torch.Generator
    ) -> Tensor:
        dropped = torch.rand(len(scenes), generator=random) < self.recipe.label_dropout
        prompts = shapes.prompts_to_draw(self.text, scenes, dropped, model.config.num_image_tokens())
        visible, masked = self.split_tokens(model.config.num_tokens, random)
        t, noise = self.times(masked, random)
        tokens = model.mar.patchify(latents)
        z = model.condition(tokens, prompts, visible, masked)
        channels = tokens.shape[-1]
        expected, part_of, _ = z.tensor_split((channels, channels + 1 + len(SHAPES)), dim=-1)
        error = (expected - take(tokens, masked)).square().mean()
        shown = shapes.shown(scenes, model.config.grid).gather(1, masked)
        naming = functional.cross_entropy(part_of.flatten(0, 1), shown.flatten())
        denoising = model.mar.head_loss(self.objective, tokens, z, masked, t, noise).loss.mean()
        return denoising + self.recipe.expected * error + self.recipe.naming * naming


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


RECIPES: dict[str, tuple[Callable[[str, Recipe, Path | None], Task], Recipe]] = {
    "digits-vae": (AutoencoderTask, Recipe(1_500, 64, learning_rate=2e-3, weight_decay=0.01)),
    "shapes-vae": (ShapesAutoencoderTask, Recipe(3_000, 16, learning_rate=2e-3, weight_decay=0.01, kl_weight=1e-4)),
    "mar-digits": (MARTask, Recipe(9_000, muon_speed=3.0, velocity_weight=10.0, fading=0.2, blurring=0.3)),
    "harmon-shapes": (
        HarmonTask,
        Recipe(13_200, 48, learning_rate=1e-3, head_speed=4.0, muon_speed=3.0, described=0.25),
    ),
    "flowar-digits": (FlowARTask, Recipe(3_200, 16, learning_rate=1e-3)),
    "xar-digits": (XARTask, Recipe(4_500)),
    "digits-bits": (BitsTask, Recipe(1_500, 32, learning_rate=2e-3, weight_decay=0.01)),
    "bitdance-digits": (BitDanceTask, Recipe(5_000, copies=2)),
}


def _scenes_of(split: Split) -> SceneSplit:
    return "test" if split == "test" else "train"


def find_recipe(name: str) -> Recipe:
    """The recipe of that name. Raises DisaError."""
    return _find(name)[1]


def find_task(name: str, recipe: Recipe | None = None, vae: Path | None = None) -> Task:
    """What is trained under that name, by its own recipe or another one. Raises DisaError."""
    task, own = _find(name)
    return task(name, recipe or own, vae)


def _find(name: str) -> tuple[Callable[[str, Recipe, Path | None], Task], Recipe]:
    if name not in RECIPES:
        raise DisaError(
            f"no recipe to train {shown(name)}: expected one of {', '.join(RECIPES)}.{did_you_mean(name, RECIPES)}"
        )
    return RECIPES[name]
