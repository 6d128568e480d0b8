"""Renders a conversation with slots for its words, and finds where in it supervision begins and ends."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cal_pipeline.encoding.generation_blocks import generation_blocks
from cal_pipeline.encoding.slots import LINKS, THOUGHTS, Slots, common_start
from cal_pipeline.encoding.template_facts import TemplateFacts
from cal_pipeline.encoding.template_text import TemplateText
from cal_schemas.errors import SampleError


@dataclass(frozen=True, kw_only=True, slots=True)
class Skeleton:
    """The template's own writing, and which words stand between."""

    literals: tuple[str, ...]
    """One more than there are slots; a slot may stand in several places."""
    numbers: tuple[int, ...]
    """Of the words behind each literal but the last."""
    spans: Mapping[int, tuple[tuple[int, int], ...]]
    """Turn to its supervised spans, as offsets in the text of all literals and slots, each slot one character wide."""

    def fill(self, words: Sequence[str]) -> str:
        """The rendering with these words."""
        pieces = [self.literals[0]]
        for literal, number in zip(self.literals[1:], self.numbers, strict=True):
            pieces += (words[number], literal)
        return "".join(pieces)

    def label_spans(self, words: Sequence[str], turns: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """The supervised spans of these turns in the filled text."""
        slots, at = [], 0
        for literal, number in zip(self.literals, self.numbers, strict=False):
            at += len(literal)
            slots.append((at, len(words[number]) - 1))
            at += 1
        return tuple(
            (start + sum(grown for slot, grown in slots if slot < start),
             stop + sum(grown for slot, grown in slots if slot < stop))
            for turn in turns for start, stop in self.spans.get(turn, ())
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """A conversation laid out with slots, and its rendering."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Any] | None
    slots: Slots
    text: TemplateText
    facts: TemplateFacts
    rendered: str
    marks: Sequence[tuple[int, int, int]]
    """Of each slot in the rendering: where it starts and stops, and its number."""

    def attempt(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> str | None:
        """The rendering of something else; None where the template fails on it."""
        try:
            return self.text(messages, tools)
        except SampleError:
            return None

    def with_message(self, turn: int, message: Mapping[str, Any]) -> str | None:
        """The rendering with another message in this turn's place."""
        return self.attempt([*self.messages[:turn], message, *self.messages[turn + 1 :]], self.tools)


def skeleton_of(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Any] | None,
    slots: Slots,
    text: TemplateText,
    facts: TemplateFacts,
) -> Skeleton:
    """Renders messages that were laid out with `slots`.

    Raises SampleError where the template leaves something out that it was given, or where an answer cannot be told
    from the rest.
    """
    rendered = text(messages, tools)
    if any(key in rendered for key in slots.part_key):
        raise SampleError("the chat template writes the typed parts of a turn as they are, not their text")
    marks = [(match.start(), match.end(), int(match[1])) for match in re.finditer(slots.stem + r"(\d+)e", rendered)]
    layout = _Layout(
        messages=messages, tools=tools, slots=slots, text=text, facts=facts, rendered=rendered, marks=marks
    )
    _check_shown(layout)
    blocks = generation_blocks(messages, tools, slots.stem, text, rendered)
    spans: dict[int, list[tuple[int, int]]] = {}
    for turn in sorted(slots.answers):
        if span := _span(layout, turn):
            spans[turn] = [span] if blocks is None else _within(span, blocks, rendered)
    ends = [0, *(stop for _, stop, _ in marks)]
    starts = [*(start for start, _, _ in marks), len(rendered)]

    def narrowed(position: int) -> int:
        """Without the characters of the markers before it, but one each."""
        return position - sum(stop - start - 1 for start, stop, _ in marks if stop <= position)

    return Skeleton(
        literals=tuple(rendered[start:stop] for start, stop in zip(ends, starts, strict=True)),
        numbers=tuple(number for _, _, number in marks),
        spans={turn: tuple((narrowed(a), narrowed(b)) for a, b in pairs) for turn, pairs in spans.items()},
    )


def _within(span: tuple[int, int], blocks: Sequence[tuple[int, int]], rendered: str) -> list[tuple[int, int]]:
    """The parts of a span that lie in blocks; a blank between header and block is the model's to write too."""
    parts: list[tuple[int, int]] = []
    for start, stop in blocks:
        begin = span[0] if rendered[span[0] : start].isspace() else max(span[0], start)
        end = min(span[1], stop)
        if parts and parts[-1][1] == begin < end:
            parts[-1] = (parts[-1][0], end)
        elif begin < end:
            parts.append((begin, end))
    return parts


def _check_shown(layout: _Layout) -> None:
    shown, optional = {number for _, _, number in layout.marks}, layout.slots.thoughts()
    for number, (turn, key) in enumerate(layout.slots.owners):
        if number not in shown and number not in optional:
            what = "words" if key == "content" else f"`{key}`"
            raise SampleError(f"the chat template leaves out {what} of turn {turn}; use another template")
    for turn, message in enumerate(layout.messages):
        if isinstance(message["content"], list) and {"type": "image"} in message["content"]:
            words = [part for part in message["content"] if part["type"] != "image"] or [{"type": "text", "text": ""}]
            if layout.with_message(turn, {**message, "content": words}) == layout.rendered:
                raise SampleError(f"the chat template leaves out the image of turn {turn}; use another template")
        links = () if message["role"] in ("user", "assistant", "system") else LINKS
        for key, value in message.items():
            if key in ("role", "content", *links) or not value or (key in THOUGHTS and type(value) is str):
                continue
            if layout.with_message(turn, {name: message[name] for name in message if name != key}) == layout.rendered:
                raise SampleError(f"the chat template does not take `{key}` (turn {turn}); use another template")
    if layout.tools is not None and layout.attempt(layout.messages, None) == layout.rendered:
        raise SampleError("the chat template does not take `tools`; use another template")


def _span(layout: _Layout, turn: int) -> tuple[int, int] | None:
    """Locates a turn from behind its header to behind its end token; None when none of its words is shown."""
    slots, facts, rendered, marks = layout.slots, layout.facts, layout.rendered, layout.marks
    own = {number for number, (owner, _) in enumerate(slots.owners) if owner == turn}
    at = {number: place for place, (_, _, number) in reversed(list(enumerate(marks))) if number in own}
    if not at:
        return None
    first, last = min(at.values()), max(at.values())
    if {marks[place][2] for place in range(first, last + 1)} - own:
        raise SampleError(f"the chat template mixes the words of turn {turn} with those of others")
    content_slots = [number for _, _, number in marks if number in own and slots.owners[number][1] == "content"]
    if len(content_slots) > len(set(content_slots)):
        raise SampleError(f"the chat template writes the words of turn {turn} more than once")

    before = rendered[marks[first - 1][1] if first else 0 : marks[first][0]]
    start = marks[first][0] - len(before)
    # Tags beside an answer's slots are its own words, though they read like a header or an end.
    lead, tail = _around(layout.messages[turn]["content"], slots.stem)
    own_lead, own_tail = lead.lstrip(), tail.rstrip()
    headed = before.removesuffix(own_lead)
    # One header each is that of answers before it which say nothing.
    silent = slots.answers.intersection(range(slots.owners[marks[first - 1][2]][0] + 1 if first else 0, turn))
    if facts.header and headed.count(facts.header) > len(silent):
        start += headed.rindex(facts.header) + len(facts.header)
    elif slots.owners[marks[first][2]][1] == "tool_calls":
        # What is written before the name of the function is the call's, behind what is there without this turn.
        begin = facts.whole(rendered, common_start(layout.text(layout.messages[:turn], layout.tools), rendered))
        if begin < start:
            raise SampleError(f"where the tool calls of turn {turn} begin cannot be told in the rendering")
        start = begin
    elif think := re.search(r"<think>(?:\s|</?think>)*$", before):
        start += think.start()
    else:
        start += len(before) - _kept(layout, turn, lead, marks[first][0])

    if "tool_calls" in layout.messages[turn]:
        return start, _end_of_calls(layout, turn, [mark for mark in marks if mark[2] in own])
    stop = marks[last][1]
    behind = rendered[stop : marks[last + 1][0] if last + 1 < len(marks) else len(rendered)]
    said = len(own_tail) if behind.startswith(own_tail) else 0
    # What ends another turn, of which no word is shown, is not this one's.
    rest = behind[said:].split(facts.header)[0] if facts.header else behind[said:]
    if end := facts.end(rest) or (facts.run(rest) if turn + 1 == len(layout.messages) else ""):
        return start, stop + said + rest.index(end) + len(end)
    return start, stop + (len(tail) if behind.startswith(tail) else said)


def _end_of_calls(layout: _Layout, turn: int, own: Sequence[tuple[int, int, int]]) -> int:
    """Locates the end of a turn that calls tools, whose arguments stand behind its last slot.

    Its own is what is there too when the conversation ends with it, up to the last special token; else, where that is
    written otherwise, what comes before the end token.
    """
    facts, rendered = layout.facts, layout.rendered
    calls = json.dumps(layout.messages[turn]["tool_calls"], ensure_ascii=False)
    if any(marker in calls for marker in (*facts.ends, facts.header) if marker):
        raise SampleError(f"the tool calls of turn {turn} hold what the chat template ends or opens a turn with")
    shared = common_start(layout.attempt(layout.messages[: turn + 1], layout.tools) or "", rendered)
    first = {number: stop for _, stop, number in reversed(own)}
    if shared >= max(first.values()):
        stop = max(stop for _, stop, _ in own if stop <= shared)
        behind = rendered[stop:shared]
        if end := facts.end(behind):
            return stop + behind.index(end) + len(end)
        return stop + (facts.last_special(behind) or len(behind.rstrip()))
    stop = max(first.values())
    if end := facts.end(rendered[stop:]):
        return rendered.index(end, stop) + len(end)
    raise SampleError(f"where the tool calls of turn {turn} end cannot be told in the chat template's rendering")


def _around(content: Any, stem: str) -> tuple[str, str]:
    """Splits off what of a turn's content stands before its first slot and behind its last."""
    texts = [content] if isinstance(content, str) else [part.get("text", "") for part in content] or [""]
    return texts[0].split(stem)[0], re.split(stem + r"\d+e", texts[-1])[-1]


def _kept(layout: _Layout, turn: int, lead: str, position: int) -> int:
    """Counts the characters of an answer's beginning, before its first slot, that the template leaves there."""
    if not lead:
        return 0
    message, rendered = layout.messages[turn], layout.rendered
    content = message["content"]
    if isinstance(content, str):
        content = content.removeprefix(lead)
    else:
        content = [{**content[0], "text": content[0]["text"].removeprefix(lead)}, *content[1:]]
    bare = layout.with_message(turn, {**message, "content": content}) or rendered
    kept = len(rendered) - len(bare)
    return kept if kept > 0 and bare == rendered[: position - kept] + rendered[position:] else 0
