import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from cal_pipeline.sources import planning
from cal_pipeline.sources.planning import find_sources, plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.errors import ConfigError
from cal_schemas.metadata import ShardSource
from cal_schemas.sample import ImageRef
from plain_sources import ids, write


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("a.json", "json"),
        ("a.json.zst", "json"),
        ("a.jsonl", "jsonl"),
        ("a.jsonl.zst", "jsonl"),
        ("a.parquet", "parquet"),
    ],
)
def test_a_file_is_known_by_its_suffix_and_all_its_rows_are_read(tmp_path: Path, file: str, kind: str) -> None:
    path = write(tmp_path / file, 5)
    assert [(name, item.name) for _, name, item in find_sources(str(path), "auto")] == [("a", kind)]
    assert ids(plan_shards([str(path)], rows_per_shard=2)) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("name", ["_c.json", ".h.json", "_train/x.json"])
def test_a_name_whose_output_readers_would_ignore_is_refused(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name)
    data_path = str(tmp_path) if "/" in name else str(file)
    with pytest.raises(ConfigError, match="pandas and pyarrow ignore names"):
        plan_shards([data_path])


def test_an_unknown_suffix_is_refused_and_a_named_format_is_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl").rename(tmp_path / "a.txt")
    with pytest.raises(ConfigError, match=r"a\.txt: its only file ends in none of .*\.jsonl, .*--data_format"):
        plan_shards([str(path)])
    assert ids(plan_shards([str(path)], data_format="jsonl")) == ["0", "1", "2"]
    write(tmp_path / "b.jsonl").rename(tmp_path / "b.txt")
    assert len(plan_shards([str(tmp_path / "*.txt")], data_format="jsonl")) == 2


def test_shard_names_are_stable_and_say_the_row_range(tmp_path: Path) -> None:
    path = write(tmp_path / "d/a.jsonl", 5)
    plan = plan_shards([str(tmp_path)], rows_per_shard=2)
    assert [shard.name for shard in plan] == [
        "d/a-r000000000-000000002", "d/a-r000000002-000000004", "d/a-r000000004-000000005",
    ]  # fmt: skip
    assert plan == plan_shards([str(tmp_path)], rows_per_shard=2)
    stat = path.stat()
    assert plan[1].source == ShardSource(
        uri=str(path), data_path=str(tmp_path), image_folder=None, num_rows=2, size=stat.st_size,
        mtime_ns=stat.st_mtime_ns, row_start=2, row_stop=4, data_format="jsonl",
    )  # fmt: skip


def test_a_parquet_file_is_one_shard_of_its_own_name(tmp_path: Path) -> None:
    (shard,) = plan_shards([str(write(tmp_path / "a.parquet", 5))], rows_per_shard=2)
    assert (shard.name, shard.num_rows) == ("a", 5)


def test_shards_come_in_the_order_of_the_data_paths(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / name)) for name in ("b.jsonl", "a.parquet")]
    assert [shard.source.data_path for shard in plan_shards(paths)] == paths


@pytest.mark.parametrize(
    ("first", "second"), [("x/a.json", "y/a.json"), ("x/a.json", "y/a.parquet"), ("x/a.json",) * 2]
)
def test_two_files_of_one_output_name_are_refused_naming_both(tmp_path: Path, first: str, second: str) -> None:
    paths = [str(write(tmp_path / first)), str(write(tmp_path / second))]
    with pytest.raises(ConfigError) as error:
        plan_shards(paths)
    assert str(error.value).startswith(f"{paths[0]} and {paths[1]} would both be written to a*.parquet")


def test_a_parquet_file_named_like_a_virtual_shard_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.json", 3)
    write(tmp_path / "a-r000000000-000000003.parquet")
    with pytest.raises(ConfigError, match=r"a-r000000000-000000003\.parquet and .*a\.json would both be written to"):
        plan_shards([str(tmp_path)])


def test_files_of_one_name_in_two_folders_of_one_data_path_do_not_clash(tmp_path: Path) -> None:
    write(tmp_path / "x/a.parquet")
    write(tmp_path / "y/a.parquet")
    assert [shard.name for shard in plan_shards([str(tmp_path)])] == ["x/a", "y/a"]


def test_image_folders_are_none_one_for_all_or_one_for_each(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / name)) for name in ("a.json", "b.json")]
    folders = [str(tmp_path / name) for name in ("i", "j", "k")]
    for folder in folders:
        Path(folder).mkdir()
    assert [shard.source.image_folder for shard in plan_shards(paths)] == [None, None]
    assert [shard.source.image_folder for shard in plan_shards(paths, folders[:1])] == [folders[0]] * 2
    assert [shard.source.image_folder for shard in plan_shards(paths, folders[:2])] == folders[:2]
    with pytest.raises(
        ConfigError, match="3 --image_folder for 2 --data_path: give none, one for all, or one for each"
    ):
        plan_shards(paths, folders)


def test_a_relative_image_folder_is_kept_absolute_for_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "i").mkdir()
    monkeypatch.chdir(tmp_path)
    (shard,) = plan_shards([str(write(tmp_path / "a.json"))], ["i"])
    assert shard.source.image_folder == str(tmp_path / "i")


@pytest.mark.parametrize("folder", ["absent", "a.json"])
def test_an_image_folder_that_is_no_directory_is_refused(tmp_path: Path, folder: str) -> None:
    path = write(tmp_path / "a.json")
    with pytest.raises(ConfigError, match=rf"--image_folder .*{folder}: no such directory"):
        plan_shards([str(path)], [str(tmp_path / folder)])


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_names_images_needs_an_image_folder(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, image="a.png")
    with pytest.raises(ConfigError, match=rf"{name} names image files: say with --image_folder where they are"):
        plan_shards([str(path)])
    assert len(plan_shards([str(path)], [str(tmp_path)])) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
def test_data_urls_need_no_folder_and_count_as_embedded_images(tmp_path: Path, name: str) -> None:
    url, chat = f"data:image/png;base64,{'AAAA' * 100}", [{"role": "user", "content": "<image>"}]
    (tmp_path / "a.json").write_text(json.dumps([{"image": url, "messages": chat}]))
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": url, "messages": chat}) + "\n")
    pq.write_table(pa.table({"image": [url], "messages": [chat]}), tmp_path / "a.parquet", compression="none")
    (shard,) = plan_shards([str(tmp_path / name)])
    assert [sample.images for sample in read_samples(shard)] == [(ImageRef(data=bytes(300)),)]
    assert shard.embedded_bytes > 300
    pq.write_table(pa.table({"image": [url, "a.png"], "messages": [chat] * 2}), tmp_path / "b.parquet")
    with pytest.raises(ConfigError, match="names image files"):
        plan_shards([str(tmp_path / "b.parquet")])


def test_files_that_are_listed_already_are_not_listed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.json", 2)
    whole, listed = plan_shards([str(tmp_path)]), [find_sources(str(tmp_path), "auto")]
    monkeypatch.setattr(planning, "find_sources", None)
    assert plan_shards([str(tmp_path)], sources=listed) == whole


def test_no_rows_at_all_is_refused_and_one_empty_file_is_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    empty = write(tmp_path / "a.json", 0)
    with pytest.raises(ConfigError, match=r"no rows in .*a\.json"):
        plan_shards([str(empty)])
    write(tmp_path / "b.json", 2)
    caplog.clear()
    assert ids(plan_shards([str(tmp_path)])) == ["0", "1"]
    assert [record.getMessage() for record in caplog.records] == [f"{empty} holds no rows"]


def test_a_parquet_file_of_no_rows_is_a_shard_of_no_rows(tmp_path: Path) -> None:
    (shard,) = plan_shards([str(write(tmp_path / "a.parquet", 0))])
    assert (shard.num_rows, ids([shard])) == (0, [])


def test_a_broken_parquet_file_is_refused_at_planning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet")
    for data in (b"", b"PAR1", path.read_bytes()[:-20]):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=r"a\.parquet: not a readable Parquet file"):
            plan_shards([str(path)])


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.parquet"])
@pytest.mark.parametrize("key", ["jpg", "img", "image_path"])
def test_a_file_whose_images_stand_under_a_key_that_nobody_reads_is_refused(
    tmp_path: Path, name: str, key: str
) -> None:
    value = PNG if key == "jpg" and name.endswith("parquet") else "a.png"
    path = write(tmp_path / name, **{key: value} if not name.endswith("parquet") else {key: [value] * 3})
    with pytest.raises(ConfigError, match=f"{name}: no image is set, and '{key}' holds .*: call it 'image'"):
        plan_shards([str(path)])


def test_a_file_of_which_some_rows_have_images_is_not_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", image=[None, PNG, None], jpg=[PNG, PNG, None])
    first, second, third = read_samples(plan_shards([str(path)])[0])
    assert (first.problem or "").startswith("no image is set, and 'jpg' holds the bytes of an image: call it 'image'")
    assert (second.problem, second.unread) == (None, ("jpg",))
    assert third.problem is None


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.zst"])
def test_text_of_wide_characters_is_refused_by_name(tmp_path: Path, name: str, encoding: str) -> None:
    text = write(tmp_path / ("b.json" if name == "a.json" else "b.jsonl")).read_text()
    data = text.encode(encoding)
    (tmp_path / name).write_bytes(zstandard.compress(data) if name.endswith("zst") else data)
    with pytest.raises(ConfigError, match=f"{name} is UTF-16 or UTF-32 text, and JSON is read as UTF-8: iconv"):
        plan_shards([str(tmp_path / name)])


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_byte_order_mark_of_utf8_is_no_part_of_the_first_row(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    samples = list(read_samples(plan_shards([str(path)])[0]))
    assert len(samples) == 3
    assert all(sample.problem is None for sample in samples)
