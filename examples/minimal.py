"""The two ways to use disa: draw with a model that it knows, or take its step policy into a loop of your own.

    python examples/minimal.py

Offline and in seconds: the model ships with the package. Writes minimal.png into the current folder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import disa
from disa.draw.pictures import grid

NUM_GROUPS, CHANNELS = 32, 16


def draw_digits() -> None:
    """The same seeds with the original 100 denoising steps and with DiSA."""
    sampler = disa.Sampler.from_pretrained("mar-digits")
    sampler.sample(labels=0, steps="constant:1")  # the first call pays for memory and kernel set-up
    rows = []
    for steps in ("constant:100", "linear:50-5"):
        out = sampler.sample(labels=list(range(5)), seeds=list(range(5)), steps=steps)
        print(f"{steps:12}  {out.evaluations:7} evaluations  {out.seconds:5.2f} s")
        rows.append(out.images)
    grid(torch.cat(rows), columns=5).save("minimal.png")
    print("minimal.png: above constant:100, below linear:50-5")


# -- your own model --------------------------------------------------------------------------------------------------


def denoise(network: nn.Module, condition: Tensor, num_steps: int, random: torch.Generator) -> Tensor:
    """A stand-in for your sampler: Euler steps from noise (t = 1) to data (t = 0)."""
    x = torch.randn(condition.shape, generator=random)
    for _ in range(num_steps):
        velocity = network(torch.cat([x, condition]))
        x = x - velocity / num_steps
    return x


@torch.no_grad()
def own_loop() -> None:
    """A stand-in for your autoregressive loop, with DiSA in three lines."""
    random = torch.Generator().manual_seed(0)
    network = nn.Linear(2 * CHANNELS, CHANNELS)
    steps = disa.linear(50, 5)  # 1: after `import disa`, the policy
    x, evaluations = torch.zeros(CHANNELS), 0
    for k in range(NUM_GROUPS):
        num_steps = steps.at(k, NUM_GROUPS)  # 2: how many denoising steps this group gets
        x = denoise(network, x, num_steps, random)  # 3: in place of your constant number
        evaluations += num_steps
    print(f"own loop      {evaluations:7} evaluations, {100 * NUM_GROUPS} with 100 denoising steps everywhere")


if __name__ == "__main__":
    draw_digits()
    own_loop()
