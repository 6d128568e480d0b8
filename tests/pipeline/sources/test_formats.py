import csv
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from cal_pipeline.sources import formats
from cal_pipeline.sources.formats import FilePlan, InputFormat, RowRange, cut_rows, format_of, register
from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.rows import sample_from_values
from cal_pipeline.sources.shard import read_samples
from cal_schemas.errors import ConfigError
from cal_schemas.sample import ImageRef, Sample, Turn
from cal_schemas.storage.locations import Location


def plan(path: Location, rows_per_shard: int) -> FilePlan:
    with path.open() as file:
        count = sum(1 for _ in csv.DictReader(file))
    starts = range(0, count, rows_per_shard)
    return FilePlan(ranges=[RowRange(row_start=n, row_stop=min(count, n + rows_per_shard)) for n in starts])


def read(path: Location, rows: RowRange, name: str) -> Iterator[Sample]:
    with path.open() as file:
        for number, row in enumerate(csv.DictReader(file)):
            if rows.row_start <= number < rows.row_stop:
                values = {"id": row["id"], "image": row["image"], "query": row["q"], "response": row["a"]}
                yield sample_from_values(values, f"{name}/{number}", pass_through={"split": row["split"]})


TOY = InputFormat(name="toy", suffixes=(".toy",), plan=plan, read=read,
                  pass_through=lambda path: {"split": pa.field("split", pa.string())})  # fmt: skip


@pytest.fixture
def with_toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", dict(formats.FORMATS))
    register(TOY)


@pytest.mark.usefixtures("with_toy")
def test_a_format_is_added_by_what_it_registers(tmp_path: Path) -> None:
    path = tmp_path / "a.toy"
    path.write_text("id,image,q,a,split\nx,x.png,What?,A cat.,train\ny,,Why?,So.,test\n,,Who?,I.,test\n")
    with pytest.raises(ConfigError, match=r"a\.toy names image files: say with --image_folder where they are"):
        plan_shards([str(tmp_path)])
    first, second = plan_shards([str(tmp_path)], [str(tmp_path)], rows_per_shard=2)
    assert [first.name, second.name] == ["a-r000000000-000000002", "a-r000000002-000000003"]
    assert first.source.data_format == "toy"
    x, y = read_samples(first)
    assert (x.sample_id, x.images, y.images) == ("x", (ImageRef(path="x.png"),), ())
    assert y.messages == (Turn(role="user", content="Why?"), Turn(role="assistant", content="So."))
    (last,) = read_samples(second)
    assert last.pass_through == {"split": "test"}
    assert pass_through_fields([first, second]) == [pa.field("split", pa.string())]


def test_the_longest_suffix_decides_and_a_named_format_wins(tmp_path: Path) -> None:
    assert format_of(tmp_path / "a.json.gz", "auto").name == "json"
    assert format_of(tmp_path / "a.tar.gz", "auto").name == "webdataset"
    assert format_of(tmp_path / "a.json.gz", "jsonl").name == "jsonl"


def test_a_format_that_nobody_registered_is_refused_with_those_that_are_known(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="no input format; known are arrow, json, jsonl, parquet, imagefolder, webdataset"
    ):
        format_of(tmp_path / "a.toy", "toy")
    with pytest.raises(ConfigError, match=r"a\.toy: its name does not say its format"):
        format_of(tmp_path / "a.toy", "auto")


def test_two_formats_cannot_share_a_name_or_a_suffix() -> None:
    with pytest.raises(AssertionError, match="parquet"):
        register(InputFormat(name="parquet", suffixes=(".pq",), plan=plan, read=read))
    with pytest.raises(AssertionError, match="tgz"):
        register(InputFormat(name="tar", suffixes=(".tgz",), plan=plan, read=read))


def test_rows_are_cut_by_number_and_by_size_and_none_is_lost() -> None:
    spans = [(0, 10, 1), (11, 20, 0), (21, 30, 4), (30, 90, 0), (90, 95, 2)]
    by_number = cut_rows(iter(spans), 2)
    assert by_number == [
        RowRange(row_start=0, row_stop=2, byte_start=0, byte_stop=20, image_bytes=1),
        RowRange(row_start=2, row_stop=4, byte_start=21, byte_stop=90, image_bytes=4),
        RowRange(row_start=4, row_stop=5, byte_start=90, byte_stop=95, image_bytes=2),
    ]
    by_size = cut_rows(iter(spans), 100, max_bytes=30)
    assert [(rows.row_start, rows.row_stop, rows.byte_stop) for rows in by_size] == [(0, 3, 30), (3, 4, 90), (4, 5, 95)]
    assert cut_rows(iter([]), 2) == []
