"""Tells in what way a run ended: by SIGTERM, on a full disk, with an error of a loader process."""

from __future__ import annotations

import errno
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)
_FULL: Final = 2**20


class Terminated(BaseException):
    """SIGTERM came: at once, or with --enable_jit_checkpoint when the step that it came in was saved."""


@contextmanager
def raising_terminated() -> Iterator[None]:
    """Within it SIGTERM raises Terminated in the main thread; loader processes have handlers of their own."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    let_end()
    raise Terminated


def let_end() -> None:
    """Nothing disturbs the end of this process any more.

    Neither a second signal (launchers hand on what schedulers send to all), nor the death of the loader processes,
    which got it too and which torch makes an error of ours.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Not SIG_IGN: of a signal that came before that, Python would complain."""


def full_disk(error: BaseException | None, output_dir: Path) -> str | None:
    """Where there is no space left, if that is what ended a run that writes to `output_dir`; else None."""
    while error is not None:
        said = str(error)
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return said if error.filename else f"{output_dir}: {said}"
        if any(f"os error {number}" in said for number in _NO_SPACE):  # safetensors
            return f"{output_dir}: {said}"
        if "inline_container" in said and shutil.disk_usage(output_dir).free < _FULL:
            return f"{output_dir}: no space left on device"  # torch.save, which does not say
        error = error.__cause__ or error.__context__
    return None


def one_line(error: Exception) -> str:
    """The message alone, where a loader process handed it over with its traceback."""
    said = str(error)
    return said.rstrip().rpartition(f"{type(error).__name__}: ")[2] if said.startswith("Caught ") else said
