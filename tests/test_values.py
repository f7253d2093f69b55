"""Numbers, texts and paths from a caller: what is taken, and how what is not is refused."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from disa import values
from disa.errors import DisaError
from naming import told

THREES = [
    3,
    3.0,
    "3",
    " 3 ",
    np.int8(3),
    np.float64(3),
    np.array(3),
    np.array([3.0]),
    torch.tensor(3),
    torch.tensor([3.0]),
]
NO_WHOLE_NUMBERS = [
    True, np.bool_(True), torch.tensor(True), 3.5, "3.5", "three", "", "3_0", "\u0663", b"3", None, math.nan, math.inf,
    "9" * 5000, [3], {}, object(), torch.tensor([1, 2]),
]  # fmt: skip


@pytest.mark.parametrize("value", THREES, ids=repr)
def test_whole_numbers_of_every_kind_are_plain(value: Any) -> None:
    found = values.whole_number(value, "steps", 1, 5)
    assert (found, type(found)) == (3, int)
    number = values.number(value, "guidance")
    assert (number, type(number)) == (3.0, float)


@pytest.mark.parametrize("value", NO_WHOLE_NUMBERS, ids=told)
def test_what_is_no_whole_number_is_one_line(value: Any) -> None:
    with pytest.raises(DisaError, match=r"^steps must be a whole number from 1 to 5, found ") as caught:
        values.whole_number(value, "steps", 1, 5)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_bounds_belong_to_the_range() -> None:
    assert [values.whole_number(value, "steps", 1, 5) for value in (1, 5)] == [1, 5]
    for value in (0, 6, 10**5000):
        with pytest.raises(DisaError, match="from 1 to 5, found"):
            values.whole_number(value, "steps", 1, 5)
    assert values.whole_number(2**64 - 1, "a seed") == 2**64 - 1
    with pytest.raises(DisaError, match=r"temperature must be a number, 0 or more, found -0\.5"):
        values.number(-0.5, "temperature", 0)
    with pytest.raises(DisaError, match="temperature must be a finite number, 0 or more, found nan"):
        values.number(math.nan, "temperature", 0)
    assert values.number("3.4e38", "guidance") == 3.4e38
    assert torch.finfo(torch.float32).max == values.LARGEST_FLOAT
    for large in (1e39, "-1e39", 10**40):
        with pytest.raises(DisaError, match="guidance must be a finite number, found"):
            values.number(large, "guidance")


def test_many_are_one_or_several() -> None:
    for given in (range(3), [0, 1, 2], (0, "1", 2.0), np.arange(3), torch.arange(3), iter([0, 1, 2])):
        assert values.many(given, values.whole_number, "labels") == [0, 1, 2]
    assert values.many(torch.tensor(7), values.whole_number, "labels") == [7]
    assert values.many("a cat", values.text, "prompts") == ["a cat"]
    for wrong in ({1: 2}, {1, 2}, [[1]], np.zeros((2, 2)), b"12"):
        with pytest.raises(DisaError, match="labels must be"):
            values.many(wrong, values.whole_number, "labels")


def test_true_or_false() -> None:
    assert all(values.truth(yes, "rewrite") is True for yes in (True, 1, np.bool_(True), torch.tensor([True])))
    assert not any(values.truth(no, "rewrite") for no in (False, 0, np.bool_(False)))
    for wrong in ("true", 2, None, np.array([1, 0]), []):
        with pytest.raises(DisaError, match="rewrite must be true or false, found"):
            values.truth(wrong, "rewrite")


def test_texts_can_be_written_down() -> None:
    assert values.text(np.str_("\U0001f431 a\tcat\n"), "the prompt") == "\U0001f431 a\tcat\n"
    for wrong, message in (
        ("red \ud83d", r"the prompt holds half of a character, '\\ud83d' at place 4"),
        ("a\0b", "the prompt holds a NUL character at place 1"),
        (b"a", "the prompt must be a text, found b'a'"),
        (None, "the prompt must be a text, found None"),
    ):
        with pytest.raises(DisaError, match=message):
            values.text(wrong, "the prompt")


def test_names_tell_the_nearest() -> None:
    assert values.one_of("linear", ("linear", "cosine"), "ramp") == "linear"
    with pytest.raises(DisaError, match=r"^unknown ramp 'Liner': expected linear or cosine\. Did you mean linear\?$"):
        values.one_of("Liner", ("linear", "cosine"), "ramp")
    with pytest.raises(DisaError, match=r"^unknown ramp 7: expected linear or cosine\.$"):
        values.one_of(7, ("linear", "cosine"), "ramp")


def test_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert values.path("~/x", "the folder") == Path("/home/ada/x")
    assert values.path(Path("x"), "the folder") == Path("x")
    for wrong in ("", "  ", "a\0b", b"x", 3, None):
        with pytest.raises(DisaError, match="the folder must be a path, found"):
            values.path(wrong, "the folder")


class Strange:
    def __repr__(self) -> str:
        raise RuntimeError("no text of mine")


def test_what_is_shown_is_short_and_on_one_line() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for value in (nested, Strange(), object(), "a" * 10**6, 10**5000, {"a\n": "b\n"}, list(range(1000)), "\ud83d"):
        told = values.shown(value)
        assert len(told) <= values.LONGEST_SHOWN
        assert "\n" not in told
        assert "0x" not in told
        assert told.encode()
    assert values.shown(torch.zeros(2, 3)) == "a Tensor of shape (2, 3)"
    assert values.shown([1, 2]) == "[1, 2]"
    assert values.shown([[1]]) == "a list of 1 entry"


def test_singular_and_plural() -> None:
    assert [values.counted(count, "image") for count in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
    assert values.counted(2, "entry", "entries") == "2 entries"
    assert [values.either(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a or b", "a, b or c"]


def test_what_others_say_is_not_cut_within_a_word() -> None:
    assert values.first_line(ValueError("one\ntwo")) == "one"
    assert values.first_line(ValueError("")) == "ValueError"
    said = values.first_line(ValueError("word " * 100))
    assert said.endswith("word ...")
    assert len(said) < 170
