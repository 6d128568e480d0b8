"""All that a delta depends on. The spec travels in every annotated shard, and readers compare it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar

from cal_schemas.errors import ConfigError, FormatError

MESSAGE_NORMALIZATION = 1
"""Version of the rules by which the encoder brings a source's turns into template form; raise on any change."""

Condition = Literal["drop", "mask"]


def digest_json(value: Any) -> str:
    """Sha256 (first 32 hex digits) of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelSpec:
    """Decides which token ids are supervised: two sides that differ here have other labels."""

    tokenizer_digest: str
    chat_template_digest: str
    template: str
    message_normalization: int = MESSAGE_NORMALIZATION


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """Decides what the model sees of the picture and how long the text may be."""

    image_processor: str
    image_processor_backend: str
    """`pil` or `torchvision`: their resizing differs in pixels."""
    image_processor_digest: str
    image_aspect_ratio: str
    max_length: int
    truncation: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastSpec:
    """What "without the image" means; see docs/method.md.

    `drop` takes the image's tokens out and keeps the positions of the rest: the paper's f(T_<j).
    `mask` leaves them in place, hidden from attention: what the authors' released code does.
    """

    condition: Condition = "drop"

    def __post_init__(self) -> None:
        if self.condition not in ("drop", "mask"):
            raise ConfigError(f"contrast must be 'drop' or 'mask', got {self.condition!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasurementSpec:
    """Everything that determines the deltas of a shard, apart from its rows."""

    label: LabelSpec
    input: InputSpec
    contrast: ContrastSpec
    dtype: str
    attn_implementation: str
    model_id: str
    """Hub id, or the last part of a local path: the digest below tells which weights they were."""
    revision: str | None
    weights_digest: str
    reference_saw_data: str
    """`yes`, `no` or `unknown`: in-sample deltas favour what the reference memorised."""

    def fingerprint(self) -> str:
        """32 hex digits over all fields; equal exactly when the specs are equal."""
        return digest_json(asdict(self))

    def to_json(self) -> str:
        """Inverse of `from_json`; keys sorted, so equal specs give equal text."""
        return json.dumps(asdict(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> MeasurementSpec:
        """Raises FormatError on text that is no spec, naming the offending field."""
        try:
            value = json.loads(text)
            nested = {"label": LabelSpec, "input": InputSpec, "contrast": ContrastSpec}
            parts: dict[str, Any] = {key: _build(kind, value[key], key) for key, kind in nested.items()}
            return _build(cls, {**value, **parts}, "spec")
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise FormatError(f"not a measurement spec: {error!r} in {text[:200]!r}") from error

    def differences(self, other: MeasurementSpec) -> list[tuple[str, Any, Any]]:
        """(dotted field, own value, other's value) for every field that differs, in order of declaration."""
        mine, theirs = _flatten(asdict(self)), _flatten(asdict(other))
        return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]


_Spec = TypeVar("_Spec")


def _build(kind: type[_Spec], value: dict[str, Any], where: str) -> _Spec:
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(value) - known):
        raise FormatError(f"{where} has unknown fields {unknown}: it was written by a newer version of this project")
    return kind(**value)


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict):
            flat.update(_flatten(item, f"{prefix}{name}."))
        else:
            flat[prefix + name] = item
    return flat
