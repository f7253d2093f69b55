"""`Inputs`: every way in which labels or prompts go with seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from disa.draw.inputs import Inputs
from disa.errors import DisaError


@pytest.mark.parametrize(
    ("labels", "seeds", "expected"),
    [
        (3, 7, ([3], [7])),
        ([3, 4], [7, 8], ([3, 4], [7, 8])),
        (3, [7, 8, 9], ([3, 3, 3], [7, 8, 9])),
        ([3, 4], 7, ([3, 4], [7, 7])),
        ([3], [7, 8], ([3, 3], [7, 8])),
        (range(2), [7], ([0, 1], [7, 7])),
        (None, [7, 8], (None, [7, 8])),
        (None, 7, (None, [7])),
        (np.array([3, 4]), torch.tensor([7, 8]), ([3, 4], [7, 8])),
        (np.int64(3), torch.tensor(7), ([3], [7])),
    ],
)
def test_one_to_one_and_a_single_one_is_repeated(labels: Any, seeds: Any, expected: Any) -> None:
    inputs = Inputs.paired(seeds, labels)
    assert (inputs.labels, inputs.seeds) == expected


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        ([1, 2], [1, 2, 3], "labels and seeds are paired one to one, but there are 2 and 3"),
        ([], [1], "nothing to draw: give at least one label"),
        (1, [], "nothing to draw: give at least one label and one seed"),
        (None, [], "nothing to draw: give at least one seed"),
        (1.5, 1, "labels must be a whole number, found 1.5"),
        ("cat", 1, "labels must be a whole number, found 'cat'"),
        (1, [0.5], "each of the seeds must be a whole number, found 0.5"),
    ],
)
def test_what_cannot_be_paired_is_refused(labels: Any, seeds: Any, message: str) -> None:
    with pytest.raises(DisaError, match=message):
        Inputs.paired(seeds, labels)


def test_lists_of_any_kind_are_plain_lists() -> None:
    inputs = Inputs(np.arange(2), labels=torch.tensor([3, 4]))  # pyright: ignore[reportArgumentType]
    assert inputs.numbers() == {"labels": [3, 4], "seeds": [0, 1]}
    assert {type(value) for value in [*inputs.seeds, *(inputs.labels or ())]} == {int}
    with pytest.raises(DisaError, match="labels must be"):
        Inputs([0], labels=[1.5])  # pyright: ignore[reportArgumentType]


def test_images_with_other_numbers_of_tokens_to_draw_are_not_measured_together() -> None:
    known, mask = torch.zeros(1, 2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool)
    Inputs([0, 1], known=known, mask=mask).check_alike()
    mask[0, 0] = False
    with pytest.raises(DisaError, match="equally many tokens to draw, found 2 to 4"):
        Inputs([0, 1], known=known, mask=mask).check_alike()


def test_prompts_pair_as_labels_do() -> None:
    inputs = Inputs.paired([1, 2], prompts="a cat", negative_prompt="a dog")
    assert (inputs.prompts, inputs.seeds, inputs.negative_prompt) == (["a cat", "a cat"], [1, 2], "a dog")
    with pytest.raises(DisaError, match="each of the prompts must be a text, found 3"):
        Inputs.paired(1, prompts=["a", 3])
    with pytest.raises(DisaError, match="labels or from prompts: found both"):
        Inputs.paired(1, 2, "a cat")


def test_in_turn_there_are_as_many_as_seeds() -> None:
    assert Inputs.in_turn(range(5), [1, 2]).labels == [1, 2, 1, 2, 1]
    assert Inputs.in_turn([4], [1, 2]).labels == [1]
    assert Inputs.in_turn(range(2)).labels is None
    with pytest.raises(DisaError, match="3 prompts need as many seeds or more, found 2"):
        Inputs.in_turn(range(2), prompts=["a", "b", "c"])


def test_fifty_of_each_of_a_thousand_classes_have_a_seed_each() -> None:
    inputs = Inputs.each(50, labels=range(1000))
    assert len(inputs) == 50_000
    assert inputs.labels is not None
    assert inputs.labels[49:51] == [0, 1]
    assert sorted(inputs.seeds) == list(range(50_000))


def test_more_of_each_label_leave_those_that_there_are() -> None:
    few, more = (Inputs.each(count, labels=[3, 5, 8]) for count in (2, 4))
    pairs = [set(zip(inputs.labels or [], inputs.seeds, strict=True)) for inputs in (few, more)]
    assert len(pairs[0]) == 6
    assert pairs[0] < pairs[1]
    assert Inputs.each(2, labels=[3, 5], first_seed=100).seeds == [100, 102, 101, 103]
    assert Inputs.each(2, prompts=["a", "b"], first_seed=100).seeds == [100, 101, 100, 101]


def test_each_prompt_has_the_same_seeds() -> None:
    inputs = Inputs.each(2, prompts=["a", "b"])
    assert (inputs.prompts, inputs.seeds) == (["a", "a", "b", "b"], [0, 1, 0, 1])
    assert Inputs.each(2, prompts=["a", "b"], seeds=[5, 6]).seeds == [5, 6, 5, 6]
    assert Inputs.each(2, labels=[3, 4], seeds=range(4)).seeds == [0, 1, 2, 3]
    with pytest.raises(DisaError, match="2 images per prompt need 2 seeds or 4, one per image, found 3"):
        Inputs.each(2, prompts=["a", "b"], seeds=range(3))
    with pytest.raises(DisaError, match="1 image per label need 1 seed, found 2"):
        Inputs.each(1, labels=[3], seeds=range(2))
    with pytest.raises(DisaError, match="images per label must be a whole number, 1 or more, found 0"):
        Inputs.each(0, labels=[3])
    with pytest.raises(DisaError, match="needs labels or prompts"):
        Inputs.each(2)
    with pytest.raises(DisaError, match="at most 10000000 images at a time"):
        Inputs.each(10**9, labels=[3])


def test_a_part_has_what_belongs_to_its_images() -> None:
    masks = torch.tensor([[[True]], [[False]], [[True]]])
    inputs = Inputs([7, 8, 9], [1, 2, 3], known=torch.zeros(1, 1, 2, 2), mask=masks)
    part = inputs.part([2, 0])
    assert (part.seeds, part.labels) == ([9, 7], [3, 1])
    assert part.mask is not None
    assert part.mask.flatten().tolist() == [True, True]
    assert part.known is inputs.known
    assert inputs.part(slice(1, None)).seeds == [8, 9]
    assert inputs.with_seeds([20, 21, 22, 23]).labels == [1, 2, 3, 1]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": [1, 2, 3]}, "expected a label per seed, found 3 and 2"),
        ({"known": torch.zeros(2, 1, 1, 1)}, "known latents and a mask of tokens to draw go together"),
        ({"known": torch.zeros(3, 1, 1, 1), "mask": torch.ones(1, 1, 1)}, "expected known for 1 image or 2, found 3"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DisaError, match=message):
        Inputs([0, 1], **fields)


def test_its_repr_is_a_line() -> None:
    assert repr(Inputs.each(50, labels=range(1000))) == "Inputs(50000 images from labels, first seed 0)"
    assert repr(Inputs.paired(3)) == "Inputs(1 image from no labels, first seed 3)"


def test_places_that_are_not_there_are_refused() -> None:
    inputs = Inputs(list(range(3)), labels=[1, 2, 3])
    assert inputs.part([2, 0]).labels == [3, 1]
    wrong: Any
    for wrong in ([3], [-1], ["x"], [None]):
        with pytest.raises(DisaError, match=r"there are 3 images, from place 0 on|places must be a whole number"):
            inputs.part(wrong)
