"""Decides when workers may be started after starts that failed, and how long there are too few. No Ray in here."""

from __future__ import annotations

import logging
import time

from cal_pipeline.runtime.cluster import Cluster, RunOutcome
from cal_pipeline.runtime.faults import RunAbortedError

_FIRST_PAUSE_S = 3.0
_LONGEST_PAUSE_S = 120.0
_log = logging.getLogger(__name__)


class Capacity:
    """Spaces starts that follow failed ones, further and further; one that succeeds lets all the others follow.

    What fails starts may pass (memory that another process holds) or concern one node only, so the run goes on with
    the workers it has. Where no worker has ever come up, `max_tries` failed starts in a row end it: what was asked for
    is at fault. Later it ends when none came up for `idle_timeout_s`.
    """

    def __init__(self, cluster: Cluster, outcome: RunOutcome) -> None:
        self._cluster, self._outcome = cluster, outcome
        self._in_a_row = 0
        self._last_failed = self._not_before = 0.0
        self._last_up: float | None = None
        self._short_since: float | None = None
        self._looked = 0.0

    def allows_start(self, coming: int) -> bool:
        """Tells whether a worker may be started while so many are coming up: after a failed start one at a time."""
        return not self._in_a_row or (not coming and time.monotonic() >= self._not_before)

    def look(self, up: int, wanted: int) -> None:
        """Notes how many workers are up, of those that there is work for, and says when there are enough again."""
        now = time.monotonic()
        if up:
            self._last_up = now
        if self._short_since is not None:
            self._outcome.seconds_short += now - self._looked
            if up >= wanted:
                asked = self._cluster.num_workers
                why = " are up again" if up >= asked else " are up, and there is no work for more"
                _log.info("%d of %d workers%s, after %.0f s", up, asked, why, now - self._short_since)
                self._short_since = None
        self._looked = now

    def came_up(self) -> None:
        """Notes a start that succeeded."""
        self._in_a_row = 0

    def failed(self, reason: str, *, began: float, up: int, coming: int, see: str) -> None:
        """Notes a start that failed; raises RunAbortedError where the next would be useless.

        Those that began before the last one failed count as one with it, unless one has come up since: "in a row" is
        one after the other.
        """
        now = time.monotonic()
        self._outcome.failed_starts += 1
        if began >= self._last_failed or not self._in_a_row:
            self._in_a_row += 1
        self._last_failed = now
        pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._in_a_row - 1))
        self._not_before = now + pause
        if self._short_since is None:
            self._short_since = self._looked = now
        end = self._in_a_row >= self._cluster.max_tries and not coming and not up
        if end and self._last_up is not None:
            end = now - self._last_up > self._cluster.idle_timeout_s
        # A node that stays bad for a week must not fill the log.
        if self._in_a_row <= self._cluster.max_tries or self._in_a_row & (self._in_a_row - 1) == 0:
            going_on = (
                "" if end else f"; {up} of {self._cluster.num_workers} workers are up, the next start in {pause:g} s"
            )
            _log.warning("%s%s (failed starts in a row: %d)", reason, going_on, self._in_a_row)
        if end:
            raise RunAbortedError(f"{reason}. {self._in_a_row} starts failed in a row{see}")
