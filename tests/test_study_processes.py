"""The study's runner and its processes: one in a folder at a time, none outlives it, what is missing is said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import folders
import results
import run
from condition import Run, Unit
from fault_job import PATIENCE_S, wait_for

ONE = Run(world="shapes", seed=0, noise=0.3, weights="uniform")


def test_what_broke_while_it_was_made_is_not_there(tmp_path: Path) -> None:
    target = tmp_path / "shapes-0" / "start"
    paths = []

    def killed(path: Path) -> None:
        path.mkdir()
        paths.append(path)
        raise KeyboardInterrupt

    def whole(path: Path) -> None:
        path.mkdir()
        paths.append(path)

    with pytest.raises(KeyboardInterrupt):
        folders.once(target, killed)
    assert not target.exists()
    assert folders.once(target, whole) == target
    assert len(set(paths)) == 2
    assert target.is_dir()
    folders.remove_unfinished(tmp_path)
    assert list(target.parent.iterdir()) == [target]


def test_two_studies_do_not_write_one_record_from_two_scratch_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--results_dir", str(tmp_path / "results"), "--scratch_dir", str(tmp_path / "scratch")]
    monkeypatch.setattr(sys, "argv", ["run.py", "quick", *flags])
    with (
        folders.alone(tmp_path / "results", "results_dir"),
        pytest.raises(SystemExit, match=r"another study works in .*results: .* another --results_dir"),
    ):
        run.main()


def test_a_unit_that_ended_early_leaves_its_runs_missing(tmp_path: Path) -> None:
    other = Run(world="shapes", seed=0, noise=0.3, weights="online")
    asked = Unit(world="shapes", seed=0, todo=(ONE, other), scratch=tmp_path)
    tables = results.runs(tmp_path), results.measurements(tmp_path)
    assert run.record(iter([(ONE, {"nll": 1.25})]), [asked], *tables) == [other]
    assert tables[0].keys() == {ONE.key}


@contextmanager
def training_study(folder: Path) -> Iterator[tuple[subprocess.Popen[str], psutil.Process, list[str]]]:
    """A runner whose only process is in the midst of a training: (runner, its process, the command line)."""
    asked = ["quick", "--world", "shapes", "--seeds", "1", "--only", "uniform"]
    command = [sys.executable, run.__file__, *asked, "--results_dir", str(folder), "--scratch_dir", str(folder)]
    runner = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    workers: list[psutil.Process] = []
    try:
        wait_for(lambda: any("{'loss'" in log.read_text() for log in folder.glob("*/*/commands.log")), "it trained")
        workers = [one for one in psutil.Process(runner.pid).children() if "spawn_main" in " ".join(one.cmdline())]
        (worker,) = workers
        yield runner, worker, command
    finally:
        runner.kill()
        runner.communicate()
        for one in workers:
            if one.is_running():
                one.kill()


@pytest.mark.full
def test_a_command_that_a_signal_ended_is_no_success(tmp_path: Path) -> None:
    with training_study(tmp_path) as (runner, worker, _):
        worker.send_signal(signal.SIGINT)
        _, errors = runner.communicate(timeout=PATIENCE_S)
        assert runner.returncode == 1
        assert "a process of the study ended with exit code 130" in errors
        assert "1 are still missing (run shapes 0 0.3 uniform); the same command goes on" in errors


@pytest.mark.full
def test_processes_end_with_a_runner_that_was_killed(tmp_path: Path) -> None:
    with training_study(tmp_path) as (runner, worker, command):
        os.kill(runner.pid, signal.SIGKILL)
        wait_for(lambda: not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE, "its process ended")
        assert list(tmp_path.rglob("*.making-*"))
        with folders.alone(tmp_path, "results_dir"), folders.alone(tmp_path, "scratch_dir"):
            folders.remove_unfinished(tmp_path)
        assert not list(tmp_path.rglob("*.making-*"))
        again = subprocess.run([*command, "--dry_run"], check=True, capture_output=True, text=True)
        assert "1 runs and measurements are missing" in again.stdout


def test_processes_end_before_whoever_failed_lets_go(tmp_path: Path) -> None:
    """Of real processes, whose work is to wait an hour: the folders are not free while they run."""
    script = tmp_path / "failing.py"
    script.write_text(_FAILING)
    command = [sys.executable, str(script), str(Path(run.__file__).parent), str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert "disk is full" in ended.stderr
    assert "processes that still run: 0" in ended.stdout


_FAILING = """
import sys, time
sys.path.insert(0, sys.argv[1])
from contextlib import closing
from pathlib import Path
import psutil
import processes
from condition import Run, Unit

def work(asked, results):
    results.send("begun")
    time.sleep(3600)

processes.work_in_process = work
if __name__ == "__main__":
    one = Run(world="shapes", seed=0, noise=0.3, weights="uniform")
    units = [Unit(world="shapes", seed=0, todo=(one,), scratch=Path(sys.argv[2]))] * 2
    try:
        with closing(processes.in_processes(units, 2)) as outcomes:
            for _ in outcomes:
                raise OSError("disk is full")
    finally:
        running = [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]
        print("processes that still run:", len(running))
"""
