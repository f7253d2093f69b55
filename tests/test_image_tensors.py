"""Images, known latents and masks of a caller: of any library, width and layout, or one line that says what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import small
from disa.codecs.base import LatentCodec
from disa.draw.inputs import Inputs
from disa.draw.pictures import as_image
from disa.draw.sampler import Sampler
from disa.draw.tensors import box_mask, images_of, latents_of, mask_of
from disa.errors import DisaError

RANDOM = torch.Generator().manual_seed(0)
# Levels of 8 bits, which every width of floats has within rounding.
LEVELS = torch.randint(0, 256, (2, 3, 16, 8), generator=RANDOM, dtype=torch.uint8)
IMAGES = LEVELS.float() / 255
LAST = IMAGES.permute(0, 2, 3, 1)


def opaque(images: Tensor) -> Tensor:
    return torch.cat([images, torch.ones_like(images[:, :1])], dim=1)


SAME: dict[str, Any] = {
    "floats": IMAGES,
    "uint8": LEVELS,
    "float64": IMAGES.double(),
    "needing gradients": IMAGES.clone().requires_grad_(),
    "not contiguous": LAST.contiguous().permute(0, 3, 1, 2),
    "channels last": LAST,
    "array": LAST.numpy(),
    "array of uint8": LEVELS.permute(0, 2, 3, 1).numpy(),
    "array of float64": LAST.double().numpy(),
    "array of long doubles": LAST.numpy().astype(np.longdouble),
    "array, channels first": IMAGES.numpy(),
    "array of uint16": (LEVELS.permute(0, 2, 3, 1).numpy().astype(np.uint16)) * 257,
    "big-endian array": LAST.numpy().astype(">f4"),
    "array backwards": LAST.flip(2).numpy()[:, :, ::-1],
    "list of tensors": list(IMAGES),
    "tuple of arrays": tuple(LAST.numpy()),
    "list of batches": [IMAGES[:1], IMAGES[1:]],
    "list of pictures": [as_image(image) for image in IMAGES],
    "list of all sorts": [IMAGES[0], as_image(IMAGES[1])],
    "four channels": opaque(IMAGES),
    "pictures of four channels": [as_image(image).convert("RGBA") for image in IMAGES],
    "above by rounding": IMAGES + 5e-4 * (IMAGES == 1) - 5e-4 * (IMAGES == 0),
}


@pytest.mark.parametrize("name", SAME)
def test_all_these_are_the_same_images(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = images_of(SAME[name], 3)
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    assert 0 <= found.min() <= found.max() <= 1
    assert found.shape == IMAGES.shape
    assert (found - IMAGES).abs().max() < 1e-6


def test_levels_of_eight_bits_are_exact() -> None:
    assert torch.equal(images_of(LEVELS, 3), IMAGES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_floats_are_read(dtype: torch.dtype) -> None:
    found = images_of(IMAGES.to(dtype), 3)
    assert torch.equal(found, IMAGES.to(dtype).float())


def test_inference_tensors_and_read_only_arrays_are_read() -> None:
    with torch.inference_mode():
        made = IMAGES + 0
    assert torch.equal(images_of(made, 3), IMAGES)
    array = LAST.numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(images_of(array, 3), IMAGES)


@pytest.mark.parametrize(
    ("given", "channels", "shape"),
    [
        (IMAGES[0], 3, (1, 3, 16, 8)),
        (LAST[0].numpy(), 3, (1, 3, 16, 8)),
        (as_image(IMAGES[0]), 3, (1, 3, 16, 8)),
        (IMAGES[0, 0], 1, (1, 1, 16, 8)),
        (LAST[0, :, :, 0].numpy(), 3, (1, 3, 16, 8)),
        (IMAGES[:, :1], 3, (2, 3, 16, 8)),
        (IMAGES, 1, (2, 1, 16, 8)),
        (opaque(IMAGES), 1, (2, 1, 16, 8)),
        (torch.ones(1, 7, 4, 4), 7, (1, 7, 4, 4)),
        (np.ones((5, 3, 4, 4)), 4, (5, 4, 3, 4)),
        (torch.ones(2, 3, 4, 4), 3, (2, 3, 4, 4)),
    ],
)
def test_layouts_and_channels(given: Any, channels: int, shape: tuple[int, ...]) -> None:
    assert images_of(given, channels).shape == shape


def test_what_channels_become() -> None:
    clear = torch.cat([torch.zeros(1, 3, 2, 2), torch.tensor([0.0, 0.25, 1.0, 0.0]).view(1, 1, 2, 2)], dim=1)
    assert images_of(clear, 3)[0, 0].flatten().tolist() == [1.0, 0.75, 0.0, 1.0]
    assert images_of(torch.full((1, 1, 2, 2), 0.25), 3).unique().tolist() == [0.25]
    grey = images_of(torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1), 1)
    assert grey.item() == pytest.approx(0.299 + 0.587 / 2)
    picture = as_image(IMAGES[0])
    assert (images_of(picture, 1) * 255 - torch.from_numpy(np.array(picture.convert("L")))).abs().max() <= 0.51
    assert images_of(torch.tensor([[True, False]]), 1).flatten().tolist() == [1.0, 0.0]


def with_value(value: float) -> Tensor:
    images = IMAGES.clone()
    images[1, 2, 3, 4] = value
    return images


BAD: dict[str, tuple[Any, str]] = {
    "0 to 255": (LEVELS.float(), "images must be in [0, 1], found values from 0 to 255. Give images / 255."),
    "-1 to 1": (IMAGES * 2 - 1, "found values from -1 to 1. Give (images + 1) / 2."),
    "one too large": (with_value(1.01), "found values from 0 to 1.01"),
    "one too small": (with_value(-0.01), "found values from -0.01 to 1"),
    "far out": (with_value(-300), "found values from -300 to 1."),
    "NaN": (with_value(float("nan")), "values that are not numbers (NaN)"),
    "infinity": (with_value(float("inf")), "found values from 0 to inf"),
    "NaN of half": (with_value(float("nan")).half(), "values that are not numbers (NaN)"),
    "int64": (LEVELS.long(), "uint8, or floats in [0, 1]; found int64"),
    "array of int32": (LEVELS.numpy().astype(np.int32), "found int32"),
    "int8": (LEVELS.to(torch.int8), "found int8"),
    "complex": (IMAGES.to(torch.complex64), "found complex64"),
    "array of complex": (LAST.numpy().astype(complex), "must be a tensor or an array of numbers"),
    "meta": (IMAGES.to("meta"), "on the meta device, which holds no values"),
    "sparse": (IMAGES.to_sparse(), "found float32, sparse_coo"),
    "empty": (IMAGES[:0], "there are no images: give at least one, found shape (0, 3, 16, 8)"),
    "empty list": ([], "there are no images"),
    "no pixels": (IMAGES[:, :, :0], "there are no images"),
    "two channels": (IMAGES[:, :2], "with 1, 3 or 4 channels, found shape (2, 2, 16, 8)"),
    "five dimensions": (IMAGES[None], "found shape (1, 2, 3, 16, 8)"),
    "one dimension": (IMAGES.flatten(), "found shape"),
    "no dimension": (torch.tensor(0.5), "found shape ()"),
    "sizes": ([IMAGES[0], IMAGES[0, :, :8]], "images of one call have one size, found 16x8 or 8x8"),
    "numbers": ([[0.5, 0.5]], "images must be"),
    "ragged": ([np.zeros((3, 4, 4)), [[1], [1, 2]]], "images must be a tensor or an array"),
    "a path": ("photo.jpg", "Open files with PIL.Image.open."),
    "bytes": (b"abc", "must be a tensor or an array of numbers"),
    "None": (None, "must be a tensor or an array of numbers, found None"),
    "number": (3, "must be a tensor or an array of numbers, found 3"),
    "dict": ({"images": IMAGES}, "must be a tensor or an array of numbers"),
    "objects": (np.array([None, 1]), "must be a tensor or an array of numbers"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_means_no_images_is_one_line(name: str) -> None:
    given, said = BAD[name]
    with pytest.raises(DisaError) as caught:
        images_of(given, 3)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


# -- through a model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return small.sampler()


@pytest.fixture(scope="module")
def drawn(sampler: Sampler) -> dict[str, Any]:
    return {name: sampler.sample([3, 4], 5, output_type=name).images for name in ("pt", "np", "pil")}


def test_what_was_drawn_is_encoded_from_every_output_type(sampler: Sampler, drawn: dict[str, Any]) -> None:
    expected = drawn["pt"] * 2 - 1
    assert torch.equal(sampler.encode(drawn["pt"]), expected)
    assert torch.equal(sampler.encode(drawn["np"]), expected)
    assert (sampler.encode(drawn["pil"]) - expected).abs().max() <= 1 / 255 + 1e-6
    levels = (drawn["pt"] * 255).round().to(torch.uint8)
    assert torch.equal(sampler.encode(levels), sampler.encode(drawn["pil"]))


def test_sizes_that_do_not_fit_are_told(sampler: Sampler) -> None:
    class Halves(LatentCodec):
        def _moments(self, images: Tensor) -> Tensor:
            raise AssertionError("checked before")

    codec = Halves(torch.nn.Linear(1, 1), 16, 4, 3)
    with pytest.raises(DisaError, match=r"multiples of 16, found 500 x 7\. Crop or resize the images, say to 496 x 16"):
        codec.encode(torch.zeros(1, 3, 500, 7))
    with pytest.raises(DisaError, match=r"images must be floats in \[-1, 1\], found torch.uint8"):
        codec.encode(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


# -- known latents and masks -----------------------------------------------------------------------------------------

KNOWN = torch.rand(1, 1, 8, 8, generator=RANDOM) * 2 - 1
MASK = torch.zeros(1, 4, 4, dtype=torch.bool)
MASK[:, 1:3, :2] = True

SAME_MASKS: dict[str, Any] = {
    "booleans": MASK,
    "one image": MASK[0],
    "a channel": MASK[:, None],
    "floats": MASK.float(),
    "half": MASK.half(),
    "whole numbers": MASK.long(),
    "0 and 255": MASK.to(torch.uint8) * 255,
    "array": MASK.numpy(),
    "array of floats": MASK.double().numpy(),
    "lists": MASK.tolist(),
    "picture": Image.fromarray(MASK[0].numpy().astype(np.uint8) * 255),
    "picture of 1 bit": Image.fromarray(MASK[0].numpy()),
}


@pytest.mark.parametrize("name", SAME_MASKS)
def test_all_these_are_the_same_mask(name: str) -> None:
    found = mask_of(SAME_MASKS[name])
    assert found.dtype == torch.bool
    assert torch.equal(found, MASK)


SAME_KNOWN: dict[str, Callable[[], Any]] = {
    "array": KNOWN.numpy,
    "float64": KNOWN.double,
    "array of float64": lambda: KNOWN.double().numpy(),
    "one image": lambda: KNOWN[0],
    "needing gradients": lambda: KNOWN.clone().requires_grad_(),
}


@pytest.mark.parametrize("name", SAME_KNOWN)
def test_all_these_are_the_same_known_latents(sampler: Sampler, name: str) -> None:
    with torch.inference_mode():
        made = KNOWN + 0
    expected = sampler.sample(3, 1, known=made, mask=MASK, num_ar_steps=2).latents
    found = sampler.sample(3, 1, known=SAME_KNOWN[name](), mask=MASK.numpy(), num_ar_steps=2).latents
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), "known latents are floats, as `encode` makes them of images"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.int64), "found int64"),
        (torch.full((1, 1, 8, 8), float("nan")), "known latents must be finite numbers"),
        (torch.full((1, 1, 8, 8), float("-inf")), "known latents must be finite numbers"),
        (torch.zeros(8, 8), r"known latents must be \[N, C, H, W\], found shape \(8, 8\)"),
        (torch.zeros(0, 1, 8, 8), "known latents must be"),
        (torch.tensor(1.0), "known latents must be"),
        ("picture.png", "known latents must be a tensor or an array of numbers, found 'picture.png'"),
        (3, "found 3"),
    ],
)
def test_what_is_no_latent_is_one_line(known: Any, said: str) -> None:
    with pytest.raises(DisaError, match=said):
        latents_of(known)
    with pytest.raises(DisaError, match=said):
        Inputs.paired(0, 3, known=known, mask=MASK)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (torch.full((1, 4, 4), 0.5), "a mask is true or false, 0 or 1: .* found values from 0.5 to 0.5"),
        (torch.full((1, 4, 4), float("nan")), "found values that are not numbers"),
        (torch.full((1, 4, 4), -1), "found values from -1 to -1"),
        (torch.arange(16).view(1, 4, 4), "found values from 0 to 15. Compare it with a threshold, as mask > 0.5."),
        (torch.ones(16), r"a mask must be \[N, rows, columns\] of tokens, found shape \(16,\)"),
        (torch.ones(1, 3, 4, 4), "a mask must be"),
        (torch.ones(0, 4, 4), "a mask must be"),
        ("mask.png", "a mask must be a tensor or an array of numbers"),
        (True, "a mask must be a tensor or an array of numbers, found True"),
        ([[1, 0], [1]], "a mask must be a tensor or an array"),
    ],
)
def test_what_is_no_mask_is_one_line(mask: Any, said: str) -> None:
    with pytest.raises(DisaError, match=said):
        mask_of(mask)
    with pytest.raises(DisaError, match=said):
        Inputs.paired(0, 3, known=KNOWN, mask=mask)


def test_a_mask_over_pixels_is_told_how_to_become_one_over_tokens(sampler: Sampler) -> None:
    mask = torch.zeros(1, 8, 8)
    mask[:, 2:5, :4] = 1
    with pytest.raises(
        DisaError, match=r"mask must be \(1, 4, 4\), found \(1, 8, 8\). Tokens have 2x2 pixels"
    ) as caught:
        sampler.sample(3, 1, known=KNOWN, mask=mask)
    said = str(caught.value).rpartition(": ")[2].removesuffix(".")
    assert torch.equal(mask_of(eval(said, {"torch": torch, "mask": mask})), MASK)


def test_images_in_place_of_latents_are_told(sampler: Sampler) -> None:
    with pytest.raises(DisaError, match=r"known must be \(1, 1, 8, 8\), found \(1, 3, 8, 8\). `encode` makes latents"):
        sampler.sample(3, 1, known=torch.rand(1, 3, 8, 8), mask=MASK)


@pytest.mark.parametrize(
    "edges", [(0, 0, 5, 2), (2, 2, 2, 3), (-1, 0, 2, 2), (0, 0, 1), (0, 0, 1, 1, 1), (0.5, 0, 1, 1), (None,) * 4, ()]
)
def test_a_box_outside_of_the_tokens_is_one_line(edges: Any) -> None:
    with pytest.raises(DisaError, match="the box"):
        box_mask(edges, (4, 4))


def test_a_box_is_a_mask() -> None:
    assert torch.equal(box_mask((1, 0, 3, 2), (4, 4)), MASK)
    assert torch.equal(box_mask(torch.tensor([1, 0, 3, 2]).tolist(), (4, 4)), MASK)
