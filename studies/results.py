"""The record of the study: one CSV row per finished run and measurement; what stands in it is not run again."""

from __future__ import annotations

import csv
import dataclasses
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from condition import Measurement, Run

RESULTS = Path(__file__).resolve().parent / "results"
_RUN_SCORES = ("accuracy", "nll", "text_nll", "cpu_seconds")
_MEASUREMENT_SCORES = (
    "auc_irrelevant", "auc_contradictory", "mean_correlated", "mean_irrelevant", "mean_contradictory", "swap_auc",
    "q90", "clamp_flips", "reference_accuracy", "seconds",
)  # fmt: skip
_LIBRARIES = ("cal-vlm", "torch", "transformers", "numpy", "pillow")


def versions() -> str:
    return " ".join(f"{name}={importlib.metadata.version(name)}" for name in _LIBRARIES)


class Table:
    """A CSV file that rows are appended to, whole lines at a time; its rows are found by key.

    Args:
        path: of the file; made with the first row.
        kind: the frozen record that keys a row.
        scores: further columns.
    """

    def __init__(self, path: Path, kind: type[Run] | type[Measurement], scores: Sequence[str]) -> None:
        self.path, self.kind = path, kind
        self.columns = ("key", *(field.name for field in dataclasses.fields(kind)), *scores, "versions")
        self._drop_broken_line()

    def read(self) -> pd.DataFrame:
        """Text where the record holds text; empty strings stay empty."""
        if not self.path.exists():
            return pd.DataFrame(columns=list(self.columns))
        texts = dict.fromkeys(("key", "alpha", "beta", "contrast", "reference", "halves", "versions"), str)
        return pd.read_csv(self.path, dtype=texts, keep_default_na=False, na_values={
            name: [""] for name in (*_RUN_SCORES, *_MEASUREMENT_SCORES)
        })  # fmt: skip

    def keys(self) -> set[str]:
        return set(self.read()["key"])

    def add(self, item: Run | Measurement, scores: Mapping[str, Any]) -> None:
        row = {"key": item.key, **dataclasses.asdict(item), **scores, "versions": versions()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if new:
                writer.writeheader()
            writer.writerow({name: _told(value) for name, value in row.items()})

    def _drop_broken_line(self) -> None:
        """What a killed process left at the end."""
        if self.path.exists() and not (text := self.path.read_text(encoding="utf-8")).endswith("\n"):
            self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def _told(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list) else value


def runs(directory: Path = RESULTS) -> Table:
    return Table(directory / "runs.csv", Run, (*_RUN_SCORES, "drift_log"))


def measurements(directory: Path = RESULTS) -> Table:
    return Table(directory / "measurements.csv", Measurement, _MEASUREMENT_SCORES)
