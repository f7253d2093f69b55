"""What solvers do in a denoising step, as formulas whose numbers may differ from row to row.

A solver that goes along one grid has one number for all rows. Rows that go along grids of their own have numbers each,
read from a table on the device, so that one captured graph of a denoising step serves all of them.

Shapes: R rows, c numbers of a formula. A state x is [R, *shape].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from disa.core.problem import Prediction

Numbers = Sequence[float] | Tensor
"""c numbers of all rows, or those of each [R, c]."""


class Formula(Protocol):
    """One denoising step. Two that are equal do the same with the same numbers."""

    @property
    def stochastic(self) -> bool:
        """Whether it adds noise."""
        ...

    @property
    def scale(self) -> float:
        """What the noise is scaled by that a row begins with."""
        ...

    def step(
        self, x: Tensor, before: Tensor, said: Prediction, noise: Tensor | None, numbers: Numbers
    ) -> tuple[Tensor, Tensor]:
        """x a denoising step later, and what the next one is given as `before`; both are new tensors or arguments."""
        ...


def columns(numbers: Numbers, x: Tensor) -> Sequence[Any]:
    """The c numbers apart: floats, or tensors [R, 1, ...] of as many dimensions as x."""
    if not isinstance(numbers, Tensor):
        return numbers
    return numbers.view(*numbers.shape, *[1] * (x.dim() - 1)).unbind(1)


def plus(x: Tensor, y: Tensor, factor: Any) -> Tensor:
    """x + factor y, into x. The two ways round alike."""
    return x.addcmul_(y, factor) if isinstance(factor, Tensor) else x.add_(y, alpha=factor)


class Replaceable:
    """A function of tensors that a runtime may compute in another form, with the same result."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = self.form = plain

    def __call__(self, *arguments: Any) -> Any:
        return self.form(*arguments)


# -- DDPM ----------------------------------------------------------------------------------------------------------


def _ancestral(
    x: Tensor,
    value: Tensor,
    variance: Tensor | None,
    noise: Tensor | None,
    numbers: Sequence[float],
    each: Tensor | None,
    temperature: float,
) -> Tensor:
    keep, remove, middle, spread = columns(numbers if each is None else each, x)
    found = plus(x.mul(keep), value, remove)
    if noise is None:
        return found
    value = x.new_full(x.shape, -1.0) if variance is None else variance
    return found.addcmul_(value.mul(spread).add_(middle).exp_(), noise, value=temperature)


ancestral = Replaceable(_ancestral)
"""keep x + remove value + temperature exp(middle + spread variance) noise, as a new tensor; without noise the first two
terms. A variance that is not given is -1. The four numbers are those of all rows, or `each` [R, 4]."""


@dataclass(frozen=True)
class Ancestral:
    """DDPM's step. Numbers: as `ancestral` has them; where nothing is added, -inf and 0 for the last two."""

    temperature: float
    scale = 1.0

    @property
    def stochastic(self) -> bool:
        return self.temperature != 0

    def step(
        self, x: Tensor, before: Tensor, said: Prediction, noise: Tensor | None, numbers: Numbers
    ) -> tuple[Tensor, Tensor]:
        all_rows, each = ([], numbers) if isinstance(numbers, Tensor) else (list(numbers), None)
        return ancestral(x, said.value, said.variance, noise, all_rows, each, self.temperature), before


# -- the others ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Linear:
    """DDIM's step: keep x + remove value + spread noise."""

    stochastic: bool
    scale = 1.0

    def step(
        self, x: Tensor, before: Tensor, said: Prediction, noise: Tensor | None, numbers: Numbers
    ) -> tuple[Tensor, Tensor]:
        keep, remove, spread = columns(numbers, x)
        found = plus(x.mul(keep), said.value, remove)
        return (found if noise is None else plus(found, noise, spread)), before


@dataclass(frozen=True)
class Multistep:
    """keep x + now D + share before + spread noise, where D = (x - sigma value) / alpha are the data expected at x, and
    `before` those of the step before. Numbers: alpha, -sigma, keep, now, share, spread. For networks that predict
    noise."""

    stochastic: bool
    scale: float = 1.0

    def step(
        self, x: Tensor, before: Tensor, said: Prediction, noise: Tensor | None, numbers: Numbers
    ) -> tuple[Tensor, Tensor]:
        alpha, less, keep, now, share, spread = columns(numbers, x)
        data = plus(x.clone(), said.value, less).div_(alpha)
        found = plus(plus(x.mul(keep), data, now), before, share)
        return (found if noise is None else plus(found, noise, spread)), data
