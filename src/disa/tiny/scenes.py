"""Captioned scenes for a small text-to-image model: coloured shapes on a soft background.

Positions and radii are in pixels, x to the right, y downwards, (0, 0) is the picture's upper left corner. The radius
of any shape is that of the circle with its area, and its centre is its centroid: sizes compare across shapes, and a
reader of pictures finds both without knowing the shape.

Some combinations are held out (`disa.tiny.held_out`): no scene of the split "train" ever shows them, whatever its
caption says, and each scene of the split "test" shows exactly one kind of them, named by its caption. Single objects
combine nothing, so their captions occur in both splits.
"""

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal, get_args

import numpy as np
from PIL import Image, ImageDraw

from disa.errors import DisaError
from disa.tiny.captions import (
    CATEGORIES,
    COLOURS,
    LARGEST_COUNT,
    RELATIONS,
    SHAPES,
    Category,
    Colour,
    Facts,
    Group,
    Relation,
    Shape,
    Size,
    canonical,
    describe,
    phrase,
    pick,
)
from disa.tiny.held_out import held_out

Split = Literal["train", "test"]
RGB = tuple[int, int, int]

IMAGE_SIZE = 48
PALETTE: dict[Colour, RGB] = {
    "red": (217, 32, 40),
    "orange": (250, 128, 14),
    "yellow": (250, 216, 40),
    "green": (34, 160, 72),
    "cyan": (40, 200, 214),
    "blue": (44, 96, 232),
    "purple": (138, 56, 188),
    "pink": (255, 122, 190),
}

# Radii: nothing lies between small and large, so that a size can be told from the picture.
LARGEST_SMALL, SMALLEST_LARGE = 5.6, 7.4
_RADIUS: dict[Size, float] = {"small": 5.1, "large": 7.5}
# Objects lie in the middle of cells of as many whole tokens of 8 pixels: a token always shows the same part of a shape,
# and a small model needs to see less of it.
_CELL: dict[Size, int] = {"small": 16, "large": 24}
GAP = 1.0
_LARGEST_SLANT = 0.5
_SUPERSAMPLING = 8
_TRIES = 1000

# Light and dark, near grey: no colour of the palette is less than three times as saturated.
_BACKGROUNDS: tuple[RGB, ...] = (
    (247, 246, 243),
    (250, 243, 232),
    (232, 240, 248),
    (235, 245, 236),
    (248, 236, 240),
    (240, 236, 248),
    (222, 224, 228),
    (206, 205, 202),
    (33, 36, 44),
    (44, 42, 40),
    (30, 42, 46),
    (46, 38, 50),
    (62, 64, 70),
)


@dataclass(frozen=True)
class SceneObject:
    """A shape in a colour around (x, y); `radius` is that of the circle with the same area. All in pixels."""

    shape: Shape
    colour: Colour
    x: float
    y: float
    radius: float

    @property
    def size(self) -> Size:
        return "small" if self.radius <= LARGEST_SMALL else "large"

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom."""
        (left, top), (right, bottom) = _extent(self.shape)
        r = self.radius
        return self.x + r * left, self.y + r * top, self.x + r * right, self.y + r * bottom

    @property
    def cell(self) -> tuple[float, float, float, float]:
        """Left, top, right, bottom of the whole tokens around it."""
        half = _CELL[self.size] / 2
        return self.x - half, self.y - half, self.x + half, self.y + half


@dataclass(frozen=True)
class Background:
    """A linear gradient from one colour to another, in the direction `angle` (radians, clockwise from the right)."""

    start: RGB
    end: RGB
    angle: float


@dataclass(frozen=True)
class Scene:
    """What is drawn. Objects lie inside the picture, and their boxes are at least GAP pixels apart."""

    objects: tuple[SceneObject, ...]
    background: Background


# --- sampling -----------------------------------------------------------------------------------------------------


def scene_at(index: int, split: Split = "train", seed: int = 0) -> tuple[Scene, str]:
    """Scene number `index` of a split and its caption: a function of the three arguments alone.

    Raises DisaError for an unknown split and for negative numbers.
    """
    if split not in get_args(Split) or index < 0 or seed < 0:
        raise DisaError(
            f'scenes have the splits "train" and "test" and numbers from 0, found {split!r}, {index}, {seed}.'
        )
    return sample_scene(np.random.default_rng([seed, get_args(Split).index(split), index]), split)


def sample_scene(
    random: np.random.Generator, split: Split = "train", category: Category | None = None
) -> tuple[Scene, str]:
    """A scene and a caption that is true of it, of the given category or of one drawn with equal chances."""
    complete, stated = _sample_facts(random, split, category or pick(random, CATEGORIES))
    return compose(complete, random), phrase(stated, random)


def held_out_captions(count: int, seed: int = 0) -> list[str]:
    """`count` captions of the split "test", the six categories in turn, for measuring a text-to-image model.

    Single objects excepted, each names a combination that training never shows. Sizes are left open, as in GenEval.
    """
    random = np.random.default_rng([seed, len(get_args(Split))])
    captions = []
    for index in range(count):
        stated = _sample_facts(random, "test", CATEGORIES[index % len(CATEGORIES)])[1]
        open_size = replace(stated, groups=tuple(replace(group, size=None) for group in stated.groups))
        captions.append(phrase(open_size, random))
    return captions


def facts(scene: Scene) -> Facts:
    """All there is to say: with two objects, the first is the one to the left or above.

    Raises DisaError for a hand-made scene that the grammar has no words for.
    """
    objects = scene.objects
    kinds = {Group(thing.shape, thing.colour, thing.size) for thing in objects}
    if len(kinds) == 1:
        return Facts((replace(kinds.pop(), count=len(objects)),))
    if len(objects) != 2:
        raise DisaError(f"a scene has equal objects or two, found {len(objects)} of {len(kinds)} kinds.")
    first, second = objects
    groups = tuple(Group(thing.shape, thing.colour, thing.size) for thing in objects)
    return canonical(Facts(groups, relation_of(first.x - second.x, first.y - second.y)))


def relation_of(dx: float, dy: float) -> Relation:
    """Where something is, seen from something else, by the larger of the two distances; y points downwards."""
    if abs(dx) >= abs(dy):
        return "right of" if dx > 0 else "left of"
    return "below" if dy > 0 else "above"


def _sample_facts(random: np.random.Generator, split: Split, category: Category) -> tuple[Facts, Facts]:
    """All facts of a scene, and those that its caption gives."""
    wanted = set() if split == "train" or category == "single object" else {category}
    while True:
        complete = _complete_facts(random, category)
        if held_out(complete) == wanted:
            stated = _left_open(complete, category, random)
            if split == "train" or held_out(stated) == wanted:
                return complete, stated


def _complete_facts(random: np.random.Generator, category: Category) -> Facts:
    def group(count: int = 1) -> Group:
        size = "small" if count > 2 or random.random() < 0.4 else "large"
        return Group(pick(random, SHAPES), pick(random, COLOURS), size, count)

    if category in ("single object", "colours"):
        return Facts((group(),))
    if category == "counting":
        return Facts((group(pick(random, range(2, LARGEST_COUNT + 1))),))
    while True:
        first, second = group(), group()
        alike = first.shape == second.shape, first.colour == second.colour
        # Two objects of one shape need their colours to be told apart; where colours are the point, they differ.
        if not alike[0] if category == "two objects" else not alike[1]:
            return Facts((first, second), pick(random, RELATIONS))


def _left_open(complete: Facts, category: Category, random: np.random.Generator) -> Facts:
    coloured = category in ("colours", "colour attribution") or (
        category in ("counting", "position") and (_needs_colours(complete) or random.random() < 0.6)
    )
    sized = random.random() < 0.3
    groups = (
        replace(g, colour=g.colour if coloured else None, size=g.size if sized else None) for g in complete.groups
    )
    return Facts(tuple(groups), complete.relation if category == "position" else None)


def _needs_colours(stated: Facts) -> bool:
    return len(stated.groups) == 2 and stated.groups[0].shape == stated.groups[1].shape


def compose(stated: Facts, random: np.random.Generator) -> Scene:
    """A scene of which `stated` is true; what it leaves open is drawn.

    Raises DisaError where chance finds no room for it: there is some for every caption.
    """
    groups = [_filled(group, random) for group in stated.groups]
    relation = stated.relation or pick(random, RELATIONS)
    pair = len(groups) == 2
    for _ in range(_TRIES):
        objects = _related(groups[0], groups[1], relation, random) if pair else _scattered(groups[0], random)
        if objects:
            return Scene(objects, _background(random))
    raise DisaError(f"a picture of {IMAGE_SIZE} x {IMAGE_SIZE} pixels has no room for {describe(stated)}.")


def _filled(group: Group, random: np.random.Generator) -> Group:
    colour = group.colour or pick(random, COLOURS)
    size = group.size or ("small" if group.count > 2 or random.random() < 0.4 else "large")
    return replace(group, colour=colour, size=size)


def _scattered(kind: Group, random: np.random.Generator) -> tuple[SceneObject, ...] | None:
    """Equal objects anywhere, or None where chance left no room."""
    objects: list[SceneObject] = []
    for _ in range(10 * kind.count):
        thing = _anywhere(kind, random)
        if not any(_near(thing.box, other.box) for other in objects):
            objects.append(thing)
        if len(objects) == kind.count:
            return tuple(objects)
    return None


def _related(
    first: Group, second: Group, relation: Relation, random: np.random.Generator
) -> tuple[SceneObject, ...] | None:
    """Two objects, the first clearly `relation` the second, or None where chance did not place them so."""
    a, b = _anywhere(first, random), _anywhere(second, random)
    near, far = sorted((abs(a.x - b.x), abs(a.y - b.y)))
    placed = not _near(a.box, b.box) and near <= _LARGEST_SLANT * far
    return (a, b) if placed and relation_of(a.x - b.x, a.y - b.y) == relation else None


def _anywhere(kind: Group, random: np.random.Generator) -> SceneObject:
    size = kind.size or "large"
    cell = _CELL[size]
    x, y = (cell * (pick(random, range(IMAGE_SIZE // cell)) + 0.5) for _ in range(2))
    return SceneObject(kind.shape, kind.colour or COLOURS[0], x, y, _RADIUS[size])


def _near(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def _background(random: np.random.Generator) -> Background:
    tone = pick(random, _BACKGROUNDS)
    dark = max(tone) < 128
    shift = random.random() * (26 if dark else -30)
    end = tuple(round(channel + shift) for channel in tone)
    return Background(tone, (end[0], end[1], end[2]), random.random() * 2 * math.pi)


# --- drawing ------------------------------------------------------------------------------------------------------


def draw(scene: Scene) -> np.ndarray:
    """The picture, uint8 [48, 48, 3], with smooth edges."""
    picture = _gradient(scene.background)
    for thing in scene.objects:
        coverage, rows, columns = _coverage_in_box(thing.shape, thing.x, thing.y, thing.radius)
        region = picture[rows, columns]
        region += coverage[..., None] * (np.asarray(PALETTE[thing.colour], dtype=np.float32) - region)
    return (picture + 0.5).astype(np.uint8)


def coverage(shape: Shape, x: float, y: float, radius: float) -> np.ndarray:
    """How much of each pixel a shape covers, float32 [48, 48] in [0, 1]."""
    whole = np.zeros((IMAGE_SIZE, IMAGE_SIZE), dtype=np.float32)
    part, rows, columns = _coverage_in_box(shape, x, y, radius)
    whole[rows, columns] = part
    return whole


def _coverage_in_box(shape: Shape, x: float, y: float, radius: float) -> tuple[np.ndarray, slice, slice]:
    (left, top), (right, bottom) = _extent(shape)
    x0, x1 = _pixels(x + radius * left, x + radius * right)
    y0, y1 = _pixels(y + radius * top, y + radius * bottom)
    if x0 >= x1 or y0 >= y1:
        return np.zeros((0, 0), dtype=np.float32), slice(0, 0), slice(0, 0)
    fine = Image.new("L", ((x1 - x0) * _SUPERSAMPLING, (y1 - y0) * _SUPERSAMPLING))
    points = (_outline(shape) * radius + (x - x0, y - y0)) * _SUPERSAMPLING
    ImageDraw.Draw(fine).polygon(points.ravel().tolist(), fill=255)
    part = np.asarray(fine.reduce(_SUPERSAMPLING), dtype=np.float32) / 255
    return part, slice(y0, y1), slice(x0, x1)


def _pixels(low: float, high: float) -> tuple[int, int]:
    return max(math.floor(low), 0), min(math.ceil(high), IMAGE_SIZE)


def _gradient(background: Background) -> np.ndarray:
    start, end = (np.asarray(tone, dtype=np.float32) for tone in (background.start, background.end))
    position = (np.arange(IMAGE_SIZE, dtype=np.float32) + 0.5) / IMAGE_SIZE - 0.5
    slope_x, slope_y = math.cos(background.angle), math.sin(background.angle)
    # At the corners the ends of the gradient, whatever its direction.
    along = (position * slope_x + position[:, None] * slope_y) / (abs(slope_x) + abs(slope_y)) + 0.5
    return start + along[..., None] * (end - start)


@cache
def _outline(shape: Shape) -> np.ndarray:
    """The corners [points, 2] of a shape with its centroid at (0, 0) and the area of the unit circle."""
    if shape == "circle":
        points = _ring(64)
    elif shape == "square":
        points = _ring(4, turn=math.pi / 4)
    elif shape == "triangle":
        points = _ring(3)
    elif shape == "star":
        points = _ring(10) * np.where(np.arange(10) % 2, 0.45, 1)[:, None]
    else:
        quarter = np.array([[-0.36, -1], [0.36, -1], [0.36, -0.36]])
        turns = [np.array([[c, s], [-s, c]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
        points = np.concatenate([quarter @ turn for turn in turns])
    x, y = points.T
    area = abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2
    return points * math.sqrt(math.pi / area)


def _ring(num_points: int, turn: float = 0.0) -> np.ndarray:
    angles = np.arange(num_points) * (2 * math.pi / num_points) - math.pi / 2 + turn
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


@cache
def _extent(shape: Shape) -> tuple[tuple[float, float], tuple[float, float]]:
    """(left, top), (right, bottom) of the outline."""
    points = _outline(shape)
    (left, top), (right, bottom) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return (left, top), (right, bottom)
