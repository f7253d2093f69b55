"""Layers whose weights stay in the CPU's memory; each is on the device only while it runs (sequential offload).

The device has room for two layers, allocated once: one runs while the next one comes. What is computed is the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from threading import RLock
from typing import Any

import torch
from torch import Tensor, nn

from disa.errors import DisaError

NUM_PLACES = 2
"""Layers that are on the device at a time."""


def check_device(device: torch.device) -> None:
    """Raises DisaError where there is no other memory than the CPU's."""
    if device.type != "cuda":
        raise DisaError(f"offload keeps weights in the CPU's memory for a CUDA device, found {device}: leave it out.")


def offload(model: nn.Module, layers: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The model on a device, but for some of its layers, which are of one shape and run one after the other.

    Weights of the layers are pinned in the CPU's memory, one tensor after the other. The state dict is unchanged.
    """
    place_others(model, layers, device, dtype)
    Offloaded(layers.to("cpu", dtype), CudaCopies(device))
    return model


def place_others(model: nn.Module, layers: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> None:
    """Move what is not in the layers."""
    parent, name = next((m, name) for m in model.modules() for name, child in m.named_children() if child is layers)
    setattr(parent, name, nn.ModuleList())
    try:
        model.to(device, dtype)
    finally:
        setattr(parent, name, layers)


class Place:
    """Memory of the device for the weights of one layer."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        self.weights = weights
        self.holds: int | None = None
        """Which layer's."""
        self.came: Any = None
        self.left: Any = None
        """When what was copied last is there, and when it is not needed any more."""


class Copies:
    """How weights come to a device: here at once, in the order of the calls."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def kept(self, weight: Tensor) -> Tensor:
        """A weight as it lies in the CPU's memory."""
        return weight

    def begin(self, place: Place, weights: Sequence[Tensor]) -> None:
        """Copy weights to a place as soon as nothing needs what was there."""
        for there, weight in zip(place.weights, weights, strict=True):
            there.copy_(weight)

    def finish(self, place: Place) -> None:
        """What runs from now on finds the copy."""

    def release(self, place: Place) -> None:
        """What was started until now was the last to need the copy."""


class CudaCopies(Copies):
    """On a stream of their own, beside what is computed. Nothing here waits on the host."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.stream = torch.cuda.Stream(device)

    def kept(self, weight: Tensor) -> Tensor:
        return weight.pin_memory()

    def begin(self, place: Place, weights: Sequence[Tensor]) -> None:
        if place.left is None:  # its memory may have been somebody else's until now, and may be again after a copy
            self.stream.wait_stream(torch.cuda.current_stream(self.device))
            for there in place.weights:
                there.record_stream(self.stream)
        else:
            self.stream.wait_event(place.left)
        with torch.cuda.stream(self.stream):
            for there, weight in zip(place.weights, weights, strict=True):
                there.copy_(weight, non_blocking=True)
            place.came = self.stream.record_event()

    def finish(self, place: Place) -> None:
        torch.cuda.current_stream(self.device).wait_event(place.came)

    def release(self, place: Place) -> None:
        place.left = torch.cuda.current_stream(self.device).record_event()


class Offloaded:
    """Layers that fetch their weights when they are called."""

    def __init__(self, layers: nn.ModuleList, copies: Copies) -> None:
        self.copies, self.lock = copies, RLock()
        self.owners = [_owners(layer) for layer in layers]
        shapes = [[(name, owner.get_parameter(name).shape) for owner, name in owners] for owners in self.owners]
        if any(shape != shapes[0] for shape in shapes):
            raise DisaError("layers that are offloaded must be of one shape.")
        for owner, name in (each for owners in self.owners for each in owners):
            weight = owner.get_parameter(name)
            weight.data = copies.kept(weight.data)
        self.places = [Place(self._room()) for _ in range(NUM_PLACES)]
        for i, layer in enumerate(layers):
            layer.forward = partial(self._run, i, layer.forward)

    def _room(self) -> list[nn.Parameter]:
        like = [owner.get_parameter(name) for owner, name in self.owners[0]]
        return [nn.Parameter(torch.empty_like(each, device=self.copies.device), requires_grad=False) for each in like]

    def _run(self, i: int, forward: Any, *args: Any, **kwargs: Any) -> Any:
        """Layer i, while the next one comes; after the last comes the first, for the next token."""
        with self.lock:
            place = self._fetched(i)
            self.copies.finish(place)
            following = (i + 1) % len(self.owners)
            if self._place_of(following) is not place:
                self._fetched(following)
            with _holding(self.owners[i], place.weights):
                try:
                    return forward(*args, **kwargs)
                finally:
                    self.copies.release(place)

    def _place_of(self, i: int) -> Place:
        return self.places[i % NUM_PLACES]

    def _fetched(self, i: int) -> Place:
        """Where a layer is, or will be: its copy is under way."""
        place = self._place_of(i)
        if place.holds != i:
            place.holds = None  # as long as it is not sure that the copy was started
            self.copies.begin(place, [owner.get_parameter(name) for owner, name in self.owners[i]])
            place.holds = i
        return place


def _owners(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every module with a parameter of its own, and the parameter's name there."""
    return [(module, name) for module in layer.modules() for name, _ in module.named_parameters(recurse=False)]


@contextmanager
def _holding(owners: list[tuple[nn.Module, str]], weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Modules have these parameters meanwhile."""
    own = [owner.get_parameter(name) for owner, name in owners]
    try:
        for (owner, name), weight in zip(owners, weights, strict=True):
            setattr(owner, name, weight)
        yield
    finally:
        for (owner, name), weight in zip(owners, own, strict=True):
            setattr(owner, name, weight)
