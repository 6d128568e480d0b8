"""Encodes one sample for one or two LLaVA-type checkpoints, as `attention` and `patch-words` need it."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from transformers.utils.logging import disable_progress_bar

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import rebuild_encoder
from cal_pipeline.inspect.with_model.image_tokens import ImageTokens, check_places, image_tokens
from cal_pipeline.inspect.with_model.resolve_reference import resolve_reference
from cal_pipeline.models.directory import model_directory
from cal_pipeline.models.loading import load_config, load_reference
from cal_pipeline.output.row_reader import NumberedRow
from cal_pipeline.sources.images import decode_images
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedView:
    """A checkpoint with the sample encoded by its own processor."""

    name: str
    model: Any
    encoder: Encoder
    encoded: EncodedSample
    tokens: ImageTokens


def encoded_views(
    dataset: AnnotatedDataset, row: NumberedRow, arguments: argparse.Namespace, *, attn_implementation: str
) -> Iterator[EncodedView]:
    """Each checkpoint in turn, so that one model is held at a time; `row` has one image.

    Raises ConfigError for more than two, or a model that is no LLaVA type.
    """
    disable_progress_bar()
    if arguments.model_name_or_path:
        if len(arguments.model_name_or_path) > 2:
            raise ConfigError(f"--model_name_or_path: two checkpoints at most, got {len(arguments.model_name_or_path)}")
        directories = [model_directory(name) for name in arguments.model_name_or_path]
    else:
        directories = [resolve_reference(arguments.annotated, dataset.spec)]
    for directory in directories:  # all of them before the first is loaded
        check_places(load_config(directory), str(directory))
    images = decode_images(row.image_files())
    for directory in directories:
        encoder = rebuild_encoder(dataset.spec, directory)
        encoded = encoder(row.sample, images)
        model = load_reference(
            directory, dtype=arguments.dtype, attn_implementation=attn_implementation, device=arguments.device
        )
        yield EncodedView(
            name=directory.resolve().name,
            model=model,
            encoder=encoder,
            encoded=encoded,
            tokens=image_tokens(model, encoder.processor, encoded),
        )
