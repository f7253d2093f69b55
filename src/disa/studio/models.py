"""The models that the studio draws with: that of the command, and those that ship with the package."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import torch

from disa.draw.inputs import Inputs
from disa.draw.sampler import Sampler
from disa.models.registry import PRESETS
from disa.studio.machine import Machine
from disa.values import one_of

FIRST_PROMPTS = "a large red circle"


class Models:
    """Models by name, each loaded when it is first asked for, and kept."""

    def __init__(self, machine: Machine, load: Callable[[], Sampler]) -> None:
        """load: the model of the command. Raises DisaError."""
        self._machine = machine
        self.first = machine.do(load)
        self._loaded = {self.first.preset.name: self.first}
        embedded = [name for name, preset in PRESETS.items() if preset.embedded]
        self.names = list(dict.fromkeys([self.first.preset.name, *embedded]))
        machine.do(lambda: warm_up(self.first))

    def get(self, name: str) -> Sampler:
        """Raises DisaError."""
        one_of(name, self.names, "model")
        if name not in self._loaded:
            self._machine.do(lambda: self._load(name))
        return self._loaded[name]

    def _load(self, name: str) -> None:
        if name not in self._loaded:
            loaded = Sampler.from_pretrained(name, device=self.first.device, dtype=self.first.dtype)
            warm_up(loaded)
            self._loaded[name] = loaded


def warm_up(sampler: Sampler) -> None:
    """What a first picture would wait for: the autoencoder is read, and memory and kernels are set up."""
    if not sampler.preset.embedded:
        return  # an AR step of a large model takes longer than it saves, and its tokenizer may be elsewhere
    inputs = Inputs.paired(0, prompts=FIRST_PROMPTS) if sampler.preset.prompts else Inputs.paired(0, labels=0)
    for _ in islice(sampler.start(inputs, steps="constant:2"), 2):
        pass
    config = sampler.model.config
    sampler.decode(torch.zeros(1, config.latent_channels, *config.latent_size))
    _ = sampler.weights_hash


def is_small(sampler: Sampler) -> bool:
    """Whether pictures are so small that each pixel is shown as a square."""
    return max(sampler.image_shape[1:]) <= 128
