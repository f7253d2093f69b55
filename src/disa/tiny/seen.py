"""Features of pictures of shapes: what the judge sees in them, whatever their captions say.

Shapes: B images.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from disa.tiny.captions import COLOURS, RELATIONS, SHAPES
from disa.tiny.judge import read, seen_from
from disa.tiny.scenes import IMAGE_SIZE

KINDS = [(shape, colour) for shape in (*SHAPES, None) for colour in (*COLOURS, None)]
SIZES = ("small", "large", None)
NUM_FEATURES = len(KINDS) + len(SIZES) + len(RELATIONS) + 3
PLACED = 0.25
"""What places and radii count for beside what a caption can say: without them all pictures could look the same."""


def features(images: Tensor) -> Tensor:
    """Images uint8 [B, 3, 48, 48] -> float32 [B, NUM_FEATURES].

    How many things there are of every shape and colour, and of every size, what cannot be told among them; with two
    things, where the first is, seen from the second; and the mean place of all things, and their mean radius, as shares
    of half the picture's side times PLACED.
    """
    found = [_of(image) for image in images.cpu()]
    return torch.from_numpy(np.array(found, dtype=np.float32)).to(images.device)


def _of(image: Tensor) -> list[float]:
    things = sorted(read(image), key=lambda thing: KINDS.index((thing.shape, thing.colour)))
    kinds = [(thing.shape, thing.colour) for thing in things]
    relation = seen_from(*things) if len(things) == 2 else None
    places = np.array([(thing.x, thing.y, thing.radius) for thing in things]).reshape(-1, 3) / (IMAGE_SIZE / 2)
    middle = places.mean(axis=0) - (1, 1, 0) if things else np.zeros(3)
    return [
        *(float(kinds.count(kind)) for kind in KINDS),
        *(float(sum(thing.size == size for thing in things)) for size in SIZES),
        *(float(relation == each) for each in RELATIONS),
        *(PLACED * middle),
    ]
