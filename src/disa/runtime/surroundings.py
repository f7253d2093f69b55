"""The state of PyTorch around a call: what a caller may have set, and what holds while disa computes.

| a caller may have set | while disa computes | whose it is |
|---|---|---|
| `torch.autocast` of any kind of device | off | the thread's |
| `torch.set_default_device`, `torch.device("meta")` as a context | the CPU | the thread's |
| `torch.inference_mode`, `torch.no_grad`, `torch.enable_grad` | no gradients, except in training | the thread's |
| `torch.set_default_dtype` | float32 | the process's |
| `torch.set_float32_matmul_precision` | highest | the process's |
| `sdpa_kernel`, `torch.backends.cuda.enable_flash_sdp` and the like | every kernel may be chosen | the process's |
| `torch.backends.mkldnn.flags` | on | the process's |

What is the process's is changed only where it differs, and set back when the last thread that computes here is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from disa.errors import DisaError
from disa.runtime.devices import CPU
from disa.runtime.memory import not_enough, ran_out

T = TypeVar("T")
KINDS = "cpu", "cuda", "mps"


class Shared(NamedTuple):
    """A setting that all threads of a process have in common."""

    read: Callable[[], Any]
    write: Callable[[Any], object]
    wanted: Any


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # each backend has one of its own, and there is none for all
        return "highest"


def _mkldnn() -> bool:
    return bool(torch.backends.mkldnn.enabled)


def _set_mkldnn(enabled: bool) -> None:
    setattr(torch.backends.mkldnn, "enabled", enabled)  # noqa: B010  (a property that type checkers take for a constant)


_kernels = torch.backends.cuda  # of attention, on every kind of device
SHARED = (
    Shared(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    Shared(_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    Shared(_kernels.flash_sdp_enabled, _kernels.enable_flash_sdp, True),
    Shared(_kernels.mem_efficient_sdp_enabled, _kernels.enable_mem_efficient_sdp, True),
    Shared(_kernels.math_sdp_enabled, _kernels.enable_math_sdp, True),
    Shared(_mkldnn, _set_mkldnn, True),
)


class _Process:
    """Those settings as they are wanted while any thread computes."""

    def __init__(self) -> None:
        self.pid, self.lock, self.threads = os.getpid(), Lock(), 0
        self.before: dict[Shared, Any] = {}

    def __enter__(self) -> None:
        with self.lock:
            self.threads += 1
            for each in SHARED:
                if (found := each.read()) != each.wanted:
                    self.before.setdefault(each, found)
                    each.write(each.wanted)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.threads -= 1
            while not self.threads and self.before:
                each, found = self.before.popitem()
                if each.read() == each.wanted:
                    each.write(found)


_process = _Process()


def _this_process() -> _Process:
    """That of this process. A forked one lacks the threads of its parent, which OpenMP would wait for."""
    global _process
    if _process.pid != os.getpid():
        _process = _Process()
        torch.set_num_threads(1)
    return _process


@contextmanager
def undisturbed(training: bool = False) -> Iterator[None]:
    """Compute what follows whatever the caller has set; afterwards that is as it was. Raises DisaError where memory
    runs out."""
    with ExitStack() as stack:
        stack.enter_context(_this_process())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(training))
        for kind in KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device() != CPU:
            stack.enter_context(CPU)
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if ran_out(error):
                raise DisaError(not_enough(error)) from error
            raise


class Turns(Generic[T]):
    """An iterator whose every turn is computed `undisturbed`: between turns the caller's state is the caller's.

    Threads may take turns from one of these, each gets others.
    """

    def __init__(self, turns: Iterator[T]) -> None:
        self._turns, self._lock = turns, RLock()

    def __iter__(self) -> Turns[T]:
        return self

    def __next__(self) -> T:
        with self._lock, undisturbed():
            return next(self._turns)
