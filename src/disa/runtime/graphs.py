"""Work that is recorded once and replayed: CUDA graphs, held against eager mode at their first replay.

A graph launches all kernels of a function by one call, on the memory that it was captured with. So what goes in is
copied to that memory before, and what comes out is written over by the next replay.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from threading import RLock
from typing import Any, Protocol

import torch
from torch import Tensor

from disa.core.constants import kept_in
from disa.core.work import Work as Count
from disa.core.work import ran, unheard
from disa.errors import warn
from disa.values import first_line

TOLERANCE = {torch.bfloat16: 3e-2}
"""How far a replay may be from eager mode, as a share of the largest value; 1e-4 for other floats. Whole numbers are
equal."""
FULL = "it needs more memory than there is"
"""Why a work is not recorded."""
Work = Callable[[], Sequence[Tensor]]
"""What is recorded: it reads and writes tensors that stay where they are, and returns new ones."""


class Tape(Protocol):
    """Records what a device is asked to do."""

    def eager(self, work: Work) -> Sequence[Tensor]:
        """Do it where it would be recorded, without recording it."""
        ...

    def new_pool(self) -> Any:
        """Memory for captures whose replays never overlap in time. It ends with the last of them."""
        ...

    def capture(self, work: Work, pool: Any) -> tuple[Callable[[], object], Sequence[Tensor], int]:
        """How to replay it, what it returned, and how many bytes more the pool takes. What it makes lies in the pool,
        where a replay of any other capture may write over it."""
        ...


class Records(Protocol):
    """`record` by some tape into some pool."""

    def __call__(self, work: Work, written: Sequence[Tensor], what: str, changed: bool = False) -> Recording | None: ...


@dataclass(eq=False)
class CudaPool:
    """A pool of PyTorch's allocator, which a failed capture replaces."""

    handle: Any


class CudaTape:
    """CUDA graphs of one device.

    They are captured on one stream, whose workspaces of libraries they all use. So no two replays overlap: where the
    stream that they are launched on changes, the new one waits for the old one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream, self.lock = device, torch.cuda.Stream(device), RLock()
        self.last = self.stream

    def new_pool(self) -> CudaPool:
        return CudaPool(torch.cuda.graph_pool_handle())

    def eager(self, work: Work) -> Sequence[Tensor]:
        # On the stream of the captures, whose workspaces of libraries are made here.
        with self.lock, torch.cuda.device(self.device):
            now = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(now)
            self.stream.wait_stream(self.last)
            with torch.cuda.stream(self.stream):
                found = work()
            now.wait_stream(self.stream)
            torch.cuda.synchronize(self.device)
        return found

    def capture(self, work: Work, pool: CudaPool) -> tuple[Callable[[], object], Sequence[Tensor], int]:
        torch.cuda.synchronize(self.device)
        before, collects = torch.cuda.memory_reserved(self.device), gc.isenabled()
        graph = torch.cuda.CUDAGraph()
        gc.disable()  # what it frees could end the capture
        try:
            with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
                graph.capture_begin(pool=pool.handle, capture_error_mode="thread_local")
                try:
                    found = work()
                finally:
                    graph.capture_end()
        except BaseException:
            self._abandon(pool)
            raise
        finally:
            if collects:
                gc.enable()

        def launch() -> None:
            with self.lock:
                now = torch.cuda.current_stream(self.device)
                if now != self.last:
                    now.wait_stream(self.last)
                    self.last = now
                graph.replay()

        return launch, found, max(0, torch.cuda.memory_reserved(self.device) - before)

    def _abandon(self, pool: CudaPool) -> None:
        """After a capture that failed: PyTorch then leaves the pool open, which the next capture would be refused, and
        memory that ran out could not be found again."""
        with suppress(RuntimeError, AttributeError):  # it is closed where the capture itself ended well
            torch._C._cuda_endAllocateToPool(self.stream.device.index, pool.handle)  # pyright: ignore
        pool.handle = torch.cuda.graph_pool_handle()


@dataclass(frozen=True, eq=False)
class Recording:
    """A graph that gave what eager mode gave."""

    launch: Callable[[], object]
    returned: Sequence[Tensor]
    constants: dict[Hashable, Tensor]
    """What it reads beside its inputs."""
    size: int
    """Bytes."""
    counted: Count
    """What blocks count while it runs."""

    def replay(self) -> None:
        self.launch()
        self.count()

    def count(self) -> None:
        """Say what ran, as the blocks of the model do."""
        ran(self.counted.tokens, self.counted.operations)


def record(
    tape: Tape, pool: Any, work: Work, written: Sequence[Tensor], what: str, changed: bool = False
) -> Recording | None:
    """Do a work once, and record it. None where that fails or a replay gives something else, which one warning tells;
    what it wrote is then that of eager mode. What blocks count meanwhile is kept, and heard by nobody.

    pool: of the tape. What the work returns is copied out of it. written: tensors from outside that it writes to; a
    second time it must write the same, or, where they are changed, the same if they are what they were before. what:
    its name in a warning.
    """
    constants, counted = dict[Hashable, Tensor](), Count()
    before = [each.clone() for each in written] if changed else []
    with kept_in(constants), unheard():
        try:
            with counted:
                expected = [each.clone() for each in (*tape.eager(work), *written)]
            returned = [torch.empty_like(each) for each in expected[: len(expected) - len(written)]]
        except torch.OutOfMemoryError:  # the stream of captures cannot take what is cached for another one
            _put(before, written)
            work()
            return _refused(what, FULL)

        def copied() -> Sequence[Tensor]:
            copy_all(returned, work())
            return returned

        _put(before, written)
        try:
            launch, _, size = tape.capture(copied, pool)
        except Exception as error:  # whatever a driver or a library raises
            _put(expected[len(returned) :], written)
            return _refused(what, first_line(error))
    _put(before, written)
    launch()
    found, reason = [*returned, *written], "its replay differs from eager mode by more than rounding"
    try:
        if all(_agree(*pair) for pair in zip(found, expected, strict=True)):
            return Recording(launch, returned, constants, size + nbytes(returned), counted)
    except torch.OutOfMemoryError:
        reason = FULL
    _put(expected, found)
    return _refused(what, reason)


def _put(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Write values to the first of some tensors, as many as there are."""
    for value, tensor in zip(values, tensors, strict=False):
        tensor.copy_(value)


def _refused(what: str, reason: str) -> None:
    warn(f"{what} is drawn without a captured graph: {reason}")


def _agree(found: Tensor, expected: Tensor) -> bool:
    """Whether two tensors are equal up to rounding."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if torch.equal(found, expected) or not found.is_floating_point():
        return torch.equal(found, expected)
    largest = expected.abs().where(expected.isfinite(), 0).amax()
    apart = (found - expected).abs().where(found != expected, 0).amax()  # a mask holds -inf
    return bool(apart <= TOLERANCE.get(found.dtype, 1e-4) * largest)


def nbytes(tensors: Sequence[Any]) -> int:
    """Bytes of the values of tensors."""
    return sum(each.nbytes for each in tensors if isinstance(each, Tensor))


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy tensors into others of their shapes, by one call for each type."""
    pairs = sorted(zip(targets, sources, strict=True), key=lambda pair: str((pair[0].dtype, pair[1].device)))
    for _, group in groupby(pairs, key=lambda pair: (pair[0].dtype, pair[1].device)):
        some = list(group)
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            [target for target, _ in some], [source for _, source in some], non_blocking=True
        )
