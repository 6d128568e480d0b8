"""Folders of `datasets.save_to_disk`: what `load_from_disk` gives is read, in its order, and nothing twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.errors import ConfigError, ShardError
from cal_schemas.sample import Sample
from tiny_models import sample_image


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def made(rows: int, **columns: Any) -> datasets.Dataset:
    images = [sample_image(number, (24, 20)) for number in range(rows)]
    answers = [[{"role": "user", "content": "<image>\nQ"}, {"role": "assistant", "content": f"answer {number}"}]
               for number in range(rows)]  # fmt: skip
    data = datasets.Dataset.from_dict({"images": [[image] for image in images], "messages": answers, **columns})
    return data.cast_column("images", datasets.List(datasets.Image()))


def samples(*paths: Path) -> list[Sample]:
    return [sample for shard in plan_shards([str(path) for path in paths]) for sample in read_samples(shard)]


def answers(*paths: Path) -> list[str]:
    return [sample.messages[-1].content for sample in samples(*paths) if sample.messages]


def test_a_saved_data_set_is_read_as_it_would_be_loaded(tmp_path: Path) -> None:
    data = made(7, score=[number / 2 for number in range(7)], kind=["a"] * 7).cast_column(
        "kind", datasets.ClassLabel(names=["b", "a"])
    )
    data.save_to_disk(tmp_path / "saved", num_shards=3)
    shards = plan_shards([str(tmp_path / "saved")])
    assert [(shard.name, shard.num_rows) for shard in shards] == [
        ("data-00000-of-00003", 3), ("data-00001-of-00003", 2), ("data-00002-of-00003", 2),
    ]  # fmt: skip
    assert all(shard.embedded_bytes > 100 for shard in shards)
    read = samples(tmp_path / "saved")
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    assert [sample.messages[1].content for sample in read if sample.messages] == [
        row["messages"][1]["content"] for row in loaded
    ]
    kept = datasets.load_from_disk(str(tmp_path / "saved")).cast_column(
        "images", datasets.List(datasets.Image(decode=False))
    )
    assert [sample.images[0].data for sample in read] == [row["images"][0]["bytes"] for row in kept]
    assert [sample.pass_through["score"].to_pylist() for sample in read] == [[number / 2] for number in range(7)]
    assert {field.name: field.type for field in pass_through_fields(shards)} == {
        "score": pa.float64(),
        "kind": pa.int64(),
    }


def test_all_splits_of_a_saved_dict_are_read_or_the_folder_of_one(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": made(4), "test": made(2)}).save_to_disk(tmp_path / "saved")
    assert [shard.name for shard in plan_shards([str(tmp_path / "saved")])] == [
        "test/data-00000-of-00001", "train/data-00000-of-00001",
    ]  # fmt: skip
    assert len(answers(tmp_path / "saved")) == 6
    assert len(answers(tmp_path / "saved" / "train")) == 4


def test_caches_that_map_left_beside_the_data_are_no_rows(tmp_path: Path) -> None:
    made(4).save_to_disk(tmp_path / "saved")
    loaded = datasets.load_from_disk(str(tmp_path / "saved"))
    loaded.map(lambda row: {"length": len(row["messages"])})
    assert [path.name for path in (tmp_path / "saved").glob("cache-*.arrow")]
    assert answers(tmp_path / "saved") == [f"answer {number}" for number in range(4)]
    # Rows that were chosen are written in their order.
    loaded.select([3, 1]).save_to_disk(tmp_path / "chosen")
    assert answers(tmp_path / "chosen") == ["answer 3", "answer 1"]


def test_what_a_folder_names_and_has_not_is_missed(tmp_path: Path) -> None:
    made(4).save_to_disk(tmp_path / "saved", num_shards=2)
    (tmp_path / "saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(ConfigError, match=r"state.json names data-00001-of-00002.arrow, which is not there"):
        plan_shards([str(tmp_path / "saved")])
    datasets.DatasetDict({"train": made(2), "test": made(2)}).save_to_disk(tmp_path / "dict")
    (tmp_path / "dict/test/state.json").unlink()
    with pytest.raises(ConfigError, match=r"dataset_dict.json names the split 'test', and .*dict/test has none"):
        plan_shards([str(tmp_path / "dict")])
    for broken in ("{", "[]", '{"_data_files": [{"file": 1}]}', '{"_data_files": 5}'):
        (tmp_path / "saved/state.json").write_text(broken)
        with pytest.raises(ConfigError, match=r"state.json: not as save_to_disk writes it"):
            plan_shards([str(tmp_path / "saved")])


def test_notes_about_data_in_a_folder_are_no_data(tmp_path: Path) -> None:
    # As the cache of load_dataset, and LLaMA-Factory's folder of data, have one.
    made(3).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved/state.json").unlink()
    assert len(answers(tmp_path / "saved")) == 3
    (tmp_path / "data").mkdir()
    (tmp_path / "data/dataset_info.json").write_text(json.dumps({"mine": {"file_name": "a.json"}}))
    (tmp_path / "data/a.json").write_text(json.dumps([{"text": "words"}]))
    assert answers(tmp_path / "data") == ["words"]


@pytest.mark.parametrize("size", [0, 4, 300, -8, -1])
def test_a_file_that_was_cut_off_is_not_taken_for_whole(tmp_path: Path, size: int) -> None:
    made(300).save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved/data-00000-of-00001.arrow"
    whole = file.read_bytes()
    (shard,) = plan_shards([str(file)])
    file.write_bytes(whole[:size])
    (broken,) = plan_shards([str(file), str(_fine(tmp_path))], list_broken=True)[:1]
    assert broken.problem is not None
    assert "saved/data-00000-of-00001.arrow: corrupt Arrow file: " in broken.problem
    with pytest.raises(ShardError, match="changed since planning"):
        list(read_samples(shard))


def _fine(folder: Path) -> Path:
    (folder / "fine.jsonl").write_text(json.dumps({"text": "words"}) + "\n")
    return folder / "fine.jsonl"


def test_bytes_that_changed_are_an_error_or_another_word_and_never_a_crash(tmp_path: Path) -> None:
    made(6).save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved/data-00000-of-00001.arrow"
    whole = bytearray(file.read_bytes())
    noise = np.random.default_rng(0)
    outcomes = set()
    for at in noise.integers(0, len(whole), 300):
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << int(noise.integers(8))
        file.write_bytes(spoilt)
        try:
            outcomes.add(f"{len(answers(file))} rows")
        except (ShardError, ConfigError) as error:
            outcomes.add(type(error).__name__)
    assert "6 rows" in outcomes
    assert outcomes <= {"6 rows", "ShardError", "ConfigError"} | {f"{rows} rows" for rows in range(6)}


def test_text_that_is_no_utf8_is_kept_with_marks(tmp_path: Path) -> None:
    made(2).save_to_disk(tmp_path / "saved")
    file = tmp_path / "saved/data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes().replace(b"answer 1", b"answer\xff1"))
    first, second = samples(tmp_path / "saved")
    assert first.note is None
    assert second.messages is not None
    assert second.messages[1].content == "answer\ufffd1"
    assert "not UTF-8" in str(second.note)


def test_files_with_a_footer_are_read_too_also_compressed(tmp_path: Path) -> None:
    rows = [{"text": f"answer {number}", "image": "a.png" if number else None} for number in range(100)]
    pl.DataFrame(rows).write_ipc(tmp_path / "polars.arrow", compression="zstd")
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    (tmp_path / "a.png").write_bytes(b"")
    for name in ("polars.arrow", "stream.arrow"):
        with pytest.raises(ConfigError, match="names image files"):
            plan_shards([str(tmp_path / name)])
        (shard,) = plan_shards([str(tmp_path / name)], [str(tmp_path)])
        assert (shard.num_rows, shard.embedded_bytes) == (100, 0)
        assert [sample.messages[1].content for sample in read_samples(shard) if sample.messages][99] == "answer 99"


def test_columns_are_judged_as_parquets_are(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"a": [1]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ConfigError, match=r"columns \['a'\] hold no text"):
        plan_shards([str(tmp_path / "saved")])
    datasets.Dataset.from_dict({"text": [["a"]]}).save_to_disk(tmp_path / "lists")
    with pytest.raises(ConfigError, match=r"column 'text' has type .*, expected a string"):
        plan_shards([str(tmp_path / "lists")])
    schema = pa.schema({"text": pa.string()})
    with pa.ipc.new_stream(tmp_path / "empty.arrow", schema):
        pass
    with pytest.raises(ConfigError, match="no rows in"):
        plan_shards([str(tmp_path / "empty.arrow")])
