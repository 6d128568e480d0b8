"""Finds a row's conversation by its keys; refuses by name what would change it and cannot be honoured.

docs/data-format.md, section 7, has the table of the layouts that people have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

from cal_pipeline.sources.pairs import FOREIGN_IMAGE_MARK, PAIRS, from_pair, with_marks
from cal_pipeline.sources.turns import OTHER_MEDIA, Conversation, read_turns, validate_media
from cal_pipeline.sources.values import IMAGE_KEYS, RowError, is_empty, json_value, learned, parsed, words_of
from cal_schemas.annotated import sample_from_columns
from cal_schemas.sample import IMAGE_MARK, Sample, Turn

TURN_KEYS = ("messages", "conversations")
CAPTION_KEYS = ("text", "caption")
"""The first that is set."""
ID_KEYS = ("sample_id", "id")
_SYSTEM_WORDS = frozenset(["system", "prompt", "message", "instruction", "instructions"])
_WEIGHTS = ("weight", "weights", "loss_weight", "loss_weights", "sample_weight", "loss_scale", "loss_mask",
            "token_weights", "completion_mask", "assistant_masks")  # fmt: skip
_FLAGS = ("loss", "train", "trainable")
OTHER_KEYS = (*IMAGE_KEYS, *ID_KEYS, *_WEIGHTS, "tools", "template_inputs")
"""Read of a row beside its turns."""
_PREFERENCES = ("chosen", "rejected", "rejected_response", "rejected_messages", "kto_tag")
_OTHER_MARK = re.compile(rf"^(?:[^\S\n]|{IMAGE_MARK})*<(video|audio)>[^\S\n]*(?:{IMAGE_MARK}|$)", re.MULTILINE)
"""On a line of its own LLaVA's data and LLaMA-Factory's have a video or a sound; beside words it is taken for a tag."""
_BOXES = re.compile(r"<(bbox|ref-object)>")
ROW_KEYS = frozenset(
    [*TURN_KEYS, *CAPTION_KEYS, *ID_KEYS, *IMAGE_KEYS, *_WEIGHTS, *_FLAGS, *_PREFERENCES, "template_inputs",
     "tools", "functions", "chat_template_kwargs", "segments", "objects", "label", *OTHER_MEDIA,
     *(key for question, answer, others in PAIRS for key in (question, answer, *others))]
)  # fmt: skip
"""Keys of a row that are looked at, beside those of the system prompt."""


def is_system_key(key: str) -> bool:
    """True for a key of a row that says the system prompt: `system`, `system_prompt`, `systemMessage` and the like."""
    words = words_of(key)
    return "system" in words and words <= _SYSTEM_WORDS


def is_row_key(key: str) -> bool:
    """True for a row's key that is looked at; of all others nothing is made."""
    return key in ROW_KEYS or is_system_key(key)


def read_row(values: Mapping[str, Any], num_images: int) -> tuple[Conversation, list[Any] | None]:
    """The conversation of a row, and its tools; RowError naming a key that would change it and cannot be honoured.

    `num_images` are marked in a caption's question.
    """
    validate_media(values, "the row")
    _validate_objective(values)
    conversation, *rest = _conversations(values) or [_from_caption(values, num_images)]
    for item in (conversation, *rest):
        with_marks(item, num_images)
    for other in rest:
        if other.turns != conversation.turns:
            both = ", and ".join(" with ".join(item.keys[:2]) for item in (conversation, other))
            raise RowError(f"the row has {both}, and they differ: keep one of the two")
    tools = _tools(values.get("tools"))
    if isinstance(inputs := values.get("template_inputs"), str):
        conversation, tools = _as_annotated(inputs, conversation, tools)
    _validate_boxes(values, conversation)
    _validate_marks(conversation, num_images + len(conversation.images))
    conversation.turns = _with_system(values, conversation.turns)
    keys = (key for item in (conversation, *rest) for key in item.keys)
    conversation.keys = (*keys, *OTHER_KEYS, *filter(is_system_key, values))
    return conversation, tools


def _conversations(values: Mapping[str, Any]) -> list[Conversation]:
    """Every conversation that the row spells out."""
    conversations = [
        replace(read_turns(values[key]), keys=(key,)) for key in TURN_KEYS if not is_empty(values.get(key))
    ]
    for question, answer, others in PAIRS:
        if not is_empty(values.get(question)) and not is_empty(values.get(answer)):
            conversations.append(from_pair(values, question, answer, others))
    return conversations


def _from_caption(values: Mapping[str, Any], num_images: int) -> Conversation:
    """The caption as the answer to the images; an assistant's turn that no question goes before is none."""
    said = [key for key in CAPTION_KEYS if not is_empty(values.get(key))]
    for key in said or CAPTION_KEYS:
        caption = values.get(key)
        if caption is not None:
            if not isinstance(caption, str):
                raise RowError(f"{key!r} is {type(caption).__name__}; expected text")
            marks = "\n".join([IMAGE_MARK] * num_images)
            turns = [Turn(role="user", content=marks), Turn(role="assistant", content=caption)]
            return Conversation(turns=turns, keys=(key,))
    for key in TURN_KEYS:
        if values.get(key) is not None:  # Turns that say nothing: it tells what is wrong with them.
            return read_turns(values[key])
    raise RowError(
        "no conversation: neither messages, conversations, text nor caption is set, nor a question with its answer"
    )


def _with_system(values: Mapping[str, Any], turns: list[Turn]) -> list[Turn]:
    """The turns after the system prompt that stands beside them."""
    beside = {key: value for key, value in values.items() if is_system_key(key) and not is_empty(value)}
    for key, prompt in beside.items():
        if not isinstance(prompt, str):
            raise RowError(f"{key!r} is {type(prompt).__name__}; expected text")
        if not prompt.strip():
            continue
        if turns[0].role != "system":
            turns = [Turn(role="system", content=prompt), *turns]
        elif turns[0].content.strip() != prompt.strip():
            raise RowError(f"{key!r} says {prompt[:60]!r} and the system turn {turns[0].content[:60]!r}: keep one of "
                           "the two")  # fmt: skip
    return turns


def _tools(value: Any) -> list[Any] | None:
    if isinstance(value, str):
        value = parsed(value, "'tools'") if value.strip() else None
    if is_empty(value):
        return None
    if not isinstance(value, list):
        raise RowError(f"'tools' is {type(value).__name__}; expected a list of functions")
    # Each as text is how a column of Parquet keeps objects that differ.
    items = [parsed(item, "'tools'") if isinstance(item, str) else item for item in value]
    return [json_value(item, "'tools'") for item in items]


def _as_annotated(
    inputs: str, conversation: Conversation, tools: list[Any] | None
) -> tuple[Conversation, list[Any] | None]:
    """Adds what an annotated shard, measured once more, says of its turns."""
    messages = [{"role": turn.role, "content": turn.content} for turn in conversation.turns]
    try:
        sample: Sample = sample_from_columns({"sample_id": "", "messages": messages, "template_inputs": inputs})
    except (ValueError, AttributeError, TypeError) as error:
        raise RowError(f"'template_inputs' does not fit the messages: {error}") from error
    conversation.turns = [
        replace(theirs, supervised=mine.supervised and theirs.supervised, extra={**mine.extra, **theirs.extra})
        for mine, theirs in zip(conversation.turns, sample.messages or (), strict=True)
    ]
    return conversation, tools if sample.tools is None else list(sample.tools)


def _validate_objective(values: Mapping[str, Any]) -> None:
    preferences = [
        key
        for key in _PREFERENCES
        if (isinstance(value := values.get(key), str | list | Mapping) and not is_empty(value))
        or (key == "kto_tag" and isinstance(value, bool))
    ]
    if preferences:
        raise RowError(f"the row has {' and '.join(map(repr, preferences))}: preferences are not learned here; leave "
                       "them out, with the answer to learn as 'completion' or in 'messages'")  # fmt: skip
    for key in _WEIGHTS:
        weight = values.get(key)
        numbers = any(map(_is_number, weight if isinstance(weight, list) else [weight]))
        if numbers and not learned(key, weight, "the row"):
            raise RowError(f"the row has {key!r} {weight!r}: nothing of it is learned; leave it out of the data")
    for key in _FLAGS:
        if values.get(key) is False:
            raise RowError(f"the row has {key!r} False: leave it out of the data, if nothing of it is to be learned")
    for key, way_out in (("functions", "give them as 'tools'"), ("chat_template_kwargs", "leave it out")):
        if isinstance(value := values.get(key), str | list | Mapping) and json_value(value, repr(key)):
            raise RowError(f"the row has {key!r} {json.dumps(value, default=str)[:80]}, which chat templates do "
                           f"not get here: {way_out}")  # fmt: skip
    segments = values.get("segments")
    if isinstance(segments, list) and any(isinstance(item, Mapping) and "text" in item for item in segments):
        raise RowError("the row has 'segments', text that follows no chat template: give turns as 'messages'")


def _is_number(value: Any) -> bool:
    """True for a number, and for text that spells one: other weights are those of things."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return False
    return isinstance(value, bool | int | float | Decimal | str)


def _validate_boxes(values: Mapping[str, Any], conversation: Conversation) -> None:
    if not is_empty(values.get("objects")) and (
        mark := next((match for turn in conversation.turns if (match := _BOXES.search(turn.content))), None)
    ):
        raise RowError(f"the row has 'objects' for {mark[0]}, whose spelling depends on the model: write the boxes "
                       "into the text")  # fmt: skip


def _validate_marks(conversation: Conversation, num_images: int) -> None:
    """RowError for the mark of a video or a sound, and for an image of another spelling in a row that has none."""
    for number, turn in enumerate(conversation.turns):
        if turn.role == "assistant":
            continue
        mark = _OTHER_MARK.search(turn.content)
        if mark and f"</{mark[1]}>" not in turn.content:
            raise RowError(f"turn {number} has the mark <{mark[1]}>; only images are known")
        if not num_images and (spelled := FOREIGN_IMAGE_MARK.search(turn.content)):
            raise RowError(f"turn {number} has {spelled[0][:80]!r} and the row no image: give it as 'image', with the "
                           f"mark {IMAGE_MARK}")  # fmt: skip
