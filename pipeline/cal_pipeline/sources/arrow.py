"""Reads Arrow files, streams (as `datasets` writes them) and files with a footer, into samples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.sources.column_types import plain_array, plain_type
from cal_pipeline.sources.formats import FilePlan, InputFormat, RowRange, register
from cal_pipeline.sources.reading import DamagedError, reading
from cal_pipeline.sources.table_columns import fields_of, find_columns, samples_of
from cal_pipeline.sources.values import IMAGE_KEYS
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location

_MAGIC = b"ARROW1"
_END = b"\xff\xff\xff\xff\0\0\0\0"
"""Of a stream: Arrow takes one that was cut between two batches for whole."""
_DAMAGED = "corrupt Arrow file"
_BATCH_ROWS = 32


@contextmanager
def _opened(path: Location, *, mapped: bool = False) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """(schema, its batches, one at a time), to be used inside `reading`.

    `mapped` spares reading what is not looked at; a disk that fails under it ends the process.
    """
    if isinstance(path, Path):
        file = (pa.memory_map if mapped else pa.OSFile)(str(path.absolute()), "r")
    else:
        file = pa.PythonFile(path.open(), "r")
    with file:
        if (size := file.size()) < len(_END):
            raise DamagedError(f"{size} bytes are too few")
        if file.read_at(len(_MAGIC), 0) == _MAGIC:
            of_file = pa.ipc.open_file(file)
            yield of_file.schema, map(of_file.get_batch, range(of_file.num_record_batches))
            return
        if file.read_at(len(_END), size - len(_END)) != _END:
            raise DamagedError("it is cut off, or no Arrow file")
        file.seek(0)
        stream = pa.ipc.open_stream(file)
        yield stream.schema, iter(stream)


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, if reading it stays inside its buffers; text that is no UTF-8 is its reader's to judge."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise DamagedError(f"column {name!r}: {error}") from error
    return batch


def _schema(path: Location) -> pa.Schema:
    with reading(path, _DAMAGED), _opened(path) as (schema, _):
        return schema


def pass_through_fields(path: Location) -> dict[str, pa.Field]:
    """As `fields_of`, of the file's schema."""
    return fields_of(_schema(path), path)


def plan_file(path: Location, rows_per_shard: int) -> FilePlan:
    """One range of all rows: the file is gone through, on disk without reading its images.

    Raises ConfigError for columns that no row can be read from, ShardError for a file that is no Arrow, or cut off.
    """
    find_columns(_schema(path), path)
    rows = embedded = text = 0
    with reading(path, _DAMAGED), _opened(path, mapped=True) as (schema, batches):
        images = [name for name in schema.names if name in IMAGE_KEYS]
        for batch in batches:
            rows += len(batch)
            for column in map(batch.column, images):
                of_bytes, of_text = _bytes_of(column)
                embedded, text = embedded + of_bytes, text + of_text
    there = RowRange(row_start=0, row_stop=rows, image_bytes=embedded or text)
    return FilePlan(ranges=[there] if rows else [], images="inside" if embedded else "text" if text else "unknown")


def _bytes_of(column: pa.Array) -> tuple[int, int]:
    """Bytes of an image column's binary values, and of its texts."""
    kind = plain_type(column.type)
    if pa.types.is_list(kind):
        return _bytes_of(column.flatten())
    if pa.types.is_struct(kind):
        parts = [_bytes_of(column.field(index)) for index in range(kind.num_fields)]
        return sum(part[0] for part in parts), sum(part[1] for part in parts)
    if not (pa.types.is_binary(kind) or pa.types.is_string(kind)):
        return 0, 0
    size = pc.sum(pc.binary_length(plain_array(column))).as_py() or 0
    return (size, 0) if pa.types.is_binary(kind) else (0, size)


def read_rows(path: Location, rows: RowRange, name: str) -> Iterator[Sample]:
    """Samples of a range of rows, in order; ShardError when the file turns out to be corrupt."""
    with reading(path, _DAMAGED), _opened(path) as (schema, batches):
        columns = find_columns(schema, path)
        row = 0
        for batch in batches:
            if row >= rows.row_stop:
                return
            if row + len(batch) > rows.row_start:
                for start in range(0, len(_sound(batch)), _BATCH_ROWS):
                    yield from samples_of(batch.slice(start, _BATCH_ROWS), columns, row + start, rows, name)
            row += len(batch)


register(
    InputFormat(
        name="arrow",
        suffixes=(".arrow",),
        plan=plan_file,
        read=read_rows,
        splits=False,
        pass_through=pass_through_fields,
    )
)
