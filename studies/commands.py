"""The project's programs, run in this process by the arguments that one would type: starting one takes ten seconds."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from cal_pipeline import cli as precompute_cli
from cal_pipeline import inspect_cli
from cal_trainer import cli as train_cli

_PROGRAMS: dict[str, Callable[[Sequence[str]], int]] = {
    "cal-precompute": precompute_cli.run,
    "cal-train": train_cli.run,
    "cal-inspect": inspect_cli.run,
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
def _logging_to(file: object) -> Iterator[None]:
    """Python's own log goes there too; the commands leave a handler that is set up alone."""
    root = logging.getLogger()
    before = root.handlers[:]
    handler = logging.StreamHandler(file)  # type: ignore[type-var]
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before


@contextlib.contextmanager
def made(target: Path) -> Iterator[Path]:
    """A path to make something at, which is `target` once it is whole; what a broken attempt left is made anew."""
    aside = target.with_name(target.name + ".making")
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(parents=True, exist_ok=True)
    yield aside
    aside.rename(target)


@contextlib.contextmanager
def exclusively(target: Path) -> Iterator[None]:
    """Among the processes of a study, for what several of them need."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.with_name(target.name + ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
