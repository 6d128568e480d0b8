"""Defines all that a delta depends on. The spec travels in every annotated shard, and readers compare it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple, TypeVar, get_args

from cal_schemas.choices import check_choice
from cal_schemas.errors import ConfigError, FormatError

MESSAGE_NORMALIZATION = 2
"""Version of the rules by which the encoder brings a source's turns into template form; raise on any change."""

IGNORE_INDEX = -100
"""The label of a token that is not supervised, as in torch's and transformers' losses."""
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
_Kind = TypeVar("_Kind")
Template = Literal["auto", "plain", "vicuna_v1"]
AspectRatio = Literal["square", "pad", "native"]
Truncation = Literal["drop", "tail"]
Dtype = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["none", "8bit", "4bit"]
ProcessorBackend = Literal["auto", "pil", "torchvision"]
Condition = Literal["drop", "mask", "patch_mask", "gaussian_blur"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
PERTURBING: tuple[Condition, ...] = ("patch_mask", "gaussian_blur")
"""Conditions that show another image instead of none."""
ANOTHER_IMAGE = " or ".join(PERTURBING)
"""The same in words, for messages that name them as the way out."""
PATCH_COLUMNS, PATCH_ROWS = 10, 20
"""The paper's grid; an image of fewer pixels than that has cells of one pixel."""
MIN_BLUR_SIGMA, MAX_BLUR_SIGMA = 0.25, 1000.0
"""Below the former the kernel is one pixel, above the latter every usual image becomes one colour."""


def own_fields_first(kind: type[_Kind]) -> type[_Kind]:
    """Returns the dataclass with its own fields first, then those of the nearest base: in --help and in messages."""
    fields_of = [getattr(base, "__dataclass_fields__", {}) for base in kind.__mro__]
    # A base has the fields of its own bases too: the farthest that has one declared it.
    declared_by = {name: depth for depth, names in enumerate(fields_of) for name in names}
    kind.__dataclass_fields__ = {  # type: ignore[attr-defined]
        name: fields_of[0][name] for name in sorted(fields_of[0], key=declared_by.__getitem__)
    }
    return kind


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
    processor_kwargs: str | None = None
    """Settings that were given for those of the model's directory, a JSON object with sorted keys; None where none."""


def differences_in_words(now: LabelSpec | InputSpec, measured: LabelSpec | InputSpec) -> str:
    """Says which fields differ, as `name was …, is …`; empty where inputs or labels are the same.

    Settings that were given and those that a model's directory holds are the same where they come to the same
    processor (`image_processor_digest`).
    """
    mine, theirs = asdict(now), asdict(measured)
    names = [name for name in theirs if mine[name] != theirs[name]]
    if names == ["processor_kwargs"]:
        return ""
    return "; ".join(f"{name} was {theirs[name]!r}, is {mine[name]!r}" for name in names)


def _ratio_problem(ratio: float) -> str | None:
    if not 0.0 < ratio <= 1.0:
        return f"must be above 0 and at most 1, got {ratio}"
    cells = PATCH_COLUMNS * PATCH_ROWS
    return None if round(ratio * cells) else f"{ratio} masks none of the {cells} cells: raise it"


def _sigma_problem(sigma: float) -> str | None:
    if MIN_BLUR_SIGMA <= sigma <= MAX_BLUR_SIGMA:
        return None
    return f"must be between {MIN_BLUR_SIGMA} and {MAX_BLUR_SIGMA:g} pixels, got {sigma}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastParameters:
    """The parameters of those conditions that have one (see PARAMETERS); both programs have a flag for each."""

    patch_mask_ratio: float | None = field(
        default=None,
        metadata={"help": "of patch_mask: share of the 10 x 20 cells that are painted over, e.g. 0.7"},
    )
    blur_sigma: float | None = field(
        default=None,
        metadata={"help": "of gaussian_blur: standard deviation in pixels of the image as stored"},
    )


class Parameter(NamedTuple):
    """What is known of a field of ContrastParameters."""

    condition: Condition
    """The one that it is of."""
    hint: str
    """Which values to try, in words."""
    problem: Callable[[float], str | None]
    """What is wrong with a value; None where nothing is."""


PARAMETERS: dict[str, Parameter] = {
    "patch_mask_ratio": Parameter("patch_mask", "the paper tried 0.5, 0.7 and 0.9", _ratio_problem),
    "blur_sigma": Parameter("gaussian_blur", "the paper tried 1 and 10", _sigma_problem),
}


@own_fields_first
@dataclass(frozen=True, kw_only=True, slots=True)
class ContrastSpec(ContrastParameters):
    """What "without the image" means; see docs/method.md.

    `drop` takes the image's tokens out and keeps the positions of the rest: the paper's f(T_<j).
    `mask` leaves them in place, hidden from attention: what the authors' released code does.
    `patch_mask` and `gaussian_blur` show another image in their place: cells of a grid painted over, or all of it
    blurred, as in the paper's ablation. The parameter of a condition is set exactly when the condition is that one.
    """

    condition: Condition = "drop"

    def __post_init__(self) -> None:
        check_choice("contrast", self.condition, Condition)
        for name, parameter in PARAMETERS.items():
            value = getattr(self, name)
            if self.condition != parameter.condition:
                if value is not None:
                    raise ConfigError(
                        f"--{name} {value} is of --contrast {parameter.condition} and has no effect on --contrast "
                        f"{self.condition}"
                    )
            elif value is None:
                raise ConfigError(f"--contrast {self.condition} needs --{name} ({parameter.hint})")
            elif problem := parameter.problem(value):
                raise ConfigError(f"--{name} {problem}")

    @property
    def parameter(self) -> float | None:
        """The value of the condition's parameter; None where it has none."""
        return next(
            (getattr(self, name) for name, item in PARAMETERS.items() if item.condition == self.condition), None
        )

    @property
    def perturbs(self) -> bool:
        """Whether the second pass sees another image, which the caller must make, instead of none."""
        return self.condition in PERTURBING

    def describe(self) -> str:
        """Condition and parameter, as one would type them."""
        return self.condition if self.parameter is None else f"{self.condition} {self.parameter:g}"


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
_LEFT_OUT = (*PARAMETERS, "quantization", "date", "processor_kwargs")
"""Fields that are left out of JSON and fingerprint while None: specs without them mean what they did before."""


def _stored(spec: MeasurementSpec) -> dict[str, Any]:
    value = asdict(spec)
    for part in (value, value["label"], value["input"], value["contrast"]):
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
