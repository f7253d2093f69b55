"""Noise is Philox, is normal, is independent, and depends on nothing but seed, position, AR step and denoising step."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from disa.core.noise import SeededNoise, _box_muller, philox
from disa.core.problem import DenoisingProblem
from disa.errors import DisaError

# The known answers that the Random123 distribution ships for philox4x32-10: counter, key, result.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text: str) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(int(word, 16)) for word in text.split())


def problem_of(
    image: Sequence[int] | Tensor, position: Sequence[int] | Tensor, ar_step: int = 0, shape: tuple[int, ...] = (16,)
) -> DenoisingProblem:
    nothing = cast(Any, None)
    return DenoisingProblem(nothing, nothing, shape, torch.as_tensor(image), torch.as_tensor(position), ar_step, 64)


def all_rows(num_images: int, num_tokens: int, ar_step: int = 0, shape: tuple[int, ...] = (16,)) -> DenoisingProblem:
    image = torch.arange(num_images).repeat_interleave(num_tokens)
    return problem_of(image, torch.arange(num_tokens).repeat(num_images), ar_step, shape)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_philox_gives_the_known_answers(counter: str, key: str, expected: str):
    c0, c1, c2, c3 = words(counter)
    k0, k1 = words(key)
    assert philox((c0, c1, c2, c3), (k0, k1)) == words(expected)


def test_philox_of_many_counters_is_philox_of_each():
    counters = [words(counter) for counter, _, _ in KNOWN]
    keys = [words(key) for _, key, _ in KNOWN]
    c0, c1, c2, c3 = (torch.stack(word) for word in zip(*counters, strict=True))
    k0, k1 = (torch.stack(word) for word in zip(*keys, strict=True))
    found = torch.stack(philox((c0, c1, c2, c3), (k0, k1)), dim=1)
    assert found.tolist() == [[int(word, 16) for word in expected.split()] for _, _, expected in KNOWN]


# --- distribution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["initial", "steps"])
def test_draws_are_standard_normal(draw: str):
    problem, noise = all_rows(50, 64), SeededNoise(range(50))
    values = noise.initial(problem) if draw == "initial" else noise.added(problem, 4)
    x = values.double().flatten()
    n = len(x)
    assert values.dtype == torch.float32
    assert x.isfinite().all()
    assert abs(x.mean()) < 4 / math.sqrt(n)
    assert abs(x.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(x.pow(3).mean()) < 4 * math.sqrt(15 / n)
    assert abs(x.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov: 1.95 is the critical value of the 0.1 % level.
    place = torch.special.ndtr(x.sort().values)
    steps = torch.arange(n + 1) / n
    distance = max((place - steps[:-1]).max(), (steps[1:] - place).max())
    assert float(distance) * math.sqrt(n) < 1.95


def test_channels_of_a_token_are_independent():
    """Box and Muller make two normals of two words; every pair of the 16 channels must still be uncorrelated."""
    x = SeededNoise(range(64)).initial(all_rows(64, 64)).double()
    n = len(x)
    for values in (x, x.square()):
        correlation = torch.corrcoef(values.T) - torch.eye(16)
        assert correlation.abs().max() < 4.5 / math.sqrt(n)


def test_the_ends_of_the_words_give_finite_normals():
    ends = torch.tensor([0, 1, (1 << 32) - 1])
    for normals in _box_muller(ends[:, None], ends[None, :]):
        assert normals.isfinite().all()
        assert normals.abs().max() < 7


@pytest.mark.parametrize("shape", [(1,), (3,), (4,), (6,), (2, 3, 5)])
def test_any_shape_of_row_is_filled(shape: tuple[int, ...]):
    problem = all_rows(2, 5, shape=shape)
    noise = SeededNoise([1, 2])
    assert noise.initial(problem).shape == (10, *shape)
    steps = noise.added(problem, 3)
    assert steps.shape == (3, 10, *shape)
    assert steps.unique().numel() == steps.numel()


# --- independence -----------------------------------------------------------------------------------------------------

ROWS = all_rows(1, 256)


def draws() -> dict[str, Tensor]:
    """Draws that differ from the first in one coordinate."""
    return {
        "first": SeededNoise([5]).initial(ROWS),
        "seed": SeededNoise([6]).initial(ROWS),
        "seed + 2**32": SeededNoise([5 + (1 << 32)]).initial(ROWS),
        "position": SeededNoise([5]).initial(problem_of([0] * 256, range(256, 512))),
        "neighbour": SeededNoise([5]).initial(problem_of([0] * 256, range(1, 257))),
        "ar_step": SeededNoise([5]).initial(all_rows(1, 256, ar_step=1)),
        "late ar_step": SeededNoise([5]).initial(all_rows(1, 256, ar_step=63)),
        "first denoise_step": SeededNoise([5]).added(ROWS, 1)[0],
        "later denoise_step": SeededNoise([5]).added(ROWS, 50)[49],
    }


@pytest.mark.parametrize("other", [name for name in draws() if name != "first"])
def test_draws_that_differ_in_one_coordinate_are_independent(other: str):
    a, b = draws()["first"].double().flatten(), draws()[other].double().flatten()
    assert not (a == b).any()
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / math.sqrt(len(a))
    assert abs(torch.corrcoef(torch.stack([a.square(), b.square()]))[0, 1]) < 4 / math.sqrt(len(a))


def test_denoising_steps_do_not_repeat_each_other():
    steps = SeededNoise([5]).added(all_rows(1, 64), 60).double().flatten(1)
    correlation = torch.corrcoef(steps) - torch.eye(60)
    assert correlation.abs().max() < 5 / math.sqrt(steps.shape[1])


# --- nothing else matters ---------------------------------------------------------------------------------------------


def test_draws_do_not_depend_on_the_batch():
    seeds = [7, 123_456_789_012, 0, (1 << 64) - 1]
    together = SeededNoise(seeds)
    problem = all_rows(4, 9, ar_step=3)
    initial, steps = together.initial(problem), together.added(problem, 5)
    for i, seed in enumerate(seeds):
        alone, mine = SeededNoise([seed]), problem.image == i
        one = all_rows(1, 9, ar_step=3)
        assert torch.equal(alone.initial(one), initial[mine])
        assert torch.equal(alone.added(one, 5), steps[:, mine])
        assert torch.equal(alone.orders(64)[0], together.orders(64)[i])


def test_draws_do_not_depend_on_the_order_or_number_of_rows():
    noise, problem = SeededNoise([3, 4, 5]), all_rows(3, 16, ar_step=2)
    shuffled = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    for rows in (shuffled, shuffled[:5], shuffled[:1]):
        some = problem_of(problem.image[rows], problem.position[rows], ar_step=2)
        assert torch.equal(noise.initial(some), noise.initial(problem)[rows])
        assert torch.equal(noise.added(some, 4), noise.added(problem, 4)[:, rows])


def test_draws_do_not_depend_on_the_number_of_denoising_steps():
    noise, problem = SeededNoise([3]), all_rows(1, 16)
    for fewer, more in pairwise([0, 1, 5, 48]):
        assert torch.equal(noise.added(problem, fewer), noise.added(problem, more)[:fewer])


def test_draws_do_not_depend_on_what_was_drawn_before_or_on_the_global_state():
    noise, problem = SeededNoise([3]), all_rows(1, 16)
    torch.manual_seed(0)
    first, state = noise.initial(problem), torch.get_rng_state()
    noise.added(problem, 3)
    noise.orders(10)
    torch.manual_seed(1)
    assert torch.equal(noise.initial(problem), first)
    torch.manual_seed(0)
    noise.initial(problem)
    assert torch.equal(torch.get_rng_state(), state)


# --- orders -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_tokens", [1, 2, 64, 1024])
def test_orders_are_permutations(num_tokens: int):
    orders = SeededNoise(range(20)).orders(num_tokens)
    assert torch.equal(orders.sort(1).values, torch.arange(num_tokens).expand(20, -1))


def test_all_permutations_are_equally_likely():
    seeds = 6000
    orders = SeededNoise(range(seeds)).orders(3)
    counts = (orders * torch.tensor([9, 3, 1])).sum(1).unique(return_counts=True)[1]
    assert len(counts) == 6
    # Chi-square of 5 degrees of freedom: 20.5 is the 0.1 % level.
    assert float(((counts - seeds / 6).square() / (seeds / 6)).sum()) < 20.5


def test_every_token_is_equally_likely_at_every_place():
    seeds, length = 8000, 8
    orders = SeededNoise(range(seeds)).orders(length)
    counts = torch.stack([(orders == token).sum(0) for token in range(length)])
    chi_square = float(((counts - seeds / length).square() / (seeds / length)).sum())
    # 49 degrees of freedom: 23.98 and 85.4 are the 0.1 % levels of both sides. Too even is as wrong as too uneven.
    assert 24 < chi_square < 85.4


def test_orders_and_noise_do_not_share_numbers():
    """The word that sorts token j must not be the word that makes the length of the j-th pair of normals."""
    tokens = 256
    rank = SeededNoise([9]).orders(tokens)[0].argsort().double()
    values = SeededNoise([9]).initial(problem_of([0], [0], shape=(4 * tokens,)))[0].double()
    length = values[:tokens].square() + values[tokens : 2 * tokens].square()
    assert abs(torch.corrcoef(torch.stack([rank, length]))[0, 1]) < 4.5 / math.sqrt(tokens)


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seeds", [[-1], [1 << 64], [0, 1, -5]])
def test_seeds_out_of_range_are_refused(seeds: list[int]):
    with pytest.raises(DisaError, match=rf"from 0 to 2\*\*64 - 1, found {seeds[-1]}"):
        SeededNoise(seeds)


@pytest.mark.parametrize("seed", [1.5, 2.0, "3", None])
def test_seeds_that_are_no_whole_numbers_are_refused(seed: Any):
    with pytest.raises(DisaError, match=f"a whole number from 0 .* found {seed}"):
        SeededNoise([0, seed])


def test_whole_numbers_of_numpy_are_seeds():
    seeds: Any = np.array([3, 2**63 + 5], dtype=np.uint64)
    assert torch.equal(SeededNoise(seeds).key, SeededNoise(seeds.tolist()).key)


@pytest.mark.parametrize("seed", [1 << 32, (1 << 32) + 77, (1 << 63) + 77, (1 << 64) - 1])
def test_all_64_bits_of_a_seed_count(seed: int):
    big, small = SeededNoise([seed]), SeededNoise([seed % (1 << 32)])
    assert not (big.initial(ROWS) == small.initial(ROWS)).any()
    assert not torch.equal(big.orders(64), small.orders(64))


def test_images_with_one_seed_are_one_image():
    noise, problem = SeededNoise([4, 4]), all_rows(2, 8)
    first, second = noise.initial(problem).chunk(2)
    assert torch.equal(first, second)
    assert torch.equal(*noise.orders(64))
