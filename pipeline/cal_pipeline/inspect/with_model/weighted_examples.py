"""Encodes rows again and weighs every token, for trainers that know nothing of deltas."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec, rebuild_encoder
from cal_pipeline.inspect import flags
from cal_pipeline.inspect.tables.answers import ANSWER_COLUMNS
from cal_pipeline.inspect.tables.flat import LIST_COLUMNS, FlatTokens
from cal_pipeline.inspect.tables.named_rows import named_rows
from cal_pipeline.inspect.tables.reading import read_batches
from cal_pipeline.inspect.tables.samples import image_folder_of
from cal_pipeline.models.directory import model_directory
from cal_pipeline.models.loading import load_processor
from cal_pipeline.sources.images import decode_image, read_image_file
from cal_schemas.annotated import AnnotatedRow, MeasuredSample, rows_from_batch, sample_columns
from cal_schemas.errors import AlignmentError, ConfigError, SampleError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.spec import IGNORE_INDEX, MeasurementSpec
from cal_schemas.storage.locations import Location

_BATCH_ROWS = 64
"""Rows held at a time, images included."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightedExample:
    """One row as another trainer takes it; T tokens."""

    sample_id: str
    sample_key: str
    messages: list[dict[str, str]]
    template_inputs: str | None
    """What a chat template got, or labels depended on, beside them (docs/data-format.md)."""
    images: list[tuple[str | None, bytes]]
    """(path as the row has it, the encoded file) in the order of the marks."""
    image_paths: list[Location | None]
    """The file on disk, where the row names one."""
    input_ids: np.ndarray
    """[T] int32, image tokens included."""
    labels: np.ndarray
    """[T] int32, -100 where unsupervised."""
    loss_weights: np.ndarray
    """[T] float32, 0 where unsupervised."""

    def columns(self, images: Sequence[Any]) -> dict[str, Any]:
        """Its values by column; `images` as they are written."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "image_paths"}
        return values | {"images": images}


def encoder_of(spec: MeasurementSpec, arguments: argparse.Namespace) -> Encoder:
    """The model's processor with the flags of the measurement; ConfigError when it makes other labels."""
    directory = model_directory(arguments.model_name_or_path, trust_remote_code=arguments.trust_remote_code)
    encoder = rebuild_encoder(spec, load_processor(directory, trust_remote_code=arguments.trust_remote_code))
    for what, mine, theirs in (
        ("labels", asdict(label_spec(encoder)), asdict(spec.label)),
        ("inputs", asdict(input_spec(encoder)), asdict(spec.input)),
    ):
        if differing := [name for name in theirs if mine[name] != theirs[name]]:
            listed = "; ".join(f"{name} was {theirs[name]!r}, is {mine[name]!r}" for name in differing)
            message = (
                f"--model_name_or_path {arguments.model_name_or_path}: other {what} than {spec.model_id}: {listed}"
            )
            if what == "labels":
                raise ConfigError(message + ". Name a model with the tokenizer and template of the measurement")
            _log.warning("%s", message)
    return encoder


def weighted_examples(
    opened: AnnotatedDataset, encoder: Encoder, arguments: argparse.Namespace
) -> Iterator[WeightedExample]:
    """Every usable row, in order.

    Raises AlignmentError for a row whose labels are not those that were measured, or that cannot be encoded any more.
    """
    weighting = flags.weighting_of(arguments)
    columns = ["sample_id", "sample_key", "status", "images", *ANSWER_COLUMNS]
    named = named_rows(opened, arguments.ids_from).tolist()
    number = -1
    for batch in read_batches(opened, [*columns, *LIST_COLUMNS], _BATCH_ROWS):
        folder = image_folder_of(opened, batch.file, arguments.image_folder)
        flat = FlatTokens.of(batch.data)
        weights = flat.weights(**weighting)
        stops = np.cumsum(flat.lengths)
        for row, start, stop in zip(rows_from_batch(batch.data), stops - flat.lengths, stops, strict=True):
            number += 1
            if row.measured is not None and named[number]:
                own = weights[start:stop]
                yield _example(row, row.measured, own, encoder, folder, arguments.max_image_pixels)


def _example(
    row: AnnotatedRow,
    measured: MeasuredSample,
    weights: np.ndarray,
    encoder: Encoder,
    folder: Location | None,
    pixels: int,
) -> WeightedExample:
    sample = row.sample
    try:
        files = [read_image_file(ref, folder) for ref in sample.images]
        encoded = encoder(sample, [decode_image(data, pixels) for data in files])
    except SampleError as error:
        raise AlignmentError(
            f"{sample.sample_id}: measured ok, but cannot be encoded now: {error}. Restore its images "
            "(--image_folder), or leave the row out with cal-inspect filter"
        ) from error
    labels = encoded.labels.numpy()
    supervised = labels != IGNORE_INDEX
    if not np.array_equal(labels[supervised], measured.label_ids):
        raise AlignmentError(
            f"{sample.sample_id}: {len(measured.label_ids)} supervised tokens were measured, this encoding has "
            f"{int(supervised.sum())}, or other ids: name the model whose tokenizer and template it was measured with"
        )
    loss_weights = np.zeros(len(labels), np.float32)
    loss_weights[supervised] = weights
    columns = sample_columns(sample, embed=False)
    return WeightedExample(
        sample_id=sample.sample_id,
        sample_key=row.sample_key,
        messages=columns["messages"],
        template_inputs=columns["template_inputs"],
        images=[(ref.path, data) for ref, data in zip(sample.images, files, strict=True)],
        image_paths=[None if ref.data is not None or folder is None else (folder / str(ref.path)).resolve()
                     for ref in sample.images],
        input_ids=encoded.sequence_inputs["input_ids"].numpy().astype(np.int32),
        labels=labels.astype(np.int32),
        loss_weights=loss_weights,
    )  # fmt: skip


def _counted(opened: AnnotatedDataset, count: int, name: str) -> str:
    if not count:
        raise ConfigError(f"nothing to export: none of the {opened.num_rows} rows is ok (cal-inspect summary)")
    return f"{count:,} rows in {name}, {opened.num_rows - count:,} rows that are not ok left out"


def _write_about(opened: AnnotatedDataset, folder: Path, arguments: argparse.Namespace) -> None:
    about = {
        "weighting": flags.weighting_of(arguments),
        "encoded_with": arguments.model_name_or_path,
        "measurement_spec": asdict(opened.spec),
        "fingerprint": opened.spec.fingerprint(),
    }
    if about["weighting"]["beta"] == float("inf"):
        about["weighting"]["beta"] = "inf"
    (folder / "cal_export.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


def write_messages_jsonl(opened: AnnotatedDataset, folder: Path, arguments: argparse.Namespace) -> str:
    """data.jsonl, one object a row; embedded images go to images/, others are named by their absolute path."""
    encoder = encoder_of(opened.spec, arguments)
    count = 0
    with (folder / "data.jsonl").open("w", encoding="utf-8") as file:
        for example in weighted_examples(opened, encoder, arguments):
            names = []
            for number, ((_, data), path) in enumerate(zip(example.images, example.image_paths, strict=True)):
                names.append(str(path) if path else _embedded(folder, f"{count:08d}-{number}", data))
            row = example.columns(names)
            file.write(json.dumps(row, ensure_ascii=False, allow_nan=False, default=np.ndarray.tolist) + "\n")
            count += 1
    _write_about(opened, folder, arguments)
    return _counted(opened, count, "data.jsonl")


def _embedded(folder: Path, name: str, data: bytes) -> str:
    """The image's own bytes under a name of ours: what a dataset calls its files is never a path on this disk."""
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpg", b"GIF8": "gif", b"RIFF": "webp"}
    suffix = next((kind for start, kind in kinds.items() if data.startswith(start)), "img")
    (folder / "images").mkdir(exist_ok=True)
    (folder / "images" / f"{name}.{suffix}").write_bytes(data)
    return f"images/{name}.{suffix}"


def write_hf_dataset(opened: AnnotatedDataset, folder: Path, arguments: argparse.Namespace) -> str:
    """What `datasets.load_from_disk` opens, images embedded."""
    import datasets
    from datasets.arrow_writer import ArrowWriter

    if "::" in str(folder):
        raise ConfigError(f"--output {folder.parent}: `datasets` splits paths at ::, and could not open it there")
    encoder = encoder_of(opened.spec, arguments)
    features = datasets.Features(
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
    rows = folder / "cache" / "rows.arrow"
    rows.parent.mkdir()
    count = 0
    with ArrowWriter(path=str(rows), features=features, writer_batch_size=_BATCH_ROWS) as writer:
        for example in weighted_examples(opened, encoder, arguments):
            count += 1
            writer.write(example.columns([{"bytes": data, "path": path} for path, data in example.images]))
        writer.finalize()
    said = _counted(opened, count, "a dataset for datasets.load_from_disk")
    datasets.Dataset.from_file(str(rows), split=datasets.Split.TRAIN).save_to_disk(str(folder))
    shutil.rmtree(rows.parent)
    _write_about(opened, folder, arguments)
    return said
