"""Annotated directories of every kind, for tests that look at them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from annotated_data import annotate
from cal_pipeline.sources.planning import plan_shards
from cal_schemas.opened import open_annotated
from cal_schemas.writer import parquet_writer
from conftest import Family
from tiny_data import write_llava_json


@dataclass(frozen=True, slots=True)
class Directories:
    """One measurement of 24 LLaVA rows (bad ones among them, several turns, text-only ones) and cuts of it."""

    family: Family
    images: Path
    normal: Path
    """Images embedded, three shards, leftovers in .cal."""
    paths: Path
    """The same with --carry paths."""
    sidecar: Path
    failed: Path
    """Only rows that are not ok."""
    text_only: Path
    truncated: Path
    """One of its files is cut off in the middle."""
    empty: Path

    def by_name(self, name: str) -> Path:
        """Directory of that name."""
        return getattr(self, name)  # type: ignore[no-any-return]


def make_directories(folder: Path, family: Family) -> Directories:
    """Measures with the real pipeline, then cuts."""
    source, images = write_llava_json(folder / "raw", 24)
    shards = plan_shards([str(source)], [str(images)], rows_per_shard=10)

    def measured(name: str, carry: str) -> Path:
        return annotate(folder / name, shards, family.encoder, family.model, carry=carry)  # type: ignore[arg-type]

    normal = measured("normal", "images")
    (normal / ".cal" / "staging" / "half.parquet").write_bytes(b"PAR1 cut off")
    shutil.copytree(normal, folder / "truncated")
    last = sorted((folder / "truncated").glob("*.parquet"))[-1]
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    (folder / "empty" / ".cal").mkdir(parents=True)
    return Directories(
        family=family,
        images=images,
        normal=normal,
        paths=measured("paths", "paths"),
        sidecar=measured("sidecar", "none"),
        failed=cut(normal, folder / "failed", lambda row: row["status"] != "ok"),
        text_only=cut(normal, folder / "text_only", lambda row: row["status"] == "ok" and not row["images"]),
        truncated=folder / "truncated",
        empty=folder / "empty",
    )


def cut(source: Path, target: Path, keep: object) -> Path:
    """The rows of every shard that `keep` (a function of a row as a dict) is true for; shards stay, also empty ones."""
    target.mkdir(parents=True)
    for path in open_annotated(source).files:
        table = pq.read_table(path)
        mask = [bool(keep(row)) for row in table.to_pylist()]  # type: ignore[operator]
        write(target / path.name, table.filter(pa.array(mask, pa.bool_())))
    return target


def write(path: Path, table: pa.Table) -> Path:
    """A table with a shard's metadata as a file."""
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
    return path
