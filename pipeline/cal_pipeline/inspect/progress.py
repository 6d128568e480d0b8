"""Shows how far a pass is that takes more than five seconds: a bar on a terminal, a line every 30 seconds elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cal_pipeline.console import open_console
from cal_pipeline.log_lines import is_json

SHOW_AFTER_S = 5.0
_LINE_EVERY_S = 30.0
_log = logging.getLogger(__name__)


@contextmanager
def shown_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that counts what is done, of `total`; it is said on standard error."""
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    bar = Progress(*columns, console=open_console(stderr=True), transient=True)
    task = bar.add_task(what, total=total)
    done, started, due = 0, time.monotonic(), time.monotonic() + SHOW_AFTER_S

    def advance(count: int) -> None:
        nonlocal done, due
        done += count
        bar.update(task, completed=done)
        now = time.monotonic()
        if now < due:
            return
        if bar.console.is_terminal and not is_json():
            bar.start()
        else:
            left = (total - done) * (now - started) / max(done, 1)
            _log.info("%s: %s of %s, %.0f s left", what, f"{done:,}", f"{total:,}", left)
        due = now + _LINE_EVERY_S

    try:
        yield advance
    finally:
        if bar.live.is_started:  # Rich ends a line also where it began none.
            bar.stop()
