"""The chat templates that TRL comes with, read from its package, as they are in the models that it names."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from cal_pipeline.encoding.chat import ChatTemplate
from template_only import TemplateOnly

_TRL = importlib.util.find_spec("trl")  # Importing it would import its trainers.
assert _TRL is not None
assert _TRL.origin is not None
SOURCES = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted((Path(_TRL.origin).parent / "chat_templates").glob("*.jinja"))
}


def _made(source: str) -> ChatTemplate:
    processor = TemplateOnly(source)
    return ChatTemplate(processor, processor.specials, "2026-11-28")


TEMPLATES = {name: _made(source) for name, source in SOURCES.items()}
