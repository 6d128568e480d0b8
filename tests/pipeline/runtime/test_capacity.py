"""Pauses between starts that fail, by a clock that the tests turn on."""

from __future__ import annotations

import math

import pytest

from cal_pipeline.runtime import capacity
from cal_pipeline.runtime.capacity import Capacity
from cal_pipeline.runtime.cluster import Cluster, RunOutcome
from cal_pipeline.runtime.faults import RunAbortedError
from stopped_clock import StoppedClock

CLUSTER = Cluster(
    num_workers=2, gpus_per_worker=0, cpus_per_worker=1, address=None, max_tries=3, shard_timeout_s=math.inf,
    start_timeout_s=math.inf, idle_timeout_s=600,
)  # fmt: skip


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(capacity, "time", clock)
    return clock


def fail(starts: Capacity, clock: StoppedClock, *, began: float | None = None, up: int = 0) -> None:
    starts.failed("no memory", began=clock.now if began is None else began, up=up, coming=0, see="; see LOG")


def test_pauses_between_starts_double_up_to_two_minutes_and_one_success_ends_them(clock: StoppedClock) -> None:
    starts, pauses = Capacity(CLUSTER, RunOutcome()), []
    for _ in range(8):
        assert starts.allows_start(coming=0)
        fail(starts, clock, up=1)
        began = clock.now
        while not starts.allows_start(coming=0):
            clock.now += 0.5
        pauses.append(clock.now - began)
    assert pauses == [3, 6, 12, 24, 48, 96, 120, 120]
    assert not starts.allows_start(coming=1)  # One at a time, until it has come up.
    starts.came_up()
    assert starts.allows_start(coming=1)


def test_starts_that_fail_together_count_as_one(clock: StoppedClock) -> None:
    outcome = RunOutcome()
    starts, began = Capacity(CLUSTER, outcome), clock.now
    for _ in range(5):
        clock.now += 1
        fail(starts, clock, began=began)
    assert outcome.failed_starts == 5
    fail(starts, clock)
    with pytest.raises(RunAbortedError, match=r"no memory\. 3 starts failed in a row; see LOG"):
        fail(starts, clock)


def test_a_start_that_fails_late_is_followed_by_a_pause_though_another_has_come_up_since(clock: StoppedClock) -> None:
    starts, began = Capacity(CLUSTER, RunOutcome()), clock.now
    clock.now += 1
    fail(starts, clock, began=began)
    starts.came_up()
    clock.now += 1
    fail(starts, clock, began=began, up=1)
    assert not starts.allows_start(coming=0)
    clock.now += 3
    assert starts.allows_start(coming=0)


def test_once_a_worker_has_come_up_failed_starts_end_the_run_only_after_the_idle_timeout(clock: StoppedClock) -> None:
    starts = Capacity(CLUSTER, RunOutcome())
    starts.look(up=1, wanted=2)
    for _ in range(6):
        clock.now += 100
        fail(starts, clock)
    clock.now += 1
    with pytest.raises(RunAbortedError, match="7 starts failed in a row"):
        fail(starts, clock)


def test_the_time_with_too_few_workers_is_kept_and_its_beginning_and_end_are_said(
    clock: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    outcome = RunOutcome()
    starts = Capacity(CLUSTER, outcome)
    starts.look(up=2, wanted=2)
    clock.now += 50
    fail(starts, clock, up=1)
    for up in (1, 1, 1, 2, 2):
        clock.now += 10
        starts.look(up=up, wanted=2)
    assert (outcome.failed_starts, outcome.seconds_short) == (1, 40)
    assert caplog.messages == [
        "no memory; 1 of 2 workers are up, the next start in 3 s (failed starts in a row: 1)",
        "2 of 2 workers are up again, after 40 s",
    ]


def test_workers_that_are_missed_no_longer_because_work_runs_out_are_not_said_to_be_up_again(
    clock: StoppedClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    starts = Capacity(CLUSTER, RunOutcome())
    fail(starts, clock, up=1)
    clock.now += 10
    starts.look(up=1, wanted=1)
    assert caplog.messages[1:] == ["1 of 2 workers are up, and there is no work for more, after 10 s"]
