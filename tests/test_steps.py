"""Step policies: the official rounding to the digit, their text form, and tables."""

import functools
import json
import re
import warnings
from pathlib import Path
from typing import Any, cast

import pytest
import torch

import small
from disa.core import steps
from disa.core.problem import DenoisingProblem
from disa.core.texts import parse, table
from disa.errors import DisaError

ANNEALED = {"linear": steps.linear, "cosine": steps.cosine, "two-stage": steps.two_stage}

# Worked out by hand: late + trunc(share * (early - late)).
BY_HAND = [
    ("linear:10-2", [10, 8, 6, 4, 2]),
    ("linear:12-3", [12, 10, 9, 8, 6, 5, 4, 3]),
    ("linear:50-5", [50, 27, 5]),
    ("cosine:10-2", [10, 8, 6, 3, 2]),
    ("cosine:50-5", [50, 27, 5]),
    ("two-stage:10-2", [10, 10, 10, 2, 2, 2, 2]),
    ("two-stage:10-2", [10, 10, 10, 2, 2, 2]),
    ("two-stage:10-2", [10, 2]),
    ("constant:7", [7, 7, 7]),
    # Rising: trunc goes towards zero, so 50 - 22.5 is 28 and not 27.
    ("linear:5-50", [5, 28, 50]),
    ("cosine:5-50", [5, 28, 50]),
    ("two-stage:5-50", [5, 5, 50, 50]),
]


@pytest.mark.parametrize(("text", "counts"), BY_HAND)
def test_counts_worked_out_by_hand(text: str, counts: list[int]):
    assert parse(text).counts(len(counts)) == counts


def test_the_share_is_divided_before_it_is_multiplied():
    # 1 / 49 * 49 is just below 1 in double precision, so the official code gives 1 step here and not 2.
    assert steps.linear(50, 1).at(48, 50) == 1


def test_every_official_schedule_to_the_digit(golden: Path):
    recorded = json.loads((golden / "schedules.json").read_text())["strategies"]
    checked = 0
    for name, entry in recorded.items():
        if not name.startswith("mar/"):
            continue
        _, num_ar_steps, bounds, strategy = name.split("/")
        early, late = map(int, bounds.split("to"))
        policy = steps.constant(late) if strategy == "constant" else ANNEALED[strategy](early, late)
        assert policy.counts(int(num_ar_steps[1:])) == entry["nominal"], name
        checked += 1
    assert checked >= 20


@pytest.mark.parametrize("name", ANNEALED)
@pytest.mark.parametrize(("early", "late"), [(50, 5), (100, 1), (7, 7), (5, 50)])
def test_a_schedule_runs_from_early_to_late_without_turning_back(name: str, early: int, late: int):
    for num_ar_steps in (2, 3, 5, 16, 64, 256):
        counts = ANNEALED[name](early, late).counts(num_ar_steps)
        assert (counts[0], counts[-1], len(counts)) == (early, late, num_ar_steps)
        assert counts == sorted(counts, reverse=early > late)


@pytest.mark.parametrize(
    ("text", "count"), [("linear:50-5", 50), ("cosine:50-5", 50), ("two-stage:50-5", 5), ("constant:9", 9)]
)
def test_one_ar_step(text: str, count: int):
    assert parse(text).counts(1) == [count]


def test_linear_and_cosine_differ_between_their_ends():
    linear, cosine = steps.linear(50, 5).counts(64), steps.cosine(50, 5).counts(64)
    assert all(a <= b for a, b in zip(linear[:32], cosine[:32], strict=True))
    assert all(a >= b for a, b in zip(linear[32:], cosine[32:], strict=True))
    assert sum(a != b for a, b in zip(linear, cosine, strict=True)) > 40


@pytest.mark.parametrize("policy", [steps.constant(4), steps.linear(9, 3), steps.cosine(9, 3), steps.two_stage(9, 3)])
def test_as_a_policy_it_looks_only_at_the_ar_step(policy: steps.Schedule):
    rows = torch.zeros(2, dtype=torch.long)
    for k in range(5):
        problem = DenoisingProblem(cast(Any, None), cast(Any, None), (1,), rows, rows, ar_step=k, num_ar_steps=5)
        assert policy(problem) == policy.at(k, 5)


# --- text -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["constant:20", "two-stage:50-5", "linear:50-5", "cosine:25-5", "linear:5-50"])
def test_the_text_of_a_policy_names_it(text: str):
    assert str(parse(text)) == text
    assert parse(str(parse(text))) == parse(text)


def test_policies_of_different_kinds_are_not_equal():
    assert len({steps.linear(9, 3), steps.cosine(9, 3), steps.two_stage(9, 3), steps.linear(3, 9)}) == 4


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "linear", "linear:", "linear:50", "linear:50-", "linear:-5", "linear:50-5-1", "linear:5.5-1",
        "Linear:50-5", "foo:1", "foo:5-1", "annealed:5-1", "50-5", "constant", "constant:",
        "constant:-3", "constant:x", "constant:5-1", "table", "table:", "table:/no/such/file.json",
        f"constant:{'9' * 5000}",
    ],
)  # fmt: skip
def test_malformed_text_is_one_clear_error(text: str):
    with pytest.raises(DisaError) as caught:
        parse(text)
    assert re.search("expected|cannot read|must be a whole number", str(caught.value))


@pytest.mark.parametrize("text", ["constant:0", "linear:0-5", "cosine:5-0", "two-stage:0-0"])
def test_text_that_asks_for_no_steps_is_one_clear_error(text: str):
    with pytest.raises(DisaError, match="at least 1 denoising step, found 0"):
        parse(text)


@pytest.mark.parametrize("bounds", [(0, 5), (5, 0), (-1, 5)])
@pytest.mark.parametrize("name", ANNEALED)
def test_counts_below_one_are_refused(name: str, bounds: tuple[int, int]):
    with pytest.raises(DisaError, match="at least 1"):
        ANNEALED[name](*bounds)


# --- tables -----------------------------------------------------------------------------------------------------------


def write(folder: Path, content: str) -> Path:
    path = folder / "table.json"
    path.write_text(content)
    return path


@pytest.mark.parametrize("content", ["[9, 4, 6, 1]", '{"counts": [9, 4, 6, 1], "made by": "calibrate"}'])
def test_a_table_gives_its_counts_without_a_warning(tmp_path: Path, content: str):
    path = write(tmp_path, content)
    policy = parse(f"table:{path}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert policy.counts(4) == [9, 4, 6, 1]
    assert str(policy) == f"table:{path}"
    assert parse(str(policy)) == policy


@pytest.mark.parametrize(
    ("num_ar_steps", "counts"),
    [(5, [9, 7, 5, 3, 1]), (4, [9, 6, 4, 1]), (2, [9, 1]), (1, [9]), (9, [9, 8, 7, 6, 5, 4, 3, 2, 1])],
)
def test_a_table_is_resampled_with_one_warning(tmp_path: Path, num_ar_steps: int, counts: list[int]):
    policy = table(write(tmp_path, "[9, 5, 1]"))
    with pytest.warns(UserWarning, match="3 counts") as caught:
        assert policy.counts(num_ar_steps) == counts
    assert len(caught) == 1
    assert str(num_ar_steps) in str(caught[0].message)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resampling_keeps_both_ends_and_stays_between_them(tmp_path: Path):
    values = [31, 8, 17, 17, 2, 5]
    policy = table(write(tmp_path, json.dumps(values)))
    for num_ar_steps in range(2, 70):
        counts = policy.counts(num_ar_steps)
        assert (counts[0], counts[-1]) == (31, 5)
        assert min(values) <= min(counts) <= max(counts) <= max(values)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_table_of_one_count_is_constant(tmp_path: Path):
    assert table(write(tmp_path, "[6]")).counts(4) == [6, 6, 6, 6]


@pytest.mark.parametrize(
    "content",
    [
        "", "not JSON", "[]", "[5, 0]", "[5, -1]", "[5, 2.0]", "[5, true]", '["5"]', "[[5]]", "5", "null", "{}",
        '{"counts": 5}', '{"counts": []}', '{"steps": [5]}', "[5, NaN]", "[5, 3", "[" * 100_000, f"[{'9' * 5000}]",
    ],
)  # fmt: skip
def test_a_malformed_table_is_one_clear_error(tmp_path: Path, content: str):
    path = write(tmp_path, content)
    with pytest.raises(DisaError):
        parse(f"table:{path}")


def test_a_table_that_is_no_text_or_no_file_is_one_clear_error(tmp_path: Path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00[5]")
    for path in (tmp_path / "bytes", tmp_path, tmp_path / "absent"):
        with pytest.raises(DisaError, match="cannot read the table"):
            table(path)


# -- where a schedule is asked -------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [steps.constant(3), steps.linear(50, 5), steps.two_stage(50, 5), steps.cosine(9, 2),
                                    steps.Table((5, 4, 3)), steps.Table((5, 4))])  # fmt: skip
@pytest.mark.parametrize("ar_step", [-1, 3, 7])
def test_an_ar_step_outside_the_loop_is_refused(policy: steps.Schedule, ar_step: int):
    """A loop that counts from 1 must not get a count that goes on along the line, which may even be below 1."""
    with pytest.raises(DisaError, match=f"AR steps count from 0: expected 0 to 2, found {ar_step}"):
        policy.at(ar_step, 3)
    with pytest.raises(DisaError, match="at least 1 AR step, found 0"):
        policy.at(0, 0)


# -- policies of one's own -----------------------------------------------------------------------------------------


def plain_function(problem: DenoisingProblem) -> int:
    return 3


class Plain:
    def __call__(self, problem: DenoisingProblem) -> int:
        return 3

    def begin(self) -> "Plain":
        raise AssertionError("only a Remembering is asked for one of each generation's own")


class Counting(steps.Remembering):
    """Asks for one step more in every AR step."""

    def __init__(self) -> None:
        self.count = 0

    def begin(self) -> "Counting":
        return Counting()

    def __call__(self, problem: DenoisingProblem) -> int:
        self.count += 1
        return self.count


class Worded(Plain):
    def __str__(self) -> str:
        return "three"


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (steps.linear(50, 5), "linear:50-5"),
        (steps.constant(7), "constant:7"),
        (steps.Table((3, 2), "a.json"), "table:a.json"),
        (plain_function, f"{__name__}:plain_function"),
        (functools.partial(functools.partial(plain_function)), f"{__name__}:plain_function"),
        (Plain(), f"{__name__}:Plain"),
        (Plain().__call__, f"{__name__}:Plain.__call__"),
        (Counting(), f"{__name__}:Counting"),
        (Worded(), "three"),
    ],
)
def test_how_reports_name_a_policy(policy: Any, text: str):
    assert steps.describe(policy) == text


def test_every_generation_has_its_own_of_a_policy_that_remembers():
    policy, plain = Counting(), Plain()
    first, second = steps.fresh(policy), steps.fresh(policy)
    problem = cast(DenoisingProblem, None)
    assert [first(problem), first(problem), second(problem)] == [1, 2, 1]
    assert policy.count == 0
    assert steps.fresh(plain) is plain


# -- over the share of the image that is drawn ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("linear:50-10/drawn", [50, 40, 30, 20]),
        ("cosine:50-10/drawn", [50, 44, 30, 15]),
        ("two-stage:50-10/drawn", [50, 50, 10, 10]),
        ("constant:7/drawn", [7, 7, 7, 7]),
        ("linear:10-50 /drawn", [10, 20, 30, 40]),
    ],
)
def test_schedules_over_the_share_that_is_drawn(text: str, expected: list[int]) -> None:
    schedule = parse(text)
    assert [schedule.along(share) for share in (0, 0.25, 0.5, 0.75)] == expected
    assert schedule.counts(4) == expected  # each of four AR steps draws as much
    assert parse(str(schedule)) == schedule


def test_a_table_over_the_share_that_is_drawn(tmp_path: Path) -> None:
    schedule = parse(f"table:{write(tmp_path, '[9, 5, 1]')}/drawn")
    assert [schedule.along(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [9, 7, 5, 3, 1]


@pytest.mark.parametrize("text", ["plan@8/drawn", "mlp/drawn", "linear:50-5/drawn/drawn", "/drawn", "linear:5/drawn"])
def test_what_cannot_go_by_the_share_that_is_drawn_is_one_line(text: str) -> None:
    with pytest.raises(DisaError) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_steps_follow_the_tokens_that_are_drawn() -> None:
    sampler = small.sampler()
    settings = sampler.settings(steps="linear:40-8/drawn", counts="stages:2-1-1", order="checkerboard:3")
    samples = sampler.sample([1, 2], [0, 1], settings=settings)
    assert [step.steps for step in samples.trace] == settings.steps.counts(4) == [40, 36, 32, 24]
    assert settings.to_json()["steps"] == "linear:40-8/drawn"


def test_a_model_that_does_not_say_what_is_drawn_is_one_line() -> None:
    nothing: Any = None
    image = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(DisaError, match="does not say"):
        parse("linear:5-2/drawn")(DenoisingProblem(nothing, nothing, (1,), image, image, 0, 4))
