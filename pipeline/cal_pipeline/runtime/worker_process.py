"""Runs a worker as a process: its log, its death, and its last words for the driver to quote. No Ray in here."""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import platform
import re
from contextlib import suppress
from pathlib import Path

import torch

from cal_pipeline.log_lines import LogLines, log_to
from cal_pipeline.output.local_staging import make_private, staging_folder
from cal_pipeline.runtime.faults import fault_of
from cal_pipeline.runtime.worker import Outcome, Worker, WorkerSettings
from cal_pipeline.sources.shard import Shard
from cal_schemas.redaction import keep_secrets, redacted

_NOISE = re.compile(r"\[\d{4}-\d\d-\d\d .*\] |\(raylet\)|[\d-]+ [\d:,]+ INFO |.*\d%\|")
"""Lines of Ray's own, of ours that report no trouble, and progress bars."""
_TAIL_BYTES = 64 * 1024
_log = logging.getLogger(__name__)


def device_name(on_gpu: bool) -> str:
    """Names what this process computes on."""
    if on_gpu:
        with suppress(RuntimeError, AssertionError):  # The start says what is wrong with the GPU.
            return str(torch.cuda.get_device_name(0))
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


class WorkerProcess:
    """Runs a Worker in a process of its own. The constructor does little: a failing start is an answer, not a crash."""

    def __init__(self, log_path: str) -> None:
        folder = Path(log_path).parent
        if folder.parent.name == staging_folder().name:
            make_private(folder.parent)
        try:
            for made in (folder.parent, folder):  # No more: an output directory that is gone is not made anew.
                made.mkdir(exist_ok=True)
        except OSError:
            log_path = os.devnull  # `start` says what is missing.
        self._log = open(log_path, "a", 1, "utf-8", "backslashreplace")  # noqa: SIM115, PTH123  lives with the process
        # What native code says as it dies goes to these two, and would be lost in Ray's own files.
        for descriptor in (1, 2):
            os.dup2(self._log.fileno(), descriptor)
        faulthandler.enable(self._log)
        keep_secrets()
        logging.getLogger().handlers.clear()
        self._lines = LogLines()
        log_to(self._log, self._lines)

    def start(self, settings: WorkerSettings) -> Outcome:
        """Loads the model: `done`, `refuse` where the worker says itself what it lacks, `retry` where it broke."""
        self._lines.log_format = settings.log_format
        log_to(self._log, self._lines)
        try:
            self._worker = Worker(settings)
        except BaseException as error:
            _log.exception("cannot start")
            kind = fault_of(error).at_start
            assert kind is not None
            return Outcome(
                kind=kind, message=str(error) if kind == "refuse" else redacted(f"{type(error).__name__}: {error}")
            )
        _log.info("started on %s, pid %d", platform.node(), os.getpid())
        return Outcome(kind="done")

    def run(self, shard: Shard) -> Outcome:
        """Annotates the shard; does not return after a fault that only a fresh process gets over."""
        self._lines.shard = shard.name
        _log.info("begins")
        try:
            outcome = self._worker.run(shard)
        except BaseException:
            # A CUDA error is sticky: only a fresh process gets a working device.
            _log.exception("this process ends")
            os._exit(1)
        if outcome.report:
            _log.info("done in %.1f s: %s", outcome.report.seconds["total"], outcome.report.statuses)
        else:
            _log.warning("not done: %s", outcome.message)
        self._lines.shard = None
        return outcome


def last_words(log_path: Path) -> str:
    """Quotes what a dead worker's log ends with: the signal that was fatal, else the last line."""
    try:
        with log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return "it wrote no log"
    said = [text for line in lines if (text := _trouble(line.strip())) and not _NOISE.match(text)]
    if not said:
        return f"its log {log_path} says nothing"
    # After a fatal signal the log ends with stacks; the line above them names the signal.
    last = next((line for line in reversed(said) if line.startswith("Fatal Python error")), said[-1])
    return f"its log ends with: {last}"


def _trouble(line: str) -> str:
    """Returns what a line says; of a log in JSON the end of its message or traceback, and nothing of mere news."""
    if not line.startswith('{"time": '):
        return line
    try:
        value = json.loads(line)
    except ValueError:  # Killed while it wrote, or on a full disk.
        return line
    return "" if value["level"] == "INFO" else str(value.get("exception", value["message"])).rpartition("\n")[2]
