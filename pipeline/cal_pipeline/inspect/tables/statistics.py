"""What the deltas of a row say together, and distributions of deltas that are counted as they stream by."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from cal_pipeline.inspect.tables.flat import FlatTokens
from cal_schemas.errors import ConfigError
from cal_schemas.weighting import Pool

SAMPLE_COLUMNS = (
    "tokens",
    "undefined",
    "turns",
    "mean_delta",
    "min_delta",
    "max_delta",
    "share_negative",
    "share_below_alpha",
    "share_above_beta",
    "mean_weight",
    "visual_dependence",
)


def sample_columns(
    flat: FlatTokens, turns: np.ndarray, *, alpha: float, beta: float, window: int, pool: Pool
) -> dict[str, np.ndarray]:
    """SAMPLE_COLUMNS, each [R]: counts int64, the rest float64, NaN where a row has no defined delta.

    Without `visual_dependence` where these bounds do not define it, see `check_defined`.
    """
    rows = len(flat.lengths)
    weights = flat.weights(alpha=alpha, beta=beta, window=window, pool=pool)
    defined = ~np.isnan(flat.deltas)
    row, deltas = flat.row[defined], flat.deltas[defined]
    count = np.bincount(row, minlength=rows)

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.bincount(row, weights=values, minlength=rows)
        result: np.ndarray = np.divide(total, count, out=np.full(rows, np.nan), where=count > 0)
        return result

    least, most = np.full(rows, np.nan), np.full(rows, np.nan)
    if len(row):
        first = np.flatnonzero(np.diff(row, prepend=-1))
        least[row[first]] = np.minimum.reduceat(deltas, first)
        most[row[first]] = np.maximum.reduceat(deltas, first)
    new_turn = (np.diff(flat.row, prepend=-1) != 0) | (np.diff(turns, prepend=0) != 0)
    columns = {
        "tokens": flat.lengths.astype(np.int64),
        "undefined": flat.lengths.astype(np.int64) - count,
        "turns": np.bincount(flat.row[new_turn], minlength=rows),
        "mean_delta": mean(deltas),
        "min_delta": least,
        "max_delta": most,
        "share_negative": mean(deltas < 0),
        "share_below_alpha": mean(deltas < alpha),
        "share_above_beta": mean(deltas > beta),
        "mean_weight": mean(weights[defined]),
    }
    if alpha < beta < np.inf:
        raised = np.clip(deltas.astype(np.float64), alpha, beta) - alpha
        columns["visual_dependence"] = mean(raised / (beta - alpha))
    return columns


def check_defined(names: Collection[str], *, alpha: float, beta: float) -> None:
    """ConfigError where one of the columns is asked for that these bounds do not define."""
    if "visual_dependence" in names and not alpha < beta < np.inf:
        raise ConfigError(
            f"visual_dependence is a share of the way from alpha to beta: it needs a finite beta above alpha, got "
            f"alpha {alpha:g} and beta {beta:g}"
        )


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
            found: list[float] = np.quantile(self._concatenated(), shares).tolist()
            return found
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
        found = np.zeros(len(edges) - 1, np.int64)
        np.add.at(found, np.clip(at, 0, len(found) - 1), counts)
        return found

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


def auc(high: Any, low: Any) -> float:
    """Chance that a value of `high` [N] is above a value of `low` [M], ties counting half; NaN if one is empty."""
    high, low = np.asarray(high, np.float64), np.asarray(low, np.float64)
    if not len(high) or not len(low):
        return float("nan")
    ordered = np.sort(low)
    below = np.searchsorted(ordered, high, side="left")
    upto = np.searchsorted(ordered, high, side="right")
    return float((below + upto).sum() / (2 * len(high) * len(low)))
