"""Reads and writes the record of the study: one CSV row per finished run and measurement, and what code made it.

What stands in the record is not run again.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

import pandas as pd

from condition import Measurement, Run

_STUDIES = Path(__file__).resolve().parent
RESULTS = _STUDIES / "results"
SHAPES = _STUDIES.parent / "examples" / "shapes"
"""Where the world of shapes is, and the tiny models."""
_LIBRARIES = ("cal-vlm", "torch", "transformers", "numpy", "pillow")
_PACKAGES = ("cal_schemas", "cal_pipeline", "cal_trainer")
_RUN_SCORES = ("accuracy", "nll", "text_nll")
_MEASUREMENT_SCORES = (
    "auc_irrelevant", "auc_contradictory", "mean_correlated", "mean_irrelevant", "mean_contradictory", "swap_auc",
    "q90", "clamp_flips", "reference_accuracy",
)  # fmt: skip
Item = TypeVar("Item", bound=Run | Measurement)


class RecordError(Exception):
    """A results file is not what this code writes."""


_TEXTS = ("key", "alpha", "beta", "contrast", "reference", "halves", "score", "map", "adapted", "columns", "versions")


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
        texts = dict.fromkeys(_TEXTS, str)
        frame = pd.read_csv(
            io.StringIO(whole), dtype={**texts, "noise": float, "text_share": float}, keep_default_na=False,
            na_values={name: ["", "nan"] for name in (*_RUN_SCORES, *_MEASUREMENT_SCORES)},
        )  # fmt: skip
        for number, record in enumerate(frame.to_dict("records"), start=2):
            row = {str(name): value for name, value in record.items()}
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
        lists = {name: json.dumps(value) for name, value in scores.items() if isinstance(value, list)}
        row = {"key": item.key, **dataclasses.asdict(item), **scores, **lists, "versions": versions()}
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
            frame = pd.DataFrame([row], columns=self.columns)
            file.write(frame.to_csv(header=not written, index=False, lineterminator="\n", float_format="%.6g"))

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
        header = text.partition("\n")[0]
        if header != (wanted := ",".join(self.columns)):
            raise RecordError(
                f"{self.path} begins with {header!r}, its rows are written under {wanted!r}: "
                "give the file these columns, or another --results_dir"
            )


def runs(directory: Path = RESULTS) -> Table[Run]:
    return Table(directory / "runs.csv", Run, (*_RUN_SCORES, "drift_log"))


def measurements(directory: Path = RESULTS) -> Table[Measurement]:
    return Table(directory / "measurements.csv", Measurement, _MEASUREMENT_SCORES)


@functools.cache
def versions() -> str:
    """As one text. Of a process's first call: sources that are edited while it works do not change it."""
    parts = [f"{name}={importlib.metadata.version(name)}" for name in _LIBRARIES]
    own = [*_STUDIES.glob("*.py"), *SHAPES.glob("*.py")]  # not what scratch/ holds
    files = [*own, *(path for name in _PACKAGES for path in Path(str(resources.files(name))).rglob("*.py"))]
    return " ".join([*parts, f"code={code_digest(files)}"])


def code_digest(files: Iterable[Path]) -> str:
    """12 hex digits over the contents of `files` and their names, with the folder's: wherever that lies."""
    digest = hashlib.sha256()
    for name, source in sorted((f"{path.parent.name}/{path.name}", path.read_bytes()) for path in files):
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return digest.hexdigest()[:12]
