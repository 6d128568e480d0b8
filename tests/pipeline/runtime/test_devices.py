"""More workers than a machine holds: it is said at once, and what happens then."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest
import torch

from cal_pipeline.runtime.cluster import short_of_cpus
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.devices import gpus_per_worker


@pytest.mark.parametrize(
    ("workers", "each", "address", "said"),
    [
        (2, 1.0, None, None),
        (1, 16.0, None, None),
        (4, 0.5, None, None),
        (3, 1.0, "10.0.0.1:6379", None),
        (3, 1.0, "local", "--num_workers 3 at --cpus_per_worker 1 asks for 3 CPUs, and this machine has 2: all 3 are"),
        (2, 1.5, None, "--num_workers 2 at --cpus_per_worker 1.5 asks for 3 CPUs, and this machine has 2"),
    ],
)
def test_cpus(
    workers: int, each: float, address: str | None, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = short_of_cpus(workers, each, address)
    assert (found is None) == (said is None)
    assert (said or "") in (found or "")


@pytest.mark.parametrize(
    ("workers", "each", "address", "room"),
    [
        (2, None, None, None),
        (8, None, None, 2),
        (20, 0.1, None, None),
        (21, 0.1, None, 20),
        (2, 2.0, None, 1),
        (8, None, "10.0.0.1:6379", None),
        (8, 0.0, None, None),
    ],
)
def test_gpus(
    workers: int, each: float | None, address: str | None, room: int | None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given: dict[str, Any] = {"model_name_or_path": "m", "output_dir": "o", "data_path": ["d"]}
    config = PrecomputeConfig(num_workers=workers, gpus_per_worker=each, ray_address=address, **given)
    with caplog.at_level(logging.WARNING):
        gpus_per_worker(config)
    assert [f"this machine has 2 GPUs, which hold {room}; " in text for text in caplog.messages] == [True] * bool(room)
