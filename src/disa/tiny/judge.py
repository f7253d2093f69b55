"""Whether a picture shows what its caption says, told from the pixels alone, with GenEval's categories and scores.

`read` knows nothing of the caption: it estimates the background, finds what stands out in each colour of the palette,
and compares each thing with every shape of its own area around its own centroid. What it cannot tell stays open, and
`judge` counts open as wrong: no empty picture, no half shape and no blot passes.

H = W = 48 pixels. Colours are compared in CIELAB, where a distance of about 2 is just visible and the palette's
colours are at least 30 apart; distances are in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import permutations
from typing import cast

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from disa.errors import DisaError
from disa.study.metrics import SHARE, SMALLEST_STRATUM, Array, Resampled, Spread, bootstrap, resample
from disa.tiny.captions import (
    CATEGORIES,
    COLOURS,
    SHAPES,
    Category,
    Colour,
    Facts,
    Group,
    Relation,
    Shape,
    Size,
    describe,
    parse,
)
from disa.tiny.scenes import IMAGE_SIZE, LARGEST_SMALL, PALETTE, SMALLEST_LARGE, coverage, relation_of

_STANDS_OUT = 16.0  # a pixel this far from the background belongs to something
_LARGEST_NOISE = 10.0  # the background's own deviation from a plane
_LARGEST_TINT = 22.0  # the saturation from which a background counts as coloured
_SMALLEST_BACKGROUND = 0.35
_SMALLEST_THING = 8  # pixels; less is a speck
_FARTHEST_COLOUR = 20.0
_CLEARLY_NEARER = 0.7
_OFF_COLOUR = 0.22  # of the range of a channel
_FAINT = 0.08
_LARGEST_BLOT = 0.1  # of a thing's area
_FIT, _FIT_MARGIN = 0.8, 0.03
_SIZE_MARGIN = 0.3
_SMALLEST_DISTANCE = 6.0
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_NUMBERS = ("no object", "one object", "two objects", "three objects", "four objects")


@dataclass(frozen=True)
class Seen:
    """A thing in a picture; None is what cannot be told. `fit` is the overlap with the best shape, in [0, 1]."""

    shape: Shape | None
    colour: Colour | None
    size: Size | None
    x: float
    y: float
    radius: float
    fit: float

    def __str__(self) -> str:
        words = (self.size, self.colour or "unclear colour", self.shape or "unclear shape")
        return f"{' '.join(word for word in words if word)} at ({self.x:.0f}, {self.y:.0f})"


@dataclass(frozen=True)
class Verdict:
    """`failed` says in words the first fact that the picture does not show; it is empty where `correct`."""

    category: Category
    correct: bool
    failed: str
    seen: tuple[Seen, ...]


@dataclass(frozen=True)
class Report:
    """The share of right pictures per category; `overall` is the mean of the categories, as in GenEval. `resampled` is
    the same on every resample, for differences of reports on the same captions and seeds."""

    categories: dict[Category, Spread]
    resampled: Resampled
    num_images: int
    verdicts: tuple[Verdict, ...]

    @property
    def overall(self) -> Spread:
        return self.resampled.spread().within(*SHARE)

    def __str__(self) -> str:
        shares = ", ".join(f"{category} {spread}" for category, spread in self.categories.items())
        return f"overall {self.overall} of {self.num_images} images: {shares}"


# --- verdicts -----------------------------------------------------------------------------------------------------


def score(images: Array, captions: Sequence[str], num_resamples: int = 200, seed: int = 0) -> Report:
    """GenEval's score of images [N, 3, 48, 48] in [-1, 1], or uint8, for N captions, with 95 % bootstrap intervals.

    Images are drawn again within each category, unless one has fewer than 10 of them. Raises DisaError for other
    shapes and values, for no image, and for a caption outside of the grammar.
    """
    if len(images) != len(captions) or not captions:
        raise DisaError(f"score() needs a caption for each image, found {len(images)} and {len(captions)}.")
    verdicts = tuple(judge(image, caption) for image, caption in zip(images, captions, strict=True))
    correct, labels, strata = _marks(verdicts)
    spreads = {
        CATEGORIES[label]: bootstrap(
            lambda right: right.mean().item(), correct[labels == label], num_resamples=num_resamples, seed=seed
        ).within(*SHARE)
        for label in labels.unique().tolist()
    }
    overall = resample(_mean_of_categories, correct, labels, strata=strata, num_resamples=num_resamples, seed=seed)
    return Report(spreads, overall, len(captions), verdicts)


def _marks(verdicts: Sequence[Verdict]) -> tuple[Tensor, Tensor, Tensor | None]:
    """1 for each right picture, the index of its category, and the same as strata if none is too small."""
    correct = torch.tensor([verdict.correct for verdict in verdicts]).double()
    labels = torch.tensor([CATEGORIES.index(verdict.category) for verdict in verdicts])
    return correct, labels, labels if labels.unique(return_counts=True)[1].min() >= SMALLEST_STRATUM else None


def _mean_of_categories(right: Tensor, labels: Tensor) -> float:
    shares = torch.bincount(labels, weights=right) / torch.bincount(labels)
    return shares.nanmean().item()


def judge(image: Array, caption: str) -> Verdict:
    """Whether one image [3, 48, 48] shows all that the caption says, and nothing else.

    Raises DisaError for other shapes and values, and for a caption outside of the grammar.
    """
    wanted = parse(caption)
    seen = read(image)
    failed = _first_failure(wanted, seen)
    return Verdict(wanted.category, not failed, failed, tuple(seen))


def _first_failure(wanted: Facts, seen: list[Seen]) -> str:
    kinds = [group for group in wanted.groups for _ in range(group.count)]
    if len(seen) != len(kinds):
        found = _NUMBERS[len(seen)] if len(seen) < len(_NUMBERS) else f"{len(seen)} objects"
        return f"expected {_NUMBERS[len(kinds)]}, found {found}" + _listed(seen)
    # Which is which is open: the assignment that gets farthest speaks for the picture.
    attempts = [list(_failures(wanted, kinds, order)) for order in permutations(seen)]
    best = min(attempts, key=len)
    return best[0] if best else ""


def _failures(wanted: Facts, kinds: Sequence[Group], seen: Sequence[Seen]) -> Iterator[str]:
    for kind, thing in zip(kinds, seen, strict=True):
        for name in ("shape", "colour", "size"):
            asked, found = getattr(kind, name), getattr(thing, name)
            if asked is not None and asked != found:
                yield f"expected the {name} {asked}, found {found or f'an unclear {name}'}: {thing}"
    if wanted.relation:
        relation = seen_from(*seen)
        if relation != wanted.relation:
            first, second = (describe(Facts((kind,))) for kind in kinds)
            yield f"expected {first} {wanted.relation} {second}, found it {relation or 'neither beside nor above'}"


def seen_from(first: Seen, second: Seen) -> Relation | None:
    """Where the first is, seen from the second; None where they are too close, or as far off one way as the other."""
    dx, dy = first.x - second.x, first.y - second.y
    near, far = sorted((abs(dx), abs(dy)))
    return relation_of(dx, dy) if far >= _SMALLEST_DISTANCE and near <= 0.85 * far else None


def _listed(seen: Sequence[Seen]) -> str:
    return f": {'; '.join(map(str, seen))}" if seen else ""


# --- reading ------------------------------------------------------------------------------------------------------


def read(image: Array) -> list[Seen]:
    """What an image [3, 48, 48] in [-1, 1], or uint8, shows, from left to right. No thing at all is an empty list.

    Where there is no calm, uncoloured background, the whole picture is one unclear thing. Raises DisaError for other
    shapes, for values outside [-1, 1] (clamp them first: a viewer would) and for NaN.
    """
    pixels = _pixels(image)
    lab = _lab(ndimage.gaussian_filter(pixels, (0.6, 0.6, 0)))
    calm = _calm(lab)
    if calm is None:
        middle = IMAGE_SIZE / 2
        return [Seen(None, None, None, middle, middle, middle, 0.0)]
    background, distance = _plane(pixels, calm), _length(lab - _plane(lab, calm))
    seen, explained = [], np.zeros(distance.shape, dtype=bool)
    for mask, core in _things(pixels, background, _classes(lab, distance)):
        seen.append(_seen_thing(mask, core, pixels, background))
        explained |= mask
    near = _grown(_grown(explained))
    seen.extend(_unclear(mask) for mask in _parts((distance > _STANDS_OUT) & ~near))
    return sorted(seen, key=lambda thing: (thing.x, thing.y))


def _pixels(image: Array) -> np.ndarray:
    """[H, W, 3] in [0, 1]."""
    values = torch.as_tensor(image).detach().cpu()
    if values.shape != (3, IMAGE_SIZE, IMAGE_SIZE):
        raise DisaError(f"an image of a scene must be [3, {IMAGE_SIZE}, {IMAGE_SIZE}], found {list(values.shape)}.")
    values = values.float() / 255 if values.dtype == torch.uint8 else (values.float() + 1) / 2
    # Written so that NaN fails too. Half-precision pipelines end a little outside of the range.
    if not ((values - 0.5).abs() <= 0.5 + 1e-3).all():
        raise DisaError("an image of a scene must be numbers in [-1, 1] or uint8, found others; clamp it first.")
    return values.clamp(0, 1).permute(1, 2, 0).numpy()


def _calm(lab: np.ndarray) -> np.ndarray | None:
    """[H, W] the pixels of the background, a plane in each channel; None where there is none, or a coloured one."""
    border = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    calm = _length(lab - np.median(border, axis=0)) < 1.5 * _STANDS_OUT
    for _ in range(3):
        if calm.mean() < _SMALLEST_BACKGROUND:
            return None
        plane = _plane(lab, calm)
        distance = _length(lab - plane)
        if distance[calm].mean() > _LARGEST_NOISE or _length(plane[..., 1:]).max() > _LARGEST_TINT:
            return None
        calm = distance < 0.75 * _STANDS_OUT
    return calm if calm.mean() >= _SMALLEST_BACKGROUND else None


def _plane(values: np.ndarray, where: np.ndarray) -> np.ndarray:
    """The plane nearest to values [H, W, channels] at some pixels, by least squares."""
    terms = _terms()
    known = (terms * where.reshape(-1, 1)).T
    return (terms @ np.linalg.solve(known @ terms, known @ values.reshape(-1, 3))).reshape(values.shape)


@cache
def _terms() -> np.ndarray:
    """[H W, 3] one, x and y."""
    position = np.linspace(-1, 1, IMAGE_SIZE, dtype=np.float32)
    return np.stack(np.broadcast_arrays(np.float32(1), position, position[:, None]), axis=-1).reshape(-1, 3)


def _classes(lab: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """[H, W] the index of each pixel's nearest colour, or -1 where the background is nearer."""
    squares = [np.einsum("...c,...c", lab - colour, lab - colour) for colour in _palette()]
    return np.argmin([distance**2, *squares], axis=0) - 1


def _things(pixels: np.ndarray, background: np.ndarray, classes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """What is of one colour and connected: its mask and its core [H, W], the pixels away from mixed edges."""
    for index in range(len(COLOURS)):
        of_colour = classes == index
        if of_colour.sum() < _SMALLEST_THING:
            continue
        cores = ~_grown(~of_colour)
        if cores.any():
            covered, strange = _cover(pixels, background, np.median(pixels[cores], axis=0))
            masks = _parts((covered > 0.5) & (strange < _OFF_COLOUR))
            yield from ((mask, mask & cores) for mask in masks if (mask & cores).any())


def _parts(mask: np.ndarray) -> Iterator[np.ndarray]:
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(mask))
    for index in range(1, labels.max() + 1):
        if (part := labels == index).sum() >= _SMALLEST_THING:
            yield part


def _grown(mask: np.ndarray) -> np.ndarray:
    """The mask and its eight neighbours."""
    padded = np.pad(mask, 1)
    rows = padded[:-2] | padded[1:-1] | padded[2:]
    return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]


def _cover(pixels: np.ndarray, background: np.ndarray, colour: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far each pixel lies on the way from the background to a colour, 0 to 1, and how far off that way."""
    way, gone = colour - background, pixels - background
    share = np.einsum("...c,...c", way, gone) / np.einsum("...c,...c", way, way).clip(1e-6)
    return share, _length(gone - share[..., None] * way)


def _seen_thing(mask: np.ndarray, core: np.ndarray, pixels: np.ndarray, background: np.ndarray) -> Seen:
    colour = np.median(pixels[core], axis=0)
    covered, strange = _cover(pixels, background, colour)
    around = _grown(mask)
    blot = around & (strange >= _OFF_COLOUR)
    soft = np.where(around & ~blot & (covered > _FAINT), covered.clip(0, 1), 0)
    x, y, radius = _measure(soft)
    shape, fit = _shape(soft, x, y, radius)
    of_one_colour = blot.sum() <= _LARGEST_BLOT * mask.sum()
    return Seen(shape, _colour(_lab(colour)) if of_one_colour else None, _size(radius), x, y, radius, fit)


def _unclear(mask: np.ndarray) -> Seen:
    x, y, radius = _measure(mask.astype(float))
    return Seen(None, None, None, x, y, radius, 0.0)


def _measure(soft: np.ndarray) -> tuple[float, float, float]:
    """Centroid and radius of the circle with the same area."""
    area = soft.sum()
    centres = np.arange(IMAGE_SIZE) + 0.5
    return (
        float(soft.sum(axis=0) @ centres / area),
        float(soft.sum(axis=1) @ centres / area),
        float((area / np.pi) ** 0.5),
    )


def _shape(soft: np.ndarray, x: float, y: float, radius: float) -> tuple[Shape | None, float]:
    """The shape whose coverage overlaps most, None where that is unclear, and the overlap."""
    rows, columns = (slice(max(inside.min() - 3, 0), inside.max() + 4) for inside in soft.nonzero())
    soft = soft[rows, columns]
    templates = [coverage(shape, x, y, radius)[rows, columns] for shape in SHAPES]
    fits = [_overlap(soft, template) for template in templates]
    # A decoder's blur is no fault of a shape; it hardly changes which two fit best.
    second, best = sorted(range(len(SHAPES)), key=fits.__getitem__)[-2:]
    for i in (second, best):
        fits[i] = max(fits[i], _overlap(soft, ndimage.gaussian_filter(templates[i], 0.7)))
    second, best = sorted((second, best), key=fits.__getitem__)
    clear = fits[best] >= _FIT and fits[best] - fits[second] >= _FIT_MARGIN
    return SHAPES[best] if clear else None, float(fits[best])


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two coverages."""
    common = np.minimum(a, b).sum()
    return float(common / (a.sum() + b.sum() - common))


def _colour(lab: np.ndarray) -> Colour | None:
    distances = _length(_palette() - lab)
    nearest, second = np.sort(distances)[:2]
    clear = nearest <= _FARTHEST_COLOUR and nearest <= _CLEARLY_NEARER * second
    return COLOURS[int(distances.argmin())] if clear else None


def _size(radius: float) -> Size | None:
    beyond = radius - (LARGEST_SMALL + SMALLEST_LARGE) / 2
    return None if abs(beyond) < _SIZE_MARGIN else "small" if beyond < 0 else "large"


# --- colour -------------------------------------------------------------------------------------------------------


def _length(vectors: np.ndarray) -> np.ndarray:
    return np.sqrt(np.einsum("...c,...c", vectors, vectors))


def _lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB of sRGB in [0, 1], last dimension 3, white point D65 (IEC 61966-2-1)."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    ratio = linear @ (_TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)).T
    f = np.where(ratio > 216 / 24389, np.cbrt(ratio), (ratio * 24389 / 27 + 16) / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@cache
def _palette() -> np.ndarray:
    """[colours, 3] in CIELAB."""
    return _lab(np.array(list(PALETTE.values())) / 255)
