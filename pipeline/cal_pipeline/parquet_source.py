"""Parquet with images and messages, conversations or captions: which columns mean what, and reading them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cal_pipeline.rows import sample_from_row
from cal_schemas.annotated import RESERVED_COLUMNS
from cal_schemas.errors import ConfigError, ShardError, StoreError
from cal_schemas.locations import Location, open_parquet, read_footer
from cal_schemas.sample import Sample

_IMAGE_COLUMNS = ("images", "image")
_TURN_COLUMNS = ("messages", "conversations")
_CAPTION_COLUMNS = ("text", "caption")
_TURN_FIELDS = (("role", "from"), ("content", "value"))


@dataclass(frozen=True, kw_only=True, slots=True)
class ParquetColumns:
    """Roles of a Parquet source's columns; None where it has none."""

    images: str | None
    turns: str | None
    caption: str | None
    sample_id: str | None
    carried: Mapping[str, str]
    """Column of the source -> its name in the output."""


def find_columns(schema: pa.Schema, path: Location) -> ParquetColumns:
    """Assigns roles by name; ConfigError when there is no text column."""
    names = schema.names

    def first(candidates: tuple[str, ...]) -> str | None:
        return next((name for name in candidates if name in names), None)

    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{path}: columns {twice} occur more than once; rename them")
    turns = first(_TURN_COLUMNS)
    caption = None if turns else first(_CAPTION_COLUMNS)
    if turns is None and caption is None:
        raise ConfigError(
            f"{path}: columns {names} hold no text; expected one of {', '.join(_TURN_COLUMNS + _CAPTION_COLUMNS)}"
        )
    for name, expected in ((turns, pa.types.is_list), (caption, pa.types.is_string)):
        if name is not None and not (expected(schema.field(name).type) or _large_or_null(schema.field(name).type)):
            raise ConfigError(f"{path}: column {name!r} has type {schema.field(name).type}, expected "
                              f"{'a list of turns' if name == turns else 'a string'}")  # fmt: skip
    kind = pa.null() if turns is None else schema.field(turns).type
    if _is_list(kind) and not _holds(kind.value_type, _TURN_FIELDS):
        raise ConfigError(
            f"{path}: column {turns!r} has type {kind}; its turns need a role (role or from) and words (content or "
            "value)"
        )
    images = first(_IMAGE_COLUMNS)
    if images is not None and not _is_image_type(schema.field(images).type):
        raise ConfigError(
            f"{path}: column {images!r} has type {schema.field(images).type}; expected a path, bytes, a struct of the "
            "two, or a list of those"
        )
    sample_id = "sample_id" if "sample_id" in names else first(("id",))
    used = {images, turns, caption, sample_id}
    carried = {name: f"source_{name}" if name in RESERVED_COLUMNS else name for name in names if name not in used}
    return ParquetColumns(images=images, turns=turns, caption=caption, sample_id=sample_id, carried=carried)


def _large_or_null(kind: pa.DataType) -> bool:
    # A file without one value in the column, such as an empty partition, has it as null.
    allowed = (pa.types.is_large_list, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(is_kind(kind) for is_kind in allowed)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _holds(kind: pa.DataType, fields: Sequence[tuple[str, str]]) -> bool:
    """Whether a struct has one of each pair of fields; a type without values has nothing against it."""
    if pa.types.is_null(kind):
        return True
    names = {field.name for field in kind} if pa.types.is_struct(kind) else set()
    return all(names & set(pair) for pair in fields)


def _is_image_type(kind: pa.DataType) -> bool:
    if _is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_dictionary(kind):
        return _is_image_type(kind.value_type)
    if pa.types.is_struct(kind):
        return bool({field.name for field in kind} & {"bytes", "path"})
    allowed = (pa.types.is_null, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
               pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
               pa.types.is_fixed_size_binary)  # fmt: skip
    return any(is_kind(kind) for is_kind in allowed)


def carried_fields(path: Location) -> dict[str, pa.Field]:
    """The source's other columns -> fields of the output, nullable because another source may lack them."""
    schema = read_footer(path).schema.to_arrow_schema().remove_metadata()
    columns = find_columns(schema, path)
    return {name: pa.field(output, schema.field(name).type) for name, output in columns.carried.items()}


def embedded_image_bytes(path: Location) -> int:
    """Compressed size of the pictures in the image column, from the footer."""
    return _image_leaves(path, embedded=True)


def names_image_files(path: Location) -> bool:
    """Whether the image column holds paths and no bytes, so that an image folder is needed."""
    return not embedded_image_bytes(path) and _image_leaves(path, embedded=False) > 0


def _image_leaves(path: Location, *, embedded: bool) -> int:
    """Compressed size of the image column's binary leaves, or of its text leaves; chunks of nulls count nothing."""
    footer = read_footer(path)
    total = 0
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for index in range(group.num_columns):
            column, leaf = group.column(index), footer.schema.column(index)
            is_text = leaf.logical_type.type == "STRING"
            if column.path_in_schema.split(".")[0] not in _IMAGE_COLUMNS or leaf.physical_type != "BYTE_ARRAY":
                continue
            statistics = column.statistics
            all_null = (
                statistics is not None and statistics.has_null_count and statistics.null_count >= column.num_values
            )
            if is_text != embedded and not all_null:
                total += column.total_compressed_size
    return total


def read_rows(path: Location, name: str, row_start: int, row_stop: int) -> Iterator[Sample]:
    """Samples of rows [row_start, row_stop), in order; holds a few dozen rows at a time.

    Raises ShardError when the file turns out to be corrupt.
    """
    try:
        with open_parquet(path) as file:
            columns = find_columns(file.schema_arrow, path)
            row = 0
            for batch in file.iter_batches(batch_size=32):
                if row >= row_stop:
                    return
                if row + len(batch) > row_start:
                    for number, value in enumerate(_values(batch, columns.carried), row):
                        if row_start <= number < row_stop:
                            yield _sample(value, columns, f"{name}/{number}")
                row += len(batch)
    except StoreError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path}: corrupt Parquet file: {error}") from error


def _values(batch: pa.RecordBatch, carried: Mapping[str, str]) -> list[dict[str, Any]]:
    try:
        # Carried values stay Arrow scalars: Python's types would round some (nanoseconds).
        own = batch.select([name for name in batch.schema.names if name not in carried]).to_pylist()
        scalars = {name: batch.column(name) for name in carried}
        _ = [column.validate(full=True) for column in scalars.values()]
        return [{**row, **{name: column[at] for name, column in scalars.items()}} for at, row in enumerate(own)]
    except (UnicodeDecodeError, pa.ArrowInvalid):
        # Some writers do not check their text: read it as bytes, and decode what the schema says is text.
        columns = []
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            # Lone surrogates for what is no UTF-8, as from JSON: sample_from_row replaces them and says so.
            errors = "replace" if name in carried else "surrogateescape"
            raw = column.cast(_as_binary(column.type)).to_pylist()
            columns.append([_decoded(value, column.type, errors) for value in raw])
        return [dict(zip(batch.schema.names, row, strict=True)) for row in zip(*columns, strict=True)]


def _as_binary(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.large_binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.large_list(_as_binary(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_as_binary(field.type)) for field in kind])
    return kind


def _decoded(value: Any, kind: pa.DataType, errors: str) -> Any:
    if value is None or _as_binary(kind) == kind:
        return value
    if isinstance(value, list):
        return [_decoded(item, kind.value_type, errors) for item in value]
    if isinstance(value, dict):
        return {field.name: _decoded(value[field.name], field.type, errors) for field in kind}
    return value.decode("utf-8", errors)


def _sample(value: dict[str, object], columns: ParquetColumns, row_id: str) -> Sample:
    def get(name: str | None) -> object:
        return None if name is None else value[name]

    caption = get(columns.caption)
    return sample_from_row(
        row_id=row_id,
        source_id=get(columns.sample_id),
        images=get(columns.images),
        turns=get(columns.turns),
        caption=None if caption is None else str(caption),
        carried={output: value[name] for name, output in columns.carried.items()},
    )
