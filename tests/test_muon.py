"""Muon: updates have the gradient's directions, all of them equally long."""

import math

import pytest
import torch

from disa.tiny.muon import LENGTH, Muon, orthogonal


@pytest.mark.parametrize("shape", [(5, 8, 8), (3, 6, 20), (3, 20, 6)])
def test_singular_vectors_stay_and_values_become_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    within = u.mT @ orthogonal(matrices) @ vh.mT
    found = within.diagonal(dim1=1, dim2=2)
    assert (within - found.diag_embed()).abs().max() < 1e-4
    certain = values > 0.03 * matrices.norm(dim=(1, 2), keepdim=True)[..., 0]
    assert certain.float().mean() > 0.8
    assert found[certain].min() > 0.65
    assert found[certain].max() < 1.25


def test_lengths_of_the_gradient_do_not_matter() -> None:
    matrices = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonal(1e-4 * matrices), orthogonal(matrices), rtol=0, atol=1e-3)


def test_bfloat16_rounds_an_update_and_no_more() -> None:
    matrices = torch.randn(3, 6, 20, generator=torch.Generator().manual_seed(0))
    half = orthogonal(matrices, torch.bfloat16)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, orthogonal(matrices), rtol=0, atol=0.03)
    updates = []
    for dtype in (torch.float32, torch.bfloat16):
        weight = torch.nn.Parameter(torch.zeros(6, 20))
        weight.grad = matrices[0].clone()
        Muon([{"params": [weight]}], lr=1.0, dtype=dtype).step()
        updates.append(weight.detach())
    assert not torch.equal(*updates)
    torch.testing.assert_close(*updates, rtol=0, atol=0.03 * LENGTH * math.sqrt(20))


def test_an_update_is_decay_and_a_step_of_known_length() -> None:
    weight, other = (torch.nn.Parameter(torch.full((4, 6), value)) for value in (1.0, 2.0))
    for seed, parameter in enumerate((weight, other)):
        parameter.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(seed))
    Muon([{"params": [weight, other]}], lr=0.1, weight_decay=0.5).step()
    for before, parameter in ((1.0, weight), (2.0, other)):
        assert parameter.grad is not None
        step = 0.1 * LENGTH * math.sqrt(6) * orthogonal(parameter.grad[None])[0]
        torch.testing.assert_close(parameter.detach(), 0.95 * torch.full((4, 6), before) - step)


def test_momentum_remembers_earlier_gradients() -> None:
    first, second = torch.randn(2, 1, 5, 5, generator=torch.Generator().manual_seed(0)).unbind()
    weight = torch.nn.Parameter(torch.zeros(5, 5))
    optimiser = Muon([{"params": [weight]}], lr=1.0, momentum=0.9)
    for gradient in (first, second):
        before, weight.grad = weight.detach().clone(), gradient[0]
        optimiser.step()
    momentum = 0.9 * 0.1 * first + 0.1 * second
    step = LENGTH * math.sqrt(5) * orthogonal(0.1 * second + 0.9 * momentum)[0]
    torch.testing.assert_close(before - weight.detach(), step)


def test_matrices_below_each_other_are_updated_as_if_apart() -> None:
    gradients = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0))
    together = torch.nn.Parameter(torch.zeros(12, 4))
    apart = [torch.nn.Parameter(torch.zeros(4, 4)) for _ in gradients]
    together.grad = gradients.reshape(12, 4)
    for weight, gradient in zip(apart, gradients, strict=True):
        weight.grad = gradient.clone()
    Muon([{"params": [together], "parts": 3}], lr=1.0).step()
    Muon([{"params": apart}], lr=1.0).step()
    torch.testing.assert_close(together.detach(), torch.cat([weight.detach() for weight in apart]))
