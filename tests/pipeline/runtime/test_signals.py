import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cal_pipeline.runtime.session_dir import remove_abandoned, session_dir
from cal_pipeline.runtime.signals import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_interrupts_and_later_ones_do_not_disturb_the_cleaning_up(
    number: signal.Signals, request: pytest.FixtureRequest
) -> None:
    started_with = signal.signal(number, signal.default_int_handler)  # under nohup SIGHUP is ignored
    request.addfinalizer(lambda: signal.signal(number, started_with))
    before = signal.getsignal(number)
    cleaned = False
    with Interruption() as interruption:
        interruption.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        cleaned = True
        assert interruption.exit_code == 128 + number
        with pytest.raises(KeyboardInterrupt):
            interruption.check()
    assert cleaned
    assert signal.getsignal(number) is before


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            interruption.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_library_that_starts_cannot_take_the_signals_for_itself() -> None:
    before, set_handler, other = signal.getsignal(signal.SIGTERM), signal.signal, signal.getsignal(signal.SIGUSR1)
    with Interruption() as interruption:
        with interruption.kept():
            assert signal.signal(signal.SIGTERM, signal.SIG_DFL) == signal.getsignal(signal.SIGTERM)
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGTERM)
            interruption.number = None
        assert interruption.exit_code == 130
        assert signal.signal is set_handler
        assert signal.signal(signal.SIGUSR1, other) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("error", [None, RuntimeError("its processes got the signal as well")])
def test_a_signal_that_a_starting_library_swallowed_is_raised_after_it(error: Exception | None) -> None:
    def start(interruption: Interruption) -> None:
        with interruption.kept():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                if error:
                    raise error from None

    with Interruption() as interruption, pytest.raises(KeyboardInterrupt):
        start(interruption)
    assert interruption.exit_code == 143


def ended(code: str) -> tuple[int, str, str]:
    """Exit code and streams of a program of its own, which has a second between a signal and the next."""
    head = (
        "import os, signal, subprocess, threading, time\n"
        "from cal_pipeline.runtime import signals\n"
        "signals._AGAIN_S = 1.0\n"
    )
    done = subprocess.run([sys.executable, "-c", head + code], timeout=120, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_signal_while_a_process_starts_interrupts_after_it_and_leaves_no_lock_taken() -> None:
    code = (
        "lock, sent = threading.Lock(), []\n"
        "def release():\n"
        "    if not sent: sent.append(os.kill(os.getpid(), signal.SIGTERM))\n"
        "    lock.release()\n"
        "os.register_at_fork(before=lock.acquire, after_in_parent=release)\n"
        "with signals.Interruption() as it:\n"
        "    try:\n"
        "        print('started', subprocess.run(['true'], preexec_fn=lambda: None).returncode)\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print(it.message, lock.locked())\n"
    )
    assert ended(code) == (0, "started 0\nterminated (SIGTERM) False\n", "")


def test_a_process_that_never_starts_is_not_waited_for() -> None:
    code = (
        "signals._CLEANUP_S = 0.5\n"
        "with signals.Interruption():\n"
        "    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"
        "    print(os.getpid(), flush=True)\n"
        "    subprocess.run(['true'], preexec_fn=lambda: (print(os.getpid(), flush=True), os.close(1), os.close(2),\n"
        "                                                 time.sleep(3600)))\n"
    )
    status, out, err = ended(code)
    os.kill(int(out.split()[1]), signal.SIGKILL)
    assert (status, err.strip()) == (
        143, "terminated (SIGTERM); cleaning up took more than 0.5 s; run the same command to resume"
    )  # fmt: skip


@pytest.mark.parametrize("second", ["pass", "signal.raise_signal(signal.SIGHUP)"])
def test_a_signal_in_a_finalizer_interrupts_after_it(second: str) -> None:
    code = (
        "class Last:\n"
        "    def __del__(self): signal.raise_signal(signal.SIGTERM)\n"
        # Another one while the first is put off.
        "later = signals._later\n"
        f"def disturbed(*given): timer = later(*given); {second}; return timer\n"
        "signals._later = disturbed\n"
        "with signals.Interruption() as it:\n"
        "    Last()\n"
        "    print(it.number)\n"
        "    try:\n"
        "        time.sleep(60)\n"
        "    except KeyboardInterrupt:\n"
        "        print(it.message)\n"
    )
    assert ended(code) == (0, "None\nterminated (SIGTERM)\n", "")


def test_cleaning_up_that_hangs_is_ended() -> None:
    code = (
        "signals._CLEANUP_S = 0.2\n"
        "with signals.Interruption():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    except KeyboardInterrupt:\n"
        "        time.sleep(3600)\n"
    )
    status, _, err = ended(code)
    assert status == 143
    assert err.strip() == "terminated (SIGTERM); cleaning up took more than 0.2 s; run the same command to resume"


def test_a_session_directory_is_removed_at_the_end(tmp_path: Path) -> None:
    with session_dir(tmp_path) as name:
        (Path(name) / "sub").mkdir()
        assert len(name) == len(str(tmp_path)) + len("/cal-ray-") + 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("deaf", [False, True])
def test_processes_that_were_started_in_a_session_directory_end_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deaf: bool
) -> None:
    monkeypatch.setattr("cal_pipeline.runtime.session_dir._END_S", 0.5)
    code = f"import signal, time; signal.signal(signal.SIGTERM, signal.{'SIG_IGN' if deaf else 'SIG_DFL'})"
    code += "; print('up', flush=True); time.sleep(3600)"
    with session_dir(tmp_path) as name:
        mine, other = (
            subprocess.Popen([sys.executable, "-c", code, argument], stdout=subprocess.PIPE, text=True)
            for argument in (f"--dir={name}/session", f"{name}-not")
        )
        for process in (mine, other):
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
    assert mine.wait(timeout=60) == (-signal.SIGKILL if deaf else -signal.SIGTERM)
    assert other.poll() is None
    for process in (mine, other):
        process.kill()
        process.communicate()


def test_only_directories_of_dead_owners_are_removed(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from cal_pipeline.runtime.session_dir import session_dir\n"
        "with session_dir(Path(sys.argv[1])) as name: print(name, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        living = Path(process.stdout.readline().strip())
        foreign = tmp_path / "cal-ray-foreign"
        foreign.mkdir()
        (tmp_path / "cal-ray-link").symlink_to(foreign)
        remove_abandoned(tmp_path)
        assert living.is_dir()
        process.kill()
    assert living.is_dir()
    remove_abandoned(tmp_path)
    assert not living.exists()
    assert foreign.is_dir()
    os.utime(foreign, (0, 0))
    remove_abandoned(tmp_path)
    assert not foreign.exists()


def test_a_driver_that_stands_still_is_ended_with_its_stacks() -> None:
    code = (
        "import time; from cal_pipeline.runtime.watchdog import Watchdog\n"
        "with Watchdog(2) as watchdog:\n"
        "    for _ in range(25): watchdog.alive(); time.sleep(0.1)\n"
        "    print('was alive', flush=True)\n"
        "    time.sleep(3600)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], timeout=120, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (2, "was alive\n")
    assert "the driver itself stood still for 2 s" in ended.stderr
    assert 'File "<string>", line 5' in ended.stderr
