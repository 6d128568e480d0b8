"""Which shard is next, by a clock that the tests turn on."""

from __future__ import annotations

from pathlib import Path

import pytest

from cal_pipeline.runtime import shard_queue
from cal_pipeline.runtime.cluster import RunOutcome
from cal_pipeline.runtime.shard_queue import ShardQueue
from cal_pipeline.sources.planning import plan_shards
from cal_pipeline.sources.shard import Shard
from fault_job import write_shards
from stopped_clock import StoppedClock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> StoppedClock:
    clock = StoppedClock()
    monkeypatch.setattr(shard_queue, "time", clock)
    return clock


@pytest.fixture
def two(tmp_path: Path) -> tuple[Shard, ...]:
    return tuple(plan_shards([str(write_shards(tmp_path, 2, rows=1))]))


def test_a_shard_that_failed_lets_the_others_pass_and_comes_again_after_pauses_that_double(
    clock: StoppedClock, two: tuple[Shard, ...]
) -> None:
    first, second = two
    outcome = RunOutcome()
    queue = ShardQueue(two, 3, outcome)
    assert queue.take() == first
    queue.retry(first, "a cause")
    assert (queue.take(), queue.take(), len(queue)) == (second, None, 1)
    clock.now += 1
    assert queue.take() == first
    queue.retry(first, "a cause")
    clock.now += 1.5
    assert queue.take() is None
    clock.now += 0.5
    assert queue.take() == first
    queue.retry(first, "the last cause")
    assert (len(queue), outcome.failed, outcome.retries) == (0, {first.name: "the last cause"}, 2)


@pytest.mark.parametrize(("tries", "outage_s"), [(3, 59), (4, 300), (5, 1500)])
def test_tries_outlast_an_outage_in_which_every_one_fails_at_once(
    clock: StoppedClock, two: tuple[Shard, ...], tries: int, outage_s: int
) -> None:
    outcome = RunOutcome()
    queue = ShardQueue(two, tries, outcome)
    over = clock.now + outage_s
    while clock.now < over:
        while shard := queue.take():
            queue.retry(shard, "the share is away", surroundings=True)
        clock.now += 0.5
    clock.now += 2 * outage_s
    assert {queue.take(), queue.take()} == set(two)
    assert not outcome.failed


def test_no_pause_between_many_tries_is_of_days(clock: StoppedClock, two: tuple[Shard, ...]) -> None:
    queue = ShardQueue(two[:1], 30, RunOutcome())
    for surroundings in (True, False):
        for _ in range(14):
            shard = queue.take()
            assert shard is not None
            queue.retry(shard, "ill", surroundings=surroundings)
            clock.now += 1250


def test_a_shard_whose_node_is_lost_loses_no_try_ten_times_and_one_whose_node_lives_does(
    clock: StoppedClock, two: tuple[Shard, ...]
) -> None:
    first, _ = two
    outcome = RunOutcome()
    queue = ShardQueue([first], 1, outcome)
    for _ in range(10):
        assert queue.take() == first
        queue.lost(first, "node", "worker died", node_news_s=10)
        queue.decide(lambda: {"other"})
        assert (queue.take(), len(queue)) == (None, 1)
        queue.decide(lambda: {"node"})
        clock.now += 1
    assert not outcome.failed
    assert queue.take() == first
    queue.lost(first, "node", "worker died", node_news_s=10)
    clock.now += 10
    queue.decide(lambda: {"other"})
    assert (len(queue), outcome.failed) == (0, {first.name: "worker died"})
