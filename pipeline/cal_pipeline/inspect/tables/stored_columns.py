"""Names the stored columns with one value a row beside the computed ones, and makes their values comparable."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.inspect.tables.statistics import SAMPLE_COLUMNS, sample_names
from cal_schemas.errors import ConfigError
from cal_schemas.scores import DEFAULT_SCORE, Score

COMPUTED = (*SAMPLE_COLUMNS, "turn")
"""Names that always mean what was computed: of rows, and `turn` of tokens. So do those of another score under it."""
TEXTS = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
"""What tells the types that are compared as text."""
_COMPARABLE = (*TEXTS, pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal,
               pa.types.is_date, pa.types.is_timestamp, pa.types.is_time, pa.types.is_duration)  # fmt: skip
_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def addresses(names: Iterable[str], score: Score = DEFAULT_SCORE) -> dict[str, str]:
    """Each stored column's name beside the computed ones -> its stored name: `source_` stands before one of theirs."""
    stored, computed = list(names), {*COMPUTED, *sample_names(score)}
    named = {name: name for name in stored if name not in computed}
    for name in stored:
        if name in computed:
            address = f"source_{name}"
            while address in stored:
                address = f"source_{address}"
            named[address] = name
    return named


def scalar_columns(schema: pa.Schema, score: Score = DEFAULT_SCORE) -> dict[str, str]:
    """Stored columns with one value a row that can be compared; the keys are as in `addresses`, of the whole schema."""
    return {
        address: name
        for address, name in addresses(schema.names, score).items()
        if any(is_kind(plain_type(schema.field(name).type)) for is_kind in _COMPARABLE)
    }


def plain_type(kind: pa.DataType) -> pa.DataType:
    """That of the values where a column is a dictionary's codes or an extension type."""
    return plain(pa.nulls(0, kind)).type


def plain(column: pa.Array) -> pa.Array:
    """The values themselves where a column is a dictionary's codes or an extension type."""
    if isinstance(column.type, pa.BaseExtensionType):
        return plain(column.storage)
    return plain(column.dictionary_decode()) if pa.types.is_dictionary(column.type) else column


def comparable(column: pa.Array) -> pa.Array:
    """What DuckDB compares: numbers (durations and times of day in seconds, too), truth values, texts or times.

    Whole numbers stay whole, those of decimals too; NaN is null; a time with a zone is the same in UTC, without the
    zone. Raises ConfigError for a whole number of more than 38 digits.
    """
    column = plain(column)
    kind = column.type
    if pa.types.is_decimal(kind) and kind.scale <= 0:
        try:
            return column.cast(pa.decimal128(38, 0))
        except pa.ArrowInvalid as error:
            raise ConfigError(f"a whole number of more than 38 digits stands in a column of {kind}") from error
    if pa.types.is_decimal(kind):
        return pa.array([None if value is None else float(value) for value in column.to_pylist()], pa.float64())
    if pa.types.is_floating(kind):
        column = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(column), None, column)
    if pa.types.is_duration(kind) or pa.types.is_time(kind):
        counted = column.view(pa.int32() if pa.types.is_time32(kind) else pa.int64())
        return pc.divide(counted.cast(pa.float64(), safe=False), float(_PER_SECOND[kind.unit]))
    if pa.types.is_date(kind):
        return column.cast(pa.timestamp("ms"))
    if pa.types.is_timestamp(kind):
        return column.view(pa.timestamp(kind.unit))
    if pa.types.is_integer(kind):
        return column.cast(pa.uint64() if kind == pa.uint64() else pa.int64())
    return column if pa.types.is_boolean(kind) else column.cast(pa.large_string())
