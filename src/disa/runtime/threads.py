"""How many threads compute on a CPU, and how they wait for each other.

Threads of OpenMP spin while they wait for one another: quick alone, but where other programs want the same cores, each
wait can take a time slice of theirs. A digit then took 65 to 100 s instead of 2. Waiting threads that sleep cost a few
microseconds each time; docs/using.md has the numbers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from disa.errors import DisaError
from disa.runtime.groups import control_groups
from disa.values import whole_number

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""What tells OpenMP how to wait; `KMP_BLOCKTIME` is that of LLVM's and Intel's."""


def set_up() -> None:
    """Have threads sleep while they wait, and be no more than the cores that this process may use.

    It is for a program of its own and works before PyTorch is loaded. What the user has set in the environment stays.
    """
    if "torch" in sys.modules:
        return
    if not any(name in os.environ for name in WAITING):
        os.environ["OMP_WAIT_POLICY"], os.environ["KMP_BLOCKTIME"] = "passive", "0"
    if granted_cores() < (os.cpu_count() or 1):
        os.environ.setdefault("OMP_NUM_THREADS", str(granted_cores()))


def use(threads: int | None) -> None:
    """Compute with so many threads; None leaves their number as it is. Raises DisaError."""
    if threads is None:
        return
    import torch

    cores = os.cpu_count() or 1
    try:
        torch.set_num_threads(whole_number(threads, "the number of threads", 1, cores))
    except DisaError as error:
        raise DisaError(f"{error} This machine has no more cores.") from error


def granted_cores(root: Path = Path("/")) -> int:
    """Cores that this process may use: those of its affinity, or fewer where a container's quota gives less time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [quota for folder in control_groups("cpu", root) if (quota := _quota(folder)) is not None]
    return max(1, min([cores, *map(int, quotas)]))


def _quota(folder: Path) -> float | None:
    """Cores that a control group grants, in the second version of them or the first; None where it sets no limit."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = map(int, (folder / "cpu.max").read_text().split())
        else:
            quota, period = (int((folder / f"cpu.cfs_{what}_us").read_text()) for what in ("quota", "period"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
