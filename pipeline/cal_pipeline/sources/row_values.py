"""Judges single values of a source row: whether they say anything, and whether they say what is learned."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

_LEARNING = frozenset(["loss", "weight", "weights", "train", "trained", "trainable", "training", "learn", "learned",
                       "learnable", "mask", "supervise", "supervised"])  # fmt: skip
_LEAVES_OUT = frozenset(["masked", "ignore", "ignored", "skip", "skipped", "exclude", "excluded",
                         "unsupervised"])  # fmt: skip
_AUXILIARIES = frozenset(["is", "be", "to"])
_DENIES = frozenset(["no", "not", "dont", "without"])
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")


class RowError(ValueError):
    """This row cannot be read as it is meant; it becomes the sample's `problem`."""


def is_wide_text(head: bytes, *, json: bool = True) -> bool:
    """True for the first bytes of text in UTF-16 or UTF-32: by its byte order mark, or of JSON by a zero."""
    return (
        head[:2] in (b"\xff\xfe", b"\xfe\xff")
        or head[:4] == b"\0\0\xfe\xff"
        or (json and 0 in head[:4] and any(head[:4]))
    )


@lru_cache(1024)
def words_of(key: str) -> frozenset[str]:
    """The words of a key: `loss_weight`, `lossWeight` and `loss-weight` have the same two."""
    return frozenset(word.lower() for word in _WORD.findall(key))


def is_null(value: Any) -> bool:
    """Null, or NaN, which is pandas' null."""
    return value is None or (isinstance(value, float) and value != value)


def is_empty(value: Any) -> bool:
    """True for a value that says nothing: null, empty text, or a list or object of such."""
    if not value:
        return value is None or value is False or isinstance(value, (str, bytes, list, tuple, Mapping))
    if isinstance(value, (list, tuple)):
        return all(map(is_empty, value))
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return is_null(value)


@lru_cache(1024)
def is_learning_key(key: str) -> bool:
    """True for a key of a turn that says how much is learned from it."""
    words = words_of(key)
    return bool(words & _LEARNING) or (bool(words & _LEAVES_OUT) and words <= _LEAVES_OUT | _AUXILIARIES)


def learned(key: str, value: Any, where: str) -> bool:
    """True where a learning key keeps its turn; RowError for all but 0 and 1 (or false and true)."""
    words = words_of(key)
    leaves_out = bool(words & (_LEAVES_OUT | _DENIES))
    if leaves_out and is_empty(value or None):
        return True
    if leaves_out or ("mask" in words and isinstance(value, bool)):
        raise RowError(f"{where} has {key!r} {value!r}, and layouts differ in whether that is learned or left out: say "
                       "it as 'loss': true or false")  # fmt: skip
    if isinstance(value, bool | int | float | Decimal) and value in (0, 1):
        return bool(value)
    raise RowError(f"{where} has {key!r} {value!r}; only 0 and 1 (or false and true) are known: all learned tokens "
                   "count alike before CAL weighs them")  # fmt: skip


def json_value(value: Any, where: str) -> Any:
    """A value for a chat template, without the nulls that Arrow gives to keys an object lacks; RowError for no JSON."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item, where) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [json_value(item, where) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RowError(f"{where} holds {type(value).__name__}, which is no JSON value")


def parsed(text: str, where: str) -> Any:
    """JSON that a layout keeps as text; RowError when it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"{where} is text, and no JSON: {error}") from error
