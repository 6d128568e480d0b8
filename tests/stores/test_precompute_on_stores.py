"""`cal-precompute` from an object store to an object store, `cal-train` from there; a real server, real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline import cli
from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.models.loading import load_processor
from cal_pipeline.output.object_store import ObjectStore
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.sources.images import read_image_file
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import read_samples
from cal_schemas.annotated import annotated_schema
from cal_schemas.errors import ConfigError, ImageError, ShardError
from cal_schemas.opened import open_annotated
from cal_schemas.sample import ImageRef
from cal_schemas.storage.locations import open_parquet
from cal_schemas.storage.object_path import ObjectPath
from cal_trainer.data.dataset import AnnotatedExamples
from cal_trainer.data.streaming import StreamedExamples
from conftest import Family
from examples_of import measurement_spec
from fault_job import PATIENCE_S, Job, cut_power, wait_for, write_shards
from s3_server import FaultyProxy
from tiny_data import BAD_ROWS, MAX_IMAGE_PIXELS, write_llava_json, write_parquet

ROWS = 40
LAST_REQUEST = {
    "s3": ({"POST"}, "uploadId="), "gs": ({"PUT"}, "upload_id="), "az": ({"PUT"}, "comp=blocklist"),
}  # fmt: skip
"""Of an upload in parts: what the last request, or with Google the first part, looks like."""
PROGRAMS = Path(sys.executable).parent


def upload(folder: Path, to: ObjectPath) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            (to / path.relative_to(folder).as_posix()).upload(path, if_absent=True)


def command(family: Family, bucket: ObjectPath | None, output: object, *flags: str) -> list[str]:
    defaults = {
        "--model_name_or_path": str(family.directory), "--dtype": "float32", "--data_path": f"{bucket}/in/data.json",
        "--image_folder": f"{bucket}/in/images", "--output_dir": str(output), "--rows_per_shard": "10",
        "--max_image_pixels": str(MAX_IMAGE_PIXELS), "--tokens_per_batch": "512", "--gpus_per_worker": "0",
    }  # fmt: skip
    kept = [part for pair in defaults.items() if pair[0] not in flags for part in pair]
    return [str(PROGRAMS / "cal-precompute"), *kept, *flags]


def precompute(
    family: Family, bucket: ObjectPath, output: object, *flags: str, environment: Mapping[str, str] | None = None
) -> tuple[int, str, str]:
    process = subprocess.Popen(
        command(family, bucket, output, *flags), env={**os.environ, **(environment or {})}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = process.communicate(timeout=PATIENCE_S)
    assert "Traceback" not in out + err, err
    return process.returncode, out, err


def test_an_object_that_another_driver_published_otherwise_is_refused_with_both_values(
    bucket: ObjectPath, tmp_path: Path, llava: Family
) -> None:
    (shard,) = plan_shards([str(write_parquet(tmp_path / "a.parquet", count=2))])
    options = AnnotateOptions(schema=annotated_schema(carry="none"), carry="none", tokens_per_batch=512)

    def annotate(**changed: str) -> ShardReport:
        return annotate_shard(
            shard, encoder=llava.encoder, model=llava.model, spec=measurement_spec(**changed), options=options,
            store=ObjectStore(output_dir=bucket / "out"),
        )  # fmt: skip

    assert annotate().committed
    before = (bucket / "out/a.parquet").read_bytes()
    assert not annotate().committed
    with pytest.raises(
        ConfigError, match=rf"{bucket}/out/a\.parquet holds another measurement \(model_id: 'tiny' there, "
    ):
        annotate(model_id="other")
    assert (bucket / "out/a.parquet").read_bytes() == before


@pytest.fixture(scope="module")
def on_disk(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Measured from disk to disk, from `in` to `out`."""
    folder = tmp_path_factory.mktemp("disk")
    data, images = write_llava_json(folder / "in", ROWS)
    given = "--data_path", str(data), "--image_folder", str(images), "--num_workers", "1"
    subprocess.run(command(llava, None, folder / "out", *given), check=True)
    return folder


@pytest.mark.slow
@pytest.mark.full
def test_from_store_to_store_equals_from_disk_to_disk(
    bucket: ObjectPath, on_disk: Path, llava: Family, proxy: FaultyProxy, capfd: pytest.CaptureFixture[str]
) -> None:
    data = on_disk / "in" / "data.json"
    upload(on_disk / "in", bucket / "in")
    # Every third request fails in some way.
    proxy.faults.extend(["pass", "pass", "drop", "pass", "pass", "503", "pass", "pass", "cut", "pass", "lost"] * 8)
    code, _, err = precompute(llava, bucket, bucket / "out", "--num_workers", "2")
    assert code == 0, err
    assert not proxy.faults
    for path in sorted((on_disk / "out").glob("*.parquet")):
        with open_parquet(bucket / "out" / path.name) as file:
            mine, theirs = file.read(), pq.read_table(path)
        # A message about a missing image names the folder; everything else is the same to the bit.
        assert mine.drop_columns(["error"]).equals(theirs.drop_columns(["error"])), path.name
    opened = open_annotated(bucket / "out")
    statuses = [row for batch in opened.batches(["status"]) for row in batch["status"].to_pylist()]
    assert statuses == [BAD_ROWS.get(number, ("ok",))[0] for number in range(ROWS)]
    source = opened.metadata[0].source
    assert (source.uri, source.etag, source.mtime_ns) == (
        f"{bucket}/in/data.json", (bucket / "in/data.json").stat().etag, 0,
    )  # fmt: skip
    # The same command again finds everything done; a changed source is refused by its etag.
    etags = {str(item): item.stat().etag for item in opened.files}  # type: ignore[union-attr]
    again = command(llava, bucket, bucket / "out")[1:]
    assert cli.run(again) == 0, capfd.readouterr().err
    assert "nothing to do: all 4 shards" in capfd.readouterr().out
    assert {str(item): item.stat().etag for item in open_annotated(bucket / "out").files} == etags  # type: ignore[union-attr]
    (bucket / "in/data.json").write_text(data.read_text().replace("A red cat", "A RED cat", 1))
    assert cli.run(again) == 2
    err = capfd.readouterr().err
    assert "data.json has changed since the shard " in err
    assert "data-r000000000-000000010.parquet was measured from it (etag was" in err
    report = json.loads(next(iter((bucket / "out/.cal/reports").glob("run-*.json"))).read_text())
    assert report["shards"][0]["seconds"].keys() == {"load", "encode", "forward", "write", "total"}


@pytest.mark.slow
@pytest.mark.full
def test_a_killed_upload_leaves_nothing_visible_clean_aborts_it_and_the_same_command_goes_on(
    bucket: ObjectPath, tmp_path: Path, llava: Family, proxy: FaultyProxy, module: ModuleType
) -> None:
    for number in range(8):
        write_parquet(tmp_path / "in" / f"b{number}.parquet", count=2, seed=number)
    large = write_parquet(tmp_path / "in" / "a.parquet", count=2)
    rows = pq.read_table(large).to_pylist()
    # What follows an image's end does not disturb it, and makes its shard large enough to be sent in parts.
    rows[0]["images"][0]["bytes"] += np.random.default_rng(0).bytes(2 * module.PART_BYTES)
    pq.write_table(pa.Table.from_pylist(rows), large)
    upload(tmp_path / "in", bucket / "in")
    output, flags = (
        bucket / "out",
        ("--data_path", f"{bucket}/in", "--image_folder", f"{bucket}/in", "--carry", "images", "--num_workers", "2"),
    )
    # The upload begins, all its parts arrive, its completion never does.
    proxy.only, proxy.where = LAST_REQUEST[bucket.scheme]
    proxy.faults.extend(["hang"] * 10)
    process = subprocess.Popen(
        command(llava, bucket, output, *flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    )
    wait_for(
        lambda: any(fault == "hang" for *_, fault in proxy.requests) and len(list(output.glob("*.parquet"))) >= 2,
        "two shards are published and the large one is all but",
        still=lambda: process.poll() is None,
    )
    cut_power(process)
    proxy.faults.clear()
    before = {item.name: item.stat().etag for item in output.glob("*.parquet")}
    assert "a.parquet" not in before
    assert open_annotated(output).num_rows == 2 * len(before)
    # The other stores list no unfinished uploads, and forget them after a week.
    listed = bucket.scheme == "s3"
    assert [key for key, _ in output.unfinished_uploads()] == ["out/a.parquet"] * listed

    code, out, err = precompute(llava, bucket, output, "--clean")
    assert (code, f"removed unfinished upload of {output}/a.parquet" in out) == (0, listed), out + err
    assert output.unfinished_uploads() == []
    assert {item.name: item.stat().etag for item in output.glob("*.parquet")} == before
    code, _, err = precompute(llava, bucket, output, *flags)
    assert code == 0, err
    after = {item.name: item.stat().etag for item in output.glob("*.parquet")}
    assert {name: after[name] for name in before} == before
    code, out, err = precompute(llava, bucket, output, "--verify")
    assert code == 0, out
    assert "9 shards with 18 rows: all is well" in out


@pytest.mark.parametrize("pattern", ["in", "in/*.parquet", "in/**/*.parquet", "in/[ab].parquet", "in/{a,b}.parquet"])
def test_prefixes_globs_and_braces_find_the_same_files(bucket: ObjectPath, tmp_path: Path, pattern: str) -> None:
    for name in ("a", "b"):
        write_parquet(tmp_path / "in" / f"{name}.parquet", count=2)
    upload(tmp_path / "in", bucket / "in")
    (bucket / "in/.cal/staging/x.parquet").write_bytes(b"half")
    shards = plan_shards([f"{bucket}/{pattern}"], [str(bucket / "in")]) if "**" not in pattern else plan_shards(
        [f"{bucket}/in/*.parquet"]
    )  # fmt: skip
    assert [shard.name for shard in shards] == ["a", "b"]
    local = plan_shards([str(tmp_path / "in")])
    for mine, theirs in zip(shards, local, strict=True):
        assert [sample.messages for sample in read_samples(mine)] == [s.messages for s in read_samples(theirs)]


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst", "jsonl.gz", "json"])
def test_text_files_are_read_by_range_and_a_change_after_planning_is_noticed(
    bucket: ObjectPath, tmp_path: Path, suffix: str
) -> None:
    import gzip

    import zstandard

    rows = [
        {"id": n, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]} for n in range(7)
    ]
    text = json.dumps(rows) if suffix == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    pack = {"zst": zstandard.compress, "gz": gzip.compress}.get(suffix[-3:].strip("."), bytes)
    path = bucket / f"data.{suffix}"
    path.write_bytes(pack(text.encode()))
    shards = plan_shards([str(path)], rows_per_shard=3)
    assert [[sample.sample_id for sample in read_samples(shard)] for shard in shards] == [
        ["0", "1", "2"], ["3", "4", "5"], ["6"],
    ]  # fmt: skip
    path.write_bytes(pack(text.replace("q", "r").encode()))
    with pytest.raises(ShardError, match="changed since planning"):
        list(read_samples(shards[0]))


@pytest.mark.slow
@pytest.mark.full
def test_training_and_inspecting_read_shards_and_images_from_the_store(
    bucket: ObjectPath, tmp_path: Path, llava: Family
) -> None:
    write_llava_json(tmp_path / "in", 12)
    upload(tmp_path / "in", bucket / "in")
    code, _, err = precompute(llava, bucket, bucket / "out", "--carry", "paths")
    assert code == 0, err
    encoder = Encoder(load_processor(llava.directory))
    streamed = StreamedExamples(bucket / "out", encoder)
    mapped = AnnotatedExamples(bucket / "out", encoder, cache_dir=tmp_path / "cache")
    assert len(streamed) == len(mapped) > 5
    for row in range(len(mapped)):
        one, other = streamed[row], mapped[row]
        assert one.encoded.labels.tolist() == other.encoded.labels.tolist()
        assert one.deltas.nan_to_num(-99).tolist() == other.deltas.nan_to_num(-99).tolist()
    done = subprocess.run(
        [
            str(PROGRAMS / "cal-train"), "--model_name_or_path", str(llava.directory), "--data_path",
            str(bucket / "out"), "--streaming", "--max_steps", "2", "--per_device_train_batch_size", "2",
            "--learning_rate", "1e-3", "--use_cpu", "--output_dir", str(tmp_path / "model"),
            "--dataloader_num_workers", "1",  # Forked: clients do not survive that, and are made anew.
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    done = subprocess.run(
        [str(PROGRAMS / "cal-inspect"), "summary", str(bucket / "out")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "12 rows" in done.stdout


def test_an_image_is_missing_only_from_a_prefix_that_holds_something(bucket: ObjectPath) -> None:
    folder = bucket / "images"
    with pytest.raises(ShardError, match=rf"--image_folder {folder} is gone or empty"):
        read_image_file(ImageRef(path="a.png"), folder)
    (folder / "a.png").write_bytes(b"bytes")
    assert read_image_file(ImageRef(path="a.png"), folder) == b"bytes"
    with pytest.raises(ImageError, match=rf"image 'b\.png' is not an object in {folder}"):
        read_image_file(ImageRef(path="b.png"), folder)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("scheme", ["s3"], indirect=True)
def test_when_the_store_is_gone_at_the_end_table_failed_shards_and_report_are_there(
    bucket: ObjectPath, proxy: FaultyProxy, tmp_path: Path, llava: Family
) -> None:
    job = Job(
        model=llava.directory, data=write_shards(tmp_path / "data", 30), output=tmp_path / "log",
        flags=("--output_dir", str(bucket / "out"), "--max_tries", "1"), environment={"AWS_MAX_ATTEMPTS": "1"},
    )  # fmt: skip
    process = job.start()
    job.wait_for(process, lambda: len([*(bucket / "out").glob("*.parquet")]) >= 2, "two shards are done")
    proxy.faults.extend(["drop"] * 100_000)
    assert job.finish(process) == 2, job.said()
    said = job.said()
    assert said.count("FAILED s") >= 1
    assert "supervised tokens in" in said
    assert f"whether all shards are in --output_dir {bucket}/out cannot be seen: " in said
    assert f"no report was written to {bucket}/out/.cal/reports" in said
    report = Path(said.partition(" report: ")[2].split()[0])
    assert json.loads(report.read_text())["failed"]
    shutil.rmtree(report.parent)
