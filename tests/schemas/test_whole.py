import errno
import json
import logging
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_schemas.errors import FormatError, StoreError
from cal_schemas.metadata import drawn_rows, read_annotated_footer
from cal_schemas.opened import open_annotated
from cal_schemas.whole import PLAN, open_shard, read_plan, write_plan
from damage import flip_a_byte, flip_a_page_header, put_in, rewrite
from examples_of import shard_metadata, write_shard


@pytest.fixture
def output(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    for name in ("a", "b", "sub/c"):
        write_shard(folder / f"{name}.parquet")
    (folder / ".cal").mkdir()
    write_plan(folder, {"a.parquet": 2, "b.parquet": 2, "sub/c.parquet": 2})
    return folder


def test_a_directory_with_all_planned_shards_is_whole(output: Path, caplog: pytest.LogCaptureFixture) -> None:
    complete = open_annotated(output).completeness
    assert complete.problem is None
    assert sum(complete.planned.values()) == 6
    assert not complete.unplanned
    assert not caplog.records


def test_planned_shards_that_are_not_there_are_counted_named_and_said_in_one_line(
    output: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (output / "b.parquet").unlink()
    (output / "sub" / "c.parquet").unlink()
    with caplog.at_level(logging.WARNING):
        complete = open_annotated(output).completeness
    assert complete.missing == {output / "b.parquet": 2, output / "sub" / "c.parquet": 2}
    (line,) = caplog.messages
    assert line.startswith(f"{output} is not whole: 2 of 3 planned shards with 4 of 6 rows are not there (")
    assert str(output / "b.parquet") in line
    assert "\n" not in line


@pytest.mark.parametrize("relative", [False, True])
def test_a_part_of_an_output_is_compared_with_its_part_of_the_plan_above(
    output: Path, relative: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard(output / "sub" / "d.parquet")
    (output / "a.parquet").unlink()
    monkeypatch.chdir(output)
    part = Path("sub") if relative else output / "sub"
    assert open_annotated(part).completeness.problem is None
    assert [file.name for file in open_annotated(part).completeness.unplanned] == ["d.parquet"]
    (output / "sub" / "c.parquet").unlink()
    assert list(open_annotated(part).completeness.missing) == [output / "sub" / "c.parquet"]


def test_outputs_below_one_directory_keep_their_own_plans(output: Path) -> None:
    other = output.parent / "other"
    write_shard(other / "x.parquet")
    (other / ".cal").mkdir()
    write_plan(other, {"x.parquet": 2, "y.parquet": 2})
    (output / "a.parquet").unlink()
    both = open_annotated(output.parent).completeness
    assert set(both.missing) == {other / "y.parquet", output / "a.parquet"}
    # Of one that has begun and published nothing all is missing, unless it is hidden.
    for name in ("begun", ".hidden/begun"):
        (output.parent / name / ".cal").mkdir(parents=True)
        write_plan(output.parent / name, {"z.parquet": 2})
    begun = open_annotated(output.parent).completeness
    assert set(begun.missing) == {*both.missing, output.parent / "begun" / "z.parquet"}
    # Named one by one it is the same, and a single file is what it is.
    assert open_annotated([output, other]).completeness.missing == both.missing
    assert open_annotated(other / "x.parquet").completeness.problem is None


def test_a_plan_of_a_subset_counts_the_rows_that_were_drawn(tmp_path: Path) -> None:
    source = replace(shard_metadata().source, num_rows=40, row_stop=40, sample_fraction=0.3, sample_seed=5)
    drawn = int(drawn_rows(source).sum())
    assert 0 < drawn < 40
    write_shard(tmp_path / "a.parquet", drawn, shard_metadata(source=source))
    (tmp_path / ".cal").mkdir()
    listed = [{"name": "a", "source": {**source_values(source)}}, {"name": "b", "source": {"num_rows": 7}}]
    (tmp_path / PLAN).write_text(json.dumps(listed))
    assert read_plan(tmp_path) == {"a.parquet": drawn, "b.parquet": 7}
    complete = open_annotated(tmp_path).completeness
    assert not complete.short
    assert complete.missing == {tmp_path / "b.parquet": 7}


def source_values(source: object) -> dict[str, object]:
    return {name: getattr(source, name) for name in source.__dataclass_fields__}  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["", "[{", '{"name": "a"}', '[{"name": "a"}]', '[{"name": "a", "source": 3}]'])
def test_a_plan_that_cannot_be_read_is_said(output: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (output / PLAN).write_text(text)
    with caplog.at_level(logging.WARNING):
        assert open_annotated(output).completeness.problem is None
    (line,) = caplog.messages
    assert f"{output / PLAN} cannot be read (" in line
    assert "whether shards are missing is not known" in line


def test_rows_that_somebody_took_out_are_seen_and_those_of_a_filter_are_not_missed(tmp_path: Path) -> None:
    source = replace(shard_metadata().source, num_rows=5, row_stop=5)
    file = write_shard(tmp_path / "a.parquet", 5, shard_metadata(source=source))
    table = pq.read_table(file)
    rewrite(file, table.slice(0, 3))
    complete = open_annotated(tmp_path).completeness
    assert complete.short == {file: (3, 5)}
    assert f"{file} has 3 rows, its source gave 5" in str(complete.problem)
    write_shard(file, 3, shard_metadata(source=source, filters=("num_tokens > 3",)))
    assert open_annotated(tmp_path).completeness.problem is None
    write_shard(file, 6, shard_metadata(source=source, filters=("num_tokens > 3",)))
    assert open_annotated(tmp_path).completeness.short == {file: (6, 5)}


def test_a_flipped_byte_is_refused_by_name_in_one_line(tmp_path: Path) -> None:
    file = flip_a_byte(write_shard(tmp_path / "a.parquet", 2))
    with pytest.raises(FormatError, match=rf"^{file} is damaged: .*CRC.* Remove it and run the same cal-precomp") as at:
        list(open_annotated(tmp_path).batches(["delta_logits"]))
    assert "\n" not in str(at.value)
    # What was not read was not verified.
    assert list(open_annotated(tmp_path).batches(["sample_id"]))


@pytest.mark.parametrize("column", ["status", "delta_logits"])
def test_rows_that_a_broken_page_header_hides_are_missed_however_they_are_read(tmp_path: Path, column: str) -> None:
    file = flip_a_page_header(write_shard(tmp_path / "a.parquet", 2), column)
    reads: list[Callable[[pq.ParquetFile], Any]] = [
        lambda shard: list(shard.iter_batches(columns=[column, "sample_id"])),
        lambda shard: list(shard.iter_batches(row_groups=[0])),
        lambda shard: shard.read_row_group(0, columns=[column]),
        lambda shard: shard.read(columns=[column]),
    ]
    for read in reads:
        with pytest.raises(FormatError, match=rf"^{file} is damaged: "), open_shard(file) as shard:
            read(shard)


def test_a_disk_that_gives_no_answer_says_nothing_about_the_file(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.parquet")
    opened = open_annotated(tmp_path)
    file.unlink()
    with pytest.raises(StoreError, match=rf"^{file} cannot be read: .*No such file") as caught:
        list(opened.batches())
    assert caught.value.errno == 2


def test_a_process_without_a_free_file_descriptor_calls_no_shard_unreadable(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.parquet")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        with pytest.raises(StoreError, match=rf"^{file} cannot be read: .*Too many open files") as caught:
            read_annotated_footer(file)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "nan"), (float("inf"), "inf"), (-float("inf"), "-inf")])
def test_nan_and_infinity_in_a_shard_are_refused_by_file_and_row(tmp_path: Path, value: float, said: str) -> None:
    file = put_in(write_shard(tmp_path / "a.parquet"), value, row=1)
    with pytest.raises(FormatError, match=rf"^{file}: row 1 \('id-1'\) holds {said} in delta_logits, which no"):
        list(open_annotated(tmp_path).batches())
    with pytest.raises(FormatError, match=rf"^{file}: row 1 holds {said} in delta_logits"):
        list(open_annotated(tmp_path).batches(["delta_logits"], batch_size=1))


def test_open_shard_leaves_what_its_reader_raises_alone(tmp_path: Path) -> None:
    file = write_shard(tmp_path / "a.parquet")
    with pytest.raises(KeyError), open_shard(file):
        raise KeyError("of the reader")
    with pytest.raises(MemoryError), open_shard(file):
        raise pa.ArrowMemoryError("malloc of size 64 failed")
