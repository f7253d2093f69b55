"""Rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 where either is constant."""
    first, second = (_ranks(np.asarray(values, dtype=np.float64)) for values in (a, b))
    scale = float(np.sqrt((first @ first) * (second @ second)))
    return float(first @ second) / scale if scale else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks less their mean."""
    _, place, times = np.unique(values, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(times) - (times + 1) / 2
    return mean_ranks[place] - (len(values) - 1) / 2
