"""Every way in which Arrow keeps a value is one of a few plain types, and keeps the value, nulls between others too."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cal_pipeline.sources.column_types import (
    decoded,
    is_image,
    is_scalar,
    is_text,
    is_text_or_list,
    is_text_or_turns,
    is_turns,
    plain_array,
    plain_type,
    validate_type,
)
from cal_schemas.errors import ConfigError

TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
TURNS = [{"role": "user", "content": "What?"}, {"role": None, "content": "é"}]
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)
OPAQUE = pa.opaque(pa.string(), "a", "b")
ARRAYS = {
    "UUIDs": (pa.array([ONE.bytes, None, TWO.bytes], pa.uuid()), [str(ONE), None, str(TWO)]),
    "opaque": (pa.ExtensionArray.from_storage(OPAQUE, pa.array(["x", None])), ["x", None]),
    "JSON": (pa.array(["{}", None], pa.json_()), ["{}", None]),
    "dictionary": (pa.array(["x", None, "y"]).dictionary_encode(), ["x", None, "y"]),
    "list views": (pa.array([TURNS, None, [], TURNS[:1]], pa.list_view(TURN)), [TURNS, None, [], TURNS[:1]]),
    "large list views": (pa.array([None, ["a", None], ["b"]], pa.large_list_view(pa.string())),
                         [None, ["a", None], ["b"]]),
    "fixed lists": (pa.array([[b"1", b"2"], None], pa.list_(pa.binary(), 2)), [[b"1", b"2"], None]),
    "maps": (pa.array([{"é": "x", "b": None}, None], pa.map_(pa.string(), pa.string())), [{"é": "x", "b": None}, None]),
    "maps of lists": (pa.array([{1: ["é"]}], pa.map_(pa.int64(), pa.list_(pa.string()))), [{1: ["é"]}]),
    "structs": (pa.array([{"text": "é", "data": b"\xff", "n": 1}, None]),
                [{"text": "é", "data": b"\xff", "n": 1}, None]),
    "numbers": (pa.array([1, None]), [1, None]),
    "nothing": (pa.nulls(2), [None, None]),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_a_plain_array_has_the_values_of_its_column(name: str) -> None:
    column, values = ARRAYS[name]
    plain = plain_array(column).to_pylist(maps_as_pydicts="strict")
    assert [decoded(value, plain_type(column.type), "strict") for value in plain] == values


def test_text_that_is_no_utf8_is_read_as_it_is_asked_for_and_bytes_stay_bytes() -> None:
    text = pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")])
    (value,) = plain_array(text).to_pylist()
    assert decoded(value, pa.string(), "replace") == "\ufffd"
    assert decoded(value, pa.string(), "surrogateescape") == "\udcff"
    assert decoded(value, pa.binary(), "strict") == b"\xff"


@pytest.mark.parametrize(
    ("kind", "plain"),
    [
        (pa.uuid(), pa.string()), (OPAQUE, pa.string()), (pa.large_string(), pa.string()),
        (pa.string_view(), pa.string()), (pa.binary(4), pa.binary()), (pa.large_binary(), pa.binary()),
        (pa.binary_view(), pa.binary()), (pa.dictionary(pa.int8(), pa.large_string()), pa.string()),
        (pa.run_end_encoded(pa.int32(), pa.string_view()), pa.string()), (pa.null(), pa.null()),
        (pa.large_list(pa.string_view()), pa.list_(pa.string())), (pa.list_(pa.binary(2), 3), pa.list_(pa.binary())),
        (pa.list_view(pa.uuid()), pa.list_(pa.string())), (pa.large_list_view(pa.int8()), pa.list_(pa.int8())),
        (pa.map_(pa.large_string(), pa.binary(1)), pa.map_(pa.string(), pa.binary())),
        (pa.struct([("a", pa.string_view())]), pa.struct([("a", pa.string())])), (pa.float16(), pa.float16()),
    ],
    ids=str,
)  # fmt: skip
def test_a_plain_type_keeps_what_the_values_are_and_not_how_they_are_kept(
    kind: pa.DataType, plain: pa.DataType
) -> None:
    assert plain_type(kind) == plain


NULL, TEXT, BYTES, NUMBER = pa.null(), pa.string(), pa.binary(), pa.int64()


def turn(*names: str) -> pa.DataType:
    return pa.list_(pa.struct([(name, TEXT) for name in names]))


@pytest.mark.parametrize(
    ("test", "fitting", "others"),
    [
        (is_text, [NULL, TEXT], [BYTES, NUMBER, pa.list_(TEXT), turn("role", "content")]),
        (is_scalar, [NULL, TEXT, BYTES, NUMBER], [pa.list_(TEXT), pa.struct([("a", TEXT)]), pa.map_(TEXT, TEXT)]),
        (is_turns, [NULL, pa.list_(NULL), turn("role", "content"), turn("from", "value", "x"), turn("role", "value")],
         [TEXT, NUMBER, pa.list_(TEXT), turn("role"), turn("content"), turn("role", "from"), turn(), TURN]),
        (is_image, [NULL, TEXT, BYTES, pa.struct([("bytes", BYTES)]), pa.struct([("path", TEXT), ("x", TEXT)]),
                    pa.list_(BYTES), pa.list_(pa.struct([("bytes", BYTES)])), pa.list_(pa.list_(NULL))],
         [NUMBER, pa.struct([("url", TEXT)]), pa.list_(NUMBER), pa.map_(TEXT, BYTES)]),
        (is_text_or_turns, [NULL, TEXT, pa.list_(NULL), turn("role", "content")],
         [BYTES, pa.list_(TEXT), turn("role")]),
        (is_text_or_list, [NULL, TEXT, pa.list_(TEXT), pa.list_(NUMBER)], [BYTES, NUMBER, TURN]),
    ],
    ids=["text", "scalar", "turns", "image", "text or turns", "text or list"],
)  # fmt: skip
def test_what_could_hold_a_value_fits_and_a_column_of_nulls_fits_everything(
    test: Any, fitting: list[pa.DataType], others: list[pa.DataType]
) -> None:
    assert [kind for kind in fitting if not test(kind)] == []
    assert [kind for kind in others if test(kind)] == []


@pytest.mark.parametrize("role", ["messages", "conversations", "images", "image", "prompt", "completion", "sample_id",
                                  "id", "caption", "text", "system", "instruction", "input", "output", "query",
                                  "response", "template_inputs", "tools"])  # fmt: skip
def test_every_role_judges_its_column_and_a_role_that_is_unknown_none(role: str) -> None:
    validate_type("mine", pa.null(), Path("a.parquet"), role)
    validate_type("mine", pa.map_(TEXT, NUMBER), Path("a.parquet"), "score")
    with pytest.raises(ConfigError, match=r"a\.parquet: column 'mine' has type map<.*>, expected "):
        validate_type("mine", pa.map_(TEXT, NUMBER), Path("a.parquet"), role)


def test_turns_as_json_text_are_refused_with_the_way_to_parse_them_and_other_types_without() -> None:
    for role in ("messages", "conversations"):
        for kind in (pa.large_string(), pa.json_()):
            with pytest.raises(ConfigError, match=r"\(JSON text\? Parse it before"):
                validate_type("mine", kind, Path("a.parquet"), role)
    for kind, role in ((NUMBER, "messages"), (BYTES, "caption")):
        with pytest.raises(ConfigError) as refused:
            validate_type("mine", kind, Path("a.parquet"), role)
        assert "JSON text" not in str(refused.value)
