"""Workers that are killed, that crash on one shard, that hang, or that cannot start."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fault_job import Job, frozen, lengthen, write_shards
from faulty_model import build_faulty_llava

pytestmark = [pytest.mark.fault, pytest.mark.slow]


def report(job: Job) -> dict[str, object]:
    (path,) = (job.output / ".cal" / "reports").glob("*.json")
    report: dict[str, object] = json.loads(path.read_text())
    return report


def test_a_worker_killed_in_mid_shard_is_replaced_and_the_shard_done_once(
    tmp_path: Path, slow_model: Path, shards: Callable[[int], Path]
) -> None:
    job = Job(model=slow_model, data=shards(3), output=tmp_path / "out")
    process = job.start()
    with frozen(process, job) as busy:
        os.kill(busy[0], signal.SIGKILL)
    assert job.finish(process) == 0, job.said()
    assert "try 1 of 3: worker" in job.said()
    assert "killed or crashed; its log" in job.said()
    assert report(job)["retries"] == 1
    assert job.table()["sample_id"].to_pylist() == [f"s{shard:02d}-{row}" for shard in range(3) for row in range(4)]
    assert set(job.table()["status"].to_pylist()) == {"ok"}
    assert job.staged() == []


@pytest.fixture(scope="module")
def battered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, int]:
    """Six shards, of which one kills its worker once, one kills, one crashes and one stops its worker every time."""
    folder = tmp_path_factory.mktemp("battered")
    data = write_shards(folder / "data", 6)
    for number, words in ((1, 20), (2, 40), (3, 60), (4, 80)):
        lengthen(data / f"s{number:02d}.parquet", words)
    lengths = {"kill_once": [70, 100], "kill": [100, 140], "segfault": [140, 180], "hang": [180, 300]}
    model = build_faulty_llava(folder / "model", lengths=lengths, marker=str(folder / "marker"))
    job = Job(model=model, data=data, output=folder / "out", flags=("--num_workers", "2", "--shard_timeout_s", "8"))
    return job, job.run()


@pytest.mark.full
def test_a_job_with_hopeless_shards_does_the_others_and_ends_with_1(battered: tuple[Job, int]) -> None:
    job, code = battered
    assert code == 1, job.said()
    assert job.done() == ["s00", "s01", "s05"]
    assert job.table().num_rows == 12
    assert job.staged() == []


@pytest.mark.full
def test_a_shard_that_kills_its_worker_once_is_done_at_the_second_try(battered: tuple[Job, int]) -> None:
    assert (battered[0].output.parent / "marker").exists()
    assert "shard s01, try 1 of 3" in battered[0].said()
    assert "shard s01, try 2 of 3" not in battered[0].said()


@pytest.mark.full
@pytest.mark.parametrize(
    ("shard", "reason"),
    [
        ("s02", "killed or crashed; its log"),
        ("s03", "killed or crashed; its log ends with: Fatal Python error: Segmentation fault"),
        ("s04", "gave no answer for 8 s (--shard_timeout_s)"),
    ],
)
def test_a_shard_that_fails_every_time_is_listed_after_three_tries_with_its_reason(
    battered: tuple[Job, int], shard: str, reason: str
) -> None:
    said = battered[0].said()
    assert [f"shard {shard}, try {number} of 3" in said for number in (1, 2, 3)] == [True, True, False]
    assert f"shard {shard} failed 3 times" in said
    listed = report(battered[0])["failed"]
    assert isinstance(listed, dict)
    assert sorted(listed) == ["s02", "s03", "s04"]
    assert reason in listed[shard]
    assert f"FAILED {shard}: " in said


def ended_after_three_starts(job: Job, code: int) -> str:
    said = job.said()
    assert code == 2, said
    assert "(failed starts in a row: 3)" in said
    assert "(failed starts in a row: 4)" not in said
    return said


def stopped_after_three_starts(job: Job, code: int) -> str:
    said = ended_after_three_starts(job, code)
    assert said.count("cal-precompute: stopped: ") == 1
    assert len(list((job.output / ".cal" / "logs").glob("worker-*"))) == 3
    assert job.done() == job.staged() == []
    return said


@pytest.mark.full
def test_a_worker_whose_process_exits_in_its_constructor_stops_the_run_with_its_last_words(
    tmp_path: Path, shards: Callable[[int], Path]
) -> None:
    model = build_faulty_llava(tmp_path / "model", exit_at_start=True)
    job = Job(model=model, data=shards(3), output=tmp_path / "out")
    said = stopped_after_three_starts(job, job.run())
    assert "its log ends with: licence server says no. 3 starts failed in a row; see " in said


@pytest.mark.full
def test_a_worker_that_never_ends_loading_is_ended_and_stops_the_run(
    tmp_path: Path, shards: Callable[[int], Path]
) -> None:
    model = build_faulty_llava(tmp_path / "model", hang_at_start=True)
    job = Job(model=model, data=shards(3), output=tmp_path / "out", flags=("--start_timeout_s", "2"))
    assert "gave no answer for 2 s (--start_timeout_s)" in stopped_after_three_starts(job, job.run())


@pytest.mark.full
def test_a_model_that_the_workers_refuse_is_said_in_one_line_and_leaves_nothing(
    tmp_path: Path, slow_model: Path, shards: Callable[[int], Path]
) -> None:
    model = Path(shutil.copytree(slow_model, tmp_path / "model"))
    job = Job(model=model, data=shards(3), output=tmp_path / "out")
    process = job.start()
    job.wait_for(process, lambda: "to measure" in job.said(), "the driver has checked everything")
    model.rename(tmp_path / "elsewhere")
    said = ended_after_three_starts(job, job.finish(process))
    assert f"cannot start: --model_name_or_path {model}: no such directory" in said
    assert "stopped" not in said
    assert said.endswith("3 starts failed in a row")
    assert not job.output.exists()


@pytest.mark.full
def test_a_library_that_is_broken_on_the_node_stops_the_run_with_the_import_error(
    tmp_path: Path, slow_model: Path, shards: Callable[[int], Path]
) -> None:
    # Every Python process reads sitecustomize; only Ray's workers are to miss the library.
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import pathlib, sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'transformers':\n"
        "            raise ImportError('libcudart.so.13: cannot open shared object file')\n"
        "if b'default_worker.py' in pathlib.Path('/proc/self/cmdline').read_bytes():\n"
        "    sys.meta_path.insert(0, Broken())\n"
    )
    # Without the folders of torchvision, whose own sitecustomize this one would hide.
    others = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if "torchvision" not in folder]
    path = os.pathsep.join([str(tmp_path / "site"), *filter(None, others)])
    job = Job(model=slow_model, data=shards(3), output=tmp_path / "out", environment={"PYTHONPATH": path})
    code = job.run()
    said = job.said()
    assert code == 2, said
    assert "(failed starts in a row: 3)" in said
    assert "(failed starts in a row: 4)" not in said
    assert "libcudart.so.13: cannot open shared object file" in said
    assert job.done() == []


@pytest.mark.full
def test_capacity_comes_back_when_starts_that_failed_succeed_again(tmp_path: Path) -> None:
    held = tmp_path / "held"  # As memory is, by somebody else.
    model = build_faulty_llava(tmp_path / "model", exit_while=str(held), seconds_per_pass=0.25)
    job = Job(model=model, data=write_shards(tmp_path / "data", 6), output=tmp_path / "out")
    process = job.start()
    with frozen(process, job, done=1) as busy:
        held.touch()
        os.kill(busy[0], signal.SIGKILL)
    job.wait_for(process, lambda: "failed starts in a row: 3" in job.said(), "three starts have failed")
    held.unlink()
    assert job.finish(process) == 0, job.said()
    said = job.said()
    assert "licence server says no; 0 of 1 workers are up, the next start in 12 s (failed starts in a row: 3)" in said
    assert "1 of 1 workers are up again, after " in said
    assert job.table().num_rows == 24
    written = report(job)
    assert written["failed_starts"] == 3
    short = written["seconds_short"]
    assert isinstance(short, float)
    assert short > 3 + 6
    assert "WARNING: 3 starts of workers failed (the log says why): for " in said


@pytest.mark.full
def test_what_rays_memory_monitor_kills_is_said_with_node_and_figures(
    tmp_path: Path, slow_model: Path, shards: Callable[[int], Path]
) -> None:
    # So low a limit holds for every worker as it starts.
    low = {"RAY_memory_usage_threshold": "0.01", "RAY_memory_monitor_refresh_ms": "100"}
    job = Job(model=slow_model, data=shards(3), output=tmp_path / "out", environment=low)
    said = ended_after_three_starts(job, job.run())
    figures = r"node [\d.]+ used [\d.]+GB of [\d.]+GB \(it kills from 1 % on\)"
    assert re.search(f"Ray's memory monitor killed it: {figures}", said), said
    assert "max_restarts" not in said
