import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cal_pipeline.inspect.tables.samples import small_jpeg
from cal_pipeline.output.resume import kept_rows
from cal_schemas.annotated import (
    AnnotatedRow,
    MeasuredSample,
    annotated_schema,
    measured_from_columns,
    rows_from_batch,
    sample_columns,
    sample_from_columns,
)
from cal_schemas.errors import STATUSES, ConfigError, FormatError, SeveralReferencesError
from cal_schemas.metadata import read_shard_metadata
from cal_schemas.opened import open_annotated
from cal_schemas.sample import ImageRef, Sample, Turn, sample_key
from cal_schemas.writer import ShardWriter
from examples_of import MEASURED, conversation, measurement_spec, shard_metadata
from tiny_models import sample_image

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
FINITE = st.floats(allow_infinity=False, allow_nan=True, width=32)


@st.composite
def rows(draw: st.DrawFn) -> AnnotatedRow:
    images = draw(
        st.lists(st.builds(ImageRef, data=st.none() | st.binary(max_size=30), path=st.none() | TEXT), max_size=3)
    )
    messages = draw(st.none() | st.lists(st.builds(Turn, role=TEXT, content=TEXT), max_size=3))
    sample = Sample(
        sample_id=draw(TEXT),
        images=tuple(images),
        messages=None if messages is None else tuple(messages),
        pass_through={"extra": draw(st.none() | st.lists(st.integers(-5, 5), max_size=3))},
    )
    count = draw(st.integers(0, 5))
    status = "ok" if count else draw(st.sampled_from(STATUSES[1:]))
    measured = MeasuredSample(
        label_ids=np.array(draw(st.lists(st.integers(0, 2**31 - 1), min_size=count, max_size=count)), np.int32),
        label_positions=np.arange(count, dtype=np.int32),
        delta_logits=np.array(draw(st.lists(FINITE, min_size=count, max_size=count)), np.float32),
        logits_with_image=np.zeros(count, np.float32),
        logits_without_image=np.ones(count, np.float32),
    )
    return AnnotatedRow(
        sample=sample,
        sample_key=sample_key(sample),
        status=status,
        error=draw(st.none() | TEXT),
        measured=measured if count else None,
        num_tokens=draw(st.none() | st.integers(0, 9999)),
    )


EMPTY = ("label_ids", "label_positions", "delta_logits", "logits_with_image", "logits_without_image")
NOT_OK = {"status": "encode_error", "measured": None}


def simple_row(**changed: object) -> AnnotatedRow:
    sample = conversation("<image>\nWhat?", "A cat.", images=(ImageRef(data=b"png", path="a.png"),))
    values = {
        "sample": sample,
        "sample_key": sample_key(sample),
        "measured": MEASURED,
        "num_tokens": 6,
    }
    return AnnotatedRow(**{**values, **changed})  # type: ignore[arg-type]


def write(path: Path, *written: AnnotatedRow, schema: pa.Schema | None = None, **metadata: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path, schema or annotated_schema(carry="images"), shard_metadata(**metadata)) as writer:
        for row in written:
            writer.write(row)
    return path


@given(st.lists(rows(), max_size=6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_reading_back_equals_what_was_written(tmp_path: Path, written: list[AnnotatedRow]) -> None:
    schema = annotated_schema(
        carry="images", extra_columns=("logits",), pass_through=[pa.field("extra", pa.list_(pa.int64()))]
    )
    path = write(tmp_path / "a.parquet", *written, schema=schema)
    read = pq.read_table(path).to_pylist()
    assert len(read) == len(written)
    for value, row in zip(read, written, strict=True):
        sample = row.sample
        assert (value["sample_id"], value["status"], value["error"], value["num_tokens"]) == (
            sample.sample_id, row.status, row.error, row.num_tokens,
        )  # fmt: skip
        assert value["images"] == [{"bytes": image.data, "path": image.path} for image in sample.images]
        assert value["messages"] == (
            None if sample.messages is None else [{"role": t.role, "content": t.content} for t in sample.messages]
        )
        assert value["extra"] == sample.pass_through["extra"]
        if row.measured is None:
            assert [value[name] for name in EMPTY] == [[]] * len(EMPTY)
            continue
        assert value["label_ids"] == row.measured.label_ids.tolist()
        assert value["label_positions"] == row.measured.label_positions.tolist()
        np.testing.assert_array_equal(np.array(value["delta_logits"], np.float32), row.measured.delta_logits)
        assert value["logits_without_image"] == [1.0] * len(row.measured.label_ids)
    assert open_annotated(tmp_path).num_rows == len(written)


def test_what_a_template_gets_beside_the_words_is_read_back(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": {"at": "left"}}}
    turns = (
        Turn(role="user", content="Where?"),
        Turn(
            role="assistant",
            content="a",
            supervised=False,
            extra={"reasoning_content": "hm \u00e9", "tool_calls": [call]},
        ),
        Turn(role="user", content="And?"),
        Turn(role="assistant", content="b"),
    )
    samples = [
        conversation("plain", "p"),
        Sample(sample_id="s", images=(), messages=turns, tools=[call["function"]]),
        Sample(sample_id="t", images=(), messages=turns[2:], tools=[]),
        Sample(sample_id="broken", images=(), messages=None, problem="malformed"),
    ]
    written = [
        simple_row(sample=sample, sample_key=sample_key(sample), **({} if sample.messages else NOT_OK))
        for sample in samples
    ]
    path = write(tmp_path / "a.parquet", *written)
    table = pq.read_table(path)
    assert [value is None for value in table["template_inputs"].to_pylist()] == [True, False, False, True]
    expected = [replace(sample, problem=None) for sample in samples]
    assert [sample_from_columns(row) for row in table.to_pylist()] == expected
    kept = [row for row in kept_rows(path, frozenset({"none"})) if row is not None]
    assert [row.sample for row in kept] == expected
    assert [sample_key(row.sample) for row in kept[:3]] == [row.sample_key for row in written[:3]]
    again = write(tmp_path / "again" / "a.parquet", *kept)
    assert pq.read_table(again)["template_inputs"].equals(table["template_inputs"])


def test_columns_that_were_not_read_leave_a_row_without_them(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", simple_row(), simple_row(**NOT_OK, error="no"))
    names = ["sample_id", "sample_key", "status", "label_ids", "label_positions", "delta_logits"]
    (batch,) = pq.read_table(path, columns=names).to_batches()
    first, second = rows_from_batch(batch)
    assert (first.sample.messages, first.sample.images, first.error, first.num_tokens) == (None, (), None, None)
    assert first.measured is not None
    np.testing.assert_array_equal(first.measured.delta_logits, MEASURED.delta_logits)
    assert len(first.measured.logits_with_image) == 0
    assert second.measured is None
    measured = measured_from_columns({"label_ids": [7, 8], "delta_logits": [1.5, None]})
    assert measured is not None
    assert (measured.label_ids.dtype, measured.label_ids.tolist()) == (np.int32, [7, 8])
    assert (len(measured.label_positions), bool(np.isnan(measured.delta_logits[1]))) == (0, True)
    assert measured_from_columns({"label_ids": []}) is measured_from_columns({}) is None


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("label_positions", [[4]], "2 label_ids and 1 label_positions"),
        ("delta_logits", [[1.0, float("inf")]], "infinity in delta_logits"),
        ("status", ["too_long"], "status 'too_long' and 2 label_ids"),
        ("label_ids", [[]], "status 'ok' and 0 label_ids"),
    ],
)
def test_a_row_that_no_row_may_be_is_refused_on_reading(
    tmp_path: Path, column: str, values: list[object], problem: str
) -> None:
    table = pq.read_table(write(tmp_path / "a.parquet", simple_row()))
    place = table.schema.get_field_index(column)
    changed = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
    (batch,) = changed.to_batches()
    with pytest.raises(FormatError, match=rf"row 's' has {problem}: cal-precompute --verify"):
        list(rows_from_batch(batch))


def test_a_sample_in_columns_is_read_back_and_its_bytes_are_embedded_only_where_asked() -> None:
    sample = simple_row().sample
    assert sample_from_columns(sample_columns(sample, embed=True)) == sample
    bare = replace(sample, images=(ImageRef(path="a.png"),))
    assert sample_from_columns(sample_columns(sample, embed=False)) == bare


def test_a_file_from_before_template_inputs_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", simple_row())
    old = pq.read_table(path).drop_columns(["template_inputs"])
    pq.write_table(old, path)
    assert open_annotated(tmp_path).num_rows == 1
    (row,) = kept_rows(path, frozenset())
    assert row is not None
    assert row.sample == simple_row().sample
    write(tmp_path / "new.parquet", row)
    assert pq.read_table(tmp_path / "new.parquet")["template_inputs"].to_pylist() == [None]


def test_metadata_read_back_equals_what_was_written(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", simple_row())
    assert read_shard_metadata(path) == shard_metadata()


def test_undefined_delta_is_a_null_element_and_no_nan_is_in_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", simple_row())
    deltas = pq.read_table(path)["delta_logits"].combine_chunks()
    assert deltas.to_pylist() == [[1.5, None]]
    assert not np.isnan(deltas.flatten().drop_null().to_numpy()).any()


def test_infinity_and_unequal_lengths_never_reach_the_writer() -> None:
    with pytest.raises(AssertionError):
        simple_row(measured=replace(MEASURED, delta_logits=np.array([1.0, np.inf], np.float32)))
    with pytest.raises(AssertionError):
        simple_row(measured=replace(MEASURED, label_ids=np.array([7], np.int32)))
    with pytest.raises(AssertionError):
        simple_row(measured=replace(MEASURED, label_positions=np.array([], np.int32)))


def test_carry_paths_leaves_the_bytes_out_and_carry_none_the_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", simple_row(), schema=annotated_schema(carry="paths"), carry="paths")
    assert pq.read_table(path)["images"].to_pylist() == [[{"bytes": None, "path": "a.png"}]]
    path = write(tmp_path / "b.parquet", simple_row(), schema=annotated_schema(carry="none"), carry="none")
    assert not {"images", "messages"} & set(pq.read_schema(path).names)
    assert pq.read_table(path)["sample_key"].to_pylist() == [sample_key(simple_row().sample)]


def test_row_groups_hold_at_most_64_mib_of_images(tmp_path: Path) -> None:
    image = ImageRef(data=bytes(30 * 2**20))
    big = simple_row(sample=conversation("<image>", "a", images=(image,)))
    path = write(tmp_path / "a.parquet", *[big] * 5)
    footer = pq.read_metadata(path)
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [2, 2, 1]


def test_floats_are_byte_split_and_ints_are_delta_packed(tmp_path: Path) -> None:
    group = pq.read_metadata(write(tmp_path / "a.parquet", simple_row())).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert "BYTE_STREAM_SPLIT" in columns["delta_logits.list.element"].encodings
    assert "DELTA_BINARY_PACKED" in columns["label_ids.list.element"].encodings
    assert "RLE_DICTIONARY" in columns["status"].encodings
    assert {column.compression for column in columns.values()} == {"ZSTD"}


def test_another_format_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", simple_row(), format_version=7)
    with pytest.raises(FormatError, match=r"a\.parquet: annotated-shard format 7, this version reads 1"):
        open_annotated(path)


@pytest.mark.parametrize(
    ("key", "value"), [("format_version", "x"), ("shard", "{}"), ("shard", "["), ("measurement_spec", "{}")]
)
def test_broken_metadata_is_a_format_error(tmp_path: Path, key: str, value: str) -> None:
    table = pq.read_table(write(tmp_path / "a.parquet", simple_row()))
    changed = {**table.schema.metadata, f"cal.{key}".encode(): value.encode()}
    pq.write_table(table.replace_schema_metadata(changed), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=r"a\.parquet"):
        open_annotated(tmp_path)


def test_a_later_version_may_say_more_about_the_source(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "a.parquet", simple_row()))
    shard = json.loads(table.schema.metadata[b"cal.shard"])
    shard["source"]["version_id"], shard["new"] = "x", 1
    changed = {**table.schema.metadata, b"cal.shard": json.dumps(shard).encode()}
    pq.write_table(table.replace_schema_metadata(changed), tmp_path / "a.parquet")
    assert read_shard_metadata(tmp_path / "a.parquet") == shard_metadata()


def test_shards_of_different_measurements_are_refused_with_both_values(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", simple_row())
    write(tmp_path / "b.parquet", simple_row(), spec=measurement_spec(dtype="bfloat16", weights_digest="z"))
    with pytest.raises(FormatError) as error:
        open_annotated(tmp_path)
    assert "dtype is 'float32' in" in str(error.value)
    assert "'bfloat16' in" in str(error.value)
    assert "weights_digest is 'w' in" in str(error.value)


def test_shards_with_other_columns_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", simple_row())
    write(tmp_path / "b.parquet", simple_row(), schema=annotated_schema(carry="none"), carry="none")
    with pytest.raises(FormatError, match=r"b\.parquet has other columns than .*messages \(none and") as error:
        open_annotated(tmp_path)
    assert "label_ids" not in str(error.value)


def test_differing_library_versions_only_warn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.parquet", simple_row())
    write(tmp_path / "b.parquet", simple_row(), library_versions={"torch": "3"})
    assert open_annotated(tmp_path).num_rows == 2
    assert "'torch': '3'" in caplog.text


@pytest.mark.parametrize("content", ["nothing", "text", "foreign"])
def test_what_is_no_annotated_shard_is_refused_by_name(tmp_path: Path, content: str) -> None:
    if content == "text":
        (tmp_path / "a.parquet").write_text("hello")
    if content == "foreign":
        pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    with pytest.raises(FormatError, match=str(tmp_path)):
        open_annotated(tmp_path)


def test_pandas_pyarrow_and_datasets_read_a_directory_with_a_run_in_progress(tmp_path: Path) -> None:
    out = tmp_path / "out"
    image = ImageRef(data=small_jpeg(sample_image(0), 8), path="a.png")
    seen = simple_row(sample=conversation("<image>\nWhat?", "A cat.", images=(image,)))
    write(out / "a.parquet", seen)
    write(out / "sub" / "b.parquet", seen)
    for name in ("staging/c.parquet.x", "reports/run.json", "driver.json", "logs/w.log"):
        (out / ".cal" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / ".cal" / name).write_text("half")
    assert len(pd.read_parquet(out)) == 2
    assert pyarrow.dataset.dataset(out, format="parquet").count_rows() == 2
    loaded = datasets.load_dataset("parquet", data_dir=str(out), cache_dir=str(tmp_path / "cache"))
    assert loaded["train"].num_rows == 2
    assert loaded["train"][0]["delta_logits"] == [1.5, None]


def test_a_carried_column_that_clashes_even_with_its_prefix_is_refused() -> None:
    with pytest.raises(ConfigError, match="source_status"):
        annotated_schema(carry="none", pass_through=[pa.field("source_status", pa.string())] * 2)


def test_shards_in_linked_folders_are_read_and_a_dangling_link_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "out" / "a.parquet", simple_row())
    write(tmp_path / "other_disk" / "b.parquet", simple_row())
    (tmp_path / "out" / "moved").symlink_to(tmp_path / "other_disk")
    (tmp_path / "other_disk" / "back").symlink_to(tmp_path / "out")
    assert open_annotated(tmp_path / "out").num_rows == 2
    (tmp_path / "out" / "gone.parquet").symlink_to(tmp_path / "nowhere.parquet")
    with pytest.raises(FormatError, match=r"gone\.parquet: not a readable Parquet file"):
        open_annotated(tmp_path / "out")


def test_batches_stream_rows_in_file_order(tmp_path: Path) -> None:
    for number, name in enumerate(("b.parquet", "a.parquet")):
        write(tmp_path / name, *[simple_row(num_tokens=number)] * 3)
    found = [n for batch in open_annotated(tmp_path).batches(["num_tokens"]) for n in batch["num_tokens"].to_pylist()]
    assert found == [1, 1, 1, 0, 0, 0]


def named_row(name: str, **changed: object) -> AnnotatedRow:
    """A row of a sample of its own; `x!` is a row of sample x that could not be measured."""
    sample = conversation("What?", name.rstrip("!"), sample_id=name)
    if name.endswith("!"):
        return AnnotatedRow(sample=sample, sample_key=sample_key(sample), status="image_error", error="gone")
    return simple_row(sample=sample, sample_key=sample_key(sample), **changed)


def test_a_cross_fit_opens_as_one_measurement_that_names_its_references(tmp_path: Path) -> None:
    for half in ("b", "a"):
        spec = measurement_spec(model_id=f"model-{half}", weights_digest=half)
        write(tmp_path / half / "x.parquet", named_row(half), spec=spec)
    halves = [tmp_path / "b", tmp_path / "a"]
    with pytest.raises(SeveralReferencesError, match="different measurements: model_id"):
        open_annotated(halves)
    opened = open_annotated(halves, crossfit=True)
    assert opened.num_rows == 2
    assert opened.spec.model_id == "cross-fit of model-a and model-b"
    assert opened.spec == open_annotated(halves[::-1], crossfit=True).spec
    assert opened.spec.weights_digest not in ("a", "b")
    assert open_annotated(halves[0], crossfit=True).spec == open_annotated(halves[0]).spec


def test_a_cross_fit_of_unequal_measurements_is_refused(tmp_path: Path) -> None:
    for name, fields in {"a": {}, "b": {"dtype": "bfloat16"}}.items():
        write(tmp_path / name / "x.parquet", named_row(name), spec=measurement_spec(**fields))
    with pytest.raises(FormatError, match="different measurements: dtype is 'float32'"):
        open_annotated([tmp_path / "a", tmp_path / "b"], crossfit=True)


@pytest.mark.parametrize(
    ("shards", "refused"),
    [
        ({"A": "x y", "B": "z"}, ""),
        (
            {"A": "x y", "B": "z y"},
            "'y', one of 1 such, was measured by tiny .weights A. in .*A.parquet and by tiny .weights B. in",
        ),
        ({"A": "x", "A2": "y", "B": "y"}, "'y', one of 1 such, .*A2.parquet and by .*B.parquet: in a cross-fit"),
        ({"A": "x x", "A2": "x", "B": "y"}, ""),  # A source may repeat a sample.
        ({"A": "x y!", "B": "y z"}, ""),  # Only one measured it.
        ({"A": "x", "A2": "x"}, ""),
    ],
)
def test_a_sample_that_two_references_measured_is_refused_whatever_its_files_are_called(
    tmp_path: Path, shards: dict[str, str], refused: str
) -> None:
    for name, samples in shards.items():
        source = replace(shard_metadata().source, uri=f"/data/{name}.json")
        spec = measurement_spec(weights_digest=name[0])
        write(tmp_path / f"{name}.parquet", *map(named_row, samples.split()), spec=spec, source=source)
    with pytest.raises(FormatError, match=refused) if refused else nullcontext():
        open_annotated(tmp_path, crossfit=True)


def test_a_file_that_is_named_twice_is_refused_and_a_copy_of_it_counts_as_more_rows(tmp_path: Path) -> None:
    shard = write(tmp_path / "a" / "x.parquet", simple_row())
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for paths in (
        [tmp_path / "a"] * 2,
        [tmp_path / "a", shard],
        [tmp_path, shard],
        [shard, shard],
        [shard, tmp_path / "link"],
    ):
        with pytest.raises(ConfigError, match=r"x\.parquet is named twice.*Name it once"):
            open_annotated(paths)
    write(tmp_path / "copy" / "x.parquet", simple_row())
    assert open_annotated([tmp_path / "a", tmp_path / "copy"]).num_rows == 2


def test_several_directories_of_one_measurement_open_as_one(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.parquet", simple_row())
    write(tmp_path / "b" / "x.parquet", simple_row(), simple_row())
    assert open_annotated([tmp_path / "b", tmp_path / "a"]).num_rows == 3
    write(tmp_path / "c" / "x.parquet", simple_row(), spec=measurement_spec(dtype="bfloat16"))
    with pytest.raises(FormatError, match="mixes shards of different measurements: dtype"):
        open_annotated([tmp_path / "a", tmp_path / "c"])
