"""Scenes are what their captions say, the grammar reads back all it writes, and what is held out stays held out."""

from collections import Counter
from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from disa.errors import DisaError
from disa.tiny import scenes
from disa.tiny.captions import (
    CATEGORIES,
    SHAPES,
    VOCABULARY,
    Category,
    Facts,
    Group,
    Shape,
    allows,
    describe,
    parse,
    phrase,
)
from disa.tiny.held_out import combinations_held_out, held_out
from disa.tiny.scenes import (
    GAP,
    IMAGE_SIZE,
    PALETTE,
    Background,
    Scene,
    SceneObject,
    compose,
    coverage,
    draw,
    facts,
    held_out_captions,
    sample_scene,
    scene_at,
)

NUM_SCENES = 3000
TRAIN = [scene_at(index) for index in range(NUM_SCENES)]
TEST = [scene_at(index, "test") for index in range(NUM_SCENES // 3)]
PAPER = Background((240, 240, 240), (240, 240, 240), 0.0)


def true_of(stated: Facts, complete: Facts) -> bool:
    """Whether all that is stated is among the complete facts; written out apart from the module's own logic."""
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above", None: None}

    def agree(groups: tuple[Group, ...], relation: str | None) -> bool:
        pairs = zip(stated.groups, groups, strict=True)
        return stated.relation in (None, relation) and all(
            a.count == b.count and a.shape == b.shape and a.colour in (None, b.colour) and a.size in (None, b.size)
            for a, b in pairs
        )

    if len(stated.groups) != len(complete.groups):
        return False
    orders = [(complete.groups, complete.relation), (complete.groups[::-1], opposite[complete.relation])]
    return any(agree(groups, relation) for groups, relation in orders)


def test_what_a_caption_allows():
    stated = [parse(caption) for _, caption in TRAIN[:150]]
    complete = [facts(scene) for scene, _ in TRAIN[:150]]
    found = [[allows(one, other) for other in complete] for one in stated]
    assert found == [[true_of(one, other) for other in complete] for one in stated]
    assert all(found[i][i] for i in range(len(stated)))
    assert 150 < sum(map(sum, found)) < 150 * 150 / 4


# --- scenes -------------------------------------------------------------------------------------------------------


def test_a_scene_is_a_function_of_seed_split_and_index():
    assert scene_at(7) == TRAIN[7]
    assert len({caption + repr(scene) for scene, caption in TRAIN}) == NUM_SCENES
    assert scene_at(7, seed=1) != TRAIN[7] != scene_at(7, "test")
    np.testing.assert_array_equal(draw(TRAIN[7][0]), draw(scene_at(7)[0]))


def test_no_objects_touch_and_none_leaves_the_picture():
    for scene, _ in TRAIN + TEST:
        boxes = [thing.box for thing in scene.objects]
        assert all(min(box) >= 0 and max(box) <= IMAGE_SIZE for box in boxes)
        for a, b in combinations(boxes, 2):
            assert max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]) > GAP - 1e-6


def test_captions_are_true_of_their_scenes():
    assert all(true_of(parse(caption), facts(scene)) for scene, caption in TRAIN + TEST)


def test_the_categories_are_balanced_and_the_wordings_many():
    categories = Counter(parse(caption).category for _, caption in TRAIN)
    assert set(categories) == set(CATEGORIES)
    assert all(0.8 < 6 * number / NUM_SCENES < 1.2 for number in categories.values())
    assert len({caption for _, caption in TRAIN}) > NUM_SCENES / 2


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_category_can_be_asked_for(category: Category):
    random = np.random.default_rng(0)
    assert {parse(sample_scene(random, category=category)[1]).category for _ in range(50)} == {category}


def test_relations_are_clear():
    for scene, _ in TRAIN:
        if facts(scene).relation:
            (a, b), _ = scene.objects, scene.background
            near, far = sorted((abs(a.x - b.x), abs(a.y - b.y)))
            assert far >= 2 * near
            assert far > 8


@pytest.mark.parametrize(
    "caption", ["four small stars", "four large stars", "two large triangles", "a large star above a large triangle"]
)
def test_compose_draws_any_caption(caption: str):
    random = np.random.default_rng(0)
    assert all(true_of(parse(caption), facts(compose(parse(caption), random))) for _ in range(50))


def test_compose_says_where_it_finds_no_room(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(scenes, "GAP", 3.0)
    with pytest.raises(DisaError, match="no room for four large stars"):
        compose(parse("four large stars"), np.random.default_rng(0))


def test_what_tokens_show_recurs():
    for scene, _ in TRAIN + TEST:
        for thing in scene.objects:
            cell, radius = (16, 5.1) if thing.size == "small" else (24, 7.5)
            assert thing.x % cell == thing.y % cell == cell / 2
            assert thing.radius == radius


@pytest.mark.parametrize("arguments", [(0, "valid"), (-1,), (0, "train", -1)])
def test_scene_at_refuses_what_there_is_not(arguments: tuple):
    with pytest.raises(DisaError, match='splits "train" and "test"'):
        scene_at(*arguments)


# --- what is held out ---------------------------------------------------------------------------------------------


def test_training_never_shows_what_is_held_out():
    assert all(held_out(facts(scene)) == set() for scene, _ in TRAIN)


def test_each_test_scene_shows_one_held_out_kind_and_names_it():
    for scene, caption in TEST:
        stated = parse(caption)
        expected = set() if stated.category == "single object" else {stated.category}
        assert held_out(stated) == held_out(facts(scene)) == expected


def test_training_shows_every_word_and_every_pair_that_is_not_held_out():
    shown = Counter((thing.colour, thing.shape) for scene, _ in TRAIN for thing in scene.objects)
    assert len(shown) == len(SHAPES) * len(PALETTE) - len(SHAPES)
    assert {word for _, caption in TRAIN for word in caption.split()} == set(VOCABULARY)


def test_held_out_captions_are_balanced_and_not_of_training():
    captions = held_out_captions(600)
    parsed = [parse(caption) for caption in captions]
    assert Counter(known.category for known in parsed) == dict.fromkeys(CATEGORIES, 100)
    assert all(group.size is None for known in parsed for group in known.groups)
    seen = {facts(scene) for scene, _ in TRAIN[:500]}
    for known in set(parsed):
        if known.category != "single object":
            assert held_out(known) == {known.category}
            assert not any(true_of(known, complete) for complete in seen)
    assert captions == held_out_captions(600) != held_out_captions(600, seed=1)
    assert held_out_captions(30) == captions[:30]


def test_what_is_held_out_is_fixed():
    held = sorted(key for key in combinations_held_out() if key.startswith(("colours", "two objects")))
    assert held == [
        "colours, cyan, triangle",
        "colours, orange, circle",
        "colours, pink, star",
        "colours, red, square",
        "colours, yellow, cross",
        "two objects, circle, triangle",
        "two objects, cross, square",
    ]


# --- words --------------------------------------------------------------------------------------------------------


def test_every_wording_is_read_back():
    random = np.random.default_rng(0)
    for scene, caption in TRAIN + TEST:
        known = facts(scene)
        assert set(caption.split()) <= set(VOCABULARY)
        for part in (known, parse(caption)):
            assert parse(describe(part)) == part
            assert parse(phrase(part, random)) == part


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A red circle.", Facts((Group("circle", "red"),))),
        ("an image of an orange star", Facts((Group("star", "orange"),))),
        ("there are two big crosses", Facts((Group("cross", None, "large", 2),))),
        ("one square", Facts((Group("square"),))),
        (
            "a small blue square above a large green triangle",
            Facts((Group("square", "blue", "small"), Group("triangle", "green", "large")), "above"),
        ),
        ("star is to the right of circle", Facts((Group("star"), Group("circle")), "right of")),
        ("red circle and blue circle", Facts((Group("circle", "red"), Group("circle", "blue")))),
    ],
)
def test_parse(caption: str, expected: Facts):
    assert parse(caption) == expected


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("a red dog", '"dog" is no word of a caption; the words are: a, '),
        ("", "expected one of circle, .* found its end"),
        ("two red circle", 'expected one of circles, .* found "circle"'),
        ("a circle red", 'expected "and" or one of left of, .* found "red"'),
        ("a circle above", "expected one of circle, .* found its end"),
        ("a circle and a square and a star", 'expected the end .* found "and a star"'),
        ("a circle and a circle", "must differ in shape or in a colour"),
        ("a red circle and a circle", "must differ in shape or in a colour"),
        ("two circles and a star", "one to four equal objects, or two single objects"),
    ],
)
def test_parse_says_what_was_expected(caption: str, message: str):
    with pytest.raises(DisaError, match=message):
        parse(caption)


def test_facts_of_a_hand_made_scene():
    things = [SceneObject("circle", "red", 10, 10 + 12 * i, 4.6) for i in range(3)]
    assert facts(Scene(tuple(things), PAPER)) == parse("three small red circles")
    with pytest.raises(DisaError, match="equal objects or two"):
        facts(Scene((*things, SceneObject("star", "red", 30, 30, 5)), PAPER))


# --- drawing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", get_args(Shape))
def test_centre_and_radius_are_those_of_the_pixels(shape: Shape):
    for radius in (4.6, 7.4, 12.0):
        covered = coverage(shape, 23.3, 24.9, radius)
        centres = np.arange(IMAGE_SIZE) + 0.5
        area = covered.sum()
        assert (area / np.pi) ** 0.5 == pytest.approx(radius, rel=0.025)
        assert covered.sum(axis=0) @ centres / area == pytest.approx(23.3, abs=0.06)
        assert covered.sum(axis=1) @ centres / area == pytest.approx(24.9, abs=0.06)


def test_a_drawing_has_the_palette_inside_and_the_background_outside():
    picture = draw(Scene((SceneObject("square", "blue", 24, 24, 10),), PAPER))
    assert picture.shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[24, 24]) == PALETTE["blue"]
    assert (picture[:12] == 240).all()


def test_backgrounds_run_from_corner_to_corner():
    picture = draw(Scene((), Background((200, 210, 220), (240, 230, 250), np.pi / 4))).astype(int)
    assert abs(picture[0, 0] - (200, 210, 220)).max() <= 1
    assert abs(picture[-1, -1] - (240, 230, 250)).max() <= 1
