"""Encodes rows again and weighs every token, for trainers that know nothing of deltas."""

from __future__ import annotations

import argparse
import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers.image_utils import make_flat_list_of_images

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec, rebuild_encoder
from cal_pipeline.inspect.tables.flat import FlatTokens
from cal_pipeline.models.directory import model_directory
from cal_pipeline.sources.images import decode_image, read_image_file
from cal_schemas.annotated import AnnotatedRow, MeasuredSample, rows_from_batch, sample_columns
from cal_schemas.errors import AlignmentError, ConfigError, SampleError, ShardError
from cal_schemas.spec import IGNORE_INDEX, MeasurementSpec, differences_in_words
from cal_schemas.storage.locations import Location

_log = logging.getLogger(__name__)


def encoder_of(spec: MeasurementSpec, arguments: argparse.Namespace) -> Encoder:
    """The model's processor with the flags of the measurement; ConfigError when it makes other labels.

    Other inputs are warned of. With the same inputs the pixels are not made again, see `BySize`: a row's tokens tell
    whether that was right.
    """
    directory = model_directory(arguments.model_name_or_path, trust_remote_code=arguments.trust_remote_code)
    encoder = rebuild_encoder(spec, directory, trust_remote_code=arguments.trust_remote_code)
    model = f"--model_name_or_path {arguments.model_name_or_path}"
    if labels := differences_in_words(label_spec(encoder), spec.label):
        raise ConfigError(f"{model}: other labels than {spec.model_id}: {labels}. Name a model with the tokenizer and "
                          "template of the measurement")  # fmt: skip
    if inputs := differences_in_words(input_spec(encoder), spec.input):
        _log.warning("%s: other inputs than %s: %s", model, spec.model_id, inputs)
    else:
        encoder.processor.image_processor = BySize(encoder.processor.image_processor)
    return encoder


class BySize:
    """Stands in for an image processor: processes the first image of every size, and gives its shapes to the others.

    What a processor writes into the text, and so the tokens of a row, depends on sizes alone; the pixels, most of the
    work, are of no use to an export.
    """

    def __init__(self, image_processor: Any) -> None:
        self._image_processor = image_processor
        self._outputs: dict[str, Any] = {}

    def __call__(self, images: Any, **options: Any) -> Any:
        """As the image processor does, but for the values of the pixels."""
        sizes = repr([image.size for image in make_flat_list_of_images(images)])
        if sizes not in self._outputs:
            self._outputs[sizes] = _without_pixels(self._image_processor(images, **options))
        return _without_pixels(self._outputs[sizes])  # A copy: processors take entries out.

    def __getattr__(self, name: str) -> Any:
        return getattr(self._image_processor, name)


def _without_pixels(output: Any) -> Any:
    twin = copy.copy(output)
    twin.data = {name: _without_values(value) for name, value in output.items()}
    return twin


def _without_values(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_values(item) for item in value]
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return value.new_zeros(()).expand(value.shape)  # One number in memory.
    return value


def weighted_examples(
    batch: pa.RecordBatch, encoder: Encoder, image_folder: Location | None, arguments: argparse.Namespace
) -> Iterator[tuple[dict[str, Any], list[bytes]]]:
    """Columns and encoded images of a batch's rows, all of which are ok, in order; T tokens.

    `images` are the samples' references, for the caller to write; `input_ids` [T] int32 hold image tokens, `labels` [T]
    int32 are -100 and `loss_weights` [T] float32 are 0 where nothing is supervised.

    Raises AlignmentError for a row whose labels are not those that were measured, or that cannot be encoded any more.
    """
    weighting = dict(arguments.weighting)
    flat = FlatTokens.of(batch, weighting.pop("score"))
    weights = flat.weights(**weighting)
    stops = np.cumsum(flat.lengths)
    for row, start, stop in zip(rows_from_batch(batch), stops - flat.lengths, stops, strict=True):
        assert row.measured is not None
        yield _example(row, row.measured, weights[start:stop], encoder, image_folder, arguments.max_image_pixels)


def _example(
    row: AnnotatedRow,
    measured: MeasuredSample,
    weights: np.ndarray,
    encoder: Encoder,
    folder: Location | None,
    pixels: int,
) -> tuple[dict[str, Any], list[bytes]]:
    sample = row.sample
    by_size = isinstance(encoder.processor.image_processor, BySize)
    try:
        files = [read_image_file(ref, folder) for ref in sample.images]
        images = [decode_image(data, pixels, only_size=by_size) for data in files]
        encoded = encoder(sample, images)
    except (SampleError, ShardError) as error:
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
    if by_size and not (
        len(labels) == row.num_tokens and np.array_equal(np.flatnonzero(supervised), measured.label_positions)
    ):
        raise AlignmentError(
            f"{sample.sample_id}: {row.num_tokens} tokens were measured, this encoding has {len(labels)}, or its "
            "labels stand elsewhere: an image of another size lies where the measured one did"
        )
    loss_weights = np.zeros(len(labels), np.float32)
    loss_weights[supervised] = weights
    columns = sample_columns(sample, embed=False)
    return {
        "sample_id": sample.sample_id,
        "sample_key": row.sample_key,
        "messages": columns["messages"],
        "template_inputs": columns["template_inputs"],
        "images": sample.images,
        "input_ids": encoded.sequence_inputs["input_ids"].numpy().astype(np.int32),
        "labels": labels.astype(np.int32),
        "loss_weights": loss_weights,
    }, files
