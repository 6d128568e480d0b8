"""Finds out what is true of a chat template whatever the row, by rendering small conversations."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from cal_pipeline.encoding.slots import common_start
from cal_pipeline.encoding.template_text import TemplateText
from cal_schemas.errors import SampleError

_log = logging.getLogger(__name__)
_warned: set[str] = set()
"""Templates that were warned of already."""
_TAG = r"<[^<>\s]{1,60}>"
_BARRED = r"<[|\uff5c][^<>\s]{1,60}?[|\uff5c]>"
"""Written by templates for a special token, also where the tokenizer at hand has none such."""
_QUESTION, _PART_KEY = "qwslot0e", "qwslotkey"
_CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "it"}}}


class TemplateFacts:
    """Knows of one template what content it takes, the header of an answer, and what ends a turn.

    `specials` are the tokens that text is not normally made of. Raises SampleError where the template shows no plain
    question and answer, of which all this is learned.
    """

    def __init__(self, text: TemplateText, specials: Sequence[str]) -> None:
        self._text = text
        by_length = sorted(filter(None, specials), key=len, reverse=True)
        self._run = re.compile(f"(?:{'|'.join([*map(re.escape, by_length), _BARRED])})+")
        self._unbroken = re.compile("|".join([*map(re.escape, by_length), _TAG]))
        self._takes_parts: dict[str, bool] = {}
        self._openings = [[], [{"role": "system", **self._as(".", False)}], [{"role": "system", **self._as(".", True)}]]
        """Turns that a question may need before it; those that it needs once a question was shown."""
        self.header = self._find_header()
        """Written before an answer; empty where nothing is."""
        self.ends = self._find_ends()
        """Each may end a turn."""

    def takes_parts(self, role: str) -> bool:
        """Says whether the content of this role is a list of typed parts; else it is text.

        Where a template takes both it gets parts, unless it shows no image among a user's.
        """
        if role not in self._takes_parts:
            order = (True, False) if role == "user" or self.takes_parts("user") else (False, True)
            self._takes_parts[role] = next((parts for parts in order if self._shows(role, parts)), True)
        return self._takes_parts[role]

    def _shows(self, role: str, parts: bool) -> bool:
        before: list[dict[str, Any]] = []
        after: list[dict[str, Any]] = []
        if role != "user":
            plain = [self._turn("user", "?"), {"role": "assistant", **({} if role == "assistant" else self._of("."))}]
            before = plain[:1] if role == "assistant" else []
            after = plain if role in ("system", "developer") else []
            if role not in ("assistant", "system", "developer"):
                before = [plain[0], {"role": "assistant", "content": "", "tool_calls": [_CALL]}]
        question = {"role": role, **self._as(_QUESTION, parts)}
        for opening in [[]] if role in ("system", "developer") else self._openings:
            for end in (after, [{"role": "assistant", **self._as(".", parts)}]):
                try:
                    text = self._text([*opening, *before, question, *end])
                    if role == "user" and parts:
                        image = {"role": role, "content": [{"type": "image"}, *question["content"]]}
                        if self._text([*opening, image, *end]) == text:
                            return False
                except SampleError:
                    continue
                # Templates that expect text print a list as it is, whatever they make of its quotes.
                shown = _QUESTION in text and _PART_KEY not in text
                if shown and role == "user":
                    self._openings = [opening]
                return shown
        return False

    def _of(self, words: str) -> dict[str, Any]:
        return self._as(words, self.takes_parts("assistant"))

    @staticmethod
    def _as(words: str, parts: bool) -> dict[str, Any]:
        return {"content": [{"type": "text", "text": words, _PART_KEY: ""}] if parts else words}

    def _turn(self, role: str, words: str) -> dict[str, Any]:
        return {"role": role, **self._as(words, self.takes_parts(role))}

    def _tails(self, number: int, *, prompt: bool = False) -> list[str]:
        """The texts behind each of `number` turns, by turns a question and an answer; empty when that fails."""
        words = [f"qwslot{at}e" for at in range(number)]
        try:
            turns = [self._turn(("user", "assistant")[at % 2], word) for at, word in enumerate(words)]
            text = self._text([*self._openings[0], *turns], prompt=prompt)
        except SampleError:
            return []
        tails = re.split("|".join(words), text)[1:]
        return tails if len(tails) == number else []

    def _find_header(self) -> str:
        """The text that asking for an answer adds to a question, up to a think block: that is the model's own.

        Where asking adds nothing, that which an answer itself has before its words.
        """
        plain = self._tails(1)
        for more in (self._tails(1, prompt=True), self._tails(2)):
            if more:
                at = self.whole(more[0], common_start(more[0], plain[0]) if plain else 0)
                if (header := more[0][at:].split("<think>")[0]).strip():
                    return header
        return ""

    def _find_ends(self) -> tuple[str, ...]:
        """The run of special tokens behind an answer, as far as it is the same behind every answer.

        Where no such token is special, it is the text that all answers end with. Some templates end the last answer
        otherwise than those before, which then end as a question does.
        """
        four = self._tails(4)
        if not four and not self._tails(2):
            turns = [self._turn("user", _QUESTION), self._turn("assistant", ".")]
            self._text([*self._openings[0], *turns])  # It says why.
            raise SampleError("the chat template does not show a plain question and answer, each once, as they are")
        last = four[3] if four else self._tails(2)[1]
        first = four[1] if four else last
        run, earlier = self.run(last), self.run(first)
        if common := self._common(run, earlier):
            return (common,)
        at = common_start(first, last)
        if text := first[: min(self.whole(tail, at) for tail in (first, last))].strip():
            return (text,)
        question = next(iter(self._tails(1)), "")
        ends = tuple(filter(None, (run, self._common(earlier, self.run(question)))))
        if not ends and self._text.source not in _warned:
            _warned.add(self._text.source)
            _log.warning("the chat template puts no end token behind an answer: its end will not be supervised")
        return ends

    def end(self, tail: str) -> str:
        """The first of `ends` in what stands behind an answer, the longest of those; or nothing."""
        present = [end for end in self.ends if end in tail]
        return min(present, key=lambda end: (tail.index(end), -len(end)), default="")

    def last_special(self, tail: str) -> int:
        """The end of the last special token; 0 where there is none."""
        return max((match.end() for match in self._run.finditer(tail)), default=0)

    def run(self, tail: str) -> str:
        """The first run of special tokens, or nothing."""
        match = self._run.search(tail)
        return match[0] if match else ""

    def _common(self, first: str, second: str) -> str:
        return first[: self.whole(first, common_start(first, second))]

    def whole(self, text: str, at: int) -> int:
        """`at`, or where the token or tag that it would cut begins."""
        return next((match.start() for match in self._unbroken.finditer(text) if match.start() < at < match.end()), at)
