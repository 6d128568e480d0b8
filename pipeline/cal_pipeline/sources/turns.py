"""Reads a conversation into turns: roles, contents, images, what is learned, and what a chat template gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cal_pipeline.sources.column_types import PARSE_IT
from cal_pipeline.sources.values import (
    IMAGE_KEYS,
    RowError,
    image_refs,
    is_empty,
    is_learning_key,
    json_value,
    learned,
    own_images,
    parsed,
)
from cal_schemas.sample import IMAGE_MARK, ImageRef, Turn

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_CALLS = ("function_call", "tool_call")
"""Roles whose content is the call itself, as JSON."""
_FOR_TEMPLATE = ("reasoning_content", "reasoning", "thinking", "tool_calls", "tool_call_id")
OTHER_MEDIA = ("video", "videos", "audio", "audios")
_READ = frozenset(
    ["role", "from", "content", "value", "function_call", "refusal", *_FOR_TEMPLATE, *OTHER_MEDIA, *IMAGE_KEYS]
)
_IMAGE_PARTS = ("image", "image_url", "input_image")
_TEXT_PARTS = ("text", "input_text", "output_text")
_IMAGE_SOURCES = ("image", "image_url", "path", "url", "base64", "bytes")
_HARMLESS_IN_PART = ("type", "detail", "id", "index")


@dataclass(kw_only=True, slots=True)
class Conversation:
    """Turns, and the images that stand inside them."""

    turns: list[Turn]
    images: list[ImageRef] = field(default_factory=list)
    unread: set[str] = field(default_factory=set)
    """Keys of turns that nothing was made of."""
    keys: tuple[str, ...] = ()
    """Keys of the row that the turns stand under."""


def validate_media(values: Mapping[str, Any], what: str) -> None:
    """RowError where a row or a turn shows a video or plays a sound."""
    for key in OTHER_MEDIA:
        if key in values and not is_empty(values[key]):
            raise RowError(f"{what} has {key!r}: {'a video' if 'video' in key else 'sound'}; only images are known")


def read_turns(value: Any) -> Conversation:
    """Reads a list of `{from, value}` or `{role, content}`; RowError naming the turn and the key that does not fit."""
    if not isinstance(value, list) or not value:
        what = "an empty list" if value == [] else type(value).__name__
        raise RowError(f"conversation is {what}; expected turns{PARSE_IT if isinstance(value, str) else ''}")
    conversation = Conversation(turns=[])
    for number, item in enumerate(value):
        where = f"turn {number}"
        if not isinstance(item, Mapping):
            raise RowError(f"{where} is {type(item).__name__}; expected an object")
        validate_media(item, where)
        if not is_empty(item.get("refusal")):
            raise RowError(f"{where} has 'refusal': what the assistant would not say is not learned here")
        for one, other in (("from", "role"), ("value", "content")):
            if not is_empty(item.get(one)) and not is_empty(item.get(other)) and item[one] != item[other]:
                raise RowError(f"{where} has {one!r} and {other!r}, and they differ: keep one of the two")
        spelled = item.get("role") if is_empty(item.get("from")) else item["from"]
        if not isinstance(spelled, str) or spelled not in _ROLES:
            raise RowError(f"{where} has the role {spelled!r}; expected one of {', '.join(_ROLES)}")
        text_key = "value" if item.get("content") is None or not is_empty(item.get("value")) else "content"
        content, inline = _content(item.get(text_key), item, where)
        if own := own_images(item, where):
            if (inline and inline != own) or len(own) != content.count(IMAGE_MARK):
                raise RowError(f"{where} has {len(own)} images of its own and {content.count(IMAGE_MARK)} marks "
                               f"{IMAGE_MARK}")  # fmt: skip
            inline = own
        conversation.images += inline
        extra = _extra(item, _ROLES[spelled], where)
        if spelled in _CALLS:
            extra["tool_calls"] = [*extra.get("tool_calls", []), *_calls(content, f"{where}, a {spelled},")]
            content = ""
        conversation.turns.append(
            Turn(role=_ROLES[spelled], content=content, supervised=_learned(item, _ROLES[spelled], where), extra=extra)
        )
        read = _READ | {"name"} if _ROLES[spelled] == "tool" else _READ
        conversation.unread |= {
            str(key)
            for key, value in item.items()
            if key not in read and (value is False or not is_empty(value)) and not is_learning_key(str(key))
        }
    return conversation


def _learned(item: Mapping[str, Any], role: str, where: str) -> bool:
    kept = True
    for key, value in item.items():
        # An empty list, of stretches of the turn say, says nothing; NaN may be a weight that went wrong.
        if value in (None, "", [], {}) or key in _READ or not is_learning_key(str(key)):
            continue
        mine = learned(str(key), value, where)
        if mine and role != "assistant" and "train" in str(key).lower():
            raise RowError(f"{where} ({role}) has {key!r} {value!r}: only the assistant's turns are learned")
        kept = kept and mine
    return kept or role != "assistant"


def _extra(item: Mapping[str, Any], role: str, where: str) -> dict[str, Any]:
    """Collects what a chat template reads of a turn beside role and content."""
    extra = {
        key: json_value(item[key], f"{where}: {key!r}")
        for key in _FOR_TEMPLATE
        if key in item and not is_empty(item[key])
    }
    if role == "tool" and not is_empty(item.get("name")):  # Of a person it is a label that templates do not show.
        extra["name"] = json_value(item["name"], f"{where}: 'name'")
    if isinstance(calls := extra.get("tool_calls"), str):
        calls = parsed(calls, f"{where}: 'tool_calls'")
    calls = [] if calls is None else _calls(calls, f"{where}: 'tool_calls'")
    if not is_empty(item.get("function_call")):  # What OpenAI had before tool_calls.
        calls += _calls(item["function_call"], f"{where}: 'function_call'")
    return extra | ({"tool_calls": calls} if calls else {})


def _calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Calls as chat templates take them: `{type, function: {name, arguments}}`, arguments no text but an object."""
    value = json_value(parsed(value, where) if isinstance(value, str) else value, where)
    calls = []
    for call in value if isinstance(value, list) else [value]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RowError(f"{where} holds no call of a function with a name")
        if isinstance(arguments := function.get("arguments"), str) and arguments.strip().startswith("{"):
            function = {**function, "arguments": parsed(arguments, f"{where}: arguments")}
        calls.append({"type": "function", **call, "function": function} if "function" in call
                     else {"type": "function", "function": function})  # fmt: skip
    return calls


def _content(value: Any, item: Mapping[str, Any], where: str) -> tuple[str, list[ImageRef]]:
    """Text with a mark for each image, and the images that its parts bring along."""
    if isinstance(value, str):
        return value, []
    if value is None and not (is_empty(item.get("tool_calls")) and is_empty(item.get("function_call"))):
        return "", []
    if not isinstance(value, list):
        raise RowError(f"{where} has content of type {type(value).__name__}; expected text or typed parts")
    parts: list[str] = []
    images: list[ImageRef] = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in _IMAGE_PARTS:
            images += _part_images(part, where)
            parts.append(IMAGE_MARK)
        elif kind in _TEXT_PARTS:
            if not isinstance(text := part.get("text"), str):
                raise RowError(f"{where} has a text part whose text is {type(text).__name__}")
            if shown := [key for key in (*IMAGE_KEYS, "image_url", *OTHER_MEDIA) if not is_empty(part.get(key))]:
                raise RowError(f"{where} has a text part with {shown[0]!r}, which some chat templates show and others "
                               "do not: make it a part of its own")  # fmt: skip
            parts.append(text)
        else:
            raise RowError(f"{where} has a content part of type {kind!r}; expected 'text' or 'image'")
        for key, weight in part.items():
            if is_learning_key(str(key)) and weight is not None and not learned(str(key), weight, where):
                raise RowError(f"{where} has a content part with {key!r} {weight!r}: a turn is learned as a whole")
    # Texts join as they are, as in a chat template; a mark stands on a line of its own, as in LLaVA's data.
    joined = ""
    for text in parts:
        beside_mark = joined and IMAGE_MARK in (text, joined[-len(IMAGE_MARK) :])
        joined += ("\n" if beside_mark else "") + text
    return joined, images


def _part_images(part: Mapping[str, Any], where: str) -> list[ImageRef]:
    given = {str(key): item for key, item in part.items() if key not in _HARMLESS_IN_PART and not is_empty(item)}
    if unknown := sorted(key for key in given if key not in _IMAGE_SOURCES and not is_learning_key(key)):
        raise RowError(f"{where} has an image part with {', '.join(map(repr, unknown))}; known are "
                       f"{', '.join(_IMAGE_SOURCES)}")  # fmt: skip
    images: list[ImageRef] = []
    for key in _IMAGE_SOURCES:
        value = given.get(key)
        if isinstance(value, Mapping) and "url" in value:
            value = value["url"]
        if key == "base64" and isinstance(value, str):
            value = f"data:;base64,{value}"
        refs = image_refs(value)
        if len(refs) > 1 or (images and refs and refs != images):
            raise RowError(f"{where} has an image part that names more than one image")
        images = images or refs
    return images
