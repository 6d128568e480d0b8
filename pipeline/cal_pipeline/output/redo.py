"""Rows of an annotated shard that a redo takes over unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from cal_schemas.annotated import EXTRA_COLUMNS, RESERVED_COLUMNS, AnnotatedRow
from cal_schemas.sample import sample_from_columns
from cal_schemas.storage.locations import Location, open_parquet

_LISTS = {
    "label_ids": np.int32,
    "label_positions": np.int32,
    "delta_logits": np.float32,
    **{name: np.float32 for names in EXTRA_COLUMNS.values() for name in names},
}
_BATCH_ROWS = 64


def statuses(path: Location, footer: pq.FileMetaData) -> Counter[str]:
    """Rows of one annotated shard by status; the file is opened only where its footer does not say it."""
    found: Counter[str] = Counter()
    for group in map(footer.row_group, range(footer.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        bounds = next(column.statistics for column in columns if column.path_in_schema == "status")
        if bounds is None or not bounds.has_min_max or bounds.min != bounds.max:
            with open_parquet(path) as file:
                return Counter(file.read(columns=["status"])["status"].to_pylist())
        found[bounds.min] += group.num_rows
    return found


def stored_rows(path: Location, redo: frozenset[str]) -> Iterator[AnnotatedRow | None]:
    """All rows of an annotated shard in their order, with all that the file holds; None for a status in `redo`."""
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            carried = [name for name in table.column_names if name not in RESERVED_COLUMNS]
            for batch in table.to_batches(max_chunksize=_BATCH_ROWS):
                for number, values in enumerate(batch.drop_columns(carried).to_pylist()):
                    # Arrow's own values, as they came from the source: Python's types would round some of them.
                    others = {name: batch.column(name).slice(number, 1) for name in carried}
                    yield None if values["status"] in redo else _stored_row(values, others)


def _stored_row(values: dict[str, Any], carried: dict[str, Any]) -> AnnotatedRow:
    # A null delta reads as None, which numpy turns into NaN: the same "undefined".
    lists: dict[str, Any] = {name: np.array(values[name], kind) for name, kind in _LISTS.items() if name in values}
    plain = {name: values[name] for name in ("sample_key", "status", "error", "num_tokens")}
    return AnnotatedRow(sample=replace(sample_from_columns(values), carried=carried), **plain, **lists)
