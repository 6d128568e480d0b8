"""Tells what of annotated shards is not whole: planned files that are not there, rows that are gone, damaged pages.

Every reader opens shards with `open_shard`, which compares each page that is read with its checksum, and directories
with `opened.open_annotated`, which compares what is there with the plan that `cal-precompute` left beside it.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cal_schemas.errors import FormatError, StoreError
from cal_schemas.metadata import ShardMetadata, ShardSource, drawn_rows, raise_if_ill
from cal_schemas.storage.locations import Location, lies_in, open_parquet, write_whole
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.token_columns import TOKEN_COLUMNS

PLAN = ".cal/plan.json"
"""Below an output directory: what `cal-precompute` planned to write there, a JSON list of shards."""
_MAX_DEPTH = 8
"""Directories that shards may lie below their output directory."""
_SHOWN = 3
_log = logging.getLogger(__name__)


@contextmanager
def open_shard(path: Location) -> Iterator[pq.ParquetFile]:
    """A shard open for reading, every page verified; FormatError that names it where it is damaged.

    Raises StoreError when its store, or the disk, gives no answer: that says nothing about the file.
    """
    try:
        with open_parquet(path, verify=True) as file:
            yield file
    except (StoreError, MemoryError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise_if_ill(path, error)
        raise FormatError(
            f"{path} is damaged: {' '.join(str(error).split())[:200]}. Remove it and run the same cal-precompute "
            "command, which measures it again; cal-precompute --verify finds all such files"
        ) from error


def validate_numbers(batch: pa.RecordBatch, file: Location, first_row: int) -> None:
    """Raises FormatError, naming file and row, for NaN and infinity, and for a row with unequally many ids and deltas.

    No measurement writes them; an undefined delta is null. `first_row` is the number of the batch's first row in its
    file. Looks at the columns TOKEN_COLUMNS as far as they are there.
    """
    there = [name for name in TOKEN_COLUMNS if name in batch.schema.names]
    lengths = {name: np.asarray(pc.fill_null(pc.list_value_length(batch[name]), 0)) for name in there}
    for name, of_name in lengths.items():
        first, of_first = next(iter(lengths.items()))
        if not np.array_equal(of_name, of_first):
            row = int(np.flatnonzero(of_name != of_first)[0])
            raise FormatError(
                f"{file}: row {first_row + row} has {of_first[row]} {first} and {of_name[row]} {name}: an annotated "
                "row has equally many of each. Measure this shard again"
            )
    for name in TOKEN_COLUMNS:
        if name not in batch.schema.names or TOKEN_COLUMNS[name] is not np.float32:
            continue
        column = batch.column(name)
        values = column.flatten()
        bad = pc.invert(pc.fill_null(pc.is_finite(values), True))
        if pc.any(bad).as_py():
            at = pc.index(bad, True).as_py()
            row = pc.list_parent_indices(column)[at].as_py()
            known = f" ({batch['sample_id'][row].as_py()!r})" if "sample_id" in batch.schema.names else ""
            raise FormatError(
                f"{file}: row {first_row + row}{known} holds {values[at].as_py()} in {name}, which no measurement "
                "writes (undefined is null). Measure this shard again; cal-precompute --verify lists all such rows"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Completeness:
    """How much of what was planned is there."""

    planned: Mapping[Location, int]
    """Shard of a plan -> its rows."""
    missing: Mapping[Location, int]
    """Those of them that are not there."""
    short: Mapping[Location, tuple[int, int]]
    """Shard -> (rows it has, rows its source gave), where rows were taken out and it does not say so."""
    unplanned: tuple[Location, ...]
    """Shards that no plan names: whether others belong to them is not known."""

    @property
    def num_planned(self) -> int | None:
        """Rows of the plans; None where a shard is in none."""
        return None if self.unplanned else sum(self.planned.values())

    @property
    def problem(self) -> str | None:
        """What is not whole, in one line; None where nothing is known to be missing."""
        said = []
        if self.missing:
            said.append(
                f"{len(self.missing)} of {len(self.planned)} planned shards with {sum(self.missing.values())} of "
                f"{sum(self.planned.values())} rows are not there ({_some(list(map(str, self.missing)))}); the same "
                "cal-precompute command measures them"
            )
        if self.short:
            listed = [f"{file} has {rows} rows, its source gave {given}" for file, (rows, given) in self.short.items()]
            said.append(f"rows were taken out, or put in, by something that does not say so ({_some(listed)})")
        return "; ".join(said) or None


def completeness(files: Mapping[Location, tuple[ShardMetadata, int]], roots: Sequence[Location]) -> Completeness:
    """Compares shards, each with its metadata and its rows, with the plans in and below these directories.

    Of a local directory that has none the plan above it counts. A root that is a file is what it is: no plan is looked
    for. A plan that cannot be read is a warning.
    """
    planned: dict[Location, int] = {}
    there = {file.absolute() for file in files}
    roots = [root.absolute() for root in roots]
    for root in roots:
        if root in there:
            continue
        folders = {folder for file in there for folder in file.parents if lies_in(folder, root)} | _planned_below(root)
        plans = {folder: plan for folder in sorted(folders, key=str) if (plan := read_plan(folder)) is not None}
        if root not in plans and isinstance(root, Path):  # A part of an output: its plan is above.
            above = ((folder, read_plan(folder)) for folder in root.parents[:_MAX_DEPTH])
            plans |= dict([next(((folder, plan) for folder, plan in above if plan is not None), (root, {}))])
        for folder, plan in plans.items():
            planned |= {folder / name: rows for name, rows in plan.items() if lies_in(folder / name, root)}
    return Completeness(
        planned=planned,
        missing={file: rows for file, rows in planned.items() if file not in there},
        short={
            file: (rows, given)
            for file, (metadata, rows) in files.items()
            if rows > (given := int(drawn_rows(metadata.source).sum())) or (rows < given and not metadata.filters)
        },
        unplanned=tuple(file for file in files if file.absolute() not in planned),
    )


def _planned_below(root: Location) -> set[Location]:
    """Directories that may have a plan, also those none of whose shards is there; hidden ones left out."""
    if isinstance(root, ObjectPath):
        plans = (file for file in root.rglob("plan.json") if file.parent.name == ".cal")
        folders = {plan.parent.parent for plan in plans}
        return {item for item in folders if not any(part.startswith(".") for part in item.relative_to(root).parts)}
    found: set[Location] = set()
    for at, names, _ in os.walk(root):
        if ".cal" in names:
            found.add(Path(at))
        names[:] = [name for name in names if not name.startswith(".")]
    return found


def read_plan(folder: Location) -> dict[str, int] | None:
    """Name of every planned shard below an output directory -> its rows; None where there is no plan."""
    try:
        shards = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        return {f"{item['name']}.parquet": _planned_rows(item["source"]) for item in shards}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if getattr(error, "errno", None) not in (errno.ENOENT, errno.ENOTDIR):
            _log.warning("%s cannot be read (%r): whether shards are missing is not known", folder / PLAN, error)
        return None


def _planned_rows(source: Mapping[str, Any]) -> int:
    if source.get("sample_fraction", 1.0) >= 1.0:
        return int(source["num_rows"])
    return int(drawn_rows(ShardSource.from_json(source)).sum())


def write_plan(folder: Location, rows: Mapping[str, int]) -> None:
    """The inverse of `read_plan`, for a directory that is made from another one; its `.cal` is there."""
    listed = [{"name": name.removesuffix(".parquet"), "source": {"num_rows": count}} for name, count in rows.items()]
    write_whole(folder / PLAN, json.dumps(listed, indent=1) + "\n")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
