"""Pictures of what is under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional

from disa.core.noise import SeededNoise
from disa.core.problem import DenoisingProblem
from disa.core.solve import solve
from disa.core.solvers import make_solver
from disa.draw.loaded import Loaded
from disa.runtime.surroundings import undisturbed

FORESEEING, STEPS = make_solver("dpm-solver++-2"), 4
MOST_AR_STEPS = 8
"""Of a model that draws the rest in its own order, for that not to take much longer than the image."""


@undisturbed()
def drawn_so_far(loaded: Loaded, state: Any, images: slice | list[int]) -> Tensor:
    """What is drawn of some images of a batch, gray where nothing is; the state stays as it is.

    state: that of an `ARStep`. images: their places in the batch. Returns [N, channels, height, width] in [0, 1].
    FlowAR's first scales are shown as they are, coarse.
    """
    latents, undrawn = loaded.model.preview(state)
    size = loaded.model.config.latent_size if undrawn is None else tuple(latents.shape[-2:])
    drawn = loaded.decode(functional.interpolate(latents[images], size, mode="nearest"))
    if undrawn is None:
        return drawn
    gray = functional.interpolate(undrawn[images].float(), tuple(drawn.shape[-2:]), mode="nearest") > 0
    return drawn.masked_fill(gray, 0.5)


def can_foresee(loaded: Loaded) -> bool:
    """Whether `foreseen` is quick.

    It is not for causal models: NextStep and BitDance know nothing of a token before all others are drawn that come
    earlier, so that a guess goes through every AR step that is left, and with one after each AR step an image of K AR
    steps takes K^2 / 2 backbone passes.
    """
    able = loaded.model.capabilities
    return not able.one_by_one and (able.num_ar_steps or 1) <= MOST_AR_STEPS


@undisturbed()
def foreseen(loaded: Loaded, state: Any, noise: SeededNoise) -> Tensor:
    """What the images of a batch may become: what is drawn of them, and all that is left drawn in a few denoising steps
    without guidance, by MAR and Harmon at once. What is still open is blurred, or does not fit together.

    state: that of an `ARStep`, not of the last one; it stays as it is. Returns [B, channels, height, width] in [0, 1].
    """

    def draw(problem: DenoisingProblem) -> Tensor:
        return solve(problem, FORESEEING, STEPS, noise).tokens

    return loaded.decode(with_rest(loaded.model, state, draw, noise))


def with_rest(model: Any, state: Any, draw: Callable[[DenoisingProblem], Tensor], noise: SeededNoise) -> Tensor:
    """Latents [B, C, H, W] with the rest drawn: all at once by MAR and Harmon, by the others in their own order."""
    ahead = model.ahead(state, noise)
    while ahead.ar_step < ahead.request.num_ar_steps:
        model.accept(ahead, draw(model.pose(ahead)))
    return model.finish(ahead)
