"""Runs the project's programs in this process by the arguments that one would type: starting one takes ten seconds."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from cal_pipeline import cli as precompute_cli
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.inspect import cli as inspect_cli
from cal_schemas.sample import Sample
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


@contextlib.contextmanager
def kept_encodings() -> Iterator[None]:
    """Within it an Encoder encodes the same words and pixels once: dozens of runs read the same rows.

    For commands that run in this process, one world at a time: all its models share tokenizer and processor. Numbers
    stay what they are (tests/test_studies.py compares), and a tiny run takes half the time.
    """
    encode = Encoder.__call__
    kept: dict[Any, EncodedSample] = {}

    def once(self: Encoder, sample: Sample, images: Sequence[Image.Image]) -> EncodedSample:
        pixels = tuple((image.size, image.tobytes()) for image in images)
        words = repr((sample.messages, sample.tools))
        key = (words, pixels, self.template, self.image_aspect_ratio, self.max_length, self.truncation)
        if key not in kept:
            kept[key] = encode(self, sample, images)
        return kept[key]

    Encoder.__call__ = once  # type: ignore[method-assign]
    try:
        yield
    finally:
        Encoder.__call__ = encode  # type: ignore[method-assign]
