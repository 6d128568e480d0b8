"""Renders conversations by a chat template's source, at a pinned date where it reads the clock (`strftime_now`)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from cal_schemas.errors import SampleError

_PINNED: ContextVar[str | None] = ContextVar("pinned", default="now")
_AT = {"type": "object", "properties": {"at": {"type": "string", "description": "What."}}}
_TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": _AT}}


@dataclass(frozen=True, kw_only=True, slots=True)
class TemplateText:
    """Renders conversations by one template at one date; at None a template that reads the clock fails."""

    processor: Any
    source: str
    date: str | None

    def __call__(
        self,
        turns: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        prompt: bool = False,
        source: str | None = None,
    ) -> str:
        """The text, with the header of an answer to come if `prompt`; by `source` instead of the template's own.

        Raises SampleError when the template fails.
        """
        source = source or self.source
        more = {} if tools is None else {"tools": list(tools)}
        try:
            with _pinned(source, self.date):
                rendered = self.processor.apply_chat_template(
                    list(turns), chat_template=source, tokenize=False, add_generation_prompt=prompt, **more
                )
        except Exception as error:  # A template is a program of the model's author; it may raise anything.
            raise SampleError(
                f"the chat template fails on the roles {[turn['role'] for turn in turns]}: "
                f"{type(error).__name__}: {error}"
            ) from error
        return str(rendered)


def reads_clock(processor: Any, source: str) -> bool:
    """Says whether a rendering needs a date: of plain conversations, with a system turn, or with tools."""
    if "strftime_now" not in source:
        return False
    dated, undated = (TemplateText(processor=processor, source=source, date=day) for day in ("2023-11-28", None))
    for parts in (True, False):
        turns = [{"role": role, "content": [{"type": "text", "text": "?"}] if parts else "?"}
                 for role in ("system", "user", "assistant", "user", "assistant")]  # fmt: skip
        for messages in (turns[1:2], turns[1:3], turns[1:], turns):
            for tools in (None, [_TOOL]):
                if _renders(dated, messages, tools) and not _renders(undated, messages, tools):
                    return True
    return False


def _renders(text: TemplateText, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> bool:
    try:
        text(turns, tools)
    except SampleError:
        return False
    return True


def today() -> str:
    """The date that a template gets which reads the clock and was given none."""
    return date.today().isoformat()


def _strftime_now(form: str) -> str:
    day = _PINNED.get()
    if day is None:
        raise RuntimeError("it reads the clock here, as it does not in plain conversations, so its date is not pinned")
    return (datetime.now() if day == "now" else datetime.fromisoformat(day)).strftime(form)


@contextlib.contextmanager
def _pinned(source: str, day: str | None) -> Iterator[None]:
    """Makes templates of this source read midnight of `day` (YYYY-MM-DD) inside, and fail on reading it at None.

    transformers passes no function through to a template, and compiles each source once per process: the function is
    put among that template's globals, and the date is a context variable, so that threads and encoders do not meet.
    """
    if "strftime_now" not in source:
        yield
        return
    from transformers.utils import chat_template_utils

    compiled: Any = chat_template_utils._compile_jinja_template(source)
    compiled.globals["strftime_now"] = _strftime_now
    token = _PINNED.set(day)
    try:
        yield
    finally:
        _PINNED.reset(token)
