"""A sign of life in the output directory, so that a second driver can be told about the first."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

_STALE_S = 60.0


class Heartbeat:
    """Writes `<internal>/driver.json` on `beat`; other drivers read it. Informs, never locks."""

    def __init__(self, internal: Path, started: str) -> None:
        self._path = internal / "driver.json"
        self._me = {"host": platform.node(), "pid": os.getpid(), "started": started}

    def other(self) -> str | None:
        """Host, process and start of another driver that was alive within the last minute, in words."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            fresh = time.time() - float(found["beat"]) < _STALE_S
            mine = (found["host"], found["pid"]) == (self._me["host"], self._me["pid"])
            gone = found["host"] == self._me["host"] and not Path(f"/proc/{found['pid']}").exists()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if mine or gone or not fresh:
            return None
        return f"{found['host']}, pid {found['pid']}, started {found['started']}"

    def beat(self) -> None:
        """Says that this driver is alive."""
        partial = self._path.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({**self._me, "beat": time.time()}), encoding="utf-8")
        partial.replace(self._path)

    def stop(self) -> None:
        """Removes the file if it is still this driver's."""
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            if (found["host"], found["pid"]) == (self._me["host"], self._me["pid"]):
                self._path.unlink()
        except (OSError, ValueError, KeyError, TypeError):
            return
