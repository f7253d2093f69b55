"""What identifies weights: a hash of every tensor, made when it is first asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from disa.errors import DisaError
from disa.runtime.packing import PackedLinear
from disa.runtime.surroundings import undisturbed


class Fingerprint:
    """The hash of a model's weights as they are now, made later: it takes seconds where they are many."""

    def __init__(self, model: nn.Module) -> None:
        self._model: nn.Module | None = model
        self._value: str | None = None
        self.moved(model)

    def moved(self, model: nn.Module) -> None:
        """The same weights lie elsewhere now, or are rounded to bfloat16."""
        self._marks = marks(model)

    def fits(self, model: nn.Module) -> bool:
        """Whether a model has these weights still, as far as PyTorch counts what is written to them."""
        return marks(model) == self._marks

    @property
    def value(self) -> str:
        """The model is let go of then. Raises DisaError where the weights have changed meanwhile."""
        model = self._model
        if self._value is None and model is not None:
            if not self.fits(model):
                raise DisaError(
                    "the weights were changed after this was drawn, so their hash is lost: read `settings` of samples "
                    "before you change weights."
                )
            self._value, self._model = hash_of(model), None
        return self._value or ""


def marks(model: nn.Module) -> list[tuple[int, int]]:
    """Which tensors a model holds, and how often each was written to."""
    packed = [module.packed for module in model.modules() if isinstance(module, PackedLinear)]
    values = [*model.parameters(), *model.buffers(), *packed]
    return [(id(value), 0 if value.is_inference() else value._version) for value in values]


@undisturbed()
def hash_of(model: nn.Module) -> str:
    """SHA-256 of all tensors of a model as bfloat16, and of their names: the same in fp32 and in bf16."""
    found = hashlib.sha256()
    for name, value in _tensors(model):
        found.update(name.encode())
        # As one row: a tensor without dimensions has no bytes to view.
        found.update(value.detach().cpu().to(torch.bfloat16).reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a model by name, in the order of names. Packed ones are unpacked, one at a time."""
    owners = {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in model.named_modules()
        for name in [*_plain(module), *(["weight"] if isinstance(module, PackedLinear) else [])]
    }
    for full, (module, name) in sorted(owners.items()):
        if isinstance(module, PackedLinear) and name == "weight":
            yield full, module.unpacked().weight
        else:
            yield full, _plain(module)[name]


def _plain(module: nn.Module) -> dict[str, Any]:
    """A module's own tensors that are saved, but for packed ones."""
    own: dict[str, Any] = {}
    nn.Module._save_to_state_dict(module, own, "", keep_vars=False)
    return own
