"""Collects the columns of a plan's sources that pass through to the output as they are."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pyarrow as pa

from cal_pipeline.sources.formats import format_of
from cal_pipeline.sources.shard import Shard
from cal_schemas.errors import ConfigError
from cal_schemas.features import HUGGINGFACE, differing_columns
from cal_schemas.storage.locations import location

_log = logging.getLogger(__name__)


def pass_through_fields(shards: Sequence[Shard]) -> list[pa.Field]:
    """The pass-through columns of all sources, as one list; a part without any value takes its type from another file.

    Raises ConfigError when two columns would share a name in the output, or two files give one name two types.
    """
    differing: list[str] = []
    fields: dict[str, tuple[pa.Field, str, str]] = {}
    files = dict.fromkeys((shard.source.uri, shard.source.data_format) for shard in shards if shard.problem is None)
    for uri, data_format in files:
        for name, field in format_of(location(uri), data_format).pass_through(location(uri)).items():
            known, known_name, owner = fields.get(field.name, (field, name, uri))
            if name != known_name:
                of_owner = "" if owner == uri else f" of {owner}"
                raise ConfigError(
                    f"columns {known_name!r}{of_owner} and {name!r} of {uri} would both be {field.name!r} in the "
                    "output: rename or remove one of them"
                )
            merged = _without_null(known.type, field.type)
            if merged != (other := _without_null(field.type, known.type)):
                raise ConfigError(
                    f"column {name!r} {_differing(merged, other, owner, uri)}: make them agree, or run "
                    "cal-precompute on each alone"
                )
            if known.metadata != field.metadata and merged == known.type and field.name not in differing:
                differing.append(field.name)
                _log.warning("column %r is %s to `datasets` in %s and %s in %s: the output keeps its values alone",
                             name, _feature(known), owner, _feature(field), uri)  # fmt: skip
            whole, of_file = (known, owner) if merged == known.type else (field, uri)
            fields[field.name] = (whole.with_type(merged), name, of_file)
    return [field.remove_metadata() if field.name in differing else field for field, _, _ in fields.values()]


def _feature(field: pa.Field) -> str:
    """What `datasets` takes a column for."""
    return str((field.metadata or {}).get(HUGGINGFACE, b"nothing").decode())


def _differing(one: pa.DataType, other: pa.DataType, owner: str, uri: str) -> str:
    """Both types, in the files they are of; of structs only the parts that differ."""
    parts = one, other
    while all(map(pa.types.is_list, parts)):
        parts = parts[0].value_type, parts[1].value_type
    if all(map(pa.types.is_struct, parts)):
        return f"has other parts in {owner} than in {uri}, {differing_columns(*map(pa.schema, parts))}"
    return f"is {one} in {owner} and {other} in {uri}"


def _without_null(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    """`kind`; where it, or a part of it, is null for want of a value, the type that stands there in `other`."""
    if pa.types.is_null(kind):
        return other
    if pa.types.is_list(kind) and pa.types.is_list(other):
        return pa.list_(kind.value_field.with_type(_without_null(kind.value_type, other.value_type)))
    if pa.types.is_struct(kind) and pa.types.is_struct(other) and kind.names == other.names:
        return pa.struct(
            [mine.with_type(_without_null(mine.type, its.type)) for mine, its in zip(kind, other, strict=True)]
        )
    return kind
