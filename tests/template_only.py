"""A processor that is nothing but a chat template, rendered as transformers renders it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from transformers.utils.chat_template_utils import render_jinja_template

from cal_pipeline.encoding.chat import ChatTemplate
from cal_pipeline.encoding.templates import Rendered
from cal_schemas.sample import Turn

_SPECIAL = re.compile(r"<[|\uff5c][^<>\s]+?>|<[^<>\s]+?[|\uff5c]>|<(?:start|end)_of_\w+>")


class TemplateOnly:
    """What rendering needs of a processor."""

    image_token = "<image>"

    def __init__(self, source: str) -> None:
        self.chat_template = source
        self.num_renderings = 0
        self.specials = ("<s>", "</s>", *sorted(set(_SPECIAL.findall(source))))

    def apply_chat_template(self, turns: list[Any], *, chat_template: str, tokenize: bool, **kwargs: Any) -> str:
        """As a processor does it, with this one's special tokens."""
        assert not tokenize
        self.num_renderings += 1
        (text,), _ = render_jinja_template(
            [turns], chat_template=chat_template, bos_token="<s>", eos_token="</s>", **kwargs
        )
        return text


def rendered(
    source: str, messages: Sequence[Turn], specials: Sequence[str] | None = None, *, tools: Sequence[Any] | None = None
) -> Rendered:
    """One conversation by a template's source; `specials` are those that stand in it unless given."""
    processor = TemplateOnly(source)
    return ChatTemplate(processor, processor.specials if specials is None else specials).render(messages, tools)


def supervised(rendering: Rendered) -> list[str]:
    """The texts of the spans."""
    return [rendering.text[start:stop] for start, stop in rendering.label_spans]
