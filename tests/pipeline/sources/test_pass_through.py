from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.annotated import AnnotatedRow, annotated_schema, rows_to_table
from cal_schemas.errors import ConfigError
from cal_schemas.sample import sample_key
from plain_sources import write


def test_a_column_without_a_value_in_one_file_takes_its_type_from_another(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", score=[None] * 3)
    write(tmp_path / "b.parquet", score=[0.5] * 3)
    write(tmp_path / "c.parquet", score=[None] * 3)
    assert pass_through_fields(plan_shards([str(tmp_path)])) == [pa.field("score", pa.float64())]


def test_a_part_without_a_value_takes_its_type_from_another_file_and_all_rows_pass_through(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 2, meta=[{"license": None, "tags": [None]}, None])
    write(tmp_path / "b.parquet", 1, meta=[{"license": "MIT", "tags": ["x"]}])
    write(tmp_path / "c.parquet", 1, meta=[{"license": None, "tags": []}])
    shards = plan_shards([str(tmp_path)])
    fields = pass_through_fields(shards)
    assert fields == [pa.field("meta", pa.struct({"license": pa.string(), "tags": pa.list_(pa.string())}))]
    rows = [
        AnnotatedRow(sample=sample, sample_key=sample_key(sample), status="too_long")
        for shard in shards
        for sample in read_samples(shard)
    ]
    table = rows_to_table(rows, annotated_schema(carry="paths", pass_through=fields), "paths")
    assert table["meta"].to_pylist() == [
        {"license": None, "tags": [None]}, None, {"license": "MIT", "tags": ["x"]}, {"license": None, "tags": []},
    ]  # fmt: skip
    write(tmp_path / "d.parquet", 1, meta=[{"license": 7, "tags": None}])
    with pytest.raises(
        ConfigError,
        match=r"'meta' has other parts in \S+b\.parquet than in \S+d\.parquet, license .string and int64.: ",
    ):
        pass_through_fields(plan_shards([str(tmp_path)]))
    for name, wide in (("d", {f"x{n}": n for n in range(40)}), ("e", {"y": 1})):
        write(tmp_path / f"{name}.parquet", 1, meta=[[wide]])
    with pytest.raises(ConfigError, match=r", x0 .int64 and none., x1 .* x5 .int64 and none. and 35 more: make"):
        pass_through_fields(plan_shards([str(tmp_path / "d.parquet"), str(tmp_path / "e.parquet")]))


def test_two_columns_that_would_share_a_name_are_refused_naming_both_and_their_files(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", status=["A"] * 3, source_status=["B"] * 3)
    with pytest.raises(ConfigError) as error:
        pass_through_fields(plan_shards([str(tmp_path)]))
    assert str(error.value) == (
        f"columns 'status' and 'source_status' of {tmp_path / 'a.parquet'} would both be 'source_status' in the "
        "output: rename or remove one of them"
    )
    # Of different types, as where an annotated shard is measured again, and in two files.
    write(tmp_path / "a.parquet", status=[1] * 3, source_status=["B"] * 3)
    with pytest.raises(ConfigError, match=r"columns 'status' and 'source_status' of \S+ would"):
        pass_through_fields(plan_shards([str(tmp_path)]))
    write(tmp_path / "a.parquet", status=["A"] * 3)
    write(tmp_path / "b.parquet", source_status=["B"] * 3)
    with pytest.raises(ConfigError, match=r"'status' of .*a\.parquet and 'source_status' of .*b\.parquet would"):
        pass_through_fields(plan_shards([str(tmp_path)]))


def test_columns_of_all_files_pass_through_and_differing_types_are_refused_naming_both(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", score=[1, 2, 3])
    write(tmp_path / "b.parquet", label=["x"] * 3, score=[1, 2, 3])
    write(tmp_path / "c.json")
    plan = plan_shards([str(tmp_path)])
    assert pass_through_fields(plan) == [pa.field("score", pa.int64()), pa.field("label", pa.string())]
    write(tmp_path / "d.parquet", score=[0.5] * 3)
    with pytest.raises(ConfigError, match=r"column 'score' is int64 in .*a\.parquet and double in .*d\.parquet: make"):
        pass_through_fields(plan_shards([str(tmp_path)]))
