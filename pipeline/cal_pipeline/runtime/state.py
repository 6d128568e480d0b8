"""Knows how far a run is: what its bar, its log, its heartbeats (`--status`) and its metrics say."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.runtime.cluster import RunOutcome
from cal_schemas.errors import STATUS_OK

_RECENT_S = 3600.0
_RECENT_SHARDS_A_WORKER = 4


class RunState:
    """Counts finished shards and what is in them.

    Args:
        planned: names of all shards of the plan.
        done: of those that were done before.
        broken: of those whose source cannot be read, with the reason.
        statuses_before: rows of shards that this run leaves as they are, by status.
        num_rows: rows to measure.
        num_workers: how many are wanted at first.
        outcome: what the driver collects; read, never written.
    """

    def __init__(
        self,
        *,
        output_dir: str,
        planned: Sequence[str],
        done: Sequence[str],
        broken: Mapping[str, str],
        statuses_before: Counter[str],
        num_rows: int,
        num_workers: int,
        outcome: RunOutcome,
    ) -> None:
        self.output_dir = output_dir
        self.num_rows, self.num_workers = num_rows, num_workers
        self.metrics: str | None = None
        """Where Prometheus finds them."""
        self._num_planned, self._pending = len(planned), set(planned) - set(done)
        self._broken, self._statuses_before, self._outcome = broken, statuses_before, outcome
        self._began, self._last_finished = time.monotonic(), time.time()
        self.counts = dict.fromkeys(("shards", "rows", "rows_not_ok", "tokens", "bytes"), 0)
        """Of shards that this run finished."""
        self.statuses, self.stage_seconds = Counter[str](), Counter[str]()
        self._marks: deque[tuple[float, int]] = deque()
        """time.monotonic() of a shard's end, and the rows finished by then."""

    def finished(self, report: ShardReport) -> None:
        """Counts a shard that is done."""
        self._pending.discard(report.name)
        self._last_finished = time.time()
        not_ok = report.rows - report.statuses.get(STATUS_OK, 0)
        added = {"shards": 1, "rows": report.rows, "rows_not_ok": not_ok, "tokens": report.tokens}
        for name, value in {**added, "bytes": report.bytes}.items():
            self.counts[name] += value
        self._mark()
        self.statuses.update(report.statuses)
        self.stage_seconds.update(report.seconds)

    def facts(self) -> dict[str, Any]:
        """Returns all of it, in values that JSON has; times are seconds since the epoch by this machine's clock."""
        rate = self._rows_per_s()
        return {
            "output_dir": self.output_dir,
            "shards_planned": self._num_planned,
            "shards_done": self._num_planned - len(self._pending),
            "shards_failed": {**self._broken, **self._outcome.failed},
            "shards_retried": self._outcome.retries,
            "failed_starts": self._outcome.failed_starts,
            "seconds_short": self._outcome.seconds_short,
            "rows_to_measure": self.num_rows,
            "rows_measured": self.counts["rows"],
            "rows_per_s": rate,
            "seconds_left": (self.num_rows - self.counts["rows"]) / rate if rate else None,
            "statuses_before": dict(self._statuses_before),
            "statuses": dict(self.statuses),
            "last_shard_finished": self._last_finished,
            "workers": [asdict(worker) for worker in self._outcome.at_work],
            "metrics": self.metrics,
        }

    def workers_up(self) -> int:
        """Counts the workers whose model is loaded."""
        return sum(worker.state in ("idle", "busy") for worker in self._outcome.at_work)

    def _mark(self) -> None:
        # The pace of a week's start says little when nodes have come or gone since; only whole shards are counted.
        marks, now = self._marks, time.monotonic()
        if not marks:  # The start of workers is no part of the pace.
            marks.append((self._outcome.first_worker_at or self._began, 0))
        marks.append((now, self.counts["rows"]))
        least = _RECENT_SHARDS_A_WORKER * len(self._outcome.at_work)
        while len(marks) > least + 1 and marks[1][0] <= now - _RECENT_S:
            marks.popleft()

    def _rows_per_s(self) -> float:
        """The pace of the last hour, or of longer where workers take more than a quarter of it for a shard."""
        if not self._marks:
            return 0.0
        began, before = self._marks[0]
        return (self.counts["rows"] - before) / max(time.monotonic() - began, 1e-9)
