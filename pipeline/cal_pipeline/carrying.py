"""What the sources of a plan hold that may be carried into the output: pictures and other columns."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from cal_pipeline import parquet_source
from cal_pipeline.shards import Shard
from cal_schemas.errors import ConfigError
from cal_schemas.locations import location


def embedded_image_bytes(shards: Sequence[Shard]) -> int:
    """Size of the pictures that the sources hold, as far as footers and headers tell."""
    inside = sum(parquet_source.embedded_image_bytes(location(uri)) for uri in _parquet_files(shards))
    return inside + sum(shard.embedded_bytes for shard in shards)


def carried_fields(shards: Sequence[Shard]) -> list[pa.Field]:
    """The other columns of all Parquet sources, as one list; ConfigError when two files give one name two types."""
    fields: dict[str, tuple[pa.Field, str]] = {}
    for uri in _parquet_files(shards):
        for field in parquet_source.carried_fields(location(uri)):
            known, owner = fields.setdefault(field.name, (field, uri))
            if pa.types.is_null(known.type):
                fields[field.name] = (field, uri)
            elif known.type != field.type and not pa.types.is_null(field.type):
                raise ConfigError(
                    f"column {field.name!r} is {known.type} in {owner} and {field.type} in {uri}: make them agree, "
                    "or run cal-precompute on each alone"
                )
    return [field for field, _ in fields.values()]


def _parquet_files(shards: Sequence[Shard]) -> list[str]:
    """Files whose footers can be asked, each once."""
    readable = (shard for shard in shards if shard.data_format == "parquet" and shard.problem is None)
    return [*dict.fromkeys(shard.source.uri for shard in readable)]
