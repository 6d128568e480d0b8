"""Keeps a sign of life in the output directory, so that a second driver hears of the first."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from pathlib import Path

from cal_schemas.storage.locations import Location, partial_of, write_whole

_STALE_S = 60.0
_FORGOTTEN_S = 86400.0
_log = logging.getLogger(__name__)


class Heartbeat:
    """Writes `<internal>/driver-<host>-<pid>.json` on `beat`; other drivers read it. Informs, never locks.

    A file for each driver: in one for all, the second to beat would hide the first from a third.
    """

    def __init__(self, internal: Location, started: str | None = None) -> None:
        self._me = {"host": platform.node(), "pid": os.getpid(), "started": started or now()}
        self._folder = internal
        self._path = internal / f"driver-{platform.node()}-{os.getpid()}.json"
        self._failed = False

    def others(self) -> list[str]:
        """Host, process and start of every other driver that was alive within the last minute, in words.

        Files of drivers that are known to be dead are removed.
        """
        alive = []
        files: list[Location] = [*self._folder.glob("driver-*.json")]
        for path in sorted(files, key=str):
            if path == self._path:
                continue
            try:
                beat = json.loads(path.read_text(encoding="utf-8"))
                age = time.time() - float(beat["beat"])
                gone = beat["host"] == self._me["host"] and not Path(f"/proc/{int(beat['pid'])}").exists()
                words = f"{beat['host']}, pid {beat['pid']}, started {beat['started']}"
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if gone or age > _FORGOTTEN_S:
                path.unlink(missing_ok=True)
            elif age < _STALE_S:
                alive.append(words)
        return alive

    def beat(self) -> None:
        """Says that this driver is alive; where that cannot be written it is logged once, and stops nothing."""
        try:
            write_whole(self._path, json.dumps({**self._me, "beat": time.time()}))
        except OSError as error:
            if not self._failed:
                _log.warning("cannot write the heartbeat (%s): another driver would not be warned of this one", error)
            self._failed = True

    def stop(self) -> None:
        """Removes this driver's file."""
        try:
            for path in (self._path, partial_of(self._path)):
                path.unlink(missing_ok=True)
        except OSError as error:  # It is stale in a minute anyway.
            _log.warning("cannot remove the heartbeat: %s", error)


def now() -> str:
    """Local time to the second, with its offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
