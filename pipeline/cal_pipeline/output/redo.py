"""Reads the rows of an annotated shard that a redo takes over unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pyarrow.parquet as pq

from cal_schemas.annotated import AnnotatedRow, rows_from_batch
from cal_schemas.storage.locations import Location, open_parquet

_BATCH_ROWS = 64


def statuses(path: Location, footer: pq.FileMetaData) -> Counter[str]:
    """Rows of one annotated shard by status; the file is opened only where its footer does not say it."""
    counts: Counter[str] = Counter()
    for group in map(footer.row_group, range(footer.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        bounds = next(column.statistics for column in columns if column.path_in_schema == "status")
        if bounds is None or not bounds.has_min_max or bounds.min != bounds.max:
            with open_parquet(path) as file:
                return Counter(file.read(columns=["status"])["status"].to_pylist())
        counts[bounds.min] += group.num_rows
    return counts


def kept_rows(path: Location, redo: frozenset[str]) -> Iterator[AnnotatedRow | None]:
    """All rows of an annotated shard in their order, with all that the file holds; None for a status in `redo`."""
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            for batch in file.read_row_group(group).to_batches(max_chunksize=_BATCH_ROWS):
                yield from (None if row.status in redo else row for row in rows_from_batch(batch))
