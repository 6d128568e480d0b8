"""Finds the rows of batches that fulfil a condition: DuckDB's SQL over their columns and those of `sample_frame`.

DuckDB sees one batch at a time, on one thread, without files, network and extensions; memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS
from cal_pipeline.inspect.tables.condition_sql import Writer
from cal_pipeline.inspect.tables.condition_text import connection
from cal_pipeline.inspect.tables.flat import token_columns
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS, read_batches
from cal_pipeline.inspect.tables.statistics import check_defined, computed_columns, sample_names
from cal_pipeline.inspect.tables.stored_columns import TEXTS, comparable, plain_type, scalar_columns
from cal_pipeline.inspect.tables.terms import NUMBER, TEXT, TIME, TRUTH, ZONED, Term
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.ragged import ragged_weighting
from cal_schemas.scores import Score, validate_columns

_ALWAYS_DEFINED = ("tokens", "undefined", "turns", "images")


class RowTest:
    """A condition made ready for record batches that hold `columns`.

    Args:
        condition: SQL.
        schema: of the shards.
        weighting: score, map, alpha, beta, window and pool of the computed columns, as in `sample_frame`.

    Raises ConfigError when the condition cannot be evaluated on such shards.
    """

    columns: tuple[str, ...]

    def __init__(self, condition: str, schema: pa.Schema, **weighting: Any) -> None:
        self._weighting = ragged_weighting(**weighting)
        score: Score = self._weighting["score"]
        self._condition = condition
        self._computed = sample_names(score)
        self._stored = scalar_columns(schema, score)
        terms = {address: _stored_term(schema.field(name)) for address, name in self._stored.items()}
        computed = [*(["images"] if "images" in schema.names else []), *self._computed]
        for name in computed:
            defined = name in _ALWAYS_DEFINED
            terms[name] = Term(sql="", kind=NUMBER, nullable=not defined, whole=defined)
        names = {name: f"c{at}" for at, name in enumerate(terms)}
        others = set(schema.names) - set(self._stored.values())
        writer = Writer(condition, {name: _named(term, names[name]) for name, term in terms.items()}, others)
        self._names = {name: names[name] for name in writer.names}
        check_defined(self._names, **self._weighting)
        columns = [self._stored[name] for name in self._names if name in self._stored]
        columns += [IMAGE_PATHS] if "images" in self._names else []
        if set(self._names) & set(self._computed):
            validate_columns(schema.names, score, "this measurement")
            columns += token_columns(score)
        if "turns" in self._names:
            columns += [name for name in ANSWER_COLUMNS if name in schema.names and name not in columns]
        self.columns = tuple(columns)
        self._sql, self._quantiles = f"{writer.condition.sql} IS TRUE AS passed", writer.quantiles
        self._constants: dict[str, float] = {}
        self._connection = connection()

    def over(self, opened: AnnotatedDataset) -> RowTest:
        """This test, made ready for all of these rows: one pass over them where the condition has a quantile of them.

        Holds 8 bytes a row for each quantile.
        """
        if self._quantiles:
            asked = ", ".join(f"CAST({sql} AS DOUBLE) AS {name}" for name, (sql, _) in self._quantiles.items())
            parts = [self._selected(asked, batch.data) for batch in read_batches(opened, self.columns)]
            for name, (_, share) in self._quantiles.items():
                values = np.concatenate([np.empty(0), *(np.ma.masked_array(part[name]).compressed() for part in parts)])
                self._constants[name] = float(np.quantile(values, share)) if len(values) else np.nan
        return self

    def __call__(self, batch: pa.RecordBatch) -> pa.Array:
        """[rows] bool; false where the condition is undefined."""
        assert self._constants.keys() == self._quantiles.keys(), "call `over` first"
        return pa.array(np.asarray(self._selected(self._sql, batch)["passed"], bool))

    def _selected(self, sql: str, batch: pa.RecordBatch) -> Mapping[str, Any]:
        computed = set(self._names) & set(self._computed)
        values = computed_columns(batch, computed, **self._weighting) if computed else {}
        # Without a column a condition is one truth value, for as many rows as there are.
        table: dict[str, pa.Array] = {"rows": pa.nulls(batch.num_rows, pa.bool_())}
        for name, value in self._constants.items():
            table[name] = pa.array(np.full(batch.num_rows, value), from_pandas=True)
        for name, short in self._names.items():
            if name in computed:
                table[short] = pa.array(values[name], from_pandas=True)
            elif name == "images":
                table[short] = pc.fill_null(pc.list_value_length(batch.column("images")), 0).cast(pa.int64())
            else:
                table[short] = comparable(batch.column(self._stored[name]))
        try:
            self._connection.register("batch", pa.table(table))
            return self._connection.execute(f"SELECT {sql} FROM batch").fetchnumpy()
        except duckdb.Error as error:
            reason = str(error).strip().splitlines()[0]
            hint = ": multiply by 1.0 first for floats" if "Overflow" in reason else ""
            raise ConfigError(f"{self._condition[:80]!r}: {reason[:300]}{hint}") from None


def _stored_term(field: pa.Field) -> Term:
    kind = plain_type(field.type)
    zone = kind.tz if pa.types.is_timestamp(kind) else None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return Term(sql="", kind=TIME if zone is None else ZONED, nullable=field.nullable, zone=zone)
    named = TRUTH if pa.types.is_boolean(kind) else NUMBER
    if any(is_kind(kind) for is_kind in TEXTS):
        named = TEXT
    whole = pa.types.is_integer(kind) or (pa.types.is_decimal(kind) and kind.scale <= 0)
    short = {pa.float16(): np.float16, pa.float32(): np.float32}.get(kind)
    # Floats may be NaN, which is as good as null.
    nullable = field.nullable or pa.types.is_floating(kind)
    wide = "HUGEINT" if whole and not pa.types.is_signed_integer(kind) else ""
    return Term(sql=wide, kind=named, nullable=nullable, whole=whole, precision=short)


def _named(term: Term, name: str) -> Term:
    """The term over the batch's column of this name; unsigned and long numbers are computed with in 128 bits."""
    return replace(term, sql=f"CAST({name} AS {term.sql})" if term.sql else name)
