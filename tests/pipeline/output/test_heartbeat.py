"""Signs of life: which drivers live, whatever their hosts' clocks say and whatever processes can be seen from here."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline.output.heartbeat import Heartbeat, signs_of_life
from cal_pipeline.output.store import LocalStore
from ill_files import ill_files

DRIVER = """
import sys, time
from pathlib import Path
from cal_pipeline.output import heartbeat
clock = time.time
time.time = lambda: clock() + {ahead_s}
if {elsewhere}:
    heartbeat._kernel = lambda: "another"
heartbeat._EVERY_S = {every_s}
heart = heartbeat.Heartbeat(Path({internal!r}), "noon")
heart.start()
print("beat", flush=True)
sys.stdin.read()
"""
CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")
"""Of processes that see none but their own, under the same host name."""


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(output_dir=tmp_path / "out", run_id="run-1")
    store.prepare()
    return store


@contextmanager
def driver(
    internal: Path, *, ahead_s: float = 0, elsewhere: bool = False, every_s: float = 10, within: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """A process that gives signs of life until the end, or until it is killed."""
    code = DRIVER.format(ahead_s=ahead_s, elsewhere=elsewhere, every_s=every_s, internal=str(internal))
    with subprocess.Popen(
        [*within, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "beat\n"
        yield process
        process.kill()


@pytest.fixture
def container() -> tuple[str, ...]:
    if subprocess.run([*CONTAINER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a namespace of processes")
    return CONTAINER


def clean(output: Path, *within: str) -> subprocess.CompletedProcess[str]:
    command = [*within, sys.executable, "-m", "cal_pipeline.cli", "--clean", "--output_dir", str(output)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def grow_old(internal: Path, seconds: float) -> None:
    for path in internal.glob("driver-*"):
        os.utime(path, (time.time() - seconds,) * 2)


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_a_driver_whose_host_has_another_clock_is_seen_while_it_lives_and_forgotten_a_minute_after(
    store: LocalStore, ahead_s: float
) -> None:
    (store.internal / "staging" / "a.run-0.1").write_bytes(b"on its way")
    with driver(store.internal, ahead_s=ahead_s, elsewhere=True) as process:
        refused = clean(store.output_dir)
        assert (refused.returncode, f"pid {process.pid}, started noon" in refused.stderr) == (2, True)
        assert (store.internal / "staging" / "a.run-0.1").exists()
    grow_old(store.internal, 61)
    assert clean(store.output_dir).returncode == 0
    assert not (store.internal / "staging" / "a.run-0.1").exists()


def test_clean_in_another_container_of_the_same_name_leaves_a_live_drivers_files_alone(
    store: LocalStore, container: tuple[str, ...]
) -> None:
    (store.internal / "staging" / "a.run-0.1").write_bytes(b"on its way")
    with driver(store.internal) as process:
        refused = clean(store.output_dir, *container)
        assert (refused.returncode, f"pid {process.pid}, started noon" in refused.stderr) == (2, True)
        assert (store.internal / "staging" / "a.run-0.1").exists()
    # Where its process could be seen, it is known at once that it is gone.
    assert clean(store.output_dir).returncode == 0
    assert list(store.internal.glob("driver-*")) == list((store.internal / "staging").iterdir()) == []


HIDDEN = """
import os, sys
from pathlib import Path
import encodings.ascii
from cal_pipeline.output.heartbeat import signs_of_life
pid, internal = sys.argv[1:]
os.setgroups([])
os.setgid(12345)
os.setuid(12345)
assert not os.path.exists(f"/proc/{pid}")
print(*[(sign.lives, sign.alive) for sign in signs_of_life(Path(internal))])
"""


def test_a_driver_whose_process_is_hidden_from_other_users_is_not_taken_for_dead() -> None:
    # Mounts of its own, in which /proc shows each user no processes but his.
    within = ["unshare", "--mount", "sh", "-c", 'mount -t proc -o hidepid=2 proc /proc && exec "$@"', "sh"]
    if os.getuid() or subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("only root, with leave to mount, can hide processes")

    def seen(pid: int) -> str:
        command = [*within, sys.executable, "-c", HIDDEN, str(pid), str(internal)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    # Nobody else enters pytest's own folders.
    with tempfile.TemporaryDirectory(prefix="cal-") as name:
        internal = LocalStore(output_dir=Path(name), run_id="run-1").internal
        internal.mkdir()
        for folder in (internal, internal.parent):
            folder.chmod(0o755)
        with driver(internal) as process:
            assert seen(process.pid) == "(None, True)"
        assert seen(process.pid) == "(False, False)"


def test_drivers_of_two_containers_with_equal_names_and_process_ids_are_two(
    store: LocalStore, container: tuple[str, ...]
) -> None:
    with driver(store.internal, within=container), driver(store.internal, within=container):
        assert [sign.said["pid"] for sign in signs_of_life(store.internal)] == [1, 1]
        assert len(Heartbeat(store.internal).others()) == 2
    assert len(Heartbeat(store.internal).others()) == 2
    grow_old(store.internal, 61)
    assert Heartbeat(store.internal).others() == []


def test_a_process_id_that_is_used_again_is_not_the_driver_that_had_it(store: LocalStore) -> None:
    with driver(store.internal):
        (path,) = store.internal.glob("driver-*")
        beat = json.loads(path.read_text())
        assert len(Heartbeat(store.internal).others()) == 1
        path.write_text(json.dumps(beat | {"ticks": beat["ticks"] - 1}))
        assert Heartbeat(store.internal).others() == []


def test_a_stopped_driver_of_this_machine_is_alive_however_long_it_gives_no_sign(store: LocalStore) -> None:
    with driver(store.internal):
        grow_old(store.internal, 2 * 86400)
        assert len(Heartbeat(store.internal).others()) == 1


def test_a_driver_that_is_busy_with_something_else_gives_signs_of_life(store: LocalStore) -> None:
    with driver(store.internal, every_s=0.2):  # Its main thread waits for a line that never comes.
        grow_old(store.internal, 100)
        deadline = time.monotonic() + 30
        while signs_of_life(store.internal)[0].age_s > 99:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_what_a_driver_is_given_to_say_stands_in_its_sign_of_life(store: LocalStore) -> None:
    mine = Heartbeat(store.internal, "today")
    mine.say(shards_done=3)
    mine.beat()
    (sign,) = signs_of_life(store.internal)
    assert (sign.said["shards_done"], sign.said["started"], sign.lives, sign.alive) == (3, "today", True, True)
    mine.stop()
    mine.beat()
    assert signs_of_life(store.internal) == []


def other_driver(internal: Path, age_s: float = 0, **changed: Any) -> Path:
    beat = {"host": "elsewhere", "pid": 7, "started": "noon", "beat": time.time(), **changed}
    path = internal / f"driver-{beat['host']}-{beat['pid']}.json"
    path.write_text(json.dumps(beat))
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_a_driver_sees_all_others_but_not_itself(store: LocalStore) -> None:
    mine = Heartbeat(store.internal, "today")
    assert mine.others() == []
    mine.beat()
    assert mine.others() == []
    other_driver(store.internal)
    other_driver(store.internal, pid=8)
    assert mine.others() == ["elsewhere, pid 7, started noon", "elsewhere, pid 8, started noon"]


def test_a_driver_of_this_host_counts_while_its_process_lives(store: LocalStore) -> None:
    code = (
        "import sys; from pathlib import Path; from cal_pipeline.output.heartbeat import Heartbeat\n"
        "Heartbeat(Path(sys.argv[1]), 'noon').beat(); print('beat', flush=True); sys.stdin.read()"
    )
    mine = Heartbeat(store.internal, "today")
    with subprocess.Popen(
        [sys.executable, "-c", code, store.internal], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "beat\n"
        (other,) = mine.others()
        assert f"pid {process.pid}, started noon" in other
        process.kill()
    assert mine.others() == []
    assert list(store.internal.glob("driver-*")) == []


def test_a_heartbeat_of_more_than_a_minute_ago_is_stale_and_after_a_day_removed(store: LocalStore) -> None:
    path = other_driver(store.internal, age_s=61)
    assert Heartbeat(store.internal, "today").others() == []
    assert path.exists()
    other_driver(store.internal, age_s=86401)
    assert Heartbeat(store.internal, "today").others() == []
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"host": "h", "pid": 1, "started": "s", "beat": "x"}'])
def test_a_heartbeat_that_cannot_be_read_warns_of_nobody_and_stops_nothing(store: LocalStore, text: str) -> None:
    (store.internal / "driver-h-1.json").write_text(text)
    mine = Heartbeat(store.internal, "today")
    assert mine.others() == []
    mine.stop()
    mine.beat()


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.full
def test_a_live_driver_whose_heartbeat_cannot_be_read_now_is_no_dead_one(
    store: LocalStore, tmp_path: Path, number: int
) -> None:
    (store.internal / "staging" / "a.run-0.1").write_bytes(b"on its way")
    (tmp_path / "ill").touch()
    environment = os.environ | ill_files("/driver-", tmp_path / "ill", number)

    def said(*flags: str) -> tuple[int, str]:
        command = [sys.executable, "-m", "cal_pipeline.cli", *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        return done.returncode, done.stdout + done.stderr

    with driver(store.internal):
        (path,) = store.internal.glob("driver-*")
        code, refused = said("--clean", "--output_dir", str(store.output_dir))
        assert (code, f"{path.name}, which cannot be read now: {os.strerror(number)}" in refused) == (2, True), refused
        code, told = said("--status", str(store.output_dir))
        assert (code, f"driver on {path.name}, which cannot be read now" in told) == (0, True), told
        grow_old(store.internal, 61)  # Of one that gives no more signs.
        assert said("--clean", "--output_dir", str(store.output_dir))[0] == 0


def test_a_heartbeat_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mine = Heartbeat(tmp_path / "absent", "today")
    mine.beat()
    mine.beat()
    mine.stop()
    assert caplog.text.count("cannot write the heartbeat") == 1


def test_stopping_removes_ones_own_heartbeat_and_no_others(store: LocalStore) -> None:
    mine = Heartbeat(store.internal, "today")
    mine.beat()
    other = other_driver(store.internal)
    mine.stop()
    mine.stop()
    assert list(store.internal.glob("driver-*")) == [other]
