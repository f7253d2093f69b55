"""A stand-in for CUDA graphs on a CPU: it writes down every operator with the tensors that it was given, and a replay
does them again on the same memory. What a CUDA graph would not bear is an error, or spoils the result:

- memory that was made during the capture is spoiled before each replay: a tensor that was copied from the host, or kept
  by a cache, or read before it is written, shows;
- so is what later captures of the same pool have given back: it may lie where this one has something in between;
- operators that look at a value raise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from disa.runtime.graphs import Work

LOOKING = "_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero"


@dataclass(eq=False)
class Done:
    """One operator, as it was called. out: the tensors that it gave."""

    function: Any
    args: Any
    kwargs: Any
    out: list[Tensor]


class Writing(TorchDispatchMode):
    """Writes down operators while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.done = list[Done]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(function).partition(".")[2].partition(".")[0]
        if name in LOOKING:
            raise RuntimeError(f"{name} is not permitted when stream is capturing")
        out = function(*args, **(kwargs or {}))
        self.done.append(Done(function, args, kwargs or {}, tensors(out)))
        return out


class HostCalls(TorchDispatchMode):
    """Counts operators that would be launched, as `benchmarks/launches.py` does; replays count themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.names = list[str]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if not is_view(function) and not no_launch(function):
            self.names.append(str(function))
        return out


def is_view(function: Any) -> bool:
    return any(each.alias_info is not None and not each.alias_info.is_write for each in function._schema.returns)


def no_launch(function: Any) -> bool:
    name = str(function).removeprefix("aten.")
    return name.startswith(("empty", "new_empty", "prim.", "set_", "lift_fresh", "_local_scalar"))


def tensors(value: Any) -> list[Tensor]:
    """Those in a value, in lists and in tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [each for part in value for each in tensors(part)] if isinstance(value, list | tuple) else []


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class StandIn:
    """A `Tape`. faulty: changes what a replay returns, as a wrong graph would; after: called by every replay; full:
    memory runs out where a work is tried."""

    def __init__(self, faulty: bool = False) -> None:
        self.faulty, self.captures, self.replays, self.pools = faulty, 0, 0, 0
        self.broken: Callable[[int], bool] = lambda _: False
        self.after: Callable[[], object] = lambda: None
        self.size, self.full = 1000, False

    def new_pool(self) -> list[list[Tensor]]:
        """What each capture has made and given back, in their order."""
        self.pools += 1
        return []

    def eager(self, work: Work) -> Sequence[Tensor]:
        found = work()
        if self.full:
            raise torch.OutOfMemoryError("out of memory")
        return found

    def capture(self, work: Work, pool: list[list[Tensor]]) -> tuple[Callable[[], object], Sequence[Tensor], int]:
        self.captures += 1
        if self.broken(self.captures):
            raise RuntimeError("operation not permitted when stream is capturing")
        writing = Writing()
        with writing:
            returned = work()
        before, made = set[int](), dict[int, Tensor]()
        for each in writing.done:
            before |= {memory(t) for t in tensors((each.args, list(each.kwargs.values()))) if strided(t)} - made.keys()
            made |= {memory(out): out for out in each.out if strided(out) and memory(out) not in before}
        given = {memory(each) for each in returned} & made.keys()
        place = len(pool)
        pool.append([made.pop(each) for each in given])
        spoiled, done = [(useless(each), whole(each)) for each in made.values()], list(filter(computes, writing.done))

        def replay() -> None:
            self.replays += 1
            with _disable_current_modes():
                later = [(useless(each), whole(each)) for given in pool[place + 1 :] for each in given]
                for value, bytes_of in (*spoiled, *later):
                    bytes_of.fill_(value)
                for each in done:
                    again(each)
                if self.faulty:
                    for each in returned:
                        each.mul_(1.5)
                self.after()

        return replay, returned, self.size


def strided(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided


def whole(tensor: Tensor) -> Tensor:
    """The bytes of the whole memory that a tensor lies in."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())  # pyright: ignore


def useless(tensor: Tensor) -> int:
    """What to fill these with: floats become none, whole numbers useless."""
    return 0xFF if tensor.is_floating_point() else 0x7F


def computes(done: Done) -> bool:
    return not (is_view(done.function) or str(done.function).startswith("aten.lift_fresh"))


def again(done: Done) -> None:
    """Do an operator once more, its results where they were."""
    found = tensors(done.function(*done.args, **done.kwargs))
    for old, new in zip(done.out, found, strict=True):
        if old is not new and memory(old) != memory(new):
            old.copy_(new)
