"""The driver is killed, interrupted, terminated, or started twice."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cal_schemas.opened import open_annotated
from fault_job import PATIENCE_S, Job, alive, descendants, frozen, wait_for

SHARDS = 16
pytestmark = [pytest.mark.fault, pytest.mark.slow]


def ray_dirs_of(pid: int) -> list[Path]:
    """The directory of the Ray that this driver has started."""
    titles = " ".join(title for _, title in descendants(pid))
    return [path for path in Path("/tmp").glob("cal-ray-*") if f"{path}/" in titles]


def run_past(late: Job, process: subprocess.Popen[str], *flags: str) -> None:
    """Stops a driver once it has planned, lets another with these flags finish on its output, and wakes it."""
    late.wait_for(process, (late.output / ".cal" / "plan.json").exists, "the first has planned")
    quick = Job(model=late.model, data=late.data, output=late.output, logs=late.output.parent / "logs")
    quick.log.parent.mkdir()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        assert quick.run(*flags) == 0, quick.said()
    finally:
        os.kill(process.pid, signal.SIGCONT)


@pytest.fixture
def job(tmp_path: Path, slow_model: Path, shards: Callable[[int], Path]) -> Job:
    return Job(model=slow_model, data=shards(SHARDS), output=tmp_path / "out", flags=("--num_workers", "2"))


@pytest.mark.full
def test_after_sigkill_of_the_driver_a_rerun_does_the_rest_and_its_workers_publish_nothing_broken(
    job: Job, calm: Job
) -> None:
    process = job.start()
    # Stopped, workers outlive the driver for as long as the test wants.
    with frozen(process, job, done=1):
        (mine,) = ray_dirs_of(process.pid)
        family = [child for child, _ in descendants(process.pid)]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        before = job.contents()
        assert 1 <= len(before) < SHARDS
        assert open_annotated(job.output).num_rows == 4 * len(before)

        assert job.run() == 0, job.said()
        assert "another driver" not in job.said()
        after = job.contents()
        assert {name: after[name] for name in before} == before
        assert job.table().equals(calm.table(SHARDS))
        assert not mine.exists()
    # Awake, they find their staged file gone or their shard published.
    wait_for(lambda: not any(map(alive, family)), "all processes of the dead driver have ended")
    assert job.contents() == after
    assert job.staged() == []


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        pytest.param(signal.SIGTERM, 143, "terminated (SIGTERM)", id="SIGTERM"),
        pytest.param(signal.SIGINT, 130, "interrupted", id="ctrl-c", marks=pytest.mark.full),
    ],
)
def test_a_signal_ends_the_run_cleanly_and_says_how_to_resume(job: Job, number: int, code: int, words: str) -> None:
    process = job.start()
    with frozen(process, job, done=1):
        (mine,) = ray_dirs_of(process.pid)
        family = [child for child, _ in descendants(process.pid)]
    # A terminal and a batch system signal the whole group, Ray's processes included.
    os.killpg(process.pid, number)
    assert job.finish(process) == code, job.said()
    # What was published a moment before the signal counts too, though it may not have reached the driver.
    message = f"cal-precompute: {words}; {len(job.done())} of {SHARDS} shards were done; run the same command to resume"
    assert message in job.said(), job.said()
    assert job.staged() == []
    assert list((job.output / ".cal").glob("driver-*")) == []
    assert len(list((job.output / ".cal" / "reports").iterdir())) == 1
    wait_for(lambda: not any(map(alive, family)), "no process is left")
    assert not mine.exists()


@pytest.mark.full
@pytest.mark.parametrize("send", [os.kill, os.killpg], ids=["driver", "group"])
@pytest.mark.parametrize("moment", ["before", "during"])
def test_sigterm_while_ray_starts_ends_the_run_as_it_does_later(job: Job, send: Any, moment: str) -> None:
    process = job.start()
    job.wait_for(process, (job.output / ".cal" / "plan.json").exists, "the run is planned")
    if moment == "during":
        job.wait_for(process, lambda: any("gcs_server" in title for _, title in descendants(process.pid)), "Ray starts")
    mine, family = ray_dirs_of(process.pid), [child for child, _ in descendants(process.pid)]
    send(process.pid, signal.SIGTERM)
    assert job.finish(process) == 143, job.said()
    assert f"terminated (SIGTERM); 0 of {SHARDS} shards were done; run the same command to resume" in job.said()
    assert job.done() == job.staged() == []
    assert list((job.output / ".cal").glob("driver-*")) == []
    assert len(list((job.output / ".cal" / "reports").iterdir())) == 1
    wait_for(lambda: not any(map(alive, family)), "no process is left")
    assert not any(path.exists() for path in mine)


@pytest.mark.full
def test_a_second_driver_is_told_of_the_first_and_neither_harms_the_other(
    job: Job, slow_model: Path, calm: Job, tmp_path: Path
) -> None:
    first = job.start()
    same = Job(model=job.model, data=job.data, output=job.output, flags=job.flags, logs=tmp_path / "second")
    same.log.parent.mkdir()
    with frozen(first, job):  # It cannot have ended when the second looks.
        second = same.start()
        same.wait_for(second, lambda: "another driver" in same.said(), "the second warns")
    assert same.finish(second) == 0, same.said()
    assert job.finish(first) == 0, job.said()
    assert f"another driver works on this output: {platform.node()}, pid {first.pid}, started 20" in same.said()
    assert "another driver" not in job.said()
    assert job.table().equals(calm.table(SHARDS))
    assert job.staged() == []
    assert list((job.output / ".cal").glob("driver-*")) == []


@pytest.mark.full
def test_a_driver_finds_its_shards_measured_otherwise_and_ends_with_2_and_both_values(
    slow_model: Path, shards: Callable[[int], Path], tmp_path: Path
) -> None:
    late = Job(model=slow_model, data=shards(2), output=tmp_path / "out")
    process = late.start("--contrast", "gaussian_blur", "--blur_sigma", "10")
    run_past(late, process)
    before = late.contents()
    assert late.finish(process) == 2, late.said()
    assert (
        f"{late.output}/s00.parquet holds another measurement (contrast.condition: 'drop' there, 'gaussian_blur' now; "
        "contrast.blur_sigma: None there, 10.0 now); choose another --output_dir, or remove the old shards"
    ) in late.said()
    assert late.contents() == before
    assert late.staged() == []


@pytest.mark.full
def test_a_driver_that_finds_shards_of_another_split_beside_its_own_ends_with_2(
    slow_model: Path, shards: Callable[[int], Path], tmp_path: Path
) -> None:
    late = Job(model=slow_model, data=shards(2), output=tmp_path / "out")
    process = late.start()
    run_past(late, process, "--limit", "6")
    assert late.finish(process) == 2, late.said()
    assert late.done() == ["s00", "s01", "s01-first2"]
    assert (
        f"{late.output}/s01-first2.parquet is not part of this run's plan, and holds rows of its data: another"
        in late.said()
    )


@pytest.mark.full
@pytest.mark.parametrize(
    ("title", "words"),
    [
        pytest.param("raylet/raylet ", "the Ray node that this program is attached to has died", id="raylet"),
        pytest.param("gcs/gcs_server ", "GCS", id="gcs"),  # Ray's own words: it ends the program itself.
    ],
)
def test_rays_own_processes_dying_end_the_run_and_do_not_hang_it(job: Job, calm: Job, title: str, words: str) -> None:
    # How long Ray's processes look for a lost GCS: 60 s by default.
    process = replace(job, environment={"RAY_gcs_rpc_server_reconnect_timeout_s": "10"}).start()
    with frozen(process, job, done=1):
        (victim,) = [child for child, command in descendants(process.pid) if title in command]
        before = job.contents()
        os.kill(victim, signal.SIGKILL)
    code = process.wait(timeout=PATIENCE_S)
    assert before.items() <= job.contents().items()
    finished = len(job.done()) == SHARDS
    # The workers may get to the end before anybody notices: then it is a run like any other. Without a GCS Ray may end
    # the program even then.
    assert (code == 0) == finished or (finished and title.startswith("gcs")), job.said()
    if code:
        assert words in job.said()
        assert job.run() == 0, job.said()
    assert job.table().equals(calm.table(SHARDS))


@pytest.mark.full
def test_no_start_is_blamed_when_the_drivers_own_node_has_died_though_ray_never_hears_of_it(job: Job) -> None:
    deaf = {"RAY_health_check_failure_threshold": "100000"}
    process = replace(job, environment=deaf).start("--max_tries", "1")
    with frozen(process, job, done=1):
        (raylet,) = [child for child, command in descendants(process.pid) if "raylet/raylet " in command]
        os.kill(raylet, signal.SIGKILL)
    assert job.finish(process) == 2, job.said()
    assert "stopped: the Ray node that this program is attached to has died. What is published is whole" in job.said()
    assert "failed starts" not in job.said()
