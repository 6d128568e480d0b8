"""What is seen of the rows before work."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.sources import first_rows
from cal_pipeline.sources.first_rows import look_at_rows
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import SampleError
from cal_schemas.sample import IMAGE_MARK, Sample
from tiny_models import sample_image

CHAT = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A cat."}]


def check(sample: Sample) -> None:
    """The first two things that an Encoder's check looks at."""
    if sample.messages is None:
        raise SampleError(str(sample.problem))
    marks = sum(turn.content.count(IMAGE_MARK) for turn in sample.messages)
    if marks != len(sample.images):
        raise SampleError(f"{marks} marks for {len(sample.images)} images")


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def look(*data: Path, rows_per_shard: int = 4) -> bool:
    return look_at_rows(plan_shards([*map(str, data)], rows_per_shard=rows_per_shard), check)


def test_rows_that_fit_are_not_spoken_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert look(write_rows(tmp_path / "d.jsonl", [{"conversations": CHAT}] * 30))
    assert caplog.text == ""


def test_some_that_do_not_fit_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"conversations": CHAT}] * 5 + [{"id": "x", "conversations": json.dumps(CHAT)}] * 5
    assert look(write_rows(tmp_path / "d.jsonl", rows), rows_per_shard=100)
    assert (
        f"{tmp_path}/d.jsonl: 3 of 8 rows looked at cannot be measured; the first: x: encode_error: conversation is "
        "str; expected turns (JSON text?" in caplog.text
    )


def test_one_data_path_of_which_none_fits_is_enough(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = write_rows(tmp_path / "good.jsonl", [{"conversations": CHAT}] * 3)
    assert not look(good, write_rows(tmp_path / "d.jsonl", [{"description": "A cat."}] * 20))
    assert f"{tmp_path}/d.jsonl: none of the 8 rows looked at can be measured; the first: d-r" in caplog.text


def test_images_without_marks_are_seen_where_parquet_holds_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample_image(0).save(tmp_path / "0.png")
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]
    row = {"image": {"bytes": (tmp_path / "0.png").read_bytes(), "path": None}, "messages": turns}
    pq.write_table(pa.Table.from_pylist([row] * 3), tmp_path / "a.parquet")
    assert not look(tmp_path / "a.parquet")
    said = "none of the 3 rows looked at can be measured; the first: a/0: encode_error: 0 marks for 1 images"
    assert said in caplog.text
    # In an object store such rows would bring their images along.
    monkeypatch.setattr(first_rows, "location", lambda _: object())
    assert look(tmp_path / "a.parquet")
