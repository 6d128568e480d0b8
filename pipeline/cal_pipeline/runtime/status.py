"""Says how far a run of `cal-precompute` is, from what lies in its output directory, for `--status`; changes nothing.

Which shards are there is seen; the rest is what drivers said last, or the report of the run that ended last.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from rich.console import Console

from cal_pipeline.console import open_console
from cal_pipeline.output.heartbeat import signs_of_life
from cal_pipeline.output.store import Store
from cal_pipeline.runtime.progress import duration
from cal_schemas.counted import are, counted
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.storage.locations import Location
from cal_schemas.whole import read_plan

_REPORTED = {"run_id", "started", "failed", "statuses", "statuses_before", "aborted"}


@dataclass(frozen=True, kw_only=True, slots=True)
class RunStatus:
    """Of an output directory; made of values that JSON has."""

    output_dir: str
    shards_planned: int | None
    """By the plan of the run that was started last; None where no plan can be read."""
    shards_done: int
    """Shards of the plan that are there, whoever made them."""
    shards_failed: dict[str, str]
    """Shard that is not there -> why its last try failed."""
    statuses: dict[str, int]
    """Rows of finished shards by status, as far as runs counted them."""
    drivers: list[dict[str, Any]]
    """What each driver said last (RunState.facts), `words`, `alive` and `said_s_ago`."""
    last_report: dict[str, Any] | None
    """`run_id`, `started` and `aborted` of the newest report."""


def status_of(store: Store) -> RunStatus:
    """Reads the status of an output; ConfigError where no run has written, OSError where it cannot be read."""
    internal = store.internal
    signs = signs_of_life(internal)
    report = _newest_report(internal)
    there = {path.relative_to(store.output_dir).as_posix() for path in store.finished()}  # type: ignore[arg-type]
    planned = read_plan(store.output_dir)
    if not (signs or report or planned or there):
        nowhere = "" if store.output_dir.is_dir() else " (there is no such directory)"
        raise ConfigError(f"--status {store.output_dir}: no run of cal-precompute has written here{nowhere}")
    # A driver that was killed leaves what it said last, until the next one starts.
    ended = _moment(report) if report else None
    told = [sign for sign in signs if sign.said]
    dead = [sign for sign in told if ended is None or _moment(sign.said) >= ended]
    telling = [sign for sign in told if sign.alive] or sorted(dead, key=lambda sign: _moment(sign.said))[-1:]
    if telling:
        failed = {name: why for sign in telling for name, why in sign.said.get("shards_failed", {}).items()}
        statuses = Counter(min(telling, key=lambda sign: _moment(sign.said)).said.get("statuses_before", {}))
        for sign in telling:
            statuses.update(sign.said.get("statuses", {}))
    else:
        failed = report["failed"] if report else {}
        statuses = Counter(report["statuses_before"]) + Counter(report["statuses"]) if report else Counter()
    return RunStatus(
        output_dir=str(store.output_dir),
        shards_planned=None if planned is None else len(planned),
        shards_done=len(there if planned is None else there & planned.keys()),
        shards_failed={name: why for name, why in failed.items() if f"{name}.parquet" not in there},
        statuses=dict(statuses),
        drivers=[
            {"words": sign.words, "alive": sign.alive, "said_s_ago": sign.age_s, **sign.said}
            for sign in signs
            if sign.alive or sign in telling
        ],
        last_report=report and {name: report[name] for name in ("run_id", "started", "aborted")},
    )


def _newest_report(internal: Location) -> dict[str, Any] | None:
    reports: list[Location] = sorted((internal / "reports").glob("run-*.json"), key=str)
    for path in reversed(reports):
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # One that was cut says nothing.
        if isinstance(report, dict) and report.keys() >= _REPORTED:
            return report
    return None


def _moment(said: Mapping[str, Any]) -> datetime:
    """When a run was started; hosts may live by different clocks of the day."""
    return datetime.fromisoformat(said["started"])


def print_status(status: RunStatus, *, as_json: bool) -> None:
    """Prints it on standard output."""
    console = open_console()
    if as_json:
        console.print(json.dumps(asdict(status), indent=1))
        return
    failed, planned = len(status.shards_failed), status.shards_planned
    done = status.shards_done
    said = f"{counted(done, 'shard')} {are(done)} there, by no plan" if planned is None else (
        f"{done:,} of {counted(planned, 'shard')} {are(done)} done, {planned - done - failed:,} to do"
    )  # fmt: skip
    console.print(f"{status.output_dir}: {said}, {failed:,} failed")
    for driver in status.drivers:
        _print_driver(console, driver)
    if not status.drivers and status.last_report:
        ended = f"ended: {reason}" if (reason := status.last_report["aborted"]) else "came to its end"
        started = status.last_report["started"]
        console.print(f"no driver is at work; the last run that left a report, started {started}, {ended}")
    elif not status.drivers:
        console.print("no driver is at work, and none left a report")
    if lost := {name: count for name, count in status.statuses.items() if name != STATUS_OK and count}:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(lost.items()))
        bad = sum(lost.values())
        of_all = counted(sum(status.statuses.values()), "row")
        console.print(f"{bad:,} of {of_all} {are(bad)} not ok: {listed}")
    for name, why in sorted(status.shards_failed.items()):
        console.print(f"FAILED {name}: {why}")


def _print_driver(console: Console, driver: Mapping[str, Any]) -> None:
    ago = driver["said_s_ago"]
    if driver["alive"]:
        console.print(f"driver on {driver['words']}, is alive: said so {duration(ago)} ago")
    else:
        console.print(f"driver on {driver['words']}, is gone without a report; what it said last, {duration(ago)} ago:")
    if "rows_measured" not in driver:
        console.print("  no worker yet" if "host" in driver else "  what it says is not known")
        return
    left = "?" if driver["seconds_left"] is None else duration(driver["seconds_left"])
    console.print(
        f"  {driver['rows_measured']:,} of {counted(driver['rows_to_measure'], 'row')} measured, "
        f"{driver['rows_per_s']:.1f} rows/s, {left} left, {driver['shards_retried']} tries again; "
        f"metrics at {driver['metrics']}"
    )
    if driver.get("failed_starts"):
        short = duration(driver["seconds_short"])
        starts = counted(driver["failed_starts"], "start")
        console.print(f"  {starts} of workers failed: for {short} too few were up")
    for worker in driver["workers"]:
        for_s = duration(driver["beat"] - worker["since"] + ago * driver["alive"])
        since = time.strftime("%H:%M:%S", time.localtime(worker["since"]))
        console.print(f"  worker {worker['where']}: {worker['shard'] or worker['state']} for {for_s}, since {since}")
