"""A model with all that drawing needs of it: its weights, autoencoder and conditioner, on a device.

Shapes: N images, C latent channels, H x W latents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from disa.codecs.base import LatentCodec
from disa.core.generate import Drawing
from disa.core.problem import ARModel, Noise
from disa.core.request import Request
from disa.draw.conditioning import Conditioner, LabelConditioner, PromptConditioner
from disa.draw.identity import Fingerprint
from disa.draw.tensors import images_of, latents_of
from disa.errors import DisaError
from disa.models.language import WithLanguageModel
from disa.models.prompting import PromptText
from disa.models.registry import FAMILIES, Model
from disa.models.spec import Defaults, Preset, Spec
from disa.runtime import devices, packing
from disa.runtime import offload as offloading
from disa.runtime.recorder import Recorder, can_record, recorder_on
from disa.runtime.surroundings import undisturbed
from disa.values import shown
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

    folder: Path | None = None
    """Where it was loaded from, if that is a folder that disa wrote."""
    recipe: str | None = None
    """What it is drawn by if not asked otherwise: see draw/recipes.py."""
    offloaded = False
    """Whether layers stay in the CPU's memory: see runtime/offload.py."""

    @undisturbed()
    def __init__(
        self,
        preset: Preset,
        model: Model,
        codec: Codec | Path | None = None,
        device: str | int | torch.device | None = None,
        dtype: str | torch.dtype = "fp32",
        tokenizer: PromptText | Path | str | None = None,
        offload: bool = False,
    ) -> None:
        """codec: read from its file at first use. device, dtype: see runtime/devices.py; offload: runtime/offload.py.
        Raises DisaError."""
        check_parts(preset, codec, tokenizer)
        if offload:
            check_offload(preset, device)
        self.preset, self.dtype, self.device = preset, devices.dtype_name(dtype), devices.pick_device(device)
        self._fingerprints: dict[str, Fingerprint] = {}
        self._recorder: Recorder | None = None
        # Files that are read later are found then, wherever the program has gone meanwhile.
        self._codec = codec.absolute() if isinstance(codec, Path) else codec
        if isinstance(tokenizer, str | Path) and Path(tokenizer).is_dir():
            tokenizer = Path(tokenizer).absolute()
        kind = devices.pick_dtype(dtype)
        self.model: Any = model.requires_grad_(False).eval()
        if offload:
            offloading.offload(self.model, self.model.layers_in_turn, self.device, kind)
            self.offloaded = True
        else:
            self.model = packing.prepare(self.model.to(self.device, kind), self.device, kind)
        takes_prompts = self.model.capabilities.condition == "prompts"
        self.conditioner: Conditioner = (
            PromptConditioner(preset, self.model, tokenizer)
            if takes_prompts
            else LabelConditioner(preset.name, self.model.capabilities)
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.preset.name}, {self.device}, {self.dtype})"

    @undisturbed()
    def to(self, device: Any = None, dtype: Any = None) -> Self:
        """Move the model and the autoencoder, in place, and return itself; None leaves one of the two as it is.

        device, dtype: see runtime/devices.py; a dtype alone may come first, as in `sampler.to(torch.bfloat16)`. What
        was rounded to bf16 stays rounded. Raises DisaError.
        """
        if isinstance(device, torch.dtype) and dtype is None:
            device, dtype = None, device
        before = self.device, self.dtype
        wanted = self.device if device is None else devices.pick_device(device)
        name = self.dtype if dtype is None else devices.dtype_name(dtype)
        if (wanted, name) == before:
            return self
        if self.offloaded:
            raise DisaError("an offloaded model stays where it is: load it again for another device or dtype.")
        try:
            self._place(wanted, name)
        except BaseException:  # such as too little memory there
            self._place(*before)
            raise
        return self

    def _place(self, device: torch.device, dtype: str) -> None:
        kind, known = devices.pick_dtype(dtype), self._fingerprint("weights", self.model)
        self.model = packing.prepare(packing.unpack(self.model).to(device, kind), device, kind)
        known.moved(self.model)
        if isinstance(self._codec, LatentCodec):
            known = self._fingerprint("vae", self._codec.model)
            known.moved(self._codec.to(device, kind).model)
        self.device, self.dtype, self._recorder = device, dtype, None

    def beginning(self, graphs: str | None) -> Callable[[ARModel, Request, Noise], Drawing]:
        """How generations are computed; graphs: as in `Settings`."""
        if graphs in (None, "off") or self.offloaded or not can_record(self.device):
            return Drawing
        self._recorder = self._recorder or recorder_on(self.device)
        return self._recorder.begin

    @property
    def tf32(self) -> bool:
        """Whether it is computed in TF32."""
        return devices.allows_tf32(self.device, self.dtype)

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
    @undisturbed()
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
        with undisturbed(tf32=self.tf32):
            return self._encode(self._images(images))

    def _images(self, given: Any) -> Tensor:
        """[N, channels, height, width] in [0, 1], on the model's device."""
        return images_of(given, self.shape_of(None)[0]).to(self.device)

    def _encode(self, images: Tensor) -> Tensor:
        return self.codec.encode(images * 2 - 1)

    def decode(self, latents: Tensor, batch_size: int = 16) -> Tensor:
        """latents [N, C, H, W] -> images [N, channels, height, width] in [0, 1], on the model's device."""
        with undisturbed(tf32=self.tf32):
            given = latents_of(latents, "latents").to(self.device)
            parts = [self.codec.decode(part) for part in given.split(batch_size)]
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
        grid = size[0] // self.stride, size[1] // self.stride
        self.model.capabilities.check_size(grid, self.stride)
        return grid

    @property
    def token_grid(self) -> tuple[int, int]:
        """Rows and columns of tokens, each of which can be kept or drawn again. Raises DisaError where none can."""
        self.model.capabilities.check_keeps_tokens()
        height, width = self.defaults.size or self.own_size
        return height // self.stride, width // self.stride

    # -- identity ------------------------------------------------------------------------------------------------

    @property
    def weights_hash(self) -> str:
        """SHA-256 of the weights as bfloat16, so that it is the same in fp32 and in bf16."""
        return self._fingerprint("weights", self.model).value

    @cached_property
    def _spec_hash(self) -> str:
        """SHA-256 of the configurations: a number of heads or a scale is in no tensor, and changes images."""
        parts = [None if part is None else asdict(part) for part in (self.spec.architecture, self.spec.codec)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def about(self) -> dict[str, Any]:
        """The weights and what they are computed on, for JSON; autoencoder and tokenizer where they were read."""
        return self.about_later()()

    def about_later(self) -> Callable[[], dict[str, Any]]:
        """The same as it is now, told when it is called: hashes of large weights take seconds."""
        parts = {"weights": self.model} | ({"vae": self._codec.model} if isinstance(self._codec, LatentCodec) else {})
        hashes = {name: self._fingerprint(name, model) for name, model in parts.items()}
        told = {
            "model": self.preset.name,
            "spec": self._spec_hash,
            "weights": None,
            "vae": None,
            "tokenizer": self.conditioner.hash,
            "dtype": self.dtype,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        scaling = self._own_scaling()

        def tell() -> dict[str, Any]:
            found = {name: each.value for name, each in hashes.items()}
            if scaling is not None:
                found["vae"] = hashlib.sha256(json.dumps([found["vae"], scaling]).encode()).hexdigest()
            return told | found

        return tell

    def _own_scaling(self) -> dict[str, Any] | None:
        """How the autoencoder scales latents where that is not the model's usual way: it is in no tensor."""
        if not isinstance(self._codec, LatentCodec):
            return None
        own: Any = self._codec.own(self.spec.codec)
        return None if own == self.spec.codec else asdict(own)

    def _fingerprint(self, part: str, model: nn.Module) -> Fingerprint:
        """Of the weights of a part as they are now."""
        known = self._fingerprints.get(part)
        if known is None or not known.fits(model):
            known = self._fingerprints[part] = Fingerprint(model)
        return known


def check_offload(preset: Preset, device: Any) -> None:
    """Raises DisaError where a model has no layers to offload, or the device no other memory than they are in."""
    if not issubclass(FAMILIES[preset.spec.family].model, WithLanguageModel):
        raise DisaError(f"{preset.name} has no language model whose layers could be offloaded: leave offload out.")
    offloading.check_device(devices.pick_device(device))


def check_parts(preset: Preset, codec: object, tokenizer: object) -> None:
    """Refuse the file of an autoencoder or of a tokenizer where a model has none. Raises DisaError."""
    if preset.spec.codec is None and isinstance(codec, Path):
        raise DisaError(f"{preset.name} has no autoencoder, its tokens are pixels: leave {codec} out.")
    if not isinstance(tokenizer, str | Path | PromptText | None) or (
        isinstance(tokenizer, str) and not tokenizer.strip()
    ):
        raise DisaError(f"the tokenizer must be a folder or a hub id, found {shown(tokenizer)}.")
    if not preset.prompts and isinstance(tokenizer, str | Path):
        raise DisaError(f"{preset.name} draws from labels and has no tokenizer: leave {tokenizer} out.")
