"""Keeps a sign of life in the output directory, by which other drivers, `--clean` and `--status` know of this one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cal_schemas.redaction import redacted_in
from cal_schemas.storage.locations import Location, partial_of, write_whole

_EVERY_S = 10.0
_STALE_S = 60.0
_FORGOTTEN_S = 86400.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SignOfLife:
    """What a driver said last, and whether it lives."""

    path: Location
    said: Mapping[str, Any]
    """`host`, `pid`, `started`, `beat` (its own clock), and what else it was given to say; empty where that is ill."""
    words: str
    """Host, process and start; the file's name where it cannot be read now."""
    age_s: float
    """Since it was said, by the clock of the file system or store: hosts' clocks may differ."""
    lives: bool | None
    """Of its process, where it is one that this process could see; None for those of other hosts and containers."""

    @property
    def alive(self) -> bool:
        """Whether its process lives, or, where that cannot be seen, it gave a sign within the last minute."""
        return self.age_s < _STALE_S if self.lives is None else self.lives


class Heartbeat:
    """Writes `<internal>/driver-<host>-<pid>-<number>.json` every ten seconds; others read it. Informs, never locks.

    A file for each driver: in one for all, the second to beat would hide the first from a third. Two containers may
    have the same host name and process id, hence the number.
    """

    def __init__(self, internal: Location, started: str | None = None) -> None:
        self._said = {
            "host": platform.node(), "pid": os.getpid(), "started": started or now(), "kernel": _kernel(),
            "ticks": _ticks(os.getpid()),
        }  # fmt: skip
        self._folder = internal
        self._path = internal / f"driver-{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.json"
        self._failed = False
        self._beaten = 0.0
        self._writing, self._stopped = threading.Lock(), threading.Event()

    def start(self) -> None:
        """Beats now, and then by a thread of its own: a start of Ray or a slow answer may take longer than a minute."""
        self.beat()
        threading.Thread(target=self._beat_on, name="heartbeat", daemon=True).start()

    def _beat_on(self) -> None:
        while not self._stopped.wait(_EVERY_S / 2):
            if time.monotonic() - self._beaten > _EVERY_S:
                self.beat()

    def say(self, **more: Any) -> None:
        """Takes up what the next beats say too: values that JSON has."""
        self._said |= more

    def beat(self) -> None:
        """Says that this driver is alive; where that cannot be written it is logged once, and stops nothing."""
        with self._writing:
            if self._stopped.is_set():
                return
            self._beaten = time.monotonic()
            try:
                write_whole(self._path, json.dumps(redacted_in({**self._said, "beat": time.time()})))
            except OSError as error:
                if not self._failed:
                    _log.warning(
                        "cannot write the heartbeat (%s): another driver would not be warned of this one", error
                    )
                self._failed = True

    def others(self) -> list[str]:
        """Host, process and start of every other driver that is alive, in words.

        Files of drivers that are known to be dead are removed.
        """
        others = [sign for sign in signs_of_life(self._folder) if sign.path != self._path]
        for sign in others:
            if sign.lives is False or (sign.lives is None and sign.age_s > _FORGOTTEN_S):
                sign.path.unlink(missing_ok=True)
        return [sign.words for sign in others if sign.alive]

    def stop(self) -> None:
        """Removes this driver's file."""
        self._stopped.set()
        with self._writing:
            try:
                for path in (self._path, partial_of(self._path)):
                    path.unlink(missing_ok=True)
            except OSError as error:  # It is stale in a minute anyway.
                _log.warning("cannot remove the heartbeat: %s", error)


def signs_of_life(internal: Location) -> list[SignOfLife]:
    """Of all drivers whose files are there, by name; changes nothing.

    A file that its disk or store does not hand out now is a sign of life too: its driver may be well.
    """
    files: list[Location] = sorted(internal.glob("driver-*.json"), key=str)
    clock = _clock(internal) if files else 0.0
    signs = []
    for path in files:
        said, lives, age = {}, None, 0.0
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            said["beat"] = float(said["beat"])
            words = f"{said['host']}, pid {said['pid']}, started {said['started']}"
            lives = _lives(said)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            continue
        except OSError as error:
            words = f"{path.name}, which cannot be read now: {error.strerror or error}"
        with contextlib.suppress(OSError):
            age = clock - path.stat().st_mtime_ns / 1e9  # After reading it: opening makes NFS ask its server.
        signs.append(SignOfLife(path=path, said=said, words=words, age_s=age, lives=lives))
    return signs


def _clock(internal: Location) -> float:
    """What the clock of the file system or store that holds `internal` says, in seconds."""
    probe = internal / f"probe.{uuid.uuid4().hex}"
    try:
        probe.write_bytes(b"")
        return probe.stat().st_mtime_ns / 1e9
    except OSError:  # Who may only look has no other clock than its own.
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _lives(said: Mapping[str, Any]) -> bool | None:
    if said.get("kernel") is None or said["kernel"] != _kernel():
        return None
    pid = int(said["pid"])
    if (ticks := _ticks(pid)) is None:
        with contextlib.suppress(ProcessLookupError, OverflowError):
            try:
                os.kill(pid, 0)
            except PermissionError:  # Somebody else's, and /proc may hide those (hidepid).
                return None
        return False
    return bool(ticks == said["ticks"])


def _kernel() -> str | None:
    """Names the running kernel and the namespace of process ids: where it is equal, ids name the same processes."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _ticks(pid: int) -> int | None:
    """When a process was started, by the kernel's count: ids are used again. None for one that has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])


def now() -> str:
    """Local time to the second, with its offset."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
