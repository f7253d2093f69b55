"""The state of PyTorch around a call: what a caller may have set, and what holds while disa computes.

| a caller may have set | while disa computes | whose it is |
|---|---|---|
| `torch.autocast` of any kind of device | off | the thread's |
| `torch.set_default_device`, `torch.device("meta")` as a context | the CPU | the thread's |
| `torch.inference_mode`, `torch.no_grad`, `torch.enable_grad` | no gradients, except in training | the thread's |
| `torch.set_default_dtype` | float32 | the process's |
| `torch.set_float32_matmul_precision` | highest, or high | the process's |
| `torch.backends.cudnn.allow_tf32`, which is on by default | off, or on | the process's |
| `sdpa_kernel`, `torch.backends.cuda.enable_flash_sdp` and the like | every kernel may be chosen | the process's |
| `torch.backends.mkldnn.flags` | on | the process's |

What is the process's is changed only where it differs, and set back when the last thread that computes here is done.
TF32, which rounds what CUDA multiplies in float32 to 11 bits, is used while every thread that computes here allows it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock, RLock, get_ident
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


_cudnn: Any = torch.backends.cudnn


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # each backend has one of its own, and there is none for all
        return "highest"


def _convolutions() -> Any:
    """Whether cuDNN computes convolutions and recurrent layers of float32 in TF32."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:  # either has a setting of its own
        own = _cudnn.conv.fp32_precision, _cudnn.rnn.fp32_precision
        return own if "tf32" in own else False


def _set_convolutions(value: Any) -> None:
    if isinstance(value, bool):
        torch.backends.cudnn.allow_tf32 = value
        if _convolutions() == value:
            return
        value = ("tf32" if value else "ieee",) * 2  # what is set for all of PyTorch went before
    _cudnn.conv.fp32_precision, _cudnn.rnn.fp32_precision = value


def _mkldnn() -> bool:
    return bool(torch.backends.mkldnn.enabled)


def _set_mkldnn(enabled: bool) -> None:
    setattr(torch.backends.mkldnn, "enabled", enabled)  # noqa: B010  (a property that type checkers take for a constant)


_kernels = torch.backends.cuda  # of attention, on every kind of device
_products = Shared(_matmul_precision, torch.set_float32_matmul_precision, "highest")
_convolved = Shared(_convolutions, _set_convolutions, False)
SHARED = (
    Shared(torch.get_default_dtype, torch.set_default_dtype, torch.float32),
    _products,
    _convolved,
    Shared(_kernels.flash_sdp_enabled, _kernels.enable_flash_sdp, True),
    Shared(_kernels.mem_efficient_sdp_enabled, _kernels.enable_mem_efficient_sdp, True),
    Shared(_kernels.math_sdp_enabled, _kernels.enable_math_sdp, True),
    Shared(_mkldnn, _set_mkldnn, True),
)
IN_TF32 = {_products: "high", _convolved: True}
"""What is wanted instead where TF32 is allowed."""


class _Process:
    """Those settings as they are wanted while any thread computes."""

    def __init__(self) -> None:
        self.pid, self.lock = os.getpid(), Lock()
        self.allowed: dict[int, list[bool]] = {}
        """Of each thread that computes: whether each of the calls around it allows TF32."""
        self.in_tf32 = False
        self.before: dict[Shared, Any] = {}

    @contextmanager
    def computing(self, tf32: bool) -> Iterator[None]:
        thread = get_ident()
        with self.lock:
            self.allowed.setdefault(thread, []).append(tf32)
            for each in SHARED:
                wanted = IN_TF32.get(each, each.wanted) if self.in_tf32 else each.wanted
                if (found := each.read()) != wanted:
                    self.before.setdefault(each, found)
                    each.write(wanted)
            self._choose()
        try:
            yield
        finally:
            self._leave(thread)

    def _leave(self, thread: int) -> None:
        with self.lock:
            self.allowed[thread].pop()
            if not self.allowed[thread]:
                del self.allowed[thread]
            self._choose()
            while not self.allowed and self.before:
                each, found = self.before.popitem()
                if each.read() == each.wanted:
                    each.write(found)

    def _choose(self) -> None:
        """TF32 or not, by what all threads allow."""
        in_tf32 = bool(self.allowed) and all(map(any, self.allowed.values()))
        if in_tf32 != self.in_tf32:
            for each, value in IN_TF32.items():
                each.write(value if in_tf32 else each.wanted)
            self.in_tf32 = in_tf32


_process = _Process()


def _this_process() -> _Process:
    """That of this process. A forked one lacks the threads of its parent, which OpenMP would wait for."""
    global _process
    if _process.pid != os.getpid():
        _process = _Process()
        torch.set_num_threads(1)
    return _process


@contextmanager
def undisturbed(training: bool = False, tf32: bool = False) -> Iterator[None]:
    """Compute what follows whatever the caller has set; afterwards that is as it was. tf32: whether TF32 is allowed.
    Raises DisaError where memory runs out."""
    with ExitStack() as stack:
        stack.enter_context(_this_process().computing(tf32))
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

    def __init__(self, turns: Iterator[T], tf32: bool = False) -> None:
        self._turns, self._lock, self._tf32 = turns, RLock(), tf32

    def __iter__(self) -> Turns[T]:
        return self

    def __next__(self) -> T:
        with self._lock, undisturbed(tf32=self._tf32):
            return next(self._turns)
