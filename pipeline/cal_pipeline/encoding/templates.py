"""Renders a conversation by the templates that are built in, and says which characters are supervised.

chat.py does it by a processor's own chat template.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cal_schemas.errors import ConfigError, SampleError
from cal_schemas.sample import IMAGE_MARK, Turn
from cal_schemas.spec import VICUNA_SYSTEM, Template

_HOLDERS = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")
"""Files that may hold a model's chat template; transformers 5.23 takes the first that does."""
_log = logging.getLogger(__name__)


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
    span = (len(text), len(text) + len(caption))
    return Rendered(text=text + caption, label_spans=(span,) if answer.supervised else ())


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
        if turn.role == "assistant" and turn.supervised and content:
            spans.append((start, len(text)))
    return Rendered(text=text, label_spans=tuple(spans))


def image_first(turn: Turn) -> Turn:
    """Moves a turn's image mark to its front, on a line of its own, as the released code does before vicuna_v1.

    Several marks in one turn stay where they are (the released code merges them into one).
    """
    if turn.content.count(IMAGE_MARK) != 1:
        return turn
    return replace(turn, content=f"{IMAGE_MARK}\n{turn.content.replace(IMAGE_MARK, '').strip()}".strip())


def image_placeholder(processor: Any) -> str:
    """What a processor takes for one image in a text: Qianfan-OCR's is not the token that it writes in its place."""
    token = getattr(processor, "image_placeholder_token", None) or getattr(processor, "image_token", "<image>")
    return str(token)  # BLIP-2 keeps it as an AddedToken


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Every token that text is not normally made of: the declared ones and those only marked special on disk."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return tuple(sorted(added.union(tokenizer.all_special_tokens)))


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
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if template:
            return str(template)
    return ""


def warn_of_other_templates(processor: Any, directory: Path) -> None:
    """One warning where files of a model's directory hold another chat template than the one that is used."""
    used = chat_template(processor).rstrip("\n")
    held = {name: template.rstrip("\n") for name in _HOLDERS if (template := _template_in(directory / name))}
    if others := [name for name, template in held.items() if used and template != used]:
        where = next((name for name, template in held.items() if template == used), type(processor).__name__)
        _log.warning(
            "%s: the chat template is that of %s, as transformers takes it; %s has another, which counts only when the "
            "former is removed", directory, where, " and ".join(others),
        )  # fmt: skip


def _template_in(file: Path) -> str:
    if not file.is_file():
        return ""
    text = file.read_text(encoding="utf-8")
    template = text if file.suffix == ".jinja" else json.loads(text).get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}
    return str((template.get("default") if isinstance(template, dict) else template) or "")
