"""`--status`: told from shards, signs of life and reports, by whoever sees the directory."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from cal_pipeline.output.heartbeat import Heartbeat
from cal_pipeline.output.store import LocalStore
from cal_pipeline.runtime.status import print_status, status_of
from cal_schemas.errors import ConfigError

FACTS: dict[str, Any] = {
    "shards_failed": {"c": "burnt"}, "shards_retried": 1, "rows_to_measure": 30, "rows_measured": 10,
    "rows_per_s": 2.0, "seconds_left": 10.0, "statuses_before": {"ok": 4}, "statuses": {"ok": 9, "too_long": 1},
    "metrics": "http://127.0.0.1:1/metrics",
}  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    store = LocalStore(output_dir=tmp_path / "out")
    store.prepare()
    (store.internal / "plan.json").write_text(
        json.dumps([{"name": name, "source": {"num_rows": 4}} for name in ("a", "b", "c", "deep/d")])
    )
    for name in ("a", "deep/d"):
        store.path(name).parent.mkdir(exist_ok=True)
        store.path(name).write_bytes(b"PAR1")
    return store


def beat(store: LocalStore, started: str, **facts: Any) -> Heartbeat:
    heartbeat = Heartbeat(store.internal, started)
    heartbeat.say(**{**FACTS, "workers": [], **facts})
    heartbeat.beat()
    return heartbeat


def report(store: LocalStore, started: str, **said: Any) -> None:
    value = {"run_id": "7", "started": started, "failed": {}, "statuses": {"ok": 3}, "statuses_before": {}}
    (store.internal / "reports" / f"run-{started}.json").write_text(json.dumps({**value, "aborted": None, **said}))


def test_two_drivers_are_told_together(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    now = time.time()
    busy = {"where": "here, pid 1", "state": "busy", "since": now - 120, "shard": "b"}
    starting = {"where": "there, pid 2", "state": "starting", "since": now, "shard": None}
    beat(store, "2026-01-01T12:00:00+0000", workers=[busy, starting], failed_starts=2, seconds_short=90.0)
    beat(
        store, "2026-01-02T12:00:00+0000", statuses_before={"ok": 8}, shards_failed={"a": "torn", "b": "hung [at] :x:"}
    )
    report(store, "2025-12-31T12:00:00+0000", failed={"x": "old"})
    status = status_of(store)
    assert (status.shards_planned, status.shards_done) == (4, 2)
    assert status.shards_failed == {"c": "burnt", "b": "hung [at] :x:"}, "what is there has not failed, whoever said so"
    assert status.statuses == {"ok": 4 + 9 + 9, "too_long": 2}
    assert [driver["alive"] for driver in status.drivers] == [True, True]
    print_status(status, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{store.output_dir}: 2 of 4 shards are done, 0 to do, 2 failed"
    assert (
        "  10 of 30 rows measured, 2.0 rows/s, 10 s left, 1 tries again; metrics at http://127.0.0.1:1/metrics" in lines
    )
    assert lines.count("  2 starts of workers failed: for 1.5 min too few were up") == 1
    assert any(line.startswith("  worker here, pid 1: b for 2.0 min, since ") for line in lines)
    assert any(line.startswith("  worker there, pid 2: starting for ") for line in lines)
    assert "2 of 24 rows are not ok: 2 too_long" in lines
    assert lines[-2:] == ["FAILED b: hung [at] :x:", "FAILED c: burnt"]
    print_status(status, as_json=True)
    assert json.loads(capsys.readouterr().out)["shards_done"] == 2


def dead(store: LocalStore, started: str, **facts: Any) -> None:
    beat(store, started, **facts)
    path = max(store.internal.glob("driver-*.json"), key=lambda path: path.stat().st_mtime_ns)
    path.write_text(json.dumps({**json.loads(path.read_text()), "ticks": -1}))


def test_of_a_killed_driver_it_tells_what_that_said_last(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    report(store, "2025-12-31T12:00:00+0000", failed={"x": "old"})
    dead(store, "2026-01-01T12:00:00+0000")
    # Of two the later one, which was started further east.
    dead(store, "2026-01-01T13:00:00+0900", shards_failed={"c": "long ago"})
    status = status_of(store)
    assert status.shards_failed == {"c": "burnt"}
    print_status(status, as_json=False)
    assert "is gone without a report; what it said last" in capsys.readouterr().out


def test_a_run_that_ended_later_counts_more_than_a_killed_one(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    dead(store, "2026-01-01T12:00:00+0000")
    report(
        store,
        "2026-01-02T12:00:00+0000",
        failed={"b": "hung"},
        statuses={"ok": 5, "no_answer": 2},
        statuses_before={"ok": 1},
    )
    status = status_of(store)
    assert (status.shards_failed, status.statuses, status.drivers) == ({"b": "hung"}, {"ok": 6, "no_answer": 2}, [])
    print_status(status, as_json=False)
    assert (
        "no driver is at work; the last run that left a report, started 2026-01-02T12:00:00+0000, came to its end"
        in capsys.readouterr().out
    )


def test_a_driver_without_workers_a_cut_report_and_a_cut_plan_are_told(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    (store.internal / "reports" / "run-9.json").write_text('{"run_id": ')
    (store.internal / "plan.json").write_text('[{"na')
    Heartbeat(store.internal).beat()
    status = status_of(store)
    assert (status.shards_planned, status.shards_done, status.last_report) == (None, 2, None)
    print_status(status, as_json=False)
    said = capsys.readouterr().out
    assert "2 shards are there, by no plan, 0 failed" in said
    assert "  no worker yet" in said


def test_a_directory_that_no_run_knows_is_refused(tmp_path: Path) -> None:
    says = r"--status .*none: no run of cal-precompute has written here"
    with pytest.raises(ConfigError, match=rf"{says} \(there is no such directory\)$"):
        status_of(LocalStore(output_dir=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    (tmp_path / "none").mkdir()
    with pytest.raises(ConfigError, match=rf"{says}$"):
        status_of(LocalStore(output_dir=tmp_path / "none"))


def test_why_the_last_run_ended_is_said_in_words(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    report(store, "2026-01-02T12:00:00+0000", aborted="terminated (SIGTERM)")
    print_status(status_of(store), as_json=False)
    assert "report, started 2026-01-02T12:00:00+0000, ended: terminated (SIGTERM)" in capsys.readouterr().out
