"""Chooses the rows that fulfil a condition: counts before and after, ids, or a new annotated directory.

    cal-inspect filter annotated/ "mean_delta < 0.2 OR share_negative > 0.3"
    cal-inspect filter annotated/ "share_negative > 0.3" --drop --output clean/
    cal-inspect filter annotated/ "status <> 'ok'" --ids bad.csv
    cal-inspect filter annotated/ "mean_delta > 0.2" --layout llava --output better/
    cal-inspect filter annotated/ TRUE --ids_from bad.csv --drop --output clean/

A condition is one expression of DuckDB's SQL.

The new directory holds the same columns and metadata, and says in each file by which condition its rows were chosen:
cal-train takes it as it is, cal-precompute refuses to resume into it. Memory does not grow with the rows.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.conditions import RowTest
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_pipeline.inspect.tables.samples import count_rows
from cal_pipeline.inspect.tables.statistics import SAMPLE_COLUMNS
from cal_pipeline.inspect.tables.training_layouts import LAYOUTS, write_layout
from cal_pipeline.output.run_reports import FILTER_NAME, reported_model
from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.metadata import with_filter
from cal_schemas.opened import AnnotatedDataset, annotated_files
from cal_schemas.storage.locations import Location, lies_in, read_footer
from cal_schemas.whole import open_shard, write_plan
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `cal-inspect filter`."""
    flags.add_annotated(parser)
    parser.add_argument("condition", metavar="CONDITION", help='e.g. "mean_delta < 0.2"; --columns lists the names')
    flags.add_weighting(parser)
    flags.add_ids_from(parser)
    parser.add_argument("--drop", action="store_true", help="take the other rows: those where it IS NOT TRUE")
    parser.add_argument(
        "--output", type=flags.local_place, metavar="DIR", help="new annotated directory with these rows"
    )
    parser.add_argument(
        "--layout", choices=["annotated", *LAYOUTS], default="annotated",
        help="of --output: a directory of annotated shards, or training data without deltas (default annotated)",
    )  # fmt: skip
    flags.add_image_folder(parser)
    parser.add_argument(
        "--ids", type=flags.place, metavar="FILE", help=".txt: a sample_id a line; .csv: with key, file, row"
    )
    parser.add_argument("--columns", action=_ListColumns, nargs=0, help="names that a condition may hold, and end")


class _ListColumns(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(  # noqa: T201
            "per row: " + ", ".join(SAMPLE_COLUMNS) + ", images\nstored: sample_id, sample_key, status, error, "
            "num_tokens, source, and the source's own columns with one value a row; in double quotes if no plain word, "
            "and with source_ in front where the name is one of the first list, or turn"
        )
        parser.exit()


def run(arguments: argparse.Namespace) -> int:
    """Prints counts and writes what was asked for; 0."""
    opened = open_paths(arguments.annotated)
    test = RowTest(arguments.condition, opened.schema, **flags.weighting_of(arguments))
    if arguments.output:
        _check_output(arguments.output, arguments.annotated)
    ids = flags.new_file(arguments.ids, ".txt", ".csv") if arguments.ids else None
    selection = select_rows(opened, test.over(opened), named_rows(opened, arguments.ids_from), drop=arguments.drop)
    _print_counts(selection)
    if ids:
        write_ids(opened, selection, ids)
    if arguments.output:
        if not selection.after.total():
            raise ConfigError(f"no row is left by {arguments.condition!r}, so {arguments.output} is not written")
        condition = arguments.condition
        if arguments.ids_from:
            condition = f"({condition}) AND named by {arguments.ids_from.name}"
        condition = f"({condition}) IS NOT TRUE" if arguments.drop else condition
        if arguments.layout != "annotated":
            return _write_training(opened, selection, arguments)
        names = _names(arguments.annotated, opened.completeness.missing)
        write_rows(opened, selection, arguments.output, names=names, condition=condition)
        whole = opened.completeness.problem is None
        ready = "ready for cal-train" if whole else "no more whole than its input (cal-train --partial takes it)"
        print(f"{arguments.output}: {flags.counted(selection.after.total(), 'row')}, {ready}")  # noqa: T201
        if "messages" not in opened.schema.names:
            print(  # noqa: T201
                "cal-inspect: this is a sidecar: its source still has all rows, and cal-train --on_missing uniform "
                "would train on those that were left out. Filter the source by these ids as well (--ids FILE.csv)",
                file=sys.stderr,
            )
    return 0


def _write_training(opened: AnnotatedDataset, selection: Selection, arguments: argparse.Namespace) -> int:
    """The chosen rows that are ok, as training data."""
    ok, _ = count_rows(opened)
    rows = np.flatnonzero(ok & np.concatenate([selection.masks[path] for path in opened.files]))
    if not len(rows):
        raise ConfigError(f"no row that is ok is left by {arguments.condition!r}, so {arguments.output} is not written")
    with flags.new_directory(arguments.output) as folder:
        said = write_layout(opened, rows, arguments.layout, folder, arguments.image_folder)
    left_out = selection.after.total() - len(rows)
    note = (
        f"; {flags.counted(left_out, 'row')} that {'is' if left_out == 1 else 'are'} not ok left out"
        if left_out
        else ""
    )
    print(f"{arguments.output}: {flags.counted(len(rows), 'row')}, {said}{note}")  # noqa: T201
    return 0


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


def _print_counts(selection: Selection) -> None:
    table = flags.table("", "before", "after", "share", left=[""])
    counts = [("rows", selection.before.total(), selection.after.total())]
    counts += [(f"  {name}", count, selection.after[name]) for name, count in selection.before.most_common()]
    counts += [("tokens", selection.tokens_before, selection.tokens_after)]
    for name, before, after in counts:
        table.add_row(name, f"{before:,}", f"{after:,}", f"{after / before:.1%}" if before else "-")
    flags.console().print(table)


def write_ids(opened: AnnotatedDataset, selection: Selection, path: Location) -> None:
    """The chosen rows, in order; ConfigError for a text file when an id holds a line break."""
    columns = ["sample_id", "sample_key", "status"]
    with flags.written(path) as local, local.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        if path.suffix.lower() == ".csv":
            writer.writerow([*columns, "file", "row"])
        for batch in read_batches(opened, columns):
            mask = selection.masks[batch.file][batch.row : batch.row + batch.data.num_rows]
            rows = (np.flatnonzero(mask) + batch.row).tolist()
            for row, values in zip(rows, batch.data.filter(pa.array(mask)).to_pylist(), strict=True):
                if path.suffix.lower() == ".csv":
                    writer.writerow([*(values[name] for name in columns), batch.file, row])
                elif "\n" in values["sample_id"] or "\r" in values["sample_id"]:
                    raise ConfigError(f"the id {values['sample_id']!r} holds a line break: write --ids FILE.csv")
                else:
                    file.write(values["sample_id"] + "\n")
    print(f"{path}: {selection.after.total():,} ids")  # noqa: T201


def _check_output(output: Path, inputs: Sequence[Location]) -> None:
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; give a new directory")
    if output.is_dir() and annotated_files(output):
        raise ConfigError(f"--output {output} holds Parquet files already; give a new directory")
    for path in inputs:
        if lies_in(output.resolve(), path.resolve()):
            raise ConfigError(f"--output {output} lies in {path}, and would be its input next time")


def _names(paths: Sequence[Location], missing: Iterable[Location]) -> dict[Location, Path]:
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
        raise ConfigError(f"several of the inputs hold {repeated[0]}: filter them one by one")
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
        for number, path in enumerate(opened.files):
            mask = selection.masks[path]
            if mask.any():
                had, given = opened.completeness.short.get(path, (0, 0))
                own = f"{had} of {given} rows, by another program; {condition}" if given else condition
                _copy_rows(path, mask, staging / f"{number}.parquet", own)
                written.append((staging / f"{number}.parquet", output / names[path]))
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
    schema = with_filter(read_footer(source).schema.to_arrow_schema(), condition)
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
    table = pa.concat_tables(tables).replace_schema_metadata(schema.metadata)
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
                yield file.read_row_group(number).filter(pa.array(own))
