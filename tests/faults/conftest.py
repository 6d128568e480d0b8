"""A model that takes its time, shards, and an undisturbed run to compare with; all once per session."""

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
def shards(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A folder with so many shards; two folders agree in those that both have."""
    made: dict[int, Path] = {}

    def get(count: int) -> Path:
        if count not in made:
            made[count] = write_shards(tmp_path_factory.mktemp("shards"), count)
        return made[count]

    return get


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory, slow_model: Path, shards: Callable[[int], Path]) -> Job:
    """A finished run over forty shards that nothing disturbed: `table(n)` is what n of them must become."""
    output = tmp_path_factory.mktemp("calm") / "out"
    job = Job(model=slow_model, data=shards(40), output=output, flags=("--num_workers", "2"))
    assert job.run() == 0, job.said()
    return job


@pytest.fixture(autouse=True)
def _no_driver_is_left() -> Iterator[None]:
    yield
    for process in started:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    started.clear()
