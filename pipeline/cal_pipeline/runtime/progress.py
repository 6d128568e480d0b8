"""Shows how a run goes on: a bar on a terminal, a log line every 30 s elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cal_pipeline.output.shard_report import ShardReport
from cal_schemas.errors import STATUS_OK

_LOG_EVERY_S = 30.0
_log = logging.getLogger(__name__)


class ProgressListener:
    """Counts finished shards and rows, and shows rate and time left; a context manager.

    Args:
        num_shards: shards still to do.
        num_rows: rows in them.
        heartbeat: called every few seconds, to keep the run's sign of life fresh.
        check: called on every tick; raises to end the run.
        counted: called with the report of every finished shard.
    """

    def __init__(
        self,
        num_shards: int,
        num_rows: int,
        heartbeat: Callable[[], None],
        check: Callable[[], None] = lambda: None,
        counted: Callable[[ShardReport], None] = lambda _: None,
    ) -> None:
        self._counted = counted
        self._num_shards, self._num_rows, self._heartbeat, self._check = num_shards, num_rows, heartbeat, check
        self._shards = self._rows = self._tokens = self._not_ok = 0
        self._started = self._logged = self._beaten = time.monotonic()
        console = Console(file=sys.stderr)
        self._bar = None
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("shards"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"),
                TimeElapsedColumn(), console=console,
            )  # fmt: skip
            self._task = self._bar.add_task("starting workers", total=num_shards)

    def __enter__(self) -> ProgressListener:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def finished(self, report: ShardReport) -> None:
        """Counts a shard that is done."""
        self._counted(report)
        self._shards += 1
        self._rows += report.rows
        self._tokens += report.tokens
        self._not_ok += report.rows - report.statuses.get(STATUS_OK, 0)
        if self._bar:
            self._bar.update(self._task, completed=self._shards, description=self._describe())

    def tick(self) -> None:
        """Shows the state from time to time, and checks whether the run is to end."""
        self._check()
        now = time.monotonic()
        if now - self._beaten > 10:
            self._beaten = now
            self._heartbeat()
        if self._bar is None and now - self._logged > _LOG_EVERY_S:
            self._logged = now
            _log.info("%d of %d shards, %s", self._shards, self._num_shards, self._describe())

    def _describe(self) -> str:
        elapsed = time.monotonic() - self._started
        left = "?" if not self._rows else duration((self._num_rows - self._rows) * elapsed / self._rows)
        rates = f"{self._rows / elapsed:.1f} rows/s, {self._tokens / elapsed:.0f} tokens/s"
        return f"{rates}, {left} left, {self._not_ok} rows not ok"


def duration(seconds: float) -> str:
    """Formats seconds in the largest unit that leaves at least one of it."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
