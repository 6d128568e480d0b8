"""Writes a measurement again with deltas whose bounds follow a sample's range, or the model's uncertainty."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ALPHA, BETA = 0.2, 1.0
"""What the new deltas lie between, as those of the other conditions do once they are clamped."""
_LOW, _HIGH = 0.5, 0.9
"""Quantiles of deltas that become alpha and beta."""
_READ = ("delta_logits", "entropy_with_image")
Columns = Mapping[str, np.ndarray]


def write(measured: Path, output: Path, by: str) -> None:
    """A copy of the shards of one measurement, all else as it was.

    `data` stretches what lies between two quantiles of all deltas from alpha to beta, `sample` does so with quantiles
    of the row's own; `entropy` caps each at beta times the entropy of its place, relative to the mean one.
    """
    shutil.copytree(measured, output, dirs_exist_ok=True)
    shards = sorted(output.glob("*.parquet"))
    tables = [pq.read_table(path) for path in shards]
    together = {name: np.concatenate([_flat(table, name) for table in tables]) for name in _READ}
    low, high = np.nanquantile(together["delta_logits"], (_LOW, _HIGH))
    usual = float(np.nanmean(together["entropy_with_image"]))
    adapt: Mapping[str, Callable[[Columns], np.ndarray]] = {
        "data": lambda row: _stretched(row["delta_logits"], low, high),
        "sample": lambda row: _stretched(row["delta_logits"], *np.nanquantile(row["delta_logits"], (_LOW, _HIGH))),
        "entropy": lambda row: np.clip(
            row["delta_logits"], ALPHA, np.maximum(BETA * row["entropy_with_image"] / usual, ALPHA)
        ),
    }
    for path, table in zip(shards, tables, strict=True):
        at = table.schema.get_field_index("delta_logits")
        lengths = np.asarray(table.column(at).combine_chunks().value_lengths())
        offsets = np.append(0, np.cumsum(lengths))
        flat = {name: _flat(table, name) for name in _READ}
        new = np.full(int(offsets[-1]), np.nan, np.float32)
        for start, stop in pairwise(offsets.tolist()):
            row = {name: values[start:stop] for name, values in flat.items()}
            if not np.isnan(row["delta_logits"]).all():
                new[start:stop] = adapt[by](row)
        column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(new, mask=np.isnan(new)))
        pq.write_table(table.set_column(at, table.schema.field(at), column), path)


def _flat(table: pa.Table, name: str) -> np.ndarray:
    return np.asarray(table.column(name).combine_chunks().flatten().to_numpy(zero_copy_only=False), np.float32)


def _stretched(deltas: np.ndarray, low: float, high: float) -> np.ndarray:
    """From ALPHA at `low` to BETA at `high`; ALPHA where these are equal."""
    share = np.clip((deltas - low) / (high - low), 0.0, 1.0) if high > low else 0.0 * deltas
    return np.asarray(ALPHA + (BETA - ALPHA) * share)
