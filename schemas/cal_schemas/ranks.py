"""Ranks values, and correlates ranks."""

from __future__ import annotations

import numpy as np


def ranks(values: np.ndarray) -> np.ndarray:
    """[N] float64: the place of each of values [N] among them, from 1, ties at their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2.0)[inverse], np.float64)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation of two [N] arrays, ties at their mean rank; NaN when one is constant or N < 2."""
    return correlation(ranks(one), ranks(other))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's, of two [N] arrays; NaN when one is constant or N < 2."""
    if len(one) < 2:
        return float("nan")
    spread = [values.std() for values in (one, other)]
    if min(spread) == 0:
        return float("nan")
    centred = [values - values.mean() for values in (one, other)]
    return float((centred[0] * centred[1]).mean() / (spread[0] * spread[1]))
