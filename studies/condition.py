"""Defines what the study runs: frozen records whose digests are their keys, and the sizes that all runs share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from cal_schemas.scores import DEFAULT_SCORE

WorldName = Literal["shapes", "charts", "emoji"]
WORLDS: tuple[WorldName, ...] = get_args(WorldName)
GENERATED: tuple[WorldName, ...] = ("shapes", "charts")
Weights = Literal["uniform", "online", "cached"]
Reference = Literal[
    "",  # of weights that are not cached
    "initial",  # the student's own initial weights
    "early",  # its checkpoint after 10 % of a uniform training
    "quarter",  # its checkpoint after 25 % of a uniform training
    "final",  # its finished uniform model, which saw the data
    "crossfit",  # two-fold: each half by a uniform model trained on the other half
    "longer",  # a model of the student's size trained longer, on other data of the same noise
    "larger",  # a larger model, trained like that one
    "oracle",  # a model trained on clean data, which nobody has
]
REFERENCES: tuple[Reference, ...] = get_args(Reference)[1:]
Adapted = Literal["", "data", "sample", "entropy"]
COLUMNS = "logprobs,kl,entropy"
IN_SAMPLE: tuple[Reference, ...] = ("early", "quarter", "final")
"""Trained on the very samples that they measure."""

MAIN_NOISE = 0.3
"""Of every arm but those that vary it."""
MAX_SEEDS = 64
"""Of a world: the report looks for seeds below it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is trained on how much, and at what rate; a change makes other runs, in another folder.

    Every key is a digest over these names too, so none is changed: what `parent` is in them the code calls a backbone.
    """

    student_vision_width: int = 64
    student_text_width: int = 64
    larger_vision_width: int = 96
    larger_text_width: int = 128
    num_layers: int = 2
    """Of tower and language model each."""
    patch_px: int = 28
    rows: int = 1280
    steps: int = 120
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    adam_beta2: float = 0.98
    schedule: str = "constant_with_warmup"
    warmup_share: float = 0.1
    """Of the steps."""
    vocabulary_texts: int = 3000
    parent_texts: int = 2400
    parent_steps: int = 150
    tower_samples: int = 3000
    tower_steps: int = 300
    tower_batch_size: int = 64
    tower_learning_rate: float = 2e-3
    projector_std: float = 0.08
    """Of a new projector's weights."""
    pretraining_noise: float = 0.2
    """Of the data that every student starts from, whatever the noise of the arm."""
    pretraining_rows: int = 1600
    pretraining_steps: int = 150
    reference_steps: int = 200
    """Of `longer`, `larger` and the oracle, beyond pretraining."""
    reference_rows: int = 1600
    """That they are trained on."""
    held_out: int = 300
    held_out_texts: int = 200
    """Samples without an image, for `text_nll`."""
    swap_rows: int = 256
    """Of the swap control."""


SIZES = Sizes()


def sizes_digest() -> str:
    """8 hex digits over all sizes: what was made with other ones is never taken for its own."""
    return hashlib.sha256(json.dumps(dataclasses.asdict(SIZES), sort_keys=True).encode()).hexdigest()[:8]


class _Keyed:
    """Of a frozen dataclass."""

    __slots__ = ()

    @property
    def key(self) -> str:
        """12 hex digits over what differs from the defaults, and over all sizes.

        A new field of Run or Measurement leaves old keys alone, one of Sizes changes every key.
        """
        fields: Any = dataclasses.fields(self)  # type: ignore[arg-type]
        given = {field.name: getattr(self, field.name) for field in fields}
        given = {field.name: given[field.name] for field in fields if given[field.name] != field.default}
        text = json.dumps([type(self).__name__, given, dataclasses.asdict(SIZES)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement(_Keyed):
    """Deltas of one reference on the training data of one world, seed, noise and mix."""

    world: WorldName
    seed: int
    noise: float
    reference: Reference
    contrast: str = "drop"
    """As it is typed, with its parameter behind it: `drop`, `patch_mask 0.7`, `gaussian_blur 10`."""
    dtype: str = "float32"
    text_share: float = 0.0
    """Of samples without an image in the mix; they are added to the data."""
    answers: int = 1
    """Of a sample; the second one is a caption of the same scene, asked for before."""
    columns: str = ""
    """Beside the deltas, as --extra_columns names them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run(_Keyed):
    """One student, trained and examined. All runs of a world and seed share start, data and order."""

    world: WorldName
    seed: int
    noise: float
    weights: Weights
    reference: Reference = ""
    contrast: str = "drop"
    dtype: str = "float32"
    """Of the measurement."""
    alpha: str = "0.2"
    beta: str = "1"
    """A fifth of the paper's bounds, as these models' deltas are a fifth of LLaVA's or less."""
    window: int = 3
    pool: str = "span"
    normalization: str = "step"
    accumulation: int = 1
    """Micro-batches of a step."""
    text_share: float = 0.0
    answers: int = 1
    group_by: str = "none"
    pretraining: Weights = "uniform"
    halves: Literal["", "kept", "refreshed"] = ""
    """Trained in two halves, each with a schedule of its own; the second with the old deltas, or measured again."""
    drift: bool = False
    """Log how far the student's own deltas move from the cached ones."""
    score: str = DEFAULT_SCORE
    map: str = "clamp"
    adapted: Adapted = ""
    """What the bounds follow, in place of two numbers for all tokens (adaptive.py)."""

    def __post_init__(self) -> None:
        if not 0 <= self.seed < MAX_SEEDS:
            raise ValueError(f"seed {self.seed} is not of 0 to {MAX_SEEDS - 1}, of which MAX_SEEDS is the bound")
        if (self.weights == "cached") != bool(self.reference):
            raise ValueError(f"a reference belongs to cached weights: {self.weights=} {self.reference=}")
        if self.halves and self.measurement != Measurement(
            world=self.world, seed=self.seed, noise=self.noise, reference=self.reference
        ):
            raise ValueError("halves are measured with the default contrast, dtype and data")

    @property
    def columns(self) -> str:
        """What the measurement holds beside deltas: all that any score reads, so that one serves them all."""
        return COLUMNS if self.score != DEFAULT_SCORE or self.adapted else ""

    @property
    def measurement(self) -> Measurement:
        """Of a cached run."""
        return Measurement(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Measurement)})


Scored = tuple[Run | Measurement, dict[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Work of one world and seed, in the order in which it is to be done."""

    world: WorldName
    seed: int
    todo: tuple[Run | Measurement, ...]
    scratch: Path
    ray_address: str = ""


def describe(item: Run | Measurement) -> str:
    """What differs from the defaults."""
    fields = [
        str(getattr(item, field.name))
        if field.default is dataclasses.MISSING or field.name in ("reference", "contrast")
        else f"{field.name}={getattr(item, field.name)}"
        for field in dataclasses.fields(item)
        if getattr(item, field.name) != field.default
    ]  # fmt: skip
    return f"{type(item).__name__.lower()} {' '.join(fields)}"
