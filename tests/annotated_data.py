"""Annotated directories as cal-precompute writes them, for tests that train on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cal_pipeline.annotate import AnnotateOptions, annotate_shard
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_pipeline.output.store import LocalStore
from cal_pipeline.sources.shard import Shard
from cal_schemas.annotated import annotated_schema
from cal_schemas.metadata import Carry
from cal_schemas.token_columns import ExtraColumn
from examples_of import measurement_spec
from tiny_data import MAX_IMAGE_PIXELS


def annotate(
    output: Path,
    shards: Sequence[Shard],
    encoder: Encoder,
    model: Any,
    *,
    carry: Carry = "images",
    extra_columns: tuple[ExtraColumn, ...] = (),
    source_column: bool = False,
    **spec: Any,
) -> Path:
    """Measures the shards with this encoder and model; the files' spec is the encoder's own."""
    store = LocalStore(output_dir=output)
    store.prepare()
    for shard in shards:
        annotate_shard(
            shard,
            encoder=encoder,
            model=model,
            spec=measurement_spec(**{"label": label_spec(encoder), "input": input_spec(encoder), **spec}),
            store=store,
            options=AnnotateOptions(
                tokens_per_batch=512,
                max_image_pixels=MAX_IMAGE_PIXELS,
                schema=annotated_schema(carry=carry, extra_columns=extra_columns, source_column=source_column),
                carry=carry,
                extra_columns=extra_columns,
                source_label=source_column,
            ),
        )
    return output
