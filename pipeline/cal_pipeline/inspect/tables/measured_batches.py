"""Reads every row once for any number of counts: what several of them need of a batch is computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cal_pipeline.inspect.tables.answers import irregular_answers
from cal_pipeline.inspect.tables.flat import FlatTokens, token_columns
from cal_pipeline.inspect.tables.reading import read_batches
from cal_pipeline.inspect.tables.statistics import sample_columns
from cal_schemas.opened import AnnotatedDataset, Batch
from cal_schemas.scores import DEFAULT_SCORE, Score


class MeasuredBatch:
    """Consecutive rows of one shard, R of them with N supervised tokens.

    Args:
        batch: as it was read.
        first: number of its first row among the rows of all files.
        score: what is read of the tokens.
        weighting: map, alpha, beta, window and pool.
    """

    def __init__(self, batch: Batch, first: int, *, score: Score = DEFAULT_SCORE, **weighting: Any) -> None:
        self.file, self.first = batch.file, first
        self.data: pa.RecordBatch = batch.data
        self._score, self._weighting = score, weighting

    @cached_property
    def flat(self) -> FlatTokens:
        """Its tokens."""
        return FlatTokens.of(self.data, self._score)

    @cached_property
    def turns(self) -> np.ndarray:
        """[N] int32, as `FlatTokens.turns`."""
        return self.flat.turns(irregular_answers(self.data))

    @cached_property
    def samples(self) -> dict[str, np.ndarray]:
        """Each [R], as `sample_columns`."""
        return sample_columns(self.flat, self.turns, **self._weighting)


class Counts(Protocol):
    """What is counted batch by batch, in memory that does not grow with the rows."""

    @property
    def columns(self) -> Sequence[str]:
        """It reads of a batch, where the shards have them."""

    def add(self, batch: MeasuredBatch) -> None:
        """Counts the rows of a batch; they come in file order, then row order."""


def count_all(opened: AnnotatedDataset, counts: Sequence[Counts], **weighting: Any) -> None:
    """One pass over all rows; `weighting` is score, map, alpha, beta, window and pool of what depends on them."""
    for batch in measured_batches(opened, [name for item in counts for name in item.columns], **weighting):
        for item in counts:
            item.add(batch)


def measured_batches(
    opened: AnnotatedDataset, columns: Sequence[str], *, score: Score = DEFAULT_SCORE, **weighting: Any
) -> Iterator[MeasuredBatch]:
    """All rows in order; `columns` as `read_batches` takes them, beside those of the score."""
    first = 0
    for batch in read_batches(opened, list(dict.fromkeys([*columns, *token_columns(score)]))):
        yield MeasuredBatch(batch, first, score=score, **weighting)
        first += batch.data.num_rows
