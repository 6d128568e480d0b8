"""Pins the date that chat templates read (transformers' `strftime_now`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

_PINNED: ContextVar[str | None] = ContextVar("pinned", default="now")


def _strftime_now(form: str) -> str:
    date = _PINNED.get()
    if date is None:
        raise RuntimeError("it reads the clock here, as it does not in plain conversations, so its date is not pinned")
    return (datetime.now() if date == "now" else datetime.fromisoformat(date)).strftime(form)


@contextlib.contextmanager
def pinned(source: str, date: str | None) -> Iterator[None]:
    """Templates of this source read midnight of `date` (YYYY-MM-DD) inside, and fail on reading it where it is None.

    transformers passes no function through to a template, and compiles each source once per process: the function is
    put among that template's globals, and the date is a context variable, so that threads and encoders do not meet.
    """
    if "strftime_now" not in source:
        yield
        return
    from transformers.utils import chat_template_utils

    compiled: Any = chat_template_utils._compile_jinja_template(source)
    compiled.globals["strftime_now"] = _strftime_now
    token = _PINNED.set(date)
    try:
        yield
    finally:
        _PINNED.reset(token)
