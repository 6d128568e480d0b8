"""Image folders and sources that are ill for a while: the real program, and the same command when they are well."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cal_pipeline.sources.planning import plan_shards
from conftest import Family
from fault_job import Job
from ill_files import ill_files
from tiny_models import sample_image

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def write_rows(folder: Path, name: str, images: str, count: int = 3) -> None:
    (folder / "images" / images).mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        sample_image(number).save(folder / "images" / images / f"{number}.png")
        rows.append({
            "id": f"{name}{number}", "image": f"{images}/{number}.png",
            "conversations": [{"from": "human", "value": f"<image>\nWhat is {number}?"},
                              {"from": "gpt", "value": "A cat."}],
        })  # fmt: skip
    source = folder / "data" / f"{name}.jsonl"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))


def statuses(job: Job) -> dict[str, list[str]]:
    return {name: pq.read_table(job.output / f"{name}.parquet")["status"].to_pylist() for name in job.done()}


def shard(name: str, count: int = 3) -> str:
    return f"{name}-r000000000-{count:09d}"


@pytest.mark.full
def test_ill_images_and_sources_fail_their_shards_by_name_and_the_same_command_does_them_later(
    tmp_path: Path, llava: Family
) -> None:
    for name, images in (("good", "good"), ("images", "ill"), ("ill/source", "good")):
        write_rows(tmp_path, name, images)
    flag = tmp_path / "flag"
    flags = ("--image_folder", str(tmp_path / "images"), "--max_tries", "2")
    job = Job(model=llava.directory, data=tmp_path / "data", output=tmp_path / "out", flags=flags,
              environment=ill_files("/ill/", flag, errno.EACCES))  # fmt: skip
    process = job.start()
    job.wait_for(process, (job.output / ".cal" / "plan.json").exists, "the plan is there")
    flag.touch()  # A model takes longer to load than a disk to fall ill.
    assert job.finish(process) == 1, job.said()
    said = job.said()
    assert job.done() == [shard("good")]
    assert f"FAILED {shard('images')}: image 'ill/0.png' in {tmp_path}/images cannot be read now: Permission" in said
    assert f"FAILED {shard('ill/source')}: {tmp_path}/data/ill/source.jsonl: cannot be read now: Permission" in said
    assert "image_error" not in said
    flag.unlink()
    assert job.run() == 0, job.said()
    assert statuses(job) == {shard(name): ["ok"] * 3 for name in ("good", "ill/source", "images")}


@pytest.mark.full
def test_a_folder_moved_away_in_mid_run_makes_no_row_final(tmp_path: Path, slow_model: Path) -> None:
    write_rows(tmp_path, "rows", "set", count=40)
    folder = tmp_path / "images"
    flags = ("--image_folder", str(folder), "--rows_per_shard", "4", "--max_tries", "1", "--max_error_fraction", "1",
             "--tokens_per_batch", "128")  # fmt: skip
    job = Job(model=slow_model, data=tmp_path / "data", output=tmp_path / "out", flags=flags)
    process = job.start()
    job.wait_for(process, lambda: len(job.done()) >= 2, "two shards are done")
    folder.rename(tmp_path / "elsewhere")
    assert job.finish(process) == 1, job.said()
    assert f"--image_folder {folder} is gone or empty (moved, or unmounted?)" in job.said()
    assert 2 <= len(job.done()) < 10
    assert {status for of_shard in statuses(job).values() for status in of_shard} == {"ok"}
    (tmp_path / "elsewhere").rename(folder)
    assert len(plan_shards([str(job.data)], [str(folder)], rows_per_shard=4)) == 10
    assert job.run() == 0, job.said()
    assert statuses(job) == {f"rows-r{n:09d}-{n + 4:09d}": ["ok"] * 4 for n in range(0, 40, 4)}
