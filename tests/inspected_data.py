"""Annotated directories of every sort that cal-inspect must stand, measured with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from annotated_data import annotate
from cal_pipeline.models.loading import weights_digest
from cal_pipeline.sources.planning import plan_shards
from conftest import Family
from tiny_data import write_llava_json, write_parquet
from tiny_models import sample_image


def measured(family: Family, output: Path, data: Sequence[Path], folder: Path | None = None, **options: Any) -> Path:
    """Measures the files with the family's model, with its true weights digest and a run report that leads to it."""
    shards = plan_shards([str(path) for path in data], [str(folder)] if folder else [])
    options = {"weights_digest": weights_digest(family.directory), "model_id": family.directory.name, **options}
    annotate(output, shards, family.encoder, family.model, **options)
    reports = output / ".cal" / "reports"
    reports.mkdir(parents=True, exist_ok=True)
    config = {"config": {"model_name_or_path": str(family.directory)}}
    (reports / "run-20260101-000000-aaaaaa.json").write_text(json.dumps(config))
    return output


def parquet_directory(family: Family, folder: Path, count: int = 12, **options: Any) -> Path:
    return measured(family, folder / "annotated", [write_parquet(folder / "data" / "a.parquet", count)], **options)


def llava_directory(family: Family, folder: Path, count: int = 40) -> Path:
    """With paths, several turns, text-only rows and every kind of bad row."""
    data, images = write_llava_json(folder / "llava", count)
    return measured(family, folder / "annotated", [data], images, carry="paths")


def conversations(folder: Path, answers: Sequence[str], *, images: bool = True, ids: Sequence[str] = ()) -> Path:
    """A LLaVA JSON with one answer a row, its images beside it in `images/`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, answer in enumerate(answers):
        row: dict[str, Any] = {"id": ids[number] if ids else f"row-{number}"}
        mark = ""
        if images:
            sample_image(number, (48, 40)).save(folder / "images" / f"{number}.png")
            row["image"], mark = f"{number}.png", "<image>\n"
        turns = [{"from": "human", "value": f"{mark}What is it?"}, {"from": "gpt", "value": answer}]
        rows.append({**row, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"
