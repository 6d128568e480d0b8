"""Reads Parquet with images and messages, conversations or captions into samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from cal_pipeline.sources.formats import FilePlan, InputFormat, RowRange, register
from cal_pipeline.sources.reading import reading
from cal_pipeline.sources.table_columns import fields_of, find_columns, samples_of
from cal_pipeline.sources.values import IMAGE_KEYS
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location, open_parquet, read_footer


def pass_through_fields(path: Location) -> dict[str, pa.Field]:
    """As `fields_of`, of the file's footer."""
    return fields_of(footer_of(path)[1], path)


def footer_of(path: Location) -> tuple[pq.FileMetaData, pa.Schema]:
    """A Parquet file's footer, and its schema; ShardError where it has none."""
    with reading(path, "not a readable Parquet file"):
        footer = read_footer(path)
        return footer, footer.schema.to_arrow_schema()


def plan_file(path: Location, rows_per_shard: int) -> FilePlan:
    """One range of all rows, from the footer.

    Raises ConfigError for columns that no row can be read from, ShardError for a file that is no Parquet.
    """
    footer, schema = footer_of(path)
    find_columns(schema, path)
    embedded, text = _image_bytes(footer)
    rows = RowRange(row_start=0, row_stop=footer.num_rows, image_bytes=embedded or text)
    return FilePlan(ranges=[rows], images="inside" if embedded else "text" if text else "unknown")


def embedded_image_bytes(path: Location) -> int:
    """Compressed size of the images in the image column, from the footer."""
    return _image_bytes(read_footer(path))[0]


def _image_bytes(footer: pq.FileMetaData) -> tuple[int, int]:
    """Compressed size of the image columns' binary leaves, and of their text leaves; chunks of nulls count nothing."""
    embedded = text = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for index in range(group.num_columns):
            column, leaf = group.column(index), footer.schema.column(index)
            if column.path_in_schema.split(".")[0] not in IMAGE_KEYS or "BYTE_ARRAY" not in leaf.physical_type:
                continue
            statistics = column.statistics
            if statistics is not None and statistics.has_null_count and statistics.null_count >= column.num_values:
                continue
            if leaf.logical_type.type == "STRING":
                text += column.total_compressed_size
            else:
                embedded += column.total_compressed_size
    return embedded, text


def read_rows(
    path: Location, rows: RowRange, name: str, *, called: Mapping[str, str] | None = None
) -> Iterator[Sample]:
    """Samples of a range of rows, in order; holds a few dozen rows at a time.

    `called` gives columns another name. Raises ShardError when the file turns out to be corrupt.
    """
    with reading(path, "corrupt Parquet file"), open_parquet(path) as file:
        names = [(called or {}).get(column, column) for column in file.schema_arrow.names]
        columns = find_columns(pa.schema(map(pa.Field.with_name, file.schema_arrow, names)), path)
        row = 0
        for batch in file.iter_batches(batch_size=32):
            if row >= rows.row_stop:
                return
            yield from samples_of(batch.rename_columns(names), columns, row, rows, name)
            row += len(batch)


register(
    InputFormat(
        name="parquet",
        suffixes=(".parquet",),
        plan=plan_file,
        read=read_rows,
        splits=False,
        pass_through=pass_through_fields,
    )
)
