"""What `datasets` makes of annotated shards: images are images, lists lists, and carried columns what they were."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import logging
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cal_pipeline.inspect.cli import run
from cal_pipeline.inspect.frames import load_annotated
from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.annotated import AnnotatedRow, MeasuredSample, annotated_schema
from cal_schemas.features import comparable
from cal_schemas.metadata import Carry, ShardMetadata
from cal_schemas.opened import open_annotated
from cal_schemas.sample import ImageRef, sample_key
from cal_schemas.writer import ShardWriter, parquet_writer
from examples_of import MEASURED, conversation, shard_metadata
from tiny_models import sample_image

IMAGES = datasets.List(datasets.Image())
STATUS = [("status", "==", "ok")]


@pytest.fixture(autouse=True)
def quiet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def encoded(seed: int) -> bytes:
    file = io.BytesIO()
    sample_image(seed, (20, 12)).save(file, "PNG")
    return file.getvalue()


def a_row(number: int, **changed: Any) -> AnnotatedRow:
    """With two images, one of them without a path, and deltas that no shorter float holds."""
    images = changed.pop("images", (ImageRef(data=encoded(number), path=f"{number}.png"), ImageRef(data=encoded(9))))
    sample = conversation("<image>\n<image>\nWhat?", f"A {number}.", sample_id=f"s{number}", images=images)
    deltas = np.array([number + 1 / 3, np.nan, -number - 1e-7], np.float32)
    measured = MeasuredSample(
        label_ids=np.array([5, 6, 7], np.int32), label_positions=np.array([1, 2, 3], np.int32), delta_logits=deltas
    )
    values: dict[str, Any] = {"sample": sample, "sample_key": sample_key(sample), "measured": measured}
    return AnnotatedRow(**{**values, **changed})


def write(path: Path, *rows: AnnotatedRow, carry: Carry = "images", schema: pa.Schema | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path, schema or annotated_schema(carry=carry), shard_metadata(carry=carry)) as writer:
        for row in rows:
            writer.write(row)
    return path


def write_old(path: Path, *rows: AnnotatedRow) -> Path:
    """As versions wrote it before these features: without them, and with images that may not be null."""
    table = pq.read_table(write(path, *rows))
    fields = [field.with_nullable(field.name != "images" and field.nullable) for field in table.schema]
    old = {name: value for name, value in table.schema.metadata.items() if name != b"huggingface"}
    with parquet_writer(path, schema := pa.schema(fields, old)) as writer:
        writer.write_table(pa.Table.from_arrays(table.columns, schema=schema))
    return path


def loaded(path: Path, *, streaming: bool, **options: Any) -> Any:
    kind = {"data_files": str(path)} if path.is_file() else {"data_dir": str(path)}
    return datasets.load_dataset("parquet", **kind, split="train", streaming=streaming, **options)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("carry", ["images", "embedded"])
def test_images_are_images_and_lists_lists_to_pixel_and_bit(tmp_path: Path, carry: Carry, streaming: bool) -> None:
    out = tmp_path / "annotated"
    write(out / "a.parquet", a_row(0), a_row(1), carry=carry)
    write(out / "below" / "b.parquet", a_row(2), carry=carry)
    (out / ".cal").mkdir()
    (out / ".cal" / "plan.json").write_text("[]")
    for data in (loaded(out, streaming=streaming), datasets.load_dataset(str(out), split="train", streaming=streaming)):
        assert data.features["images"] == IMAGES
        assert data.features["delta_logits"] == datasets.List(datasets.Value("float32"))
        rows = list(data)
        assert [row["sample_id"] for row in rows] == ["s0", "s1", "s2"]
        for number, row in enumerate(rows):
            assert all(isinstance(image, Image.Image) for image in row["images"])
            for image, seed in zip(row["images"], (number, 9), strict=True):
                np.testing.assert_array_equal(np.asarray(image), np.asarray(sample_image(seed, (20, 12))))
            expected = np.array([number + 1 / 3, 0, -number - 1e-7], np.float32)
            assert row["delta_logits"][1] is None
            np.testing.assert_array_equal(np.float32([row["delta_logits"][0], row["delta_logits"][2]]), expected[::2])
            assert (row["label_ids"], row["label_positions"]) == ([5, 6, 7], [1, 2, 3])
            assert row["messages"][1] == {"role": "assistant", "content": f"A {number}."}


def test_every_other_reader_has_bytes_and_numbers_as_before(tmp_path: Path) -> None:
    new, old = write(tmp_path / "new" / "a.parquet", a_row(0)), write_old(tmp_path / "old" / "a.parquet", a_row(0))
    assert pq.read_table(new, columns=["images"]).to_pylist() == pq.read_table(old, columns=["images"]).to_pylist()
    columns = ["sample_id", "images", "delta_logits"]
    assert str(pd.read_parquet(new, columns=columns)) == str(pd.read_parquet(old, columns=columns))
    assert pl.read_parquet(new, columns=columns).equals(pl.read_parquet(old, columns=columns))
    ask = "select sample_id, images[1].path, octet_length(images[1].bytes), delta_logits from '{}'"
    assert duckdb.sql(ask.format(new)).fetchall() == duckdb.sql(ask.format(old)).fetchall()
    assert duckdb.sql(ask.format(new)).fetchall()[0][1] == "0.png"


@pytest.mark.parametrize("streaming", [False, True])
def test_paths_stay_paths_and_become_images_below_their_folder(tmp_path: Path, streaming: bool) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "0.png").write_bytes(encoded(0))
    out = write(tmp_path / "annotated" / "a.parquet", a_row(0, images=(ImageRef(path="0.png"),)), carry="paths")
    data = loaded(out, streaming=streaming)
    assert next(iter(data))["images"] == [{"bytes": None, "path": "0.png"}]

    # As docs/data-format.md has it.
    def found(row: dict[str, Any]) -> dict[str, Any]:
        return {"images": [{"path": f"{tmp_path}/folder/{image['path']}", "bytes": None} for image in row["images"]]}

    data = data.map(found).cast(datasets.Features({**data.features, "images": IMAGES}))
    np.testing.assert_array_equal(np.asarray(next(iter(data))["images"][0]), np.asarray(sample_image(0, (20, 12))))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_row_whose_image_was_broken_is_left_out_by_its_status(tmp_path: Path, streaming: bool) -> None:
    gone = a_row(1, images=(ImageRef(path="gone.png"),), measured=None, status="image_error", error="gone")
    out = write(tmp_path / "a.parquet", a_row(0), gone, a_row(2))
    assert [row["sample_id"] for row in loaded(out, streaming=streaming, filters=STATUS)] == ["s0", "s2"]
    with pytest.raises(FileNotFoundError):
        list(loaded(out, streaming=streaming))


def test_old_shards_and_new_ones_are_one_data_set(tmp_path: Path) -> None:
    for first, second in ((write, write_old), (write_old, write)):
        out = tmp_path / first.__name__
        first(out / "a.parquet", a_row(0), a_row(1))
        second(out / "b.parquet", a_row(2), a_row(3))
        assert open_annotated(out).num_rows == 4
        assert load_annotated(out)["sample_id"].tolist() == ["s0", "s1", "s2", "s3"]
        assert len(pd.read_parquet(out)) == pyarrow.dataset.dataset(out).to_table().num_rows == 4
        assert pl.read_parquet(out / "*.parquet").height == loaded(out, streaming=False).num_rows == 4
        schemas = [pq.read_schema(out / name) for name in ("a.parquet", "b.parquet")]
        assert schemas[0] != schemas[1]
        assert comparable(schemas[0]).equals(comparable(schemas[1]))


def test_what_filter_writes_has_them_too_also_of_old_shards(tmp_path: Path) -> None:
    write_old(tmp_path / "in" / "a.parquet", a_row(0), a_row(1))
    write(tmp_path / "in" / "b.parquet", a_row(2), a_row(3))
    condition = "sample_id IN ('s1', 's2')"
    assert run(["filter", str(tmp_path / "in"), condition, "--output", str(tmp_path / "out")]) == 0
    data = datasets.load_dataset(str(tmp_path / "out"), split="train")
    assert data.features["images"] == IMAGES
    for row, number in zip(data, (1, 2), strict=True):
        np.testing.assert_array_equal(np.asarray(row["images"][0]), np.asarray(sample_image(number, (20, 12))))


VALUE = datasets.Value
OF_DATASETS: dict[str, tuple[Any, list[Any]]] = {
    "classes": (datasets.ClassLabel(names=["cat", "dog"]), [1, None]),
    "image": (datasets.Image(), [{"bytes": encoded(5), "path": "q.png"}, None]),
    "image list": (datasets.List(datasets.Image()), [[{"bytes": encoded(6), "path": None}], []]),
    "array": (datasets.Array2D((2, 3), "float32"), [np.arange(6, dtype=np.float32).reshape(2, 3)] * 2),
    "nested": ({"a": VALUE("int32"), "b": datasets.List({"c": datasets.ClassLabel(names=["x", "y"])})},
               [{"a": 1, "b": [{"c": 1}]}] * 2),
    "large list": (datasets.LargeList(VALUE("int64")), [[1, 2], []]),
    "json": (datasets.Json(), [{"a": 1}, [2]]),
    "translation": (datasets.Translation(["de", "en"]), [{"de": "ja", "en": "yes"}] * 2),
    "date": (VALUE("date32"), [datetime.date(2020, 1, 2)] * 2),
    "fixed size": (datasets.List(VALUE("float32"), length=2), [[1.0, 2.0], [3.0, 4.0]]),
}  # fmt: skip
OF_ARROW: dict[str, pa.Array] = {
    "dictionary": pa.array(["x", "y"]).dictionary_encode(),
    "decimal": pa.array([decimal.Decimal("1.25")] * 2, pa.decimal128(10, 2)),
    "nanoseconds": pa.array([1, 2], pa.timestamp("ns", "UTC")),
    "large string": pa.array(["a", None], pa.large_string()),
    "half": pa.array(np.array([1.5, 2.5], np.float16)),
    "null": pa.nulls(2),
    "duration": pa.array([1, 2], pa.duration("s")),
    "bytes": pa.array([b"ab", b"cd"], pa.binary(2)),
}
UNKNOWN_TO_DATASETS: dict[str, pa.Array] = {
    "tensor": pa.ExtensionArray.from_storage(
        pa.fixed_shape_tensor(pa.float32(), (2, 2)), pa.array([[1.0, 2, 3, 4]] * 2, pa.list_(pa.float32(), 4))
    ),
    "map": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int32())),
    "uuid": pa.array([uuid.UUID(int=7).bytes] * 2, pa.uuid()),
}


def carried(source: Path) -> Path:
    """An annotated shard of this source, with what it carries."""
    (shard,) = plan_shards([str(source)])
    schema = annotated_schema(carry="images", pass_through=pass_through_fields([shard]))
    rows = [AnnotatedRow(sample=item, sample_key=sample_key(item), measured=MEASURED) for item in read_samples(shard)]
    return write(source.parent / "out" / source.name, *rows, schema=schema)


def plain(value: Any) -> Any:
    if isinstance(value, list):
        return [plain(item) for item in value]
    return np.asarray(value).tolist() if isinstance(value, Image.Image) else value


def values(data: Any) -> list[Any]:
    return [plain(row["of_source"]) for row in data]


def source_of(kind: str, folder: Path) -> Path:
    path = folder / "source.parquet"
    own = {
        "id": ["a", "b"],
        "text": ["t", "u"],
        "image": [{"bytes": encoded(number), "path": None} for number in (0, 1)],
    }
    if kind in OF_DATASETS:
        feature, given = OF_DATASETS[kind]
        features = {"id": VALUE("string"), "text": VALUE("string"), "image": datasets.Image(), "of_source": feature}
        data = datasets.Dataset.from_dict({**own, "of_source": given}, features=datasets.Features(features))
        pq.write_table(data.data.table, path)
    else:
        pq.write_table(pa.table({**own, "of_source": {**OF_ARROW, **UNKNOWN_TO_DATASETS}[kind]}), path)
    return path


@pytest.mark.parametrize("kind", [*OF_DATASETS, *OF_ARROW])
def test_a_carried_column_is_to_datasets_what_it_was_in_its_source(tmp_path: Path, kind: str) -> None:
    source = source_of(kind, tmp_path)
    out = carried(source)
    was, now = loaded(source, streaming=False), loaded(out, streaming=False)
    assert now.features["of_source"] == was.features["of_source"]
    assert values(now) == values(was) == values(loaded(out, streaming=True))
    assert pq.read_table(out)["of_source"].equals(pq.read_table(source)["of_source"])
    assert isinstance(now[0]["images"][0], Image.Image)


@pytest.mark.parametrize("kind", UNKNOWN_TO_DATASETS)
def test_a_type_that_datasets_does_not_know_is_carried_all_the_same(tmp_path: Path, kind: str) -> None:
    source = source_of(kind, tmp_path)
    out = carried(source)
    assert pq.read_table(out)["of_source"].equals(pq.read_table(source)["of_source"])
    for path in (source, out):
        with pytest.raises(ValueError, match="does not have a datasets dtype equivalent"):
            loaded(path, streaming=False)


def test_a_column_under_its_output_name_keeps_its_classes_also_in_the_table_of_samples(tmp_path: Path) -> None:
    feature = datasets.ClassLabel(names=["good", "bad"])
    features = datasets.Features({"text": VALUE("string"), "status": feature})
    data = datasets.Dataset.from_dict({"text": ["t", "u"], "status": [1, 0]}, features=features)
    data.to_parquet(str(tmp_path / "source.parquet"))
    out = carried(tmp_path / "source.parquet")
    assert run(["samples", str(out), "--output", str(tmp_path / "scores.parquet")]) == 0
    for path in (out, tmp_path / "scores.parquet"):
        now = loaded(path, streaming=False)
        assert (now.features["source_status"], now["source_status"][:]) == (feature, [1, 0])


def test_classes_that_two_sources_name_differently_are_left_numbers_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, classes in (("a", ["cat", "dog"]), ("b", ["dog", "cat"])):
        features = datasets.Features({"text": VALUE("string"), "label": datasets.ClassLabel(names=classes)})
        data = datasets.Dataset.from_dict({"text": ["t"], "label": [0]}, features=features)
        data.to_parquet(str(tmp_path / f"{name}.parquet"))
    with caplog.at_level(logging.WARNING):
        (field,) = pass_through_fields(plan_shards([str(tmp_path)]))
    assert (field.type, field.metadata) == (pa.int64(), None)
    (said,) = caplog.messages
    assert "column 'label' is" in said
    assert said.endswith("the output keeps its values alone")
    assert all(f"{tmp_path / name}" in said for name in ("a.parquet", "b.parquet"))


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"info": null}', b'{"info": {"features": [1]}}', b"\xff"])
def test_broken_features_of_a_source_are_none(tmp_path: Path, text: bytes) -> None:
    table = pa.table({"text": ["t"], "label": [0]}).replace_schema_metadata({"huggingface": text})
    pq.write_table(table, tmp_path / "a.parquet")
    assert loaded(carried(tmp_path / "a.parquet"), streaming=False)["label"][:] == [0]


def test_the_footer_has_them_in_the_words_of_datasets(tmp_path: Path) -> None:
    metadata: ShardMetadata = shard_metadata()
    with ShardWriter(tmp_path / "a.parquet", annotated_schema(carry="images"), metadata):
        pass
    stated = json.loads(pq.read_metadata(tmp_path / "a.parquet").metadata[b"huggingface"])
    assert stated == {"info": {"features": {"images": {"_type": "Sequence", "feature": {"_type": "Image"}}}}}
    assert pq.read_metadata(tmp_path / "a.parquet").metadata.keys() >= {key.encode() for key in metadata.to_parquet()}
