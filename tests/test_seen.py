"""Features of what the judge sees in a picture."""

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.evaluate.spaces import EFFICIENTNET, load_space, space_at_hand
from disa.tiny.captions import RELATIONS
from disa.tiny.scenes import IMAGE_SIZE, Background, Scene, SceneObject, draw
from disa.tiny.seen import KINDS, NUM_FEATURES, PLACED, SIZES, features

LIGHT = Background((240, 238, 235), (220, 224, 228), 1.0)
RED, BLUE = SceneObject("circle", "red", 12, 24, 8), SceneObject("square", "blue", 36, 24, 8)


def parts_of(*things: SceneObject) -> list[Tensor]:
    """Kinds, sizes, the relation and the mean place of a picture of them."""
    picture = torch.from_numpy(np.ascontiguousarray(draw(Scene(things, LIGHT)).transpose(2, 0, 1)))
    (found,) = features(picture[None])
    assert found.shape == (NUM_FEATURES,)
    return list(found.split([len(KINDS), len(SIZES), len(RELATIONS), 3]))


def test_what_is_seen_is_counted() -> None:
    kinds, sizes, relation, place = parts_of(RED, BLUE)
    assert {KINDS[i] for i in kinds.nonzero().flatten()} == {("circle", "red"), ("square", "blue")}
    assert kinds.sum() == sizes.sum() == 2
    assert RELATIONS[int(relation.argmax())] == "left of"
    assert place.tolist() == pytest.approx([0, 0, PLACED * 8 / 24], abs=0.01)


def test_one_thing_has_a_place_and_no_relation() -> None:
    kinds, sizes, relation, place = parts_of(RED)
    assert (kinds.sum(), sizes.sum(), relation.sum()) == (1, 1, 0)
    assert place[0].item() == pytest.approx(-PLACED / 2, abs=0.01)


def test_an_empty_picture_has_nothing() -> None:
    assert not torch.cat(parts_of()).any()


def test_the_space_is_at_hand_for_its_images_alone() -> None:
    side = (IMAGE_SIZE, IMAGE_SIZE)
    space = load_space(space_at_hand(side), torch.device("cpu"))
    assert (space.name, space.size) == ("shapes-judge", side)
    assert space.features(torch.zeros(2, 3, *side, dtype=torch.uint8)).shape == (2, NUM_FEATURES)
    assert space_at_hand((64, 64)) == EFFICIENTNET
