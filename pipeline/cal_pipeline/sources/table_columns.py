"""Reads the columns of a table, whatever file it comes from: which have a role, which pass through, and their rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cal_pipeline.sources.column_types import decoded, is_image, plain_array, plain_type, validate_type
from cal_pipeline.sources.formats import RowRange
from cal_pipeline.sources.layouts import CAPTION_KEYS, ID_KEYS, OTHER_KEYS, TURN_KEYS, is_row_key, is_system_key
from cal_pipeline.sources.pairs import PAIRS
from cal_pipeline.sources.rows import sample_from_values
from cal_pipeline.sources.turns import OTHER_MEDIA
from cal_pipeline.sources.values import IMAGE_KEYS
from cal_schemas.annotated import RESERVED_COLUMNS
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.features import HUGGINGFACE, features_of
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class TableColumns:
    """Roles of a source's columns; one may have both."""

    read: tuple[str, ...]
    """Those that the keys of a row are known by."""
    pass_through: Mapping[str, str]
    """Column of the source -> its name in the output."""


def find_columns(schema: pa.Schema, path: Location) -> TableColumns:
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
    media = [name for name in OTHER_MEDIA if name in names and not pa.types.is_null(schema.field(name).type)]
    if media and not any(name in names for name in IMAGE_KEYS) and is_image(plain_type(schema.field(media[0]).type)):
        raise ConfigError(f"{path}: has the column {media[0]!r} and no image; no sound and no video is known")
    ids = [name for name in ID_KEYS if name in names][:1]
    own = [*ids, *turns, *captions, *(name for name in IMAGE_KEYS if name in names)]
    for name in (*own, *pairs, *(name for name in names if name in OTHER_KEYS or is_system_key(name))):
        validate_type(name, schema.field(name).type, path, "system" if is_system_key(name) else name)
    pass_through = {
        name: f"source_{name}" if name in RESERVED_COLUMNS else name
        for name in names
        if name not in own and name != "template_inputs"
    }
    return TableColumns(read=tuple(filter(is_row_key, names)), pass_through=pass_through)


def fields_of(schema: pa.Schema, path: Location) -> dict[str, pa.Field]:
    """The source's other columns -> fields of the output, nullable because another source may lack them.

    What `datasets` says of a column in the source's metadata (the names of its classes, say) goes along in the field's.
    """
    columns, features = find_columns(schema, path), features_of(schema)

    def field(name: str, output: str) -> pa.Field:
        feature = {HUGGINGFACE: json.dumps(features[name], sort_keys=True)} if name in features else None
        return pa.field(output, schema.field(name).type, metadata=feature)

    return {name: field(name, output) for name, output in columns.pass_through.items()}


def samples_of(batch: pa.RecordBatch, columns: TableColumns, first: int, rows: RowRange, name: str) -> Iterator[Sample]:
    """Samples of a batch whose first row has the number `first`, as far as they lie in the range."""
    if first + len(batch) <= rows.row_start:
        return
    for number, (values, pass_through) in enumerate(_values(batch, columns), first):
        if rows.row_start <= number < rows.row_stop:
            yield sample_from_values(values, f"{name}/{number}", pass_through=pass_through)


def _values(batch: pa.RecordBatch, columns: TableColumns) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
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
