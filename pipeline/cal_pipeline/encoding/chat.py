"""Renders a conversation by a processor's chat template, and says which of its characters are supervised.

Supervised is what the template writes of an assistant's turn behind the header, up to and with its end token. Nothing
is searched by its words: the conversation is rendered once more with slots in place of all words (slots.py), and what
stands between the slots is the template's own. That skeleton, filled with the words, must be the rendering that is
trained on. Rows of one layout share a skeleton, so that most rows are rendered once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from cal_pipeline.encoding.skeleton import Skeleton, skeleton_of
from cal_pipeline.encoding.slots import Slots, as_it_is, common_start, conversation, stem_for
from cal_pipeline.encoding.template_facts import TemplateFacts
from cal_pipeline.encoding.template_text import TemplateText, reads_clock, today
from cal_pipeline.encoding.templates import Rendered, chat_template, image_placeholder
from cal_schemas.errors import SampleError
from cal_schemas.sample import Turn

_KEPT_CHARACTERS = 2**24
"""Of the layouts whose skeletons are remembered: long ones are those that seldom come again."""


class ChatTemplate:
    """Renders by a processor's own template. Safe to call from several threads.

    Args:
        processor: with a chat template, its own or its tokenizer's.
        specials: the tokens that text is not normally made of.
        date: what a template reads that asks for the date (YYYY-MM-DD); None is today, for good.
    """

    def __init__(self, processor: Any, specials: Sequence[str], date: str | None = None) -> None:
        source = chat_template(processor)
        self.date = (date or today()) if reads_clock(processor, source) else None
        """None for a template that does not read the clock."""
        self._text = TemplateText(processor=processor, source=source, date=self.date)
        self._image_token = image_placeholder(processor)
        self._specials = specials
        self._skeletons: dict[str, Skeleton] = {}
        self._kept_characters = 0

    @cached_property
    def _facts(self) -> TemplateFacts:
        return TemplateFacts(self._text, self._specials)

    def render(self, messages: Sequence[Turn], tools: Sequence[Any] | None = None) -> Rendered:
        """One conversation and the spans of its supervised answers.

        Raises SampleError when the template fails, leaves out words or keys that it was given, or changes words so
        that the answers cannot be told from the rest.
        """
        takes_parts, tools = self._facts.takes_parts, tools or None
        turns = conversation(messages, takes_parts=takes_parts, image_token=self._image_token, write=as_it_is)
        text = self._text(turns, tools)
        answers = frozenset(number for number, turn in enumerate(messages) if turn.role == "assistant")
        stem = stem_for(messages, tools, self._text.source)
        failure: SampleError | None = None
        for coarse in (False, True):
            slots = Slots(stem=stem, answers=answers, coarse=coarse)
            laid = conversation(
                messages, takes_parts=takes_parts, image_token=self._image_token, write=slots, beside=slots.part_key
            )
            try:
                skeleton = self._skeleton(laid, tools, slots)
            except SampleError as error:
                failure = failure or error
                continue
            if (filled := skeleton.fill(slots.words)) == text:
                supervised = [number for number in sorted(answers) if messages[number].supervised]
                return Rendered(text=text, label_spans=skeleton.label_spans(slots.words, supervised))
            at = common_start(filled, text)
            failure = failure or SampleError(
                "the chat template changes words, so answers cannot be told from the rest: it writes "
                f"{text[max(0, at - 10) : at + 20]!r} for {filled[max(0, at - 10) : at + 20]!r}; use another template"
            )
        assert failure is not None
        raise failure

    def _skeleton(self, laid: list[dict[str, Any]], tools: Sequence[Any] | None, slots: Slots) -> Skeleton:
        key = json.dumps([laid, tools])
        if (skeleton := self._skeletons.get(key)) is None:
            skeleton = skeleton_of(laid, tools, slots, self._text, self._facts)
            if self._kept_characters > _KEPT_CHARACTERS:
                self._skeletons.clear()
                self._kept_characters = 0
            self._skeletons[key] = skeleton
            self._kept_characters += len(key)
        return skeleton
