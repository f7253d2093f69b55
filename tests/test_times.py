"""Errors of single steps, the best ways through them, fitted weights and energy distances, on Gaussian data."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core.multistep import along, updates
from disa.core.solver import Solver, finished
from disa.core.solvers import DDIM, Euler, make_solver
from disa.study import times
from disa.study.times import Candidates, best_ways, energy_distances, nearest_weights, with_nothing_before
from gaussian import FLOW, PROCESS, GaussianField, normal, problem_of

BOTH = pytest.mark.parametrize("process", [PROCESS, FLOW], ids=lambda process: process.predicts)
VISITED = {PROCESS: (0.95, 0.8, 0.62, 0.4, 0.2, 0.05), FLOW: (1.0, 0.8, 0.62, 0.4, 0.2, 0.05)}


def candidates_of(process: Any) -> Candidates:
    grid = process.grid_at(np.array(VISITED[process]))
    return Candidates(process, grid, updates(process, grid))


def walked(candidates: Candidates, rows: int = 8) -> tuple[Any, list[Tensor], list[Tensor]]:
    """A problem, and the path of its rows."""
    process: Any = candidates.process
    problem = problem_of(GaussianField(process), rows, process=process)
    return problem, *candidates.path(problem, normal(rows, 4, dtype=torch.float32))


# -- errors of single steps ----------------------------------------------------------------------------------------


@BOTH
def test_the_tried_times_fall_and_are_about_as_many_as_asked_for(process: Any) -> None:
    candidates = Candidates.of(process, make_solver("dpm-solver++-2"), 7)
    assert times.NUM_TIMES * 0.6 < len(candidates) < times.NUM_TIMES * 1.4
    assert (np.diff(candidates.grid.times) < 0).all()
    assert candidates.part([0, 3]).times.tolist() == candidates.grid.times[[0, 3]].tolist()


@BOTH
def test_the_path_is_that_of_the_solver(process: Any) -> None:
    candidates = candidates_of(process)
    problem, states, data = walked(candidates)
    assert (len(states), len(data)) == (len(candidates) + 1, len(candidates))
    grid = candidates.grid
    walk = along(process, grid.levels.tolist(), states[0].clone(), torch.empty(0), updates(process, grid))
    end = finished(walk, problem.field.on(grid))
    torch.testing.assert_close(states[-1], end)


@pytest.mark.parametrize(("process", "solver"), [(PROCESS, DDIM("uniform")), (FLOW, Euler("uniform"))])
def test_the_path_of_an_original_without_noise_is_the_originals(process: Any, solver: Solver) -> None:
    candidates = Candidates.of(process, solver, 9)
    assert len(candidates) == 9
    problem, states, _ = walked(candidates)
    grid = solver.plan(process, 9)
    end = solver.run(problem.field.on(grid), problem, grid, states[0].clone(), torch.empty(0))
    torch.testing.assert_close(states[-1].double(), end.double(), rtol=1e-4, atol=1e-4)


def test_an_original_with_noise_has_no_path_of_its_own() -> None:
    assert len(Candidates.of(PROCESS, DDIM("uniform", eta=1.0), 9)) > 9


@BOTH
def test_an_error_is_that_of_the_step_made(process: Any) -> None:
    """For every p < i < j, a step of `updates` on a grid that visits them, from the path's own states and data."""
    candidates = candidates_of(process)
    _, states, data = walked(candidates)
    found = candidates.errors(candidates.moments(states, data), fitted=False)
    count, seen = len(candidates), 0
    for p in range(count):
        for i in range(count):
            for j in range(count + 1):
                first = p == i == 0 < j
                if not (first or p < i < j):
                    assert np.isinf(found[p, i, j])
                    continue
                visited = [place for place in ([] if first else [p]) + [i, j] if place < count]
                update = updates(process, candidates.part(visited))[0 if first else 1]
                end = update.keep * states[i] + update.now * data[i] + update.before * data[p]
                right = (end.double() - states[j].double()).square().sum().sqrt().item()
                assert found[p, i, j] == pytest.approx(right, rel=1e-3, abs=2e-3)
                seen += 1
    assert seen > 40


@BOTH
def test_fitted_steps_are_never_worse(process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates = candidates_of(process)
    moments = candidates.moments(*walked(candidates)[1:])
    plain = candidates.errors(moments, fitted=False)
    held = candidates.errors(moments, fitted=True)
    monkeypatch.setattr(times, "RIDGE", 1e-12)
    free = candidates.errors(moments, fitted=True)
    there = np.isfinite(plain)
    assert (np.isfinite(free) == there).all()
    assert (free[there] <= plain[there] + 1e-3).all()
    assert (free[there] <= held[there] + 1e-3).all()
    assert (held[there] <= plain[there] + 1e-3).all()
    assert free[there].sum() < 0.7 * plain[there].sum()


@BOTH
def test_moments_of_batches_add_up(process: Any) -> None:
    candidates = candidates_of(process)
    _, states, data = walked(candidates)
    parts = [candidates.moments([x[rows] for x in states], [x[rows] for x in data]) for rows in (slice(3), slice(3, 8))]
    np.testing.assert_allclose(sum(parts), candidates.moments(states, data), rtol=1e-9)


# -- steps with noise ------------------------------------------------------------------------------------------------


def test_steps_with_noise_are_compared_as_distributions() -> None:
    """A step from pure noise that ends there has no error; one that jumps to the mean of the data has a large one."""
    candidates, draws, rows = candidates_of(FLOW), 64, 6
    problem = problem_of(GaussianField(FLOW), draws * rows, process=FLOW)
    states, data = candidates.path(problem, normal(draws * rows, 4, dtype=torch.float32))
    shaped = tuple(torch.stack(each).reshape(-1, draws, rows, 4) for each in (states, data))
    noise = normal(draws, rows, 4, seed=1, dtype=torch.float32)
    found = candidates.errors_with_noise(shaped[0], shaped[1], noise)
    later = np.arange(len(candidates))[:, None] < np.arange(len(candidates) + 1)
    assert (np.isfinite(found) == later).all()
    assert found[0, 1] < 0.2 * found[0, -1]
    keep, now, _, spread = updates(FLOW, candidates.part([2, 3]), 1.0)[0]
    end = keep * shaped[0][2] + now * shaped[1][2] + spread * noise
    assert found[2, 3] == pytest.approx(energy_distances(end, shaped[0][3]).sum().item())


def test_energy_distances() -> None:
    """In the mean 0 between draws of one distribution, that of the closed form between others; above 0 where they
    differ in place or width."""
    rows, draws = 4000, 3
    one, other = normal(draws, rows, 2, seed=1), normal(draws, rows, 2, seed=2)
    same = energy_distances(one, other)
    assert same.shape == (rows,)
    assert abs(same.mean()) < 4 * same.std() / rows**0.5
    assert (same < 0).any(), "without bias it is sometimes below 0"
    for changed in (other + 1, other * 2):
        found = energy_distances(one, changed)
        assert found.mean() > 10 * found.std() / rows**0.5
        torch.testing.assert_close(found, energy_distances(changed, one))
    few, many = (energy_distances(one[:count], (other + 1)[:count]) for count in (2, 3))
    assert abs(few.mean() - many.mean()) < 4 * (few.std() + many.std()) / rows**0.5, "it depends on no number of draws"


def test_the_energy_distance_of_a_few_points() -> None:
    """By hand: a = 0, 2 and b = 1, 5 in one dimension; pairs of equal index are left out."""
    a, b = torch.tensor([0.0, 2.0])[:, None, None], torch.tensor([1.0, 5.0])[:, None, None]
    between, within_a, within_b = (5 + 1) / 2, 2.0, 4.0
    assert energy_distances(a, b).tolist() == [2 * between - within_a - within_b]


# -- fitted weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [2, 3])
def test_nearest_weights_are_least_squares(used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(times, "RIDGE", 0.0)
    random = np.random.default_rng(0)
    parts, target = random.normal(size=(5, 3, 40)), random.normal(size=(5, 40))
    products, toward = parts @ parts.transpose(0, 2, 1), np.einsum("tan,tn->ta", parts, target)
    found = nearest_weights(products, toward, random.normal(size=(5, 3)), np.full(5, used))
    for k in range(5):
        right = np.linalg.lstsq(parts[k, :used].T, target[k], rcond=None)[0]
        np.testing.assert_allclose(found[k, :used], right, rtol=1e-6)
        assert not found[k, used:].any()


def test_a_part_that_says_nothing_keeps_its_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    products, toward, prior = np.zeros((1, 3, 3)), np.zeros((1, 3)), np.array([[0.5, 0.25, -1.0]])
    np.testing.assert_allclose(nearest_weights(products, toward, prior, np.array([3])), prior)
    monkeypatch.setattr(times, "RIDGE", 1e9)
    held = nearest_weights(np.eye(3)[None], np.ones((1, 3)), prior, np.array([3]))
    np.testing.assert_allclose(held, prior, atol=1e-6)


# -- the best way --------------------------------------------------------------------------------------------------


def total(errors: np.ndarray, way: tuple[int, ...]) -> float:
    """Of all steps along a way, and to the end."""
    ends = [*way[1:], errors.shape[2] - 1]
    before = [0, *way[:-1]]
    return sum(errors[p, i, j] for p, i, j in zip(before, way, ends, strict=True))


@pytest.mark.parametrize("seed", range(5))
def test_the_best_ways_are_those_of_brute_force(seed: int) -> None:
    count = 6
    errors = np.random.default_rng(seed).uniform(size=(count, count, count + 1))
    p, i, j = np.indices(errors.shape)
    errors[~((i < j) & ((p < i) | ((p == 0) & (i == 0))))] = np.inf
    ways = best_ways(errors, count + 3)
    assert [len(way) for way in ways] == list(range(1, count + 1)), "no more steps than there are times"
    for way in ways:
        others = combinations(range(1, count), len(way) - 1)
        assert total(errors, tuple(way)) == pytest.approx(min(total(errors, (0, *each)) for each in others))
        assert way[0] == 0
        assert sorted(set(way)) == way


def test_errors_that_do_not_depend_on_the_step_before() -> None:
    errors = np.random.default_rng(0).uniform(size=(4, 5))
    found = with_nothing_before(errors)
    for p, i, j in np.ndindex(*found.shape):
        assert found[p, i, j] == (errors[i, j] if p < i or p == i == 0 else np.inf)
