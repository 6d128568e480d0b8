"""Parses rows of JSON, and makes samples of their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cal_pipeline.sources.layouts import is_row_key
from cal_pipeline.sources.rows import sample_from_values
from cal_pipeline.sources.values import RowError, is_empty
from cal_schemas.sample import Sample


def decode(raw: bytes) -> str:
    """Text of a stretch of JSON."""
    # Bytes that are no UTF-8 become lone surrogates here, and U+FFFD with a note in sample_from_values.
    return raw.decode("utf-8", "surrogateescape")


class ConflictingValues:
    """In place of a value whose key an object has twice, unlike; no reader takes it for a value."""

    def __init__(self, first: Any, last: Any) -> None:
        self._both = (first, last)

    def __repr__(self) -> str:
        return f"{self._both[0]!r:.60} and, the key again, {self._both[1]!r:.60}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        for key, value in pairs:
            if not isinstance(values[key], ConflictingValues) and value != values[key]:
                values[key] = ConflictingValues(value, values[key])
    return values


def parse(text: str) -> Any:
    """The value of a stretch of JSON; ValueError or RecursionError where it is none."""
    return json.loads(text, strict=False, object_pairs_hook=_object)


def parse_line(line: bytes) -> Any:
    """The value of a line, or a RowError in its place."""
    try:
        return parse(decode(line))
    except (ValueError, RecursionError) as error:
        return RowError(f"malformed JSON line: {error}")


def conflicting_keys(row: Mapping[str, Any]) -> str | None:
    """Names a key that a row has twice, unlike, if it is one that is read; of turns' keys their readers tell."""
    return next((f"the row has {key!r} twice: {item!r}" for key, item in row.items()
                 if isinstance(item, ConflictingValues) and is_row_key(key)), None)  # fmt: skip


def sample_from_json(value: Any, row_id: str) -> Sample:
    """One row, whatever its layout, as a Sample."""
    values: Mapping[str, Any] = {}
    problem: str | None
    if not isinstance(value, Mapping):
        problem = str(value) if isinstance(value, RowError) else f"expected an object, got {type(value).__name__}"
    elif (problem := conflicting_keys(value)) is None:
        values = value
    else:
        values = {key: item for key, item in value.items() if not isinstance(item, ConflictingValues)}
    return sample_from_values(values, row_id, problem=problem)


def names_image_file(value: Any, mentions: int) -> bool:
    """True for a row with an image that is a file; its text has `mentions` times a quote and the word image."""
    if not isinstance(value, dict):
        return False
    own = [item for key, item in value.items() if key.startswith("image")]
    if mentions <= len(own) and all(map(is_empty, own)):
        return False
    return any(image.data is None for image in sample_from_json(value, "").images)
