import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cal_pipeline.output.row_writer import annotated_row, writing_behind
from cal_pipeline.output.shard_report import ShardReport
from cal_schemas.annotated import AnnotatedRow, annotated_schema
from cal_schemas.errors import ImageError, SampleError
from cal_schemas.writer import ShardWriter
from examples_of import MEASURED, conversation, shard_metadata

SAMPLE = conversation("q", "a")
SCHEMA = annotated_schema(carry="none")


def row(sample_id: str) -> AnnotatedRow:
    return annotated_row(conversation("q", "a", sample_id=sample_id), "k", MEASURED, 6)


def writer(path: Path) -> ShardWriter:
    return ShardWriter(path, SCHEMA, shard_metadata(carry="none"))


def test_a_measured_sample_becomes_a_row_that_is_ok_and_its_note_the_error() -> None:
    noted = conversation("q", "a", note="dark")
    assert annotated_row(noted, "k", MEASURED, 6) == AnnotatedRow(
        sample=noted, sample_key="k", measured=MEASURED, error="dark", num_tokens=6
    )


def test_a_failure_becomes_its_status_in_one_line_without_addresses_and_the_note_behind_it() -> None:
    failed = annotated_row(SAMPLE, "k", ImageError("cannot read\n <file at 0x7fA0>"), None)
    assert (failed.status, failed.error, failed.measured) == ("image_error", "cannot read <file>", None)
    long = annotated_row(conversation("q", "a", note="dark"), "k", SampleError("x" * 2000), 9)
    assert (long.status, long.error, long.num_tokens) == ("encode_error", "x" * 1000 + " (dark)", 9)


def test_rows_are_written_in_their_order_by_another_thread_and_their_seconds_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, threads = ShardReport(name="s"), set()
    write_row = ShardWriter.write

    def noting(self: ShardWriter, row: AnnotatedRow) -> None:
        threads.add(threading.current_thread())
        write_row(self, row)

    monkeypatch.setattr(ShardWriter, "write", noting)
    with writer(tmp_path / "a.parquet") as file, writing_behind(file, report) as write:
        for number in range(5):
            write([row(f"{number}a"), row(f"{number}b")])
    ids = pq.read_table(tmp_path / "a.parquet")["sample_id"].to_pylist()
    assert ids == [f"{number}{letter}" for number in range(5) for letter in "ab"]
    assert len(threads) == 1
    assert threading.main_thread() not in threads
    assert report.seconds["write"] > 0


@pytest.mark.parametrize("calls", [1, 2])
def test_a_failed_write_is_raised_by_the_next_one_or_on_leaving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    def full(self: ShardWriter, row: AnnotatedRow) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr(ShardWriter, "write", full)
    reached = []

    def write_rows() -> None:
        with writer(tmp_path / "a.parquet") as file, writing_behind(file, ShardReport(name="s")) as write:
            for number in range(calls):
                write([row("x")])
                reached.append(number)

    with pytest.raises(OSError, match="disk full"):
        write_rows()
    assert reached == [0]
