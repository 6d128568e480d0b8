"""Finds the tokens with the highest and lowest scores: occurrences with the text around them, and means by token.

Counts one batch of rows after the other: memory does not grow with the rows.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from cal_pipeline.inspect.tables.measured_batches import MeasuredBatch, count_all
from cal_pipeline.inspect.tables.token_text import Pieces, printable
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.scores import DEFAULT_SCORE, Score

CONTEXT = 8
"""Tokens shown on each side."""


@dataclass(frozen=True, slots=True, order=True)
class Occurrence:
    """One token of one row; ordered by its score, then by where it stands."""

    score: float
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


def aligned(items: Sequence[Occurrence], pieces: Pieces) -> list[Text]:
    """Each in its text, in brackets that stand below each other."""
    texts = [item.in_text(pieces) for item in items]
    width = max((cell_len(before) for before, _, _ in texts), default=0)
    return [
        Text.assemble(" " * (width - cell_len(before)), before, (f"[{token}]", "bold reverse"), after)
        for before, token, after in texts
    ]


class TokenStatistics:
    """What one pass over the shards finds.

    Args:
        top: how many of the highest and of the lowest are kept.
    """

    columns = ("sample_id",)

    def __init__(self, top: int) -> None:
        self._top = top
        self.highest: list[Occurrence] = []
        self.lowest: list[Occurrence] = []
        self.count = np.zeros(0, np.int64)
        """[V] int64, defined scores of every token id."""
        self.total = np.zeros(0)
        """[V] float64, their sum."""

    def add(self, batch: MeasuredBatch) -> None:
        """Counts the tokens of a batch."""
        flat = batch.flat
        defined = np.flatnonzero(~np.isnan(flat.scores))
        if not len(defined):
            return
        ids, scores = flat.label_ids[defined], flat.scores[defined]
        size = max(len(self.count), int(ids.max()) + 1)
        self.count = np.pad(self.count, (0, size - len(self.count)))
        self.total = np.pad(self.total, (0, size - len(self.total)))
        self.count += np.bincount(ids, minlength=size)
        self.total += np.bincount(ids, weights=scores, minlength=size)
        order = np.argsort(scores, kind="stable")
        for kept, chosen, pick in (
            (self.lowest, order[: self._top], heapq.nsmallest),
            (self.highest, order[::-1][: self._top], heapq.nlargest),
        ):
            kept[:] = pick(self._top, [*kept, *(occurrence(batch, int(defined[at])) for at in chosen)])

    def mean(self) -> np.ndarray:
        """[V] float64, NaN where a token does not occur."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.total / self.count)

    def by_mean(self, min_count: int) -> np.ndarray:
        """Ids of the tokens that occur at least so often, the lowest mean first."""
        often = np.flatnonzero(self.count >= min_count)
        return np.asarray(often[np.argsort(self.mean()[often], kind="stable")])


def token_statistics(opened: AnnotatedDataset, top: int, score: Score = DEFAULT_SCORE) -> TokenStatistics:
    """One pass; the `top` highest and lowest occurrences, and sums by token id."""
    statistics = TokenStatistics(top)
    count_all(opened, [statistics], score=score)
    return statistics


def occurrence(batch: MeasuredBatch, at: int) -> Occurrence:
    """Token `at` of the tokens of a batch, which has the column `sample_id`."""
    flat = batch.flat
    row = int(flat.row[at])
    stop = int(flat.lengths[: row + 1].sum())
    start = stop - int(flat.lengths[row])
    return Occurrence(
        score=float(flat.scores[at]),
        order=(batch.first + row, at - start),
        sample_id=batch.data.column("sample_id")[row].as_py(),
        position=int(flat.positions[at]),
        before=tuple(flat.label_ids[max(start, at - CONTEXT) : at].tolist()),
        token_id=int(flat.label_ids[at]),
        after=tuple(flat.label_ids[at + 1 : min(stop, at + 1 + CONTEXT)].tolist()),
    )
