"""Makes a Sample of the loosely typed values of any source row, or of its JSON; what does not fit is its `problem`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from cal_pipeline.sources.layouts import ID_KEYS, is_row_key, read_row
from cal_pipeline.sources.values import RowError, is_empty, is_null, looks_like_image, own_images
from cal_schemas.redaction import unsigned
from cal_schemas.sample import ImageRef, Sample, Turn

MAX_ROW_TEXT_BYTES = 64 * 2**20
"""Of one row as its source spells it; a longer one is not read into memory."""
_SURROGATES = re.compile("[\ud800-\udfff]+")
_LONGEST_KEY = 100
UNCLAIMED = "no image is set, and "
"""Begins the problem of a row whose image stands under a key that nobody reads."""


def sample_from_values(
    values: Mapping[str, Any], row_id: str, *, pass_through: Mapping[str, Any] | None = None, problem: str | None = None
) -> Sample:
    """Builds a Sample from a row, read from what it has: ROW_KEYS as far as they are set.

    Args:
        values: Python values by key.
        row_id: `<shard>/<row>`, used when the source has no id of its own.
        pass_through: a Parquet source's other columns, under their output names.
        problem: why the row cannot be used, where that is known before.
    """
    replaced: list[str] = []

    def clean(text: str, where: str) -> str:
        if _SURROGATES.search(text):
            replaced.append(where)
            return _SURROGATES.sub("\ufffd", text)
        return text

    def clean_json(value: Any, where: str) -> Any:
        return json.loads(clean(json.dumps(value, ensure_ascii=False), where)) if value else value

    def clean_refs(images: Sequence[ImageRef]) -> tuple[ImageRef, ...]:
        return tuple(
            replace(ref, path=None if ref.path is None else unsigned(clean(ref.path, "image path"))) for ref in images
        )

    refs: tuple[ImageRef, ...] = ()
    messages: tuple[Turn, ...] | None = None
    tools: Any = None
    notes: list[str] = []
    keys: set[str] = set()
    found = {**(pass_through or {}), **values}
    source_id = next((values[key] for key in ID_KEYS if not is_null(values.get(key))), None)
    sample_id = unsigned(row_id if source_id is None else clean(_id_text(source_id, notes), "id"))
    try:
        refs = clean_refs(own_images(values, "the row"))
        if problem is not None:
            raise RowError(problem)
        conversation, tools = read_row(values, len(refs))
        if conversation.images:
            inside = clean_refs(conversation.images)
            if refs and refs != inside:
                raise RowError("the row has other images than its turns: keep one of the two")
            refs = inside
        unclaimed = {key: value for key, value in found.items() if key not in conversation.keys}
        if not refs:
            _validate_unclaimed(unclaimed)
        keys = {key for key, value in unclaimed.items() if _is_set(value)}
        keys |= {f"{key} (of a turn)" for key in conversation.unread}
        messages = tuple(
            replace(turn, content=clean(turn.content, f"turn {number}"), extra=clean_json(turn.extra, f"turn {number}"))
            for number, turn in enumerate(conversation.turns)
        )
        tools = clean_json(tools, "tools")
    except RowError as error:
        problem, messages, tools = clean(str(error), "problem"), None, None
        keys = {key for key, value in found.items() if not is_row_key(key) and _is_set(value)}
    if replaced:
        notes.append(f"characters that are not UTF-8 were replaced by U+FFFD in: {', '.join(replaced)}")
    return Sample(
        sample_id=sample_id, images=refs, messages=messages, problem=problem, note="; ".join(notes) or None,
        tools=tools, pass_through=pass_through or {},
        unread=tuple(sorted(_SURROGATES.sub("?", str(key)[:_LONGEST_KEY]) for key in keys)),
    )  # fmt: skip


def _is_set(value: Any) -> bool:
    if isinstance(value, pa.Array):
        return bool(value.null_count == 0)
    return value is False or not is_empty(value)


def _id_text(value: Any, notes: list[str]) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            notes.append("the id is no UTF-8 text: its bytes in hexadecimal digits")
            return value.hex()
    return json.dumps(value, default=str) if isinstance(value, list | dict | bool) else str(value)


def _validate_unclaimed(values: Mapping[str, Any]) -> None:
    """RowError naming a key that holds an image although the row, as it is read, has none."""
    for key, value in values.items():
        if reason := looks_like_image(key, value):
            raise RowError(f"{UNCLAIMED}{key!r} holds {reason}: call it 'image' if it is one, or leave it out")


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
