from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard, limit_rows, read_samples, sample_rows
from cal_schemas.errors import ShardError
from cal_schemas.metadata import ShardSource
from plain_sources import ids, write


def plan_of(*counts: int) -> list[Shard]:
    """Shards of one file that need not exist."""
    stops = np.cumsum(counts).tolist()
    return [
        Shard(
            name=f"a{stop - count}",
            source=ShardSource(
                uri="/a.jsonl", data_path="/a.jsonl", image_folder=None, num_rows=count, size=1, mtime_ns=1,
                row_start=stop - count, row_stop=stop, data_format="jsonl",
            ),
        )
        for stop, count in zip(stops, counts, strict=True)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("limit", "names", "counts"),
    [
        (1, ["a0-first1"], [1]),
        (2, ["a0"], [2]),
        (3, ["a0", "a2", "a2-first1"], [2, 0, 1]),
        (6, ["a0", "a2", "a2"], [2, 0, 4]),
        (99, ["a0", "a2", "a2", "a6"], [2, 0, 4, 1]),
    ],
)
def test_limit_keeps_the_first_rows_and_renames_the_shard_it_cuts(
    limit: int, names: list[str], counts: list[int]
) -> None:
    kept = limit_rows(plan_of(2, 0, 4, 1), limit)
    assert [shard.name for shard in kept] == names
    assert [shard.num_rows for shard in kept] == counts
    assert [shard.source.row_stop - shard.source.row_start for shard in kept] == counts


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.zst", "a.parquet"])
def test_a_limited_plan_reads_exactly_the_first_rows(tmp_path: Path, name: str) -> None:
    plan = plan_shards([str(write(tmp_path / name, 100))], rows_per_shard=40)
    assert ids(limit_rows(plan, 50)) == [str(number) for number in range(50)]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.zst", "a.parquet"])
def test_a_sample_reads_exactly_the_drawn_rows_and_the_same_every_time(tmp_path: Path, name: str) -> None:
    plan = plan_shards([str(write(tmp_path / name, 400))], rows_per_shard=150)
    drawn = sample_rows(plan, 0.25, seed=7)
    drawn_ids = ids(drawn)
    assert len(drawn_ids) == sum(shard.num_rows for shard in drawn)
    assert 60 <= len(drawn_ids) <= 140  # 100 expected, deviation 8.7
    assert drawn_ids == sorted(set(drawn_ids), key=int)
    assert ids(sample_rows(plan, 0.25, seed=7)) == drawn_ids
    assert ids(sample_rows(plan, 0.25, seed=8)) != drawn_ids
    assert [shard.name for shard in drawn] == [shard.name for shard in plan]


def test_shards_are_drawn_from_independently() -> None:
    first, second = sample_rows(plan_of(1000, 1000), 0.5, seed=0)
    other = replace(first, source=replace(first.source, uri="/b.jsonl"))
    assert len({shard.num_rows for shard in (first, second, other)}) == 3


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=6), fraction=st.floats(0.01, 1.0), seed=st.integers(0, 99)
)
def test_a_sample_drops_only_shards_of_which_nothing_is_drawn(counts: list[int], fraction: float, seed: int) -> None:
    plan = plan_of(*counts)
    drawn = sample_rows(plan, fraction, seed)
    assert all(0 < shard.num_rows <= shard.source.num_rows for shard in drawn)
    assert {shard.source.row_start for shard in drawn} <= {shard.source.row_start for shard in plan}
    if fraction == 1.0:
        assert sum(shard.num_rows for shard in drawn) == sum(counts)


def test_limit_then_sample_draws_from_the_limited_rows(tmp_path: Path) -> None:
    plan = plan_shards([str(write(tmp_path / "a.jsonl", 100))], rows_per_shard=40)
    drawn_ids = ids(sample_rows(limit_rows(plan, 50), 0.5, seed=0))
    assert drawn_ids
    assert max(map(int, drawn_ids)) < 50


@given(
    count=st.integers(1, 30), rows_per_shard=st.integers(1, 10), limit=st.integers(1, 40), fraction=st.floats(0.1, 1.0)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_plan_yields_as_many_samples_as_it_says(
    tmp_path: Path, count: int, rows_per_shard: int, limit: int, fraction: float
) -> None:
    plan = plan_shards([str(write(tmp_path / "a.json", count))], rows_per_shard=rows_per_shard)
    for shard in sample_rows(limit_rows(plan, limit), fraction, seed=1):
        assert len(list(read_samples(shard))) == shard.num_rows


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
    with pytest.raises(ShardError, match=rf"{name}: cannot be read now: No such file or directory"):
        ids([shard])


def test_a_source_of_the_same_size_and_time_but_fewer_rows_is_a_shard_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", 3)
    (shard,) = plan_shards([str(path)])
    stat = path.stat()
    path.write_bytes(path.read_bytes().replace(b"}\n{", b"} {", 1))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ShardError, match=r"a\.jsonl: 2 rows in the range, 3 planned"):
        ids([shard])
