"""Rows of an annotated shard that a redo takes over unchanged."""

from __future__ import annotations

from typing import Any

import numpy as np

from cal_schemas.annotated import EXTRA_COLUMNS, AnnotatedRow
from cal_schemas.locations import Location, open_parquet
from cal_schemas.sample import Sample

_LISTS = {
    "label_ids": np.int32,
    "label_positions": np.int32,
    "delta_logits": np.float32,
    **{name: np.float32 for names in EXTRA_COLUMNS.values() for name in names},
}


def statuses(path: Location) -> set[str]:
    """The distinct statuses of one annotated shard."""
    with open_parquet(path) as file:
        return set(file.read(columns=["status"])["status"].unique().to_pylist())


def read_rows_to_keep(path: Location, redo: frozenset[str]) -> dict[int, AnnotatedRow]:
    """Row number -> measured values of every row whose status is not in `redo`; the sample itself is a placeholder."""
    with open_parquet(path) as file:
        names = [name for name in _LISTS if name in file.schema_arrow.names]
        columns = file.read(columns=["sample_id", "sample_key", "status", "error", "num_tokens", *names])
    kept = {}
    for number, value in enumerate(columns.to_pylist()):
        if value["status"] in redo:
            continue
        # A null delta reads as None, which numpy turns into NaN: the same "undefined".
        lists: dict[str, Any] = {name: np.array(value.pop(name), _LISTS[name]) for name in names}
        sample = Sample(sample_id=value.pop("sample_id"), images=(), messages=None)
        kept[number] = AnnotatedRow(sample=sample, **value, **lists)
    return kept
