"""Chooses the rows that fulfil a condition: counts before and after, ids, or a new annotated directory.

    cal-inspect filter annotated/ "mean_delta < 0.2 OR share_negative > 0.3"
    cal-inspect filter annotated/ "share_negative > 0.3" --drop --output clean/
    cal-inspect filter annotated/ "status <> 'ok'" --ids bad.csv
    cal-inspect filter annotated/ "mean_delta > 0" --layout llava --output better/
    cal-inspect filter annotated/ TRUE --ids_from bad.csv --drop --output good/

A condition is one expression of DuckDB's SQL.

The new directory holds the same columns and metadata, and says in each file by which condition its rows were chosen:
cal-train takes it as it is, cal-precompute refuses to resume into it. Memory does not grow with the rows.
"""

from __future__ import annotations

import argparse
import csv
import sys

import numpy as np
import pyarrow as pa

from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.conditions import RowTest
from cal_pipeline.inspect.tables.filtered_shards import Selection, check_output, final_names, select_rows, write_rows
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.reading import open_paths, read_batches
from cal_pipeline.inspect.tables.samples import count_rows
from cal_pipeline.inspect.tables.statistics import SAMPLE_COLUMNS
from cal_pipeline.inspect.tables.training_layouts import LAYOUTS, write_layout
from cal_pipeline.inspect.tables.weighting import weighting_of
from cal_schemas.counted import are, counted
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.storage.locations import Location


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
            "per row: "
            + ", ".join(SAMPLE_COLUMNS)
            + ", images (not of a sidecar)\nwith --score kl: mean_kl in place of mean_delta, and so on\n"
            "stored: sample_id, sample_key, status, error, num_tokens, source, and the source's own columns with one "
            "value a row; in double quotes if no plain word, and with source_ in front where the name is one of the "
            "first list, or turn"
        )
        parser.exit()


def run(arguments: argparse.Namespace) -> int:
    """Prints counts and writes what was asked for; 0."""
    opened = open_paths(arguments.annotated)
    test = RowTest(arguments.condition, opened.schema, **weighting_of(arguments, opened))
    if arguments.output:
        check_output(arguments.output, arguments.annotated)
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
        names = final_names(arguments.annotated, opened.completeness.missing)
        write_rows(opened, selection, arguments.output, names=names, condition=condition)
        whole = opened.completeness.problem is None
        ready = "ready for cal-train" if whole else "no more whole than its input (cal-train --partial takes it)"
        rows, ok = selection.after.total(), selection.after[STATUS_OK]
        if not ok:
            ready = "none of them ok: nothing to train on"
        elif ok < rows:
            ready = f"{ok:,} of them ok, {ready}"
        print(f"{arguments.output}: {counted(rows, 'row')}, {ready}")  # noqa: T201
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
    note = f"; {counted(left_out, 'row')} that {are(left_out)} not ok left out" if left_out else ""
    print(f"{arguments.output}: {counted(len(rows), 'row')}, {said}{note}")  # noqa: T201
    return 0


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
