"""A conversation as one text, and which of its characters are supervised.

Supervised are the assistant's words and the end-of-turn token behind them, in every turn. Spans are character
offsets of prefix renderings: searching for token ids would be fooled by an answer that quotes the template.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cal_schemas.errors import ConfigError, SampleError
from cal_schemas.sample import IMAGE_MARK, Turn

Template = Literal["auto", "plain", "vicuna_v1"]

VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_log = logging.getLogger(__name__)
_warned: set[str] = set()
"""Templates that were warned of already."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """Text before image placeholders are expanded, and its supervised character spans [start, stop)."""

    text: str
    label_spans: tuple[tuple[int, int], ...]


def render_plain(messages: Sequence[Turn], image_token: str) -> Rendered:
    """LLaVA's pretraining template: the image, then the caption and a newline; the question is not shown."""
    if [turn.role for turn in messages] != ["user", "assistant"]:
        raise SampleError(f"template 'plain' takes one question and one answer, got {[t.role for t in messages]}")
    question, answer = messages
    text = image_token * question.content.count(IMAGE_MARK)
    caption = answer.content.replace(IMAGE_MARK, image_token) + "\n"
    return Rendered(text=text + caption, label_spans=((len(text), len(text) + len(caption)),))


def render_vicuna_v1(messages: Sequence[Turn], image_token: str, eos_token: str) -> Rendered:
    """LLaVA-1.5's finetuning template, as the released code writes it, including its handling of empty answers."""
    turns = list(messages)
    system = turns.pop(0).content if turns and turns[0].role == "system" else VICUNA_SYSTEM
    if turns and turns[0].role == "assistant":
        turns.pop(0)  # The released code skips an opening answer: there is nothing to answer.
    expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
    if [turn.role for turn in turns] != expected:
        raise SampleError(f"template 'vicuna_v1' needs alternating turns, got {[turn.role for turn in messages]}")
    text = system + " "
    spans = []
    for turn in turns:
        content = turn.content.replace(IMAGE_MARK, image_token)
        name, end = ("USER:", " ") if turn.role == "user" else ("ASSISTANT:", eos_token)
        start = len(text) + len(name)
        text += f"{name} {content}{end}" if content else name
        if turn.role == "assistant" and content:
            spans.append((start, len(text)))
    return Rendered(text=text, label_spans=tuple(spans))


def image_first(turn: Turn) -> Turn:
    """Moves a turn's image mark to its front, on a line of its own, as the released code does before vicuna_v1.

    Several marks in one turn stay where they are (the released code merges them into one).
    """
    if turn.content.count(IMAGE_MARK) != 1:
        return turn
    return Turn(role=turn.role, content=f"{IMAGE_MARK}\n{turn.content.replace(IMAGE_MARK, '').strip()}".strip())


def render_chat(messages: Sequence[Turn], processor: Any, specials: Sequence[str]) -> Rendered:
    """The processor's own chat template.

    For each assistant turn i the span is what rendering(turns[: i + 1]) adds to rendering(turns[:i] + generation
    prompt), cut behind the last special token that follows the words (a newline after the end token is the
    template's, not the assistant's). Raises SampleError when a rendering is no prefix of the whole.
    """
    conversation = [_parts(turn) for turn in messages]
    full = _render(processor, conversation, generation_prompt=False)
    spans = []
    for number, turn in enumerate(messages):
        if turn.role != "assistant":
            continue
        # Nothing to render before an opening answer; many templates fail on an empty conversation.
        prefix = _render(processor, conversation[:number], generation_prompt=True) if number else ""
        upto = full if number + 1 == len(messages) else _render(processor, conversation[: number + 1])
        if not full.startswith(upto) or not upto.startswith(prefix):
            raise SampleError(
                f"the chat template's rendering of turns 0-{number} is no prefix of the whole conversation, "
                "so its words cannot be located; use another --template"
            )
        if words := _words(upto, len(prefix), turn.content):
            prompted = number and prefix != _render(processor, conversation[:number])
            # A template that ignores the generation prompt leaves the role's header to the answer: it is no word of it.
            start = len(prefix) if prompted or not upto[len(prefix) : words[0]].strip() else words[0]
            spans.append((start, _end_of_turn(upto, words[1], specials, chat_template(processor))))
    return Rendered(text=full, label_spans=tuple(spans))


def _parts(turn: Turn) -> dict[str, Any]:
    """A turn in the layout chat templates read; a newline beside an image mark is the template's to choose."""
    if IMAGE_MARK not in turn.content:
        return {"role": turn.role, "content": [{"type": "text", "text": turn.content}]}
    parts: list[dict[str, str]] = []
    for number, text in enumerate(re.split(rf"\n?{re.escape(IMAGE_MARK)}\n?", turn.content)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": text}] if text else []
    return {"role": turn.role, "content": parts}


def _render(processor: Any, conversation: list[dict[str, Any]], generation_prompt: bool = False) -> str:
    try:
        return str(processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=generation_prompt))
    except Exception as error:  # A template is a program of the model's author; it may raise anything.
        roles = [turn["role"] for turn in conversation]
        raise SampleError(f"the chat template fails on the roles {roles}: {type(error).__name__}: {error}") from error


def _words(text: str, start: int, content: str) -> tuple[int, int] | None:
    """Where the assistant's words begin and end in `text`; None when there are none. An image may interrupt them."""
    begin = end = None
    for words in (part.strip() for part in content.split(IMAGE_MARK)):
        if words:
            at = text.find(words, start if end is None else end)
            if at < 0:
                raise SampleError("the chat template changes the assistant's words, so they cannot be located")
            begin = at if begin is None else begin
            end = at + len(words)
    return None if begin is None or end is None else (begin, end)


def _end_of_turn(text: str, words_end: int, special_tokens: Sequence[str], source: str) -> int:
    tail = text[words_end:]
    ends = [tail.rfind(token) + len(token) for token in special_tokens if token in tail]
    if not ends and source not in _warned:
        _warned.add(source)
        _log.warning("the chat template puts no end token behind an answer: its end will not be supervised")
    return words_end + max(ends, default=0)


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Every token that text is not normally made of: the declared ones and those only marked special on disk."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added.union(tokenizer.all_special_tokens)))


def render(messages: Sequence[Turn], template: Template, processor: Any, specials: Sequence[str]) -> Rendered:
    """One conversation by the chosen template; see the functions above for what each raises."""
    image_token = str(processor.image_token)
    if template == "plain":
        return render_plain(messages, image_token)
    if template == "vicuna_v1":
        return render_vicuna_v1(
            [image_first(turn) for turn in messages], image_token, str(processor.tokenizer.eos_token)
        )
    return render_chat(messages, processor, specials)


def check_template(template: Template, processor: Any) -> None:
    """ConfigError when the template cannot work with this processor at all."""
    if template == "vicuna_v1" and processor.tokenizer.eos_token is None:
        raise ConfigError("--template vicuna_v1 ends answers with the tokenizer's eos token, and it has none")
    if template == "auto" and not chat_template(processor):
        raise ConfigError(
            f"{type(processor).__name__} has no chat template: use --template plain or vicuna_v1, or save one with it"
        )


def chat_template(processor: Any) -> str:
    """The template's source, the processor's own or its tokenizer's; empty when there is none."""
    for owner in (processor, getattr(processor, "tokenizer", None)):
        found = getattr(owner, "chat_template", None)
        if isinstance(found, dict):
            found = found.get("default")
        if found:
            return str(found)
    return ""
