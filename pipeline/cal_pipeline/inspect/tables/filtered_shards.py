"""Chooses rows of annotated shards, and writes them as a new annotated directory."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cal_pipeline.inspect.progress import shown_progress
from cal_pipeline.inspect.tables.conditions import RowTest
from cal_pipeline.inspect.tables.reading import read_batches
from cal_pipeline.output.run_reports import FILTER_NAME, reported_model
from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.features import with_features
from cal_schemas.metadata import read_shard_metadata, with_filter
from cal_schemas.opened import AnnotatedDataset, annotated_files
from cal_schemas.storage.locations import Location, lies_in, read_footer
from cal_schemas.whole import open_shard, validate_numbers, write_plan
from cal_schemas.writer import MAX_ROW_GROUP_IMAGE_BYTES, MAX_ROW_GROUP_ROWS, parquet_writer


@dataclass(kw_only=True, slots=True)
class Selection:
    """Which rows of which file pass."""

    masks: dict[Location, np.ndarray] = field(default_factory=dict)
    """[rows of the file] bool."""
    before: Counter[str] = field(default_factory=Counter)
    """Rows by status, all of them."""
    after: Counter[str] = field(default_factory=Counter)
    tokens_before: int = 0
    tokens_after: int = 0


def select_rows(opened: AnnotatedDataset, test: RowTest, named: np.ndarray, *, drop: bool = False) -> Selection:
    """Of the rows that are `named` [rows of all files] those that pass, or all others with `drop`.

    One pass over the columns that the condition needs; undefined values (failed rows) fulfil no comparison.
    """
    stop = 0
    selection = Selection()
    parts: dict[Location, list[np.ndarray]] = {path: [] for path in opened.files}
    for batch in read_batches(opened, [*dict.fromkeys([*test.columns, "status", "label_ids"])]):
        start, stop = stop, stop + batch.data.num_rows
        mask = (np.asarray(test(batch.data)) & named[start:stop]) ^ drop
        parts[batch.file].append(mask)
        lengths = np.asarray(pc.list_value_length(batch.data.column("label_ids")))
        selection.tokens_before += int(lengths.sum())
        selection.tokens_after += int(lengths[mask].sum())
        for counted, rows in ((selection.before, batch.data), (selection.after, batch.data.filter(pa.array(mask)))):
            for item in pc.value_counts(rows.column("status")).to_pylist():
                counted[item["values"]] += item["counts"]
    selection.masks = {path: np.concatenate([np.empty(0, bool), *masks]) for path, masks in parts.items()}
    return selection


def check_output(output: Path, inputs: Sequence[Location]) -> None:
    """ConfigError where a new annotated directory cannot go."""
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; give a new directory")
    if output.is_dir() and annotated_files(output):
        raise ConfigError(f"--output {output} holds Parquet files already; give a new directory")
    for path in inputs:
        if lies_in(output.resolve(), path.resolve()):
            raise ConfigError(f"--output {output} lies in {path}, and would be its input next time")


def final_names(paths: Sequence[Location], missing: Iterable[Location]) -> dict[Location, Path]:
    """Final name of every file below the output: as below its own directory, which is named where there are several.

    Of the `missing` files too: the names that they would have.
    """
    names: dict[Location, Path] = {}
    for root in paths:
        for file in (*annotated_files(root), *(file for file in missing if lies_in(file, root.absolute()))):
            below = Path(file.name) if root.is_file() else Path(file.absolute().relative_to(root.absolute()))  # type: ignore[arg-type]
            names[file] = below if len(paths) == 1 or root.is_file() else Path(root.resolve().name) / below
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise ConfigError(f"several of the inputs hold {repeated[0]}: give them one by one")
    return names


def write_rows(
    opened: AnnotatedDataset, selection: Selection, output: Path, *, names: dict[Location, Path], condition: str
) -> None:
    """A new annotated directory; what exists under a final name is complete, and files without a row are left out.

    Raises ConfigError when the directory cannot be written, FormatError for a file that cannot be read.
    """
    staging = output / ".cal" / "staging"
    try:
        staging.mkdir(parents=True, exist_ok=True)
        written: list[tuple[Path, Path]] = []
        with shown_progress("rows copied", selection.after.total()) as advance:
            for number, path in enumerate(opened.files):
                mask = selection.masks[path]
                if mask.any():
                    had, given = opened.completeness.short.get(path, (0, 0))
                    own = f"{had} of {given} rows, by another program; {condition}" if given else condition
                    _copy_rows(path, mask, staging / f"{number}.parquet", own)
                    written.append((staging / f"{number}.parquet", output / names[path]))
                    advance(int(mask.sum()))
        # What is missing here is missing there: a later look at the output must not take it for whole.
        rows = {path: int(mask.sum()) for path, mask in selection.masks.items() if mask.any()}
        rows |= opened.completeness.missing
        write_plan(output, {str(names[path]): count for path, count in rows.items()})
        for partial, final in written:
            final.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(final)
        about = {
            "condition": condition,
            "before": dict(selection.before),
            "after": dict(selection.after),
            "files": [str(path) for path in opened.files],
            "config": {"model_name_or_path": reported_model(opened.files)},
        }
        (output / ".cal" / FILTER_NAME).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    except StoreError:  # Of reading.
        raise
    except OSError as error:
        raise ConfigError(f"--output {output} cannot be written: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _copy_rows(source: Location, mask: np.ndarray, target: Path, condition: str) -> None:
    footer = read_footer(source)
    schema = with_filter(footer.schema.to_arrow_schema(), condition)
    schema = with_features(schema, read_shard_metadata(source, footer).carry)
    with parquet_writer(target, schema) as writer:
        pending: list[pa.Table] = []
        for table in _chosen(source, mask):
            gathered = sum(item.nbytes for item in pending), sum(item.num_rows for item in pending)
            if pending and (
                gathered[0] + table.nbytes > MAX_ROW_GROUP_IMAGE_BYTES
                or gathered[1] + table.num_rows > MAX_ROW_GROUP_ROWS
            ):
                _write(writer, pending, schema)
                pending = []
            pending.append(table)
        _write(writer, pending, schema)


def _write(writer: pq.ParquetWriter, tables: list[pa.Table], schema: pa.Schema) -> None:
    table = pa.concat_tables(tables).cast(schema)
    writer.write_table(table, row_group_size=max(1, table.num_rows))


def _chosen(source: Location, mask: np.ndarray) -> Iterator[pa.Table]:
    """The chosen rows of each row group that has any."""
    row = 0
    with open_shard(source) as file:
        for number in range(file.num_row_groups):
            size = file.metadata.row_group(number).num_rows
            own = mask[row : row + size]
            row += size
            if own.any():
                table = file.read_row_group(number)
                at = row - size
                for batch in table.to_batches():
                    validate_numbers(batch, source, at)
                    at += batch.num_rows
                yield table.filter(pa.array(own))
