"""Lays a conversation out as chat templates read it, with its words or with slots in their place.

A slot is a marker that occurs nowhere else. What decides how a template writes a turn beside its words stays as it is:
the blanks around them, the tags that templates look for, images, and every other key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from cal_schemas.sample import IMAGE_MARK, Turn

THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of a turn whose text is the assistant's own words, before its answer."""
LINKS = ("tool_call_id", "name")
"""Keys of a tool's turn that say which call it answers: a template that does not show them loses nothing."""
_THINK = re.compile(r"(</?think>)")
_TAG = re.compile(r"(<[^<>\s]{1,60}>)")


class Writer(Protocol):
    """Takes a text of the conversation to what stands for it."""

    def __call__(self, turn: int, key: str, text: str) -> str:
        """Replaces the text of turn number `turn` that is under `key`."""
        ...


def conversation(
    messages: Sequence[Turn],
    *,
    takes_parts: Callable[[str], bool],
    image_token: str,
    write: Writer,
    beside: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """The turns as a template gets them, every text passed through `write`.

    `takes_parts` says of a role whether its content is a list of typed parts, each text with what is `beside` it; else
    it is text with `image_token` where an image was. A newline beside an image among parts is the template's to choose.
    """
    turns = []
    for number, turn in enumerate(messages):
        extra = {
            key: write(number, key, value) if key in THOUGHTS and isinstance(value, str)
            else _named(number, value, write) if key == "tool_calls" else value
            for key, value in turn.extra.items()
        }  # fmt: skip
        content: Any
        if not takes_parts(turn.role):
            pieces = [write(number, "content", text) if text else "" for text in turn.content.split(IMAGE_MARK)]
            content = image_token.join(pieces)
        elif IMAGE_MARK not in turn.content:
            content = [{"type": "text", "text": write(number, "content", turn.content), **(beside or {})}]
        else:
            content = []
            for at, text in enumerate(re.split(rf"\n?{re.escape(IMAGE_MARK)}\n?", turn.content)):
                content += [{"type": "image"}] if at else []
                content += [{"type": "text", "text": write(number, "content", text), **(beside or {})}] if text else []
        turns.append({"role": turn.role, "content": content, **extra})
    return turns


def _named(turn: int, value: Any, write: Writer) -> Any:
    """Tool calls with their functions' names written: a turn that only calls has no other words to find it by."""
    if isinstance(value, Mapping):
        return {
            key: write(turn, "tool_calls", item) if key == "name" and isinstance(item, str)
            else item if key == "arguments" else _named(turn, item, write)
            for key, item in value.items()
        }  # fmt: skip
    return [_named(turn, item, write) for item in value] if isinstance(value, list | tuple) else value


def as_it_is(turn: int, key: str, text: str) -> str:
    """The words themselves."""
    return text


@dataclass(slots=True)
class Slots:
    """Writes a marker for each run of words and remembers them.

    With `coarse`, of a turn that is no answer only the last word leaves its place (some templates escape or look into
    what users and tools say), and an answer is cut at everything that looks like a tag.
    """

    stem: str
    answers: frozenset[int]
    coarse: bool = False
    words: list[str] = field(default_factory=list)
    owners: list[tuple[int, str]] = field(default_factory=list)
    """(turn, key) of each slot."""
    _order: dict[int, list[int | str]] = field(default_factory=dict)

    def __call__(self, turn: int, key: str, text: str) -> str:
        """`text` with slots for its words."""
        order = self._order.setdefault(turn, []) if key == "content" else []
        pieces = (_TAG if self.coarse else _THINK).split(text)
        if not "".join(pieces[::2]).strip() and (turn in self.answers or not self.coarse):
            pieces = [text]  # Tags alone are what is said.
        last = max((at for at in range(0, len(pieces), 2) if re.search(r"\w", pieces[at])), default=-1)
        for at in range(0, len(pieces), 2):
            piece, words = pieces[at], pieces[at].strip()
            if self.coarse and turn not in self.answers:
                words = re.findall(r"\w+", piece)[-1] if at == last else ""
            if at:
                order.append(pieces[at - 1])
            if words:
                start = piece.rindex(words)
                order.append(len(self.words))
                pieces[at] = piece[:start] + self.marker(len(self.words)) + piece[start + len(words) :]
                self.words.append(words)
                self.owners.append((turn, key))
        return "".join(pieces)

    def marker(self, number: int) -> str:
        """The slot of the words of this number."""
        return f"{self.stem}{number}e"

    @property
    def part_key(self) -> dict[str, str]:
        """A key beside the text of a typed part: a template that shows it prints the part instead of its text."""
        return {f"{self.stem}key": ""}

    def thoughts(self) -> set[int]:
        """Slots of the answers that stand in the think block they open with: templates may leave those out."""
        numbers: set[int] = set()
        for turn in self.answers:
            order = self._order.get(turn, [])
            if "</think>" in order:
                block = order[: order.index("</think>")]
                if "<think>" not in block[1:]:
                    numbers.update(item for item in block if isinstance(item, int))
        return numbers


def stem_for(messages: Sequence[Turn], tools: Sequence[Any] | None, source: str) -> str:
    """The beginning of the markers: occurs neither in the conversation nor in the template."""
    texts = [source, *(turn.content for turn in messages)]
    texts += [json.dumps(turn.extra, ensure_ascii=False) for turn in messages if turn.extra]
    texts += [] if tools is None else [json.dumps(tools, ensure_ascii=False)]
    stem = "qwslot"
    while any(stem in text for text in texts):
        stem += "w"
    return stem


def common_start(first: str, second: str) -> int:
    """Counts the characters that two texts begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(first), len(second)))
