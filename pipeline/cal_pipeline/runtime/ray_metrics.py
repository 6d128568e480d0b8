"""Counts finished shards through Ray, whose agents show the counts to Prometheus."""

from __future__ import annotations

from ray.util.metrics import Counter

from cal_pipeline.output.shard_report import ShardReport
from cal_schemas.errors import STATUS_OK


class RayMetrics:
    """Counts for whoever scrapes Ray's metrics; where nobody does they cost nothing."""

    def __init__(self) -> None:
        self._counts = {
            name: Counter(f"cal_{name}_total", description=f"{name.replace('_', ' ')} of finished shards")
            for name in ("shards", "rows", "rows_not_ok", "tokens", "bytes")
        }
        self._seconds = Counter(
            "cal_stage_seconds_total", description="seconds that workers spent in a stage", tag_keys=("stage",)
        )

    def add(self, report: ShardReport) -> None:
        """Counts a shard that is done."""
        not_ok = report.rows - report.statuses.get(STATUS_OK, 0)
        counts = {"shards": 1, "rows": report.rows, "rows_not_ok": not_ok, "tokens": report.tokens}
        for name, value in {**counts, "bytes": report.bytes}.items():
            if value:  # Ray refuses to count nothing.
                self._counts[name].inc(value)
        for stage, seconds in report.seconds.items():
            if seconds > 0:
                self._seconds.inc(seconds, tags={"stage": stage})
