"""Holds what is known of a run once it is planned: checkpoints remember a part, the model card shows another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cal_schemas.scores import DEFAULT_SCORE, Score
from cal_schemas.spec import ContrastSpec, MeasurementSpec
from cal_trainer.data.shards import Shards
from cal_trainer.data.sources import Sources
from cal_trainer.objective.weighting import Weighting


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """Flags, and what came of them."""

    flags: Mapping[str, Any]
    """By name, cal-train's and transformers'; `world_size` with them."""
    base: Path
    """Directory of the model that training starts from."""
    weighting: Weighting
    quantiles: Mapping[str, str]
    """By name, the bounds that were taken from the data's deltas (`q0.5`)."""
    score: Score = DEFAULT_SCORE
    """What the weights are made of."""
    num_rows: int
    """In use; the skipped ones are not among them."""
    num_planned: int | None = None
    """Rows that cal-precompute planned to measure there; None where it left no plan."""
    num_unmeasured: int = 0
    """Of those in use, the ones that nobody measured: --on_missing uniform."""
    skipped: Mapping[str, int]
    """Rows by status that were left out."""
    shards: Mapping[str, Shards]
    """By flag: what the data is read from."""
    sources: Sources = field(default_factory=Sources)
    """Of the rows."""
    num_trainable: int
    """Parameters that train."""
    quantization: str | None = None
    """Of the weights under the adapters."""
    unquantized: Sequence[str] = ()
    """Modules that it leaves whole, where there are more than the head."""
    spec: MeasurementSpec | None = None
    """Of the data; None where nobody measured it."""
    contrast: ContrastSpec | None = None
    """Of online deltas."""
    lr_multipliers: Mapping[str, float]
    """By part."""
    date: str | None = None
    """That the chat template reads."""
