from __future__ import annotations

import os
from pathlib import Path

import pytest

from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ShardError
from plain_sources import ids, write


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_a_source_changed_since_planning_is_a_shard_error(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    (shard,) = plan_shards([str(path)])
    stat = path.stat()
    write(path, 4)
    with pytest.raises(ShardError, match=rf"{name}: changed since planning; start cal-precompute again"):
        ids([shard])
    write(path, 3)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with pytest.raises(ShardError, match="changed since planning"):
        ids([shard])
    path.unlink()
    with pytest.raises(ShardError, match=rf"{name}: No such file or directory; it was there at planning"):
        ids([shard])


def test_a_source_of_the_same_size_and_time_but_fewer_rows_is_a_shard_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 3)
    (shard,) = plan_shards([str(path)])
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"}\n{", b"} {", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ShardError, match=r"a\.jsonl: 2 rows in the range, 3 planned"):
        ids([shard])
