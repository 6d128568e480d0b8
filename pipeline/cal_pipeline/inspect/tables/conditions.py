"""Conditions on batches of shards: what of a batch a condition needs, and which of its rows fulfil it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.inspect.tables.expression import Condition
from cal_pipeline.inspect.tables.flat import ANSWER_COLUMNS, LIST_COLUMNS, FlatTokens, irregular_answers
from cal_pipeline.inspect.tables.reading import IMAGE_PATHS
from cal_pipeline.inspect.tables.statistics import SAMPLE_COLUMNS, check_defined, sample_columns
from cal_pipeline.inspect.tables.stored_columns import comparable, scalar_columns
from cal_schemas.errors import ConfigError
from cal_schemas.weighting import Pool, check_weighting


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTest:
    """A condition on record batches that hold `columns`."""

    columns: tuple[str, ...]
    condition: Condition | pc.Expression
    stored: Mapping[str, str]
    """What a stored column is called in the condition -> its stored name."""
    weighting: Mapping[str, Any]

    def __call__(self, batch: pa.RecordBatch) -> pa.Array:
        """[rows] bool."""
        if not isinstance(self.condition, Condition):
            import pyarrow.dataset as ds

            table = pa.Table.from_batches([batch]).append_column("__row", pa.array(np.arange(batch.num_rows)))
            try:
                passed = ds.dataset(table).to_table(columns=["__row"], filter=self.condition)["__row"].to_numpy()
            except (pa.ArrowException, ValueError, TypeError) as error:
                raise ConfigError(f"filter {self.condition}: {' '.join(str(error).split())[:300]}") from error
            mask = np.zeros(batch.num_rows, dtype=bool)
            mask[passed] = True
            return pa.array(mask)
        values = row_values(batch, self.condition.names, self.stored, **self.weighting)
        return pa.array(self.condition(values, batch.num_rows))


def row_values(
    batch: pa.RecordBatch, names: Sequence[str], stored: Mapping[str, str] | None = None, **weighting: Any
) -> dict[str, pd.Series]:
    """Columns of `sample_frame` and those of a batch, these by their names in `stored`."""
    values: dict[str, pd.Series] = {}
    computed: dict[str, Any] = {}
    if set(names) & set(SAMPLE_COLUMNS):
        check_defined(names, alpha=weighting["alpha"], beta=weighting["beta"])
        flat = FlatTokens.from_arrow(batch)
        turns = flat.turns(irregular_answers(batch) if "turns" in names else None)
        computed = dict(sample_columns(flat, turns, **weighting))
    for name in names:
        if name in computed:
            values[name] = pd.Series(computed[name])
        elif name == "images":
            values[name] = pd.Series(np.asarray(pc.fill_null(pc.list_value_length(batch.column("images")), 0)))
        else:
            values[name] = comparable(batch.column((stored or {})[name]))
    return values


def row_test(
    condition: str | pc.Expression,
    schema: pa.Schema,
    *,
    alpha: float = 1.0,
    beta: float = 5.0,
    window: int = 3,
    pool: Pool = "span",
) -> RowTest:
    """A condition made ready for batches of shards with this schema; ConfigError when it cannot be."""
    check_weighting(alpha=alpha, beta=beta, window=window)
    weighting = {"alpha": alpha, "beta": beta, "window": window, "pool": pool}
    stored = scalar_columns(schema)
    if not isinstance(condition, str):
        own = tuple(name for name in schema.names if name not in ("images", "messages"))
        return RowTest(columns=own, condition=condition, stored=stored, weighting=weighting)
    images = ["images"] if "images" in schema.names else []
    parsed = Condition(condition, [*stored, *images, *SAMPLE_COLUMNS])
    check_defined(parsed.names, alpha=alpha, beta=beta)
    columns = [stored[name] for name in parsed.names if name in stored]
    columns += [IMAGE_PATHS] if "images" in parsed.names else []
    columns += LIST_COLUMNS if set(parsed.names) & set(SAMPLE_COLUMNS) else ()
    if "turns" in parsed.names:
        columns += [name for name in ANSWER_COLUMNS if name in schema.names and name not in columns]
    return RowTest(columns=tuple(columns), condition=parsed, stored=stored, weighting=weighting)
