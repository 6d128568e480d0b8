"""More workers than a machine holds: it is said at once, and what happens then."""

from __future__ import annotations

import logging
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cal_pipeline.runtime import devices
from cal_pipeline.runtime.cluster import short_of_cpus
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.devices import gpus_per_worker, warn_of_crowding


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


@pytest.mark.parametrize(
    ("workers", "gpus", "options", "said"),
    [
        (2, 0.0, {}, None),
        (3, 0.0, {}, "3 times 4.0 GB of weights (bfloat16) are more than the 8.0 GB of memory of this machine"),
        (3, 0.0, {"ray_address": "10.0.0.1:6379"}, None),
        (3, 0.0, {"quantization": "4bit"}, None),
        (2, 0.0, {"dtype": "float32"}, "2 times 8.0 GB of weights (float32)"),
        (8, 0.25, {}, "4 times 4.0 GB of weights (bfloat16) are more than the 9.0 GB of memory of 0.25 GPU"),
        (2, 0.25, {}, None),
        (8, 1.0, {}, None),
        (8, 2.0, {"dtype": "float32"}, None),
    ],
)
def test_models_that_memory_does_not_hold(
    workers: int, gpus: float, options: dict[str, Any], said: str | None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(devices, "_memory_of_machine", lambda: 8 * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(total_memory=9 * 10**9))
    model = torch.nn.Linear(10**5, 2 * 10**4, bias=False, device="meta")
    model.config = SimpleNamespace()  # type: ignore[assignment]
    given: dict[str, Any] = {"model_name_or_path": "m", "output_dir": "o", "data_path": ["d"], "dtype": "bfloat16"}
    with caplog.at_level(logging.WARNING):
        warn_of_crowding(model, PrecomputeConfig(num_workers=workers, **{**given, **options}), gpus)
    assert len(caplog.messages) == (said is not None)
    assert (said or "") in caplog.text


def test_a_machine_has_memory() -> None:
    assert 2**30 < devices._memory_of_machine() < 2**50
