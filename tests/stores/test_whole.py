from pathlib import Path

import pytest

from cal_schemas.errors import FormatError
from cal_schemas.opened import open_annotated
from cal_schemas.storage.object_path import ObjectPath
from cal_schemas.whole import PLAN
from damage import flip_a_byte
from examples_of import write_shard


def test_what_is_missing_or_damaged_in_a_store_is_named(tmp_path: Path, bucket: ObjectPath) -> None:
    file, target = write_shard(tmp_path / "a.parquet"), bucket / "deep" / "out"
    (target / "a.parquet").write_bytes(file.read_bytes())
    assert open_annotated(target).completeness.unplanned == (target / "a.parquet",)
    (target / PLAN).write_text('[{"name": "a", "source": {"num_rows": 2}}, {"name": "s/b", "source": {"num_rows": 3}}]')
    assert open_annotated(target).completeness.missing == {target / "s" / "b.parquet": 3}
    for name in ("begun", ".hidden"):
        (bucket / "deep" / name / PLAN).write_text('[{"name": "z", "source": {"num_rows": 4}}]')
    missing = open_annotated(bucket / "deep").completeness.missing
    assert missing == {target / "s" / "b.parquet": 3, bucket / "deep" / "begun" / "z.parquet": 4}
    (target / "a.parquet").write_bytes(flip_a_byte(file).read_bytes())
    with pytest.raises(FormatError, match=rf"^{target}/a\.parquet is damaged: .*CRC"):
        list(open_annotated(target).batches())
