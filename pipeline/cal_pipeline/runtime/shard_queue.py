"""Keeps the shards that are still to be done: those that wait, and those whose worker is gone. No Ray in here."""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence

from cal_pipeline.runtime.cluster import RunOutcome
from cal_pipeline.sources.shard import Shard

_BACKOFF_S = 1.0
_OUTAGE_S, _OUTAGE_GROWS = 10.0, 5
"""While a share is away a try takes milliseconds: with three tries these pauses outlast a minute of it."""
_LONGEST_PAUSE_S = 1250.0
"""With many tries a pause would else be of days."""
_MAX_NODE_LOSSES = 10
_log = logging.getLogger(__name__)


class ShardQueue:
    """Hands shards out in their order; one that failed comes again after a pause, `max_tries` times in all.

    One whose worker is gone is decided on later: with its node it moves on and loses no try.
    """

    def __init__(self, shards: Sequence[Shard], max_tries: int, outcome: RunOutcome) -> None:
        self._waiting = deque((shard, 0.0) for shard in shards)
        self._undecided: list[tuple[Shard, str, str, float]] = []
        self._max_tries, self._outcome = max_tries, outcome
        self._tries, self._node_losses = Counter[str](), Counter[str]()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._undecided)

    def take(self) -> Shard | None:
        """Removes and returns the next shard; one that waits out its pause lets the others pass."""
        now = time.monotonic()
        due = next((i for i, (_, earliest) in enumerate(self._waiting) if earliest <= now), None)
        if due is None:
            return None
        shard, _ = self._waiting[due]
        del self._waiting[due]
        return shard

    def lost(self, shard: Shard, node: str, reason: str, node_news_s: float) -> None:
        """Takes back the shard of a worker that is gone.

        That is known at once, that its node is gone only after some missed health checks: a fresh worker is loading its
        model meanwhile.
        """
        self._undecided.append((shard, node, reason, time.monotonic() + node_news_s))

    def decide(self, lost_nodes: Callable[[], Collection[str]]) -> None:
        """Decides whether a lost worker's node is lost too, or the shard is to blame."""
        if not self._undecided:
            return
        lost = lost_nodes()
        undecided, self._undecided = self._undecided, []
        for shard, node, reason, until in undecided:
            if node in lost:
                self._move(shard, f"the node of {reason}")
            elif time.monotonic() >= until:
                self.retry(shard, reason)
            else:
                self._undecided.append((shard, node, reason, until))

    def retry(self, shard: Shard, reason: str, *, surroundings: bool = False) -> None:
        """Takes back a shard that failed, or lists it in the outcome after its last try.

        Where its surroundings are at fault, the pauses before its next tries are longer.
        """
        self._tries[shard.name] += 1
        tries = self._tries[shard.name]
        if tries >= self._max_tries:
            _log.error("shard %s failed %d times, last: %s", shard.name, tries, reason, extra={"shard": shard.name})
            self._outcome.failed[shard.name] = reason
            return
        named = {"shard": shard.name}
        _log.warning("shard %s, try %d of %d: %s", shard.name, tries, self._max_tries, reason, extra=named)
        self._outcome.retries += 1
        pause = _OUTAGE_S * _OUTAGE_GROWS ** (tries - 1) if surroundings else _BACKOFF_S * 2 ** (tries - 1)
        self._waiting.append((shard, time.monotonic() + min(pause, _LONGEST_PAUSE_S)))

    def _move(self, shard: Shard, reason: str) -> None:
        """Hands the shard on: a lost node costs it no try; one that loses ten of them may be at fault."""
        self._node_losses[shard.name] += 1
        if self._node_losses[shard.name] > _MAX_NODE_LOSSES:
            self.retry(shard, reason)
            return
        _log.warning("shard %s moves to another node: %s", shard.name, reason, extra={"shard": shard.name})
        self._outcome.retries += 1
        self._waiting.append((shard, time.monotonic() + _BACKOFF_S))
