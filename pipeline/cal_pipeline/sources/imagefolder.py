"""Reads `metadata.jsonl`, `metadata.csv` and `metadata.parquet` beside the images that they name, into samples.

The layout that `datasets` calls imagefolder: `file_name` is an image's path below the metadata's own folder.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import pyarrow as pa

from cal_pipeline.sources.column_types import PARSE_IT
from cal_pipeline.sources.compression import open_binary, read_range
from cal_pipeline.sources.formats import FilePlan, InputFormat, RowRange, register
from cal_pipeline.sources.json import line_spans, line_values, plan_text
from cal_pipeline.sources.layouts import TURN_KEYS
from cal_pipeline.sources.parquet import footer_of, read_rows
from cal_pipeline.sources.reading import DamagedError, reading
from cal_pipeline.sources.rows import MAX_ROW_TEXT_BYTES, sample_from_json
from cal_pipeline.sources.table_columns import fields_of, find_columns
from cal_pipeline.sources.values import SOUND_SUFFIXES, VIDEO_SUFFIXES, RowError, is_empty, is_wide_text
from cal_schemas.errors import ConfigError
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location

_CALLED = {"file_name": "image", "file_names": "images", "image_file_name": "image", "images_file_names": "images"}
"""Column that names files -> the key that images have here."""
_SUFFIXES = (".jsonl", ".csv", ".parquet")
_DAMAGED = "broken CSV"


def _plan(path: Location, rows_per_shard: int) -> FilePlan:
    """Ranges of rows; ConfigError where no row could be read, or the first names a video or a sound."""
    if path.suffix not in _SUFFIXES:
        raise ConfigError(f"{path}: an imagefolder's list of images ends in {', '.join(_SUFFIXES)}")
    if path.suffix == ".parquet":
        footer, schema = footer_of(path)
        find_columns(_renamed(schema), path)
        ranges = [RowRange(row_start=0, row_stop=footer.num_rows)] if footer.num_rows else []
    elif path.suffix == ".csv":
        if is_wide_text(read_range(path, 0, 4), json=False):
            raise ConfigError(f"{path} is UTF-16 or UTF-32 text, and CSV is read as UTF-8: iconv -f UTF-16 -t UTF-8")
        count = _count_csv(path)
        starts = range(0, count, rows_per_shard)
        ranges = [RowRange(row_start=start, row_stop=min(start + rows_per_shard, count)) for start in starts]
    else:
        ranges = [*plan_text(line_spans, path, rows_per_shard).ranges]
    for sample in islice(_read(path, ranges[0], ""), 1) if ranges else ():
        name = next((str(image.path) for image in sample.images), "")
        if name.lower().endswith(VIDEO_SUFFIXES + SOUND_SUFFIXES):
            raise ConfigError(f"{path}: names {name}; only images are known, no sound and no video")
    return FilePlan(ranges=ranges, images="named")


def _read(path: Location, rows: RowRange, name: str) -> Iterator[Sample]:
    """Samples of a range of rows, in order; ShardError when the file turns out to be corrupt."""
    if path.suffix == ".parquet":
        yield from read_rows(path, rows, name, called=_CALLED)
        return
    if path.suffix == ".csv":
        values: Iterator[Any] = islice(_csv_rows(path), rows.row_start, rows.row_stop)
    else:
        values = line_values(path, rows.byte_start, rows.byte_stop)
    with reading(path, "broken text"):
        for row, value in enumerate(values, rows.row_start):
            yield sample_from_json(_with_images(value), f"{name}/{row}")


def _with_images(value: Any) -> Any:
    """A row with its files under the keys that images have; a RowError in its place where two keys differ."""
    if not isinstance(value, Mapping):
        return value
    row = {key: item for key, item in value.items() if key not in _CALLED or is_empty(item)}
    for key, called in _CALLED.items():
        if not is_empty(item := value.get(key)):
            if not is_empty(row.get(called)) and row[called] != item:
                return RowError(f"the row has {key!r} and {called!r}, and they differ: keep one of the two")
            row[called] = item
    return row


def _csv_rows(path: Location) -> Iterator[Any]:
    """Every row of a CSV file by its header's names; a RowError in place of one with more fields than those."""
    csv.field_size_limit(MAX_ROW_TEXT_BYTES)
    with reading(path, _DAMAGED), open_binary(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        reader = csv.DictReader(text, strict=True)
        try:
            names = list(reader.fieldnames or [])
            if not _CALLED.keys() & {*names}:
                raise ConfigError(f"{path}: its first line has {names}; expected file_name and others, with commas")
            if len({*names}) < len(names):
                raise ConfigError(f"{path}: columns {names} occur more than once; rename them")
            for row in reader:
                beyond = row.pop(None, None)
                yield RowError(f"a row of {len(names) + len(beyond)} fields, {len(names)} are named") if beyond else row
        except csv.Error as error:
            raise DamagedError(f"line {reader.line_num}: {error}") from error


def _count_csv(path: Location) -> int:
    """Rows of a CSV file; ConfigError where none could be read from its columns, all of which are text."""
    count, kinds = 0, dict[str, pa.DataType]()
    for count, row in enumerate(_csv_rows(path), 1):  # noqa: B007 - the last is the count
        for name, text in row.items() if isinstance(row, Mapping) else ():
            if text or name not in kinds:
                kinds[name] = pa.string() if text else pa.null()
    for name in TURN_KEYS:
        if kinds.get(name) == pa.string():
            raise ConfigError(
                f"{path}: column {name!r} is text, as all of CSV, and turns are lists of objects: give such rows as "
                f"metadata.jsonl{PARSE_IT}"
            )
    # A name that is no UTF-8 is none of those that are read.
    named = {_CALLED.get(name, name).encode("utf-8", "replace").decode(): kind for name, kind in kinds.items()}
    if named:
        find_columns(pa.schema(named), path)
    return count


def _renamed(schema: pa.Schema) -> pa.Schema:
    return pa.schema([field.with_name(_CALLED.get(field.name, field.name)) for field in schema])


def _pass_through(path: Location) -> Mapping[str, pa.Field]:
    return fields_of(_renamed(footer_of(path)[1]), path) if path.suffix == ".parquet" else {}


register(
    InputFormat(
        name="imagefolder",
        suffixes=(),
        names=tuple(f"metadata{suffix}" for suffix in _SUFFIXES),
        plan=_plan,
        read=_read,
        own_folder=True,
        pass_through=_pass_through,
    )
)
