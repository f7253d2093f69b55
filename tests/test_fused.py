"""Fused operators: the kernels give what the plain forms give, and stand back where they do not.

Where there is no GPU, Triton's interpreter runs the kernels on the CPU.
"""

import os
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from disa.core import noise
from disa.core.noise import SeededNoise
from disa.runtime import fused
from disa.runtime.packing import Linear
from test_noise import all_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton reads it when it is imported
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed: pip install triton")
DTYPES = torch.float32, torch.bfloat16
EPS = 1e-6


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def modulations(rows: int, parts: int, width: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """As the head has them: views of one tensor."""
    return normal(rows, parts, width, seed=5, dtype=dtype).unbind(1)


def agrees(operator: fused.Operator, *arguments: Any) -> None:
    """The kernel gives what the plain form gives in float64, to the rounding of the type it is given."""
    from disa.runtime import triton_kernels

    found = getattr(triton_kernels, operator.name)(*arguments)
    expected, like = operator.plain(*map(exact, arguments)), operator.plain(*arguments)
    bound = 2e-5 if arguments[0].dtype == torch.float32 else 2e-2
    for mine, true, plain in zip(each(found), each(expected), each(like), strict=True):
        assert mine.shape == plain.shape
        assert mine.dtype == plain.dtype
        assert (mine.double() - true).abs().max() <= bound * true.abs().max()


def each(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def exact(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value


# -- kernels ---------------------------------------------------------------------------------------------------------


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize(("shape", "first", "count"), [((16,), 1, 3), ((5,), 0, 1), ((3, 6), 7, 2)])
def test_the_noise_of_an_ar_step_is_one_kernel(shape: tuple[int, ...], first: int, count: int) -> None:
    from disa.runtime import triton_kernels

    seeds = [0, 7, 2**40 + 1, 2**64 - 1]
    problem, values = all_rows(len(seeds), 5, ar_step=9, shape=shape), torch.Size(shape).numel()
    key = SeededNoise(seeds).key
    ar_step = torch.tensor(9, device=DEVICE)
    arguments = (key.to(DEVICE), problem.image.to(DEVICE), problem.position.to(DEVICE), ar_step, first, count, values)
    for later in ((), (torch.tensor(3, device=DEVICE),)):
        found = triton_kernels.normals(*arguments, *later)
        expected = noise.normals(*arguments, *later)
        # log and cos alone may be rounded in another way: a wrong bit of Philox would change everything.
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rms", "affine"), [(False, False), (False, True), (True, False)])
def test_modulated_norm(dtype: torch.dtype, rms: bool, affine: bool) -> None:
    width = 40
    gain = (1 + normal(width, seed=1, dtype=dtype), normal(width, seed=2, dtype=dtype)) if affine else (None, None)
    shift, _, scale = modulations(6, 3, width, dtype)
    agrees(fused.modulated_norm, 2 + normal(6, width, dtype=dtype), *gain, shift, scale, EPS, rms)
    tokens = normal(3, 5, width, dtype=dtype)
    for rows in (1, 3):  # one modulation for all images, one for each
        shift, scale = (part[:, None] for part in modulations(rows, 2, width, dtype))
        agrees(fused.modulated_norm, tokens, *gain, shift, scale, EPS, rms)
    each_token = normal(3, 5, 2, width, seed=8, dtype=dtype).unbind(2)
    agrees(fused.modulated_norm, tokens, *gain, *each_token, EPS, rms)


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_gated_norm(dtype: torch.dtype) -> None:
    width = 24
    x, y = normal(3, 5, width, dtype=dtype), normal(3, 5, width, seed=1, dtype=dtype)
    for rows in (1, 3):
        gate, shift, scale = (part[:, None] for part in modulations(rows, 3, width, dtype))
        agrees(fused.gated_norm, x, gate, y, shift, scale, EPS)
    agrees(fused.gated_norm, x, *normal(3, 5, 1, width, seed=6, dtype=dtype).unbind(2), y, x, y, EPS)


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_added_norm(dtype: torch.dtype) -> None:
    width = 24
    x, y = 2 + normal(3, 5, width, dtype=dtype), normal(3, 5, width, seed=1, dtype=dtype)
    agrees(fused.added_norm, x, y, 1 + normal(width, seed=2, dtype=dtype), normal(width, seed=3, dtype=dtype), EPS)
    agrees(fused.added_norm, x, x.transpose(0, 2).reshape(x.shape), y[0, 0], y[0, 1], EPS)


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(5, 4), (3, 2, 6)])
def test_a_step_of_ddpm(shape: tuple[int, ...]) -> None:
    """With the same numbers for all rows, with numbers of each, and where nothing is added."""
    x, value, variance, noise = (normal(*shape, seed=seed) for seed in range(4))
    each = normal(shape[0], 6, seed=5)[:, 2:]
    each[0, 2:] = torch.tensor([-torch.inf, 0.0])
    numbers = [0.9, -0.3, -1.0, 0.5]
    operator = fused.ancestral
    for spread in (variance, None):
        agrees(operator, x, value, spread, noise, numbers, None, 0.7)
        agrees(operator, x, value, spread, noise, [], each, 1.0)
    agrees(operator, x, value, variance, None, numbers, None, 1.0)


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_turned(dtype: torch.dtype) -> None:
    cos, sin = normal(5, 8, seed=1), normal(5, 8, seed=2)
    projected = normal(2, 5, 3, 4, 16, dtype=dtype).permute(2, 0, 3, 1, 4)
    agrees(fused.turned, projected[:2], cos, sin)
    agrees(fused.turned, projected[1], cos, sin)


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
def test_gelu_gate(dtype: torch.dtype) -> None:
    agrees(fused.gelu_gate, 2 * normal(3, 7, 50, dtype=dtype), normal(3, 7, 50, seed=1, dtype=dtype))


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 14, 70])
def test_linear_layers_of_few_rows(dtype: torch.dtype, rows: int) -> None:
    width, features = 40, 24
    weight, bias = normal(features, width, seed=1, dtype=dtype) / 6, normal(features, seed=2, dtype=dtype)
    gain, offset = 1 + normal(width, seed=3, dtype=dtype), normal(width, seed=4, dtype=dtype)
    shift, scale = modulations(rows, 2, width, dtype)
    x = normal(rows, width, dtype=dtype)
    for norm, activated in (((gain, offset), True), ((None, None), False)):
        agrees(fused._few_modulated_linear, x, *norm, shift, scale, weight, bias, EPS, activated)
    h, gate = (normal(rows, features, seed=seed, dtype=dtype) for seed in (6, 7))
    agrees(fused._few_gated_linear, h, gate, x, weight, bias)


@needs_triton
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("halves", [1, 2])
def test_guided(dtype: torch.dtype, halves: int) -> None:
    value, variance = normal(halves, 7, 12, dtype=dtype).chunk(2, dim=-1)
    agrees(fused.guided, value, variance, torch.tensor(2.5, device=DEVICE))
    agrees(fused.guided, normal(halves, 3, 4, 6, dtype=dtype), None, torch.tensor(0.5, device=DEVICE))


# -- which form runs -------------------------------------------------------------------------------------------------


def double(x: Tensor) -> Tensor:
    return 2 * x


@pytest.fixture
def doubling(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], fused.Operator]:
    """To make an operator that doubles, whose kernel is given."""

    class Unregistered(fused.Operator):
        def __init__(self) -> None:
            self.name, self.plain = "doubled", double
            self.agreed, self.refused = set[Any](), set[Any]()

    def make(kernel: Any) -> fused.Operator:
        monkeypatch.setattr(fused, "_kernels", lambda: SimpleNamespace(doubled=kernel))
        return Unregistered()

    return make


def test_a_kernel_that_agrees_is_held_against_the_plain_form_once(
    doubling: Callable[[Any], fused.Operator], recwarn: pytest.WarningsRecorder
) -> None:
    held = list[int]()
    operator, x = doubling(lambda x: 2.00001 * x), torch.ones(3)
    operator.plain = lambda x: held.append(len(x)) or double(x)
    for count in (3, 2, 1):
        assert torch.equal(operator.launch(x[:count]), 2.00001 * x[:count])
    assert held == [3]
    assert not recwarn.list


def test_a_kernel_that_fails_later_is_not_used_again(doubling: Callable[[Any], fused.Operator]) -> None:
    operator, x = doubling(lambda x: 2 * x[[0, 1]]), torch.ones(2)
    assert torch.equal(operator.launch(x), double(x))
    with pytest.warns(UserWarning, match="doubled runs unfused on cpu"):
        assert torch.equal(operator.launch(x[:1]), double(x[:1]))
    assert torch.equal(operator.launch(x), double(x))
    assert operator.refused == {(x.device, x.dtype)}


def test_too_little_memory_is_no_fault_of_a_kernel(doubling: Callable[[Any], fused.Operator]) -> None:
    def full(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("full")

    operator = doubling(full)
    with pytest.raises(torch.OutOfMemoryError):
        operator.launch(torch.ones(2))
    assert not operator.refused


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (lambda x: 2.1 * x, "differs from the plain form"),
        (lambda x: torch.nan * x, "differs from the plain form"),
        (lambda x: torch.zeros(0)[1], "index 1 is out of bounds"),
    ],
)
def test_a_kernel_that_is_wrong_or_fails_is_told_once_and_never_used(
    kernel: Callable[[Tensor], Tensor], said: str, doubling: Callable[[Any], fused.Operator]
) -> None:
    operator, x = doubling(kernel), torch.ones(3)
    with pytest.warns(UserWarning, match=f"doubled runs unfused on cpu: .*{said}") as told:
        found = [operator.launch(x) for _ in range(3)]
    assert all(torch.equal(each, double(x)) for each in found)
    assert len(told) == 1


def test_a_cpu_training_and_plain_forms_are_not_fused() -> None:
    on_meta = torch.empty(3, device="meta")
    assert fused.is_fused(on_meta)
    assert not fused.is_fused(torch.empty(3))
    with torch.enable_grad():
        assert not fused.is_fused(on_meta)
    with fused.plain_forms():
        assert not fused.is_fused(on_meta)
    assert fused.is_fused(on_meta)


def test_shapes_on_the_meta_device_are_those_of_the_plain_forms() -> None:
    meta = torch.device("meta")
    x, part = torch.empty(6, 8, device=meta, dtype=torch.bfloat16), torch.empty(6, 8, device=meta, dtype=torch.bfloat16)
    weight, bias = part.new_empty(4, 8), part.new_empty(4)
    cos = torch.empty(6, 4, device=meta)
    halves = part.new_empty(2, 6, 8)
    key, image = torch.empty(2, 3, dtype=torch.int64, device=meta), torch.empty(6, dtype=torch.int64, device=meta)
    cases: list[tuple[Any, tuple[Any, ...]]] = [
        (fused.modulated_norm, (x, None, None, part, part, EPS, False)),
        (fused.gated_norm, (x, part, part, part, part, EPS)),
        (fused.gelu_gate, (x, part)),
        (fused.added_norm, (x, part, x[0], x[0], EPS)),
        (fused.ancestral, (cos, cos, None, cos, [1.0] * 4, None, 1.0)),
        (fused.turned, (halves[:, None, None], cos, cos)),
        (fused._few_modulated_linear, (x, None, None, part, part, weight, bias, EPS, True)),
        (fused._few_gated_linear, (x.new_empty(6, 4), x.new_empty(6, 4), x, weight, bias)),
        (fused.guided, (halves[..., :4], halves[..., 4:], 2.0)),
        (fused.guided, (halves, None, 2.0)),
        (fused.normals, (key, image, image, 3, 1, 5, 7)),
    ]
    for operator, arguments in cases:
        for found, expected in zip(each(operator(*arguments)), each(operator.plain(*arguments)), strict=True):
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


def test_layers_are_the_same_whatever_the_number_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few rows and many take other ways on the meta device, of the same shape."""
    with torch.device("meta"):
        layer = Linear(8, 4)
    for rows in (fused.FEW_ROWS, fused.FEW_ROWS + 1):
        x = torch.empty(rows, 8, device="meta")
        y = fused.modulated_linear(layer, x, (None, None), x, x, EPS, "swish")
        assert y.shape == (rows, 4)
        assert fused.gated_linear(layer, y, y, x).shape == (rows, 4)
