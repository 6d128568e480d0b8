"""What a run of the study is: a frozen record whose digest is its key, and the sizes that all runs share."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

WorldName = Literal["shapes", "charts"]
WORLDS: tuple[WorldName, ...] = get_args(WorldName)
Weights = Literal["uniform", "online", "cached"]
Reference = Literal["", "initial", "early", "quarter", "final", "crossfit", "longer", "larger", "oracle"]
REFERENCES: dict[str, str] = {
    "initial": "the student's own initial weights",
    "early": "its checkpoint after 10 % of a uniform training",
    "quarter": "its checkpoint after 25 % of a uniform training",
    "final": "its finished uniform model, which saw the data",
    "crossfit": "two-fold: each half by a uniform model trained on the other half",
    "longer": "a model of the student's size trained longer, on other data of the same noise",
    "larger": "a larger model, trained like that one",
    "oracle": "a model trained on clean data, which nobody has",
}

MAIN_NOISE = 0.3
"""Of every arm but the first."""
PRETRAINING_NOISE = 0.2
"""Of the data that every student starts from, whatever the noise of the arm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """How much is trained on how much; a change makes other runs."""

    rows: int = 1280
    steps: int = 120
    batch_size: int = 32
    learning_rate: float = 1.5e-3
    adam_beta2: float = 0.98
    parent_texts: int = 2400
    parent_steps: int = 150
    pretraining_rows: int = 1600
    pretraining_steps: int = 150
    reference_steps: int = 200
    """Of `longer`, `larger` and the oracle, beyond pretraining."""
    reference_rows: int = 1600
    """That they are trained on."""
    held_out: int = 300


SIZES = Sizes()


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Deltas of one reference on the training data of one cell."""

    world: WorldName
    seed: int
    noise: float
    reference: Reference
    contrast: str = "drop"
    """As it is typed, with its parameter behind it: `drop`, `patch_mask 0.7`, `gaussian_blur 10`."""
    dtype: str = "float32"
    text_share: float = 0.0
    """Of samples without a picture in the mix; they are added to the data."""
    answers: int = 1
    """Of a sample; the second one is a caption of the same scene, asked for before."""

    @property
    def key(self) -> str:
        return key_of(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
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

    def __post_init__(self) -> None:
        if (self.weights == "cached") != bool(self.reference):
            raise ValueError(f"a reference belongs to cached weights: {self.weights=} {self.reference=}")

    @property
    def key(self) -> str:
        return key_of(self)

    @property
    def measurement(self) -> Measurement:
        """Of a cached run."""
        return Measurement(
            world=self.world, seed=self.seed, noise=self.noise, reference=self.reference, contrast=self.contrast,
            dtype=self.dtype, text_share=self.text_share, answers=self.answers,
        )  # fmt: skip


def key_of(item: Run | Measurement) -> str:
    """12 hex digits over what differs from the defaults, and over the sizes: a new field leaves old keys alone."""
    defaults = {field.name: field.default for field in dataclasses.fields(item)}
    told: dict[str, Any] = {
        name: value for name, value in dataclasses.asdict(item).items() if value != defaults[name]
    }  # fmt: skip
    text = json.dumps([type(item).__name__, told, dataclasses.asdict(SIZES)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
