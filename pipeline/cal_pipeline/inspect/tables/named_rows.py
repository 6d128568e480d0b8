"""Finds the rows that a file names: by sample_id, by sample_key, or by both."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from cal_pipeline.inspect.tables.reading import read_batches
from cal_pipeline.inspect.tables.spreadsheet import read_table
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.storage.locations import Location, open_parquet

_COLUMNS = ("sample_id", "sample_key")
_SHOWN = 3
_log = logging.getLogger(__name__)


def named_rows(opened: AnnotatedDataset, file: Location | None) -> np.ndarray:
    """[rows of all files] bool: those that the file names, all without one.

    The file is a text with a sample_id or sample_key a line, or a .csv or .parquet with a column `sample_id`, a column
    `sample_key`, or both, which then must both agree: ids may repeat. Warns of names that no row has; raises
    ConfigError where no row has any.
    """
    if file is None:
        return np.ones(opened.num_rows, bool)
    wanted, columns = _names(file)
    found: set[tuple[str | None, ...]] = set()
    masks = [np.empty(0, bool)]
    for batch in read_batches(opened, _COLUMNS):
        values = {name: batch.data.column(name).to_pylist() for name in _COLUMNS}
        passed = np.zeros(batch.data.num_rows, bool)
        for names in columns:
            keys = list(zip(*(values[name] for name in names), strict=True))
            passed |= np.fromiter((key in wanted for key in keys), bool, len(keys))
            found.update(wanted.intersection(keys))
        masks.append(passed)
    unknown = [" ".join(map(str, name)) for name in wanted if name not in found]
    shown = ", ".join(sorted(unknown)[:_SHOWN]) + (", …" if len(unknown) > _SHOWN else "")
    if not found:
        raise ConfigError(f"--ids_from {file}: no row has one of its {len(wanted):,} names ({shown or 'it is empty'})")
    if unknown:
        _log.warning("--ids_from %s: no row has %s of its %s names: %s", file, f"{len(unknown):,}", f"{len(wanted):,}",
                     shown)  # fmt: skip
    return np.concatenate(masks)


def _names(file: Location) -> tuple[set[tuple[str | None, ...]], list[tuple[str, ...]]]:
    """What is named, and by which columns: one of the alternatives, each of one or two columns; null names no row."""
    if not file.is_file():
        raise ConfigError(f"--ids_from {file}: no such file")
    if file.suffix.lower() not in (".csv", ".parquet"):
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        return {(line,) for line in lines if line}, [(name,) for name in _COLUMNS]
    rows = read_table(file) if file.suffix.lower() == ".csv" else _parquet_rows(file)
    first = next(rows, {})
    columns = tuple(name for name in _COLUMNS if name in first)
    if first and not columns:
        raise ConfigError(f"--ids_from {file}: it has neither of the columns {', '.join(_COLUMNS)}, but {[*first]}")
    values = (tuple(row[name] for name in columns) for row in (first, *rows) if row)
    return {tuple(None if value is None else str(value) for value in row) for row in values}, [columns]


def _parquet_rows(file: Location) -> Iterator[dict[str, Any]]:
    with open_parquet(file) as opened:
        there = [name for name in _COLUMNS if name in opened.schema_arrow.names]
        for batch in opened.iter_batches(columns=there or None):
            yield from batch.to_pylist()
