"""Hands a run's metrics on to Ray, whose agents show them to Prometheus: on a cluster they are scraped already."""

from __future__ import annotations

from ray.util.metrics import Gauge

from cal_pipeline.runtime.metrics import RunMetrics


class RayMetrics:
    """Sets a gauge of Ray's for every metric, counts too: Ray's own counters refuse 0."""

    def __init__(self, metrics: RunMetrics) -> None:
        self._metrics = metrics
        self._gauges: dict[str, Gauge] = {}

    def publish(self) -> None:
        """Hands on all values as of now."""
        for family in self._metrics.collect():
            for sample in family.samples:
                if sample.name not in self._gauges:
                    self._gauges[sample.name] = Gauge(sample.name, family.documentation, tuple(sample.labels))
                # Ray takes no other characters, and a run must not end for want of a label.
                labels = {
                    name: text.encode("ascii", "backslashreplace").decode() for name, text in sample.labels.items()
                }
                self._gauges[sample.name].set(sample.value, labels)
