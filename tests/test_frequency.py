"""The adaptive policy `frequency`: the spectrum of condition vectors, and who gets the early count."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import small
from disa.core.problem import DenoisingProblem
from disa.core.spending import Spending
from disa.errors import DisaError
from disa.models.registry import find_preset
from disa.policies.frequency import ByFrequency, detail, parse

POLICY = ByFrequency(Spending(9, 2))


def problem(z: Tensor, image: list[int]) -> DenoisingProblem:
    nothing: Any = None
    places = torch.tensor(image)
    return DenoisingProblem(nothing, nothing, (1,), places, places, 0, 4, condition=z)


@pytest.mark.parametrize("width", [8, 9, 128])
def test_the_score_is_that_of_a_fourier_transform(width: int) -> None:
    z = torch.randn(5, width, generator=torch.Generator().manual_seed(0))
    spectrum = np.abs(np.fft.fft(z.double().numpy()))[:, 1 : width // 2 + 1]
    half = width // 2
    expected = (spectrum * (1 + np.arange(1, half + 1) / half)).sum(1)
    torch.testing.assert_close(detail(z).double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)


def test_of_equal_energy_the_quicker_wave_counts_more() -> None:
    places = torch.arange(16) * 2 * torch.pi / 16
    slow, quick = detail(torch.stack([(2 * places).cos(), (7 * places).cos()]))
    assert quick / slow == pytest.approx((1 + 7 / 8) / (1 + 2 / 8), rel=1e-4)


def test_a_tenth_of_each_image_gets_the_early_count_in_whatever_order_rows_come() -> None:
    z = torch.randn(60, 8, generator=torch.Generator().manual_seed(1))
    image = [i % 3 for i in range(60)]
    counts = POLICY(problem(z, image))
    for each in range(3):
        own = torch.tensor(image) == each
        assert sorted(counts[own].tolist()) == [2] * 18 + [9] * 2
        assert set(detail(z)[own].topk(2).values.tolist()) == set(detail(z)[counts.eq(9) & own].tolist())


def test_few_tokens_at_a_time_make_a_tenth_of_the_image_too() -> None:
    chooser, random = POLICY.begin(), torch.Generator().manual_seed(2)
    found = [chooser(problem(torch.randn(6, 8, generator=random), [0, 0, 0, 1, 1, 1])) for _ in range(20)]
    assert torch.cat(found).eq(9).sum() == 2 * 6


def test_an_image_does_not_depend_on_its_batch() -> None:
    sampler = small.sampler()
    options: dict[str, Any] = {"steps": "frequency:6-2", "counts": "stages:2-1-1", "order": "checkerboard:3"}
    whole = sampler.sample([3, 1, 7], [5, 6, 7], batch_size=3, **options)
    parts = sampler.sample([3, 1, 7], [5, 6, 7], batch_size=1, **options)
    assert torch.equal(whole.latents, parts.latents)
    assert whole.evaluations == parts.evaluations


def test_texts() -> None:
    preset = find_preset("mar-digits")
    assert str(parse("frequency:50-5", preset)) == "frequency:50-5"
    assert str(parse("frequency", preset)) == "frequency:" + preset.defaults.spending.partition("@")[0]
    for wrong in ("frequency:5", "frequency:5-50", "frequency:0-0", "frequency:50-5@20"):
        with pytest.raises(DisaError) as error:
            parse(wrong, preset)
        assert "\n" not in str(error.value)
    with pytest.raises(DisaError, match="draws them as one row"):
        parse("frequency:50-5", find_preset("xar-digits"))
