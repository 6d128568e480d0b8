from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cal_pipeline.carrying import carried_fields
from cal_pipeline.shards import plan_shards
from cal_schemas.errors import ConfigError
from plain_sources import write


def test_a_column_without_a_value_in_one_file_takes_its_type_from_another(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", score=[None] * 3)
    write(tmp_path / "b.parquet", score=[0.5] * 3)
    write(tmp_path / "c.parquet", score=[None] * 3)
    assert carried_fields(plan_shards([str(tmp_path)])) == [pa.field("score", pa.float64())]


def test_columns_of_all_files_are_carried_and_differing_types_are_refused_naming_both(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", score=[1, 2, 3])
    write(tmp_path / "b.parquet", label=["x"] * 3, score=[1, 2, 3])
    write(tmp_path / "c.json")
    plan = plan_shards([str(tmp_path)])
    assert carried_fields(plan) == [pa.field("score", pa.int64()), pa.field("label", pa.string())]
    write(tmp_path / "d.parquet", score=[0.5] * 3)
    with pytest.raises(ConfigError, match=r"column 'score' is int64 in .*a\.parquet and double in .*d\.parquet: make"):
        carried_fields(plan_shards([str(tmp_path)]))
