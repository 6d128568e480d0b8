"""The output's file system: full, read-only, in the way; and sources that change between runs."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline import cli
from fault_job import Job, write_shards
from tiny_data import write_parquet

pytestmark = [pytest.mark.fault, pytest.mark.slow]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit code and error of a job's program, which is not worth a process of its own: it ends before there is work."""

    def run(job: Job, *flags: str) -> tuple[int, str]:
        code = cli.run(job.command(*flags)[1:])
        return code, " ".join(capfd.readouterr().err.split())

    return run


def test_a_read_only_output_is_refused_before_the_model_is_touched(
    small_disk: Path, tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    out = small_disk / "out"
    (out / ".cal" / "staging").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    # There is no such model: whoever looked for it before the output would complain about that.
    data = write_shards(tmp_path / "data", 1)
    job = Job(model=tmp_path / "no-model", data=data, output=out)
    for flags in ((), ("--dry_run",)):
        code, said = refused(job, *flags)
        assert code == 2
        assert f"cal-precompute: --output_dir {out} cannot be written: [Errno 30] Read-only file system" in said


def test_an_output_under_a_file_is_refused_before_the_model_is_touched(
    tmp_path: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "file").write_text("")
    data = write_shards(tmp_path / "data", 1)
    code, said = refused(Job(model=tmp_path / "no-model", data=data, output=tmp_path / "file" / "out"))
    assert code == 2
    assert "out cannot be written: [Errno 20] Not a directory" in said


@pytest.mark.full
def test_a_full_disk_stops_the_run_at_once_and_leaves_finished_files_whole(
    small_disk: Path,
    tmp_path: Path,
    slow_model: Path,
) -> None:
    data = write_shards(tmp_path / "data", 2)
    for name in ("x0", "x1", "x2"):
        write_parquet(data / f"{name}.parquet", count=250, seed=7)  # Images of 170 kB each.
    flags = ("--tokens_per_batch", "8192")
    job = Job(model=slow_model, data=data, output=small_disk / "out", logs=tmp_path, flags=flags)
    code = job.run()
    said = job.said()
    assert code == 2, said
    assert "cal-precompute: stopped: x" in said
    assert "No space left on device" in said
    assert "What is published is whole; the same command resumes" in said
    assert "try 1 of 3" not in said
    assert job.done()[:2] == ["s00", "s01"]
    assert job.staged() == []
    # With room again, the same command finishes.
    subprocess.run(["mount", "-o", "remount,size=100m", small_disk], check=True)
    before = job.contents()
    assert job.run() == 0, job.said()
    assert before.items() <= job.contents().items()
    assert job.done() == ["s00", "s01", "x0", "x1", "x2"]


@pytest.mark.full
def test_new_shards_are_done_and_edited_or_removed_ones_refused_by_name(
    tmp_path: Path, slow_model: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    data = write_shards(tmp_path / "data", 2)
    job = Job(model=slow_model, data=data, output=tmp_path / "out")
    assert job.run() == 0, job.said()
    before = job.contents()
    write_shards(data, 1, first=2)
    assert job.run() == 0, job.said()
    assert "1 shard with 4 rows to measure, 2 done" in job.said()
    assert before.items() <= job.contents().items()
    assert job.done() == ["s00", "s01", "s02"]
    before = job.contents()

    write_parquet(data / "s01.parquet", count=5)
    code, said = refused(job)
    assert code == 2
    assert f"{data}/s01.parquet has changed since the shard {tmp_path}/out/s01.parquet was measured from it " in said
    assert "(num_rows was 4, is 5; size was " in said
    (data / "s01.parquet").unlink()
    code, said = refused(job)
    assert code == 2
    assert "s01.parquet is not part of this run's plan (rows 0-4 of " in said
    assert job.contents() == before


@pytest.mark.full
def test_a_source_split_otherwise_or_appended_to_is_refused_by_name(
    tmp_path: Path, slow_model: Path, refused: Callable[..., tuple[int, str]]
) -> None:
    line = '{"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}\n'
    data = tmp_path / "rows.jsonl"
    data.write_text(line * 6)
    job = Job(model=slow_model, data=data, output=tmp_path / "out")
    assert job.run("--rows_per_shard", "3") == 0, job.said()
    before = job.contents()
    code, said = refused(job, "--rows_per_shard", "2")
    assert code == 2
    assert "is not part of this run's plan (rows 0-3 of " in said
    assert "another --rows_per_shard" in said
    data.write_text(line * 9)
    code, said = refused(job, "--rows_per_shard", "3")
    assert code == 2
    assert "rows.jsonl has changed since the shard " in said
    assert "rows-r000000000-000000003.parquet was measured from it (size was " in said
    assert job.contents() == before


@pytest.mark.full
def test_an_output_removed_in_mid_run_is_missed_and_never_made_anew(tmp_path: Path, slow_model: Path) -> None:
    data = write_shards(tmp_path / "data", 8)
    job = Job(model=slow_model, data=data, output=tmp_path / "out", flags=("--tokens_per_batch", "64"))
    process = job.start()
    job.wait_for(process, lambda: len(job.done()) >= 2, "two shards are done")
    # Away in one step: workers write into it meanwhile, and would keep a part of it alive.
    shutil.rmtree(job.output.rename(tmp_path / "removed"))
    assert job.finish(process) == 2, job.said()
    said = job.said()
    assert not job.output.exists()
    assert f"does not see --output_dir {job.output}, which was there when the run began: removed, unmounted" in said
    assert "FAILED s00: done, but its file is gone from --output_dir" in said
    assert "FAILED s01: done, but its file is gone from --output_dir" in said
    assert "0 shards with 0 rows" in said
    assert f"no report was written to {job.output}/.cal/reports" in said
    report = Path(said.partition(" report: ")[2].split()[0])
    assert sorted(json.loads(report.read_text())["failed"])[:2] == ["s00", "s01"]
    shutil.rmtree(report.parent)
    assert job.run() == 0, job.said()
    assert len(job.done()) == 8


@pytest.mark.full
def test_what_is_gone_at_the_end_is_measured_again_and_a_run_without_a_report_is_not_done(
    tmp_path: Path, slow_model: Path
) -> None:
    data = write_shards(tmp_path / "data", 6)
    job = Job(model=slow_model, data=data, output=tmp_path / "out", flags=("--tokens_per_batch", "64"))
    process = job.start()
    job.wait_for(process, lambda: len(job.done()) >= 2, "two shards are done")
    (job.output / "s00.parquet").unlink()
    assert job.finish(process) == 1, job.said()
    assert "FAILED s00: done, but its file is gone from --output_dir" in job.said()
    assert "5 shards with 20 rows" in job.said()
    process = job.start()
    job.wait_for(process, job.staged, "the lost shard is in work")
    (job.output / ".cal" / "reports").rename(tmp_path / "reports")
    assert job.finish(process) == 1, job.said()
    assert f"no report was written to {job.output}/.cal/reports" in job.said()
    assert "1 shard with 4 rows" in job.said()
    assert "FAILED" not in job.said()
    assert len(job.done()) == 6
    shutil.rmtree(Path(job.said().partition(" report: ")[2].split()[0]).parent)


@pytest.mark.full
def test_a_file_that_somebody_put_into_the_output_leaves_the_table_and_the_report(
    tmp_path: Path, slow_model: Path
) -> None:
    data = write_shards(tmp_path / "data", 3)
    job = Job(model=slow_model, data=data, output=tmp_path / "out", flags=("--tokens_per_batch", "64"))
    process = job.start()
    job.wait_for(process, lambda: len(job.done()) >= 1, "a shard is done")
    pq.write_table(pa.table({"mine": [1]}), job.output / "mine.parquet")
    assert job.finish(process) == 2, job.said()
    assert "3 shards with 12 rows" in job.said()
    assert f"report: {job.output}/.cal/reports/run-" in job.said()
    assert "mine.parquet: a Parquet file, but not an annotated shard" in job.said()
