"""Tells `datasets`, in a schema's metadata, which columns are more to it than their Arrow type."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from cal_schemas.metadata import Carry

HUGGINGFACE = b"huggingface"
"""Key under which `datasets` keeps what its features say beyond Arrow's types, in a schema's metadata."""
_SHOWN = 6
"""Of the columns that differ, how many a message names."""


def with_features(schema: pa.Schema, carry: Carry) -> pa.Schema:
    """The schema, saying in its metadata what `datasets` is to make of its columns.

    `images` are images where shards hold their bytes: what is only a path, relative to some folder, cannot be opened
    from there. Carried columns are what their source said (`feature_of`). What the schema says already stays.
    """
    features = {field.name: json.loads(field.metadata[HUGGINGFACE])
                for field in schema if field.metadata and HUGGINGFACE in field.metadata}  # fmt: skip
    if carry in ("images", "embedded"):
        # `Sequence`: versions of `datasets` before 4 know no `List`, and all since then read it as one.
        features["images"] = {"feature": {"_type": "Image"}, "_type": "Sequence"}
    stated = feature_text({**features, **features_of(schema)})
    fields = [field.remove_metadata() if field.name in features else field for field in _may_be_null(schema)]
    return pa.schema(fields, {**(schema.metadata or {}), HUGGINGFACE: stated})


def feature_text(features: Mapping[str, Any]) -> bytes:
    """Features by column as `datasets` writes them into a schema's metadata."""
    return json.dumps({"info": {"features": features}}).encode()


def features_of(schema: pa.Schema) -> dict[str, Any]:
    """Feature of each column, as `datasets` wrote them into a schema's metadata; none where it did not."""
    try:
        features = json.loads((schema.metadata or {})[HUGGINGFACE])["info"]["features"]
        return {name: value for name, value in features.items() if name in schema.names}
    except (KeyError, TypeError, AttributeError, ValueError):
        return {}


def comparable(schema: pa.Schema) -> pa.Schema:
    """The schema without metadata, for comparing: equal whenever shards belong together.

    Older versions declared that `images` may not be null, which changes nothing: they are never.
    """
    return pa.schema(_may_be_null(schema))


def differing_columns(one: pa.Schema, other: pa.Schema, said: str = "{name} ({a} and {b})") -> str:
    """Which columns only one of the two has, or both with another type; else that their order differs."""
    types = [{field.name: field.type for field in schema} for schema in (one, other)]
    pairs = {name: [kinds.get(name, "none") for kinds in types] for name in (*one.names, *other.names)}
    differing = [said.format(name=name, a=a, b=b) for name, (a, b) in pairs.items() if a != b]
    more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
    return ", ".join(differing[:_SHOWN]) + more or "their order, or which may be null"


def _may_be_null(schema: pa.Schema) -> list[pa.Field]:
    return [field.with_nullable(True) if field.name == "images" else field for field in schema]
