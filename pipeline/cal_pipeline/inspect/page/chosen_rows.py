"""Chooses the rows of a page while all rows pass by, holding no more of them than the page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS
from cal_pipeline.inspect.tables.flat import noun
from cal_pipeline.inspect.tables.measured_batches import MeasuredBatch
from cal_schemas.errors import STATUS_OK

Order = Literal["failed", "random", "lowest", "highest", "word", "first"]
Pick = Literal["worst", "random", "first", "lowest", "highest"]
SHARES: Mapping[Pick, Sequence[tuple[Order, float]]] = {
    # Where rows without deltas leave room, it is filled with those that failed, then with whatever there is.
    "worst": (("failed", 0.1), ("random", 0.2), ("lowest", 0.2), ("word", 1), ("failed", 1), ("first", 1)),
    "random": (("random", 1),),
    "first": (("first", 1),),
    "lowest": (("lowest", 1),),
    "highest": (("highest", 1),),
}
"""The first rows of an order: up to such a share of the page's, or with 1 as many as there is room left for."""


class _First:
    """The `count` rows that come first by a key; of equal keys the row of the lower number; those with NaN never."""

    def __init__(self, count: int) -> None:
        self._count = count
        self.keys, self.rows = np.empty(0), np.empty(0, np.int64)

    def add(self, keys: np.ndarray, rows: np.ndarray) -> None:
        defined = ~np.isnan(keys)
        if len(self.keys) == self._count:
            defined &= keys < (self.keys[-1] if self._count else -np.inf)
        keys, rows = np.append(self.keys, keys[defined]), np.append(self.rows, rows[defined])
        order = np.argsort(keys, kind="stable")[: self._count]
        self.keys, self.rows = keys[order], rows[order]


class ChosenRows:
    """The rows that a page shows, and why each is there.

    Args:
        named: [rows of all files] bool, those that may be chosen.
        pick: which rows.
        count: how many, at most.
        seed: of those drawn at random.
    """

    columns = ("status", *ANSWER_COLUMNS)

    def __init__(self, named: np.ndarray, pick: Pick, count: int, seed: int) -> None:
        self._named, self._pick, self._count = named, pick, count
        self._rng = np.random.default_rng(seed)
        orders: tuple[Order, ...] = ("failed", "random", "lowest", "highest", "word", "first")
        self._first = {order: _First(count) for order in orders}

    def add(self, batch: MeasuredBatch) -> None:
        """Looks at the rows of a batch."""
        failed = np.asarray(batch.data.column("status")) != STATUS_OK
        mean, least = (batch.samples[f"{part}_{noun(batch.flat.score)}"] for part in ("mean", "min"))
        self.add_keys(batch.first, failed, mean, least)

    def add_keys(self, first: int, failed: np.ndarray, mean: np.ndarray, lowest: np.ndarray) -> None:
        """R rows from number `first` on: whether they failed, and their mean and lowest score, NaN where undefined."""
        drawn = self._rng.random(len(mean))  # For every row, so that a row's lot depends on its number alone.
        own = np.flatnonzero(self._named[first : first + len(mean)])
        rows = first + own
        keys: dict[Order, np.ndarray] = {
            "failed": np.where(failed, rows_of(first, failed), np.nan),
            "random": drawn,
            "lowest": mean,
            "highest": -mean,
            "word": lowest,
            "first": rows_of(first, failed),
        }
        for order, values in keys.items():
            self._first[order].add(values[own], rows)

    def why(self) -> dict[int, list[Order]]:
        """Row number, ascending -> for which orders it was taken.

        `random` holds only rows that the lot has chosen; of the others every row of the page that is among the first of
        the order with no gap.
        """
        taken: dict[int, set[Order]] = {}
        for order, share in SHARES[self._pick]:
            for place, row in enumerate(self._first[order].rows.tolist()):
                if place >= int(share * self._count) or (row not in taken and len(taken) >= self._count):
                    break
                taken.setdefault(row, set()).add(order)
        for order in ("lowest", "highest", "word"):
            for row in self._first[order].rows[: self.leading(order, taken)].tolist():
                taken[row].add(order)
        return {row: sorted(taken[row]) for row in sorted(taken)}

    def leading(self, order: Order, taken: Mapping[int, object]) -> int:
        """How many of the first rows of an order are among these, up to the first that is not."""
        rows = self._first[order].rows.tolist()
        return next((at for at, row in enumerate(rows) if row not in taken), len(rows))

    def limit(self, order: Order, count: int) -> float | None:
        """The key of the last of the first `count` rows of an order: a score (negated for `highest`)."""
        return float(self._first[order].keys[count - 1]) if count else None


def rows_of(first: int, like: np.ndarray) -> np.ndarray:
    """[R] float64, numbers of the rows from `first` on."""
    return np.arange(first, first + len(like), dtype=np.float64)
