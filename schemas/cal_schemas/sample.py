"""Defines one raw image-text example, whatever format it came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IMAGE_MARK = "<image>"
"""Stands in a turn's content where an image belongs, as in LLaVA's data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One utterance; `content` holds one `<image>` mark per image it shows."""

    role: str
    content: str
    supervised: bool = True
    """False where the source says that this turn is not to be learned; only an assistant's turn has labels anyway."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else of the turn belongs to a chat template (`reasoning_content`, `tool_calls`, …): JSON values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRef:
    """An image, encoded as in its file; at least one of the two is set in a usable sample."""

    data: bytes | None = None
    """The encoded file (PNG, JPEG, …), when the source embeds it."""
    path: str | None = None
    """As the source spells it: relative to the image folder for LLaVA data."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image-text example; `images` are in the order of the `<image>` marks."""

    sample_id: str
    images: tuple[ImageRef, ...]
    messages: tuple[Turn, ...] | None
    """None when the source row could not be parsed; `problem` then says why."""
    problem: str | None = None
    note: str | None = None
    """Something the reader of the row should know although the sample is usable (replaced characters)."""
    tools: Sequence[Any] | None = None
    """The functions that a chat template describes to the model: JSON values."""
    pass_through: Mapping[str, Any] = field(default_factory=dict)
    """The source's other columns, under their output names: Arrow arrays of one value, or Python values."""
    unread: tuple[str, ...] = field(default=(), compare=False)
    """Keys of the row, as its source has it, that nothing was made of."""

    @property
    def num_bytes(self) -> int:
        """About what its images, its words and its pass-through binary and text values take in memory."""
        images = sum(len(image.data or b"") for image in self.images)
        words = sum(len(turn.content) for turn in self.messages or ())
        return images + words + sum(_size(value) for value in self.pass_through.values())


def _size(value: Any) -> int:
    return len(value) if isinstance(value, bytes | str) else int(getattr(value, "nbytes", 0))


def sample_key(sample: Sample) -> str:
    """Digest of images and messages, 32 hex digits: equal for equal content, wherever the row lies.

    An embedded image counts by its bytes, any other by its path: a join must not open a million files.
    A row that could not be parsed counts by its id and problem.
    """
    digest = hashlib.blake2b(digest_size=16)

    def feed(tag: bytes, value: bytes) -> None:
        # Lengths make the framing unambiguous: ("ab", "c") and ("a", "bc") differ.
        digest.update(tag + len(value).to_bytes(8, "little") + value)

    def feed_json(tag: bytes, value: Any) -> None:
        feed(tag, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())

    for image in sample.images:
        if image.data is not None:
            feed(b"b", hashlib.blake2b(image.data, digest_size=16).digest())
        else:
            feed(b"p", (image.path or "").encode())
    if sample.messages is None:
        feed(b"i", sample.sample_id.encode())
        feed(b"!", (sample.problem or "").encode())
    for turn in sample.messages or ():
        feed(b"r", turn.role.encode())
        feed(b"c", turn.content.encode())
        # Only where they are used: the key of any other sample is what it was before they were known.
        if not turn.supervised:
            feed(b"s", b"0")
        if turn.extra:
            feed_json(b"x", turn.extra)
    if sample.tools is not None:
        feed_json(b"t", sample.tools)
    return digest.hexdigest()
