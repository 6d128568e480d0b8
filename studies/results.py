"""The record of the study: one CSV row per finished run and measurement; what stands in it is not run again."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd

from condition import Measurement, Run
from provenance import versions

RESULTS = Path(__file__).resolve().parent / "results"
_RUN_SCORES = ("accuracy", "nll", "text_nll")
_MEASUREMENT_SCORES = (
    "auc_irrelevant", "auc_contradictory", "mean_correlated", "mean_irrelevant", "mean_contradictory", "swap_auc",
    "q90", "clamp_flips", "reference_accuracy",
)  # fmt: skip
Item = TypeVar("Item", bound=Run | Measurement)


class RecordError(Exception):
    """A results file is not what this code writes."""


class Table(Generic[Item]):
    """A CSV file that rows are appended to, whole lines at a time; its rows are found by key.

    Reading never writes. Whoever adds rows holds the folder (`folders.alone`) and calls `repair` first.

    Args:
        path: of the file; made with the first row.
        kind: the frozen record that keys a row.
        scores: further columns.
    """

    def __init__(self, path: Path, kind: type[Item], scores: Sequence[str]) -> None:
        self.path = path
        self.kind = kind
        self.columns = ("key", *(field.name for field in dataclasses.fields(kind)), *scores, "versions")

    def read(self) -> pd.DataFrame:
        """Text where the record holds text; empty strings stay empty. A last line that is not whole is not read.

        Raises RecordError for other columns than this table's, and for a row whose key is not that of its fields.
        """
        whole = self._whole_lines()
        if not whole:
            return pd.DataFrame(columns=list(self.columns))
        self._check_header(whole)
        try:
            return self._parsed(whole)
        except (ValueError, TypeError) as error:
            raise RecordError(f"{self.path} has a row that is not one of its own: {error}; remove it") from error

    def _parsed(self, whole: str) -> pd.DataFrame:
        texts = dict.fromkeys(("key", "alpha", "beta", "contrast", "reference", "halves", "versions"), str)
        frame = pd.read_csv(
            io.StringIO(whole), dtype={**texts, "noise": float, "text_share": float}, keep_default_na=False,
            na_values={name: ["", "nan"] for name in (*_RUN_SCORES, *_MEASUREMENT_SCORES)},
        )  # fmt: skip
        for number, found in enumerate(frame.to_dict("records"), start=2):
            row = {str(name): value for name, value in found.items()}
            if row["key"] != self.item(row).key:
                raise ValueError(f"line {number}: {row['key']!r} is not the key of its fields")
        return frame

    def keys(self) -> set[str]:
        return set(self.read()["key"])

    def item(self, row: Mapping[str, Any]) -> Item:
        """What a row that was read is of."""
        return self.kind(**{field.name: row[field.name] for field in dataclasses.fields(self.kind)})

    def add(self, item: Item, scores: Mapping[str, Any]) -> None:
        """Raises RecordError for scores or a file with other columns, and for a file that ends within a line."""
        row = {"key": item.key, **dataclasses.asdict(item), **scores, "versions": versions()}
        if unknown := row.keys() - set(self.columns):
            raise RecordError(f"{self.path} has no columns for {', '.join(sorted(unknown))}: add them to results.py")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            written = file.read()
            if written:
                self._check_header(written)
            if written and not written.endswith("\n"):
                raise RecordError(f"{self.path} ends within a line, which the next row would continue: repair it first")
            lines = io.StringIO()
            writer = csv.DictWriter(lines, self.columns, lineterminator="\n")
            if not written:
                writer.writeheader()
            writer.writerow({name: _told(value) for name, value in row.items()})
            file.write(lines.getvalue())

    def repair(self) -> None:
        """Drops what a killed process left of its last line; the file changes whole or not at all."""
        if self.path.exists() and (whole := self._whole_lines()) != self.path.read_text(encoding="utf-8"):
            aside = self.path.with_name(self.path.name + ".repaired")
            aside.write_text(whole, encoding="utf-8")
            aside.replace(self.path)

    def _whole_lines(self) -> str:
        if not self.path.exists():
            return ""
        try:
            text = self.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RecordError(f"{self.path} is not text: {error}") from error
        return text[: text.rfind("\n") + 1]

    def _check_header(self, text: str) -> None:
        found = text.partition("\n")[0]
        if found != (wanted := ",".join(self.columns)):
            raise RecordError(
                f"{self.path} begins with {found!r}, its rows are written under {wanted!r}: "
                "give the file these columns, or another --results_dir"
            )


def _told(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.6g}"
    return json.dumps(value) if isinstance(value, list) else value


def runs(directory: Path = RESULTS) -> Table[Run]:
    return Table(directory / "runs.csv", Run, (*_RUN_SCORES, "drift_log"))


def measurements(directory: Path = RESULTS) -> Table[Measurement]:
    return Table(directory / "measurements.csv", Measurement, _MEASUREMENT_SCORES)
