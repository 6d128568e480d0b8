"""All that a delta depends on. The spec travels in every annotated shard, and readers compare it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, TypeVar, get_args

from cal_schemas.errors import ConfigError, FormatError

MESSAGE_NORMALIZATION = 2
"""Version of the rules by which the encoder brings a source's turns into template form; raise on any change."""

IGNORE_INDEX = -100
"""The label of a token that is not supervised, as in torch's and transformers' losses."""
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
Template = Literal["auto", "plain", "vicuna_v1"]
AspectRatio = Literal["square", "pad", "native"]
Truncation = Literal["drop", "tail"]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "8bit", "4bit"]
Condition = Literal["drop", "mask", "patch_mask", "gaussian_blur"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
PERTURBING: tuple[Condition, ...] = ("patch_mask", "gaussian_blur")
"""Conditions that show another image instead of none."""
PATCH_COLUMNS, PATCH_ROWS = 10, 20
"""The paper's grid; an image of fewer pixels than that has cells of one pixel."""
MIN_BLUR_SIGMA, MAX_BLUR_SIGMA = 0.25, 1000.0
"""Below the former the kernel is one pixel, above the latter every usual image becomes one colour."""
_PARAMETERS: dict[str, Condition] = {"patch_mask_ratio": "patch_mask", "blur_sigma": "gaussian_blur"}


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
    date: str | None = None
    """What a chat template reads that asks for the date (YYYY-MM-DD); None where it reads none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """Decides what the model sees of the image and how long the text may be."""

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
    `patch_mask` and `gaussian_blur` show another image in their place: cells of a grid painted over, or all of it
    blurred, as in the paper's ablation. The parameter of a condition is set exactly when the condition is that one.
    """

    condition: Condition = "drop"
    patch_mask_ratio: float | None = None
    """Share of the grid's cells that are painted over, above 0 and up to 1."""
    blur_sigma: float | None = None
    """Standard deviation of the gaussian, in pixels of the image as stored."""

    def __post_init__(self) -> None:
        if self.condition not in CONDITIONS:
            raise ConfigError(f"contrast must be one of {', '.join(CONDITIONS)}, got {self.condition!r}")
        for name, condition in _PARAMETERS.items():
            value = getattr(self, name)
            if value is not None and self.condition != condition:
                raise ConfigError(
                    f"--{name} {value} is of --contrast {condition} and has no effect on --contrast {self.condition}"
                )
        ratio, sigma = self.patch_mask_ratio, self.blur_sigma
        if self.condition == "patch_mask":
            if ratio is None:
                raise ConfigError("--contrast patch_mask needs --patch_mask_ratio (the paper tried 0.5, 0.7 and 0.9)")
            if not 0.0 < ratio <= 1.0:
                raise ConfigError(f"--patch_mask_ratio must be above 0 and at most 1, got {ratio}")
            if round(ratio * PATCH_COLUMNS * PATCH_ROWS) == 0:
                raise ConfigError(
                    f"--patch_mask_ratio {ratio} masks none of the {PATCH_COLUMNS * PATCH_ROWS} cells: raise it"
                )
        if self.condition == "gaussian_blur":
            if sigma is None:
                raise ConfigError("--contrast gaussian_blur needs --blur_sigma (the paper tried 1 and 10)")
            if not MIN_BLUR_SIGMA <= sigma <= MAX_BLUR_SIGMA:
                raise ConfigError(
                    f"--blur_sigma must be between {MIN_BLUR_SIGMA} and {MAX_BLUR_SIGMA:g} pixels, got {sigma}"
                )

    @property
    def perturbs(self) -> bool:
        """Whether the second pass sees another image, which the caller must make, instead of none."""
        return self.condition in PERTURBING

    def describe(self) -> str:
        """Condition and parameter, as one would type them."""
        value = next((v for name in _PARAMETERS if (v := getattr(self, name)) is not None), None)
        return self.condition if value is None else f"{self.condition} {value:g}"


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
    quantization: str | None = None
    """`8bit` or `4bit` by flag, `bitsandbytes-4bit`, `gptq-4bit`, … where the checkpoint is stored so, else None."""

    def fingerprint(self) -> str:
        """32 hex digits over all fields; equal exactly when the specs are equal."""
        return digest_json(_stored(self))

    def to_json(self) -> str:
        """Inverse of `from_json`; keys sorted, so equal specs give equal text."""
        return json.dumps(_stored(self), sort_keys=True, indent=1)

    @classmethod
    def from_json(cls, text: str) -> MeasurementSpec:
        """Raises FormatError on text that is no spec, naming the offending field."""
        try:
            value = json.loads(text)
            nested = {"label": LabelSpec, "input": InputSpec, "contrast": ContrastSpec}
            parts: dict[str, Any] = {key: _build(kind, value[key], key) for key, kind in nested.items()}
            return _build(cls, {**value, **parts}, "spec")
        except (json.JSONDecodeError, KeyError, TypeError, ConfigError) as error:
            raise FormatError(f"not a measurement spec: {error!r} in {text[:200]!r}") from error

    def differences(self, other: MeasurementSpec) -> list[tuple[str, Any, Any]]:
        """(dotted field, own value, other's value) for every field that differs, in order of declaration."""
        mine, theirs = _flatten(asdict(self)), _flatten(asdict(other))
        return [(name, mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]]


_Spec = TypeVar("_Spec")
_LEFT_OUT = ("patch_mask_ratio", "blur_sigma", "quantization", "date")
"""Fields that are left out of JSON and fingerprint while None: specs without them mean what they did before."""


def _stored(spec: MeasurementSpec) -> dict[str, Any]:
    value = asdict(spec)
    for part in (value, value["label"], value["contrast"]):
        for name in _LEFT_OUT:
            if part.get(name, 0) is None:
                del part[name]
    return value


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
