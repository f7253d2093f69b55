"""DPM-Solver++ 2M against closed forms, against loops written out by hand, and against diffusers where it is installed.

log(alpha / sigma) is called the half log SNR.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core import diffusion, flow
from disa.core.multistep import DPMSolverPlusPlus, Update, along, updates
from disa.core.noise import SeededNoise
from disa.core.problem import Bound, DenoisingProblem, Prediction, TimeGrid
from disa.core.solve import solve
from disa.core.solver import finished
from disa.core.solvers import DDIM, grid_for, make_solver
from disa.errors import DisaError
from disa.models.guided import Guided
from disa.models.heads import DiffusionHead, HeadNetwork
from fields import Said
from gaussian import (
    DEVIATION,
    FLOW,
    MEAN,
    PROCESS,
    UNIT,
    GaussianField,
    check_moments,
    errors_at_the_end,
    exact_noise,
    exact_velocity,
    flow_state,
    normal,
    orders,
    problem_of,
    root_mean_square,
    run,
    state_at,
)

NAME = "dpm-solver++-2"
BOTH = pytest.mark.parametrize("process", [PROCESS, FLOW], ids=lambda process: process.predicts)
GRIDS = [
    *(pytest.param(PROCESS, name, id=name) for name in diffusion.GRIDS),
    *(pytest.param(FLOW, name, id=f"flow-{name}") for name in [*flow.GRIDS, "shifted-0.33", "shifted-3"]),
]


def level_at(process: Any, half_log_snr: float) -> float:
    """abar or t."""
    return 1 / (1 + math.exp(-2 * half_log_snr if process is PROCESS else half_log_snr))


def smooth(process: Any, num_steps: int, vary: float = 0.0) -> TimeGrid:
    """Between half log SNR -3 and 3: even steps, or with `vary` longer and longer ones. It does not end at the data."""
    places = np.linspace(0, 1, num_steps + 1)
    places = 6 * (places + vary * places**2) / (1 + vary) - 3
    levels = np.array([level_at(process, place) for place in places.tolist()])
    return TimeGrid(levels[:-1], levels, np.linspace(1, 0, num_steps + 1)[:-1])


def exact_field(process: Any, grid: TimeGrid) -> Bound:
    """Of Gaussian data, at the levels of the grid."""
    exact, levels = (exact_noise if process is PROCESS else exact_velocity), grid.levels.tolist()
    return Said.on(grid, lambda x, i: Prediction(exact(x, levels[i])))


def end_of(process: Any, grid: TimeGrid, x: Tensor, noise: Tensor | None = None, eta: float = 0.0) -> Tensor:
    """From x, which is left as it is, in float64."""
    problem = problem_of(GaussianField(process), len(x), process=process)
    solver, noise = DPMSolverPlusPlus(eta=eta), torch.empty(0) if noise is None else noise
    return solver.run(exact_field(process, grid), problem, grid, x.clone(), noise)


def exact_state(process: Any, level: float, unit: Tensor) -> Tensor:
    return (state_at if process is PROCESS else flow_state)(level, unit)


# --- order of convergence ---------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("vary", [0.0, 1.5])
def test_it_is_of_order_2_in_even_and_in_uneven_steps(process: Any, vary: float):
    errors = []
    for num_steps in (20, 40, 80, 160, 320):
        grid = smooth(process, num_steps, vary)
        first, last = float(grid.levels[0]), float(grid.levels[-1])
        end = end_of(process, grid, exact_state(process, first, UNIT))
        errors.append(root_mean_square(end - exact_state(process, last, UNIT)))
    np.testing.assert_allclose(orders(errors)[1:], 2, atol=0.12)


def test_it_is_of_order_2_on_named_grids():
    """The steps are in log SNR, which is infinite at both ends of a flow: near them step k has an error of 1/(k n^2),
    so that the whole error falls as log(n) / n^2."""
    errors = errors_at_the_end(make_solver(NAME, "logsnr"), [20, 40, 80, 160])
    np.testing.assert_allclose(orders(errors), 2, atol=0.15)
    counts = [80, 160, 320, 640]
    errors = np.array(errors_at_the_end(make_solver(NAME), counts, FLOW)) / np.log(counts)
    np.testing.assert_allclose(orders(errors.tolist()), 2, atol=0.15)


@pytest.mark.parametrize("grid", ["uniform", "logsnr", "dpm-950", "clipped-950"])
def test_it_beats_order_1_at_equal_evaluations(grid: str):
    (second,), (first,) = (errors_at_the_end(make_solver(name, grid), [50]) for name in (NAME, "ddim"))
    assert second < 0.4 * first


# --- updates ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("process", "name"), GRIDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_known_data_go_through_every_step_exactly(process: Any, name: str, eta: float):
    """Where D is the data at every x, the state after a step is alpha' data + sigma' noise, whatever the step."""
    for num_steps in (1, 2, 3, 4, 17):
        grid = process.grid(name, num_steps)
        found = updates(process, grid, eta)
        assert len(found) == grid.num_evaluations
        for update, (now, then) in zip(found, pairwise(grid.levels.tolist()), strict=True):
            (alpha, sigma), (alpha_then, sigma_then) = process.scales(now), process.scales(then)
            assert all(type(weight) is float and math.isfinite(weight) for weight in update)
            assert update.keep * alpha + update.now + update.before == pytest.approx(alpha_then, abs=1e-12)
            square = (update.keep * sigma) ** 2 + update.spread**2
            assert square == pytest.approx(sigma_then**2, rel=1e-9, abs=1e-14)
            assert (update.spread > 0) == (eta > 0 and sigma_then > 0)


@pytest.mark.parametrize(("process", "name"), GRIDS)
def test_a_step_extrapolates_where_there_is_a_line_to_go_along(process: Any, name: str):
    """Not in the first step, in the one after pure noise, and in the one that ends at the data."""
    grid = process.grid(name, 9)
    first = 2 if process.scales(float(grid.levels[0]))[0] == 0 else 1
    last = grid.num_evaluations - (process.scales(float(grid.levels[-1]))[1] == 0)
    extrapolates = [update.before != 0 for update in updates(process, grid)]
    assert extrapolates == [first <= i < last for i in range(grid.num_evaluations)]


def test_the_first_part_of_a_grid_ends_in_an_ordinary_step():
    for process in (PROCESS, FLOW):
        whole = process.grid(process.even_grid, 12)
        first = whole.part(0, 7, 7)
        assert updates(process, first, 1.0) == updates(process, whole, 1.0)[:7]
        assert updates(process, first)[-1].before < 0
        assert updates(process, whole.part(7, 12, 5))[0].before == 0


def test_one_step_is_ddim_and_so_is_the_first():
    """With eta 1 as well, where DDIM adds as much noise as DDPM."""
    for eta in (0.0, 1.0):
        whole, noise = PROCESS.grid("logsnr", 6), normal(6, 64, 4, seed=5)
        for grid in (PROCESS.grid("logsnr", 1), whole.part(0, 1, 1)):
            ddim, found = (run(solver, grid, UNIT, noise) for solver in (DDIM(eta=eta), DPMSolverPlusPlus(eta=eta)))
            torch.testing.assert_close(found, ddim, rtol=1e-9, atol=1e-9)


def test_updates_are_made_once_and_cannot_be_changed():
    grid = FLOW.grid("uniform", 9)
    found: Any = updates(FLOW, grid, 0.5)
    assert updates(FLOW, replace(grid, levels=grid.levels.copy()), 0.5) is found
    assert (type(found), type(found[3])) == (tuple, Update)
    with pytest.raises(AttributeError):
        found[3].keep = 0.0
    with pytest.raises(TypeError):
        found[3] = found[2]


@pytest.mark.parametrize("levels", [[0.5, 0.0, 0.2, 1.0], [0.0, 0.0, 1.0], [0.3, 1.0, 1.0], [0.3, 1.0, 0.5]])
def test_a_grid_of_ones_own_must_go_from_noise_to_data(levels: list[float]):
    def grid(process: Any, num_steps: int) -> TimeGrid:
        return TimeGrid(np.zeros(len(levels) - 1), np.array(levels), np.zeros(len(levels) - 1))

    with pytest.raises(DisaError, match="goes from noise to data: only the first level may be noise"):
        grid_for(DPMSolverPlusPlus(grid), PROCESS, 3)


def test_a_level_that_comes_twice_changes_nothing():
    levels = [0.9, 0.5, 0.5, 0.2, 0.1]
    grid = TimeGrid(np.zeros(4), np.array(levels), np.zeros(4))
    for eta in (0.0, 1.0):
        still = updates(FLOW, grid, eta)[2 - 1]
        assert (still.keep, still.now, still.before, still.spread) == (1, 0, 0, 0)
        assert updates(FLOW, grid, eta)[2].before == 0


# --- every count on every grid ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("process", "name"), GRIDS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_few_steps_are_finite_on_every_grid(process: Any, name: str, eta: float):
    for num_steps in (1, 2, 3):
        problem = problem_of(GaussianField(process), 64, process=process)
        solution = solve(problem, make_solver(NAME, name, eta=eta), num_steps, SeededNoise([0]))
        assert solution.evaluations == 64 * process.grid(name, num_steps).num_evaluations
        assert solution.tokens.dtype == torch.float32
        assert solution.tokens.isfinite().all()
        assert root_mean_square(solution.tokens) < 3


@BOTH
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 14, 15, 16, 200])
def test_any_count_comes_near_the_end_of_the_ode(process: Any, num_steps: int):
    (error,) = errors_at_the_end(make_solver(NAME), [num_steps], process)
    assert error < 4 / num_steps


@BOTH
def test_single_precision_is_enough(process: Any):
    """50 steps round by a few units in the last place of states of size 6, no more for a flow than for a diffusion."""
    grid = process.grid(process.even_grid, 50)
    for eta in (0.0, 1.0):
        noise, start = normal(50, 64, 4, seed=3), exact_state(process, float(grid.levels[0]), UNIT)
        double = end_of(process, grid, start, noise, eta)
        single = end_of(process, grid, start.float(), noise.float(), eta)
        assert single.dtype == torch.float32
        assert (single - double).abs().max() < 8e-6


def test_it_takes_the_grid_that_suits_the_process():
    for process, name in ((PROCESS, "logsnr"), (FLOW, "uniform")):
        np.testing.assert_array_equal(make_solver(NAME).plan(process, 9).levels, process.grid(name, 9).levels)


# --- with noise: mean and covariance ----------------------------------------------------------------------------------


def moments(process: Any, grid: TimeGrid, eta: float) -> tuple[Tensor, Tensor]:
    """Mean and variance [4] of the end, from those of the state at the first level: with Gaussian data the end is
    affine in the start and in every noise, so that one path for each of them tells its share."""
    sources = grid.num_evaluations + 1
    start = exact_state(process, float(grid.levels[0]), torch.zeros(sources + 1, 4, dtype=torch.float64))
    start[1] = exact_state(process, float(grid.levels[0]), torch.ones(1, 4, dtype=torch.float64))
    noise = torch.zeros(grid.num_evaluations, sources + 1, 4, dtype=torch.float64)
    for i in range(grid.num_evaluations):
        noise[i, i + 2] = 1
    ends = end_of(process, grid, start, noise, eta)
    return ends[0], (ends[1:] - ends[0]).square().sum(0)


@BOTH
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_mean_and_variance_go_to_those_of_the_data(process: Any, eta: float):
    """The mean exactly, from any start at the mean; the variance with order 2, on Gaussian data."""
    means, variances = [], []
    for num_steps in (20, 40, 80, 160, 320):
        grid = smooth(process, num_steps)
        mean, variance = moments(process, grid, eta)
        last = float(grid.levels[-1])
        centre = exact_state(process, last, torch.zeros(4, dtype=torch.float64))
        deviation = exact_state(process, last, torch.ones(4, dtype=torch.float64)) - centre
        means.append(root_mean_square(mean - centre))
        variances.append(root_mean_square(variance / deviation**2 - 1))
    assert max(means) < 1e-12
    np.testing.assert_allclose(orders(variances)[1:], 2, atol=0.2)


@BOTH
def test_samples_have_the_moments_and_no_correlation(process: Any):
    rows, grid = 20_000, process.grid(process.even_grid, 8)
    for eta in (0.4, 1.0):
        start = exact_state(process, float(grid.levels[0]), normal(rows, 4, seed=1))
        samples = end_of(process, grid, start, normal(8, rows, 4, seed=2), eta)
        check_moments(samples, *moments(process, grid, eta))


@BOTH
def test_with_many_steps_the_samples_are_the_data(process: Any):
    rows, grid = 5000, process.grid(process.even_grid, 200)
    noise = normal(200, rows, 4, seed=4)
    start = exact_state(process, float(grid.levels[0]), normal(rows, 4, seed=3))
    check_moments(end_of(process, grid, start, noise, 1.0), MEAN, DEVIATION**2)


def test_eta_0_takes_no_noise_and_the_last_step_adds_none():
    grid, noise = FLOW.grid("uniform", 6), normal(6, 64, 4, seed=7)
    start = exact_state(FLOW, 1.0, UNIT)
    assert torch.equal(end_of(FLOW, grid, start), end_of(FLOW, grid, start, noise))
    assert torch.equal(end_of(FLOW, grid, start, noise, 1.0), end_of(FLOW, grid, start, noise[:5], 1.0))
    assert not torch.equal(end_of(FLOW, grid, start, noise, 1.0), end_of(FLOW, grid, start, -noise, 1.0))
    assert (make_solver(NAME).stochastic, make_solver(NAME, eta=0.1).stochastic) == (False, True)


# --- against others ---------------------------------------------------------------------------------------------------


def by_hand(process: Any, grid: TimeGrid, x: Tensor, says: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Algorithm 2 of Lu et al. 2022 in their letters, in float64, with a step of order 1 at both ends."""
    scales = [process.scales(level) for level in grid.levels.tolist()]
    half_log_snr = [math.log(a / s) if a and s else math.copysign(math.inf, a - s) for a, s in scales]
    last, x = None, x.double()
    for i in range(grid.num_evaluations):
        (_, sigma), (alpha_then, sigma_then) = scales[i], scales[i + 1]
        data = process.data(x, says(x, i), float(grid.levels[i])).double()
        h, towards = half_log_snr[i + 1] - half_log_snr[i], data
        if last is not None and math.isfinite(h):
            r = (half_log_snr[i] - half_log_snr[i - 1]) / h
            towards = (1 + 1 / (2 * r)) * data - 1 / (2 * r) * last
        x = sigma_then / sigma * x - alpha_then * math.expm1(-h) * towards
        last = data
    return x


@BOTH
def test_guidance_in_a_part_of_the_grid_is_what_a_loop_by_hand_makes(process: Any):
    head = DiffusionHead(channels=4, condition_width=6, width=16, depth=2).requires_grad_(False)
    for seed, parameter in enumerate(head.parameters()):
        parameter.copy_(0.3 * normal(*parameter.shape, seed=seed, dtype=torch.float32))
    yes, no = (normal(5, 6, seed=seed, dtype=torch.float32) for seed in (1, 2))
    field = Guided(HeadNetwork.of(head, yes, no), 2.5, (0.3, 0.7))
    problem, grid = problem_of(field, 5, process=process), process.grid("uniform", 10)
    calls, inside = [], grid.within((0.3, 0.7))

    def says(x: Tensor, i: int) -> Tensor:
        time = torch.full((5,), float(grid.network_times[i]))
        calls.append(1 + inside[i])
        value = head(x.float(), time, yes).value
        other = head(x.float(), time, no).value if inside[i] else value
        return (other + (2.5 if inside[i] else 1.0) * (value - other)).double()

    solution = solve(problem, make_solver(NAME, "uniform"), 10, SeededNoise([1]))
    expected = by_hand(process, grid, SeededNoise([1]).initial(problem), says)
    assert 0 < sum(inside) < 10
    assert solution.evaluations == 5 * sum(calls)
    torch.testing.assert_close(solution.tokens.double(), expected, rtol=1e-4, atol=1e-4)


def diffusers_end(process: Any, grid: TimeGrid, x: Tensor, noise: Tensor, eta: float) -> Tensor:
    """The same path by DPMSolverMultistepScheduler, which is fed predicted data."""
    module = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep")
    scheduler = module.DPMSolverMultistepScheduler(
        num_train_timesteps=1000,
        algorithm_type="sde-dpmsolver++" if eta else "dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",
        euler_at_final=True,
        prediction_type="sample",
        use_flow_sigmas=process is FLOW,
    )
    scheduler.set_timesteps(grid.num_evaluations)
    scheduler.timesteps = torch.arange(grid.num_evaluations)
    # Its own sigmas are float32; a diffusion's are in the coordinates where alpha is 1.
    scales = [process.scales(level) for level in grid.levels.tolist()]
    sigmas = [sigma if process is FLOW else sigma / alpha for alpha, sigma in scales]
    scheduler.sigmas = torch.tensor(sigmas, dtype=torch.float64)
    field = exact_field(process, grid)
    for i, timestep in enumerate(scheduler.timesteps):
        data = process.data(x, field(x, i).value, float(grid.levels[i]))
        extra = {"variance_noise": noise[i]} if eta else {}
        x = scheduler.step(data, timestep, x, return_dict=False, **extra)[0]
    return x


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 8, 30])
@pytest.mark.parametrize(
    ("process", "name"),
    [(PROCESS, "logsnr"), (PROCESS, "uniform"), (FLOW, "uniform"), (FLOW, "shifted-0.33"), (FLOW, "xar-em")],
)
def test_it_equals_diffusers(process: Any, name: str, num_steps: int, eta: float):
    grid, noise = process.grid(name, num_steps), normal(num_steps, 64, 4, seed=6)
    start = exact_state(process, float(grid.levels[0]), UNIT)
    expected = diffusers_end(process, grid, start, noise, eta)
    # diffusers keeps the state in float32.
    torch.testing.assert_close(end_of(process, grid, start, noise, eta), expected.double(), rtol=0, atol=5e-6)


# --- no state ---------------------------------------------------------------------------------------------------------


@BOTH
def test_the_same_object_goes_along_many_paths_at_once(process: Any):
    """Each ends where it ends alone: by threads, and where one path begins in the middle of another."""
    solver, problem = make_solver(NAME, eta=0.5), problem_of(GaussianField(process), 64, process=process)
    before = repr(solver), dict(vars(solver))
    counts = [3, 17, 8, 30] * 3

    def alone(num_steps: int) -> Tensor:
        return solve(problem, solver, num_steps, SeededNoise([num_steps])).tokens

    expected = [alone(count) for count in counts]
    with ThreadPoolExecutor(4) as pool:
        assert all(map(torch.equal, pool.map(alone, counts), expected))

    grid, noise = solver.plan(process, 8), SeededNoise([8])
    inner = problem.field.on(grid)

    def interrupted(x: Tensor, i: int) -> Prediction:
        alone(17)
        return inner(x, i)

    start, added = noise.initial(problem).clone(), noise.added(problem, 8)
    assert torch.equal(solver.run(Said.on(grid, interrupted), problem, grid, start, added), expected[2])
    assert (repr(solver), vars(solver)) == before


def test_the_loop_changes_nothing_but_the_state():
    grid, noise = FLOW.grid("uniform", 5), normal(5, 64, 4, seed=1)
    kept, said = noise.clone(), list[tuple[Tensor, Tensor]]()

    def says(x: Tensor, i: int) -> Prediction:
        value = exact_velocity(x, float(grid.levels[i]))
        said.append((value, value.clone()))
        return Prediction(value)

    finished(along(FLOW, grid.levels.tolist(), UNIT.clone(), noise, updates(FLOW, grid, 1.0)), Said.on(grid, says))
    assert torch.equal(noise, kept)
    assert all(torch.equal(value, before) for value, before in said)


@dataclass(eq=True)
class Own:
    """A process of another kind, which has no hash: x = data + level noise, and the network says noise."""

    predicts, learns_variance, shows_data_in_noise, even_grid = "noise", False, False, "geometric"

    def grid(self, name: Any, num_steps: int) -> TimeGrid:
        levels = np.append(np.geomspace(80, 0.02, num_steps), 0.0)
        return TimeGrid(levels[:-1], levels, np.linspace(1, 0, num_steps + 1)[:-1])

    def scales(self, level: float) -> tuple[float, float]:
        return 1.0, level

    def data(self, x: Tensor, value: Tensor, level: float) -> Tensor:
        return x - level * value


def test_a_process_of_ones_own_needs_scales_and_data():
    own: Any = Own()
    solver, errors = make_solver(NAME), []
    for num_steps in (20, 40, 80, 160):
        grid = solver.plan(own, num_steps)
        levels = grid.levels.tolist()
        field = Said.on(grid, lambda x, i, s=levels: Prediction(s[i] * (x - MEAN) / (DEVIATION**2 + s[i] ** 2)))
        problem = DenoisingProblem(GaussianField(), own, (4,), torch.zeros(64), torch.arange(64), 0, 1)
        start = MEAN + (DEVIATION**2 + 80**2).sqrt() * UNIT
        errors.append(
            root_mean_square(solver.run(field, problem, grid, start, torch.empty(0)) - MEAN - DEVIATION * UNIT)
        )
    assert errors[-1] < 1e-3
    assert orders(errors[:2]).min() > 1.5
