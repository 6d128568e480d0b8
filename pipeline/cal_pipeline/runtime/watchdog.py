"""Ends a driver whose own loop stands still: the last resort behind every other time limit."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from types import TracebackType

from cal_pipeline.runtime.faults import EXIT_STOPPED

_LIMIT_S = 900.0


class Watchdog:
    """While entered, ends the process with exit code 2 and its stacks when `alive` was not called for `limit_s`.

    Every step of the driver takes seconds; fifteen minutes mean that Ray itself hangs in a call without a time limit.
    """

    def __init__(self, limit_s: float = _LIMIT_S) -> None:
        self._limit_s = limit_s
        self._stopped = threading.Event()
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        self.alive()
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()

    def alive(self) -> None:
        """Notes that the driver's loop goes round."""
        self._last = time.monotonic()

    def _watch(self) -> None:
        while not self._stopped.wait(self._limit_s / 10):
            if time.monotonic() - self._last > self._limit_s:
                print(  # noqa: T201
                    f"cal-precompute: stopped: the driver itself stood still for {self._limit_s:g} s; its stacks "
                    "follow. Finished shards are intact; the same command resumes",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(sys.stderr)
                os._exit(EXIT_STOPPED)
