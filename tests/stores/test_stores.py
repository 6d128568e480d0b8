"""Objects of real servers: what is read, what is published, and what happens when requests fail.

fake-gcs-server, which stands for `gs://`, forgets the condition of a resumable upload: who wins among large files at
the same time, and whose an upload is whose last answer got lost, is shown for `s3://` and `az://` only.
"""

from __future__ import annotations

import errno
import io
import json
import pickle
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.output.object_store import ObjectStore
from cal_pipeline.output.store import open_store
from cal_pipeline.output.traces import Traces
from cal_pipeline.sources.first_images import look_at_images
from cal_pipeline.sources.images import read_image_file
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.errors import ConfigError, ImageError, StoreError
from cal_schemas.sample import ImageRef
from cal_schemas.storage import factory
from cal_schemas.storage.locations import lies_in, location, open_parquet
from cal_schemas.storage.object_path import ObjectPath
from s3_server import FaultyProxy

# What requests leaves of a connection that broke off.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
MIB = 2**20
ONLY_S3 = pytest.mark.parametrize("scheme", ["s3"])
WITH_CONDITIONS = pytest.mark.parametrize("scheme", ["s3", pytest.param("az", marks=pytest.mark.full)])
"""Of large uploads."""


def keys(path: ObjectPath) -> list[str]:
    return [item.key for item in path.files()]


def client():  # type: ignore[no-untyped-def]
    return factory.backend("s3")._client  # type: ignore[attr-defined]


def test_what_is_written_is_read_back_listed_and_deleted(bucket: ObjectPath) -> None:
    (bucket / "a/b.txt").write_text("déjà")
    (bucket / "a" / "c" / "d.bin").write_bytes(b"\0" * 10)
    assert (bucket / "a/b.txt").read_text() == "déjà"
    assert keys(bucket) == ["a/b.txt", "a/c/d.bin"]
    assert [str(item) for item in (bucket / "a").glob("*")] == [f"{bucket}/a/b.txt"]
    assert (bucket / "a").is_dir()
    assert not (bucket / "a").is_file()
    assert not (bucket / "a/b").exists()
    assert (bucket / "a/c/d.bin").stat().st_size == 10
    (bucket / "a/b.txt").unlink()
    (bucket / "a/b.txt").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (bucket / "a/b.txt").read_bytes()


@pytest.mark.full
def test_a_listing_of_more_than_a_thousand_objects_is_whole(bucket: ObjectPath) -> None:
    for number in range(1003):
        (bucket / f"many/{number:04d}").write_bytes(b"")
    assert keys(bucket / "many") == [f"many/{number:04d}" for number in range(1003)]


def test_a_file_is_read_by_ranges_and_stays_the_one_that_was_opened(bucket: ObjectPath) -> None:
    data = np.random.default_rng(0).bytes(100_000)
    (bucket / "x").write_bytes(data)
    with (bucket / "x").open() as file:
        file.seek(50_000)
        assert file.read(10) == data[50_000:50_010]
    with (bucket / "x").open_random() as file:
        file.seek(-7, io.SEEK_END)
        assert file.read() == data[-7:]
        file.seek(0)
        (bucket / "x").write_bytes(b"another")
        with pytest.raises(StoreError, match=r"x: changed while it was being read"):
            file.read(10)


def test_parquet_is_read_without_fetching_the_whole_file(
    bucket: ObjectPath, tmp_path: Path, proxy: FaultyProxy
) -> None:
    table = pa.table({"a": np.arange(1000), "b": [np.random.default_rng(i).bytes(2000) for i in range(1000)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100, compression="none")
    (bucket / "x.parquet").upload(tmp_path / "x.parquet", if_absent=True)
    before = len(proxy.requests)
    with open_parquet(bucket / "x.parquet") as file:
        assert file.read_row_group(3, columns=["a"])["a"].to_pylist() == list(range(300, 400))
    assert len(proxy.requests) - before <= 5
    with open_parquet(bucket / "x.parquet") as file:
        assert file.read().equals(table)


def test_the_first_writer_wins_and_a_replacement_replaces(bucket: ObjectPath, tmp_path: Path) -> None:
    store = open_store(str(bucket / "out"), "run")
    assert isinstance(store, ObjectStore)
    store.prepare()

    def publish(value: int, *, replace: bool = False) -> bool:
        with store.staging("sub/a") as partial:
            pq.write_table(pa.table({"x": [value]}), partial)
            won = store.commit(partial, "sub/a", replace=replace)
        assert not partial.exists()
        return won

    assert publish(1)
    etag = store.path("sub/a").stat().etag
    assert not publish(2)
    assert store.path("sub/a").stat().etag == etag
    assert publish(3, replace=True)
    with open_parquet(store.path("sub/a")) as file:
        assert file.read()["x"].to_pylist() == [3]
    assert store.finished() == [store.path("sub/a")]


LAST_REQUEST = {"s3": ({"POST"}, "uploadId="), "az": ({"PUT"}, "comp=blocklist")}
LARGE = 3 * 5 * MIB + 17


@pytest.mark.parametrize(
    ("scheme", "size"),
    [("s3", 1000), ("gs", 1000)]
    + [pytest.param(*case, marks=pytest.mark.full) for case in (("az", 1000), ("s3", LARGE), ("az", LARGE))],
)
def test_of_writers_at_the_same_time_exactly_one_wins(
    bucket: ObjectPath, tmp_path: Path, scheme: str, size: int, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 5 * MIB)
    outcomes: dict[int, bool] = {}
    together, one_at_a_time = threading.Barrier(4), threading.Lock()
    if scheme == "s3":
        complete = client().complete_multipart_upload

        def in_turn(**arguments: object) -> object:
            # Moto looks and then writes, in two steps; a real store does both in one.
            with one_at_a_time:
                return complete(**arguments)

        monkeypatch.setattr(client(), "complete_multipart_upload", in_turn)

    def write(number: int) -> None:
        path = tmp_path / str(number)
        path.write_bytes(bytes([number]) * size)
        together.wait()
        outcomes[number] = (bucket / "a").upload(path, if_absent=True)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [number for number, won in outcomes.items() if won]
    assert (bucket / "a").read_bytes() == bytes([winner]) * size
    assert bucket.unfinished_uploads() == []


@pytest.mark.parametrize("fault", ["drop", "503", "lost", "cut"])
def test_a_failing_request_is_tried_again(bucket: ObjectPath, proxy: FaultyProxy, fault: str) -> None:
    (bucket / "x").write_bytes(b"0123456789" * 1000)
    # Azure's library asks three times for a body that breaks off.
    proxy.faults.extend([fault] * (2 if (bucket.scheme, fault) == ("az", "cut") else 3))
    assert (bucket / "x").read_bytes() == b"0123456789" * 1000
    proxy.faults.extend([fault] * 2)
    with (bucket / "x").open_random() as file:
        assert file.read(10) == b"0123456789"
    proxy.faults.extend([fault] * 2)
    assert keys(bucket) == ["x"]
    assert not proxy.faults


def test_a_slow_answer_is_waited_for_and_one_that_is_too_slow_is_asked_for_again(
    bucket: ObjectPath, proxy: FaultyProxy, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bucket / "x").write_bytes(b"whole")
    proxy.faults.append("slow")
    assert (bucket / "x").read_bytes() == b"whole"
    monkeypatch.setattr(module, "READ_TIMEOUT_S", 1.0)
    factory._backend.cache_clear()
    proxy.faults.append("slow")
    before = len(proxy.requests)
    assert (bucket / "x").read_bytes() == b"whole"
    first, *others = [fault for *_, fault in proxy.requests[before:]]
    assert (first, set(others)) == ("slow", {"pass"})


def test_a_put_whose_answer_got_lost_is_recognised_as_ones_own(
    bucket: ObjectPath, proxy: FaultyProxy, tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"mine")
    proxy.only = {"PUT", "POST"}
    proxy.faults.append("lost")
    assert (bucket / "x").upload(tmp_path / "x", if_absent=True)
    assert not proxy.faults
    assert (bucket / "x").read_bytes() == b"mine"


@WITH_CONDITIONS
def test_a_large_upload_whose_last_answer_got_lost_is_recognised_as_ones_own(
    bucket: ObjectPath, proxy: FaultyProxy, tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 5 * MIB)
    (tmp_path / "y").write_bytes(b"y" * 12 * MIB)
    proxy.only, proxy.where = LAST_REQUEST[bucket.scheme]
    proxy.faults.append("lost")
    assert (bucket / "y").upload(tmp_path / "y", if_absent=True)
    assert not proxy.faults
    assert (bucket / "y").stat().st_size == 12 * MIB
    assert bucket.unfinished_uploads() == []


def test_parts_that_fail_are_sent_again_and_an_upload_that_cannot_be_ended_leaves_nothing(
    bucket: ObjectPath, proxy: FaultyProxy, tmp_path: Path, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_BYTES", 5 * MIB)
    (tmp_path / "x").write_bytes(b"x" * 16 * MIB)
    proxy.only = {"PUT"}
    # fake-gcs-server appends a part that comes twice, whatever its range says.
    proxy.faults.extend(["drop", "503", "drop" if bucket.scheme == "gs" else "lost", "drop"])
    assert (bucket / "x").upload(tmp_path / "x", if_absent=True)
    assert not proxy.faults
    assert (bucket / "x").stat().st_size == 16 * MIB
    proxy.faults.append("403")
    with pytest.raises(StoreError, match="forbidden"):
        (bucket / "y").upload(tmp_path / "x", if_absent=True)
    assert keys(bucket) == ["x"]
    assert bucket.unfinished_uploads() == []


@ONLY_S3
def test_an_endpoint_that_never_answers_is_named_after_all_tries(
    bucket: ObjectPath, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "3")
    factory._backend.cache_clear()
    proxy.faults.extend(["drop"] * 3)
    with pytest.raises(StoreError, match=rf"{bucket}/x: no answer after 3 tries"):
        (bucket / "x").read_bytes()


def test_a_missing_bucket_is_said_plainly(bucket: ObjectPath, proxy: FaultyProxy) -> None:
    nowhere = replace(bucket, bucket="nowhere-at-all")
    with pytest.raises(StoreError, match=r"no such (bucket|container)"):
        keys(nowhere)
    with pytest.raises(
        ConfigError, match=rf"--output_dir {nowhere}/out cannot be written: .*no such (bucket|container)"
    ):
        open_store(f"{nowhere}/out", "run").check_writable()
    proxy.faults.append("403")
    with pytest.raises(StoreError, match="forbidden") as refused:
        keys(bucket)
    # Workers stop the run at this.
    assert refused.value.errno == errno.EACCES


@ONLY_S3
def test_without_credentials_the_message_names_what_to_set(bucket: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    factory._backend.cache_clear()
    with pytest.raises(StoreError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        keys(bucket)


def test_an_image_is_read_inside_the_prefix_only(bucket: ObjectPath, proxy: FaultyProxy) -> None:
    (bucket / "images/a/1.png").write_bytes(b"image")
    (bucket / "secret.png").write_bytes(b"secret")
    folder = bucket / "images"
    assert read_image_file(ImageRef(path="a/1.png"), folder) == b"image"
    for path in ("../secret.png", "a/../../secret.png", "/secret.png"):
        with pytest.raises(ImageError, match="leaves the image folder"):
            read_image_file(ImageRef(path=path), folder)
    for path, message in (
        ("s3://other/x.png", "is a URL"),
        ("2.png", f"is not an object in {bucket.scheme}://"),
        ("a", "is not an object"),
        ("x\0y", "cannot be the name of an object"),
        ("\ud800.png", "cannot be the name of an object"),
        ("x" * 2000, "cannot be the name of an object"),
        (".", "cannot be the name of an object"),
    ):
        with pytest.raises(ImageError, match=message):
            read_image_file(ImageRef(path=path), folder)
    # A store that refuses says nothing about the image: the shard fails, the row is not marked.
    proxy.faults.append("403")
    with pytest.raises(StoreError):
        read_image_file(ImageRef(path="a/1.png"), folder)


def test_a_key_is_taken_as_it_is_spelled(bucket: ObjectPath) -> None:
    for key in ("imgs/d//x.png", "imgs/e/x.png", "imgs/both//x.png", "imgs/both/x.png"):
        bucket.below(key).write_bytes(key.encode())
    folder = bucket / "imgs"
    for path, key in (
        ("d//x.png", "imgs/d//x.png"),
        ("both//x.png", "imgs/both//x.png"),
        ("./e//x.png", "imgs/e/x.png"),
    ):
        assert read_image_file(ImageRef(path=path), folder) == key.encode()
    assert read_image_file(ImageRef(path="x.png"), location(f"{folder}/d//")) == b"imgs/d//x.png"
    with pytest.raises(ImageError, match=r"'d/x\.png' is not an object"):
        read_image_file(ImageRef(path="d/x.png"), folder)


def test_a_prefix_without_the_images_is_refused_before_work(bucket: ObjectPath) -> None:
    row = {"image": "a/1.png", "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A."}]}
    (bucket / "data/d.jsonl").write_text(json.dumps(row) + "\n")
    (bucket / "images/a/1.png").write_bytes(b"image")
    look_at_images(plan_shards([str(bucket / "data")], [str(bucket / "images")]))
    with pytest.raises(ConfigError) as refused:
        look_at_images(plan_shards([str(bucket / "data")], [str(bucket / "images/a")]))
    assert (
        f"The first is 'a/1.png', and with --image_folder {bucket}/images/a that is {bucket}/images/a/a/1.png"
        in str(refused.value)
    )


@pytest.mark.parametrize("earlier", [False, True])
def test_what_a_refused_run_wrote_is_taken_away_and_nothing_else(bucket: ObjectPath, earlier: bool) -> None:
    store = open_store(str(bucket / "out"), "run")
    if earlier:
        (store.internal / "plan.json").write_text("earlier")
        (store.internal / "reports/run-1.json").write_text("{}")
    before = keys(bucket)
    traces = Traces(store)
    store.prepare()
    (store.internal / "plan.json").write_text("later")
    (store.internal / "reports/run-2.json").write_text("{}")
    traces.remove()
    assert keys(bucket) == before
    assert not earlier or (store.internal / "plan.json").read_text() == "earlier"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/k//x//", ObjectPath("s3", "b", "k//x/")),
        ("s3://b/k/x", ObjectPath("s3", "b", "k/x")),
        ("gs://b/k/", ObjectPath("gs", "b", "k")),
        ("gcs://b", ObjectPath("gs", "b", "")),
        ("az://b/k/x", ObjectPath("az", "b", "k/x")),
        ("abfss://b/k", ObjectPath("az", "b", "k")),
        ("file:///a/b%20c", Path("/a/b c")),
        ("a/b", Path("a/b")),
        ("s3", Path("s3")),
    ],
)
def test_a_location_is_what_its_scheme_says(text: str, expected: object) -> None:
    assert location(text) == expected


@pytest.mark.parametrize("text", ["http://x/y", "s3://", "hdfs://a/b", "file://host/a", "s3:///x", "s3:/b/k"])
def test_a_location_that_nothing_can_open_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        location(text)


def test_prefixes_end_at_a_slash_and_paths_survive_pickling() -> None:
    one = ObjectPath("s3", "b", "a/b")
    assert lies_in(one / "c", one)
    assert not lies_in(ObjectPath("s3", "b", "a/bc"), one)
    assert not lies_in(Path("/a/b/c"), one)
    assert pickle.loads(pickle.dumps(one)) == one
    assert (one.parent, one.with_suffix(".x").key, one.parts) == (
        ObjectPath("s3", "b", "a"),
        "a/b.x",
        ("s3://b", "a", "b"),
    )


@pytest.mark.parametrize(
    ("scheme", "package", "imported"),
    [
        ("s3", "boto3", "boto3"),
        ("gs", "google-cloud-storage", "google.cloud.storage"),
        ("az", "azure-storage-blob", "azure.storage.blob"),
    ],
)
def test_without_a_stores_package_the_message_is_the_pip_command(scheme: str, package: str, imported: str) -> None:
    code = f"import sys; sys.modules[{imported!r}] = None; from cal_schemas.storage import factory as f"
    code += f"; f.backend({scheme!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"ConfigError: {scheme}:// needs {package}: pip install 'cal-vlm[{scheme}]'" in done.stderr
