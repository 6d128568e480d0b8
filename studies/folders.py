"""Guards folders that processes share: one study at a time in each, and what is made in them is whole or not there."""

from __future__ import annotations

import fcntl
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_UNFINISHED = ".making-"


def once(target: Path, make: Callable[[Path], object]) -> Path:
    """`target`, made where it is missing; `make` is given a path of its own, which is `target` once it is whole."""
    if not target.exists():
        aside = target.with_name(f"{target.name}{_UNFINISHED}{uuid.uuid4().hex[:8]}")
        aside.parent.mkdir(parents=True, exist_ok=True)
        make(aside)
        aside.rename(target)
    return target


def remove_unfinished(folder: Path) -> None:
    """What broken attempts left anywhere below `folder`; for whoever has it alone."""
    for leftover in list(folder.rglob(f"*{_UNFINISHED}{'[0-9a-f]' * 8}")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def exclusively(target: Path) -> Iterator[None]:
    """Among the processes of a study, for what several of them need."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def alone(folder: Path, option: str) -> Iterator[None]:
    """Two studies in one folder would make the same things at once; `option` is the flag that gives another one.

    Raises SystemExit where another study holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{option}.lock").open("w") as file:  # of the option: both may name one folder
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SystemExit(f"another study works in {folder}: wait for it, or give another --{option}") from None
        yield
