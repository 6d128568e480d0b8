"""The project's programs, run in this process by the arguments that one would type: starting one takes ten seconds."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from cal_pipeline import cli as precompute_cli
from cal_pipeline.inspect import cli
from cal_trainer import cli as train_cli

_PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "cal-precompute": precompute_cli.run,
    "cal-train": train_cli.run,
    "cal-inspect": cli.run,
}


class CommandError(Exception):
    """A command did not end well."""


def call(program: str, *arguments: object, log: Path) -> None:
    """Runs one command; what it prints goes to the end of `log`, under the command line itself.

    Raises CommandError for another exit code than 0, KeyboardInterrupt where the command was interrupted.
    """
    argv = [str(argument) for argument in arguments]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {shlex.join([program, *argv])}\n")
        file.flush()
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file), _logging_to(file):
            code = _PROGRAMS[program](argv)
    if code >= 128:
        raise KeyboardInterrupt
    if code:
        raise CommandError(f"{shlex.join([program, *argv])} ended with {code}; see the end of {log}")


@contextlib.contextmanager
def _logging_to(file: TextIO) -> Iterator[None]:
    """Python's own log goes there too; the commands leave a handler that is set up alone."""
    root = logging.getLogger()
    before = root.handlers[:]
    handler = logging.StreamHandler(file)
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before
