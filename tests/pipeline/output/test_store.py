import errno
import fcntl
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cal_pipeline.output.store import LocalStore, open_store
from cal_schemas.errors import ConfigError


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(output_dir=tmp_path / "out", run_id="run-1")
    store.prepare()
    return store


def staged(store: LocalStore) -> list[Path]:
    return sorted((store.internal / "staging").iterdir())


def publish(store: LocalStore, name: str, data: bytes, **options: Any) -> bool:
    with store.staging(name) as partial:
        partial.write_bytes(data)
        return store.commit(partial, name, **options)


def test_a_committed_shard_is_there_whole_and_staging_is_empty(store: LocalStore) -> None:
    assert publish(store, "sub/a", b"whole")
    assert (store.output_dir / "sub/a.parquet").read_bytes() == b"whole"
    assert store.path("sub/a") == store.output_dir / "sub/a.parquet"
    assert staged(store) == []


def test_nothing_is_seen_under_the_final_name_before_the_commit(store: LocalStore) -> None:
    with store.staging("a") as partial:
        partial.write_bytes(b"half")
        assert not store.path("a").exists()
        assert store.finished() == []
        assert partial.is_relative_to(store.internal / "staging")


def test_the_first_writer_wins_and_its_bytes_stay(store: LocalStore) -> None:
    assert publish(store, "a", b"first")
    before = store.path("a").stat()
    assert not publish(store, "a", b"second")
    assert store.path("a").read_bytes() == b"first"
    after = store.path("a").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert staged(store) == []


def test_of_writers_at_the_same_time_exactly_one_wins(store: LocalStore) -> None:
    outcomes: dict[bytes, bool] = {}
    together = threading.Barrier(8)

    def write(data: bytes) -> None:
        with store.staging("a") as partial:
            partial.write_bytes(data)
            together.wait()
            outcomes[data] = store.commit(partial, "a")

    threads = [threading.Thread(target=write, args=(bytes([number]) * 1000,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = [data for data, won in outcomes.items() if won]
    assert store.path("a").read_bytes() == winner


def test_replace_puts_the_new_file_in_the_place_of_the_old(store: LocalStore) -> None:
    publish(store, "a", b"first")
    with store.path("a").open("rb") as reader:
        assert publish(store, "a", b"second", replace=True)
        assert reader.read() == b"first"  # Whoever has it open goes on reading the old one.
    assert store.path("a").read_bytes() == b"second"


@pytest.mark.parametrize("way", ["first", "replaces", "without hard links"])
def test_a_shard_is_on_the_disk_before_it_is_published_and_its_name_before_the_commit_returns(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "replaces":
        publish(store, "sub/a", b"old")
    done: list[tuple[str, Path]] = []
    sync, link, rename = os.fsync, os.link, os.rename

    def recorded_sync(handle: int) -> None:
        sync(handle)
        done.append(("synced", Path(f"/proc/self/fd/{handle}").readlink()))

    def recorded_link(source: Path, target: Path) -> None:
        if way == "without hard links":
            raise PermissionError(1, "Operation not permitted")
        link(source, target)
        done.append(("published", Path(target)))

    def recorded_rename(source: Path, target: Path) -> None:
        rename(source, target)
        done.append(("published", Path(target)))

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "link", recorded_link)
    monkeypatch.setattr(os, "rename", recorded_rename)
    monkeypatch.setattr(os, "replace", recorded_rename)
    with store.staging("sub/a") as partial:
        partial.write_bytes(b"whole")
        assert store.commit(partial, "sub/a", replace=way == "replaces")
        assert done == [
            ("synced", partial), ("published", store.path("sub/a")),
            ("synced", store.output_dir / "sub"), ("synced", store.output_dir),
        ]  # fmt: skip


def test_staging_is_removed_when_writing_fails(store: LocalStore) -> None:
    def fail() -> None:
        with store.staging("a") as partial:
            partial.write_bytes(b"half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert staged(store) == []
    assert store.finished() == []


def test_a_file_system_without_hard_links_publishes_by_rename(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    assert publish(store, "a", b"whole")
    assert store.path("a").read_bytes() == b"whole"
    assert "has no hard links" in caplog.text


def test_without_hard_links_a_shard_that_is_there_stays(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    assert publish(store, "a", b"first")
    monkeypatch.setattr(os, "link", refuse)
    assert not publish(store, "a", b"second")
    assert store.path("a").read_bytes() == b"first"


def test_a_link_that_fails_otherwise_fails_the_commit_and_publishes_nothing(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        publish(store, "a", b"whole")
    assert store.finished() == []


def test_an_output_that_cannot_be_written_is_refused_before_and_at_the_start(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for step in (store.check_writable, store.prepare):
        with pytest.raises(ConfigError, match=rf"--output_dir {store.output_dir} cannot be written: .*Read-only"):
            step()


def test_staging_is_made_again_where_it_was_removed(store: LocalStore) -> None:
    shutil.rmtree(store.internal)
    assert publish(store, "a", b"whole")


def test_an_output_directory_that_is_gone_is_missed_and_never_made_anew(store: LocalStore) -> None:
    missed = rf"does not see --output_dir {store.output_dir}, which was there when the run began: removed, unmounted"
    store.prepare()
    for at in ("before", "while it is written", "before the commit"):
        store.prepare()
        with pytest.raises(ConfigError, match=missed):  # noqa: PT012
            if at == "before":
                shutil.rmtree(store.output_dir)
            with store.staging("a/b") as partial:
                partial.write_bytes(b"whole")
                shutil.rmtree(store.output_dir)
                if at == "while it is written":
                    partial.stat()
                store.commit(partial, "a/b")
        assert not store.output_dir.exists()
    with pytest.raises(ConfigError, match=missed):
        store.check_there()


def test_a_deep_shard_name_fits_into_a_staging_name(store: LocalStore) -> None:
    name = "/".join(["é" * 50] * 6)
    assert publish(store, name, b"whole")
    assert store.finished() == [store.path(name)]


@pytest.mark.parametrize("output_dir", ["file", "file/below"])
def test_an_output_directory_that_cannot_be_made_is_refused(tmp_path: Path, output_dir: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=rf"--output_dir .*{output_dir} cannot be written: .*(Not a dir|File exists)"):
        LocalStore(output_dir=tmp_path / output_dir).prepare()


@pytest.mark.parametrize("folder", ["", ".cal", ".cal/staging", ".cal/reports", ".cal/logs"])
@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_checking_and_preparing_refuse_the_same_outputs(tmp_path: Path, folder: str, kind: str) -> None:
    wrong = tmp_path / "out" / folder
    wrong.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        wrong.write_text("")
    else:
        wrong.symlink_to(tmp_path / "nowhere")
    store = LocalStore(output_dir=tmp_path / "out")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ConfigError, match=rf"--output_dir {store.output_dir} cannot be written: .*Not a dir.*'{wrong}'"
    ):
        store.check_writable()
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ConfigError, match=rf"--output_dir {store.output_dir} cannot be written: "):
        store.prepare()


def test_what_checking_accepts_can_be_prepared_and_checking_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there")
    for name in ("link/out", "a/b/c", "there"):
        before = sorted(tmp_path.rglob("*"))
        LocalStore(output_dir=tmp_path / name).check_writable()
        assert sorted(tmp_path.rglob("*")) == before
        LocalStore(output_dir=tmp_path / name).prepare()
        LocalStore(output_dir=tmp_path / name).check_writable()


def test_preparing_twice_is_harmless_and_leaves_nothing_but_dot_cal(store: LocalStore) -> None:
    store.prepare()
    assert [item.name for item in store.output_dir.iterdir()] == [".cal"]
    assert store.logs.is_dir()
    assert staged(store) == []


def test_only_this_runs_leftovers_are_cleared(store: LocalStore) -> None:
    other = LocalStore(output_dir=store.output_dir, run_id="run-2")
    for owner in (store, other):
        (owner.internal / "staging" / f"a.{owner.run_id}.0123").write_bytes(b"half")
    assert store.clear_staging() == [str(store.internal / "staging" / "a.run-1.0123")]
    assert [path.name for path in staged(store)] == ["a.run-2.0123"]
    assert store.clear_staging(everybodys=True) == [str(store.internal / "staging" / "a.run-2.0123")]
    assert staged(store) == []


def test_what_an_ended_process_staged_for_an_object_store_goes_after_a_minute_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = open_store("s3://bucket/out", "run-1")
    folder = tmp_path / f"cal-staging-{os.getuid()}"
    assert store.logs == folder / "logs"
    ended, alive = 2**31 - 1, os.getpid()  # no process number is as large as the first
    old = [f"a.run-0.{ended}.0123", f"a.run-0.{alive}.0123", f"{ended}", "a.run-0.x1.0123"]
    store.prepare()
    for name in old:
        (folder / name).write_bytes(b"half")
        os.utime(folder / name, (time.time() - 61,) * 2)
    (folder / f"b.run-0.{ended}.0123").write_bytes(b"half")
    (folder / f"c.run-0.{ended}.folder").mkdir()
    os.utime(folder / f"c.run-0.{ended}.folder", (0, 0))
    before = {path.name for path in folder.iterdir()}
    name = "/".join(["deep"] * 60)
    with (folder / old[1]).open() as mine:
        fcntl.flock(mine, fcntl.LOCK_EX)  # As long as its process lives.
        with store.staging("another"):
            assert {path.name for path in folder.iterdir() if "another" not in path.name} == before - {old[0]}
    with store.staging(name) as partial:
        assert {path.name for path in folder.iterdir()} == before - {old[0], old[1]} | {partial.name}
        assert partial.parent == folder
        assert partial.name.startswith(f"{name.replace('/', '__')[-40:]}.run-1.{alive}.")
        partial.write_bytes(b"half")
    assert not partial.exists()
    with store.staging("nothing is written"):
        pass


def test_finished_ignores_the_internal_directory_and_an_absent_output(store: LocalStore) -> None:
    publish(store, "b", b"")
    publish(store, "a/c", b"")
    (store.internal / "staging" / "x.parquet").write_bytes(b"half")
    (store.output_dir / "notes.txt").write_text("mine")
    assert store.finished() == [store.path("a/c"), store.path("b")]
    assert LocalStore(output_dir=store.output_dir / "absent").finished() == []


def test_readers_of_the_directory_see_only_final_shards_while_a_run_is_in_progress(store: LocalStore) -> None:
    with store.staging("a") as partial:
        pq.write_table(pa.table({"x": [1, 2]}), partial)
        store.commit(partial, "a")
    with store.staging("b.parquet") as partial:
        partial.write_bytes(b"half a file")
        assert pq.read_table(store.output_dir)["x"].to_pylist() == [1, 2]
