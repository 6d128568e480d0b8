"""Small valid instances of the types, for tests that vary one field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cal_schemas.annotated import AnnotatedRow, MeasuredSample, annotated_schema
from cal_schemas.metadata import ShardMetadata, ShardSource
from cal_schemas.sample import Sample, Turn
from cal_schemas.spec import ContrastSpec, InputSpec, LabelSpec, MeasurementSpec
from cal_schemas.writer import ShardWriter

MEASURED = MeasuredSample(
    label_ids=np.array([7, 8], np.int32),
    label_positions=np.array([4, 5], np.int32),
    delta_logits=np.array([1.5, np.nan], np.float32),
)


def measurement_spec(**changed: Any) -> MeasurementSpec:
    values: dict[str, Any] = {
        "label": LabelSpec(tokenizer_digest="t", chat_template_digest="c", template="auto"),
        "input": InputSpec(
            image_processor="P", image_processor_backend="pil", image_processor_digest="i",
            image_aspect_ratio="native", max_length=2048, truncation="drop",
        ),
        "contrast": ContrastSpec(),
        "dtype": "float32",
        "attn_implementation": "sdpa",
        "model_id": "tiny",
        "revision": None,
        "weights_digest": "w",
        "reference_saw_data": "no",
    }  # fmt: skip
    return MeasurementSpec(**{**values, **changed})


def shard_metadata(**changed: Any) -> ShardMetadata:
    values: dict[str, Any] = {
        "spec": measurement_spec(),
        "source": ShardSource(
            uri="/data/a.json",
            data_path="a.json",
            image_folder=None,
            num_rows=2,
            size=10,
            mtime_ns=5,
            row_start=0,
            row_stop=2,
        ),
        "carry": "images",
        "tokens_per_batch": 1024,
        "library_versions": {"torch": "2"},
    }
    return ShardMetadata(**{**values, **changed})


def conversation(*turns: str, sample_id: str = "s", **changed: Any) -> Sample:
    """User and assistant turns in alternation."""
    roles = ("user", "assistant")
    messages = tuple(Turn(role=roles[number % 2], content=content) for number, content in enumerate(turns))
    return Sample(**{"sample_id": sample_id, "images": (), "messages": messages, **changed})


def write_shard(path: Path, rows: int = 2, metadata: ShardMetadata | None = None) -> Path:
    """A file of rows id-0, id-1, …, with two labels each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with ShardWriter(path, annotated_schema(carry="images"), metadata or shard_metadata()) as writer:
        for number in range(rows):
            sample = conversation("What?", f"Answer {number}.", sample_id=f"id-{number}")
            writer.write(AnnotatedRow(sample=sample, sample_key=f"{number:032x}", measured=MEASURED))
    return path
