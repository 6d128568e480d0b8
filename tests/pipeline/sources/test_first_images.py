"""What is seen of the images before work, and what ends a run there."""

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.sources import first_images
from cal_pipeline.sources.first_images import look_at_images
from cal_pipeline.sources.images import read_image_file
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError
from cal_schemas.sample import ImageRef
from cal_schemas.storage.locations import Location
from tiny_data import write_parquet
from tiny_models import sample_image

CHAT = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


def write_rows(path: Path, names: list[str | None]) -> Path:
    """LLaVA rows that name these images; None is a row of text."""
    rows = [{"conversations": CHAT if name else CHAT[1:], **({"image": name} if name else {})} for name in names]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "train").mkdir(parents=True)
    for number in range(20):
        sample_image(number).save(folder / f"train/{number}.png")
    return folder


def look(*data: Path, folders: list[Path], rows_per_shard: int = 4) -> None:
    look_at_images(plan_shards([*map(str, data)], [*map(str, folders)], rows_per_shard=rows_per_shard))


def names(count: int, folder: str = "train") -> list[str | None]:
    return [f"{folder}/{number}.png" for number in range(count)]


def test_a_folder_without_any_of_them_is_refused_with_both_paths(tmp_path: Path, images: Path) -> None:
    data = write_rows(tmp_path / "d.jsonl", names(20, "val"))
    with pytest.raises(ConfigError) as refused:
        look(data, folders=[images])
    assert str(refused.value) == (
        f"--data_path {data}: none of the 8 images looked at can be read. The first is 'val/0.png', and with "
        f"--image_folder {images} that is {images}/val/0.png: image 'val/0.png' is not a file in {images}"
    )


@pytest.mark.parametrize("given", ["images/train", "."])
def test_a_folder_nearby_that_has_them_is_named(tmp_path: Path, images: Path, given: str) -> None:
    data = write_rows(tmp_path / "d.jsonl", names(3))
    with pytest.raises(ConfigError, match=rf"It lies in {images}: give --image_folder {images}$"):
        look(data, folders=[tmp_path / given])


def test_every_data_path_is_looked_at_with_its_own_folder(tmp_path: Path, images: Path) -> None:
    good, bad = write_rows(tmp_path / "good.jsonl", names(3)), write_rows(tmp_path / "bad.jsonl", names(3, "val"))
    with pytest.raises(ConfigError, match=rf"--data_path {bad}: none of the 3 images"):
        look(good, bad, folders=[images])
    with pytest.raises(ConfigError, match=rf"--data_path {good}: none of the 3 images"):
        look(good, bad, folders=[tmp_path, images])


def test_some_that_are_missing_are_a_warning(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = write_rows(tmp_path / "d.jsonl", [*names(8, "val"), *names(8)])
    look(data, folders=[images])
    assert "4 of 8 images looked at cannot be read; the first: image 'val/0.png' is not a file" in caplog.text


def test_images_that_are_all_no_images_are_a_warning(
    tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in images.rglob("*.png"):
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    look(write_rows(tmp_path / "d.jsonl", names(20)), folders=[images])
    assert "none of 8 images looked at can be decoded; the first: image of 43 bytes" in caplog.text
    assert "Git LFS" in caplog.text


def test_a_store_of_links_that_lead_out_is_refused_with_the_link(tmp_path: Path, images: Path) -> None:
    (tmp_path / "links/train").mkdir(parents=True)
    for path in images.glob("train/*"):
        (tmp_path / "links/train" / path.name).symlink_to(path)
    data = write_rows(tmp_path / "d.jsonl", names(20))
    with pytest.raises(ConfigError, match=rf"is a link to \S+; give --image_folder {images}, or a copy"):
        look(data, folders=[tmp_path / "links"])


def test_no_more_than_eight_are_opened_from_all_over_the_data(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[str | None] = []

    def opening(ref: ImageRef, folder: Location | None) -> bytes:
        opened.append(ref.path)
        return read_image_file(ref, folder)

    monkeypatch.setattr(first_images, "read_image_file", opening)
    data = write_rows(tmp_path / "d.jsonl", [None, *names(20), *names(20, "val")])
    with caplog.at_level(logging.WARNING):
        look(data, folders=[images])
    # Shards of 4 rows: the first, the fourth, the seventh, the tenth.
    assert opened == [f"train/{n}.png" for n in (0, 1, 11, 12)] + [f"val/{n}.png" for n in (3, 4, 15, 16)]


def test_embedded_images_and_rows_of_text_need_no_folder_that_holds_them(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    embedded = write_parquet(tmp_path / "a.parquet", count=3)
    text = write_rows(tmp_path / "d.jsonl", [None] * 3)
    look(embedded, text, folders=[tmp_path / "empty"])


def test_paths_in_parquet_are_looked_at(tmp_path: Path, images: Path) -> None:
    table = pa.table({"image": names(3), "text": ["A cat."] * 3})
    pq.write_table(table, tmp_path / "a.parquet")
    look(tmp_path / "a.parquet", folders=[images])
    with pytest.raises(ConfigError, match="none of the 3 images looked at can be read"):
        look(tmp_path / "a.parquet", folders=[images / "train"])
