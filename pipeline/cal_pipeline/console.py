"""Standard output and error, whatever stands behind them: what a program did counts, not who could read of it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import rich.console


class Console(rich.console.Console):
    """Rich's, which would end the program with 1 when its reader has gone."""

    def on_broken_pipe(self) -> None:
        """Called while the error is handled: `printing` knows what to do."""
        raise


def escape_unprintable() -> None:
    r"""From now on a character that an output cannot show (ASCII, Latin-1) is escaped, `\xe4`, and no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def printing() -> Iterator[None]:
    """Within it a reader that has gone (`… | head`) is no error; what is said afterwards goes nowhere."""
    try:
        yield
        if sys.stdout:
            sys.stdout.flush()
    except BrokenPipeError:
        # The interpreter would complain when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
