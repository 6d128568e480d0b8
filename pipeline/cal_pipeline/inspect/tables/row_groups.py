"""Counts rows and their scores by status and by source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cal_pipeline.inspect.tables.flat import noun
from cal_pipeline.inspect.tables.measured_batches import MeasuredBatch
from cal_pipeline.inspect.tables.stored_columns import plain
from cal_schemas.errors import STATUS_OK
from cal_schemas.opened import AnnotatedDataset

MAX_NAMES = 1000
"""So many are told apart; the rows of later ones are counted together."""
OTHERS = "(others)"


@dataclass(kw_only=True, slots=True)
class RowGroup:
    """Rows that share a status or a source."""

    rows: int = 0
    ok: int = 0
    tokens: int = 0
    """With a defined score."""
    total: float = 0.0
    """Sum of these."""
    negative: int = 0
    """How many are below 0."""
    lowest: float = float("nan")
    error: str | None = None
    """Of the first row that has one."""

    @property
    def mean(self) -> float:
        """Of the defined scores, NaN of none."""
        return self.total / self.tokens if self.tokens else float("nan")


class RowGroups:
    """Of every row by status, and by source: the stored one, or else what its shard was measured from."""

    columns = ("status", "error", "source")

    def __init__(self, opened: AnnotatedDataset) -> None:
        self._source_of = {
            path: item.source.data_path for path, item in zip(opened.files, opened.metadata, strict=True)
        }
        self.by_status: dict[str, RowGroup] = {}
        self.by_source: dict[str, RowGroup] = {}

    def add(self, batch: MeasuredBatch) -> None:
        """Counts the rows of a batch."""
        data = batch.data
        self._add(self.by_status, batch, data.column("status"))
        if "source" in data.schema.names:
            self._add(self.by_source, batch, data.column("source"))
        else:
            self._add(self.by_source, batch, pa.array([self._source_of[batch.file]] * data.num_rows, pa.string()))

    def _add(self, groups: dict[str, RowGroup], batch: MeasuredBatch, names: pa.Array) -> None:
        encoded = plain(names).dictionary_encode()
        of_row = np.asarray(encoded.indices)
        samples = batch.samples
        tokens = samples["tokens"] - samples["undefined"]
        ok = np.asarray(batch.data.column("status")) == STATUS_OK
        name = noun(batch.flat.score)
        mean, share = (np.nan_to_num(samples[column]) for column in (f"mean_{name}", "share_negative"))
        for number, group_name in enumerate(encoded.dictionary.to_pylist()):
            own = np.flatnonzero(of_row == number)
            key = group_name if group_name in groups or len(groups) < MAX_NAMES else OTHERS
            group = groups.setdefault(key, RowGroup())
            group.rows += len(own)
            group.ok += int(ok[own].sum())
            group.tokens += int(tokens[own].sum())
            group.total += float((mean * tokens)[own].sum())
            group.negative += int(np.rint(share * tokens)[own].sum())
            group.lowest = float(np.fmin(group.lowest, np.fmin.reduce(samples[f"min_{name}"][own])))
            if group.error is None:
                errors = (batch.data.column("error")[int(row)].as_py() for row in own[~ok[own]])
                group.error = next(errors, None)
