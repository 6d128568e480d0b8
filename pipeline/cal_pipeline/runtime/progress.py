"""Shows how a run goes on: a bar on a terminal, a log line every 30 s elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cal_pipeline.console import open_console
from cal_pipeline.log_lines import is_json
from cal_pipeline.output.heartbeat import Heartbeat
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.runtime.state import RunState
from cal_schemas.counted import counted

_LOG_EVERY_S = 30.0
_SAY_EVERY_S = 5.0
_log = logging.getLogger(__name__)


class ProgressListener:
    """Shows finished shards and rows, rate and time left, and lets heartbeats say them; a context manager.

    Args:
        state: what is shown.
        num_shards: shards still to do.
        heartbeat: the run's sign of life, which says the state to `--status`.
        check: called on every tick; raises to end the run.
        publish: called when the heartbeat beats.
    """

    def __init__(
        self,
        state: RunState,
        num_shards: int,
        heartbeat: Heartbeat,
        check: Callable[[], None],
        publish: Callable[[], None] = lambda: None,
    ) -> None:
        self._state, self._num_shards = state, num_shards
        self._heartbeat, self._check, self._publish = heartbeat, check, publish
        self._logged = time.monotonic()
        self._said = 0.0
        console = open_console(stderr=True)
        self._bar = None
        if console.is_terminal and not is_json():
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
        self._publish()

    def finished(self, report: ShardReport) -> None:
        """Counts a shard that is done."""
        self._state.finished(report)
        if self._bar:
            self._bar.update(self._task, completed=self._state.counts["shards"], description=self._describe())

    def tick(self) -> None:
        """Shows the state from time to time, and checks whether the run is to end."""
        self._check()
        now = time.monotonic()
        if now - self._said > _SAY_EVERY_S:
            self._said = now
            self._heartbeat.say(**self._state.facts())
            self._heartbeat.beat()
            self._publish()
        if self._bar is None and now - self._logged > _LOG_EVERY_S:
            self._logged = now
            done = self._state.counts["shards"]
            _log.info("%d of %s, %s", done, counted(self._num_shards, "shard"), self._describe())

    def _describe(self) -> str:
        facts, counts = self._state.facts(), self._state.counts
        left = "?" if facts["seconds_left"] is None else duration(facts["seconds_left"])
        tokens_per_s = counts["tokens"] * facts["rows_per_s"] / max(counts["rows"], 1)
        return (
            f"{facts['rows_per_s']:.1f} rows/s, {tokens_per_s:.0f} tokens/s, {left} left, "
            f"{counted(counts['rows_not_ok'], 'row')} not ok, {self._state.workers_up()} of "
            f"{counted(self._state.num_workers, 'worker')} up"
        )


def duration(seconds: float) -> str:
    """Formats seconds in the largest unit that leaves at least one of it."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
