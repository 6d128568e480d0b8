"""Reads Parquet with images and messages, conversations or captions into samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cal_pipeline.sources.column_types import decoded, plain_array, plain_type, validate_type
from cal_pipeline.sources.formats import FilePlan, InputFormat, RowRange, register
from cal_pipeline.sources.layouts import CAPTION_KEYS, ID_KEYS, OTHER_KEYS, PAIRS, TURN_KEYS, is_row_key, is_system_key
from cal_pipeline.sources.reading import reading
from cal_pipeline.sources.rows import sample_from_values
from cal_pipeline.sources.values import IMAGE_KEYS
from cal_schemas.annotated import HUGGINGFACE, RESERVED_COLUMNS, features_of
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location, open_parquet, read_footer


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetColumns:
    """Roles of a Parquet source's columns; one may have both."""

    read: tuple[str, ...]
    """Those that the keys of a row are known by."""
    pass_through: Mapping[str, str]
    """Column of the source -> its name in the output."""


def find_columns(schema: pa.Schema, path: Location) -> ParquetColumns:
    """Assigns roles by name; ConfigError when there is no text column, or one that no row can be read from."""
    names = schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: columns {twice} occur more than once; rename them")
    turns = [name for name in TURN_KEYS if name in names]
    pairs = [name for question, answer, others in PAIRS if {question, answer} <= set(names)
             for name in (question, answer, *others) if name in names]  # fmt: skip
    captions = [] if turns or pairs else [name for name in CAPTION_KEYS if name in names]
    if not (turns or pairs or captions):
        listed = ", ".join((*TURN_KEYS, *CAPTION_KEYS, *(f"{question} with {answer}" for question, answer, _ in PAIRS)))
        raise ConfigError(f"{path}: columns {names} hold no text; expected one of {listed}")
    ids = [name for name in ID_KEYS if name in names][:1]
    own = [*ids, *turns, *captions, *(name for name in IMAGE_KEYS if name in names)]
    for name in (*own, *pairs, *(name for name in names if name in OTHER_KEYS or is_system_key(name))):
        validate_type(name, schema.field(name).type, path, "system" if is_system_key(name) else name)
    pass_through = {
        name: f"source_{name}" if name in RESERVED_COLUMNS else name
        for name in names
        if name not in own and name != "template_inputs"
    }
    return ParquetColumns(read=tuple(filter(is_row_key, names)), pass_through=pass_through)


def pass_through_fields(path: Location) -> dict[str, pa.Field]:
    """The source's other columns -> fields of the output, nullable because another source may lack them.

    What `datasets` says of a column in the source's metadata (the names of its classes, say) goes along in the field's.
    """
    schema = _footer(path)[1]
    columns, features = find_columns(schema, path), features_of(schema)

    def field(name: str, output: str) -> pa.Field:
        feature = {HUGGINGFACE: json.dumps(features[name], sort_keys=True)} if name in features else None
        return pa.field(output, schema.field(name).type, metadata=feature)

    return {name: field(name, output) for name, output in columns.pass_through.items()}


def _footer(path: Location) -> tuple[pq.FileMetaData, pa.Schema]:
    with reading(path, "not a readable Parquet file"):
        footer = read_footer(path)
        return footer, footer.schema.to_arrow_schema()


def plan_file(path: Location, rows_per_shard: int) -> FilePlan:
    """One range of all rows, from the footer.

    Raises ConfigError for columns that no row can be read from, ShardError for a file that is no Parquet.
    """
    footer, schema = _footer(path)
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


def read_rows(path: Location, rows: RowRange, name: str) -> Iterator[Sample]:
    """Samples of a range of rows, in order; holds a few dozen rows at a time.

    Raises ShardError when the file turns out to be corrupt.
    """
    with reading(path, "corrupt Parquet file"), open_parquet(path) as file:
        columns = find_columns(file.schema_arrow, path)
        row = 0
        for batch in file.iter_batches(batch_size=32):
            if row >= rows.row_stop:
                return
            if row + len(batch) > rows.row_start:
                for number, (values, pass_through) in enumerate(_values(batch, columns), row):
                    if rows.row_start <= number < rows.row_stop:
                        yield sample_from_values(values, f"{name}/{number}", pass_through=pass_through)
            row += len(batch)


def _values(batch: pa.RecordBatch, columns: ParquetColumns) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Gives of every row what is read, as Python values, and what passes through, by output name."""
    # Some writers do not check their text: it is then read as bytes, and what the schema says is text is decoded.
    try:
        read = batch.select(columns.read).to_pylist(maps_as_pydicts="strict")
    except UnicodeDecodeError:
        # Lone surrogates for what is no UTF-8, as from JSON: sample_from_values replaces them and says so.
        by_column = {name: _decoded(batch.column(name), "surrogateescape") for name in columns.read}
        read = [dict(zip(by_column, row, strict=True)) for row in zip(*by_column.values(), strict=True)]
    except (OverflowError, KeyError, ValueError) as error:
        # A date after the year 9999, a map with one key twice, nanoseconds where there is no pandas.
        raise ShardError(f"a value that cannot be read: {error}") from error
    # Values that pass through stay Arrow's: Python's types would round some (nanoseconds), and lack others.
    replaced: dict[str, list[Any]] = {}
    for name in columns.pass_through:
        try:
            batch.column(name).validate(full=True)
        except pa.ArrowInvalid:
            replaced[name] = _decoded(batch.column(name), "replace")
    for row, values in enumerate(read):
        yield (
            values,
            {
                output: replaced[name][row] if name in replaced else batch.column(name).slice(row, 1)
                for name, output in columns.pass_through.items()
            },
        )


def _decoded(column: pa.Array, errors: str) -> list[Any]:
    kind = plain_type(column.type)
    return [decoded(value, kind, errors) for value in plain_array(column).to_pylist(maps_as_pydicts="strict")]


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
