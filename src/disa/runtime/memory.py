"""How much memory there is, and what is said where it runs out."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import torch

from disa.runtime.groups import control_groups
from disa.values import first_line

ROOT = Path("/")
SAID = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "bad allocation")
"""What allocators say, in lower case: those of CUDA, MPS, Linux, Windows and C++."""
LIMITS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Files of a control group: its limit, what it uses, and what of that can be had back; in version 2, and in 1."""
UNLIMITED = 1 << 60
"""What version 1 of cgroups says for no limit is more than this."""


def free(device: torch.device) -> int | None:
    """Bytes that can still be allocated on a device, about; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(_bounds(), default=None)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there is no memory left."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in said for words in SAID)


def not_enough(error: BaseException) -> str:
    """One line about it."""
    return (
        f"there is not enough memory ({first_line(error)}): draw fewer images at a time (batch_size), or smaller ones."
    )


def _bounds() -> Iterator[int]:
    """What the machine has left, what its control groups may still take, and what the process may."""
    with suppress(OSError, ValueError, KeyError):
        yield _table(ROOT / "proc/meminfo")["MemAvailable"] * 1024
    for folder, (limit, used, cached) in product(control_groups("memory", ROOT), LIMITS):
        with suppress(OSError, ValueError):
            most = int((folder / limit).read_text())
            reclaimed = _table(folder / "memory.stat").get(cached, 0)
            if most < UNLIMITED:
                yield max(0, most - int((folder / used).read_text()) + reclaimed)
    if sys.platform != "win32":
        import resource  # there is none on Windows

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        with suppress(OSError, ValueError):
            if most != resource.RLIM_INFINITY:
                taken = int((ROOT / "proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
                yield max(0, most - taken)


def _table(path: Path) -> dict[str, int]:
    """`name: 123 kB`, a line each."""
    lines = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}
