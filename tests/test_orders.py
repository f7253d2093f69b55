"""Orders and counts: which tokens an AR step draws, whatever the batch."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import small
from disa.core.capabilities import Capabilities
from disa.core.noise import SeededNoise
from disa.core.orders import COSINE, CURVES, RANDOM, Counts, Order, parse_counts, parse_order
from disa.core.places import halton, ordered, stages_of
from disa.core.request import Request
from disa.core.reuse import parse_reuse
from disa.errors import DisaError
from disa.models.registry import find_preset

ORDERS = ("random", "raster", "checkerboard:3", "halton")
LABELS, SEEDS = [3, 1, 7], [5, 2**40, 11]


def first_to_last(order: str, grid: tuple[int, int], seeds: list[int] = SEEDS) -> torch.Tensor:
    """[B, L] places in the order of drawing."""
    return ordered(parse_order(order), SeededNoise(seeds).orders(math.prod(grid)), grid).flip(1)


# -- orders --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (5, 7), (1, 6), (1, 1)])
@pytest.mark.parametrize("order", [*ORDERS, "checkerboard:2", "checkerboard:9"])
def test_every_place_is_drawn_once_and_by_the_seed_alone(order: str, grid: tuple[int, int]) -> None:
    found = first_to_last(order, grid)
    assert torch.equal(found.sort(1).values, torch.arange(math.prod(grid)).expand(3, -1))
    assert torch.equal(found[1:2], first_to_last(order, grid, SEEDS[1:2]))


def test_random_is_the_order_of_the_noise_itself() -> None:
    random = SeededNoise(SEEDS).orders(16)
    assert torch.equal(ordered(RANDOM, random, (4, 4)), random)


def test_raster_goes_row_by_row() -> None:
    assert torch.equal(first_to_last("raster", (3, 5)), torch.arange(15).expand(3, -1))


def test_a_checkerboard_of_three_stages_worked_out_by_hand() -> None:
    assert stages_of((4, 4), 3).reshape(4, 4).tolist() == [[0, 2, 1, 2], [2, 1, 2, 0], [1, 2, 0, 2], [2, 0, 2, 1]]
    found = first_to_last("checkerboard:3", (16, 16))
    rows, columns = found // 16, found % 16
    diagonal = rows + columns
    assert (diagonal[:, :64] % 4 == 0).all()
    assert (diagonal[:, 64:128] % 4 == 2).all()
    assert (diagonal[:, 128:] % 2 == 1).all()
    assert not torch.equal(found[0], found[1])


def test_the_first_halton_points_worked_out_by_hand() -> None:
    """1/2 1/3, 1/4 2/3, 3/4 1/9, 1/8 4/9, 5/8 7/9 on a grid of 4 by 3."""
    assert halton((4, 3))[:5] == (2 * 3 + 1, 1 * 3 + 2, 3 * 3 + 0, 0 * 3 + 1, 2 * 3 + 2)


def test_halton_begins_elsewhere_in_every_image_and_is_even() -> None:
    first = first_to_last("halton", (16, 16))[:, :64]
    assert len(first[:, 0].unique()) == len(SEEDS)
    quarters = (first // 16 // 8) * 2 + first % 16 // 8
    assert all(12 <= count <= 20 for image in quarters for count in image.bincount(minlength=4).tolist())


# -- counts --------------------------------------------------------------------------------------------------------


def test_the_cosine_is_that_of_the_official_code() -> None:
    for num_tokens in (1, 2, 7, 36, 64, 256):
        for num_ar_steps in {*range(1, num_tokens + 1, 9), num_tokens}:
            counts = [num_tokens]
            for k in range(num_ar_steps - 1):
                share = math.cos(math.pi / 2 * (k + 1) / num_ar_steps)
                counts.append(max(1, min(counts[-1] - 1, math.floor(num_tokens * share))))
            assert COSINE.masked(num_tokens, num_ar_steps) == [*counts, 0]


@pytest.mark.parametrize("counts", [*CURVES, "stages:3", "stages:2-1", "stages:3-1-1"])
@pytest.mark.parametrize("num_tokens", [12, 16, 37, 256])
def test_every_ar_step_draws_something_and_all_is_drawn(counts: str, num_tokens: int) -> None:
    own = parse_counts(counts)
    for num_ar_steps in [own.num_ar_steps] if own.num_ar_steps else (1, 2, 7, num_tokens):
        masked = own.masked(num_tokens, num_ar_steps)
        assert (masked[0], masked[-1], len(masked)) == (num_tokens, 0, num_ar_steps + 1)
        assert all(before > after for before, after in pairwise(masked))


def drawn(counts: Counts, num_tokens: int, num_ar_steps: int) -> list[int]:
    return [before - after for before, after in pairwise(counts.masked(num_tokens, num_ar_steps))]


def test_counts_worked_out_by_hand(tmp_path: Path) -> None:
    assert drawn(parse_counts("linear"), 16, 4) == [4, 4, 4, 4]
    # What is left: (1 - e^-5s) / (1 - e^-5) and ln(1 + (e^5 - 1) s) / 5, with three quarters, a half and one left.
    assert drawn(parse_counts("exp"), 256, 4) == [5, 15, 53, 183]
    assert drawn(parse_counts("log"), 256, 4) == [15, 21, 34, 186]
    stages = parse_counts("stages:24-6-2")
    assert stages.num_ar_steps == 32
    assert (sum(drawn(stages, 256, 32)[:24]), drawn(stages, 256, 32)[-2:]) == (64, [64, 64])
    assert [stages.known(256, 32)[k] for k in (0, 24, 30, 31)] == [0, 0.25, 0.5, 0.75]
    file = tmp_path / "tokens.json"
    file.write_text('{"tokens": [1, 3, 12]}')
    table = parse_counts(f"table:{file}")
    assert (table.num_ar_steps, drawn(table, 16, 3), drawn(table, 32, 3)) == (3, [1, 3, 12], [2, 6, 24])
    assert table.to_json() == {"counts": f"table:{file}", "tokens_drawn": [1, 3, 12]}
    assert drawn(table, 3, 3) == [1, 1, 1]


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (parse_order, "spiral", "unknown order"),
        (parse_order, "raster:2", "unknown order"),
        (parse_order, "checkerboard:1", "2 to 16 stages"),
        (parse_order, "checkerboard:99999999999", "2 to 16 stages"),
        (parse_order, 3, "order"),
        (parse_counts, "sine", "unknown counts"),
        (parse_counts, "cosine:3", "unknown counts"),
        (parse_counts, "stages:", "unknown counts"),
        (parse_counts, "stages:3-0", "1 to"),
        (parse_counts, "stages:" + "-".join("1" * 17), "1 to 16 numbers"),
        (parse_counts, "table:nowhere.json", "nowhere.json"),
        (parse_counts, [1, 2], "counts"),
    ],
)
def test_what_is_no_order_and_no_counts_is_one_line(read: Any, text: Any, message: str) -> None:
    with pytest.raises(DisaError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["{}", "[]", "[1, 0]", '["x"]', "[1.5]", '{"tokens": 3}', "[true]"])
def test_a_broken_table_of_tokens_is_one_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "tokens.json"
    file.write_text(content)
    with pytest.raises(DisaError) as error:
        parse_counts(f"table:{file}")
    assert "\n" not in str(error.value)


# -- drawing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("counts", ["cosine", "exp", "linear", "stages:2-1-1"])
def test_an_image_does_not_depend_on_its_batch(order: str, counts: str) -> None:
    sampler = small.sampler()
    options: dict[str, Any] = {"order": order, "counts": counts, "steps": "linear:4-2", "height": 16, "width": 8}
    whole = sampler.sample(LABELS, SEEDS, batch_size=3, **options)
    parts = sampler.sample(LABELS[::-1], SEEDS[::-1], batch_size=2, **options)
    assert torch.equal(whole.latents, parts.latents.flip(0))


def test_the_defaults_are_what_they_are_called() -> None:
    sampler = small.sampler()
    named = sampler.sample(3, 1, order="random", counts="cosine")
    assert torch.equal(sampler.sample(3, 1).latents, named.latents)
    assert not torch.equal(sampler.sample(3, 1, order="raster").latents, named.latents)


def test_tokens_that_are_kept_stay_in_every_order() -> None:
    sampler = small.sampler()
    known, mask = torch.randn(1, 1, 8, 8), torch.zeros(1, 4, 4, dtype=torch.bool)
    mask[:, 1:4, 1:4] = True
    for order in ORDERS:
        samples = sampler.sample([1, 2], [0, 1], known=known, mask=mask, order=order, counts="linear")
        assert torch.equal(samples.latents[:, :, 0], known[:, :, 0].expand(2, -1, -1))
        assert [step.rows for step in samples.trace] == [2 * count for count in drawn(parse_counts("linear"), 9, 4)]


def test_stages_and_tables_say_how_many_ar_steps(tmp_path: Path) -> None:
    sampler = small.sampler()
    settings = sampler.settings(counts="stages:3-2-1")
    assert settings.num_ar_steps == 6
    assert sampler.settings(settings, counts="cosine").num_ar_steps == sampler.defaults.num_ar_steps
    assert sampler.settings(settings, steps="constant:3").num_ar_steps == 6
    assert sampler.settings(sampler.settings(num_ar_steps=9), counts="linear").num_ar_steps == 9
    assert len(sampler.sample(1, 0, settings=settings).trace) == 6
    for base in (None, settings):
        with pytest.raises(DisaError, match="stages:3-2-1 make 6 AR steps: leave 5 out"):
            sampler.settings(base, counts="stages:3-2-1", num_ar_steps=5)
    with pytest.raises(DisaError, match="stage 2 of stages:3-5-1 has 5 AR steps, and 4 of 16 tokens"):
        sampler.settings(counts="stages:3-5-1")


def test_a_table_of_steps_that_was_measured_in_another_order_is_warned_of(tmp_path: Path) -> None:
    sampler, file = small.sampler(), tmp_path / "steps.json"
    file.write_text('{"counts": [4, 3, 2, 2], "measured_for": {"grid": "uniform"}}')
    with warnings.catch_warnings(action="error"):
        sampler.settings(steps=f"table:{file}")
    with pytest.warns(UserWarning, match="measured for order random .here raster."):
        sampler.settings(steps=f"table:{file}", order="raster")


@pytest.mark.parametrize("name", ["flowar-digits", "xar-digits", "bitdance-base", "bitdance-base-4x", "nextstep-1"])
def test_a_fixed_order_is_told_in_one_line(name: str) -> None:
    able: Capabilities = find_preset(name).spec.architecture.capabilities
    for asked in ((Order("raster"), None), (None, Counts("linear")), (Order(), Counts())):
        with pytest.raises(DisaError, match="one after the other: leave"):
            able.check_order(*asked)
    with pytest.raises(DisaError, match="leave raster out"):
        able.check(Request(1, able.num_ar_steps or 1, order=Order("raster")))
    for reuse in ("residual:9", "tokens:2"):
        with pytest.raises(DisaError, match=f"one after the other, and each has tokens of its own: leave {reuse} out"):
            able.check_reuse(parse_reuse(reuse))
