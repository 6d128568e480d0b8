"""Counts deltas as they stream by: quantiles and histograms in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class DeltaCounts:
    """Quantiles and histograms of any number of deltas in memory that does not grow; they do not depend on the order.

    Args:
        held: so many deltas are kept as they are, and everything is exact; more are counted by value in buckets.
        bits: of a float32 that tell two buckets apart. 20 keep 11 of the mantissa: values are right to 1 part in 4096
            (8 MB); 18 keep 9, 1 part in 1024 (2 MB). Powers of two and small integers are borders of buckets.
        below: values whose share below them is always counted exactly.
    """

    def __init__(self, *, held: int = 2**20, bits: int = 20, below: Sequence[float] = ()) -> None:
        self._limit, self._bits = held, bits
        self._held: list[np.ndarray] = []
        self._counts: np.ndarray | None = None
        self._below = dict.fromkeys(map(float, below), 0)
        self.defined = self.undefined = 0
        self._sum = self._squares = 0.0
        self.min = self.max = float("nan")

    def add(self, deltas: np.ndarray) -> None:
        """Counts deltas [N] float32, NaN where undefined."""
        defined = deltas[~np.isnan(deltas)]
        self.undefined += len(deltas) - len(defined)
        if not len(defined):
            return
        self.defined += len(defined)
        exact = defined.astype(np.float64)
        self._sum += float(exact.sum())
        self._squares += float(np.square(exact).sum())
        self.min = float(np.fmin(self.min, defined.min()))
        self.max = float(np.fmax(self.max, defined.max()))
        for value in self._below:
            self._below[value] += int((defined < value).sum())
        self._held.append(defined)
        if self._counts is not None or self.defined > self._limit:
            self._counts = self._counted()

    def _counted(self) -> np.ndarray:
        """[2 ** bits] int64, with what was held, which is let go."""
        counts = np.zeros(1 << self._bits, np.int64) if self._counts is None else self._counts
        for part in self._held:
            counts += np.bincount(_ordered(part) >> (32 - self._bits), minlength=len(counts))
        self._held = []
        return counts

    @property
    def mean(self) -> float:
        """In logits; NaN of nothing."""
        return self._sum / self.defined if self.defined else float("nan")

    @property
    def std(self) -> float:
        """In logits, over the population; NaN of nothing."""
        if not self.defined:
            return float("nan")
        return float(max(self._squares / self.defined - self.mean**2, 0.0) ** 0.5)

    def share_below(self, value: float) -> float:
        """Of the defined deltas, exactly; `value` is one of those given as `below`."""
        return self._below[float(value)] / self.defined if self.defined else float("nan")

    def quantile(self, share: float) -> float:
        """As `numpy.quantile` has it, linear between neighbours; NaN of nothing."""
        return self.quantiles([share])[0]

    def quantiles(self, shares: Sequence[float]) -> list[float]:
        """The same of several shares at once."""
        if not self.defined:
            return [float("nan")] * len(shares)
        if self._counts is None:
            exact: list[float] = np.quantile(self._concatenated(), shares).tolist()
            return exact
        buckets = np.flatnonzero(self._counts)
        rank = np.asarray(shares) * (self.defined - 1)
        lower = np.floor(rank)
        at = np.searchsorted(np.cumsum(self._counts[buckets]), [lower, np.ceil(rank)], side="right")
        low, high = np.clip(self._middles(buckets[at]), self.min, self.max)
        between: list[float] = (low + (high - low) * (rank - lower)).tolist()
        return between

    def histogram(self, edges: np.ndarray) -> np.ndarray:
        """[len(edges) - 1] int64 counts; what lies outside is counted in the first and the last bin."""
        if self._counts is None:
            values, counts = np.unique(self._concatenated(), return_counts=True)
        else:
            buckets = np.flatnonzero(self._counts)
            values, counts = self._middles(buckets), self._counts[buckets]
        at = np.searchsorted(edges, values, side="right") - 1
        bins = np.zeros(len(edges) - 1, np.int64)
        np.add.at(bins, np.clip(at, 0, len(bins) - 1), counts)
        return bins

    def merge(self, other: DeltaCounts) -> None:
        """Adds what another one of the same bits and borders has counted."""
        self.defined, self.undefined = self.defined + other.defined, self.undefined + other.undefined
        self._sum, self._squares = self._sum + other._sum, self._squares + other._squares
        self.min, self.max = float(np.fmin(self.min, other.min)), float(np.fmax(self.max, other.max))
        self._below = {value: count + other._below[value] for value, count in self._below.items()}
        self._held += other._held
        if self._counts is not None or other._counts is not None or self.defined > self._limit:
            self._counts = self._counted() + (0 if other._counts is None else other._counts)

    def _concatenated(self) -> np.ndarray:
        return np.concatenate([np.empty(0, np.float32), *self._held]).astype(np.float64)

    def _middles(self, buckets: np.ndarray) -> np.ndarray:
        shift = np.uint32(32 - self._bits)
        half = np.uint32(1) << (shift - np.uint32(1))
        return _from_ordered((buckets.astype(np.uint32) << shift) + half)


def _ordered(values: np.ndarray) -> np.ndarray:
    """[N] uint32 that sort as the float32 values do (the sign bit flipped, negatives turned round)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(0x80000000))


def _from_ordered(keys: np.ndarray) -> np.ndarray:
    bits = np.where(keys >> 31, keys & np.uint32(0x7FFFFFFF), ~keys)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)
