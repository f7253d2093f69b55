"""What is common to everything that is trained: a recipe, a model, a loss, and the files that are written.

Shapes: B images, C latent channels, H x W pixels, h x w latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from disa.codecs.base import LatentCodec, posterior_sample
from disa.codecs.small import SmallCodec, SmallVAE, SmallVAEConfig
from disa.errors import DisaError
from disa.models.layers import initialise
from disa.models.registry import PRESETS
from disa.tiny.classifier import augment
from disa.tiny.data import Split, digits
from disa.weights.autoencoders import CODEC
from disa.weights.folders import codec_files, model_files, tensor_bytes
from disa.weights.load import load_codec


@dataclass(frozen=True)
class Recipe:
    """copies: timesteps drawn per masked token. learning_rate: peak after a linear warm-up; it falls along a cosine.
    head_speed: the denoising head's learning rate over that of the rest. muon_speed: the same for the matrices of
    blocks, the head's too, which Muon then updates; 0 leaves them to AdamW. velocity_weight: how much more an error
    may count at the noisiest times than at the cleanest. fading, blurring: by how much visible tokens lose contrast and
    gain noise at most. described: the share of a batch that is described too, and that has its captions rewritten.
    told: the share of the captions to be drawn that tell everything. expected, naming: the weights of what else
    condition vectors are asked for, the squared error of the expected token and the cross-entropy of the shape that it
    is part of."""

    iterations: int
    batch_size: int = 32
    copies: int = 1
    learning_rate: float = 1.2e-3
    warmup: int = 200
    weight_decay: float = 0.02
    ema: float = 0.999
    label_dropout: float = 0.1
    kl_weight: float = 2e-4
    head_speed: float = 1.0
    muon_speed: float = 0.0
    velocity_weight: float = 1.0
    fading: float = 0.0
    blurring: float = 0.0
    described: float = 0.5
    writing_weight: float = 1.0
    told: float = 0.9
    expected: float = 1.0
    naming: float = 0.3


class Task:
    """Something to train: `build` makes its model, the losses are functions of their arguments and random numbers.

    half: whether matrix products are in bfloat16, where the processor is made for it. vae: the folder of an
    autoencoder to use instead of the one in the package.
    """

    half = True

    def __init__(self, name: str, recipe: Recipe, vae: Path | None = None) -> None:
        self.name, self.recipe, self.vae = name, recipe, vae

    def build(self, seed: int) -> Any:
        """The model with its first weights."""
        raise NotImplementedError

    def loss(self, model: Any, split: Split, random: torch.Generator) -> Tensor:
        """The loss of one random batch."""
        raise NotImplementedError

    def files(self, model: Any) -> dict[str, bytes]:
        """What was trained, in the layout that it is loaded from: the files of a folder, by their names."""
        raise NotImplementedError

    def autoencoder(self) -> str:
        """A hash of the autoencoder that it is trained with, if there is one."""
        return ""


class AutoencoderTask(Task):
    """The autoencoder of the digits. Every second batch is turned, scaled and shifted, so that it knows more hands."""

    half = False  # the backward pass of convolutions in bfloat16 is ten times slower on a CPU
    config = SmallVAEConfig()

    def __init__(self, name: str, recipe: Recipe, vae: Path | None = None) -> None:
        super().__init__(name, recipe, vae)
        if vae is not None:
            raise DisaError(f"{name} is an autoencoder itself: leave the other one out.")

    def build(self, seed: int) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return SmallVAE(self.config).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def loss(self, model: Any, split: Split, random: torch.Generator) -> Tensor:
        images = self.images(split, random)
        return model.loss(images, self._noise(images, random), self.recipe.kl_weight)

    def images(self, split: Split, random: torch.Generator) -> Tensor:
        """A random batch [B, channels, H, W] in [-1, 1]."""
        images, _ = digits(split)
        images = images[torch.randint(len(images), (self.recipe.batch_size,), generator=random)]
        return augment(images, random) if torch.rand((), generator=random) < 0.5 else images

    def typical_images(self) -> Tensor:
        """Those that the statistics of the latents are taken from."""
        return digits("train")[0]

    def files(self, model: Any) -> dict[str, bytes]:
        images = self.typical_images()
        model.normalise(images, self._noise(images, torch.Generator().manual_seed(0)))
        return codec_files(SmallCodec(model))

    def _noise(self, images: Tensor, random: torch.Generator) -> Tensor:
        height, width = (side // self.config.stride for side in images.shape[2:])
        return torch.randn(len(images), self.config.latent_channels, height, width, generator=random)


class ImageTask(Task):
    """A model that draws digits, trained on samples of their latents."""

    def __init__(self, name: str, recipe: Recipe, vae: Path | None = None) -> None:
        super().__init__(name, recipe, vae)
        self.preset = PRESETS[name]

    def build(self, seed: int) -> Any:
        model = self.preset.build()
        initialise(model, seed)
        return model

    def files(self, model: Any) -> dict[str, bytes]:
        codec = {} if self.vae is None else codec_files(self.codec, CODEC)
        return model_files(self.preset, model.state_dict()) | codec

    def autoencoder(self) -> str:
        return sha256(tensor_bytes(self.codec.model.state_dict())).hexdigest()

    @cached_property
    def codec(self) -> LatentCodec:
        return load_codec(self.preset, self.vae)

    @cached_property
    def _moments(self) -> dict[Split, tuple[Tensor, Tensor]]:
        """Per split: moments [N, 2 C, h, w] of the latents, normalised, and labels [N]."""
        content: dict[Split, tuple[Tensor, Tensor]] = {}
        for split in ("train", "test"):
            images, labels = digits(split)
            content[split] = self.codec.moments(images), labels
        return content

    def batch(self, split: Split, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, C, h, w], labels [B], and which labels are dropped [B]."""
        moments, labels = self._moments[split]
        size = self.recipe.batch_size
        chosen = torch.randint(len(labels), (size,), generator=random)
        noise = torch.randn(size, moments.shape[1] // 2, *moments.shape[2:], generator=random)
        latents = self.codec.normalised(posterior_sample(moments[chosen], noise))
        return latents, labels[chosen], torch.rand(size, generator=random) < self.recipe.label_dropout
