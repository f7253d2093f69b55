"""Solvers against closed forms: data that are Gaussian have an exact network, an exact ODE and an exact chain."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core.diffusion import CosineDiffusion
from disa.core.flow import FlowMatching
from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem, Grid, Look, Plan, TimeGrid
from disa.core.solve import Meter, solve
from disa.core.solver import Solver
from disa.core.solvers import DDIM, DDPM, SOLVERS, Euler, EulerMaruyama, grid_for, make_solver, ode_solver, parse_solver
from disa.errors import DisaError
from disa.models import guided
from disa.models.guided import Guided
from disa.models.heads import DiffusionHead, HeadNetwork
from gaussian import (
    DEVIATION,
    FLOW,
    MEAN,
    PROCESS,
    UNIT,
    GaussianField,
    check_moments,
    errors_at_the_end,
    exact_velocity,
    flow_spread,
    normal,
    orders,
    problem_of,
    run,
    spread,
)
from planned import looking

PAIRS = [
    pytest.param(name, process, id=f"{name}-{process.predicts}")
    for name in SOLVERS
    for process in (PROCESS, FLOW)
    if process.predicts in make_solver(name).takes
]
DIFFUSION = [name for name in SOLVERS if "noise" in make_solver(name).takes]


# --- deterministic solvers: order of convergence ----------------------------------------------------------------------


@pytest.mark.parametrize("grid", ["uniform", "logsnr"])
def test_ddim_is_of_order_1(grid: str):
    errors = errors_at_the_end(make_solver("ddim", grid), [10, 20, 40, 80, 160], CosineDiffusion(20_000))
    np.testing.assert_allclose(orders(errors), 1, atol=0.06)


@pytest.mark.parametrize("name", ["dpm-solver", "dpm-solver++", "ddim"])
def test_the_official_dpm_solvers_are_of_order_1_on_their_own_grid(name: str):
    errors = errors_at_the_end(make_solver(name, "dpm-950"), [10, 20, 40, 80, 160])
    np.testing.assert_allclose(orders(errors), 1, atol=0.06)


def test_ddim_goes_to_the_ode():
    errors = errors_at_the_end(make_solver("ddim", "uniform"), [50, 400, 3000, 19_000], CosineDiffusion(20_000))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4


@pytest.mark.parametrize("name", [name for name in DIFFUSION if not make_solver(name).stochastic])
def test_one_step_jumps_to_the_expected_clean_value(name: str):
    grid = PROCESS.grid("uniform", 1)
    abar = float(grid.levels[0])
    end = run(make_solver(name, "uniform"), grid, UNIT)
    expected = MEAN + math.sqrt(abar) * DEVIATION**2 / spread(abar) * UNIT
    torch.testing.assert_close(end, expected, rtol=0, atol=1e-10)


# --- stochastic solvers: mean and covariance --------------------------------------------------------------------------


def textbook_chain(grid: TimeGrid, variance: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the ancestral chain's end, step by step (Ho et al. 2020, eq. 11; Nichol and Dhariwal, 15).

    The network is linear in x, so every state of the chain is Gaussian.
    """
    levels = grid.levels.tolist()
    mean, square = math.sqrt(levels[0]) * MEAN, spread(levels[0]) ** 2
    for now, then in pairwise(levels):
        alpha = now / then
        beta, centre = 1 - alpha, math.sqrt(now) * MEAN
        slope = 1 - beta / spread(now) ** 2
        mean = (mean - beta * (mean - centre) / spread(now) ** 2) / math.sqrt(alpha)
        square = (slope / math.sqrt(alpha)) ** 2 * square
        if then < 1:
            share, lower = (variance + 1) / 2, beta * (1 - then) / (1 - now)
            square = square + temperature**2 * beta**share * lower ** (1 - share)
    return mean, square


@pytest.mark.parametrize("num_steps", [2, 4, 15])
@pytest.mark.parametrize(("variance", "temperature"), [(-1.0, 1.0), (1.0, 1.0), (0.3, 1.0), (-1.0, 0.6), (0.3, 1.5)])
def test_ddpm_makes_the_gaussian_of_the_textbook_chain(num_steps: int, variance: float, temperature: float):
    rows, grid = 20_000, PROCESS.grid("uniform", num_steps)
    solver, noise = make_solver("ddpm", "uniform", temperature), normal(num_steps, rows, 4, seed=2)
    samples = run(solver, grid, normal(rows, 4, seed=1), noise, GaussianField(variance=variance))
    check_moments(samples, *textbook_chain(grid, variance, temperature))


@pytest.mark.parametrize(("name", "eta"), [("ddpm", None), ("ddim", 1.0), ("ddim", 0.5)])
def test_with_many_steps_the_samples_are_the_data(name: str, eta: float | None):
    rows, grid = 5000, PROCESS.grid("uniform", 951)
    noise = normal(grid.num_evaluations, rows, 4, seed=4)
    samples = run(make_solver(name, "uniform", eta=eta), grid, normal(rows, 4, seed=3), noise, GaussianField())
    check_moments(samples, MEAN, DEVIATION**2)


def test_ddim_with_eta_1_is_ddpm_at_the_lower_variance():
    grid, noise = PROCESS.grid("uniform", 12), normal(12, 64, 4, seed=5)
    ddim = run(make_solver("ddim", eta=1.0), grid, UNIT, noise)
    for variance in (None, -1.0):
        ddpm = run(make_solver("ddpm"), grid, UNIT, noise, GaussianField(variance=variance))
        torch.testing.assert_close(ddpm, ddim, rtol=1e-9, atol=1e-9)
    assert (ddim - run(make_solver("ddim"), grid, UNIT)).abs().max() > 0.1


def test_temperature_0_is_deterministic_and_temperature_scales_the_added_noise():
    grid, noise = PROCESS.grid("uniform", 12), normal(12, 64, 4, seed=6)
    quiet = run(make_solver("ddpm", temperature=0.0), grid, UNIT, noise)
    assert torch.equal(quiet, run(make_solver("ddpm", temperature=0.0), grid, UNIT, -3 * noise))
    warm = run(make_solver("ddpm", temperature=0.5), grid, UNIT, noise)
    torch.testing.assert_close(warm, run(make_solver("ddpm"), grid, UNIT, 0.5 * noise))
    assert (warm - quiet).abs().max() > 0.1


@pytest.mark.parametrize("eta", [None, 1.0])
def test_no_noise_is_added_at_the_last_step(eta: float | None):
    solver = make_solver("ddim", eta=eta) if eta else make_solver("ddpm")
    grid, noise = PROCESS.grid("uniform", 6), normal(6, 64, 4, seed=7)
    changed = noise.clone()
    changed[-1] += 1
    assert torch.equal(run(solver, grid, UNIT, noise), run(solver, grid, UNIT, changed))
    changed[-2] += 1
    assert not torch.equal(run(solver, grid, UNIT, noise), run(solver, grid, UNIT, changed))


# --- flow -------------------------------------------------------------------------------------------------------------


def flow_errors(name: str, counts: list[int], grid: str = "uniform") -> list[float]:
    """At the data, of paths that start at t = 1; doubles in, float32 out."""
    return errors_at_the_end(make_solver(name, grid), counts, FLOW)


@pytest.mark.parametrize("grid", ["uniform", "shifted-3"])
@pytest.mark.parametrize(("name", "order", "counts"), [
    ("euler", 1, [40, 80, 160, 320]),
    ("heun", 2, [40, 80, 160, 320]),
    ("heun", 2, [79, 159, 319, 639]),
])  # fmt: skip
def test_flow_solvers_have_their_order(name: str, order: int, counts: list[int], grid: str):
    np.testing.assert_allclose(orders(flow_errors(name, counts, grid)), order, atol=0.1)


@pytest.mark.parametrize("name", ["heun", "dpm-solver++-2"])
@pytest.mark.parametrize("num_steps", [20, 50])
def test_higher_orders_beat_euler_at_equal_evaluations(name: str, num_steps: int):
    (error,), (euler,) = flow_errors(name, [num_steps]), flow_errors("euler", [num_steps])
    assert error < 0.3 * euler


@pytest.mark.parametrize("name", ["euler", "heun", "dpm-solver++-2"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 4, 14, 15, 16, 200])
def test_flow_solvers_are_finite_at_every_count(name: str, num_steps: int):
    (error,) = flow_errors(name, [num_steps])
    assert error < 4 / num_steps


@pytest.mark.parametrize("name", ["euler", "heun", "euler-maruyama", "dpm-solver++-2"])
def test_one_step_of_a_flow_jumps_to_the_expected_clean_value(name: str):
    """From pure noise the expected data are their mean, whatever the noise; the last step adds none."""
    solver = make_solver(name)
    end = run(solver, solver.plan(FLOW, 1), UNIT, normal(1, 64, 4, seed=9), GaussianField(FLOW))
    torch.testing.assert_close(end.double(), MEAN.expand(64, 4), rtol=0, atol=1e-6)


# Both ends of each interval are evaluated; with an odd count the last interval has no second evaluation.
@pytest.mark.parametrize(
    ("num_steps", "times"),
    [(1, [1]), (2, [1, 0]), (3, [1, 0.5, 0.5]), (4, [1, 0.5, 0.5, 0]), (5, [1, 2 / 3, 2 / 3, 1 / 3, 1 / 3])],
)
def test_the_times_of_heun(num_steps: int, times: list[float]):
    grid = make_solver("heun").plan(FLOW, num_steps)
    np.testing.assert_allclose(grid.times, times)
    np.testing.assert_allclose(grid.levels, [*times, 0])
    np.testing.assert_array_equal(grid.network_times, FLOW.network_times(np.array(times)))


def test_two_evaluations_of_heun_worked_out_by_hand():
    """From t = 1 to 0 in one interval: the mean of the velocities at x and at x - v(x, 1)."""
    x = UNIT
    first = exact_velocity(x, 1.0)
    expected = x - (first + exact_velocity(x - first, 0.0)) / 2
    solver = make_solver("heun")
    end = run(solver, solver.plan(FLOW, 2), x, field=GaussianField(FLOW))
    torch.testing.assert_close(end.double(), expected, rtol=0, atol=1e-6)


def sde_chain(grid: TimeGrid, temperature: float) -> tuple[Tensor, Tensor]:
    """Mean and variance of the end of the Euler-Maruyama chain: x + dt (v - t score) + sqrt(2 t |dt|) noise.

    The score is that of the Gaussian state, so the velocity is not asked for it.
    """
    mean, square = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for now, then in pairwise(grid.levels.tolist()):
        centre, variance, dt = (1 - now) * MEAN, flow_spread(now) ** 2, then - now
        slope = (now - (1 - now) * DEVIATION**2) / variance + now / variance  # of v, and of -t score
        mean = mean + dt * (slope * (mean - centre) - MEAN)
        square = (1 + dt * slope) ** 2 * square
        if then > 0:
            square = square + temperature**2 * 2 * now * -dt
    return mean, square


@pytest.mark.parametrize(("num_steps", "grid"), [(2, "xar-em"), (5, "uniform"), (15, "xar-em")])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_euler_maruyama_makes_the_gaussian_of_its_chain(num_steps: int, grid: str, temperature: float):
    rows, solver = 20_000, make_solver("euler-maruyama", grid, temperature)
    plan, noise = solver.plan(FLOW, num_steps), normal(num_steps, rows, 4, seed=2)
    samples = run(solver, plan, normal(rows, 4, seed=1), noise, GaussianField(FLOW)).double()
    check_moments(samples, *sde_chain(plan, temperature))


def test_with_many_steps_the_samples_of_the_sde_are_the_data():
    rows, solver = 4000, make_solver("euler-maruyama", "uniform")
    noise = normal(800, rows, 4, seed=4)
    samples = run(solver, solver.plan(FLOW, 800), normal(rows, 4, seed=3), noise, GaussianField(FLOW)).double()
    check_moments(samples, MEAN, DEVIATION**2)


def test_no_noise_is_added_at_the_last_step_of_the_sde():
    solver, noise = make_solver("euler-maruyama"), normal(6, 64, 4, seed=7)
    end = run(solver, solver.plan(FLOW, 6), UNIT, noise, GaussianField(FLOW))
    assert torch.equal(end, run(solver, solver.plan(FLOW, 6), UNIT, noise[:5], GaussianField(FLOW)))
    quiet = make_solver("euler-maruyama", temperature=0.0)
    still = run(quiet, solver.plan(FLOW, 6), UNIT, noise, GaussianField(FLOW))
    assert torch.equal(still, run(quiet, solver.plan(FLOW, 6), UNIT, -noise, GaussianField(FLOW)))
    assert (end - still).abs().max() > 0.1


def test_the_sde_that_ends_along_the_ode_ends_at_what_is_predicted():
    """Up to its last step it is the other one."""
    plain, solver = make_solver("euler-maruyama", "xar-em"), make_solver("euler-maruyama-ode", "xar-em")
    grid, noise, field = solver.plan(FLOW, 6), normal(5, 64, 4, seed=7), GaussianField(FLOW)
    before = TimeGrid(grid.network_times[:5], grid.levels[:6], grid.times[:5])
    noisy = make_solver("euler-maruyama-noisy", "xar-em")
    there = run(noisy, before, UNIT, noise, field)
    expected = there - 0.04 * exact_velocity(there.double(), 0.04)
    torch.testing.assert_close(run(solver, grid, UNIT, noise, field).double(), expected, rtol=0, atol=1e-6)
    assert not torch.equal(run(plain, grid, UNIT, noise, field), run(solver, grid, UNIT, noise, field))


def test_noise_of_the_last_step_stays_in_what_is_drawn():
    solver, quiet = make_solver("euler-maruyama-noisy"), make_solver("euler-maruyama", "uniform")
    grid, noise, field = solver.plan(FLOW, 6), normal(6, 64, 4, seed=7), GaussianField(FLOW)
    added = (run(solver, grid, UNIT, noise, field) - run(quiet, grid, UNIT, noise, field)).double()
    torch.testing.assert_close(added, math.sqrt(2) / 6 * noise[5].double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["euler", "heun", "euler-maruyama"])
def test_the_network_of_a_flow_sees_float32_of_a_state_in_float64(name: str):
    field, solver = GaussianField(FLOW), make_solver(name)
    start = UNIT.clone()
    run(solver, solver.plan(FLOW, 4), start, normal(4, 64, 4), field)
    assert {state.dtype for state in field.states} == {torch.float32}
    assert torch.equal(start, UNIT)


# --- solve ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "process"), PAIRS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 50])
def test_every_solver_makes_the_evaluations_of_its_plan(name: str, process: Any, num_steps: int):
    field, solver = GaussianField(process), make_solver(name)
    solution = solve(problem_of(field, 7, process=process), solver, num_steps, SeededNoise([3]))
    assert solution.evaluations == field.made() == 7 * solver.plan(process, num_steps).num_evaluations
    assert solution.steps == num_steps
    assert solution.tokens.shape == (7, 4)
    assert solution.tokens.isfinite().all()


@pytest.mark.parametrize(("name", "process"), PAIRS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 50])
def test_on_a_clean_grid_every_solver_makes_as_many_evaluations_as_asked(name: str, process: Any, num_steps: int):
    field = GaussianField(process)
    solve(problem_of(field, 3, process=process), make_solver(name, "uniform"), num_steps, SeededNoise([3]))
    assert field.made() == 3 * num_steps


@pytest.mark.parametrize(("num_steps", "made"), [(1, 1), (2, 2), (3, 2), (5, 4), (25, 24), (50, 50)])
def test_the_official_split_grid_makes_fewer_evaluations_than_asked(num_steps: int, made: int):
    field = GaussianField(FLOW)
    solve(problem_of(field, 3, process=FLOW), make_solver("euler", "flowar-split"), num_steps, SeededNoise([3]))
    assert field.made() == 3 * made


@pytest.mark.parametrize("name", ["ddpm", "ddim"])
def test_the_official_clip_makes_fewer_evaluations_than_asked(name: str):
    field = GaussianField()
    solve(problem_of(field, 3), make_solver(name, "clipped-950"), 50, SeededNoise([3]))
    assert field.made() == 3 * 48


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_rows_with_their_own_counts_equal_rows_solved_alone(name: str, process: Any):
    counts, solver, noise = torch.tensor([5, 2, 9, 2, 5, 1, 1]), make_solver(name), SeededNoise([11])
    field = GaussianField(process)
    problem = problem_of(field, len(counts), ar_step=2, process=process)
    solution = solve(problem, solver, counts, noise)
    together = solution.tokens
    assert solution.evaluations == field.made() == sum(solver.plan(process, n).num_evaluations for n in counts.tolist())
    for row, count in enumerate(counts.tolist()):
        alone = solve(problem.select(torch.tensor([row])), solver, count, noise).tokens
        assert torch.equal(together[row], alone[0])
    assert not torch.equal(together[0], solve(problem, solver, 9, noise).tokens[0])


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_a_count_for_all_rows_and_one_for_each_row_are_the_same(name: str, process: Any):
    problem, noise = problem_of(GaussianField(process), 6, process=process), SeededNoise([5])
    each = solve(problem, make_solver(name), torch.full((6,), 4), noise)
    assert torch.equal(each.tokens, solve(problem, make_solver(name), 4, noise).tokens)


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_solving_leaves_the_noise_as_it_was_and_gives_float32(name: str, process: Any):
    problem, kept = problem_of(GaussianField(process), 3, process=process), normal(3, 4, dtype=torch.float32)

    class Kept(SeededNoise):
        def initial(self, problem: DenoisingProblem) -> Tensor:
            return kept

    before = kept.clone()
    assert solve(problem, make_solver(name), 3, Kept([0])).tokens.dtype == torch.float32
    assert torch.equal(kept, before)


def test_counts_that_do_not_fit_the_rows_are_refused():
    with pytest.raises(DisaError, match="2 counts for 3 rows"):
        solve(problem_of(GaussianField(), 3), make_solver("ddpm"), torch.tensor([4, 4]), SeededNoise([0]))


@pytest.mark.parametrize("steps", [0, -2, torch.tensor([3, 0])])
def test_rows_without_steps_are_refused(steps: int | Tensor):
    with pytest.raises(DisaError, match="at least 1"):
        solve(problem_of(GaussianField(), 2), make_solver("ddpm"), steps, SeededNoise([0]))


class Other(CosineDiffusion):
    """A process of another kind."""

    def __init__(self, predicts: str) -> None:
        super().__init__()
        object.__setattr__(self, "predicts", predicts)

    def grid(self, name: Grid, num_steps: int) -> TimeGrid:
        raise AssertionError("no work may be done before the mismatch is found")


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("predicts", ["noise", "velocity", "score"])
def test_a_solver_refuses_a_process_that_predicts_something_else(name: str, predicts: str):
    field, solver = GaussianField(), make_solver(name)
    if predicts in solver.takes:
        return
    problem = replace(problem_of(field, 2), process=Other(predicts))
    with pytest.raises(DisaError, match=rf"predicts {' or '.join(solver.takes)}; .*predicts {predicts}"):
        grid_for(solver, problem.process, 4)
    with pytest.raises(DisaError, match="choose .*heun" if predicts == "velocity" else "choose "):
        solve(problem, solver, 4, SeededNoise([0]))
    assert field.made() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "eulr"}, "unknown solver 'eulr'.*heun"),
        (
            {"name": "heun", "temperature": 0.9},
            "ddpm and euler-maruyama add; heun adds none",
        ),
        ({"name": "euler-maruyama", "temperature": math.inf}, "temperature must be a (finite )?number, 0 or more"),
        ({"name": "euler-maruyama", "eta": 0.5}, "eta belongs to ddim"),
        ({"name": ""}, "unknown solver ''"),
        ({"name": "dpm-solver++2"}, r"unknown solver 'dpm-solver\+\+2'.* Did you mean dpm-solver\+\+-2\?"),
        ({"name": "dpm-solver-2"}, r"dpm-solver-2 is no longer there: choose dpm-solver\+\+-2"),
        ({"name": "dpm-solver-3", "grid": "uniform"}, r"dpm-solver-3 is no longer there: choose dpm-solver\+\+-2"),
        ({"name": "dpm-solver++-3"}, r"dpm-solver\+\+-3 is no longer there: choose dpm-solver\+\+-2"),
        ({"name": "dpm-solver++-2", "eta": 1.5}, "eta must be a (finite )?number from 0 to 1"),
        ({"name": "ddpm", "temperature": -0.1}, "temperature must be a (finite )?number, 0 or more"),
        ({"name": "ddpm", "temperature": math.nan}, "temperature must be a (finite )?number, 0 or more"),
        ({"name": "ddim", "temperature": 0.9}, "ddim adds none"),
        ({"name": "dpm-solver++-2", "temperature": 0.9}, "adds none"),
        ({"name": "ddpm", "eta": 0.5}, "eta belongs to ddim"),
        ({"name": "ddim", "eta": -0.5}, "eta must be a (finite )?number from 0 to 1"),
        ({"name": "ddim", "eta": 1.5}, "eta must be a (finite )?number from 0 to 1"),
        ({"name": "ddim", "eta": math.nan}, "eta must be a (finite )?number from 0 to 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(arguments: dict[str, Any], message: str):
    with pytest.raises(DisaError, match=message):
        make_solver(**arguments)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_goes_along_the_grid_that_is_named(name: str):
    assert make_solver(name, "logsnr").grid == "logsnr"
    assert make_solver(name, "logsnr") != make_solver(name)


# --- guidance ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def head() -> DiffusionHead:
    """A tiny head with random weights whose noise prediction is small enough to keep paths bounded."""
    head = DiffusionHead(channels=4, condition_width=6, width=16, depth=2).requires_grad_(False)
    for seed, parameter in enumerate(head.parameters()):
        parameter.copy_(0.3 * normal(*parameter.shape, seed=seed, dtype=torch.float32))
    return head


CONDITION, OTHER = normal(5, 6, seed=1, dtype=torch.float32), normal(5, 6, seed=2, dtype=torch.float32)


def draw(
    head: DiffusionHead, solver: Solver, condition: Tensor, unconditional: Tensor | None = None, scale: float = 1.0,
    process: CosineDiffusion | FlowMatching = PROCESS, interval: tuple[float, float] = (0.0, 1.0),
) -> Tensor:  # fmt: skip
    conditions = [half for half in (condition, unconditional) if half is not None]
    field = Guided(HeadNetwork.of(head, *conditions), scale, interval)
    solution = solve(problem_of(field, len(condition), process=process), solver, 6, SeededNoise([1]))
    grid = solver.plan(process, 6)
    inside = int(((grid.times >= interval[0]) & (grid.times <= interval[1])).sum())
    guided = 0 if unconditional is None or scale == 1 else inside
    assert solution.evaluations == len(condition) * (grid.num_evaluations + guided)
    return solution.tokens


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_guidance_works_with_every_solver(head: DiffusionHead, name: str, process: Any):
    solver = make_solver(name)

    def end(condition: Tensor, unconditional: Tensor | None = None, scale: float = 1.0) -> Tensor:
        return draw(head, solver, condition, unconditional, scale, process)

    plain, other = end(CONDITION), end(OTHER)
    close = {"rtol": 0, "atol": 1e-5 * float(plain.abs().max())}
    # Scale 1 is the condition alone, and so is any scale between two equal conditions.
    torch.testing.assert_close(end(CONDITION, OTHER, 1.0), plain, **close)
    torch.testing.assert_close(end(CONDITION, CONDITION, 3.0), plain, **close)
    # Scale 0 is the other condition's noise, but the variance is never the other's.
    zero = end(CONDITION, OTHER, 0.0)
    assert torch.allclose(zero, other, **close) == (name != "ddpm")
    assert (end(CONDITION, OTHER, 3.0) - plain).abs().max() > 0.05 * plain.abs().max()


def test_the_guided_field_is_the_formula(head: DiffusionHead):
    times, x = np.array([950.0, 20.5, 0.0]), normal(5, 4, dtype=torch.float32)
    evaluate = Guided(HeadNetwork.of(head, CONDITION, OTHER), 2.5).on(TimeGrid(times, times, times / 1000))
    for i, time in enumerate(times):
        t = torch.full((5,), float(time))
        yes, no = head(x, t, CONDITION), head(x, t, OTHER)
        found = evaluate(x, i)
        torch.testing.assert_close(found.value, no.value + 2.5 * (yes.value - no.value), rtol=0, atol=1e-5)
        torch.testing.assert_close(found.variance, yes.variance, rtol=0, atol=1e-5)
        assert (yes.value - no.value).abs().max() > 0.05


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_guidance_acts_in_its_interval_only(head: DiffusionHead, name: str, process: Any):
    """`draw` checks that the unconditional half is not evaluated outside."""
    solver, grid = make_solver(name), make_solver(name).plan(process, 6)
    plain, guided = draw(head, solver, CONDITION, process=process), draw(head, solver, CONDITION, OTHER, 3.0, process)
    always = draw(head, solver, CONDITION, OTHER, 3.0, process, (float(grid.times[-1]), float(grid.times[0])))
    assert torch.equal(always, guided)
    never = draw(head, solver, CONDITION, OTHER, 3.0, process, (0.001, 0.0011))
    assert torch.equal(never, plain)
    middle = draw(head, solver, CONDITION, OTHER, 3.0, process, (0.3, 0.8))
    for other in (plain, guided):
        assert (middle - other).abs().max() > 1e-3 * plain.abs().max()


def test_a_guided_evaluation_has_the_bits_it_has_without_an_interval(head: DiffusionHead):
    grid, x = FLOW.grid("uniform", 8), normal(5, 4, dtype=torch.float32)
    inside = grid.within((0.25, 0.7))
    assert inside == [False, False, False, True, True, True, True, False]
    field = Guided(HeadNetwork.of(head, CONDITION, OTHER), 2.5, (0.25, 0.7))
    always, never = replace(field, interval=(0.0, 1.0)), replace(field, network=HeadNetwork.of(head, CONDITION))
    for order in (range(8), reversed(range(8))):
        some, all_steps, none = field.on(grid), always.on(grid), never.on(grid)
        for i in order:
            expected = (all_steps if inside[i] else none)(x, i)
            found = some(x, i)
            assert torch.equal(found.value, expected.value)
            torch.testing.assert_close(found.variance, expected.variance, rtol=0, atol=0)


def test_rows_that_are_selected_keep_the_interval(head: DiffusionHead):
    field = Guided(HeadNetwork.of(head, CONDITION, OTHER), 2.5, (0.0, 0.5))
    assert field.select(torch.tensor([0, 3])).on(FLOW.grid("uniform", 4)).costs == [1, 1, 2, 2]


def test_looking_ahead_changes_no_bit(head: DiffusionHead, monkeypatch: pytest.MonkeyPatch):
    """Modulations of many denoising steps are computed at once; how many may depend on the number of rows."""
    solver = make_solver("ddpm")
    far = draw(head, solver, CONDITION, OTHER, 2.0)
    monkeypatch.setattr(guided, "LOOKAHEAD_VALUES", 1)
    assert torch.equal(draw(head, solver, CONDITION, OTHER, 2.0), far)


# --- guidance by hand -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.5, 0.0, -1.0, 1.0, 2.5])
def test_a_guided_field_is_two_plain_evaluations_mixed_by_hand(head: DiffusionHead, scale: float):
    """For every scale, below 1 too; the variance is the conditional one."""
    grid, x = PROCESS.grid("uniform", 4), normal(5, 4, dtype=torch.float32)
    yes, no = (Guided(HeadNetwork.of(head, half), 1.0).on(grid) for half in (CONDITION, OTHER))
    bound = Guided(HeadNetwork.of(head, CONDITION, OTHER), scale).on(grid)
    assert bound.costs == [1 if scale == 1 else 2] * 4
    for i in range(4):
        expected = no(x, i).value + scale * (yes(x, i).value - no(x, i).value)
        torch.testing.assert_close(bound(x, i).value, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(bound(x, i).variance, yes(x, i).variance, rtol=0, atol=0)


# --- the process ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [PROCESS, FLOW], ids=lambda process: process.predicts)
def test_conversions_undo_each_other(process: Any):
    """Of known data and noise, what the network would say gives back the data and, as a velocity, noise - data."""
    data, noise = normal(6, 4, seed=1), normal(6, 4, seed=2)
    for level in process.grid("uniform", 7).levels[:-1].tolist():
        x = process.noised(data, noise, level)
        value = noise if process.predicts == "noise" else noise - data
        torch.testing.assert_close(process.data(x, value, level), data)
        torch.testing.assert_close(process.velocity(x, value, level), noise - data)


@pytest.mark.parametrize("process", [PROCESS, FLOW], ids=lambda process: process.predicts)
def test_in_the_coordinates_of_a_flow_the_state_is_on_a_straight_line(process: Any):
    data, noise = normal(6, 4, seed=1), normal(6, 4, seed=2)
    grid, t = process.flow_grid(9)
    assert (len(t), t[-1]) == (grid.num_evaluations + 1, 0)
    for level, share in zip(grid.levels.tolist(), t.tolist(), strict=True):
        x = process.noised(data, noise, level) / process.flow_scale(level)
        torch.testing.assert_close(x, (1 - share) * data + share * noise)


@pytest.mark.parametrize("process", [PROCESS, FLOW], ids=lambda process: process.predicts)
def test_the_solver_of_the_ode_is_deterministic_and_takes_the_process(process: Any):
    solver = ode_solver(process)
    assert process.predicts in solver.takes
    assert not solver.stochastic
    assert solver.plan(process, 7).num_evaluations == 7


# --- the text of a solver ---------------------------------------------------------------------------------------------

TEXTS: list[tuple[Any, str]] = [
    (DDPM(), "ddpm@clipped-950"),
    (DDPM(temperature=0.9), "ddpm@clipped-950:temperature=0.9"),
    (DDPM("full", 0.0), "ddpm@full:temperature=0"),
    (DDIM(), "ddim@ddim-980"),
    (DDIM("uniform", eta=0.5), "ddim@uniform:eta=0.5"),
    (DDIM("logsnr", 1 / 3), f"ddim@logsnr:eta={1 / 3!r}"),
    (Euler("shifted-3"), "euler@shifted-3"),
    (EulerMaruyama(temperature=1.25), "euler-maruyama@xar-em:temperature=1.25"),
    (make_solver("heun"), "heun@uniform"),
    (make_solver("dpm-solver++-2"), "dpm-solver++-2"),
    (make_solver("dpm-solver++-2", "uniform", eta=1.0), "dpm-solver++-2@uniform:eta=1"),
    (make_solver("dpm-solver++"), "ddim@dpm-950"),
]


@pytest.mark.parametrize(("solver", "text"), TEXTS)
def test_a_solver_is_its_text(solver: Any, text: str):
    assert str(solver) == text
    assert parse_solver(text) == solver == parse_solver(solver)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_name_alone_is_the_solver_with_its_own_grid(name: str):
    assert parse_solver(name) == make_solver(name) == SOLVERS[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("eulr@uniform", "unknown solver 'eulr'.*heun"),
        ("ddim@uniform:eta", "expected an option such as eta=0.5 in the solver .*found 'eta'"),
        ("ddim@uniform:eta=x", "eta in the solver 'ddim@uniform:eta=x' must be a number, found 'x'"),
        ("ddim@uniform:eta=nan", "eta in the solver .* must be a number, found 'nan'"),
        ("ddim@uniform:eta=\u0660.5", "eta in the solver .* must be a number"),
        ("ddim:eta=0.5,eta=1", "says 'eta' twice: say it once"),
        ("ddim:", "expected an option such as eta=0.5 in the solver 'ddim:', found ''"),
        ("ddim:eta=0.5,", "expected an option such as eta=0.5 .*found ''"),
        ("ddim:=0.5", "expected an option such as eta=0.5 .*found '=0.5'"),
        ("ddim@", "the grid is missing after @ in the solver 'ddim@': expected one, as in ddim@uniform"),
        ("DDIM", r"unknown solver 'DDIM'.*Did you mean ddim\?"),
        ("ddim:eta=2", "eta must be a (finite )?number from 0 to 1"),
        ("ddpm:eta=0.5", r"eta belongs to ddim and dpm-solver\+\+-2, not to ddpm"),
        ("dpm-solver:eta=0.5", r"eta belongs to ddim and dpm-solver\+\+-2, not to dpm-solver"),
        (
            "heun:temperature=0.5",
            "ddpm and euler-maruyama add; heun adds none",
        ),
        ("ddpm:temperature=-1", "temperature must be a (finite )?number, 0 or more"),
        ("ddim:order=3", "ddim has no option 'order': expected eta"),
        ("heun:order=3", "heun has no option 'order': it has none"),
        ("ddim:grid=3", "ddim has no option 'grid'"),
    ],
)
def test_texts_that_name_no_solver_are_refused(text: str, message: str):
    with pytest.raises(DisaError, match=message):
        parse_solver(text)


def test_a_temperature_for_ddim_with_eta_is_refused_for_the_right_reason():
    with pytest.raises(DisaError) as refused:
        make_solver("ddim", temperature=0.9, eta=0.5)
    assert "eta scales that of ddim" in str(refused.value)
    assert "adds none" not in str(refused.value)


# --- plans and meters -------------------------------------------------------------------------------------------------


def test_every_kind_of_answer_is_a_plan():
    each, look = torch.tensor([3, 1]), Look(lambda change: each)
    assert Plan.of(each).counts is each
    assert Plan.of(look).look is Plan.of(Plan.of(look)).look is look


@pytest.mark.parametrize(
    "answer",
    [5, np.int64(5), np.uint8(5), 5.0, np.float32(5), "5", torch.tensor(5), torch.tensor(5.0), np.array(5), Plan(5),
     Plan(np.int32(5))],  # pyright: ignore[reportArgumentType]
    ids=repr,
)  # fmt: skip
def test_whole_numbers_of_every_kind_are_counts_of_all_rows(answer: Any):
    counts = Plan.of(answer).counts
    assert (counts, type(counts)) == (5, int)


@pytest.mark.parametrize(
    "answer",
    [[3, 1], (3, 1), [3.0, 1.0], np.array([3, 1]), np.array([3, 1], dtype=np.uint16), torch.tensor([3, 1]),
     torch.tensor([3, 1], dtype=torch.int32), torch.tensor([3.0, 1.0]), torch.tensor([3.0, 1.0], requires_grad=True),
     torch.tensor([[3, 0], [1, 0]])[:, 0], Plan(torch.tensor([3, 1])), [torch.tensor(3), torch.tensor(1)]],
    ids=repr,
)  # fmt: skip
def test_one_count_per_row_of_every_kind(answer: Any):
    counts = Plan.of(answer).counts
    assert isinstance(counts, torch.Tensor)
    assert (counts.tolist(), counts.dtype, counts.requires_grad) == ([3, 1], torch.int64, False)


@pytest.mark.parametrize(
    "answer",
    [None, True, 2.5, math.nan, math.inf, "four", b"4", {}, {1: 2}, {1, 2}, object(), [], [[1]], [1, "2"], [1.5],
     [True, True], [[1], [1, 2]], iter([1, 2]), range(1, 3), torch.tensor([[1]]), torch.tensor([1.5]), torch.tensor([]),
     torch.tensor([math.nan]), torch.tensor([True]), torch.tensor([1j]), torch.tensor([1, 2]).to_sparse(),
     np.array(["a"]), np.array([None, 1]), np.array([True]), np.zeros((2, 2)), Plan(),
     Plan(3, Look(lambda change: change))],
)  # fmt: skip
def test_no_other_answer_is(answer: Any):
    with pytest.raises(DisaError, match="a step policy answers with a whole number, an int64 tensor") as caught:
        Plan.of(answer)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("answer", [0, -1, [3, 0], torch.tensor([-1, 2]), np.array([0]), 0.0])
def test_a_row_gets_a_step_at_least(answer: Any):
    with pytest.raises(DisaError, match=r"a row needs at least 1 denoising step, found (0|-1)"):
        Plan.of(answer)


@pytest.mark.parametrize("answer", [10**9, 10**40, [5, 10**9], torch.tensor([10_001]), 1e9])
def test_a_row_gets_no_endless_number_of_steps(answer: Any):
    with pytest.raises(DisaError, match="a row gets at most 10000 denoising steps, found"):
        Plan.of(answer)


@pytest.mark.parametrize("answer", [None, [1, 2, 3], "four", torch.ones(2, 2), [1, 2], Look(lambda change: change)])
def test_what_follows_a_look_is_checked_as_well(answer: Any):
    problem = problem_of(GaussianField(FlowMatching()), 2, process=FlowMatching())
    with pytest.raises(DisaError, match=r"step policy (answers|gave)|followed by counts|2 denoising steps or more"):
        solve(problem, looking(FlowMatching()), Look(lambda change: answer), SeededNoise([0]))
    four: Any = lambda change: 4  # noqa: E731
    whole = solve(problem, looking(FlowMatching()), Look(four), SeededNoise([0]))
    assert whole.steps.tolist() == [4, 4]  # pyright: ignore[reportAttributeAccessIssue]


def test_a_look_is_checked_when_it_is_made():
    with pytest.raises(DisaError, match="a look goes on by a function"):
        Look(4)  # pyright: ignore[reportArgumentType]


def test_a_look_needs_a_solver_whose_ways_begin_alike():
    problem = problem_of(GaussianField(FlowMatching()), 2, process=FlowMatching())
    with pytest.raises(DisaError, match="the solver euler@uniform cannot look at rows"):
        solve(problem, make_solver("euler", "uniform"), Look(lambda change: change), SeededNoise([0]))


@pytest.mark.parametrize(("name", "process"), PAIRS)
def test_a_meter_counts_as_solve_does_and_changes_nothing(name: str, process: Any):
    meter, noise, solver = Meter(), SeededNoise([5]), make_solver(name)
    problem = problem_of(GaussianField(process), 6, process=process)
    counts = torch.tensor([2, 5, 2, 1, 5, 5])
    metered, plain = (solve(one, solver, counts, noise) for one in (meter.on(problem), problem))
    assert torch.equal(metered.tokens, plain.tokens)
    assert meter.evaluations == metered.evaluations == plain.evaluations
