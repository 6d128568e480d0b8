"""Conditions on batches of shards: what of a batch a condition needs, and which of its rows fulfil it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.inspect.expression import Condition
from cal_pipeline.inspect.flat import LIST_COLUMNS, FlatTokens, images_in_answers
from cal_pipeline.inspect.reading import IMAGE_PATHS
from cal_pipeline.inspect.statistics import SAMPLE_COLUMNS, sample_columns
from cal_schemas.errors import ConfigError
from cal_schemas.weighting import Pool, check_weighting


def scalar_columns(schema: pa.Schema) -> list[str]:
    """Stored columns with one value a row; those are what conditions may name, next to SAMPLE_COLUMNS."""
    return [
        field.name
        for field in schema
        if not pa.types.is_nested(field.type)
        and not pa.types.is_binary(field.type)
        and field.name not in SAMPLE_COLUMNS
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTest:
    """A condition on record batches that hold `columns`."""

    columns: tuple[str, ...]
    condition: Condition | pc.Expression
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
        return pa.array(self.condition(row_values(batch, self.condition.names, **self.weighting), batch.num_rows))


def row_values(batch: pa.RecordBatch, names: Sequence[str], **weighting: Any) -> dict[str, pd.Series]:
    """Columns of a batch and of `sample_frame`, by name."""
    values: dict[str, pd.Series] = {}
    computed: dict[str, Any] = {}
    if set(names) & set(SAMPLE_COLUMNS):
        flat = FlatTokens.from_arrow(batch)
        messages = batch.column("messages") if "messages" in batch.schema.names else None
        turns = flat.turns(None if messages is None or "turns" not in names else images_in_answers(messages))
        computed = dict(sample_columns(flat, turns, **weighting))
    for name in names:
        if name in computed:
            values[name] = pd.Series(computed[name])
        elif name == "images":
            values[name] = pd.Series(np.asarray(pc.fill_null(pc.list_value_length(batch.column("images")), 0)))
        else:
            values[name] = batch.column(name).to_pandas()
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
    if not isinstance(condition, str):
        own = tuple(name for name in schema.names if name not in ("images", "messages"))
        return RowTest(columns=own, condition=condition, weighting=weighting)
    images = ["images"] if "images" in schema.names else []
    parsed = Condition(condition, [*scalar_columns(schema), *images, *SAMPLE_COLUMNS])
    columns = [name for name in parsed.names if name not in SAMPLE_COLUMNS and name != "images"]
    columns += [IMAGE_PATHS] if "images" in parsed.names else []
    columns += LIST_COLUMNS if set(parsed.names) & set(SAMPLE_COLUMNS) else ()
    columns += ["messages"] if "turns" in parsed.names and "messages" in schema.names else []
    return RowTest(columns=tuple(columns), condition=parsed, weighting=weighting)
