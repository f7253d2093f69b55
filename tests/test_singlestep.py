"""DPM-Solver++ 3S: its order where the exact path is known, its steps, and the grids that it can take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core import diffusion
from disa.core.noise import SeededNoise
from disa.core.problem import Prediction, TimeGrid
from disa.core.singlestep import SinglestepDPMSolverPlusPlus, intervals
from disa.core.solve import solve
from disa.core.solvers import DDIM, grid_for, make_solver
from disa.errors import DisaError
from fields import Said
from gaussian import (
    PROCESS,
    UNIT,
    GaussianField,
    errors_at_the_end,
    exact_noise,
    orders,
    problem_of,
    root_mean_square,
    run,
    state_at,
)

NAME = "dpm-solver++-3s"


def even(count: int) -> TimeGrid:
    """Even steps between half log SNR -3 and 3; it does not end at the data."""
    levels = 1 / (1 + np.exp(-2 * np.linspace(-3, 3, count + 1)))
    return TimeGrid(levels[:-1], levels, np.linspace(1, 0, count + 1)[:-1])


def end_of(grid: TimeGrid, unit: Tensor) -> Tensor:
    """Where the exact network takes the points that stand at `unit` standard deviations, in float64."""
    levels = grid.levels.tolist()
    bound = Said.on(grid, lambda x, i: Prediction(exact_noise(x, levels[i])))
    problem = problem_of(GaussianField(), len(unit))
    return SinglestepDPMSolverPlusPlus().run(bound, problem, grid, state_at(levels[0], unit), torch.empty(0))


def error_of(grid: TimeGrid) -> float:
    return root_mean_square(end_of(grid, UNIT) - state_at(float(grid.levels[-1]), UNIT))


def test_it_is_of_order_3():
    """With 3 m + 2 evaluations. Otherwise the last interval is of order 1: a single step with an error of order 2."""
    errors = [error_of(even(count)) for count in (143, 287, 575)]
    np.testing.assert_allclose(orders(errors), 3, atol=0.15)


@pytest.mark.parametrize(("moved", "order"), [(1, 3), (2, 2)])
def test_the_first_place_inside_an_interval_may_be_anywhere_and_the_second_costs_an_order(moved: int, order: int):
    errors = []
    for count in (143, 287, 575):
        whole, places = even(3 * count + 1), np.arange(count + 1)
        places = places * 3 + (places % 3 == moved)
        errors.append(error_of(TimeGrid(whole.network_times[places[:-1]], whole.levels[places], whole.times[:count])))
    np.testing.assert_allclose(orders(errors), order, atol=0.15)


@pytest.mark.parametrize("grid", ["emigm", "logsnr"])
def test_it_beats_order_1_at_equal_evaluations(grid: str):
    (third,), (first,) = (errors_at_the_end(make_solver(name, grid), [14]) for name in (NAME, "ddim"))
    assert third < 0.4 * first


@pytest.mark.parametrize("name", diffusion.GRIDS)
def test_known_data_go_through_every_step_exactly(name: str):
    """Where D is the data at every x, the state at each place is alpha' data + sigma' noise, whatever the interval."""
    for count in (1, 2, 3, 4, 5, 17):
        grid = PROCESS.grid(name, count)
        scales, i = [PROCESS.scales(level) for level in grid.levels.tolist()], 0
        for stages in intervals(PROCESS, grid):
            alpha, sigma = scales[i]
            for j, stage in enumerate(stages, i + 1):
                assert stage.keep * alpha + stage.now == pytest.approx(scales[j][0], abs=1e-12)
                assert stage.keep * sigma == pytest.approx(scales[j][1], abs=1e-12)
            i += len(stages)
        assert i == grid.num_evaluations


def test_one_evaluation_is_ddim_and_so_is_a_last_step_to_the_data():
    for grid in (PROCESS.grid("logsnr", 1), PROCESS.grid("emigm", 1), PROCESS.grid("logsnr", 2)):
        ddim, found = (run(solver, grid, UNIT) for solver in (DDIM(), SinglestepDPMSolverPlusPlus()))
        torch.testing.assert_close(found, ddim, rtol=1e-9, atol=1e-9)
    assert [len(each) for each in intervals(PROCESS, PROCESS.grid("logsnr", 9))] == [3, 3, 2, 1]
    assert [len(each) for each in intervals(PROCESS, PROCESS.grid("emigm", 9))] == [3, 3, 2, 1]
    assert [len(each) for each in intervals(PROCESS, PROCESS.grid("emigm", 8))] == [3, 3, 2]
    assert [len(each) for each in intervals(PROCESS, PROCESS.grid("logsnr", 8))] == [3, 3, 1, 1]


def test_every_row_may_have_its_own_count():
    problem, counts = problem_of(GaussianField(), 12), torch.tensor([1, 2, 3, 8, 14, 5] * 2)
    solver = make_solver(NAME, "emigm")
    together = solve(problem, solver, counts, SeededNoise([0]))
    assert together.evaluations == int(counts.sum())
    for count in counts.unique().tolist():
        alone = solve(problem, solver, count, SeededNoise([0]))
        assert torch.equal(together.tokens[counts == count], alone.tokens[counts == count])


@pytest.mark.parametrize("levels", [[0.0, 0.5, 0.7, 0.9], [0.2, 0.2, 0.5, 1.0], [0.3, 1.0, 1.0, 1.0]])
def test_a_grid_of_ones_own_must_rise_from_noise_that_holds_some_data(levels: list[float]):
    def grid(process: Any, num_steps: int) -> TimeGrid:
        return TimeGrid(np.zeros(3), np.array(levels), np.zeros(3))

    with pytest.raises(DisaError, match="stands still nowhere"):
        grid_for(SinglestepDPMSolverPlusPlus(grid), PROCESS, 3)
