"""What BitDance's embedded models are trained to do: an autoencoder of signs, and a causal model that draws them.

Shapes: B images, L tokens, C token channels, h x w latents, R rows of the head.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from disa.codecs.binary import BinaryAE, BinaryCodec
from disa.models.bitdance.model import BitDance
from disa.models.bitdance.presets import DIGITS_CODEC
from disa.tiny.data import Split, digits
from disa.tiny.task import AutoencoderTask, ImageTask
from disa.weights.folders import codec_files


class BitsTask(AutoencoderTask):
    """The binary autoencoder of the digits. Signs have no gradient: that of tanh stands in (Bengio et al. 2013). Some
    are flipped, so that the decoder forgives what is drawn wrong; every bit should be 1 as often as -1."""

    bits = DIGITS_CODEC
    flipped, balance, commitment = 0.02, 0.1, 0.02

    def build(self, seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return BinaryAE(self.bits).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss(self, model: Any, split: Split, random: torch.Generator) -> Tensor:
        images = self.images(split, random)
        features = model.encoder(images)
        soft = features.tanh()
        signs = torch.where(features > 0, 1.0, -1.0)
        signs = torch.where(torch.rand(signs.shape, generator=random) < self.flipped, -signs, signs)
        error = (model.decoder(soft + (signs - soft).detach()) - images).square().mean()
        balance, commitment = soft.mean((0, 2, 3)).square().mean(), (1 - soft.abs()).mean()
        return error + self.balance * balance + self.commitment * commitment

    def files(self, model: Any) -> dict[str, bytes]:
        return codec_files(BinaryCodec(model))


class BitDanceTask(ImageTask):
    """Times and flips as BitDance has them for ImageNet."""

    time_mean, time_deviation, flips = -0.8, 0.8, 0.1

    @cached_property
    def _latents(self) -> dict[Split, tuple[Tensor, Tensor]]:
        """Per split: latents [N, C, h, w] and labels [N]."""
        content: dict[Split, tuple[Tensor, Tensor]] = {}
        for split in ("train", "test"):
            images, labels = digits(split)
            content[split] = self.codec.encode(images), labels
        return content

    def batch(self, split: Split, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        latents, labels = self._latents[split]
        chosen = torch.randint(len(labels), (self.recipe.batch_size,), generator=random)
        dropped = torch.rand(self.recipe.batch_size, generator=random) < self.recipe.label_dropout
        return latents[chosen], labels[chosen], dropped

    def loss(self, model: BitDance, split: Split, random: torch.Generator) -> Tensor:
        latents, labels, dropped = self.batch(split, random)
        tokens = model.to_tokens(latents)
        rates = self.flips * torch.rand(tokens.shape, generator=random)
        flipped = torch.rand(tokens.shape, generator=random) < rates
        rows = self.recipe.copies * tokens.shape[:2].numel()
        t = (torch.randn(rows, generator=random) * self.time_deviation + self.time_mean).sigmoid()
        noise = torch.randn(rows, tokens.shape[-1], generator=random)
        return model.loss(latents, model.embed(labels, dropped), flipped, t, noise)
