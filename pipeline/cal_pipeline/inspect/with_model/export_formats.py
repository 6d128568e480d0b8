"""Writes weighted examples as JSON lines, and as a data set of `datasets`; rows are encoded on all cores."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets.arrow_writer import ArrowWriter

from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS
from cal_pipeline.inspect.tables.flat import token_columns
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.reading import read_batches
from cal_pipeline.inspect.tables.samples import image_folder_of
from cal_pipeline.inspect.with_model.processes import in_order
from cal_schemas.counted import are, counted
from cal_schemas.errors import STATUS_OK, ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.spec import MeasurementSpec
from cal_schemas.storage.locations import Location

_BATCH_ROWS = 16
"""Rows of one task, images included."""
_NEEDS_TORCH = "cal_pipeline.inspect.with_model.weighted_examples"
"""Imported where rows are encoded alone: it takes 300 MB."""
ROWS_PER_PROCESS = 2000
"""Fewer are encoded sooner than a process starts."""
_COLUMNS = ("sample_id", "sample_key", "status", "num_tokens", "images", *ANSWER_COLUMNS)
_FEATURES = datasets.Features(
    {
        "sample_id": datasets.Value("string"),
        "sample_key": datasets.Value("string"),
        "messages": datasets.List({"role": datasets.Value("string"), "content": datasets.Value("string")}),
        "template_inputs": datasets.Value("string"),
        "images": datasets.List(datasets.Image()),
        "input_ids": datasets.List(datasets.Value("int32")),
        "labels": datasets.List(datasets.Value("int32")),
        "loss_weights": datasets.List(datasets.Value("float32")),
    }
)


class Task(NamedTuple):
    """Rows that one process encodes."""

    number: int
    """Of the first of them among those that are exported."""
    image_folder: Location | None
    rows: pa.RecordBatch


def write_messages_jsonl(opened: AnnotatedDataset, folder: Path, arguments: argparse.Namespace) -> str:
    """data.jsonl, one object a row; embedded images go to images/, others are named by their absolute path."""
    count = 0
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for lines in _encoded(opened, arguments, _jsonl_maker, folder):
            file.writelines(lines)
            count += len(lines)
    _write_about(opened, folder, arguments)
    return _said(opened, arguments, count, "data.jsonl")


def write_hf_dataset(opened: AnnotatedDataset, folder: Path, arguments: argparse.Namespace) -> str:
    """What `datasets.load_from_disk` opens, images embedded."""
    if "::" in str(folder):
        raise ConfigError(f"--output {folder.parent}: `datasets` splits paths at ::, and could not open it there")
    rows = folder / "cache" / "rows.arrow"
    rows.parent.mkdir()
    count = 0
    with ArrowWriter(path=str(rows), features=_FEATURES) as writer:
        for table in _encoded(opened, arguments, _table_maker):
            writer.write_table(table)
            count += table.num_rows
        writer.finalize()
    said = _said(opened, arguments, count, "a dataset for datasets.load_from_disk")
    datasets.disable_progress_bars()  # Into a file they would make a line of each refresh.
    datasets.Dataset.from_file(str(rows), split=datasets.Split.TRAIN).save_to_disk(str(folder))
    shutil.rmtree(rows.parent)
    _write_about(opened, folder, arguments)
    return said


def _encoded(
    opened: AnnotatedDataset, arguments: argparse.Namespace, make: Callable[..., Callable[[Task], Any]], *given: Any
) -> Iterator[Any]:
    """What `make`'s function makes of the rows that are ok, in order."""
    processes = min(len(os.sched_getaffinity(0)), opened.num_rows // ROWS_PER_PROCESS)
    tasks = _tasks(opened, arguments)
    yield from in_order(make, (opened.spec, arguments, *given), tasks, processes, [_NEEDS_TORCH])


def _tasks(opened: AnnotatedDataset, arguments: argparse.Namespace) -> Iterator[Task]:
    named = named_rows(opened, arguments.ids_from)
    number = stop = 0
    columns = [*_COLUMNS, *token_columns(arguments.weighting["score"])]
    for batch in read_batches(opened, columns, _BATCH_ROWS):
        start, stop = stop, stop + batch.data.num_rows
        chosen = pc.and_(pc.equal(batch.data.column("status"), STATUS_OK), pa.array(named[start:stop]))
        rows = batch.data.filter(chosen)
        if rows.num_rows:
            folder = image_folder_of(opened, batch.file, arguments.image_folder)
            yield Task(number=number, image_folder=folder, rows=rows)
        number += rows.num_rows


def _jsonl_maker(spec: MeasurementSpec, arguments: argparse.Namespace, folder: Path) -> Callable[[Task], list[str]]:
    from cal_pipeline.inspect.with_model.weighted_examples import encoder_of, weighted_examples

    encoder = encoder_of(spec, arguments)

    def lines(task: Task) -> list[str]:
        made = []
        examples = weighted_examples(task.rows, encoder, task.image_folder, arguments)
        for count, (row, files) in enumerate(examples, task.number):
            row["images"] = [
                _embedded(folder, f"{count:08d}-{at}", data)
                if ref.data is not None or task.image_folder is None
                else str((task.image_folder / str(ref.path)).resolve())
                for at, (ref, data) in enumerate(zip(row["images"], files, strict=True))
            ]
            made.append(json.dumps(row, ensure_ascii=False, allow_nan=False, default=np.ndarray.tolist) + "\n")
        return made

    return lines


def _table_maker(spec: MeasurementSpec, arguments: argparse.Namespace) -> Callable[[Task], pa.Table]:
    from cal_pipeline.inspect.with_model.weighted_examples import encoder_of, weighted_examples

    encoder = encoder_of(spec, arguments)

    def table(task: Task) -> pa.Table:
        rows = []
        for row, files in weighted_examples(task.rows, encoder, task.image_folder, arguments):
            pairs = zip(row["images"], files, strict=True)
            rows.append({**row, "images": [{"bytes": data, "path": ref.path} for ref, data in pairs]})
        return pa.Table.from_pylist(rows, _FEATURES.arrow_schema)

    return table


def _embedded(folder: Path, name: str, data: bytes) -> str:
    """The image's own bytes under a name of ours: what a dataset calls its files is never a path on this disk."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp"}
    suffix = next((kind for start, kind in kinds.items() if data.startswith(start)), "img")
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / f"{name}.{suffix}").write_bytes(data)
    return f"images/{name}.{suffix}"


def _write_about(opened: AnnotatedDataset, folder: Path, arguments: argparse.Namespace) -> None:
    about: dict[str, Any] = {
        "weighting": {**arguments.weighting, "map": str(arguments.weighting["map"])},
        "encoded_with": arguments.model_name_or_path,
        "measurement_spec": asdict(opened.spec),
        "fingerprint": opened.spec.fingerprint(),
    }
    if about["weighting"]["beta"] == float("inf"):
        about["weighting"]["beta"] = "inf"
    (folder / "cal_export.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def _said(opened: AnnotatedDataset, arguments: argparse.Namespace, count: int, name: str) -> str:
    if not count:
        raise ConfigError(f"nothing to export: none of the {opened.num_rows} rows is ok (cal-inspect summary)")
    left = opened.num_rows - count
    unnamed = "" if arguments.ids_from is None else " or not named"
    return f"{counted(count, 'row')} in {name}, {counted(left, 'row')} that {are(left)} not ok{unnamed} left out"
