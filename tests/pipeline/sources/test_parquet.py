import datetime
import decimal
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cal_pipeline.sources.formats import RowRange
from cal_pipeline.sources.parquet import embedded_image_bytes, find_columns, pass_through_fields, plan_file, read_rows
from cal_schemas.annotated import AnnotatedRow, annotated_schema, rows_to_table
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.sample import ImageRef, Sample, Turn, sample_key
from cal_schemas.writer import ShardWriter
from examples_of import shard_metadata

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
CHAT = [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A cat."}]
TURNS = (Turn(role="user", content="<image>\nWhat?"), Turn(role="assistant", content="A cat."))


def write(path: Path, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), path, **options)
    return path


def samples(path: Path, start: int = 0, stop: int = 10**9) -> list[Sample]:
    return list(read_rows(path, RowRange(row_start=start, row_stop=stop), "s"))


def text_with(*values: bytes) -> pa.Array:
    """A string array of bytes that nobody has checked, as some writers leave it."""
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.Array.from_buffers(
        pa.string(), len(values), [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(values))]
    )


@pytest.mark.parametrize("name", ["image", "images"])
@pytest.mark.parametrize(
    ("column", "refs"),
    [
        (pa.array([{"bytes": b"png", "path": "a.png"}], IMAGE), [ImageRef(data=b"png", path="a.png")]),
        (pa.array([{"bytes": None, "path": "a.png"}], IMAGE), [ImageRef(path="a.png")]),
        (pa.array([[{"bytes": b"1", "path": None}, {"bytes": b"2", "path": None}]], pa.list_(IMAGE)),
         [ImageRef(data=b"1"), ImageRef(data=b"2")]),
        (pa.array([b"png"]), [ImageRef(data=b"png")]),
        (pa.array([b"png"], pa.large_binary()), [ImageRef(data=b"png")]),
        (pa.array([[b"1", b"2"]]), [ImageRef(data=b"1"), ImageRef(data=b"2")]),
        (pa.array(["a.png"]), [ImageRef(path="a.png")]),
        (pa.array([["a.png", "b.png"]]), [ImageRef(path="a.png"), ImageRef(path="b.png")]),
        (pa.array([None], IMAGE), []),
        (pa.array([None], pa.list_(IMAGE)), []),
        (pa.array([[]], pa.list_(IMAGE)), []),
    ],
)  # fmt: skip
def test_every_way_to_store_images_gives_the_same_refs(
    tmp_path: Path, name: str, column: pa.Array, refs: list[ImageRef]
) -> None:
    path = write(tmp_path / "a.parquet", {name: column, "messages": [CHAT]})
    assert samples(path) == [Sample(sample_id="s/0", images=tuple(refs), messages=TURNS)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("messages", CHAT),
        ("conversations", [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]),
        ("messages", [
            {"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]},
            {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        ]),
    ],
)  # fmt: skip
def test_every_way_to_store_turns_gives_the_same_turns(tmp_path: Path, name: str, value: Any) -> None:
    assert samples(write(tmp_path / "a.parquet", {name: [value]}))[0].messages == TURNS


@pytest.mark.parametrize("name", ["text", "caption"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view()])
def test_a_caption_is_the_answer_and_a_null_one_a_problem(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    path = write(tmp_path / "a.parquet", {"image": ["a.png", "b.png"], name: pa.array(["A cat.", None], kind)})
    first, second = samples(path)
    assert first.messages == (Turn(role="user", content="<image>"), Turn(role="assistant", content="A cat."))
    assert second.problem == (
        "no conversation: neither messages, conversations, text nor caption is set, nor a question with its answer"
    )


@pytest.mark.parametrize(("column", "ids"), [("sample_id", ["x", "x"]), ("id", ["7", "s/1"]), (None, ["s/0", "s/1"])])
def test_ids_are_the_sources_or_shard_and_row(tmp_path: Path, column: str | None, ids: list[str]) -> None:
    given_ids = {"sample_id": ["x", "x"], "id": [7, None]}
    own = {} if column is None else {column: given_ids[column]}
    assert [s.sample_id for s in samples(write(tmp_path / "a.parquet", {**own, "text": ["a", "b"]}))] == ids


def test_columns_have_one_role_each_and_the_rest_passes_through_with_a_prefix_on_a_clash(tmp_path: Path) -> None:
    names = ["sample_id", "id", "images", "image", "messages", "conversations", "text", "status", "score"]
    turns = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    columns = find_columns(
        pa.schema([(name, turns if name in ("messages", "conversations") else pa.string()) for name in names]), tmp_path
    )
    assert columns.read == ("sample_id", "id", "images", "image", "messages", "conversations", "text")
    assert columns.pass_through == {"id": "id", "text": "text", "status": "source_status", "score": "score"}


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("messages", [["hello"]], r"expected a list of turns, which need a role \(role or from\) and words"),
        ("conversations", [[{"speaker": "x", "value": "y"}]], "which need a role"),
        ("image", [7], "column 'image' has type int64, expected a path, bytes"),
        ("images", [[{"url": "http://x/y.png"}]], "column 'images' has type list.*, expected a path, bytes"),
        ("text", [["a"]], "expected a string"),
    ],
)
def test_a_column_that_no_row_could_use_is_refused_by_its_type(
    tmp_path: Path, column: str, values: list[Any], message: str
) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"], **{column: values}})
    with pytest.raises(ConfigError, match=message):
        find_columns(pq.read_schema(path), path)


TENSOR = pa.ExtensionArray.from_storage(
    pa.fixed_shape_tensor(pa.float32(), (2,)), pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2))
)
UUID = pa.array([bytes(range(16))], pa.uuid())
CARRIED = {
    "status": pa.array([3], pa.int8()),
    "uint64": pa.array([2**64 - 1], pa.uint64()),
    "float16": pa.array([np.float16(1.5)], pa.float16()),
    "decimal": pa.array([decimal.Decimal("1.23")], pa.decimal128(5, 2)),
    "date": pa.array([datetime.date(2024, 1, 2)]),
    "nanoseconds": pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")),
    "zone": pa.array([5], pa.timestamp("ms", tz="Europe/Berlin")),
    "duration": pa.array([5], pa.duration("us")),
    "category": pa.array(["x"]).dictionary_encode(),
    "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    "fixed": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
    "large": pa.array(["x"], pa.large_string()),
    "struct": pa.array([{"a": [1.5, None], "b": b"\xff"}]),
    "nothing": pa.array([None], pa.null()),
    "missing": pa.array([None], pa.float32()),
    "null in a struct": pa.array([{"license": None}]),
    "nulls in a list": pa.array([[None, None]]),
    "null in depth": pa.array([{"a": [{"b": None}, None], "c": 1}]),
    "null in a map": pa.array([[("k", None)]], pa.map_(pa.string(), pa.null())),
    "nulls in a fixed list": pa.array([[None, None]], pa.list_(pa.null(), 2)),
    "tensor": TENSOR,
    "tensors": pa.ListArray.from_arrays([0, 1], TENSOR),
    "uuids": pa.ListArray.from_arrays([0, 1], UUID),
    "json": pa.array(['{"a": 1}'], pa.json_()),
    "opaque": pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "a", "b"), pa.array(["x"])),
    "text view": pa.array(["x"], pa.string_view()),
    "list view": pa.array([[1]], pa.list_view(pa.int64())),
    "categories": pa.array([["x"]], pa.list_(pa.dictionary(pa.int32(), pa.string()))),
    "missing tensor": pa.nulls(1, TENSOR.type),
}


@pytest.mark.parametrize("name", CARRIED)
def test_a_pass_through_column_comes_out_with_its_type_and_values(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"], name: CARRIED[name]})
    output = "source_status" if name == "status" else name
    fields = [*pass_through_fields(path).values()]
    assert [(field.name, field.type) for field in fields] == [(output, CARRIED[name].type)]
    (sample,) = samples(path)
    schema = annotated_schema(carry="paths", pass_through=fields)
    with ShardWriter(tmp_path / "out.parquet", schema, shard_metadata(carry="paths")) as writer:
        writer.write(AnnotatedRow(sample=sample, sample_key=sample_key(sample), status="too_long"))
    out = pq.read_table(tmp_path / "out.parquet")[output]
    assert out.type == CARRIED[name].type
    assert out.combine_chunks().equals(CARRIED[name])
    # What a resume compares: the footer gives back the very schema that was planned.
    assert pq.read_schema(tmp_path / "out.parquet").equals(schema)


TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
CATEGORY = pa.dictionary(pa.int32(), pa.string())
READ = {
    "messages": [
        pa.list_(TURN), pa.large_list(TURN), pa.list_(TURN, 2), pa.list_view(TURN), pa.large_list_view(TURN),
        pa.list_(pa.struct([("role", CATEGORY), ("content", pa.large_string())])),
        pa.list_(pa.struct([("role", pa.string_view()), ("content", pa.string_view())])),
    ],
    "caption": [pa.string(), pa.large_string(), pa.string_view(), CATEGORY],
    "images": [
        pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4), pa.dictionary(pa.int32(), pa.binary()),
        *(make(pa.binary()) for make in (pa.list_, pa.large_list, pa.list_view, lambda item: pa.list_(item, 1))),
        pa.list_(pa.dictionary(pa.int32(), pa.binary())), IMAGE, pa.large_list(IMAGE), pa.list_view(IMAGE),
    ],
    "id": [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary(4), CATEGORY],
    "system": [pa.string(), pa.large_string(), pa.string_view(), CATEGORY],
    "tools": [pa.string(), pa.large_string(), pa.json_(), pa.list_(pa.struct([("name", pa.string())])),
              pa.large_list_view(pa.struct([("name", pa.large_string())]))],
}  # fmt: skip
READ_VALUES = {"messages": CHAT, "caption": "A cat.", "images": b"png!", "id": "abcd", "system": "Be brief.",
               "tools": [{"name": "look"}]}  # fmt: skip


def as_type(value: Any, kind: pa.DataType) -> pa.Array:
    """One value as an array of this type, as its writers spell it."""
    if isinstance(value, list) and (pa.types.is_string(kind) or not pa.types.is_nested(kind)):
        value = json.dumps(value)
    if isinstance(value, bytes) and pa.types.is_struct(getattr(kind, "value_type", kind)):
        value = {"bytes": value, "path": None}
    if isinstance(value, bytes | dict) and hasattr(kind, "value_type") and not pa.types.is_dictionary(kind):
        value = [value]
    if isinstance(value, str) and any("binary" in str(item) for item in (kind,)):
        value = value.encode()
    if pa.types.is_dictionary(kind):
        return pa.array([value], kind.value_type).dictionary_encode()
    return pa.array([value], kind)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in READ.items() for kind in kinds], ids=lambda item: str(item)
)
def test_a_column_is_read_whatever_way_arrow_keeps_its_values(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    values = READ_VALUES if name != "caption" else {key: READ_VALUES[key] for key in ("id", "images", "caption")}
    values = {key: value for key, value in values.items() if key != "caption" or name == "caption"}
    table = {key: as_type(value, kind if key == name else READ[key][0]) for key, value in values.items()}
    (sample,) = samples(write(tmp_path / "a.parquet", table))
    (plain,) = samples(
        write(tmp_path / "b.parquet", {key: as_type(value, READ[key][0]) for key, value in values.items()})
    )
    assert (sample.sample_id, sample.images, sample.messages, sample.tools, sample.problem) == (
        "abcd", (ImageRef(data=b"png!"),), plain.messages, plain.tools, None,
    )  # fmt: skip
    assert sample.messages is not None
    # Beside text that is no UTF-8 all columns are read another way.
    (beside,) = samples(write(tmp_path / "c.parquet", {**table, "remark": text_with(b"\xff")}))
    assert beside.pass_through["remark"] == "\ufffd"
    assert (beside.sample_id, beside.images, beside.messages, beside.tools, beside.note) == (
        "abcd", sample.images, sample.messages, sample.tools, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("column", "values", "kind"),
    [
        *(("caption", ["a"], make(pa.string()))
          for make in (pa.list_, pa.large_list, pa.list_view, lambda item: pa.list_(item, 1))),
        *(("messages", "[]", kind)
          for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.json_(), CATEGORY)),
        ("messages", [["hello"]], pa.large_list(pa.large_list(pa.string()))),
        ("caption", 1, pa.dictionary(pa.int32(), pa.int64())),
        ("id", ["a"], pa.list_(pa.string())), ("id", {"a": 1}, pa.struct([("a", pa.int64())])),
        ("image", 7, pa.int64()), ("image", [[1.0]], pa.list_(pa.list_(pa.float32()))),
        ("system", ["a"], pa.list_(pa.string())), ("tools", 3, pa.int64()), ("input", 3, pa.int64()),
    ],
)  # fmt: skip
def test_a_type_that_no_row_can_be_read_from_is_refused_at_planning_by_its_column(
    tmp_path: Path, column: str, values: Any, kind: pa.DataType
) -> None:
    array = (
        pa.array([values], kind.value_type).dictionary_encode()
        if pa.types.is_dictionary(kind)
        else pa.array([values], kind)
    )
    table = (
        {column: array} if column in ("caption", "messages") else {"instruction": ["Q"], "output": ["A"], column: array}
    )
    # Not through a file: Parquet keeps some of these types as others.
    with pytest.raises(ConfigError, match=f"a.parquet: column '{column}' has type .*, expected "):
        find_columns(pa.table(table).schema, tmp_path / "a.parquet")


def test_rows_of_one_file_may_spell_their_columns_differently(tmp_path: Path) -> None:
    other = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    table = pa.table({
        "image": pa.array([b"1", None, None, b"1"]),
        "images": pa.array([None, [b"2"], None, [b"2"]], pa.list_(pa.binary())),
        "messages": pa.array([CHAT, None, None, CHAT], pa.list_(TURN)),
        "conversations": [None, other, None, None],
        "text": [None, "rendered", "A dog.", None],
    })  # fmt: skip
    first, second, third, fourth = samples(write(tmp_path / "a.parquet", table))
    assert (first.images, first.messages) == ((ImageRef(data=b"1"),), TURNS)
    assert (second.images, second.messages) == ((ImageRef(data=b"2"),), TURNS)
    assert third.messages == (Turn(role="user", content=""), Turn(role="assistant", content="A dog."))
    assert fourth.problem == "the row has other images in 'images' than in 'image': keep one of the two"
    assert second.pass_through == {"text": pa.array(["rendered"])}


def test_a_source_without_text_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"image": ["a"], "label": [1]})
    with pytest.raises(
        ConfigError, match=r"a\.parquet: columns \['image', 'label'\] hold no text; expected one of mes"
    ):
        find_columns(pq.read_schema(path), path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"messages": ["[]"]}, "column 'messages' has type string, expected a list of turns"),
        ({"text": [1]}, "column 'text' has type int64, expected a string"),
    ],
)
def test_a_text_column_of_another_type_is_refused(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(ConfigError, match=message):
        find_columns(pq.read_schema(path), path)


@given(rows=st.integers(0, 150), group=st.integers(1, 70), bounds=st.tuples(st.integers(0, 150), st.integers(0, 150)))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_row_range_is_read_exactly_across_batches_and_row_groups(
    tmp_path: Path, rows: int, group: int, bounds: tuple[int, int]
) -> None:
    path = write(tmp_path / "a.parquet", {"text": pa.array([f"t{n}" for n in range(rows)], pa.string())},
                 row_group_size=group)  # fmt: skip
    start, stop = min(bounds), max(bounds)
    chosen = samples(path, start, stop)
    expected = range(min(start, rows), min(stop, rows))
    assert [sample.sample_id for sample in chosen] == [f"s/{n}" for n in expected]
    assert [sample.messages[1].content for sample in chosen if sample.messages] == [f"t{n}" for n in expected]


def test_a_file_of_no_rows_has_no_samples(tmp_path: Path) -> None:
    assert samples(write(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})) == []


def test_a_corrupt_page_is_a_shard_error_that_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": [f"{n:09d}" for n in range(5000)]}, compression="zstd")
    data = bytearray(path.read_bytes())
    data[200:1200] = bytes(1000)
    path.write_bytes(data)
    with pytest.raises(ShardError, match=r"a\.parquet: corrupt Parquet file: "):
        samples(path)


def test_text_that_is_no_utf8_gets_a_replacement_character_and_a_note(tmp_path: Path) -> None:
    chat = pa.ListArray.from_arrays(
        [0, 1, 2],
        pa.StructArray.from_arrays([pa.array(["user", "user"]), text_with(b"fine", b"a\xffb")], ["role", "content"]),
    )
    extra = text_with(b"c\xff", "é".encode())
    number = pa.array([b"1" * 16, None], pa.uuid())  # Which has no way back from Python's values.
    table = pa.table({"messages": chat, "image": [b"\xff\xd8", None], "extra": extra, "number": number})
    first, second = samples(write(tmp_path / "a.parquet", table))
    assert first.messages == (Turn(role="user", content="fine"),)
    assert (first.images, first.note) == ((ImageRef(data=b"\xff\xd8"),), None)
    assert first.pass_through == {"extra": "c\ufffd", "number": number[:1]}
    assert second.messages == (Turn(role="user", content="a\ufffdb"),)
    assert second.note == "characters that are not UTF-8 were replaced by U+FFFD in: turn 0"
    assert second.pass_through == {"extra": "é", "number": number[1:]}


TEXTS = pa.map_(pa.string(), pa.string())


@pytest.mark.parametrize("note", [pa.array(["fine"]), text_with(b"\xff")], ids=["text", "no UTF-8"])
def test_a_map_is_an_object(tmp_path: Path, note: pa.Array) -> None:
    turn = pa.struct([("role", pa.string()), ("content", pa.string()),
                      ("tool_calls", pa.list_(pa.struct([("name", pa.string()), ("arguments", TEXTS)])))])  # fmt: skip
    call = {"name": "look", "arguments": [("at", "1")]}
    chat = [CHAT[0], {"role": "assistant", "content": "", "tool_calls": [call]}]
    path = write(tmp_path / "a.parquet", {
        "messages": pa.array([chat], pa.list_(turn)), "tools": pa.array([[[("name", "look")]]], pa.list_(TEXTS)),
        "other": pa.array([[("a", "b")]], TEXTS), "note": note,
    })  # fmt: skip
    (sample,) = samples(path)
    assert sample.messages is not None
    called = {"type": "function", "function": {"name": "look", "arguments": {"at": "1"}}}
    assert sample.messages[1].extra == {"tool_calls": [called]}
    assert sample.tools == [{"name": "look"}]
    schema = annotated_schema(carry="paths", pass_through=list(pass_through_fields(path).values()))
    row = AnnotatedRow(sample=sample, sample_key=sample_key(sample), status="encode_error", error="no")
    assert rows_to_table([row], schema, "paths").column("other").to_pylist() == [[("a", "b")]]


def test_a_value_that_python_cannot_hold_fails_the_file_and_not_the_worker(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"messages": [CHAT], "id": pa.array([10**18], pa.timestamp("us"))})
    with pytest.raises(ShardError, match="cannot be read"):
        samples(path)


def test_a_footer_whose_names_are_no_utf_8_is_a_shard_error_that_names_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["a"], "other": [1]}, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"other", b"oth\xf9r"))
    with pytest.raises(ShardError, match=r"a\.parquet: not a readable Parquet file"):
        plan_file(path, 100)


def test_only_columns_with_a_value_are_listed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", {"messages": [CHAT, CHAT], "a": pa.nulls(2), "b": [None, "x"], "c": [1, 2]})
    assert [sample.unread for sample in samples(path)] == [("c",), ("b", "c")]


def test_embedded_image_bytes_counts_the_image_column_alone(tmp_path: Path) -> None:
    encoded = np.random.default_rng(0).bytes(100_000)
    images = pa.array([[{"bytes": encoded, "path": "a"}]], pa.list_(IMAGE))
    path = write(tmp_path / "a.parquet", {"images": images, "text": ["a" * 50_000], "thumbnail": [encoded]})
    assert 100_000 < embedded_image_bytes(path) < 101_000
    assert embedded_image_bytes(write(tmp_path / "b.parquet", {"text": ["a"]})) == 0
