"""The judge reads what was drawn, also through blur and noise, and nothing that is not there passes."""

from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from disa.errors import DisaError
from disa.tiny.captions import CATEGORIES, COLOURS, SHAPES, Colour, Facts, Group, Shape, describe
from disa.tiny.judge import Seen, judge, read, score
from disa.tiny.scenes import IMAGE_SIZE, PALETTE, Background, Scene, SceneObject, coverage, draw, facts, scene_at

LIGHT, DARK = Background((240, 238, 235), (220, 224, 228), 1.0), Background((33, 36, 44), (52, 54, 62), 2.0)
BACKGROUNDS = pytest.mark.parametrize("background", [LIGHT, DARK], ids=["light", "dark"])


def picture(*things: SceneObject, background: Background = LIGHT) -> np.ndarray:
    return draw(Scene(things, background)).transpose(2, 0, 1)


def painted(cover: np.ndarray, colour: tuple[float, ...], background: Background) -> np.ndarray:
    """A picture with any coverage [48, 48] in any colour."""
    empty = draw(Scene((), background)).astype(float)
    return (empty + cover[..., None] * (np.array(colour) - empty)).round().astype(np.uint8).transpose(2, 0, 1)


def degraded(image: np.ndarray, random: np.random.Generator, sigma: float = 0.6, noise: float = 0.03) -> np.ndarray:
    """An image in [-1, 1], blurred, with noise whose `noise` is a share of the range from black to white."""
    blurred = gaussian_filter(image / 255, (0, sigma, sigma)) + noise * random.standard_normal(image.shape)
    return blurred.clip(0, 1) * 2 - 1


def right(image: np.ndarray, caption: str) -> bool:
    return judge(image, caption).correct


RED = SceneObject("circle", "red", 12, 24, 8)
BLUE = SceneObject("square", "blue", 36, 24, 8)


# --- what is there is found ---------------------------------------------------------------------------------------


def test_drawn_scenes_are_right_in_every_category():
    correct, complete = defaultdict(list), []
    for index in range(1020):
        scene, caption = scene_at(index // 2, "test" if index % 2 else "train", seed=100)
        verdict = judge(draw(scene).transpose(2, 0, 1), caption)
        correct[verdict.category].append(verdict.correct)
        complete.append(
            sorted((thing.shape, thing.colour, thing.size) for thing in scene.objects)
            == sorted((str(thing.shape), str(thing.colour), str(thing.size)) for thing in verdict.seen)
        )
    assert set(correct) == set(CATEGORIES)
    assert min(np.mean(values) for values in correct.values()) >= 0.99
    assert np.mean(complete) >= 0.99


def test_blur_and_noise_cost_little():
    random = np.random.default_rng(0)
    scenes = [scene_at(index, seed=200) for index in range(240)]
    images = [degraded(draw(scene).transpose(2, 0, 1), random) for scene, _ in scenes]
    report = score(np.stack(images), [caption for _, caption in scenes])
    assert min(spread.value for spread in report.categories.values()) >= 0.97


def test_positions_and_radii_are_those_of_the_scene():
    for seen, thing in zip(read(picture(RED, BLUE)), (RED, BLUE), strict=True):
        assert (seen.x, seen.y) == pytest.approx((thing.x, thing.y), abs=0.2)
        assert seen.radius == pytest.approx(thing.radius, rel=0.03)
        assert seen.fit > 0.9


def test_all_facts_of_a_scene_may_be_asked():
    for index in range(30):
        scene, _ = scene_at(index, seed=300)
        assert right(draw(scene).transpose(2, 0, 1), describe(facts(scene)))


@BACKGROUNDS
@pytest.mark.parametrize("colour", COLOURS)
def test_slightly_wrong_colours_are_still_colours(colour: Colour, background: Background):
    cover = coverage("circle", 24, 24, 8)
    for shift in ((12, -8, 0), (-12, 8, 8), (0, 10, -12)):
        shifted = tuple(np.clip(np.add(PALETTE[colour], shift), 0, 255))
        assert [thing.colour for thing in read(painted(cover, shifted, background))] == [colour]


def test_reading_takes_floats_bytes_numpy_and_torch():
    image = picture(RED, BLUE)
    floats = torch.from_numpy(image.astype(np.float32) / 127.5 - 1)
    assert [str(thing) for thing in read(floats)] == [str(thing) for thing in read(image)]
    assert [str(thing) for thing in read(image)] == ["large red circle at (12, 24)", "large blue square at (36, 24)"]
    assert right(floats.half().numpy(), "a red circle left of a blue square")


# --- what is not there is not -------------------------------------------------------------------------------------


def test_an_empty_picture_shows_nothing():
    assert read(picture()) == []
    verdict = judge(picture(), "a red circle")
    assert not verdict.correct
    assert verdict.failed == "expected one object, found no object"
    assert verdict.category == "colours"


def test_noise_shows_nothing_clear():
    random = np.random.default_rng(0)
    for sigma in (0, 1, 3):
        for _ in range(8):
            image = gaussian_filter(random.standard_normal((3, IMAGE_SIZE, IMAGE_SIZE)), (0, sigma, sigma))
            image = (image / image.std()).clip(-1, 1)
            assert not any(right(image, f"a {shape}") for shape in SHAPES)


def test_a_coloured_background_is_unclear():
    image = painted(coverage("square", 24, 24, 8), PALETTE["blue"], Background((217, 32, 40), (217, 32, 40), 0))
    assert [(thing.shape, thing.colour) for thing in read(image)] == [(None, None)]


@pytest.mark.parametrize(
    ("caption", "failed"),
    [
        ("a green circle and a blue square", "expected the colour green, found red: large red circle"),
        ("a red star and a blue square", "expected the shape star, found circle: large red circle"),
        ("a small red circle and a blue square", "expected the size small, found large"),
        ("a blue circle and a red square", "expected the "),
        ("a red circle", "expected one object, found two objects: large red circle"),
        ("three red circles", "expected three objects, found two objects"),
        ("two circles", "expected the shape circle, found square"),
        ("a red circle right of a blue square", "expected a red circle right of a blue square, found it left of"),
        ("a circle above a square", "expected a circle above a square, found it left of"),
        ("a square left of a circle", "expected a square left of a circle, found it right of"),
    ],
)
def test_a_false_caption_is_told_what_is_wrong(caption: str, failed: str):
    assert right(picture(RED, BLUE), "a red circle left of a blue square")
    verdict = judge(picture(RED, BLUE), caption)
    assert not verdict.correct
    assert verdict.failed.startswith(failed)


def test_no_false_colour_shape_or_count_is_ever_right():
    for index in range(24):
        scene, _ = scene_at(index, seed=400)
        thing, image = scene.objects[0], draw(scene).transpose(2, 0, 1)
        if len({(other.shape, other.colour) for other in scene.objects}) == 1:
            true = Group(thing.shape, thing.colour, None, len(scene.objects))
            others = [replace(true, colour=colour) for colour in COLOURS if colour != thing.colour]
            others += [replace(true, shape=shape) for shape in SHAPES if shape != thing.shape]
            others += [replace(true, count=count) for count in range(1, 5) if count != true.count]
            assert right(image, describe(Facts((true,))))
            assert not any(right(image, describe(Facts((other,)))) for other in others)


def test_diagonal_objects_have_no_relation():
    image = picture(SceneObject("circle", "red", 12, 12, 8), SceneObject("square", "blue", 36, 35, 8))
    relations = ("left of", "right of", "above", "below")
    assert not any(right(image, f"a circle {relation} a square") for relation in relations)
    assert right(image, "a circle and a square")
    assert "neither beside nor above" in judge(image, "a circle left of a square").failed


@BACKGROUNDS
@pytest.mark.parametrize("shape", SHAPES)
def test_part_of_a_shape_is_no_shape(shape: Shape, background: Background):
    first, second = slice(0, 24), slice(24, IMAGE_SIZE)
    every = slice(None)
    # The upper half of a triangle is left out: it is a triangle.
    missing = [(every, first), (every, second), (first, every), (second, second)]
    missing += [] if shape == "triangle" else [(second, every)]
    for radius in (5.2, 8.0, 12.0):
        whole = coverage(shape, 24, 24, radius)
        assert right(painted(whole, PALETTE["green"], background), f"a green {shape}")
        for rows, columns in missing:
            part = whole.copy()
            part[rows, columns] = 0
            assert not right(painted(part, PALETTE["green"], background), f"a {shape}")
        hollow = whole - np.minimum(whole, coverage(shape, 24, 24, 0.6 * radius))
        assert not right(painted(hollow, PALETTE["green"], background), f"a {shape}")


@BACKGROUNDS
def test_merged_objects_are_not_two(background: Background):
    for distance in (6, 9, 12, 15):
        both = np.maximum(coverage("circle", 16, 24, 8), coverage("circle", 16 + distance, 24, 8))
        image = painted(both, PALETTE["red"], background)
        assert not right(image, "two red circles")
        assert distance == 6 or not right(image, "a red circle")


def test_an_overlapping_object_spoils_the_one_below():
    for x in (16, 20, 22):
        image = picture(RED, SceneObject("square", "blue", x, 24, 8))
        assert not right(image, "a red circle left of a blue square")
        assert not right(image, "a blue square")


@BACKGROUNDS
@pytest.mark.parametrize("colour", COLOURS)
def test_a_colour_between_two_is_neither(colour: Colour, background: Background):
    cover = coverage("square", 24, 24, 9)
    for other in COLOURS:
        if other != colour:
            between = tuple(np.add(PALETTE[colour], PALETTE[other]) / 2)
            assert not right(painted(cover, between, background), f"a {colour} square")


@BACKGROUNDS
def test_two_colours_in_one_shape_are_not_one(background: Background):
    for radius, edge in ((5.2, 24), (5.2, 27), (9.0, 24), (9.0, 28)):
        image = painted(coverage("circle", 24, 24, radius), PALETTE["red"], background)
        image[:, :, edge:] = painted(coverage("circle", 24, 24, radius), PALETTE["blue"], background)[:, :, edge:]
        assert not right(image, "a red circle")
        assert not right(image, "a blue circle")


@pytest.mark.parametrize("colour", [(128, 128, 128), (130, 80, 40), (10, 10, 10), (150, 20, 120)])
def test_a_colour_off_the_palette_is_none(colour: tuple[int, ...]):
    image = painted(coverage("circle", 24, 24, 9), colour, LIGHT)
    assert not any(right(image, f"a {name} circle") for name in COLOURS)


def test_a_smudge_counts_as_an_object():
    image = picture(RED).copy()
    image[:, 40:44, 38:42] = 120
    assert judge(image, "a red circle").failed.startswith("expected one object, found two objects")
    assert read(image)[1].shape is None


def test_a_size_between_small_and_large_is_neither():
    image = picture(SceneObject("circle", "red", 24, 24, 6.5))
    assert right(image, "a red circle")
    assert not right(image, "a small red circle")
    assert not right(image, "a large red circle")


# --- scores -------------------------------------------------------------------------------------------------------


def test_the_overall_score_is_the_mean_of_the_categories():
    single, pair = picture(RED), picture(RED, BLUE)
    images = [single] * 30 + [pair] * 10
    captions = ["a red circle"] * 20 + ["a red square"] * 10 + ["a circle left of a square"] * 10
    report = score(np.stack(images), captions)
    assert report.categories["colours"].value == pytest.approx(2 / 3)
    assert report.categories["position"].value == 1
    assert report.overall.value == pytest.approx(5 / 6)
    assert report.overall.low < 5 / 6 < report.overall.high
    assert report.num_images == len(report.verdicts) == 40
    assert str(report).startswith("overall 0.8333 [")


def test_a_score_of_few_images():
    report = score(np.stack([picture(RED), picture(RED, BLUE)]), ["a circle", "a star and a square"])
    assert report.overall.value == 0.5
    assert {category: spread.value for category, spread in report.categories.items()} == {
        "single object": 1.0,
        "two objects": 0.0,
    }


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((3, 32, 32)),
        np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3)),
        np.full((3, IMAGE_SIZE, IMAGE_SIZE), 1.5),
        np.full((3, IMAGE_SIZE, IMAGE_SIZE), np.nan),
    ],
    ids=["size", "order", "range", "NaN"],
)
def test_reading_refuses_what_is_no_scene(image: np.ndarray):
    with pytest.raises(DisaError, match="image of a scene must be"):
        read(image)


def test_score_refuses_unequal_lists_and_strange_captions():
    with pytest.raises(DisaError, match="a caption for each image, found 1 and 2"):
        score(picture(RED)[None], ["a circle", "a star"])
    with pytest.raises(DisaError, match='"dog" is no word'):
        score(picture(RED)[None], ["a dog"])


def test_seen_says_what_is_unclear():
    assert str(Seen(None, None, None, 3.2, 4.0, 5.0, 0.0)) == "unclear colour unclear shape at (3, 4)"
