"""From the loosely typed values of any source row to a Sample; what does not fit becomes its `problem`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cal_schemas.sample import IMAGE_MARK, ImageRef, Sample, Turn

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
}
MAX_ROW_TEXT_BYTES = 64 * 2**20
"""Of one row as its source spells it; a longer one is not read into memory."""
_SURROGATES = re.compile("[\ud800-\udfff]+")


class RowError(ValueError):
    """This row cannot be parsed; caught here, it becomes the sample's `problem`."""


def sample_from_row(
    *,
    row_id: str,
    source_id: Any,
    images: Any,
    turns: Any,
    caption: str | None,
    carried: Mapping[str, Any],
    problem: str | None = None,
) -> Sample:
    """Builds a Sample from a row's values.

    Args:
        row_id: `<shard>/<row>`, used when the source has no id of its own.
        source_id: the source's id, of any scalar type, or None.
        images: None, a path, bytes, a Hugging Face image struct, or a list of those.
        turns: list of `{from, value}` or `{role, content}`; content may be text or a list of typed parts.
        caption: used when `turns` is None: every image is marked in a user turn, the caption is the answer.
        carried: the source's other columns under their output names.
        problem: why the row cannot be used, where that is known before.
    """
    replaced: list[str] = []

    def clean(text: str, where: str) -> str:
        if _SURROGATES.search(text):
            replaced.append(where)
            return _SURROGATES.sub("\ufffd", text)
        return text

    refs: tuple[ImageRef, ...] = ()
    messages: tuple[Turn, ...] | None = None
    sample_id = row_id if source_id is None else clean(str(source_id), "id")
    try:
        refs = tuple(
            ImageRef(data=ref.data, path=None if ref.path is None else clean(ref.path, "image path"))
            for ref in _image_refs(images)
        )
        if problem is not None:
            raise RowError(problem)
        if turns is not None:
            messages = tuple(
                Turn(role=turn.role, content=clean(turn.content, f"turn {number}"))
                for number, turn in enumerate(_turns(turns))
            )
        elif caption is not None:
            messages = (
                Turn(role="user", content="\n".join([IMAGE_MARK] * len(refs))),
                Turn(role="assistant", content=clean(caption, "caption")),
            )
        else:
            raise RowError("no conversation: neither messages, conversations, text nor caption is set")
    except RowError as error:
        problem, messages = str(error), None
    note = f"characters that are not UTF-8 were replaced by U+FFFD in: {', '.join(replaced)}" if replaced else None
    return Sample(sample_id=sample_id, images=refs, messages=messages, problem=problem, note=note, carried=carried)


def _image_refs(value: Any) -> list[ImageRef]:
    if value is None:
        return []
    if isinstance(value, str):
        return [ImageRef(path=value)] if value else []
    if isinstance(value, bytes):
        return [ImageRef(data=value)]
    if isinstance(value, Mapping):
        data, path = value.get("bytes"), value.get("path")
        if not isinstance(data, bytes | None) or not isinstance(path, str | None):
            raise RowError(
                f"image has bytes of {type(data).__name__} and a path of {type(path).__name__}; "
                "expected bytes and a string"
            )
        return [ImageRef(data=data, path=path)]
    if isinstance(value, list):
        return [ref for item in value for ref in _image_refs(item)]
    raise RowError(f"image is {type(value).__name__}; expected a path, bytes, {{bytes, path}} or a list of those")


def _turns(value: Any) -> list[Turn]:
    if not isinstance(value, list) or not value:
        raise RowError(f"conversation is {'an empty list' if value == [] else type(value).__name__}; expected turns")
    turns = []
    for number, item in enumerate(value):
        if not isinstance(item, Mapping):
            raise RowError(f"turn {number} is {type(item).__name__}; expected an object")
        role = item.get("role") if item.get("from") is None else item["from"]
        if not isinstance(role, str) or role not in _ROLES:
            raise RowError(f"turn {number} has the role {role!r}; expected one of {', '.join(_ROLES)}")
        content = item.get("content") if item.get("value") is None else item["value"]
        turns.append(Turn(role=_ROLES[role], content=_content(content, number)))
    return turns


def _content(value: Any, number: int) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise RowError(f"turn {number} has content of type {type(value).__name__}; expected text or typed parts")
    parts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            parts.append(IMAGE_MARK)
        elif kind == "text":
            if not isinstance(text := part.get("text"), str):
                raise RowError(f"turn {number} has a text part whose text is {type(text).__name__}")
            parts.append(text)
        else:
            raise RowError(f"turn {number} has a content part of type {kind!r}; expected 'text' or 'image'")
    # Texts join as they are, as in a chat template; a mark stands on a line of its own, as in LLaVA's data.
    joined = ""
    for part in parts:
        beside_mark = joined and IMAGE_MARK in (part, joined[-len(IMAGE_MARK) :])
        joined += ("\n" if beside_mark else "") + part
    return joined
