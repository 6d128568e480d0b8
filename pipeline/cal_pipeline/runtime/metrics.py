"""Shows a run's state to Prometheus, on an address of the driver's own."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cal_pipeline.runtime.state import RunState
from cal_schemas.errors import ConfigError

_COUNTED = {
    "shards": "shards that this run finished",
    "rows": "rows of finished shards",
    "rows_not_ok": "rows of finished shards whose status is not ok",
    "tokens": "encoded tokens of finished shards",
    "bytes": "bytes of finished shards",
}


class RunMetrics(Collector):
    """Makes metrics of a run's state, by output directory; each is there from the start, at 0."""

    def __init__(self, state: RunState) -> None:
        self._state = state

    def collect(self) -> Iterator[Metric]:
        """Yields every metric as of now."""
        state, facts = self._state, self._state.facts()
        labels = [facts["output_dir"]]
        counted = {name: (text, state.counts[name]) for name, text in _COUNTED.items()}
        counted["shards_retried"] = ("tries of shards after the first one", facts["shards_retried"])
        counted["worker_starts_failed"] = ("starts of workers that failed", facts["failed_starts"])
        waiting = sum(worker["state"] == "placing" for worker in facts["workers"])
        for name, text, value in (
            ("shards_planned", "shards of the plan", facts["shards_planned"]),
            ("shards_done", "shards of the plan that are done, also by earlier runs", facts["shards_done"]),
            ("shards_failed", "shards that this run has given up", len(facts["shards_failed"])),
            ("workers_alive", "workers that are placed on a node", len(facts["workers"]) - waiting),
            ("workers_waiting", "workers that are not placed yet", waiting),
            (
                "last_shard_finished_timestamp_seconds",
                "when the last shard was finished, or the run began where none is, in seconds since the epoch",
                facts["last_shard_finished"],
            ),
        ):
            gauge = GaugeMetricFamily(f"cal_{name}", text, labels=["output_dir"])
            gauge.add_metric(labels, value)
            yield gauge
        for name, (text, value) in counted.items():
            counter = CounterMetricFamily(f"cal_{name}", text, labels=["output_dir"])
            counter.add_metric(labels, value)
            yield counter
        stages = CounterMetricFamily(
            "cal_stage_seconds", "seconds that workers spent in a stage", labels=["output_dir", "stage"]
        )
        for stage, seconds in dict(state.stage_seconds).items():  # The driver may add one meanwhile.
            stages.add_metric([*labels, stage], seconds)
        yield stages


@contextmanager
def served(metrics: RunMetrics, address: str) -> Iterator[str]:
    """Answers scrapes at `host:port` (port 0: any that is free) for as long as it is entered; yields the URL.

    Raises ConfigError where nothing can listen there.
    """
    host, _, port = address.rpartition(":")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    try:
        server, thread = start_http_server(int(port), host.strip("[]"), registry)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"--metrics_address {address}: {error}; name another, or port 0 for any that is free"
        ) from error
    try:
        said = platform.node() if host in ("0.0.0.0", "[::]") else host
        yield f"http://{said}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
