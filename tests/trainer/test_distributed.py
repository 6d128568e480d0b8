"""Two real processes over gloo against one, through `Trainer.train()` itself: DDP and FSDP2 as a user gets them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import distributed_step
from distributed_step import CASES, DDP_CASES, FSDP_CASES, TEXT_CASES, Seen
from tiny_models import FAMILIES

TIMEOUT_S = 300
QUICK = (
    "step", "sample_online_accumulated", "text_rank_online", "text_micro_batch", "fsdp_cached_accumulated",
    "fsdp_online_checkpointed", "fsdp_tied", "fsdp_chunked",
)  # fmt: skip
"""Both wrappers, cached and online, both divisors, with and without accumulation; the others join these otherwise."""
Result = Callable[[str], Any]


def marked(cases: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.full]) for name in cases]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("distributed_models")
    for name in {case.family for case in CASES.values()}:
        FAMILIES[name](directory / name)
    return directory


@pytest.fixture(scope="module")
def two(models: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Result:
    """What both ranks of one group of two saw in a case; it runs all that are asked for: starting it takes longest."""
    output = tmp_path_factory.mktemp("two")
    asked = [item.callspec.params["name"] for item in request.session.items if item.path == request.path]
    log = launch(models, output, asked)

    def get(name: str) -> tuple[Seen, Seen]:
        files = [output / f"{name}-{rank}.pt" for rank in range(2)]
        assert all(file.exists() for file in files), f"{name} left no results:\n{log[-6000:]}"
        first, second = (Seen(**torch.load(file)) for file in files)
        return first, second

    return get


def launch(models: Path, output: Path, names: list[str]) -> str:
    """Runs the cases in two processes until both have ended; returns what they printed.

    The exit status is not looked at: two-process gloo groups now and then abort on their way out, when all the work
    is done. What counts is the results that the ranks wrote.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [distributed_step.__file__, str(models), str(output), *names]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    ) as process:
        try:
            return process.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return f"no end after {TIMEOUT_S} s\n{process.communicate()[0]}"


@pytest.fixture(scope="module")
def one(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """What a single process saw with the whole batch at once, without sharding or checkpointing."""
    known: dict[Any, Seen] = {}

    def get(name: str) -> Seen:
        case = replace(CASES[name], accumulation=1, sharded=False, options={}, chunked=False)
        key = (case.family, case.source, case.normalization, case.text_only, case.trainable)
        if key not in known:
            known[key] = distributed_step.run_case(case, models, tmp_path_factory.mktemp("one"), world_size=1)
        return known[key]

    return get


def assert_same_training(alone: Seen, ranks: tuple[Seen, Seen]) -> None:
    for rank in ranks:
        assert rank.losses == pytest.approx(alone.losses, abs=1e-4)
        for name, gradient in alone.gradients.items():
            torch.testing.assert_close(
                rank.gradients[name], gradient, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
            )
        for name, weight in alone.weights.items():
            torch.testing.assert_close(rank.weights[name], weight, atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert any(float(gradient.abs().max()) > 0.1 for gradient in alone.gradients.values())


@pytest.mark.parametrize("name", marked(DDP_CASES))
def test_two_processes_train_as_one(one: Result, two: Result, name: str) -> None:
    ranks = two(name)
    assert {rank.wrapper for rank in ranks} == {"DistributedDataParallel"}
    assert_same_training(one(name), ranks)


@pytest.mark.parametrize("name", marked(TEXT_CASES))
def test_a_rank_without_images_neither_hangs_nor_changes_a_gradient(one: Result, two: Result, name: str) -> None:
    ranks = two(name)
    micro_batches = distributed_step.STEPS * CASES[name].accumulation
    expected = (2, 2) if CASES[name].accumulation > 1 else (0, micro_batches)
    assert tuple(rank.text_only_batches for rank in ranks) == expected
    assert_same_training(one(name), ranks)


@pytest.mark.parametrize("name", marked(FSDP_CASES))
def test_two_processes_with_a_sharded_model_train_as_one(one: Result, two: Result, name: str) -> None:
    ranks = two(name)
    assert all(rank.wrapper.startswith("FSDP") for rank in ranks)
    assert_same_training(one(name), ranks)
