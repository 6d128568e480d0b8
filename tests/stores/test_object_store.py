"""Publishing to an object store: staged on this machine's own disk, read back, uploaded whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.output.heartbeat import Heartbeat, signs_of_life
from cal_pipeline.output.object_store import ObjectStore
from cal_pipeline.output.store import open_store
from cal_pipeline.runtime.worker_process import WorkerProcess
from cal_schemas.errors import ConfigError
from cal_schemas.storage.object_path import ObjectPath


@pytest.fixture
def store(bucket: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    store = open_store(str(bucket / "out"), "run-7")
    assert isinstance(store, ObjectStore)
    return store


def everything(store: ObjectStore) -> list[str]:
    return [str(item) for item in store.output_dir.files()]


def test_shards_lie_under_the_prefix_what_is_internal_in_dot_cal_and_logs_on_this_machine(
    store: ObjectStore, bucket: ObjectPath, tmp_path: Path
) -> None:
    assert store.run_id == "run-7"
    assert store.path("sub/a") == bucket / "out/sub/a.parquet"
    assert store.internal == bucket / "out/.cal"
    assert store.logs == tmp_path / "tmp" / f"cal-staging-{os.getuid()}" / "logs"
    store.prepare()
    store.prepare()
    assert store.logs.is_dir()
    assert everything(store) == []


def test_checking_that_a_store_can_be_written_leaves_nothing_and_warns_only_of_one_that_overwrites(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.check_writable()
    assert everything(store) == []
    assert not caplog.text

    upload = ObjectPath.upload

    def overwrite(path: ObjectPath, content: bytes, *, if_absent: bool) -> bool:
        return upload(path, content, if_absent=False)

    monkeypatch.setattr(ObjectPath, "upload", overwrite)
    store.check_writable()
    assert everything(store) == []
    assert f"{store.output_dir}: this store has no conditional writes" in caplog.text


def test_a_shard_is_staged_under_a_name_that_says_whose_it_is_and_is_removed_whatever_happens(
    store: ObjectStore, tmp_path: Path
) -> None:
    folder = tmp_path / "tmp" / f"cal-staging-{os.getuid()}"
    with store.staging(f"{'deep/' * 100}a") as partial, store.staging(f"{'deep/' * 100}a") as other:
        assert partial.parent == folder
        assert partial != other
        name, run_id, pid, _ = partial.name.split(".")
        assert (len(name), run_id, pid) == (40, "run-7", str(os.getpid()))
        assert name.endswith("__deep__a")
        partial.write_bytes(b"half")
    assert list(folder.iterdir()) == []

    def fail() -> None:
        with store.staging("a") as partial:
            partial.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(folder.iterdir()) == []
    assert everything(store) == []


def test_a_leftover_of_an_ended_process_is_removed_when_the_next_shard_is_staged(
    store: ObjectStore, tmp_path: Path
) -> None:
    store.prepare()
    leftover = store.logs.parent / "a.run-1.999999999.ff"
    leftover.write_bytes(b"")
    os.utime(leftover, (0, 0))
    with store.staging("a"):
        assert not leftover.exists()
        assert store.logs.is_dir()


def test_a_file_that_cannot_be_read_back_is_not_uploaded(store: ObjectStore) -> None:
    with store.staging("a") as partial:
        pq.write_table(pa.table({"x": [1]}), partial)
        partial.write_bytes(partial.read_bytes()[:-4])
        with pytest.raises((pa.ArrowInvalid, OSError)):
            store.commit(partial, "a")
    assert everything(store) == []


def test_what_is_finished_is_what_is_there_under_a_final_name(store: ObjectStore) -> None:
    assert store.finished() == []
    (store.internal / "plan.json").write_text("{}")
    (store.internal / "reports" / "x.parquet").write_bytes(b"")
    for name in ("b", "sub/a"):
        with store.staging(name) as partial:
            pq.write_table(pa.table({"x": [1]}), partial)
            assert store.commit(partial, name) is True
            assert store.commit(partial, name) is False
            assert store.commit(partial, name, replace=True) is True
    assert store.finished() == [store.path("b"), store.path("sub/a")]
    assert store.clear_staging() == store.clear_staging(everybodys=True) == []
    store.check_name("b")
    assert len(everything(store)) == 4


def test_a_prefix_that_cannot_be_written_is_refused_by_its_flag(bucket: ObjectPath) -> None:
    missing = str(bucket).replace(bucket.bucket, f"{bucket.bucket}-missing", 1)
    with pytest.raises(ConfigError, match=r"--output_dir .*-missing/out cannot be written: .*"):
        open_store(f"{missing}/out", "run-7").check_writable()


@pytest.fixture
def folder(store: ObjectStore, tmp_path: Path) -> Path:
    return tmp_path / "tmp" / f"cal-staging-{os.getuid()}"


def test_what_is_staged_can_be_read_by_nobody_else_and_lies_where_nobody_else_may_look(
    store: ObjectStore, folder: Path
) -> None:
    umask = os.umask(0)
    try:
        store.prepare()
        with store.staging("a") as partial:
            assert [path.stat().st_mode & 0o777 for path in (folder, partial)] == [0o700, 0o600]
            pq.write_table(pa.table({"x": [1]}), partial)
            assert partial.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(umask)
    folder.chmod(0o755)  # As earlier versions made it: nobody else could write there.
    with store.staging("a"):
        assert folder.stat().st_mode & 0o777 == 0o700


def open_to_all(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o777)


def of_somebody_else(folder: Path) -> None:
    folder.mkdir(parents=True)
    if os.getuid():
        pytest.skip("only root can give a directory away")
    os.chown(folder, 12345, 12345)


def linked(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    (folder.parent / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(folder.parent / "elsewhere")


def linked_to_nothing(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.symlink_to(folder.parent / "absent")


def a_file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.touch(mode=0o600)


@pytest.mark.parametrize("prepared", [open_to_all, of_somebody_else, linked, linked_to_nothing, a_file])
def test_a_staging_folder_that_somebody_else_made_is_refused_before_anything_is_staged_or_logged(
    store: ObjectStore, folder: Path, prepared: Callable[[Path], None]
) -> None:
    prepared(folder)
    says = rf"{folder} is \S+ of user \d+, and must be a directory of user {os.getuid()} that nobody else"
    with pytest.raises(ConfigError, match=says):
        store.prepare()
    with pytest.raises(ConfigError, match=says), store.staging("a"):
        pass
    with pytest.raises(ConfigError, match=says):
        WorkerProcess(str(folder / "logs" / "worker.log"))
    assert not list(folder.glob("*"))
    assert not (folder.parent / "absent").exists()


def test_a_staged_file_of_another_container_stays_while_its_process_lives(store: ObjectStore, folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cal_pipeline.output.local_staging import staged\n"
        "with staged(Path(sys.argv[1]), 'a.run-1.999999999.ff'): print('staged', flush=True); sys.stdin.read()"
    )
    leftover = folder / "a.run-1.999999999.ff"  # No such process can be seen from here.
    with subprocess.Popen(
        [sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        os.utime(leftover, (0, 0))
        with store.staging("b"):
            assert leftover.exists()
        process.kill()
    with store.staging("b"):
        assert not leftover.exists()


def test_a_driver_of_a_host_with_another_clock_is_known_by_the_stores_own(store: ObjectStore) -> None:
    mine = Heartbeat(store.internal)
    mine.beat()
    beat = {"host": "elsewhere", "pid": 7, "started": "noon", "kernel": "another", "beat": time.time() - 3600}
    (store.internal / "driver-elsewhere-7-0.json").write_text(json.dumps(beat))
    before = everything(store)
    assert mine.others() == ["elsewhere, pid 7, started noon"]
    assert [sign.lives for sign in signs_of_life(store.internal)] == [None, True]
    assert all(abs(sign.age_s) < 30 for sign in signs_of_life(store.internal))
    assert everything(store) == before
    mine.stop()
    assert everything(store) == [f"{store.internal}/driver-elsewhere-7-0.json"]
