"""What an arm is: groups of named conditions, each a few fields of a Run; the arms stand in arms/, one file each."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from condition import Measurement, Run, WorldName

ARMS = (  # in the order in which each finds most already done
    "reference",
    "swap",
    "noise",
    "noise_students",
    "noise_models",
    "scale",
    "staleness",
    "stages",
    "bounds",
    "contrast",
    "text_only",
    "precision",
    "quick",
)
Conditions = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One question, as data."""

    question: str
    groups: Mapping[str, Conditions]
    """Title -> label -> fields of Run. Each group's first condition is what the others are compared with."""
    measurements: tuple[Mapping[str, Any], ...] = ()
    """Fields of Measurement: deltas that are judged by themselves."""
    gain_of: str = ""
    """The condition whose gain over the first is the whole that others recover a share of."""
    with_text: bool = False
    """Whether samples without an image are asked about too."""
    seeds: int = 8

    def runs(self, world: WorldName, seed: int, only: Collection[str] | None = None) -> list[Run]:
        """Of one pair of world and seed; of the conditions with these labels."""
        told = (
            fields
            for conditions in self.groups.values()
            for label, fields in conditions.items()
            if only is None or label in only
        )
        return [Run(world=world, seed=seed, **fields) for fields in told]

    @property
    def labels(self) -> set[str]:
        return {label for conditions in self.groups.values() for label in conditions}

    def measured(self, world: WorldName, seed: int) -> list[Measurement]:
        return [Measurement(world=world, seed=seed, **fields) for fields in self.measurements]


def load(name: str) -> Arm:
    """Of arms/<name>.py."""
    found: Arm = importlib.import_module(f"arms.{name}").ARM
    return found
