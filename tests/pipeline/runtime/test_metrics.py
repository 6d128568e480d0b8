"""Metrics of a run: there from the start, on an address that is said, and each named in an alert rule of the docs."""

from __future__ import annotations

import re
import socket
import urllib.request
from collections import Counter
from pathlib import Path

import pytest
import yaml

from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.runtime.cluster import RunOutcome, WorkerState
from cal_pipeline.runtime.metrics import RunMetrics, served
from cal_pipeline.runtime.ray_metrics import RayMetrics
from cal_pipeline.runtime.state import RunState
from cal_schemas.errors import ConfigError

PAGE = Path(__file__).parents[3] / "docs" / "running.md"


def state(output_dir: str = "out") -> RunState:
    return RunState(
        output_dir=output_dir, planned=["a", "b", "c", "d"], done=["a"], broken={"d": "torn"}, num_rows=20,
        statuses_before=Counter(ok=9, no_answer=1), num_workers=2, outcome=RunOutcome(),
    )  # fmt: skip


def scraped(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=60) as answer:
        text = answer.read().decode()
    assert set(re.findall(r'output_dir="(\w+)"', text)) == {"out"}
    return {name: float(value) for name, value in re.findall(r"^(cal_\w+){.*} (\S+)$", text, re.M)}


def test_every_metric_is_there_at_0_before_the_first_shard_and_counts_what_follows() -> None:
    run = state()
    with served(RunMetrics(run), "127.0.0.1:0") as url:
        before = scraped(url)
        assert {name for name, value in before.items() if value == 0} == {
            "cal_shards_total", "cal_rows_total", "cal_rows_not_ok_total", "cal_tokens_total", "cal_bytes_total",
            "cal_shards_retried_total", "cal_workers_alive", "cal_workers_waiting", "cal_worker_starts_failed_total",
        }  # fmt: skip
        assert (before["cal_shards_planned"], before["cal_shards_done"], before["cal_shards_failed"]) == (4, 1, 1)
        began = before["cal_last_shard_finished_timestamp_seconds"]
        run._outcome.failed["b"], run._outcome.retries, run._outcome.failed_starts = "burnt", 2, 3
        run._outcome.at_work = [
            WorkerState(where="?", state="placing", since=0.0, shard=None),
            WorkerState(where="here", state="busy", since=0.0, shard="b"),
        ]
        run.finished(ShardReport(name="c", rows=10, statuses={"ok": 7, "too_long": 3}, tokens=50, bytes=6))
        after = scraped(url)
    assert (after["cal_shards_done"], after["cal_shards_failed"], after["cal_shards_retried_total"]) == (2, 2, 2)
    assert (after["cal_rows_total"], after["cal_rows_not_ok_total"], after["cal_workers_alive"]) == (10, 3, 1)
    assert (after["cal_workers_waiting"], after["cal_worker_starts_failed_total"]) == (1, 3)
    assert after["cal_last_shard_finished_timestamp_seconds"] >= began
    with pytest.raises(OSError, match="refused"):
        scraped(url)


def test_facts_tell_a_shard_that_is_measured_again_from_one_that_is_new() -> None:
    run = state()
    run.finished(ShardReport(name="a", rows=10, statuses={"ok": 10}))
    facts = run.facts()
    assert (facts["shards_done"], facts["rows_measured"]) == (1, 10)
    assert facts["seconds_left"] == pytest.approx(10 / facts["rows_per_s"])
    assert facts["statuses_before"] == {"ok": 9, "no_answer": 1}


def test_rate_and_time_left_follow_the_last_hour_and_four_shards_of_each_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("cal_pipeline.runtime.state.time.monotonic", lambda: clock[0])
    run = state()
    run.num_rows = 100_000
    run._outcome.first_worker_at = 1060.0
    run._outcome.at_work = [WorkerState(where="here", state="busy", since=0.0, shard="b")] * 2

    def after(seconds: float, times: int) -> float:
        for _ in range(times):
            clock[0] += seconds
            run.finished(ShardReport(name="b", rows=100, statuses={"ok": 100}))
        return float(run.facts()["rows_per_s"])

    assert run.facts()["rows_per_s"] == 0.0
    clock[0] = 1060.0
    assert after(2.0, 500) == pytest.approx(50.0)  # Workers of a good day …
    assert after(200.0, 20) == pytest.approx(0.5)  # … of which few are left since an hour.
    assert run.facts()["seconds_left"] == pytest.approx((100_000 - 52_000) / 0.5)
    assert after(1800.0, 5) == pytest.approx(800 / (3 * 200 + 5 * 1800))  # Slow ones are seen over eight shards.
    assert len(run._marks) == 9


def test_ray_takes_the_name_of_any_output_directory() -> None:
    run = RayMetrics(RunMetrics(state("ausgabe-\xf6-\u732b")))
    run.publish()
    run.publish()


def test_an_address_where_something_else_listens_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        says = rf"--metrics_address {address}: .*in use; name another, or port 0"
        with pytest.raises(ConfigError, match=says), served(RunMetrics(state()), address):
            pass


def test_every_metric_that_the_rules_name_exists_and_what_an_operator_needs_has_a_rule() -> None:
    (rules,) = [block for block in re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL) if "alert:" in block]
    (group,) = yaml.safe_load(rules)["groups"]
    there = {sample.name for family in RunMetrics(state()).collect() for sample in family.samples}
    named = {name for rule in group["rules"] for name in re.findall(r"cal_\w+", rule["expr"])}
    assert named <= there
    assert named >= {
        "cal_shards_planned", "cal_shards_done", "cal_shards_failed", "cal_shards_retried_total", "cal_workers_alive",
        "cal_last_shard_finished_timestamp_seconds", "cal_rows_not_ok_total", "cal_worker_starts_failed_total",
        "cal_workers_waiting",
    }  # fmt: skip
    assert all(rule["annotations"]["summary"] for rule in group["rules"])
    text = re.findall(r"`(?:ray_)?(cal_\w+)`", PAGE.read_text())
    assert set(text) <= there | {"cal_stage_seconds_total"}
