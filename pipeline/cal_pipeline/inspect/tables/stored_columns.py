"""Stored columns with one value a row: what they are called beside computed ones, and their values to compare."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import pyarrow as pa

from cal_pipeline.inspect.tables.statistics import SAMPLE_COLUMNS

COMPUTED = (*SAMPLE_COLUMNS, "turn")
"""Names that always mean what was computed: of rows, and `turn` of tokens."""
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def addresses(names: Iterable[str]) -> dict[str, str]:
    """Each stored column's name beside the computed ones -> its stored name: `source_` stands before one of theirs."""
    stored = list(names)
    found = {name: name for name in stored if name not in COMPUTED}
    for name in stored:
        if name in COMPUTED:
            address = f"source_{name}"
            while address in stored:
                address = f"source_{address}"
            found[address] = name
    return found


def scalar_columns(schema: pa.Schema) -> dict[str, str]:
    """Stored columns with one value a row that can be compared; the keys are as in `addresses`, of the whole schema."""
    return {
        address: name
        for address, name in addresses(schema.names).items()
        if _is_comparable(_plain_type(schema.field(name).type))
    }


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    return _plain_type(kind.value_type) if pa.types.is_dictionary(kind) else kind


def _is_comparable(kind: pa.DataType) -> bool:
    allowed = (pa.types.is_null, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal,
               pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_date,
               pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration)  # fmt: skip
    return any(is_kind(kind) for is_kind in allowed)


def plain(column: pa.Array) -> pa.Array:
    """The values themselves where a column is a dictionary's codes or an extension type."""
    if isinstance(column.type, pa.BaseExtensionType):
        return plain(column.storage)
    return plain(column.dictionary_decode()) if pa.types.is_dictionary(column.type) else column


def comparable(column: pa.Array) -> pd.Series:
    """Numbers (decimals, and durations and times of day in seconds, too), truth values, texts or times.

    Whole numbers stay whole, also beside nulls, which would make floats of them: ids of 64 bits would be rounded.
    """
    column = plain(column)
    kind = column.type
    values: pd.Series
    if pa.types.is_boolean(kind):
        values = column.to_pandas(types_mapper=lambda _: pd.BooleanDtype())
    elif pa.types.is_integer(kind):
        wide, dtype = (pa.uint64(), pd.UInt64Dtype()) if kind == pa.uint64() else (pa.int64(), pd.Int64Dtype())
        values = column.cast(wide).to_pandas(types_mapper=lambda _: dtype)
    elif pa.types.is_decimal(kind):
        try:
            if kind.scale <= 0:
                return comparable(column.cast(pa.int64()))
        except pa.ArrowInvalid:  # More digits than 64 bits hold.
            pass
        values = pd.Series([None if value is None else float(value) for value in column.to_pylist()], dtype="float64")
    elif pa.types.is_duration(kind) or pa.types.is_time(kind):
        counted = column.view(pa.int32() if pa.types.is_time32(kind) else pa.int64())
        values = counted.to_pandas().astype("float64") / _PER_SECOND[kind.unit]
    elif pa.types.is_date(kind):
        values = column.cast(pa.timestamp("ms")).to_pandas()
    elif pa.types.is_floating(kind) or pa.types.is_timestamp(kind):
        values = column.to_pandas()
    else:
        values = column.cast(pa.large_string()).to_pandas(types_mapper=lambda _: pd.StringDtype())
    return values
