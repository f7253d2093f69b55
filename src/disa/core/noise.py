"""Every random number of a generation as a function of (seed, position, ar_step, denoise_step).

A counter-based generator (Philox 4x32-10, Salmon et al. 2011) is keyed by the image's seed; the counter says what the
number is for. So batch size, order of work, bucketing and resuming cannot change a number, and no global state exists.

Shapes: B images, L tokens, R rows, n draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from numbers import Integral

import torch
from torch import Tensor

from disa.core.problem import DenoisingProblem
from disa.errors import DisaError

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
# Of the last counter word; a normal's also holds the AR step.
_ORDER, _NORMAL, _TEXT, _BRANCH = 0, 1, 2, 4


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four words from four counter words and two key words, ten rounds; 32-bit words in int64 tensors, broadcast."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The product of two 32-bit words wraps in int64, but its bits are those of the unsigned product.
        first, second = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (second >> 32) & _LOW ^ c1 ^ k0, (first >> 32) & _LOW ^ c3 ^ k1
        c1, c3 = second & _LOW, first & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def normals(
    key: Tensor,
    image: Tensor,
    position: Tensor,
    ar_step: int | Tensor,
    first: int,
    count: int,
    values: int,
    later: Tensor | None = None,
) -> Tensor:
    """[count, R, values] standard normal numbers of rows, for draws `first` and following; draw 0 is where denoising
    starts.

    key: [2, B] low and high words of the seeds; image, position: [R] of each row. ar_step: a tensor [] where it is
    known to the device alone; later: likewise what `first` is counted from.
    """
    block = torch.arange(-(-values // 4), device=key.device)
    draw = torch.arange(first, first + count, device=key.device)[:, None, None]
    draw = draw if later is None else draw + later
    purpose = torch.as_tensor(ar_step << 1 | _NORMAL, device=key.device)
    key = key[:, image, None]
    words = philox((block, position[:, None], draw, purpose), (key[0], key[1]))
    found = torch.cat([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])], dim=-1)
    return found[..., :values]


class SeededNoise:
    """The noise of a batch: image i is drawn with `seeds[i]`, a whole number of 64 bits.

    make: what computes normal numbers as `normals` does; a runtime may have a quicker way to them.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        device: torch.device | str | None = None,
        make: Callable[..., Tensor] = normals,
    ) -> None:
        wrong = [seed for seed in seeds if not isinstance(seed, Integral) or not 0 <= seed < 1 << 64]
        if wrong:
            raise DisaError(f"a seed must be a whole number from 0 to 2**64 - 1, found {wrong[0]}.")
        whole = [int(seed) for seed in seeds]
        low, high = [seed & _LOW for seed in whole], [seed >> 32 for seed in whole]
        self.key = torch.tensor([low, high], dtype=torch.int64, device=device)
        self.make = make

    def with_key(self, key: Tensor) -> SeededNoise:
        """The same of other seeds, by their words [2, B]."""
        other = copy(self)
        other.key = key
        return other

    def branch(self, number: int) -> SeededNoise:
        """Other noise for the same images, independent of this one's and of that of every other branch."""
        zero = torch.zeros_like(self.key[0])
        low, high, *_ = philox((zero + number, zero, zero, zero + _BRANCH), (self.key[0], self.key[1]))
        seeds = [a | b << 32 for a, b in zip(low.tolist(), high.tolist(), strict=True)]
        return SeededNoise(seeds, self.key.device, self.make)

    def orders(self, num_tokens: int) -> Tensor:
        """[B, L] a uniformly random permutation per image."""
        position = torch.arange(num_tokens, device=self.key.device)
        zero = torch.zeros_like(position)
        words = philox((position, zero, zero, zero + _ORDER), (self.key[0, :, None], self.key[1, :, None]))
        return (words[0] << 31 | words[1] >> 1).argsort(dim=1)

    def uniform(self, position: int) -> Tensor:
        """[B] in (0, 1), float64: what chooses the text token at `position`."""
        zero = torch.zeros_like(self.key[0])
        words = philox((zero + position, zero, zero, zero + _TEXT), (self.key[0], self.key[1]))
        return (words[0].double() + 0.5) * 2**-32

    def initial(self, problem: DenoisingProblem) -> Tensor:
        """[R, *shape] standard normal."""
        return self._normal(problem, first=0, count=1)[0]

    def added(self, problem: DenoisingProblem, num_steps: int) -> Tensor:
        """[num_steps, R, *shape] standard normal; the first k of them do not depend on `num_steps`."""
        return self._normal(problem, first=1, count=num_steps)

    def added_in(self, problem: DenoisingProblem, denoise_step: Tensor) -> Tensor:
        """[R, *shape] what is added in one denoising step, which the device alone knows []."""
        return self._normal(problem, 1, 1, denoise_step)[0]

    def _normal(self, problem: DenoisingProblem, first: int, count: int, *later: Tensor) -> Tensor:
        device, values = self.key.device, math.prod(problem.shape)
        image, position = problem.image.to(device), problem.position.to(device)
        found = self.make(self.key, image, position, problem.ar_step, first, count, values, *later)
        return found.reshape(count, problem.num_rows, *problem.shape)


def _box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals, float32, from two 32-bit words (Box and Muller 1958)."""
    radius = ((a.float() + 0.5) * 2**-32).log().mul(-2).sqrt()
    angle = b.float() * (2 * math.pi * 2**-32)
    return radius * angle.cos(), radius * angle.sin()
