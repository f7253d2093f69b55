"""Operators of the denoising loop that a GPU does in one launch each.

Each has a plain form of PyTorch's own operators, which runs on a CPU, in training, and wherever there is no Triton. On
CUDA with Triton a kernel of triton_kernels.py runs. The first use of each for a device and a type is held against the
plain form, which runs from then on if the two differ or the kernel fails. On the meta device an operator gives shapes,
and counts as the one launch that it is on CUDA.

Shapes: B images, L tokens, R rows, P halves of them, C channels, D and E width, H heads, d = D / H, n draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional as F

from disa.core import formulas, noise
from disa.errors import warn
from disa.runtime.kernels import linear, swish
from disa.values import first_line

FEW_ROWS = 64
"""Up to so many rows a matrix product takes as long as reading its weights, and a kernel that also does what comes
before and after it saves launches. For more rows the vendor's kernels are used."""
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far a kernel may be from the plain form, as a share of the largest value."""

_LIBRARY = Library("disa", "DEF")
_switch = {"on": True}


@contextmanager
def plain_forms() -> Iterator[None]:
    """Nothing is fused inside, on any device: what the kernels are compared with."""
    before, _switch["on"] = _switch["on"], False
    try:
        yield
    finally:
        _switch["on"] = before


def is_fused(x: Tensor) -> bool:
    """Whether operators on such a tensor are one launch each."""
    kind = x.device.type
    if kind == "cpu" or torch.is_grad_enabled() or not _switch["on"]:
        return False
    return kind == "meta" or (kind == "cuda" and _kernels() is not None)


@cache
def _kernels() -> Any:
    """The module of kernels, or None without Triton."""
    try:
        return import_module("disa.runtime.triton_kernels")
    except ImportError:
        return None


def number_for(x: Tensor, value: float | Tensor) -> float | Tensor:
    """A number as operators on such a tensor take it: where they are fused a tensor [] beside it, float32 or int64."""
    if isinstance(value, Tensor) or not is_fused(x):
        return value
    kind = torch.int64 if isinstance(value, int) else torch.float32
    return torch.full((), value, dtype=kind, device=x.device)


class Operator:
    """One launch on CUDA.

    plain: the same in PyTorch's own operators. shapes: empty results of the right shapes and types. numbers: places of
    arguments that the kernel reads from the device, where another one may be written before a captured kernel runs
    again; a caller may give Python's numbers.
    """

    def __init__(
        self, schema: str, plain: Callable[..., Any], shapes: Callable[..., Any], numbers: Sequence[int] = ()
    ) -> None:
        self.name, self.plain, self.numbers = schema.partition("(")[0], plain, numbers
        self.agreed, self.refused = set[Any](), set[Any]()
        _LIBRARY.define(schema)
        _LIBRARY.impl(self.name, shapes, "Meta")
        _LIBRARY.impl(self.name, self.launch, "CUDA")
        self.operator = getattr(torch.ops.disa, self.name).default

    def __call__(self, *arguments: Any) -> Any:
        if not is_fused(arguments[0]):
            return self.plain(*arguments)
        given = list(arguments)
        for place in self.numbers:
            given[place] = number_for(arguments[0], given[place])
        return self.operator(*given)

    def launch(self, *arguments: Any) -> Any:
        """What the kernel gives, once it has agreed with the plain form on such a device and type; else what that
        gives."""
        here = arguments[0].device, arguments[0].dtype
        if here in self.refused:
            return self.plain(*arguments)
        try:
            with torch.cuda.device_of(arguments[0]):  # Triton launches on the current device, wherever its tensors are
                found = getattr(_kernels(), self.name)(*arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler or a driver raises
            return self._refuse(here, first_line(error), arguments)
        if here not in self.agreed:
            if not _close(found, self.plain(*arguments), TOLERANCE.get(here[1], TOLERANCE[torch.float32])):
                return self._refuse(here, "its kernel differs from the plain form by more than rounding", arguments)
            self.agreed.add(here)
        return found

    def _refuse(self, here: tuple[torch.device, torch.dtype], reason: str, arguments: tuple[Any, ...]) -> Any:
        """Use the plain form from now on, and say so."""
        self.refused.add(here)
        warn(f"{self.name} runs unfused on {here[0]}: {reason}")
        return self.plain(*arguments)


def _close(found: Any, expected: Any, tolerance: float) -> bool:
    """Whether tensors have the shapes and types of others, and nearly their values."""
    pairs = list(zip(_tensors(found), _tensors(expected), strict=True))
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return False
    return all(bool((a - b).abs().amax() <= tolerance * b.abs().amax()) for a, b in pairs)


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


# -- noise ---------------------------------------------------------------------------------------------------------


def _shape_of_normals(
    key: Tensor, image: Tensor, position: Tensor, ar_step: Tensor, first: int, count: int, values: int, *_: Any
) -> Tensor:
    return key.new_empty(count, len(image), values, dtype=torch.float32)


normals = Operator(
    "normals(Tensor key, Tensor image, Tensor position, Tensor ar_step, int first, int count, int values, "
    "Tensor? later=None) -> Tensor",
    noise.normals,
    _shape_of_normals,
    numbers=[3],
)
"""`noise.normals`, whose bits depend on the device's log and cos alone."""


# -- norms, gates, modulations -------------------------------------------------------------------------------------


def _modulated_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shift: Tensor, scale: Tensor, eps: float, rms: bool
) -> Tensor:
    width = x.shape[-1:]
    x = F.rms_norm(x, width, eps=eps) if rms else F.layer_norm(x, width, weight, bias, eps)
    return torch.addcmul(x + shift, x, scale)


modulated_norm = Operator(
    "modulated_norm(Tensor x, Tensor? weight, Tensor? bias, Tensor shift, Tensor scale, float eps, bool rms) -> Tensor",
    _modulated_norm,
    lambda x, *_: x.new_empty(x.shape),
)
"""norm(x) (1 + scale) + shift of x [..., D]: a layer norm, or an RMS norm without a gain. shift, scale: of x's shape,
or [B, 1, D] for x [B, L, D]."""


def _gated_norm(x: Tensor, gate: Tensor, y: Tensor, shift: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = torch.addcmul(x, gate, y)
    return x, _modulated_norm(x, None, None, shift, scale, eps, True)


gated_norm = Operator(
    "gated_norm(Tensor x, Tensor gate, Tensor y, Tensor shift, Tensor scale, float eps) -> (Tensor, Tensor)",
    _gated_norm,
    lambda x, *_: (x.new_empty(x.shape), x.new_empty(x.shape)),
)
"""x + gate y, and the modulated RMS norm of that."""


def _added_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x + y
    return x, F.layer_norm(x, x.shape[-1:], weight, bias, eps)


added_norm = Operator(
    "added_norm(Tensor x, Tensor y, Tensor weight, Tensor bias, float eps) -> (Tensor, Tensor)",
    _added_norm,
    lambda x, *_: (x.new_empty(x.shape), x.new_empty(x.shape)),
)
"""x + y, and the layer norm of that."""


def _gelu_gate(gate: Tensor, value: Tensor) -> Tensor:
    return F.gelu(gate) * value


gelu_gate = Operator(
    "gelu_gate(Tensor gate, Tensor value) -> Tensor", _gelu_gate, lambda gate, _: gate.new_empty(gate.shape)
)
"""gelu(gate) value, exact."""


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], -1).flatten(-2).to(x.dtype)


turned = Operator("turned(Tensor x, Tensor cos, Tensor sin) -> Tensor", _turned, lambda x, *_: x.new_empty(x.shape))
"""x [..., B, H, L, d], at most one dimension before B, whose neighbouring channels are the two sides of a plane, turned
by angles with these cosines and sines [L, d / 2]."""


# -- heads ---------------------------------------------------------------------------------------------------------


def _modulated_linear(
    x: Tensor,
    gain: Tensor | None,
    offset: Tensor | None,
    shift: Tensor,
    scale: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    activated: bool,
) -> Tensor:
    y = linear(_modulated_norm(x, gain, offset, shift, scale, eps, False), weight, bias)
    return swish(y) if activated else y


_few_modulated_linear = Operator(
    "modulated_linear(Tensor x, Tensor? gain, Tensor? offset, Tensor shift, Tensor scale, Tensor weight, Tensor bias, "
    "float eps, bool activated) -> Tensor",
    _modulated_linear,
    lambda x, *others: x.new_empty(len(x), len(others[4])),
)


def modulated_linear(
    layer: Any,
    x: Tensor,
    norm: tuple[Tensor | None, Tensor | None],
    shift: Tensor,
    scale: Tensor,
    eps: float,
    activation: str | None = None,
) -> Tensor:
    """A `Linear`, and `swish` if asked for, of the modulated layer norm of x [R, D]: [R, E]. norm: weight and bias."""
    if is_fused(x) and len(x) <= FEW_ROWS:
        return _few_modulated_linear(x, *norm, shift, scale, layer.weight, layer.bias, eps, activation == "swish")
    return layer(modulated_norm(x, *norm, shift, scale, eps, False), activation=activation)


def _gated_linear(x: Tensor, gate: Tensor, y: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.addcmul(x, gate, linear(y, weight, bias))


_few_gated_linear = Operator(
    "gated_linear(Tensor x, Tensor gate, Tensor y, Tensor weight, Tensor bias) -> Tensor",
    _gated_linear,
    lambda x, *_: x.new_empty(x.shape),
)


def gated_linear(layer: Any, x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate times a `Linear` of y; x, gate: [R, E], y: [R, D]."""
    if is_fused(x) and len(x) <= FEW_ROWS:
        return _few_gated_linear(x, gate, y, layer.weight, layer.bias)
    return torch.addcmul(x, gate, layer(y))


def _guided(value: Tensor, variance: Tensor | None, scale: float | Tensor) -> list[Tensor]:
    value = value.float()
    mixed = torch.lerp(value[1], value[0], scale) if len(value) == 2 else value[0]
    return [mixed] if variance is None else [mixed, variance[0].float()]


def _shapes_of_guided(value: Tensor, variance: Tensor | None, scale: Tensor) -> list[Tensor]:
    return [value.new_empty(value.shape[1:], dtype=torch.float32) for _ in range(1 if variance is None else 2)]


guided = Operator(
    "guided(Tensor value, Tensor? variance, Tensor scale) -> Tensor[]",
    _guided,
    _shapes_of_guided,
    numbers=[2],
)
"""unconditional + scale (conditional - unconditional) of value [P, R, ..., C], and the conditional half of variance, in
float32; with one half of value, that."""


# -- solvers -------------------------------------------------------------------------------------------------------


ancestral = Operator(
    "ancestral(Tensor x, Tensor value, Tensor? variance, Tensor? noise, float[] numbers, Tensor? each, "
    "float temperature) -> Tensor",
    formulas.ancestral.plain,
    lambda x, *_: x.new_empty(x.shape),
)
"""`formulas.ancestral`, DDPM's step, which calls it from here on."""
formulas.ancestral.form = ancestral
