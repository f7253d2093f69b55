"""The time, as it passes for a device: a GPU is not waited for until a difference of two moments is asked for."""

from __future__ import annotations

import time

import torch

from disa.core.generate import Clock


def clock_of(device: torch.device) -> Clock:
    """A clock whose moments are those when the device has done the work that it was given before."""
    if device.type == "cuda":
        return lambda: Event(device)
    return _after_mps if device.type == "mps" else time.perf_counter


class Event:
    """A moment of a CUDA device, which its current stream reaches when the work before is done."""

    def __init__(self, device: torch.device) -> None:
        self.event = torch.cuda.Event(enable_timing=True)
        self.event.record(torch.cuda.current_stream(device))

    def __sub__(self, earlier: Event) -> float:
        """Seconds from an earlier one to this, once the device is there."""
        self.event.synchronize()
        return earlier.event.elapsed_time(self.event) / 1000


def _after_mps() -> float:
    torch.mps.synchronize()
    return time.perf_counter()
