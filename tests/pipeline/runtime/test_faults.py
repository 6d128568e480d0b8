"""The table of faults, line by line: in a worker's shard, as a worker starts, in the driver, and on the page."""

from __future__ import annotations

import errno
import importlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cal_pipeline import cli
from cal_pipeline.log_lines import LogLines
from cal_pipeline.runtime import worker, worker_process
from cal_pipeline.runtime.faults import FAULTS, Fault, fault_of
from cal_pipeline.sources.shard import Shard
from cal_schemas.errors import StoreError
from cal_schemas.storage.store_errors import access_denied

PAGE = Path(__file__).parents[3] / "docs" / "reliability.md"
SHARD: Any = SimpleNamespace(name="a-shard")


def kind_of(fault: Fault) -> Any:
    if not isinstance(fault.kind, str):
        return fault.kind
    module, _, name = fault.kind.rpartition(".")
    return getattr(importlib.import_module(module), name)


def error_of(fault: Fault, number: int | None) -> BaseException:
    """Raised as the libraries do; one that no line names stands for all others of an OSError."""
    kind = kind_of(fault)
    if kind is OSError:
        return OSError(errno.ENOTDIR if number is None else number, "said so")
    if kind is StoreError and number == errno.EACCES:
        return access_denied("said so")
    error: BaseException = kind("said so", None) if kind.__name__ == "ActorUnavailableError" else kind("said so")
    return error


CASES = [
    pytest.param(fault, error_of(fault, number), id="-".join([kind_of(fault).__name__, *others]))
    for fault in FAULTS
    for number in fault.errnos or [None]
    for others in [[errno.errorcode[number]] if number else []]
]
each_line = pytest.mark.parametrize(("fault", "error"), CASES)


@each_line
def test_the_first_line_that_fits_an_exception_is_its_own(fault: Fault, error: BaseException) -> None:
    assert fault_of(error) is fault


@each_line
def test_a_worker_answers_or_ends_as_the_table_says(
    fault: Fault, error: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def annotate(shard: Shard, **_: Any) -> None:
        raise error

    def leave(code: int) -> None:
        raise SystemExit(code)

    process = worker_process.WorkerProcess.__new__(worker_process.WorkerProcess)
    process._lines = LogLines()
    process._worker = worker.Worker.__new__(worker.Worker)
    process._worker._settings = SimpleNamespace(spec=None, store=None, options=None, redo=frozenset())  # type: ignore[assignment]
    process._worker._encoder = process._worker._model = None  # type: ignore[assignment]
    monkeypatch.setattr(worker, "annotate_shard", annotate)
    monkeypatch.setattr(worker_process.os, "_exit", leave)
    if fault.in_shard is None:  # Nothing in a worker raises it.
        assert fault.at_start is None
    elif fault.in_shard == "end":
        with pytest.raises(SystemExit, match="1"):
            process.run(SHARD)
        assert "said so" in caplog.text
    else:
        outcome = process.run(SHARD)
        assert (outcome.kind, outcome.report) == (fault.in_shard, None)
        assert "said so" in outcome.message


@each_line
def test_a_worker_that_cannot_start_says_what_the_table_says(
    fault: Fault, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(settings: object) -> None:
        raise error

    process = worker_process.WorkerProcess.__new__(worker_process.WorkerProcess)
    process._log, process._lines = io.StringIO(), LogLines()
    monkeypatch.setattr(worker_process, "Worker", load)
    if fault.at_start is not None:
        outcome = process.start(SimpleNamespace(log_format="text"))  # type: ignore[arg-type]
        assert outcome.kind == fault.at_start
        assert "said so" in outcome.message
        assert outcome.message.startswith(type(error).__name__) == (fault.at_start == "retry")


@each_line
def test_the_program_ends_as_the_table_says(
    fault: Fault, error: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def validate(config: object) -> None:
        raise error

    monkeypatch.setattr(cli, "validate_paths", validate)
    argv = ["--model_name_or_path", "m", "--output_dir", "o", "--data_path", "d"]
    if fault.in_driver in ("retry", "crash"):
        with pytest.raises(type(error)) as raised:
            cli.run(argv)
        assert raised.value is error
        assert fault.exit_code == 1  # As Python ends after a traceback.
        return
    code = cli.run(argv)
    said = capsys.readouterr().err
    assert "said so" in said
    assert "Traceback" not in said
    assert said.count("cal-precompute: ") == 1
    if fault.in_driver == "interrupt":
        assert (code, fault.exit_code) == (130, None)
        assert "run the same command to resume" in said
    else:
        assert code == fault.exit_code == 2
        assert ("the same command resumes" in said) == (fault.driver_says != "{error}")


def test_the_page_has_the_same_table() -> None:
    page = PAGE.read_text(encoding="utf-8").partition("| exception | errno |")[2].partition("\n\n")[0]
    lines = [[cell.strip(" `") for cell in line.strip("| ").split("|")] for line in page.splitlines()[2:]]
    assert lines == [
        [
            kind_of(fault).__name__,
            ", ".join(errno.errorcode[number] for number in fault.errnos) or "-",
            fault.in_shard or "-",
            fault.at_start or "-",
            fault.in_driver + (f", {fault.node_news_s:g} s" if fault.node_news_s else ""),
            "128 + signal" if fault.exit_code is None else str(fault.exit_code),
        ]
        for fault in FAULTS
    ]
