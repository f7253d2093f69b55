"""Images, known latents and masks that a caller gives, of any library and layout, checked in one place.

| given | taken as |
|---|---|
| images: tensors, arrays, Pillow's, lists of these | [N, channels, height, width] floats in [0, 1] |
| ... of uint8, uint16, bool | by their range: 255, 65535 and true are white |
| ... of floats of any width | in [0, 1], up to rounding; refused outside, and where not finite |
| ... [N, C, H, W], [N, H, W, C] or one image of these, [H, W] | told by the axis of 1, 3 or 4 channels; where two |
| | have such a size, a tensor has channels first and an array last |
| ... of 4 channels | composed on white |
| ... of 1 channel for a model of 3, or 3 for one of 1 | repeated, or their luminance (ITU-R BT.601) |
| known latents: floats [N, C, H, W] or [C, H, W] | float32; refused where they are not finite |
| masks: booleans, or numbers 0 and 1 or 0 and 255; [N, h, w], [N, 1, h, w] or [h, w] | [N, h, w] booleans |

Refused: whole numbers of other widths, which may mean anything, complex numbers, texts, and tensors without values.

Shapes: N images of a call, C channels, H x W pixels or latents, h x w tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from disa.errors import DisaError
from disa.values import ROUNDING, either, many, shown, whole_number

WHITE = {torch.bool: 1, torch.uint8: 255, torch.uint16: 65535}
LUMINANCE = 0.299, 0.587, 0.114


def images_of(given: Any, channels: int) -> Tensor:
    """Images as [N, channels, H, W] float32 in [0, 1], at least one. channels: of the model. Raises DisaError."""
    if not isinstance(given, list | tuple):
        return _images(given, channels)
    if not given:
        raise DisaError("there are no images: give at least one.")
    parts = [_images(each, channels) for each in given]
    sizes = sorted({f"{part.shape[2]}x{part.shape[3]}" for part in parts})
    if len(sizes) > 1:
        raise DisaError(f"images of one call have one size, found {either(sizes)}: crop or resize them.")
    return torch.cat([part.to(parts[0].device) for part in parts])


def latents_of(given: Any, what: str = "known latents") -> Tensor:
    """Latents as [N, C, H, W] float32; what: how messages call them. Raises DisaError."""
    found = _tensor(given, what)
    if not found.is_floating_point():
        raise DisaError(f"{what} are floats, as `encode` makes them of images; found {_kind(found)}.")
    if found.ndim not in (3, 4) or not found.numel():
        raise DisaError(f"{what} must be [N, C, H, W], found {_shape(found)}.")
    if not torch.isfinite(found).all():
        raise DisaError(f"{what} must be finite numbers, also where tokens are drawn; found others.")
    return (found if found.ndim == 4 else found[None]).float()


def mask_of(given: Any) -> Tensor:
    """A mask over tokens as [N, h, w] booleans. Raises DisaError."""
    found = _tensor(given, "a mask")
    if found.ndim == 2:
        found = found[None]
    elif found.ndim == 4 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 3 or not found.numel():
        raise DisaError(f"a mask must be [N, rows, columns] of tokens, found {_shape(found)}.")
    if found.dtype == torch.bool:
        return found
    # In double, where every whole number that matters is exact, and which has every operation.
    values = found.double()
    if not any(((values == 0) | (values == most)).all() for most in (1, 255)):
        raise DisaError(
            f"a mask is true or false, 0 or 1: true where a token is drawn; found {_extent(values)}. "
            "Compare it with a threshold, as mask > 0.5."
        )
    return values > 0


def box_mask(edges: Sequence[int], grid: tuple[int, int]) -> Tensor:
    """[1, h, w] booleans over tokens, true inside (top, left, bottom, right), the last two excluded."""
    rows, columns = grid
    found = many(edges, whole_number, "edges of the box")
    if len(found) != 4 or not (0 <= found[0] < found[2] <= rows and 0 <= found[1] < found[3] <= columns):
        raise DisaError(
            f"the box must be top,left,bottom,right in tokens within {rows} rows and {columns} columns, "
            f"found {','.join(map(str, found))}."
        )
    mask = torch.zeros(1, rows, columns, dtype=torch.bool)
    mask[:, found[0] : found[2], found[1] : found[3]] = True
    return mask


# -- images --------------------------------------------------------------------------------------------------------


def _images(given: Any, channels: int) -> Tensor:
    """One image or a batch of them."""
    if hasattr(given, "getbands"):  # Pillow's
        from disa.draw.opening import as_shown  # pillow is needed for nothing else here

        given = np.asarray(as_shown(given))
    found = _tensor(given, "images")
    if not found.numel():
        raise DisaError(f"there are no images: give at least one, found {_shape(found)}.")
    rows = _channels_first(found, isinstance(given, Tensor), channels)
    return _with_channels(_in_unit_range(rows), channels)


def _channels_first(found: Tensor, is_tensor: bool, channels: int) -> Tensor:
    """As [N, C, H, W]."""
    if found.ndim == 2:
        return found[None, None]
    rows, counts = found[None] if found.ndim == 3 else found, {1, 3, 4, channels}
    if rows.ndim == 4:
        first, last = rows.shape[1] in counts, rows.shape[3] in counts
        if first and (is_tensor or not last):
            return rows
        if last:
            return rows.permute(0, 3, 1, 2)
    raise DisaError(
        f"images must be [N, channels, height, width] with {either(map(str, sorted(counts)))} channels, "
        f"found {_shape(found)}."
    )


def _in_unit_range(images: Tensor) -> Tensor:
    """As float32 in [0, 1]."""
    if images.dtype in WHITE:
        return images.float() / WHITE[images.dtype]
    if not images.is_floating_point():
        raise DisaError(f"images must be uint8, or floats in [0, 1]; found {_kind(images)}: convert them.")
    images = images.float()
    low, high = (float(end) for end in torch.aminmax(images))
    if not low >= -ROUNDING or not high <= 1 + ROUNDING:
        hint = ""
        if -1 - ROUNDING <= low < 0 and high <= 1 + ROUNDING:
            hint = " Give (images + 1) / 2."
        elif low >= -ROUNDING and high <= 255 + ROUNDING:
            hint = " Give images / 255."
        raise DisaError(f"images must be in [0, 1], found {_extent(images)}.{hint}")
    return images.clamp(0, 1)


def _with_channels(images: Tensor, channels: int) -> Tensor:
    """[N, C, H, W] with as many channels as the model has."""
    if images.shape[1] == channels:
        return images
    if channels not in (1, 3):
        raise DisaError(f"the model's images have {channels} channels, found {images.shape[1]}.")
    if images.shape[1] == 4:
        alpha = images[:, 3:]
        images = images[:, :3] * alpha + (1 - alpha)
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    return (images * images.new_tensor(LUMINANCE)[:, None, None]).sum(1, keepdim=True)


# -- what was given ------------------------------------------------------------------------------------------------


def _tensor(given: Any, what: str) -> Tensor:
    """A plain tensor without gradients, of numbers or booleans; what is no tensor is copied."""
    if isinstance(given, Tensor):
        if given.is_meta or given.layout != torch.strided or given.is_quantized or given.is_complex():
            raise DisaError(f"{what} must be a dense tensor of real numbers, found {_kind(given)}.")
        return given.detach() if given.requires_grad else given
    try:
        array = np.asarray(given)
    except Exception as error:  # lists of unequal lengths, tensors of a GPU in a list, objects that fail
        raise DisaError(f"{what} must be a tensor or an array, found {shown(given)}.") from error
    if array.dtype.kind not in "biuf" or not array.ndim:
        opened = " Open files with PIL.Image.open." if what == "images" and isinstance(given, str) else ""
        raise DisaError(f"{what} must be a tensor or an array of numbers, found {shown(given)}.{opened}")
    wide = array.dtype.kind == "f" and array.dtype.itemsize > 8
    # Tensors have no other order of bytes, no steps backwards and nothing read-only.
    return torch.from_numpy(array.astype(np.float64 if wide else array.dtype.newbyteorder("="), order="C"))


def _kind(found: Tensor) -> str:
    dtype = str(found.dtype).removeprefix("torch.")
    if found.is_meta:
        return f"{dtype} on the meta device, which holds no values"
    return dtype if found.layout == torch.strided else f"{dtype}, {str(found.layout).removeprefix('torch.')}"


def _shape(found: Tensor) -> str:
    return f"shape {tuple(found.shape)}"


def _extent(values: Tensor) -> str:
    low, high = (float(end) for end in torch.aminmax(values))
    return "values that are not numbers (NaN)" if math.isnan(low) else f"values from {low:.4g} to {high:.4g}"
