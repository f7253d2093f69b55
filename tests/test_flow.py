"""Flow matching: its path, its grids and its loss, against formulas and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core.flow import GRIDS, FlowLoss, FlowMatching, shifted
from disa.core.problem import TimeGrid
from disa.core.request import Guidance, Request
from disa.core.solvers import make_solver
from disa.errors import DisaError

PROCESS = FlowMatching()
CLEAN = ("uniform", "xar-em", "nextstep", "nextstep-0.7", "shifted-3", "shifted-0.4")
COUNTS = (1, 2, 3, 5, 50, 999)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- grids ------------------------------------------------------------------------------------------------------------


def check_levels(grid: TimeGrid) -> None:
    assert grid.levels.dtype == np.float64
    assert (grid.levels[0], grid.levels[-1]) == (1, 0)
    assert (np.diff(grid.levels) < 0).all()
    np.testing.assert_array_equal(grid.times, grid.levels[:-1])


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("num_steps", COUNTS)
def test_a_clean_grid_has_exactly_n_falling_times(name: str, num_steps: int):
    grid = PROCESS.grid(name, num_steps)
    assert grid.num_evaluations == num_steps == len(grid.levels) - 1
    check_levels(grid)


def test_times_that_are_shifted_towards_noise_end_a_step_of_their_own_before_the_data():
    grid = PROCESS.grid("nextstep-3.2", 6)
    np.testing.assert_allclose(grid.levels[:-1], shifted(np.linspace(1, 0.04, 6), 3.2))
    assert grid.levels[-1] == pytest.approx(grid.levels[-2] - 0.04)
    assert grid.levels[-1] == pytest.approx(1 - 0.922, abs=1e-3)
    np.testing.assert_array_equal(PROCESS.grid("nextstep-3.2", 1).levels, [1, 0])


@pytest.mark.parametrize("scale", [1, 1000])
def test_a_network_that_counts_from_noise_is_fed_what_is_left_to_the_data(scale: int):
    process = FlowMatching(scale, from_noise=True)
    t = np.array([1.0, 0.7, 0.04])
    np.testing.assert_array_equal(process.network_times(t), np.float32(1 - t) * np.float32(scale))
    assert make_solver("heun").plan(process, 2).network_times.tolist() == [0, scale]


@pytest.mark.parametrize("num_steps", [*range(2, 51), 52, 53, 99])
def test_the_split_grid_wastes_a_step_of_an_odd_count(num_steps: int):
    grid = PROCESS.grid("flowar-split", num_steps)
    assert grid.num_evaluations == 2 * (num_steps // 2)
    check_levels(grid)
    even = PROCESS.grid("flowar-split", num_steps - num_steps % 2)
    np.testing.assert_array_equal(grid.levels, even.levels)


# Half of the times are in [0.3, 1] and half in [0, 0.25]; the last step of xar-em starts at 0.04.
@pytest.mark.parametrize(
    ("name", "num_steps", "levels"),
    [
        ("uniform", 4, [1, 0.75, 0.5, 0.25, 0]),
        ("flowar-split", 1, [1, 0]),
        ("flowar-split", 2, [1, 0.25, 0]),
        ("flowar-split", 3, [1, 0.25, 0]),
        ("flowar-split", 6, [1, 0.65, 0.3, 0.25, 0.5 / 3, 0.25 / 3, 0]),
        ("flowar-split", 50, np.arange(50, -1, -1) / 50),
        ("xar-em", 1, [1, 0]),
        ("xar-em", 4, [1, 0.68, 0.36, 0.04, 0]),
        ("shifted-1", 4, [1, 0.75, 0.5, 0.25, 0]),
        ("shifted-3", 4, [1, 0.9, 0.75, 0.5, 0]),
        ("shifted-0.5", 2, [1, 1 / 3, 0]),
    ],
)
def test_times_worked_out_by_hand(name: str, num_steps: int, levels: list[float]):
    np.testing.assert_allclose(PROCESS.grid(name, num_steps).levels, levels, rtol=1e-12, atol=1e-15)


def test_shifting_back_gives_the_times():
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(shifted(shifted(t, 2.5), 1 / 2.5), t, rtol=1e-12)


def test_the_network_is_fed_the_whole_part_of_a_float32_product():
    # 0.55 * 1000 is 550.0000000000001 in double precision, 0.29 * 1000 is 290 in single, 289.99999999999994 in double.
    t = np.array([1, 0.29, 0.55, 0.1666, 0.0])
    assert PROCESS.network_times(t).tolist() == [1000, 290, 550, 166, 0]
    assert FlowMatching(10).grid("uniform", 4).network_times.tolist() == [10, 7, 5, 2]


@pytest.mark.parametrize("name", [*GRIDS, "shifted-2"])
def test_underscores_may_stand_for_hyphens(name: str):
    np.testing.assert_array_equal(PROCESS.grid(name.replace("-", "_"), 7).levels, PROCESS.grid(name, 7).levels)


@pytest.mark.parametrize("name", ["", "split", "shifted"])
def test_an_unknown_grid_is_refused(name: str):
    with pytest.raises(DisaError, match=f"unknown grid '{name}'.*uniform, flowar-split, xar-em.*shifted-3"):
        PROCESS.grid(name, 5)


@pytest.mark.parametrize("shift", ["", "0", "-2", "x", "nan", "inf", "1e400", "1e-9", "1e9", "\u0663"])
def test_a_shift_that_is_none_is_refused(shift: str):
    with pytest.raises(DisaError, match=r"S in the grid 'shifted-.*' must be a number from 0\.001 to 1000, found"):
        FlowMatching().grid(f"shifted-{shift}", 4)


@pytest.mark.parametrize("name", [*GRIDS, "shifted-2"])
@pytest.mark.parametrize("num_steps", [0, -1])
def test_less_than_one_step_is_refused(name: str, num_steps: int):
    with pytest.raises(DisaError, match="at least 1"):
        PROCESS.grid(name, num_steps)


# --- guidance and requests --------------------------------------------------------------------------------------------


def test_both_ends_of_an_interval_are_inside():
    grid = PROCESS.grid("uniform", 5)  # 1, 0.8, 0.6, 0.4, 0.2
    assert grid.within((0.0, 1.0)) == [True] * 5
    assert grid.within((float(grid.times[3]), float(grid.times[1]))) == [False, True, True, True, False]
    assert grid.within((0.0, 0.7)) == [False, False, True, True, True]
    assert grid.within((0.9, 0.95)) == [False] * 5


@pytest.mark.parametrize("interval", [(-0.1, 1.0), (0.0, 1.1), (0.7, 0.3), (math.nan, 1.0), (0.0, math.nan), (0.5,)])
def test_an_interval_that_is_none_is_refused(interval: tuple[float, float]):
    with pytest.raises(DisaError, match="0 <= low <= high <= 1"):
        Guidance(2.0, interval=interval)


def test_known_latents_and_their_mask_go_together():
    known, mask = torch.zeros(1, 4, 2, 2), torch.ones(1, 2, 2, dtype=torch.bool)
    assert Request(1, 4, known=known, mask=mask).mask is mask
    with pytest.raises(DisaError, match="found known without mask"):
        Request(1, 4, known=known)
    with pytest.raises(DisaError, match="found mask without known"):
        Request(1, 4, mask=mask)


# --- training loss ----------------------------------------------------------------------------------------------------

OBJECTIVE = FlowLoss()


def test_the_path_is_straight_and_its_slope_is_the_velocity():
    start, noise = normal(2, 3, 5, seed=1), normal(2, 3, 5, seed=2)
    low, high = torch.tensor([0.25, 0.1])[:, None, None], torch.tensor([0.75, 0.9])[:, None, None]
    a, b = OBJECTIVE.noised(start, low, noise), OBJECTIVE.noised(start, high, noise)
    torch.testing.assert_close(a, (1 - low) * start + low * noise)
    velocity = (b - a) / (high - low)
    torch.testing.assert_close(OBJECTIVE.error(velocity, start, noise), torch.zeros(2, 3), rtol=0, atol=1e-10)
    assert torch.equal(OBJECTIVE.noised(start, torch.zeros(2, 1, 1), noise), start)
    assert torch.equal(OBJECTIVE.noised(start, torch.ones(2, 1, 1), noise), noise)


def test_the_error_is_the_mean_square_over_channels():
    start, noise = normal(2, 3, 5, seed=1), normal(2, 3, 5, seed=2)
    offset = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.0, 3.0]])
    found = OBJECTIVE.error(noise - start + offset[:, :, None], start, noise)
    torch.testing.assert_close(found, offset.square(), rtol=1e-5, atol=1e-10)
    one = torch.zeros(2, 3, 5)
    one[:, :, 0] = 1
    torch.testing.assert_close(OBJECTIVE.error(noise - start + one, start, noise), torch.full((2, 3), 0.2))


def test_the_least_error_is_at_the_expected_velocity():
    """For Gaussian data of deviation s the best linear prediction has the slope (t - (1 - t) s^2) / var."""
    rows, t, s = 100_000, 0.4, 0.7
    start, noise = s * normal(rows, 1, seed=3), normal(rows, 1, seed=4)
    x = OBJECTIVE.noised(start, torch.tensor(t), noise)
    slope = (t - (1 - t) * s**2) / ((1 - t) ** 2 * s**2 + t**2)
    errors = [OBJECTIVE.error((slope + change) * x, start, noise).mean() for change in (-0.1, 0.0, 0.1)]
    assert min(errors) == errors[1]
