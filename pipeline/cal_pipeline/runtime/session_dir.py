"""Makes the directory of a Ray that this program starts, and removes what killed drivers left behind."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cal_schemas.errors import ConfigError

_SHORT = Path("/tmp")
_LONGEST = 26
"""Characters of a parent: with what Ray appends, a socket's path has at most 107."""
_PREFIX = "cal-ray-"
_LOCK = "owner.lock"
_FORGOTTEN_S = 86400.0
_END_S = 3.0


@contextmanager
def session_dir(parent: Path = _SHORT) -> Iterator[str]:
    """Makes a new directory right below `parent`, and removes it at the end.

    Ray's sockets live in it, and socket paths are short. Where `parent` cannot be written to it lies below TMPDIR;
    ConfigError where that cannot be, or is too long.

    Directories of drivers that were killed are removed first. A driver holds a lock on a file in its own for as long
    as it lives, and the kernel drops the lock with the process: no process id that could have been used again.
    """
    folder = _new(parent)
    # Locked before it has its name: a directory with an unlocked owner.lock is abandoned, without exception.
    handle = os.open(folder / "new", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        (folder / "new").rename(folder / _LOCK)
        yield str(folder)
    finally:
        end_children(folder)
        _remove(folder)
        os.close(handle)


def _new(parent: Path) -> Path:
    reasons = []
    for place in (parent, *map(Path, filter(None, [os.environ.get("TMPDIR")]))):
        if place != parent and len(os.fsencode(place)) > _LONGEST:
            reasons.append(f"TMPDIR {place} is longer than {_LONGEST} characters")
            continue
        try:
            remove_abandoned(place)
            return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
        except OSError as error:
            reasons.append(f"{place} cannot be written to ({error.strerror or error})")
    raise ConfigError(
        f"Ray has no place for its sockets: {', and '.join(reasons)}. Set TMPDIR to a directory of this machine that "
        f"can be written to, of at most {_LONGEST} characters"
    )


def end_children(folder: Path) -> None:
    """Ends processes of this one that have the directory on their command line, the youngest first.

    `ray.shutdown` leaves them all when `ray.init` was interrupted. They would end with this process, but at once: Ray's
    node could not end those that it has started itself.
    """
    for pid in sorted(_children(folder), reverse=True):
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                if pid in _children(folder):
                    os.kill(pid, number)
            deadline = time.monotonic() + _END_S
            while pid in _children(folder) and time.monotonic() < deadline:
                time.sleep(0.05)


def _children(folder: Path) -> set[int]:
    children = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and os.fsencode(f"{folder}/") in (entry / "cmdline").read_bytes():
                children.add(int(entry.name))
    return children


def remove_abandoned(parent: Path) -> None:
    """Removes this user's session directories whose owner is dead.

    One without a lock file stays for a day: its driver may be about to lock it.
    """
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue
            if not (folder / _LOCK).exists():
                if time.time() - status.st_mtime > _FORGOTTEN_S:
                    _remove(folder)
                continue
            handle = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            continue  # Its owner lives.
        else:
            _remove(folder)
        finally:
            os.close(handle)


def _remove(folder: Path) -> None:
    """Removes a directory with patience: Ray's processes may still be writing in it as they end."""
    for _ in range(10):
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(0.1)
        if not folder.exists():
            return
