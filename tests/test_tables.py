"""Tables and probes from files, policies and numbers from a caller: each is used, or refused with one line."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch as safetensors
import torch
from torch import Tensor

import disa
import small
from command import Command, complaint
from disa.core import steps
from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem, TimeGrid
from disa.core.request import Guidance, Request
from disa.core.solve import solve
from disa.core.solvers import DDIM
from disa.core.spending import Spending, parse_spending
from disa.errors import DisaError
from disa.policies.adaptive import Adaptive
from disa.policies.probe import ErrorModel, FittedProbe
from disa.reading import json_in, parse_json
from disa.weights.package import in_package
from naming import told

pytestmark = pytest.mark.usefixtures("one_thread")

SHIPPED = in_package("xar-digits-probe.safetensors")


def refused(action: Callable[[], object], words: str = "") -> str:
    """The one line that refuses something, quickly."""
    started = time.process_time()
    with pytest.raises(DisaError) as caught:
        action()
    said = str(caught.value)
    assert time.process_time() - started < 5
    assert len(said) < 600
    assert "\n" not in said
    assert words in said
    return said


# -- JSON ----------------------------------------------------------------------------------------------------------


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "table.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"])
def test_a_table_of_any_unicode_encoding_is_read(tmp_path: Path, encoding: str):
    assert disa.table(written(tmp_path, '{"counts": [9, 4], "of": "caf\u00e9"}'.encode(encoding))).values == (9, 4)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("[5, NaN]", "not finite"),
        ("[5, Infinity]", "not finite"),
        ('{"counts": [5], "error": 1e400}', "not finite"),
        ('{"counts": [5], "counts": [6]}', "'counts' twice"),
        ('{"counts": [5], "about": {"a": 1, "a": 1}}', "'a' twice"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 500 + "]" * 500, "nested too deeply"),
        ('{"counts": [5], "of": ' + '{"a":' * 80 + "1" + "}" * 81, "nested too deeply"),
        (f"[{'9' * 5000}]", "over 100 digits"),
        ('{"counts": [5], "of": "\\ud83d"}', "half of a character"),
        ('{"counts": [5], "\\ud83d": 1}', "half of a character"),
        ("", "it is empty"),
        ("[5, 3", "not JSON"),
        ("[5, 3] [4]", "not JSON"),
        ("linear:50-5", "not JSON"),
        (b"\xff\xfe\x00[5]", "not"),
        (b"\x80\x04\x95", "not UTF-8"),
        (b"\x89PNG\r\n\x1a\n" * 100, "not"),
        ("[]", "holds no counts"),
        ('{"counts": []}', "holds no counts"),
        ("[5, 0]", "at least 1 denoising step, found 0"),
        ("[5, -1]", "at least 1 denoising step, found -1"),
        ("[5, 1000000000]", "at most 10000 denoising steps, found 1000000000"),
        ("[5, 2.0]", "count 2 of the table"),
        ("[5, true]", "count 2 of the table"),
        ('["5"]', "count 1 of the table"),
        ("[[5]]", "count 1 of the table"),
        ("[null]", "count 1 of the table"),
        ("5", "a list of whole numbers or"),
        ('"5"', "a list of whole numbers or"),
        ("null", "a list of whole numbers or"),
        ("{}", "a list of whole numbers or"),
        ('{"counts": 5}', "a list of whole numbers or"),
        ('{"counts": {"0": 5}}', "a list of whole numbers or"),
        ('{"steps": [5]}', "a list of whole numbers or"),
        ('{"counts": [5], "measured_for": "mar"}', "as an object, found 'mar'"),
        ('{"counts": [5], "measured_for": [1]}', "as an object, found [1]"),
        ('{"counts": [5], "measured_for": null}', "as an object, found None"),
        ("[" + "5," * 300_000 + "5]", "at most 262144 counts"),
        ("[" + "5," * 10_000_000 + "5]", "longer than 8 MiB"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path: Path, content: str | bytes, words: str):
    path = written(tmp_path, content)
    said = refused(lambda: disa.parse(f"table:{path}"), words)
    assert "table.json" in said
    refused(lambda: small.sampler().settings(steps=f"table:{path}"), words)


def test_what_is_no_file_is_no_table(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero", tmp_path / "absent", "x" * 5000, "a/" * 3000, "a\0b", ""):
        refused(lambda path=path: disa.table(path))
    odd: list[Any] = [None, 5, b"table.json", ["table.json"]]
    for wrong in odd:
        refused(lambda wrong=wrong: disa.table(wrong), "must be a path")


def test_a_table_says_whatever_else_it_likes(tmp_path: Path):
    content = {"counts": [9, 4], "curves": {"errors": [[1e-300, 2]]}, "measured_for": {"steps": [1]}, "counts ": "x"}
    table = disa.table(written(tmp_path, json.dumps(content)))
    assert (table.values, dict(table.measured_for)) == ((9, 4), {"steps": [1]})


def test_json_that_is_fine_is_what_the_library_of_python_makes_of_it(tmp_path: Path):
    content = {"a": [1, -2.5, 1e-300, True, None, "caf\u00e9 \U0001f431", {"b": {}}], "": [[[]]]}
    assert parse_json(json.dumps(content)) == json_in(written(tmp_path, json.dumps(content))) == content


# -- probes --------------------------------------------------------------------------------------------------------

PROBES = sorted(path.name for path in SHIPPED.parent.glob("*-probe.safetensors"))


def altered(path: Path, numbers: dict[str, Any] | None = None, about: Any = None, **tensors: Tensor | None) -> Path:
    """The shipped probe of xar-digits with other numbers of its score `mlp`, and other tensors; None leaves one out."""
    known = FittedProbe.read(SHIPPED)
    content = json.loads(known.metadata()["disa"])
    content["knowledge"]["mlp"] |= numbers or {}
    content |= {} if about is None else {"about": about}
    state = {name: tensors.pop(name, value) for name, value in known.tensors().items()} | tensors
    state = {name: value.contiguous() for name, value in state.items() if value is not None}
    path.write_bytes(safetensors.save(state, {"disa": json.dumps(content)}))
    return path


@pytest.mark.parametrize("name", PROBES)
def test_probes_that_are_there_are_read(name: str):
    probe = FittedProbe.read(SHIPPED.with_name(name))
    assert probe.error_models
    assert all(known.slope >= 0 for known in probe.error_models.values())


def test_a_score_that_says_nothing_is_read_and_makes_rows_alike(tmp_path: Path):
    """Fitting writes a slope of 0 where a score does not grow with the error."""
    known = FittedProbe.read(altered(tmp_path / "p.safetensors", {"slope": 0})).error_models["mlp"]
    assert known.slope == 0
    assert len(known.need(torch.tensor([-5.0, 0.0, 7.0]), 0.0).unique()) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_probe_of_other_floating_point_numbers_is_read(tmp_path: Path, dtype: torch.dtype):
    state: dict[str, Any] = {name: value.to(dtype) for name, value in FittedProbe.read(SHIPPED).tensors().items()}
    assert FittedProbe.read(altered(tmp_path / "p.safetensors", **state)).probe.mean.dtype == torch.float32


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"slope": -0.5}, "the slope must be a number from 0 to"),
        ({"slope": float("nan")}, "not finite"),
        ({"slope": 1e300}, "the slope must be"),
        ({"slope": "1"}, "each a number"),
        ({"slope": True}, "each a number"),
        ({"slope": None}, "each a number"),
        ({"slope": [1]}, "each a number"),
        ({"power": 0}, "the power must be above 0"),
        ({"power": -1.5}, "the power must be"),
        ({"power": 400}, "the power must be above 0 and at most 16"),
        ({"intercept": float("inf")}, "not finite"),
        ({"intercept": 10**40}, "the intercept must be"),
        ({"threshold": float("-inf")}, "not finite"),
        ({"more": 1.0}, "it must know slope, intercept, power, threshold"),
    ],
)
def test_numbers_that_no_fit_gives_are_refused(tmp_path: Path, numbers: dict[str, Any], words: str):
    path = altered(tmp_path / "p.safetensors", numbers)
    said = refused(lambda: FittedProbe.read(path), words)
    assert "is not a probe" in said
    assert said.endswith("Expected a file that `disa fit-probe` wrote.")


NOTHING, WIDE = torch.zeros(0), torch.zeros(1_000_000)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"importance.mlp": torch.full((16,), torch.nan)}, "importance must be finite"),
        ({"importance.mlp": NOTHING}, "importance must be a tensor of 1 dimension that is not empty"),
        ({"importance.mlp": torch.zeros(8)}, "equally many parts, found 8 and 16"),
        ({"importance.mlp": torch.zeros(16, 1)}, "importance must be a tensor of 1 dimension"),
        ({"importance.mlp": torch.zeros(16, dtype=torch.int64)}, "no tensor of floating-point numbers"),
        ({"importance.mlp": None}, "it has no tensor 'importance.mlp'"),
        ({"later.mlp": torch.full((16, 4), torch.inf)}, "later must be finite"),
        ({"later.mlp": torch.zeros(16, 0)}, "later must be a tensor of 2 dimensions that is not empty"),
        ({"later.mlp": torch.zeros(16)}, "later must be a tensor of 2 dimensions"),
        ({"later.mlp": torch.arange(32.0).flip(0).expand(16, 32)}, "must be quantiles"),
        ({"later.mlp": None}, "it has no tensor 'later.mlp'"),
        ({"later.other": torch.zeros(16, 4)}, "an unknown tensor 'later.other'"),
        ({"weight": torch.zeros(1)}, "an unknown tensor 'weight'"),
        ({"probe.mean": None}, "probe.mean must be a tensor of 1 dimension"),
        ({"probe.mean": torch.zeros(7)}, "must have shape"),
        ({"probe.mean": WIDE, "probe.input.bias": WIDE.clone()}, "must have shape (1000000,), found"),
        ({"probe.scale": torch.zeros(129)}, "probe.scale must be above 0"),
        ({"probe.scale": -torch.ones(129)}, "probe.scale must be above 0"),
        ({"probe.output.bias": torch.zeros(3)}, "probe.output.bias must have shape (2,), found (3,)"),
        ({"probe.output.bias": None}, "probe.output.bias must have shape (2,), found none"),
        ({"probe.input.weight": torch.full((16, 129), torch.nan)}, "probe.input.weight must be finite"),
        ({"probe.input.weight": torch.full((16, 129), 1e300, dtype=torch.float64)}, "must be finite"),
    ],
)
def test_tensors_that_do_not_belong_together_are_refused(tmp_path: Path, tensors: dict[str, Any], words: str):
    refused(lambda: FittedProbe.read(altered(tmp_path / "p.safetensors", **tensors)), words)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (None, "it says nothing of itself"),
        ({}, "it says nothing of itself"),
        ({"disa": ""}, "it says nothing of itself"),
        ({"disa": "probe"}, "it is not JSON"),
        ({"disa": "[" * 100_000}, "nested too deeply"),
        ({"disa": "[]"}, "what it says must be an object, found []"),
        ({"disa": '{"knowledge": {}}'}, "about must be an object, found None"),
        ({"disa": '{"knowledge": [], "about": {}}'}, "knowledge must be an object, found []"),
        ({"disa": '{"knowledge": {}, "about": {}}'}, "measured_for must be an object, found None"),
        ({"disa": '{"knowledge": {}, "about": {"measured_for": {}}}'}, "it knows no score"),
        ({"disa": '{"knowledge": {"mlp": 3}, "about": {"measured_for": {}}}'}, "it has no tensor 'importance.mlp'"),
        ({"disa": '{"knowledge": {}, "knowledge": {}}'}, "'knowledge' twice"),
    ],
)
def test_what_a_probe_says_of_itself_is_checked(tmp_path: Path, said: dict[str, str] | None, words: str):
    path = tmp_path / "p.safetensors"
    path.write_bytes(safetensors.save({"probe.mean": torch.zeros(3)}, said))
    refused(lambda: FittedProbe.read(path), words)


def test_what_is_no_safetensors_file_is_no_probe(tmp_path: Path):
    good = SHIPPED.read_bytes()
    torch.save({"probe.mean": torch.zeros(3)}, tmp_path / "p.pth")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with (tmp_path / "long").open("wb") as file:
        file.truncate(1 << 33)
    for name, content in {
        "short": good[:100], "cut": good[:-10], "empty": b"", "longer": good + b"x", "zero": bytes(len(good)),
        "page": b"<!DOCTYPE html>", "header": b"\xff" * 8 + good[8:], "flip": good[:9] + b"x" + good[10:],
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 11
    for path in [*(tmp_path / name for name in names), tmp_path, Path("/dev/zero"), Path("x" * 5000)]:
        refused(lambda path=path: FittedProbe.read(path), "is not a probe")
    refused(lambda: FittedProbe.read(tmp_path / "absent"), "no probe at")


def test_any_name_will_do_for_a_probe(tmp_path: Path):
    (tmp_path / "probe.bin").write_bytes(SHIPPED.read_bytes())
    assert FittedProbe.read(tmp_path / "probe.bin").hash == FittedProbe.read(SHIPPED).hash


def test_a_probe_of_another_width_is_refused_before_drawing(tmp_path: Path):
    sampler = small.sampler()
    about = {"measured_for": {"weights": sampler.weights_hash}}
    path = altered(tmp_path / "p.safetensors", about=about)
    refused(lambda: sampler.settings(steps=f"mlp:9-2:{path}"), "is fed 128 values of each row, but small says 32")
    narrow: dict[str, Any] = {
        "probe.mean": torch.zeros(33),
        "probe.scale": torch.ones(33),
        "probe.input.weight": torch.zeros(16, 33),
    }
    path = altered(tmp_path / "p.safetensors", None, about, **narrow)
    assert sampler.sample(3, 0, steps=f"mlp:9-2@5:{path}", num_ar_steps=2).evaluations > 0
    refused(lambda: sampler.settings(steps=f"variance:head:9-2:{path}"), "knows nothing of variance:head")


def test_an_error_model_of_ones_own_is_checked_as_one_from_a_file():
    fitting = {"importance": torch.zeros(2), "later": torch.zeros(2, 3)}
    good = ErrorModel(1, 0, 1.5, 0, **fitting)
    assert (type(good.slope), good.power) == (float, 1.5)
    for name, wrong in (
        ("slope", -1),
        ("power", 0),
        ("intercept", torch.nan),
        ("later", [1]),
        ("importance", torch.zeros(3)),
    ):
        refused(lambda name=name, wrong=wrong: replace(good, **{name: wrong}))


# -- texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("5", "constant:5"), (" linear : 50 - 5 ", "linear:50-5"), ("linear:050-5", "linear:50-5"),
        ("two-stage:50-5\n", "two-stage:50-5"), ("constant:10000", "constant:10000"),
    ],
)  # fmt: skip
def test_texts_that_say_what_they_mean_are_taken(text: str, policy: str):
    assert str(disa.parse(text)) == policy


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("50-5", "linear:50-5"), ("Linear:50-5", "linear:50-5"), ("linear:50\u20135", "linear:50-5"),
        ("linear:50\u22125", "linear:50-5"), ("linear:5e1-5", "linear:50-5"), ("linear:50.0-5", "linear:50-5"),
        ("lineer:50-5", "linear:50-5"), ("linear 50 5", "linear:50-5"), ("linear(50, 5)", "linear:50-5"),
        ("linear=50-5", "linear:50-5"), ("linear:50/5", "linear:50-5"), ("linear:\u0665\u0660-5", "linear:50-5"),
        ("cosin:50-5", "cosine:50-5"), ("two_stage:50-5", "two-stage:50-5"), ("two stage 50 5", "two-stage:50-5"),
        ("Constant:5", "constant:5"), ("5.0", "constant:5"), ("tabel:A.json", "table:A.json"),
        ("out/A.json", "table:out/A.json"), ("Mlp:50-5@20", "mlp:50-5@20"), ("p.safetensors", "mlp:p.safetensors"),
    ],
)  # fmt: skip
def test_a_text_that_is_near_is_told_and_can_be_pasted(text: str, meant: str):
    said = refused(lambda: disa.parse(text), f"unknown step policy '{text}'")
    assert said.endswith(f" Did you mean {meant}?")
    if meant.partition(":")[0] not in ("table", "mlp"):
        assert str(disa.parse(meant)) == meant


@pytest.mark.parametrize(
    "text",
    ["linear:50", "linear:50-5-1", "constant:5-1", "", ":", "-", "-1", "fifty", "0x10", "table", "table:", "mlp",
    "mlp:5-1",
     "constant:0", "linear:5-0", "linear:1000000000-1", "constant:" + "9" * 5000, "9" * 5000, "-" * 10**6, "a" * 10**6,
     "linear:" * 10**5, "constant:\0", "constant:\ud83d", "linear:50-5\u200b", "\u00b2", "linear:\u00bd-1"],
    ids=lambda text: ascii(text)[:20],
)  # fmt: skip
def test_other_texts_are_one_line(text: str):
    refused(lambda: disa.parse(text))
    refused(lambda: small.sampler().settings(steps=text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mlp:2-9", "early >= late >= 1, found 2-9"),
        ("mlp:1000000000-1@5", "at most 1000 denoising steps, found 1000000000"),
        (f"mlp:{'9' * 5000}-1", "early must be a whole number"),
        (f"mlp:50-5@{'9' * 400}", "the budget of an adaptive policy must be a number"),
        ("mlp:50-5@1e400", "unknown adaptive policy"),
        ("mlp:50-5@nan", "unknown adaptive policy"),
        ("mlp:50-5@-3", "unknown adaptive policy"),
        ("mlp:50-5@", "unknown adaptive policy"),
        ("mlp:5\u0660-5", "no probe at 5\u0660-5"),
        ("mlp:50-5@99999", "must be a number from 0 to 10000"),
        ("variance:drawn:9-2", "no probe at drawn:9-2"),
        ("mlp:" + "x" * 5000, "not a probe"),
    ],
)
def test_texts_of_policies_that_look_are_used_or_refused(text: str, words: str):
    refused(lambda: disa.Sampler.load("mar-digits", device="cpu").settings(steps=text), words)


def test_spendings_are_told_in_full():
    assert [str(Spending(50, 5, budget)) for budget in (20, 20.5, 20.1234567)] == [
        "50-5@20",
        "50-5@20.5",
        "50-5@20.1234567",
    ]
    assert parse_spending("50-5@20.1234567") == Spending(50, 5, 20.1234567)
    for text in ("", "50", "50-5", "5-50@20", "50-5@nan", "50-5@2\u0660", "0-0@1", "50-5@1e1"):
        refused(lambda text=text: parse_spending(text))


# -- numbers and policies from a caller -----------------------------------------------------------------------------


def two(problem: DenoisingProblem) -> int:
    return 2


ODD = [
    5.5, True, np.bool_(True), float("nan"), float("inf"), 0, -1, 10**9, 10**40, "", "five", b"5", object(), {}, {5, 3},
    {"counts": [5]}, [], (), [[5]], [5, 0], [5, 2.5], [5, None], [5, True], ["5", "x"], itertools.count(1),
    itertools.repeat(5),
    range(10**9), np.zeros((2, 2)), np.array([]), torch.zeros(2, 2), torch.tensor(float("nan")), [[]] * 10**5,
    Path("table.json"), steps.Linear, steps.linear, steps.Schedule, lambda: 3, lambda a, b: 3, lambda *, problem: 3,
    print,
    int, DenoisingProblem,
]  # fmt: skip


@pytest.mark.parametrize("given", [value for value in ODD if value is not print], ids=told)
def test_steps_that_are_none_are_one_line(given: Any):
    refused(lambda: small.sampler().settings(steps=given))


@pytest.mark.parametrize(
    ("given", "text", "counts"),
    [
        (3, "constant:3", [3, 3]), (np.int64(3), "constant:3", [3, 3]), (torch.tensor(3), "constant:3", [3, 3]),
        (3.0, "constant:3", [3, 3]), ("3", "constant:3", [3, 3]), (np.array(3), "constant:3", [3, 3]),
        ([3, 2], "table of 2", [3, 2]), ((3, 2), "table of 2", [3, 2]), (np.array([3, 2]), "table of 2", [3, 2]),
        (torch.tensor([3, 2]), "table of 2", [3, 2]), ([3.0, "2"], "table of 2", [3, 2]), (range(3, 1, -1),
        "table of 2", [3, 2]),
        (iter([3, 2]), "table of 2", [3, 2]), (np.array([3.0, 2.0]), "table of 2", [3, 2]),
        (disa.linear(np.int32(3), 2.0), "linear:3-2", [3, 2]),  # pyright: ignore[reportArgumentType]
        (two, f"{__name__}:two", [2, 2]), (partial(two), f"{__name__}:two", [2, 2]),
    ],
    ids=told,
)  # fmt: skip
def test_steps_in_every_form(given: Any, text: str, counts: list[int]):
    sampler = small.sampler()
    settings = sampler.settings(steps=given, num_ar_steps=2, guidance=1.0)
    assert settings.to_json()["steps"] == text
    drawn = sampler.sample(3, 0, settings=settings)
    assert [step.steps for step in drawn.trace] == counts
    assert drawn.evaluations == sum(step.rows * count for step, count in zip(drawn.trace, counts, strict=True))


ANSWERS = [
    None, True, 2.5, 0, -1, 10**9, "two", [], [[2]], [2], [2] * 99, object(), float("nan"), iter([2]), torch.zeros(2,
    2),
    torch.tensor([2]), torch.full((4,), 2.5), torch.full((4,), float("nan")), torch.ones(4, dtype=torch.bool),
    np.ones((2, 2)),
    Guidance(), two,
]  # fmt: skip


@pytest.mark.parametrize("answer", ANSWERS, ids=told)
def test_a_bad_answer_of_a_policy_is_one_line(answer: Any):
    refused(lambda: small.sampler().sample(3, 0, steps=lambda problem: answer, num_ar_steps=2))


FORMS: list[Callable[[int], Any]] = [
    lambda rows: 3, lambda rows: 3.0, lambda rows: np.int64(3), lambda rows: "3", lambda rows: torch.tensor(3),
    lambda rows: [3] * rows, lambda rows: (3,) * rows, lambda rows: np.full(rows, 3),
    lambda rows: torch.full((rows,), 3),
    lambda rows: torch.full((rows,), 3, dtype=torch.int16), lambda rows: torch.full((rows,), 3.0),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_good_answer_of_a_policy_is_used(form: Callable[[int], Any]):
    drawn, wanted = (
        small.sampler().sample(3, 0, steps=policy, num_ar_steps=2)
        for policy in (lambda problem: form(problem.num_rows), "constant:3")
    )
    assert drawn.evaluations == wanted.evaluations
    torch.testing.assert_close(drawn.images, wanted.images)


class Mine(Exception):
    """An error of a caller's own."""


@pytest.mark.parametrize(
    "error", [Mine("my words"), KeyError("k"), ValueError("v"), KeyboardInterrupt(), TypeError("t")]
)
def test_what_a_policy_raises_passes_unharmed(error: BaseException):
    def policy(problem: DenoisingProblem) -> int:
        raise error

    with pytest.raises(type(error)) as caught:
        small.sampler().sample(3, 0, steps=policy, num_ar_steps=2)
    assert caught.value is error


def test_schedules_take_whole_numbers_of_every_kind():
    schedule: Any = disa.linear(50, 5)
    for k, last in ((3, 8), (np.int64(3), 8), (3.0, "8"), (torch.tensor(3), np.array(8))):
        assert schedule.at(k, last) == 30
    for k, last in (
        (8, 8),
        (-1, 8),
        (9, 8),
        (1.5, 8),
        (True, 8),
        (None, 8),
        (0, 0),
        (0, 10**9),
        ("x", 8),
        (0, float("nan")),
    ):
        refused(lambda k=k, last=last: schedule.at(k, last))
    for wrong in (10**9, -1, 0, 2.5, None):
        refused(lambda wrong=wrong: schedule.counts(wrong))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("make", [disa.linear, disa.cosine, disa.two_stage])
def test_counts_of_schedules_are_whole(make: Any):
    for early, late in (
        (0, 5),
        (5, 0),
        (5.5, 1),
        (True, 1),
        (None, 1),
        (10**9, 1),
        ("x", 1),
        (float("inf"), 1),
        ([5], 1),
    ):
        refused(lambda early=early, late=late: make(early, late))


@pytest.mark.parametrize(
    "given",
    [{"scale": float("nan")}, {"scale": "much"}, {"scale": True}, {"scale": None}, {"ramp": "Linear"}, {"ramp": 3},
    {"ramp": None},
     {"interval": (0.5,)}, {"interval": (0, 0.5, 1)}, {"interval": (0.9, 0.1)}, {"interval": (0, float("nan"))},
     {"interval": None},
     {"interval": "0-0.9"}, {"interval": 0.5}, {"interval": (None, 1)}, {"progress": (-0.1, 1)}, {"progress": (0, 1.1)},
     {"progress": {0: 1}}, {"progress": ("a", "b")}],
    ids=str,
)  # fmt: skip
def test_guidance_that_is_none_is_one_line(given: dict[str, Any]):
    refused(lambda: Guidance(**given))


@pytest.mark.parametrize(
    "interval", ["0.9", "0-1-2", "a-b", "0\u20130.9", "-", "", "0-1e400", "nan-1", "0.9-0", " - ", "0-2"]
)
def test_texts_of_guidance_intervals_are_one_line(interval: str):
    refused(lambda: small.sampler().settings(interval=interval))
    refused(lambda: small.sampler().settings(progress=interval))


def test_guidance_takes_numbers_of_every_kind():
    assert Guidance(np.float32(2), "linear", (0, np.float64(0.5))) == Guidance(2.0, interval=(0.0, 0.5))  # pyright: ignore
    assert Guidance("2", interval=[0, "0.5"]) == Guidance(2.0, interval=(0.0, 0.5))  # pyright: ignore[reportArgumentType]


# -- in a loop of one's own -----------------------------------------------------------------------------------------


def test_a_policy_that_looks_in_a_loop_of_ones_own(tmp_path: Path):
    """The lines of docs/adaptive.md: without `Sampler.sample`, the same counts and the same latents."""
    sampler = disa.Sampler.load("mar-digits", device="cpu")
    settings = sampler.settings(steps="mlp:12-3@6", num_ar_steps=4, guidance=1.0)
    model, noise = sampler.model, SeededNoise([7, 8])
    state = model.begin(Request(2, 4, torch.tensor([3, 5])), noise)
    policy = steps.fresh(settings.steps)
    spent, counts = torch.zeros(2), torch.zeros(0)
    with torch.no_grad():
        for _ in range(4):
            problem = model.pose(state)
            counts = policy(problem)
            assert isinstance(counts, Tensor)
            spent += counts.view(2, -1).sum(1)
            model.accept(state, solve(problem, settings.solver, counts, noise).tokens)
    drawn = sampler.sample([3, 5], [7, 8], settings=settings, output_type="latent")
    assert torch.equal(model.finish(state), torch.as_tensor(drawn.latents))
    assert len(counts.unique()) > 1
    assert (spent <= 6 * 64).all()


def test_a_score_of_ones_own_in_a_model_of_ones_own():
    """Nothing of disa but the policy: it is asked with what it looks at, and keeps every image to its budget."""
    nothing: Any = None
    errors = ErrorModel(1.0, 0.0, 2.0, 0.0, torch.zeros(1), torch.linspace(-2, 2, 8)[None])

    def score(problem: DenoisingProblem) -> Tensor:
        assert problem.condition is not None
        return problem.condition.float().mean(1)

    steps_of = Adaptive(score, 0, errors, Spending(20, 2, 6))
    random, images, rows, total = torch.Generator().manual_seed(0), 3, 5, 4
    policy, spent = steps_of.begin(), torch.zeros(images)
    for k in range(total):
        z = 3 * torch.randn(images * rows, 8, generator=random)
        image = torch.arange(images).repeat_interleave(rows)
        problem = DenoisingProblem(
            nothing, nothing, (4,), image, image, k, total, condition=z, rows_to_come=rows * (total - 1 - k)
        )
        counts = policy(problem)
        assert isinstance(counts, Tensor)
        spent += counts.view(images, rows).sum(1)
    assert (spent <= 6 * rows * total).all()
    assert (spent > 5 * rows * total).all()


# -- command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "50-5"), "Did you mean linear:50-5?"),
        (("--steps", "linear:1000000000-1"), "at most 10000 denoising steps"),
        (("--steps", "table:/dev/zero"), "it is a pipe or a device, not a file"),
        (("--solver", "ddim@uniform:eta=nan"), "must be a number, found 'nan'"),
        (("--solver", "ddim:eta=0.5,eta=1"), "says 'eta' twice"),
        (("--grid", "Uniform"), "Did you mean uniform?"),
        (("--guidance-interval", "0\u20130.9"), "interval must be two numbers like 0-0.9"),
    ],
)
def test_mistakes_on_the_command_line(disa: Command, tmp_path: Path, arguments: tuple[str, ...], words: str):
    model = small.folder(tmp_path / "model")
    assert words in complaint(
        disa("sample", "--model", model, "--num-ar-steps", 3, *arguments, "--out", tmp_path / "out")
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ("1e9", "the most that is measured"), ("nan", "must be a number"), ("1e400", "must be a number"), ("-1",
        "above 0"),
        ("linear:1000000000-1", "at most 10000"), ("mlp:1000000000-1@5", "at most 1000 "), ("0", "above 0"),
    ],
)  # fmt: skip
def test_budgets_that_never_end_are_refused_at_once(disa: Command, tmp_path: Path, budget: str, words: str):
    model, started = small.folder(tmp_path / "model"), time.process_time()
    arguments = ("--budget", budget, "--num-ar-steps", 3, "--out", tmp_path / "out")
    for what in (("--seeds", "0-3"), ("--seeds", "0", "--counts-only")):
        assert words in complaint(disa("calibrate", "--model", model, *arguments, *what))
    assert time.process_time() - started < 5


# -- grids and solvers of one's own ---------------------------------------------------------------------------------


def in_float32(process: Any, num_steps: int) -> TimeGrid:
    grid = process.grid("uniform", num_steps)
    return TimeGrid(*(part.astype(np.float32) for part in (grid.network_times, grid.levels, grid.times)))


def test_a_grid_of_ones_own_may_be_in_single_precision():
    """Solvers read the levels as float64, byte by byte."""
    one, other = (
        small.sampler().sample(3, 0, grid=grid, solver="ddim", steps=4, num_ar_steps=2).images
        for grid in (in_float32, "uniform")
    )
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


GRIDS: list[Any] = [
    lambda: 3, lambda process: 3, lambda process, count: None, lambda process, count: [1.0, 0.0], TimeGrid,
    5, ["uniform"],
    lambda process, count: TimeGrid(np.ones(2), np.ones(2), np.ones(2)), lambda process, count: replace(
        process.grid("uniform", count), levels=np.full(count + 1, np.nan)),
    lambda process, count: replace(process.grid("uniform", count), times=np.array(["a"] * count)),
    lambda process, count: TimeGrid(np.zeros(0), np.ones(1), np.zeros(0)),
]  # fmt: skip


@pytest.mark.parametrize("grid", GRIDS)
def test_a_grid_of_ones_own_that_is_none_is_one_line(grid: Any):
    assert re.search("[Gg]rid", refused(lambda: small.sampler().settings(grid=grid, steps=3)))


class Planless:
    """A solver that makes no plan."""

    grid, takes, stochastic = None, ("noise",), False

    def plan(self, process: Any, num_steps: int) -> None:
        return None


@pytest.mark.parametrize("solver", [Planless(), Planless, DDIM, 5, lambda: 3, None.__class__, "", [], DDIM(5)])  # pyright: ignore
def test_a_solver_of_ones_own_that_is_none_is_one_line(solver: Any):
    refused(lambda: small.sampler().settings(solver=solver))


class Falling(steps.Schedule):
    """A schedule of one's own."""

    def __init__(self, last: Any) -> None:
        self.last = last

    def at(self, ar_step: int, num_ar_steps: int) -> Any:
        return self.last if ar_step == num_ar_steps - 1 else 4


@pytest.mark.parametrize("last", [0, -1, 2.5, None, "x", True, 10**9])
def test_a_schedule_of_ones_own_is_asked_before_drawing(last: Any):
    refused(lambda: small.sampler().settings(steps=Falling(last), num_ar_steps=2))
    assert small.sampler().settings(steps=Falling(2.0), num_ar_steps=2).steps.counts(2) == [4, 2]
