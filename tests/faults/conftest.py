"""A model that takes its time, and undisturbed runs to compare with; both once per session."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fault_job import Job, started, write_shards
from faulty_model import build_faulty_llava


@pytest.fixture(scope="session")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quarter of a second per pass, two passes per batch: long enough to be hit in the middle of a shard."""
    return build_faulty_llava(tmp_path_factory.mktemp("slow") / "model", seconds_per_pass=0.25)


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory, slow_model: Path) -> Callable[[int], Job]:
    """A finished run over so many shards that nothing disturbed."""
    made: dict[int, Job] = {}

    def get(num_shards: int) -> Job:
        if num_shards not in made:
            folder = tmp_path_factory.mktemp("calm")
            data = write_shards(folder / "data", num_shards)
            job = Job(model=slow_model, data=data, output=folder / "out")
            assert job.run("--num_workers", "2") == 0, job.said()
            made[num_shards] = job
        return made[num_shards]

    return get


@pytest.fixture(autouse=True)
def _no_driver_is_left() -> Iterator[None]:
    yield
    for process in started:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    started.clear()
