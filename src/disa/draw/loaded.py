"""A model with all that drawing needs of it: its weights, autoencoder and conditioner, on a device.

Shapes: N images, C latent channels, H x W latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from disa.codecs.base import LatentCodec
from disa.draw.conditioning import Conditioner, LabelConditioner, PromptConditioner
from disa.draw.tensors import images_of
from disa.errors import DisaError
from disa.models.harmon.text import Text
from disa.models.registry import Model
from disa.models.spec import Defaults, Preset, Spec
from disa.runtime import devices, packing
from disa.weights.load import load_codec


class Codec(Protocol):
    """Images to latents and back. images: [N, channels, height, width] in [-1, 1]."""

    def encode(self, images: Tensor) -> Tensor: ...

    def decode(self, latents: Tensor) -> Tensor: ...


class PixelCodec:
    """For models whose tokens are patches of pixels."""

    def encode(self, images: Tensor) -> Tensor:
        return images

    def decode(self, latents: Tensor) -> Tensor:
        return latents


class Loaded:
    """A model ready to draw. It holds nothing of any one drawing."""

    def __init__(
        self,
        preset: Preset,
        model: Model,
        codec: Codec | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str = "fp32",
        tokenizer: Text | Path | str | None = None,
    ) -> None:
        """codec: read from its file when it is first needed. device: the best there is if None. Raises DisaError."""
        self.preset, self.dtype, self.device = preset, dtype, devices.pick_device(device)
        check_parts(preset, codec, tokenizer)
        self._codec = codec
        kind = devices.pick_dtype(dtype)
        self.model: Any = packing.prepare(model.to(self.device, kind).requires_grad_(False).eval(), self.device, kind)
        takes_prompts = self.model.capabilities.condition == "prompts"
        self.conditioner: Conditioner = (
            PromptConditioner(preset, self.model, tokenizer)
            if takes_prompts
            else LabelConditioner(preset.name, self.model.capabilities)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.preset.name}, {self.device}, {self.dtype})"

    @property
    def spec(self) -> Spec:
        """What the weights are."""
        return self.preset.spec

    @property
    def defaults(self) -> Defaults:
        """How the model is drawn with, if not asked otherwise."""
        return self.preset.defaults

    # -- the autoencoder -----------------------------------------------------------------------------------------

    @property
    def codec(self) -> Codec:
        """The autoencoder, read at first use: drawing latents does not need it."""
        if self.spec.codec is None:
            self._codec = self._codec or PixelCodec()
        elif self._codec is None or isinstance(self._codec, Path):
            codec = load_codec(self.preset, self._codec)
            self._codec = codec.to(self.device, devices.pick_dtype(self.dtype))
        assert self._codec is not None
        assert not isinstance(self._codec, Path)
        return self._codec

    def prepare(self) -> None:
        """Read the autoencoder now, so that a missing one is found before drawing."""
        _ = self.codec

    def encode(self, images: Any) -> Tensor:
        """images [N, channels, height, width] in [0, 1] -> latents [N, C, H, W].

        Also uint8, arrays, pictures of Pillow and lists of these: see `disa.draw.tensors`. Raises DisaError.
        """
        return self._encode(self._images(images))

    def _images(self, given: Any) -> Tensor:
        """[N, channels, height, width] in [0, 1], on the model's device."""
        return images_of(given, self.shape_of(None)[0]).to(self.device)

    def _encode(self, images: Tensor) -> Tensor:
        return self.codec.encode(images * 2 - 1)

    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """latents [N, C, H, W] -> images [N, channels, height, width] in [0, 1], on the model's device."""
        parts = [self.codec.decode(part) for part in latents.split(batch_size)]
        return (torch.cat(parts).float() / 2 + 0.5).clamp(0, 1)

    # -- sizes ---------------------------------------------------------------------------------------------------

    @property
    def stride(self) -> int:
        """Pixels of an image along one side of a token."""
        return self._latent_stride * self.patch

    @property
    def _latent_stride(self) -> int:
        return 1 if self.spec.codec is None else self.spec.codec.stride

    @property
    def patch(self) -> int:
        """Latent positions along one side of a token."""
        return getattr(self.model.config, "patch_size", 1)

    @property
    def own_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the architecture was made for."""
        height, width = self.model.config.latent_size
        return height * self._latent_stride, width * self._latent_stride

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image, if not asked otherwise."""
        return self.shape_of(self.defaults.size)

    def shape_of(self, size: tuple[int, int] | None) -> tuple[int, int, int]:
        """Channels, height and width of an image of a size; None for the architecture's own."""
        codec = self.spec.codec
        channels = self.model.config.latent_channels if codec is None else codec.in_channels
        return channels, *(size or self.own_size)

    def token_grid_of(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Rows and columns of tokens of an image of a size in pixels; None for the architecture's own. Raises
        DisaError where such an image cannot be drawn."""
        if size is None:
            return None
        if not self.model.capabilities.any_size:
            if tuple(size) == self.own_size:
                return None
            only, found = (f"{height}x{width}" for height, width in (self.own_size, size))
            raise DisaError(f"{self.preset.name} draws images of {only} only, found {found}.")
        if min(size) < 1 or size[0] % self.stride or size[1] % self.stride:
            near = "x".join(str(max(1, round(side / self.stride)) * self.stride) for side in size)
            raise DisaError(
                f"height and width must be multiples of {self.stride}, found {size[0]}x{size[1]}: {near} are near."
            )
        return size[0] // self.stride, size[1] // self.stride

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens, each of which can be kept or drawn again. Raises DisaError where none can."""
        self.model.capabilities.check_keeps_tokens()
        height, width = self.defaults.size or self.own_size
        return height // self.stride, width // self.stride

    # -- identity ------------------------------------------------------------------------------------------------

    @cached_property
    def weights_hash(self) -> str:
        """SHA-256 of the weights as bfloat16, so that it is the same in fp32 and in bf16."""
        return hash_of(self.model)

    @cached_property
    def _spec_hash(self) -> str:
        """SHA-256 of the configurations: a number of heads or a scale is in no tensor, and changes images."""
        parts = [None if part is None else asdict(part) for part in (self.spec.architecture, self.spec.codec)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _codec_hash(self) -> str:
        """The same as `weights_hash` of the autoencoder, once it was read."""
        assert isinstance(self._codec, LatentCodec)
        weights, usual = hash_of(self._codec.model), self.spec.codec
        own: Any = self._codec.own(usual)
        if own == usual:
            return weights
        # Another scale is in no tensor, and changes images.
        return hashlib.sha256(json.dumps([weights, asdict(own)]).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        """The weights and what they are computed on, for JSON; autoencoder and tokenizer where they were read."""
        return {
            "model": self.preset.name,
            "spec": self._spec_hash,
            "weights": self.weights_hash,
            "vae": self._codec_hash if isinstance(self._codec, LatentCodec) else None,
            "tokenizer": self.conditioner.hash,
            "dtype": self.dtype,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def check_parts(preset: Preset, codec: object, tokenizer: object) -> None:
    """Refuse the file of an autoencoder or of a tokenizer where a model has none. Raises DisaError."""
    if preset.spec.codec is None and isinstance(codec, Path):
        raise DisaError(f"{preset.name} has no autoencoder, its tokens are pixels: leave {codec} out.")
    if not preset.prompts and isinstance(tokenizer, str | Path):
        raise DisaError(f"{preset.name} draws from labels and has no tokenizer: leave {tokenizer} out.")


def hash_of(model: nn.Module) -> str:
    """SHA-256 of all tensors of a model as bfloat16, and of their names."""
    found = hashlib.sha256()
    for name, value in _tensors(model):
        found.update(name.encode())
        found.update(value.detach().cpu().to(torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model by name, in the order of names. One module's at a time: packed ones are unpacked."""
    owners = {
        prefix + name: (module, prefix)
        for path, module in model.named_modules()
        for prefix in (f"{path}." if path else "",)
        for name in _own(module, "")
    }
    for name, (module, prefix) in sorted(owners.items()):
        yield name, _own(module, prefix)[name]


def _own(module: nn.Module, prefix: str) -> dict[str, Any]:
    own: dict[str, Any] = {}
    module._save_to_state_dict(own, prefix, keep_vars=False)
    return own
