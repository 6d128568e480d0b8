"""Makes the dataset and sampler that the data flags of `cal-train` ask for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, Unpack

import numpy as np

from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.sources.data_paths import existing_directory
from cal_schemas.errors import ConfigError, SidecarError
from cal_schemas.opened import holds_annotated
from cal_schemas.storage.locations import Location, location
from cal_trainer.config import DEFAULT_SHUFFLE_ROWS, GroupBy, OnMissing
from cal_trainer.data.alignment import Example, RowOptions
from cal_trainer.data.dataset import AnnotatedExamples, MappedExamples
from cal_trainer.data.mixing import rows_taken, strata_of, times_of
from cal_trainer.data.sampling import EpochSampler, StepShape, pools_of
from cal_trainer.data.shared_memory import batch_bytes
from cal_trainer.data.sidecar import SidecarExamples
from cal_trainer.data.source import SourceExamples
from cal_trainer.data.streaming import StreamedExamples, StreamSampler

_PROBED_FIRST, _PROBED_ROWS = 16, 256
_TAKEN = "rows that an epoch takes of each source: %s"
_log = logging.getLogger(__name__)

Examples: TypeAlias = AnnotatedExamples | SidecarExamples | SourceExamples | StreamedExamples


def make_dataset(
    data_path: Location | Sequence[Location] | None,
    encoder: Encoder,
    *,
    source_paths: Sequence[str] = (),
    image_folders: Sequence[str] = (),
    on_missing: OnMissing = "error",
    streaming: bool = False,
    shuffle_rows: int = DEFAULT_SHUFFLE_ROWS,
    cache_dir: Path | None = None,
    crossfit: bool = False,
    partial: bool = False,
    **options: Unpack[RowOptions],
) -> Examples:
    """Annotated shards, a sidecar with its source, or a source alone.

    Args:
        data_path: annotated shards; None trains a source that nobody measured.
        encoder: of the model to be trained.
        source_paths: what the annotated shards are joined to, instead of their own images and messages.
        image_folders: where image paths start: none, one, or one for each source path.
        on_missing: for source rows without a measurement.
        streaming: read row groups where they are, instead of a memory-mapped copy.
        shuffle_rows: of streaming.
        cache_dir: of `datasets`.
        crossfit: whether the annotated shards may be of different references, each of other rows.
        partial: whether shards may be missing that were planned, or rows that were measured.
        options: how rows are read (`alignment.RowOptions`).

    Which of these go together TrainConfig says; raises what the datasets raise.
    """
    if source_paths and data_path is not None:
        return SidecarExamples(
            data_path,
            source_paths,
            encoder,
            image_folders=image_folders,
            on_missing=on_missing,
            cache_dir=cache_dir,
            crossfit=crossfit,
            partial=partial,
            **options,
        )
    if data_path is None:
        return SourceExamples(source_paths, encoder, image_folders=image_folders, cache_dir=cache_dir, **options)
    folder = existing_directory("--image_folder", image_folders[0]) if image_folders else None
    if streaming:
        return StreamedExamples(
            data_path,
            encoder,
            image_folder=folder,
            shuffle_rows=shuffle_rows,
            crossfit=crossfit,
            partial=partial,
            **options,
        )
    return AnnotatedExamples(
        data_path, encoder, image_folder=folder, cache_dir=cache_dir, crossfit=crossfit, partial=partial, **options
    )


def make_evaluation_dataset(
    eval_path: str,
    encoder: Encoder,
    *,
    image_folder: str | None = None,
    cache_dir: Path | None = None,
    crossfit: bool = False,
    partial: bool = False,
    **options: Unpack[RowOptions],
) -> AnnotatedExamples | SourceExamples:
    """What to evaluate on: raw data, or annotated shards with images and words of their own, their deltas left aside.

    Arguments as of `make_dataset`; without `image_folder` each shard's paths start where they did in the measurement.

    Raises ConfigError naming the flag, and what the datasets raise.
    """
    folder = existing_directory("--eval_image_folder", image_folder) if image_folder else None
    options["use_deltas"] = False
    if not holds_annotated(location(eval_path)):
        folders = [image_folder] if image_folder else []
        try:
            return SourceExamples([eval_path], encoder, image_folders=folders, cache_dir=cache_dir, **options)
        except ConfigError as error:
            said = str(error).replace("--source_path", "--eval_path").replace("--image_folder", "--eval_image_folder")
            raise ConfigError(said) from error
    try:
        return AnnotatedExamples(
            location(eval_path),
            encoder,
            image_folder=folder,
            cache_dir=cache_dir,
            crossfit=crossfit,
            partial=partial,
            **options,
        )
    except SidecarError as error:
        raise ConfigError(
            f"--eval_path {eval_path} is a sidecar (--carry none), and evaluation joins no source to one: measure it "
            "with cal-precompute --carry images or --carry paths"
        ) from error


def train_sampler(
    examples: Examples,
    shape: StepShape,
    *,
    group_by: GroupBy,
    seed: int,
    shares: Mapping[str, float] | None = None,
) -> EpochSampler | StreamSampler:
    """The sampler of the global epoch; what is streamed takes no grouping.

    shares: by source, 1 in all, of the rows of an epoch; None takes every row once.
    """
    names = examples.source_names
    if isinstance(examples, StreamedExamples):
        counts = None
        if shares is not None:
            sizes = examples.rows_of_sources
            times = times_of(sizes, names, shares)
            counts = [max(1, round(size * often)) for size, often in zip(sizes, times, strict=True)]
            examples.hold_for(len(names))
            _log.info(_TAKEN, rows_taken(names, counts, sizes))
        return StreamSampler(examples, shape, seed=seed, counts=counts)
    has_image = examples.has_image()
    strata = None
    if shares is not None:
        strata = strata_of(pools_of(has_image, group_by), examples.source_of, names, shares)
        parts = [part for of_pool in strata for part in of_pool]
        counts = [sum(part.count for part in parts if part.source == at) for at in range(len(names))]
        _log.info(_TAKEN, rows_taken(names, counts, np.bincount(examples.source_of).tolist()))
    return EpochSampler(
        examples.lengths(), has_image, group_by=group_by, step_size=shape.size, seed=seed, strata=strata
    )


def validate_rows(examples: Examples) -> None:
    """Encodes rows until one can be trained on: wrong labels or a wrong image folder show before the model is loaded.

    Looks at the first with an image, then at the first few, then at more that are spread over all of the data. Raises
    ConfigError when none of them is of any use, and what reading a row raises.
    """
    total = len(examples)
    shown = [int(examples.has_image().argmax())] if isinstance(examples, MappedExamples) and total else []
    spread = np.linspace(0, total - 1, num=min(_PROBED_ROWS, total)).round().astype(int).tolist()
    rows = list(dict.fromkeys([*shown, *range(min(_PROBED_FIRST, total)), *spread]))
    for number, row in enumerate(rows):
        if not examples[row].unusable:
            if number:
                _log.warning("%d rows were unusable before the first that can be trained on", number)
            return
    raise ConfigError(
        f"none of the {len(rows)} rows looked at can be trained on (the first {_PROBED_FIRST}, and others spread over "
        f"all {total}); the warnings above say why"
    )


def mean_tokens(examples: Examples) -> float:
    """Encoded tokens of a row: as the measurement found them, else of the first few rows."""
    if isinstance(examples, AnnotatedExamples | SidecarExamples) and (mean := examples.lengths().mean()):
        return float(mean)
    return float(np.mean([examples[row].encoded.num_tokens for row in range(min(_PROBED_FIRST, len(examples)))]))


def largest_of_first(examples: Examples) -> Example:
    """Picks, of the first few, the example whose tensors are largest."""

    def size(example: Example) -> int:
        inputs = (example.encoded.sequence_inputs, example.encoded.image_inputs, example.encoded.contrast_inputs)
        return sum(map(batch_bytes, inputs))

    return max((examples[row] for row in range(min(_PROBED_FIRST, len(examples)))), key=size)
