"""Whether what is to be drawn fits in memory: found roughly, from shapes, before anything is computed."""

from __future__ import annotations

import math
from contextlib import suppress
from itertools import pairwise

from disa.core.steps import Schedule
from disa.draw.loaded import Loaded
from disa.draw.settings import Settings
from disa.errors import DisaError
from disa.runtime import devices, memory
from disa.values import counted

NOISE_BYTES = 24
"""Of each number that a solver adds, while it is made."""
KEPT_BYTES = 8
"""Of each value of a picture that is kept: alone, and then joined with the others."""
SAFE_SHARE = 0.5
"""Of the free memory, for what is proposed: what is measured is up to 1.8 times what is estimated here."""
IMAGE_BYTES = 16
"""Of each value of a picture, while it is decoded and handed out."""
DECODED_AT_ONCE = 4
"""Copies of a decoder's widest layer."""


class NoRoom(DisaError):
    """There is too little memory just now."""

    def __init__(self, found: str, what_fits: str) -> None:
        """found: what it takes, and what there is."""
        super().__init__(f"{found}{what_fits}.")
        self.found = found


def check_room(loaded: Loaded, settings: Settings, num_images: int) -> None:
    """Refuse a batch that cannot fit. Raises NoRoom, which says what does."""
    there = memory.free(loaded.device)
    height, width = size = settings.size or loaded.own_size
    once, each = needed(loaded, settings, size)
    whole = once + num_images * each
    if there is None or whole <= there:
        return
    free = f"{told(there)} of memory are free"
    if once + each <= there:
        most = max(1, (int(SAFE_SHARE * there) - once) // each)
        raise NoRoom(
            f"a batch of {counted(num_images, 'image')} takes about {told(whole)}, and {free}",
            f": take a batch size of {most} or less",
        )
    smaller = _smaller(loaded, settings, there)
    raise NoRoom(f"an image of {height}x{width} takes about {told(once + each)}, and {free}", smaller)


def check_kept(loaded: Loaded, settings: Settings, num_images: int) -> None:
    """Refuse more images than can be held, and joined, at once. Raises DisaError."""
    there = memory.free(devices.CPU)
    whole = num_images * math.prod(loaded.shape_of(settings.size)) * KEPT_BYTES
    if there is not None and whole > there:
        raise DisaError(
            f"{counted(num_images, 'image')} take about {told(whole)} together, and {told(there)} of memory are free: "
            "draw them into a folder (`sample_into`), or batch by batch (`start(...).batches()`)."
        )


def needed(loaded: Loaded, settings: Settings, size: tuple[int, int]) -> tuple[int, int]:
    """Bytes that a batch takes about, beside the weights: once, and for each image of a height and width."""
    config, codec = loaded.model.config, loaded.spec.codec
    grid = size[0] // loaded.stride, size[1] // loaded.stride
    num_tokens = math.prod(grid) if loaded.model.capabilities.any_size else config.num_tokens
    most_drawn = _most_drawn(settings, num_tokens)
    guidance, bytes_of = settings.guidance, devices.pick_dtype(loaded.dtype).itemsize
    halves = 3 if guidance.three_way else 2 if guidance.active else 1
    drawing = halves * bytes_of * config.working_values(num_tokens, most_drawn)
    if settings.reuse is not None and settings.reuse.tokens:
        drawing += halves * bytes_of * config.kept_values(num_tokens)
    if settings.solver.stochastic:
        drawing += NOISE_BYTES * most_steps(settings) * config.values_drawn(num_tokens, most_drawn)
    pixels = size[0] * size[1]
    decoding = 0 if codec is None else DECODED_AT_ONCE * bytes_of * pixels * codec.finest_width
    return decoding, drawing + IMAGE_BYTES * pixels * loaded.image_shape[0]


def told(size: int) -> str:
    """A number of bytes for people."""
    power = min(5, max(2, int(math.log(max(size, 1), 1024))))
    return f"{size / 1024**power:.3g} {' KMGTP'[power]}iB"


def most_steps(settings: Settings) -> int:
    """The most denoising steps of a row."""
    if isinstance(settings.steps, Schedule):
        return max(settings.steps.counts(settings.num_ar_steps))
    spending = getattr(settings.steps, "spending", None)
    return 1 if spending is None else spending.early


def _most_drawn(settings: Settings, num_tokens: int) -> int:
    """The most tokens of an image that an AR step draws; all of them where nothing says."""
    if settings.counts is not None:
        with suppress(DisaError):  # of an image that is too small for so many AR steps
            masked = settings.counts.masked(num_tokens, settings.num_ar_steps)
            return max(before - after for before, after in pairwise(masked))
    return num_tokens


def _smaller(loaded: Loaded, settings: Settings, there: int) -> str:
    """What is said of smaller images of this shape."""
    grid, side = loaded.token_grid_of(settings.size), loaded.stride
    if grid is None:
        return ""
    for share in (2**-i for i in range(1, 64)):
        height, width = (side * max(1, int(count * share)) for count in grid)
        if sum(needed(loaded, settings, (height, width))) <= there:
            return f": {height}x{width} would fit"
        if height == width == side:
            break
    return ""
