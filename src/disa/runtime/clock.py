"""The time, as it passes for the one who waits for a device."""

from __future__ import annotations

import time

import torch


def now(device: torch.device) -> float:
    """Seconds of a steady clock, once the device has done the work that it was given before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
