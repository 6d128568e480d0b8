"""Judges Arrow's many types as the few that matter here: one judgement for every column of a Parquet source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from cal_schemas.errors import ConfigError
from cal_schemas.storage.locations import Location


def plain_type(kind: pa.DataType) -> pa.DataType:
    """`kind` as null, string, binary, list or struct of such, or a scalar type.

    `large_` and `view` types, fixed sizes, dictionaries, run-end encoding and extension types (by their storage) are
    only other ways to keep the same values.
    """
    if isinstance(kind, pa.BaseExtensionType):
        # An UUID is read as one, and not as its 16 bytes.
        return pa.string() if kind.extension_name == "arrow.uuid" else plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain_type(kind.value_type)
    if any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)):
        return pa.string()
    if any(test(kind) for test in (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
                                   pa.types.is_fixed_size_binary)):  # fmt: skip
        return pa.binary()
    if any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list,
                                   pa.types.is_list_view, pa.types.is_large_list_view)):  # fmt: skip
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(plain_type(kind.key_type), plain_type(kind.item_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, plain_type(field.type)) for field in kind])
    return kind


def plain_array(column: pa.Array) -> pa.Array:
    """The values of a column in its plain type, every text as bytes: what is no UTF-8 can then be read, too."""
    if isinstance(column, pa.UuidArray):
        return pa.array([item and str(item).encode() for item in column.to_pylist()], pa.large_binary())
    if isinstance(column, pa.ExtensionArray):
        return plain_array(column.storage)
    if pa.types.is_dictionary(column.type):
        return plain_array(column.dictionary_decode())
    if isinstance(column, pa.ListViewArray | pa.LargeListViewArray):  # Arrow 26 casts those of structs to empty lists.
        stops = np.cumsum([0, *(size or 0 for size in column.value_lengths().to_pylist())])
        return pa.LargeListArray.from_arrays(stops, plain_array(column.flatten()), mask=column.is_null())
    return column.cast(_as_bytes(plain_type(column.type)))


def _as_bytes(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.large_list(_as_bytes(kind.value_type))
    if pa.types.is_map(kind):
        return pa.map_(_as_bytes(kind.key_type), _as_bytes(kind.item_type))
    return pa.struct([(field.name, _as_bytes(field.type)) for field in kind]) if pa.types.is_struct(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Text, of a plain type; a column without one value has the type null."""
    return bool(pa.types.is_string(kind) or pa.types.is_null(kind))


def is_scalar(kind: pa.DataType) -> bool:
    """One value a row, of whatever type."""
    return not pa.types.is_nested(kind)


def is_turns(kind: pa.DataType) -> bool:
    """A list of turns, each with a role and words."""
    if pa.types.is_null(kind):
        return True
    if not pa.types.is_list(kind):
        return False
    names = {field.name for field in kind.value_type} if pa.types.is_struct(kind.value_type) else set()
    return pa.types.is_null(kind.value_type) or all(names & pair for pair in ({"role", "from"}, {"content", "value"}))


def is_image(kind: pa.DataType) -> bool:
    """A path, bytes, a struct of the two, or a list of those."""
    if pa.types.is_list(kind):
        return is_image(kind.value_type)
    if pa.types.is_struct(kind):
        return bool({field.name for field in kind} & {"bytes", "path"})
    return bool(is_text(kind) or pa.types.is_binary(kind))


def is_text_or_turns(kind: pa.DataType) -> bool:
    """A question or an answer: text, or turns."""
    return is_text(kind) or is_turns(kind)


def is_text_or_list(kind: pa.DataType) -> bool:
    """Text that holds JSON, or the list itself."""
    return bool(is_text(kind) or pa.types.is_list(kind))


PARSE_IT = " (JSON text? Parse it before it is written: json.loads of each value)"
"""The way out where turns are text."""
_TURNS = "a list of turns, which need a role (role or from) and words (content or value)"
_JUDGEMENTS: dict[str, tuple[Callable[[pa.DataType], bool], str]] = {
    **dict.fromkeys(("messages", "conversations"), (is_turns, _TURNS)),
    **dict.fromkeys(("images", "image"), (is_image, "a path, bytes, a struct of the two, or a list of those")),
    **dict.fromkeys(("prompt", "completion"), (is_text_or_turns, f"a string, or {_TURNS}")),
    **dict.fromkeys(("sample_id", "id"), (is_scalar, "one value a row")),
    **dict.fromkeys(("caption", "text", "system", "instruction", "input", "output", "query",
                     "response", "template_inputs"), (is_text, "a string")),
    "tools": (is_text_or_list, "a list of functions, or a string of JSON"),
}  # fmt: skip


def validate_type(name: str, kind: pa.DataType, path: Location, role: str) -> None:
    """ConfigError where no row could be read from a column of this type that plays the role of the key `role`."""
    test, expected = _JUDGEMENTS.get(role, (lambda _: True, ""))
    if not test(plain_type(kind)):
        hint = PARSE_IT if expected == _TURNS and is_text(plain_type(kind)) else ""
        raise ConfigError(f"{path}: column {name!r} has type {kind}, expected {expected}{hint}")


def decoded(value: Any, kind: pa.DataType, errors: str) -> Any:
    """A value of `plain_array`, with its text, which is where the plain type `kind` says, decoded."""
    if isinstance(value, list):
        return [decoded(item, kind.value_type, errors) for item in value]
    if isinstance(value, dict) and pa.types.is_map(kind):
        return {decoded(key, kind.key_type, errors): decoded(item, kind.item_type, errors)
                for key, item in value.items()}  # fmt: skip
    if isinstance(value, dict):
        return {field.name: decoded(value[field.name], field.type, errors) for field in kind}
    return value.decode("utf-8", errors) if pa.types.is_string(kind) and isinstance(value, bytes) else value
