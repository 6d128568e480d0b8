"""Single rows of JSON: from bytes to a value, from a value to a Sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from cal_pipeline.row_values import RowError, is_empty
from cal_pipeline.rows import sample_from_values
from cal_schemas.sample import Sample


def decode(raw: bytes) -> str:
    """Text of a stretch of JSON."""
    # Bytes that are no UTF-8 become lone surrogates here, and U+FFFD with a note in sample_from_values.
    return raw.decode("utf-8", "surrogateescape")


def parse_line(line: bytes) -> Any:
    """The value of a line, or a RowError in its place."""
    try:
        return json.loads(decode(line), strict=False)
    except (ValueError, RecursionError) as error:
        return RowError(f"malformed JSON line: {error}")


def sample_from_json(value: Any, row_id: str) -> Sample:
    """One row, whatever its layout, as a Sample."""
    if isinstance(value, RowError):
        return Sample(sample_id=row_id, images=(), messages=None, problem=str(value))
    if not isinstance(value, Mapping):
        return Sample(
            sample_id=row_id, images=(), messages=None, problem=f"expected an object, got {type(value).__name__}"
        )
    return sample_from_values(value, row_id)


def names_image_file(value: Any, mentions: int) -> bool:
    """Whether a row has an image that is a file; its text has `mentions` times a quote and the word image."""
    if not isinstance(value, dict):
        return False
    own = [item for key, item in value.items() if key.startswith("image")]
    if mentions <= len(own) and all(map(is_empty, own)):
        return False
    return any(image.data is None for image in sample_from_json(value, "").images)
