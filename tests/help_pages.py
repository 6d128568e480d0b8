"""What programs print and end with: pages of help, and the examples at their ends."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from cal_pipeline import cli as precompute
from cal_pipeline.inspect import cli as inspect
from cal_pipeline.models.mini_gemini import cli as convert
from cal_trainer import cli as train

PROGRAMS: dict[str, Callable[[Sequence[str]], Any]] = {
    "cal-precompute": precompute.run,
    "cal-train": train.run,
    "cal-inspect": inspect.run,
    "cal-convert-mgm": convert.main,
}


@cache
def page_of(name: str, *flags: str) -> str:
    """What a program, or a subcommand of one, prints before it exits with 0."""
    program, *subcommand = name.split()
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            code = PROGRAMS[program]([*subcommand, *flags])
        except SystemExit as end:
            code = end.code
    assert not code
    return said.getvalue()


def examples_of(page: str) -> list[str]:
    """The commands at its end, a line each."""
    _, examples = page.split("\nexamples:\n")
    return [line.strip() for line in examples.replace("\\\n", " ").splitlines() if line.strip()]
