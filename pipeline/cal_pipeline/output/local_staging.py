"""Keeps the folder of this machine where shards for an object store are staged: nobody else may enter it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cal_schemas.errors import ConfigError

_ORPHAN_S = 60.0
"""A file without a lock that is younger may be about to be locked."""


def staging_folder() -> Path:
    """Where it is: below TMPDIR, one for each user."""
    return Path(tempfile.gettempdir()) / f"cal-staging-{os.getuid()}"


def make_private(folder: Path) -> None:
    """Makes the folder, or makes sure of the one that is there: a directory of this user's, closed to all others.

    Raises ConfigError for one of another user, a link, and one that others can write to: they could replace what is
    staged, or have put something there already.
    """
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise ConfigError(
            f"{folder} is {stat.filemode(found.st_mode)} of user {found.st_uid}, and must be a directory of user "
            f"{os.getuid()} that nobody else can write to (drwx------): others could replace the shards that are "
            "staged there. Remove it, or set TMPDIR to a directory of your own"
        )
    if found.st_mode & 0o077:
        folder.chmod(0o700)


@contextmanager
def staged(folder: Path, name: str) -> Iterator[Path]:
    """A new file in the private folder, removed at the end; also removes those of processes that are gone.

    Locked as long as this process lives, of which the kernel takes care in all containers that share the folder.
    """
    make_private(folder)
    _remove_orphans(folder)
    partial = folder / name
    handle = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        os.close(handle)


def _remove_orphans(folder: Path) -> None:
    for leftover in folder.iterdir():
        of_a_process = "".join(leftover.name.split(".")[-2:-1]).isdigit()
        with contextlib.suppress(OSError):  # Its owner lives, or another process was first.
            if not of_a_process or not leftover.is_file() or time.time() - leftover.stat().st_mtime < _ORPHAN_S:
                continue
            with leftover.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
