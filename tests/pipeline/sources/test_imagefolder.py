"""Folders of images with a `metadata` file: each row finds its image below its own folder."""

from __future__ import annotations

import csv
import gc
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.sources.first_images import look_at_images
from cal_pipeline.sources.images import read_images
from cal_pipeline.sources.pass_through import pass_through_fields
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard, read_samples
from cal_schemas.errors import ConfigError, ImageError, ShardError
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import location
from tiny_models import sample_image

SUFFIXES = ("jsonl", "csv", "parquet")


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"file_name": f"{n}.png", "text": f'a "red" cat,\n{n} é'} for n in range(first, first + count)]


def write(folder: Path, suffix: str, of: list[dict[str, Any]], *, images: bool = True) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for row in of if images else ():
        (folder / row["file_name"]).parent.mkdir(parents=True, exist_ok=True)
        sample_image(hash(row["text"]) % 1000, (24, 20)).save(folder / row["file_name"])
    file = folder / f"metadata.{suffix}"
    if suffix == "jsonl":
        file.write_text("".join(f"{json.dumps(row)}\n" for row in of))
    elif suffix == "csv":
        with file.open("w", newline="") as lines:
            writer = csv.DictWriter(lines, [*of[0]])
            writer.writeheader()
            writer.writerows(of)
    else:
        pq.write_table(pa.Table.from_pylist(of), file)
    return folder


def read(shards: list[Shard]) -> list[tuple[Sample, Shard]]:
    return [(sample, shard) for shard in shards for sample in read_samples(shard)]


# datasets leaves the CSV file that it has read open.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_captions_and_images_are_those_that_datasets_loads(tmp_path: Path, suffix: str) -> None:
    folder = write(tmp_path / "pets", suffix, rows(7))
    (folder / "not-named.png").write_bytes(b"")
    shards = plan_shards([str(folder)], rows_per_shard=3)
    look_at_images(shards)
    assert {shard.source.image_folder for shard in shards} == {str(folder)}
    assert [shard.num_rows for shard in shards] == ([7] if suffix == "parquet" else [3, 3, 1])
    assert shards[0].name.startswith("metadata-r000000000-")
    found = read(shards)
    (folder / "not-named.png").unlink()
    datasets.disable_progress_bars()
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    by_text = {row["text"]: row["image"] for row in loaded}
    gc.collect()
    assert len(found) == len(by_text) == 7
    for sample, shard in found:
        assert sample.messages is not None
        (data,) = read_images(sample.images, location(str(shard.source.image_folder)))
        image = by_text[sample.messages[1].content]
        assert Path(image.filename).read_bytes() == data
    assert [sample.sample_id for sample, _ in found][4] == f"{shards[-1 if suffix == 'parquet' else 1].name}/4"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_metadata_file_has_images_of_its_own_folder(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "pets/train", suffix, rows(3))
    write(tmp_path / "pets/test", suffix, [{"file_name": "deep/0.png", "text": "another"}])
    found = read(plan_shards([str(tmp_path / "pets")]))
    folders = [shard.source.image_folder for _, shard in found]
    assert folders == [str(tmp_path / "pets/test"), *[str(tmp_path / "pets/train")] * 3]
    assert all(read_images(sample.images, location(str(shard.source.image_folder))) for sample, shard in found)
    # A folder that is given counts for all.
    (shard, *_) = plan_shards([str(tmp_path / "pets/train")], [str(tmp_path)])
    assert shard.source.image_folder == str(tmp_path)


def test_rows_may_have_several_images_or_none_and_any_layout_of_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "<image><image>Q"}, {"role": "assistant", "content": "A"}]
    of: list[dict[str, Any]] = [
        {"file_names": ["0.png", "1.png"], "messages": turns},
        {"images_file_names": ["1.png"], "caption": "one"},
        {"image_file_name": "0.png", "text": "two", "id": "x"},
        {"file_name": None, "text": "none"},
        {"file_name": "../0.png", "text": "outside"},
        {"file_name": "0.png", "image": "1.png", "text": "both"},
        {"file_name": "0.png", "image": "0.png", "text": "the same"},
        {"image": "1.png", "text": "by another key"},
    ]
    write(tmp_path, "jsonl", of, images=False)
    found = [sample for sample, _ in read(plan_shards([str(tmp_path)]))]
    assert [[image.path for image in sample.images] for sample in found] == [
        ["0.png", "1.png"], ["1.png"], ["0.png"], [], ["../0.png"], [], ["0.png"], ["1.png"],
    ]  # fmt: skip
    assert found[0].messages is not None
    assert found[2].sample_id == "x"
    assert found[5].problem == "the row has 'file_name' and 'image', and they differ: keep one of the two"
    assert [sample.problem for sample in found].count(None) == 7
    with pytest.raises(ImageError, match="leaves the image folder"):
        read_images(found[4].images, tmp_path)
    assert all("file_name" not in sample.unread for sample in found)


def test_other_columns_of_parquet_pass_through_and_a_second_image_column_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", "parquet", [{**row, "score": 0.5} for row in rows(2)])
    shards = plan_shards([str(folder)])
    assert [field.name for field in pass_through_fields(shards)] == ["score"]
    assert read(shards)[1][0].pass_through["score"].to_pylist() == [0.5]
    write(folder, "parquet", [{**row, "image": "0.png"} for row in rows(2)])
    with pytest.raises(ConfigError, match=r"columns \['image'\] occur more than once"):
        plan_shards([str(folder)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image;caption\n0.png;x\n", r"its first line has \['image;caption'\]; expected file_name and others"),
        ("", r"its first line has \[\]"),
        ("file_name,text,text\n0.png,a,b\n", "occur more than once"),
        ("file_name,text\n0.mp4,a\n", "names 0.mp4; only images are known, no sound and no video"),
        ('file_name,text\n0.png,"a cat\n', "broken CSV: line 1: unexpected end of data"),
        ("file_name,text\n", "no rows in"),
        ("file_name,description\n0.png,a\n", r"columns \['image', 'description'\] hold no text; expected one of"),
        ("file_name,l\xe9gende\n0.png,a\n", r"columns \['image', 'l\?gende'\] hold no text"),
        ('file_name,text,conversations\n0.png,,"[{}]"\n', "column 'conversations' is text, as all of CSV, and "
         r"turns are lists of objects: give such rows as metadata.jsonl \(JSON text\? Parse it"),
        ("\ufefffile_name,text\n0.wav,a\n".encode("utf-16-le").decode("latin-1"), "UTF-16"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_images_is_refused_in_one_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "metadata.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=said) as refused:
        plan_shards([str(tmp_path)])
    assert "\n" not in str(refused.value)


def test_a_csv_row_of_more_or_fewer_fields_is_a_row_with_its_problem(tmp_path: Path) -> None:
    lines = ["\ufefffile_name,text", "0.png,a,b", "0.png", "", "0.png,\xff", "0.png," + "long " * 40_000]
    (tmp_path / "metadata.csv").write_bytes("\r\n".join(lines).encode("utf-8").replace("\xff".encode(), b"\xff"))
    first, second, third, fourth = (sample for sample, _ in read(plan_shards([str(tmp_path)])))
    assert first.problem == "a row of 3 fields, 2 are named"
    assert "no conversation" in str(second.problem)
    assert third.messages is not None
    assert third.messages[1].content == "\ufffd"
    assert fourth.messages is not None
    assert len(fourth.messages[1].content) == 200_000


def test_a_csv_may_have_a_column_of_turns_that_is_empty(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,text,messages\n0.png,a,\n")
    ((sample, _),) = read(plan_shards([str(tmp_path)]))
    assert sample.messages is not None
    assert sample.messages[1].content == "a"


def test_a_file_that_was_cut_between_planning_and_reading_is_said_to_have_changed(tmp_path: Path) -> None:
    write(tmp_path, "csv", rows(5))
    (shard,) = plan_shards([str(tmp_path)])
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    with pytest.raises(ShardError, match="changed since planning"):
        read([shard])


def test_images_alone_and_csv_elsewhere_are_not_read(tmp_path: Path) -> None:
    write(tmp_path / "cats", "jsonl", rows(2))
    (tmp_path / "cats/metadata.jsonl").rename(tmp_path / "cats/metadata.json5")
    (tmp_path / "cats/labels.csv").write_text("file_name,text\n")
    with pytest.raises(ConfigError, match=r"none of its 4 files ends in .*metadata\.csv"):
        plan_shards([str(tmp_path / "cats")])


@pytest.mark.parametrize("name", ["captions.json", "captions.csv.gz", "captions.tsv", "captions.CSV"])
def test_a_list_of_another_kind_is_refused_before_its_rows_all_fail(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("file_name,text\n0.png,a\n")
    with pytest.raises(
        ConfigError, match=rf"{name}: an imagefolder's list of images ends in \.jsonl, \.csv, \.parquet"
    ):
        plan_shards([str(tmp_path / name)], data_format="imagefolder")
