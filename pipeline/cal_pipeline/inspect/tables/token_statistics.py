"""Finds the tokens with the highest and lowest deltas: occurrences with the text around them, and means by token.

Counts one batch of rows after the other: memory does not grow with the rows.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from cal_pipeline.inspect.tables.flat import LIST_COLUMNS
from cal_pipeline.inspect.tables.measured_batches import MeasuredBatch, count_all
from cal_pipeline.inspect.tables.token_text import Pieces, printable
from cal_schemas.opened import AnnotatedDataset

CONTEXT = 8
"""Tokens shown on each side."""


@dataclass(frozen=True, slots=True, order=True)
class Occurrence:
    """One token of one row; ordered by delta, then by where it stands."""

    delta: float
    order: tuple[int, int]
    """Number of its row among those of all files, and of the token in it."""
    sample_id: str = field(compare=False)
    position: int = field(compare=False)
    before: tuple[int, ...] = field(compare=False)
    token_id: int = field(compare=False)
    after: tuple[int, ...] = field(compare=False)

    def in_text(self, pieces: Pieces) -> tuple[str, str, str]:
        """The text before, the token, and the text after: a blank before a word is of what stands before."""
        before, token, after = (
            printable("".join(pieces.spelled(ids))) for ids in (self.before, (self.token_id,), self.after)
        )
        blank = len(token) - len(token.lstrip()) if token.strip() else 0
        return before + token[:blank], token[blank:], after


class TokenStatistics:
    """What one pass over the shards finds.

    Args:
        top: how many of the highest and of the lowest are kept.
    """

    columns = ("sample_id", *LIST_COLUMNS)

    def __init__(self, top: int) -> None:
        self._top = top
        self.highest: list[Occurrence] = []
        self.lowest: list[Occurrence] = []
        self.count = np.zeros(0, np.int64)
        """[V] int64, defined deltas of every token id."""
        self.total = np.zeros(0)
        """[V] float64, their sum."""

    def add(self, batch: MeasuredBatch) -> None:
        """Counts the tokens of a batch."""
        flat = batch.flat
        defined = np.flatnonzero(~np.isnan(flat.deltas))
        if not len(defined):
            return
        ids, deltas = flat.label_ids[defined], flat.deltas[defined]
        size = max(len(self.count), int(ids.max()) + 1)
        self.count = np.pad(self.count, (0, size - len(self.count)))
        self.total = np.pad(self.total, (0, size - len(self.total)))
        self.count += np.bincount(ids, minlength=size)
        self.total += np.bincount(ids, weights=deltas, minlength=size)
        order = np.argsort(deltas, kind="stable")
        for kept, chosen, pick in (
            (self.lowest, order[: self._top], heapq.nsmallest),
            (self.highest, order[::-1][: self._top], heapq.nlargest),
        ):
            kept[:] = pick(self._top, [*kept, *(_occurrence(batch, int(defined[at])) for at in chosen)])

    def mean(self) -> np.ndarray:
        """[V] float64, NaN where a token does not occur."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.total / self.count)

    def by_mean(self, min_count: int) -> np.ndarray:
        """Ids of the tokens that occur at least so often, the lowest mean first."""
        often = np.flatnonzero(self.count >= min_count)
        return np.asarray(often[np.argsort(self.mean()[often], kind="stable")])


def token_statistics(opened: AnnotatedDataset, top: int) -> TokenStatistics:
    """One pass; the `top` highest and lowest occurrences, and sums by token id."""
    statistics = TokenStatistics(top)
    count_all(opened, [statistics])
    return statistics


def _occurrence(batch: MeasuredBatch, at: int) -> Occurrence:
    flat = batch.flat
    row = int(flat.row[at])
    stop = int(flat.lengths[: row + 1].sum())
    start = stop - int(flat.lengths[row])
    return Occurrence(
        delta=float(flat.deltas[at]),
        order=(batch.first + row, at - start),
        sample_id=batch.data.column("sample_id")[row].as_py(),
        position=int(flat.positions[at]),
        before=tuple(flat.label_ids[max(start, at - CONTEXT) : at].tolist()),
        token_id=int(flat.label_ids[at]),
        after=tuple(flat.label_ids[at + 1 : min(stop, at + 1 + CONTEXT)].tolist()),
    )
