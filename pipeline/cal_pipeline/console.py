"""Keeps standard output and error usable: what a program did counts, not who could read of it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TextIO, cast

from rich.console import Console

from cal_schemas.redaction import keep_secrets


class _WhileRead:
    """Writes to a stream, and nowhere from the moment that its reader has gone; the program goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._or_nowhere():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._or_nowhere():
            self._stream.flush()

    @contextmanager
    def _or_nowhere(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            # Under the stream itself, which the interpreter flushes at its end and others may hold.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


def open_console(
    color: Literal["auto", "always", "never"] = "auto", *, stderr: bool = False, width: int | None = None
) -> Console:
    """Prints to stdout (whole lines, which may be long) or stderr, `[b]` and `:100:` as they are.

    Escape codes, also those of bold words and of a moving bar, only with `always`, or on a terminal without NO_COLOR.
    Rich would leave out no more than colours, and write them into pipes where FORCE_COLOR is set, as notebooks do.
    """
    stream = sys.stderr if stderr else sys.stdout
    auto = color == "auto" and not os.environ.get("NO_COLOR") and stream is not None and stream.isatty()
    terminal, system = (True, "truecolor") if color == "always" else (None, "auto") if auto else (False, None)
    return Console(
        stderr=stderr, width=width, force_terminal=terminal, color_system=cast("Any", system), no_color=False,
        force_jupyter=False, highlight=False, markup=False, emoji=False, soft_wrap=not stderr,
    )  # fmt: skip


@contextmanager
def printing() -> Iterator[None]:
    r"""Makes a reader that goes (`… | head`) no error, and a character that an output cannot show `\xe4`.

    No password is logged from here on.
    """
    keep_secrets()
    outputs = sys.stdout, sys.stderr
    for stream in outputs:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # One that was closed before the start is None.
    sys.stdout, sys.stderr = (cast("TextIO", stream and _WhileRead(stream)) for stream in outputs)
    try:
        yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        sys.stdout, sys.stderr = outputs
