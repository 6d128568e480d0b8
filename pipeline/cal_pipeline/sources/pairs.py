"""Reads a question and its answer that stand under two keys, as TRL, Alpaca and ms-swift have them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from cal_pipeline.sources.turns import Conversation, read_turns
from cal_pipeline.sources.values import RowError, is_empty
from cal_schemas.sample import IMAGE_MARK

_PROMPT = "prompt"
PAIRS = (
    (_PROMPT, "completion", ()),
    ("instruction", "output", ("input", "history")),
    ("query", "response", ("history",)),
)
"""(question, answer, what else belongs to them)."""
FOREIGN_IMAGE_MARK = re.compile(
    r"<img>[^<>\n]+</img>|<\|(?:image|image_\d+|image_pad|vision_start)\|>|<image[ _]?\d+>"
    r"|<(?:ImageHere|IMG_CONTEXT|image_placeholder|image_soft_token|start_of_image)>"
)
"""An image as the data of Qwen-VL, Phi-3, Qwen2-VL, MMMU, InternLM, InternVL, DeepSeek-VL and Gemma spell it."""


def from_pair(values: Mapping[str, Any], question: str, answer: str, others: tuple[str, ...]) -> Conversation:
    """The conversation of a pair, each text or turns; RowError where one is neither."""
    asked, answered = values[question], values[answer]
    if "input" in others and not is_empty(more := values.get("input")):
        if not (isinstance(asked, str) and isinstance(more, str)):
            raise RowError(f"'input' is {type(more).__name__} beside {question!r} of {type(asked).__name__}; both must "
                           "be text")  # fmt: skip
        asked = f"{asked}\n{more}"
    history = values.get("history") if "history" in others and not is_empty(values.get("history")) else []
    if not isinstance(history, list | tuple):
        raise RowError(f"'history' is {type(history).__name__}; expected a list of questions with their answers")
    turns: list[Any] = []
    for number, pair in enumerate(history):
        if not (isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise RowError(f"'history' {number} is no pair of a question and an answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    for role, key, said in (("user", question, asked), ("assistant", answer, answered)):
        if not isinstance(said, str) and not (isinstance(said, list) and all(isinstance(t, Mapping) for t in said)):
            raise RowError(f"{key!r} is {type(said).__name__}; expected text or turns")
        turns += [{"role": role, "content": said}] if isinstance(said, str) else said
    if values.get("label") is False and question == _PROMPT:
        raise RowError("'label' is false: this completion is not wanted, and preferences are not learned here")
    conversation = replace(read_turns(turns), keys=(question, answer, *others))
    if question == _PROMPT:  # TRL learns its completion alone.
        before = 1 if isinstance(asked, str) else len(asked)
        conversation.turns[:before] = [replace(turn, supervised=turn.supervised and turn.role != "assistant")
                                       for turn in conversation.turns[:before]]  # fmt: skip
    return conversation


def with_marks(conversation: Conversation, num_images: int) -> None:
    """Puts the images of a prompt that shows none before its first question, where TRL puts them."""
    first = next((number for number, turn in enumerate(conversation.turns) if turn.role == "user"), None)
    marked = any(IMAGE_MARK in turn.content or FOREIGN_IMAGE_MARK.search(turn.content) for turn in conversation.turns)
    if conversation.keys[0] == _PROMPT and num_images and not marked and first is not None:
        turn = conversation.turns[first]
        conversation.turns[first] = replace(turn, content="\n".join([*[IMAGE_MARK] * num_images, turn.content]))
