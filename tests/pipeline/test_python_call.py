"""`precompute(...)` from Python: the program's flags and words, and nothing of the caller's process changed."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import signal
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from cal_pipeline import PrecomputeResult, cli, precompute, python_call
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.runtime.faults import RunAbortedError
from cal_pipeline.runtime.signals import Interruption
from cal_schemas.errors import ConfigError
from conftest import Family
from fault_job import PATIENCE_S
from tiny_data import write_llava_json

REQUIRED = {"model_name_or_path": "m", "data_path": "d.json", "output_dir": "out"}


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[PrecomputeConfig]:
    """The flags of each call, none of which measures."""
    configs: list[PrecomputeConfig] = []

    def measure(config: PrecomputeConfig, interruption: Interruption, *, own_process: bool) -> PrecomputeResult:
        assert not own_process
        configs.append(config)
        return PrecomputeResult(output_dir=config.output_dir, exit_code=0)

    monkeypatch.setattr(python_call, "measure", measure)
    return configs


def test_keywords_are_the_flags_and_take_what_python_has(seen: list[PrecomputeConfig], tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text("num_workers: 3\nlimit: 5\n")
    result = precompute(
        model_name_or_path=Path("m"), data_path=["a.json", Path("b.json")], output_dir="-out", num_workers=2,
        config=tmp_path / "flags.yaml", processor_kwargs={"max_pixels": 401408}, trust_remote_code=False,
        shard_timeout_s=float("inf"), gpus_per_worker=None, save_contrast_images=np.int64(0), dry_run=np.bool_(False),
    )  # fmt: skip
    (config,) = seen
    assert result.complete
    assert (config.model_name_or_path, config.data_path, config.output_dir) == ("m", ["a.json", "b.json"], "-out")
    assert (config.num_workers, config.limit, config.shard_timeout_s) == (2, 5, float("inf"))
    assert config.processor_settings() == {"max_pixels": 401408}
    assert config == PrecomputeConfig(
        model_name_or_path="m", data_path=["a.json", "b.json"], output_dir="-out", num_workers=2, limit=5,
        processor_kwargs='{"max_pixels": 401408}', shard_timeout_s=float("inf"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"contrats": "drop"}, "unknown flag --contrats; did you mean --contrast?"),
        ({"output_dir": None}, "the following arguments are required: --output_dir"),
        ({"dtype": "float12"}, "invalid choice: 'float12'"),
        ({"num_workers": "two"}, "invalid int value: 'two'"),
        ({"num_workers": 0}, "--num_workers must be positive, got 0"),
        ({"data_path": [["d.json"]]}, "data_path"),
        ({"data_path": object()}, "expected a string, a path, a number"),
        ({"data_path": {"train": "d.json"}}, "data_path is of type dict: expected a string"),
        ({"processor_kwargs": {"max_pixels": {1, 2}}}, "cannot be written as JSON"),
        ({"output_dir": ""}, "--output_dir is empty"),
        ({"data_path": ["-d.json"]}, "--data_path -d.json: no file there"),
        ({"verify": True}, "`cal-precompute --verify` is another job"),
        ({"config": "absent.yaml"}, "--config absent.yaml: No such file"),
        ({"data_path": "nope.json"}, "--data_path nope.json: no file there"),
    ],
)
def test_a_mistake_is_the_programs_refusal(
    flags: dict[str, Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d.json").write_text("[]")
    with pytest.raises(ConfigError) as raised:
        precompute(**{**REQUIRED, **flags})
    assert words in str(raised.value)


@pytest.mark.parametrize("kind", [pd.DataFrame, Dataset.from_pandas])
def test_data_in_memory_is_refused_in_one_line_that_says_how_to_save_it(kind: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        precompute(**{**REQUIRED, "data_path": kind(pd.DataFrame({"text": ["Hello.\n"] * 100}))})
    said = str(raised.value)
    assert "\n" not in said
    assert re.match("data_path is of type (DataFrame|Dataset): .*to_parquet.*save_to_disk.* give the path$", said)


@pytest.mark.parametrize("flags", [{"status": "out"}, {"verify": True, "output_dir": "out"}, {"clean": True}])
def test_another_job_is_named_before_any_flag_is_missed(flags: dict[str, Any]) -> None:
    (name, *_) = flags
    with pytest.raises(ConfigError, match=f"`cal-precompute --{name}` is another job, for a shell"):
        precompute(**flags)


@pytest.mark.parametrize("flags", [{"limit": "ten"}, {"num_workers": 1.5}, {"dtype": "bf16"}, {"output_dir": None}])
def test_a_refused_value_is_shown_without_what_the_parser_raised(flags: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"help\(precompute\) tells more\)$") as raised:
        precompute(**{**REQUIRED, **flags})
    shown = "".join(traceback.format_exception(raised.value))
    assert shown.count("Traceback") == 1
    assert "argparse" not in shown


def test_values_without_names_are_answered_with_the_names() -> None:
    unnamed: Any = precompute
    with pytest.raises(ConfigError, match=r"keywords alone, got 2 .*model_name_or_path=.*data_path=.*output_dir="):
        unnamed("m", "d.json", max_length=512)


def test_a_full_disk_is_an_error_with_the_programs_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(config: object) -> None:
        raise OSError(28, "No space left on device", "out/a.parquet")

    monkeypatch.setattr(cli, "validate_paths", full)
    with pytest.raises(RunAbortedError, match=r"No space left on device.*the same command resumes"):
        precompute(**REQUIRED)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_end_the_process_reaches_it_once_the_run_has_ended(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived: list[int] = []
    monkeypatch.setattr(python_call, "measure", lambda *_, **__: os.kill(os.getpid(), number))
    before = signal.signal(number, lambda got, _: arrived.append(got))
    try:
        with pytest.raises(KeyboardInterrupt, match="terminated"):
            precompute(**REQUIRED)
        assert arrived == [number]
    finally:
        signal.signal(number, before)


def test_logging_is_left_as_it_was(seen: list[PrecomputeConfig]) -> None:
    root = logging.getLogger()
    before = (root.handlers[:], root.level, sys.excepthook, sys.stdout, sys.stderr)
    precompute(**REQUIRED, log_format="json")
    assert (root.handlers, root.level, sys.excepthook, sys.stdout, sys.stderr) == before


def test_a_notebook_shows_the_flags_of_the_call() -> None:
    parameters = inspect.signature(precompute).parameters
    assert parameters["num_workers"].default == 1
    assert {"model_name_or_path", "data_path", "output_dir", "contrast"} <= set(parameters)
    assert not {"status", "json", "verify", "clean"} & set(parameters)


CALLS = """
import json, os, signal, sys, threading
from pathlib import Path
from cal_pipeline import precompute

flags, annotated = json.loads(sys.argv[1]), Path("annotated")
handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

def interrupt():
    while not (annotated / ".cal" / "plan.json").exists():
        threading.Event().wait(0.1)
    threading.Event().wait(2)
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=interrupt, daemon=True).start()
try:
    precompute(**flags)
except KeyboardInterrupt as error:
    print(error)
results = []
thread = threading.Thread(target=lambda: results.append(precompute(**flags)))
thread.start()
thread.join()
print(repr(results[0]))
print(precompute(**flags).shards)
assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
"""


@pytest.mark.full
@pytest.mark.slow
def test_an_interrupted_call_goes_on_in_a_thread_and_leaves_the_process_as_it_was(
    llava: Family, tmp_path: Path
) -> None:
    data, images = write_llava_json(tmp_path, count=8)
    flags = {
        "model_name_or_path": str(llava.directory), "data_path": str(data), "image_folder": [str(images)],
        "rows_per_shard": 4, "output_dir": "annotated", "gpus_per_worker": 0, "max_error_fraction": 1,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(flags)], cwd=tmp_path, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    interrupted, *report, result, nothing, again = done.stdout.splitlines()
    assert re.fullmatch(r"interrupted; \d of 2 shards were done; call it again to go on", interrupted)
    assert "cal-precompute: annotated" in report
    assert result.startswith("PrecomputeResult(output_dir='annotated', exit_code=0, shards=")
    assert "'ok': " in result
    assert nothing.startswith("nothing to do: all 2 shards in annotated are done")
    assert again == "0"
    assert len(list((tmp_path / "annotated").glob("*.parquet"))) == 2
