"""Noise levels, time grids and the training loss, against formulas written down independently."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core.diffusion import GRIDS, CosineDiffusion, TrainingLoss
from disa.core.grids import singlestep_orders
from disa.core.problem import Prediction
from disa.errors import DisaError

PROCESS = CosineDiffusion()
CLEAN = ("uniform", "logsnr", "dpm-950")
COUNTS = (1, 2, 3, 5, 50, 100, 500)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- noise levels -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_timesteps", [1000, 4000])
def test_alpha_bar_is_the_squared_cosine(num_timesteps: int):
    process = CosineDiffusion(num_timesteps)
    place = (np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008
    cosine = np.cos(place * np.pi / 2) ** 2
    # The cap of 0.999 on a forward variance is active at the very end only.
    np.testing.assert_allclose(process.alpha_bar[:-1], (cosine / cosine[0])[1:-1], rtol=1e-9)
    assert process.betas[-1] == 0.999
    assert process.betas[:-1].max() < 0.999
    np.testing.assert_allclose(process.alpha_bar[-1], process.alpha_bar[-2] * 0.001, rtol=1e-12)


# --- grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.parametrize("num_steps", COUNTS)
def test_a_clean_grid_has_exactly_n_falling_times(name: str, num_steps: int):
    grid = PROCESS.grid(name, num_steps)
    assert grid.num_evaluations == num_steps == len(grid.levels) - 1
    assert grid.network_times[0] == 950
    assert grid.network_times.min() >= 0
    assert (np.diff(grid.network_times) < 0).all()
    assert (np.diff(grid.levels) > 0).all()


@pytest.mark.parametrize("name", ["uniform", "logsnr"])
def test_grids_of_whole_timesteps_hold_for_every_count(name: str):
    for num_steps in range(1, 952):
        times = PROCESS.grid(name, num_steps).network_times
        assert len(times) == num_steps
        assert (np.diff(times) < 0).all(), num_steps
        assert times[0] == 950
        assert num_steps == 1 or times[-1] == 0


def test_uniform_is_even_in_time_and_logsnr_in_log_snr():
    times = PROCESS.grid("uniform", 20).network_times
    np.testing.assert_allclose(np.diff(times), -50, atol=1)
    grid = PROCESS.grid("logsnr", 20)
    snr = np.log(grid.levels[:-1] / (1 - grid.levels[:-1]))
    # Whole timesteps are coarse near 0, where one of them is a step of 0.7 in log SNR.
    np.testing.assert_allclose(np.diff(snr)[:-3], np.diff(snr)[0], rtol=0.15)
    assert np.diff(times, 2).std() < np.diff(grid.network_times, 2).std()


@pytest.mark.parametrize(
    ("asked", "made"),
    [(1000, 951), (100, 96), (50, 48), (27, 26), (20, 20), (10, 10), (5, 5), (2, 2), (1, 1)],
)
def test_the_official_clip_merges_timesteps(asked: int, made: int):
    grid = PROCESS.grid("clipped-950", asked)
    assert grid.num_evaluations == made
    assert (grid.network_times[0], len(np.unique(grid.network_times))) == (950, made)


# Worked out by hand: strides of 249.75 and 166.5 rounded half to even, of 250 and 500; equal intervals of time.
@pytest.mark.parametrize(
    ("name", "times"),
    [
        ("clipped-950", [950, 749, 500, 250, 0]),
        ("clipped-950", [950, 832, 666, 500, 333, 166, 0]),
        ("full", [999, 749, 500, 250, 0]),
        ("ddim-980", [750, 500, 250, 0]),
        ("ddim-980", [500, 0]),
        ("uniform", [950, 475, 0]),
        ("uniform", [950, 0]),
        ("dpm-950", [950, (950 + 1000 / 951) / 2]),
        ("full", [999]),
    ],
)
def test_times_worked_out_by_hand(name: str, times: list[float]):
    np.testing.assert_allclose(PROCESS.grid(name, len(times)).network_times, times, rtol=1e-6)


def test_the_ddim_grid_clips_at_980():
    # No stride gives 999 entries of 1000 timesteps, so the range shrinks to 999, and 981..998 merge with 980.
    np.testing.assert_array_equal(PROCESS.grid("ddim-980", 999).network_times, np.arange(980, -1, -1))
    np.testing.assert_array_equal(PROCESS.grid("ddim-980", 1000).network_times, np.arange(980, -1, -1))


@pytest.mark.parametrize("name", sorted(set(GRIDS) - {"dpm-950", "emigm"}))
def test_levels_are_alpha_bar_at_the_times_and_then_clean(name: str):
    grid = PROCESS.grid(name, 13)
    np.testing.assert_array_equal(grid.levels[:-1], PROCESS.alpha_bar[grid.network_times.astype(int)])
    assert grid.levels[-1] == 1
    assert grid.levels.dtype == np.float64


def test_the_dpm_grid_interpolates_log_alpha_and_stops_before_the_clean_end():
    grid = PROCESS.grid("dpm-950", 40)
    # Timestep j stands at time 0.95 (j + 1) / 951.
    place = np.linspace(0.95, 1 / 951, 41) / 0.95 * 951 - 1
    below = np.floor(place + 1e-9).astype(int)
    share = place - below
    log = np.log(PROCESS.alpha_bar)
    expected = np.exp((1 - share) * log[below] + share * log[np.minimum(below + 1, 950)])
    np.testing.assert_allclose(grid.levels, expected, rtol=1e-9)
    assert 0.999 < grid.levels[-1] < 1


def test_the_emigm_grid_has_intervals_that_are_even_in_the_log_snr_and_stops_before_the_clean_end():
    """14 evaluations are intervals of 3, 3, 3, 3 and 2. Timestep j of 996 stands at 1000 j / 996, in float32."""
    grid = PROCESS.grid("emigm", 14)
    log = np.interp(grid.network_times / 1000 * 996, np.arange(996), np.log(PROCESS.alpha_bar[:996]))
    np.testing.assert_allclose(grid.levels[:-1], np.exp(log), rtol=1e-5)
    half_snr = np.log(grid.levels / (1 - grid.levels)) / 2
    ends = half_snr[[0, 3, 6, 9, 12, 14]]
    np.testing.assert_allclose(ends, np.linspace(ends[0], ends[-1], 6), atol=1e-3)
    assert ends[[0, -1]] == pytest.approx([-5.0777, 5.0472], abs=1e-4)
    shares = (half_snr[[1, 2, 10, 11, 13]] - half_snr[[0, 0, 9, 9, 12]]) / (ends[1] - ends[0])
    np.testing.assert_allclose(shares, [1 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 2], atol=1e-3)


@pytest.mark.parametrize("count", range(1, 40))
def test_intervals_of_order_3_end_in_one_or_two_of_lower_order(count: int):
    found = singlestep_orders(count)
    assert sum(found) == count
    assert found == sorted(found, reverse=True)
    assert sum(order < 3 for order in found) == (2 if count % 3 == 0 else 1)


@pytest.mark.parametrize(
    ("name", "num_steps"),
    [("uniform", 952), ("emigm", 1001), ("logsnr", 952), ("clipped-950", 1001), ("full", 1001), ("ddim-980", 1001)],
)
def test_more_steps_than_timesteps_are_refused(name: str, num_steps: int):
    with pytest.raises(DisaError, match=f"at most {num_steps - 1} .* found {num_steps}"):
        PROCESS.grid(name, num_steps)
    assert PROCESS.grid(name, num_steps - 1).num_evaluations <= num_steps - 1


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("num_steps", [0, -1])
def test_less_than_one_step_is_refused(name: str, num_steps: int):
    with pytest.raises(DisaError, match="at least 1"):
        PROCESS.grid(name, num_steps)


def test_an_unknown_grid_is_refused():
    with pytest.raises(DisaError, match=r"unknown grid 'clipped'.*uniform"):
        PROCESS.grid("clipped", 5)


@pytest.mark.parametrize("name", GRIDS)
def test_underscores_may_stand_for_hyphens(name: str):
    np.testing.assert_array_equal(PROCESS.grid(name.replace("-", "_"), 7).levels, PROCESS.grid(name, 7).levels)


@pytest.mark.parametrize("name", ["clipped-950", "ddim-980", "dpm-950", "emigm"])
@pytest.mark.parametrize("num_steps", [1, 20])
def test_official_grids_are_refused_for_another_number_of_timesteps(name: str, num_steps: int):
    with pytest.raises(DisaError, match=f"{name} is for a process of 1000 timesteps, found 4000.*uniform"):
        CosineDiffusion(4000).grid(name, num_steps)


@pytest.mark.parametrize("name", GRIDS)
def test_times_are_shares_of_the_noise_time(name: str):
    grid = PROCESS.grid(name, 9)
    np.testing.assert_allclose(grid.times, grid.network_times / 1000, atol=1e-7)
    np.testing.assert_array_equal(CosineDiffusion(4000).grid("full", 2).times, [3999 / 4000, 0])


def test_clean_grids_begin_at_the_largest_timestep_that_a_process_says():
    process = CosineDiffusion(trained_of_1000=995)
    for name in ("uniform", "logsnr"):
        assert process.grid(name, 9).network_times[[0, -1]].tolist() == [995, 0]
    assert process.flow_grid(9)[0].network_times[0] == 995
    assert process.grid("clipped-950", 9).network_times[0] == 950


# --- training loss ----------------------------------------------------------------------------------------------------

OBJECTIVE = TrainingLoss(PROCESS)


def test_training_visits_the_timesteps_up_to_950():
    assert OBJECTIVE.num_timesteps == 951


@pytest.mark.parametrize("t", [0, 300, 950])
def test_noised_has_the_mean_and_variance_of_the_process(t: int):
    rows = 200_000
    start = torch.tensor([[-0.8, 0.3, 1.7]]).expand(rows, -1)
    state = OBJECTIVE.noised(start, torch.full((rows,), t), normal(rows, 3, seed=t)).double()
    abar = float(PROCESS.alpha_bar[t])
    spread = math.sqrt(1 - abar)
    assert ((state.mean(0) - math.sqrt(abar) * start[0]).abs() < 4.5 * spread / math.sqrt(rows)).all()
    assert ((state.var(0) / spread**2 - 1).abs() < 4.5 * math.sqrt(2 / rows)).all()


def test_a_perfect_prediction_of_noise_and_variance_costs_nothing():
    start, noise, t = normal(950, 4, seed=1), normal(950, 4, seed=2), torch.arange(1, 951)
    terms = OBJECTIVE.terms(Prediction(noise, torch.full_like(noise, -1.0)), start, t, noise)
    assert terms.mse.abs().max() == 0
    # The lower bound of the variance is the true posterior's: the divergence of a Gaussian from itself.
    torch.testing.assert_close(terms.variational, torch.zeros(950), atol=2e-5, rtol=0)


@pytest.mark.parametrize("value", [-1.0, -0.4, 0.0, 1.0, 1.3])
def test_the_variational_term_is_the_divergence_of_two_gaussians(value: float):
    t = torch.tensor([1, 2, 10, 250, 700, 950])
    start, noise = normal(6, 5, seed=3), normal(6, 5, seed=4)
    guess = noise + 0.3 * normal(6, 5, seed=5)
    found = OBJECTIVE.terms(Prediction(guess, torch.full_like(guess, value)), start, t, noise)

    abar, beta = (torch.tensor(x[t.numpy()]) for x in (PROCESS.alpha_bar, PROCESS.betas))
    before = torch.tensor(PROCESS.alpha_bar[t.numpy() - 1])
    posterior = beta * (1 - before) / (1 - abar)
    # Means differ by beta / sqrt(alpha (1 - abar)) times the error of the noise (Ho et al. 2020, eq. 11).
    gap = (beta / ((1 - beta) * (1 - abar)).sqrt())[:, None] * (guess - noise).double()
    share = (value + 1) / 2
    variance = beta**share * posterior ** (1 - share)
    ratio = (posterior / variance)[:, None]
    divergence = 0.5 * (ratio - 1 - ratio.log() + gap.square() / variance[:, None])
    expected = divergence.mean(1) / math.log(2)
    torch.testing.assert_close(found.variational.double(), expected, rtol=2e-3, atol=2e-5)
    torch.testing.assert_close(found.mse, (guess - noise).square().mean(1))
    torch.testing.assert_close(found.loss, found.mse + found.variational)


def test_at_timestep_zero_the_term_is_the_likelihood_of_a_pixel_bin():
    start = torch.tensor([[-1.0, -0.5, 0.0, 0.7, 1.0]])
    noise = torch.zeros_like(start)
    offset = torch.tensor([[0.2, -1.0, 0.0, 0.5, -0.3]])  # in units of the noise that is left
    t = torch.tensor([0])
    found = OBJECTIVE.terms(Prediction(noise + offset, torch.zeros_like(start)), start, t, noise).variational

    abar, beta = (float(x[0]) for x in (PROCESS.alpha_bar, PROCESS.betas))
    next_abar, next_beta = (float(x[1]) for x in (PROCESS.alpha_bar, PROCESS.betas))
    # At timestep 0 the posterior variance is 0; the official code takes that of timestep 1 as the lower bound.
    deviation = (beta * next_beta * (1 - abar) / (1 - next_abar)) ** 0.25
    mean = start.double() - math.sqrt((1 - abar) / abar) * offset
    upper = torch.special.ndtr((start + 1 / 255 - mean) / deviation)
    lower = torch.special.ndtr((start - 1 / 255 - mean) / deviation)
    bins = torch.cat([upper[:, :1], (upper - lower)[:, 1:-1], 1 - lower[:, -1:]], dim=1)
    # The official likelihood approximates the normal distribution by a tanh.
    torch.testing.assert_close(found.double(), -bins.log2().mean(1), rtol=1e-3, atol=0)


def test_the_variational_term_trains_the_variance_only():
    start, noise, t = normal(3, 2, seed=6), normal(3, 2, seed=7), torch.tensor([0, 40, 900])
    value = torch.zeros(3, 2, requires_grad=True)
    variance = torch.zeros(3, 2, requires_grad=True)
    terms = OBJECTIVE.terms(Prediction(value, variance), start, t, noise)
    by_value, by_variance = torch.autograd.grad(terms.variational.sum(), (value, variance), allow_unused=True)
    assert by_value is None
    assert by_variance.abs().min() > 0
    terms = OBJECTIVE.terms(Prediction(value, variance), start, t, noise)
    by_value, by_variance = torch.autograd.grad(terms.mse.sum(), (value, variance), allow_unused=True)
    torch.testing.assert_close(by_value, -noise)
    assert by_variance is None
