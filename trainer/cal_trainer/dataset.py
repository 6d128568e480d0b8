"""Annotated shards to training examples: the encoder that measured them, and a check that it gives the same labels.

Rows are memory-mapped through `datasets`, which copies Parquet (pictures included) into its Arrow cache once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cal_pipeline.collate import collate
from cal_pipeline.encode import IGNORE_INDEX, EncodedSample, Encoder
from cal_pipeline.images import DEFAULT_MAX_IMAGE_PIXELS, decode_image, read_image_file
from cal_schemas.annotated import open_annotated
from cal_schemas.errors import STATUS_OK, AlignmentError, ConfigError, SampleError
from cal_schemas.sample import ImageRef, Sample, Turn

BLANK = -1
"""Index of an example that trains nothing: it fills the last step of an epoch."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One encoded row and its deltas."""

    encoded: EncodedSample
    deltas: Tensor
    """[T] float32, NaN where unsupervised or undefined."""


class AnnotatedExamples(Dataset[Example]):
    """Usable rows of annotated shards, encoded on access; a map-style dataset.

    Args:
        path: directory of annotated shards (self-contained: with images and messages).
        encoder: of the model to be trained.
        image_folder: where image paths start; by default what the shards' metadata names.
        cache_dir: of `datasets`, for the Arrow copy.

    Raises ConfigError for a sidecar, FormatError for what is no annotated directory. Reading a row whose labels are
    not those that were measured raises AlignmentError.
    """

    def __init__(
        self,
        path: Path,
        encoder: Encoder,
        *,
        image_folder: Path | None = None,
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
        cache_dir: Path | None = None,
    ) -> None:
        opened = open_annotated(path)
        if "messages" not in opened.schema.names:
            raise ConfigError(f"{path} is a sidecar (--carry none): it holds no images and messages to train on")
        self.spec = opened.spec
        self._encoder = encoder
        self._max_image_pixels = max_image_pixels
        folders = {item.source.image_folder for item in opened.metadata} - {None}
        if image_folder is None and len(folders) > 1:
            raise ConfigError(f"{path} was made from several image folders ({sorted(map(str, folders))}): run with "
                              "--carry images, or train on one of them at a time")  # fmt: skip
        self._image_folder = image_folder or next((Path(str(folder)) for folder in folders), None)
        columns = ["sample_id", "images", "messages", "status", "label_ids", "delta_logits", "num_tokens"]
        loaded: Any = datasets.load_dataset(
            "parquet",
            data_files=[str(file) for file in opened.files],
            columns=columns,
            split="train",
            cache_dir=None if cache_dir is None else str(cache_dir),
        )
        self._rows = loaded.with_format("arrow")
        statuses = np.array(loaded.with_format("numpy")["status"][:], dtype=object)
        self._usable = np.flatnonzero(statuses == STATUS_OK)
        self.skipped = Counter(status for status in statuses.tolist() if status != STATUS_OK)
        if not len(self._usable):
            raise ConfigError(f"{path}: none of its {len(statuses)} rows is ok ({dict(self.skipped)})")
        if self.skipped:
            _log.warning("%s: %d rows are skipped because they have no deltas: %s", path, self.skipped.total(),
                         dict(self.skipped))  # fmt: skip
        self._blank = blank_sample(encoder)

    def __len__(self) -> int:
        return len(self._usable)

    def lengths(self) -> np.ndarray:
        """[len] int64: encoded length with the reference's processor, a hint for grouping."""
        column = self._rows.with_format("numpy")["num_tokens"][:]
        return np.asarray(column, np.int64)[self._usable]

    def has_image(self) -> np.ndarray:
        """[len] bool."""
        found = np.zeros(len(self._rows), bool)
        for start in range(0, len(self._rows), 4096):
            images = self._rows[start : start + 4096]["images"]
            found[start : start + len(images)] = images.combine_chunks().value_lengths().to_numpy() > 0
        return found[self._usable]

    def __getitem__(self, index: int) -> Example:
        if index == BLANK:
            return Example(encoded=self._blank, deltas=torch.full((self._blank.num_tokens,), torch.nan))
        row = self._rows[int(self._usable[index])].to_pylist()[0]
        sample = Sample(
            sample_id=row["sample_id"],
            images=tuple(ImageRef(data=image["bytes"], path=image["path"]) for image in row["images"]),
            messages=tuple(Turn(role=turn["role"], content=turn["content"]) for turn in row["messages"]),
        )
        try:
            pictures = [
                decode_image(read_image_file(ref, self._image_folder), self._max_image_pixels) for ref in sample.images
            ]
            encoded = self._encoder(sample, pictures)
        except SampleError as error:
            raise AlignmentError(
                f"{sample.sample_id}: measured ok, but cannot be encoded now: {error}. Give the flags of the "
                f"measurement (template {self.spec.label.template}, max length {self.spec.input.max_length}), or "
                "measure again"
            ) from error
        stored = np.array(row["delta_logits"], np.float32)  # null reads as None, which numpy turns into NaN
        return Example(encoded=encoded, deltas=scatter_deltas(sample.sample_id, encoded, row["label_ids"], stored))


def scatter_deltas(sample_id: str, encoded: EncodedSample, label_ids: Sequence[int], deltas: np.ndarray) -> Tensor:
    """Stored deltas [S] at the supervised tokens of this encoding, in order; [T] float32, NaN elsewhere.

    Raises AlignmentError unless the supervised ids are exactly those that were measured.
    """
    supervised = encoded.labels != IGNORE_INDEX
    present = encoded.labels[supervised].tolist()
    if present != list(label_ids):
        at = next((i for i, pair in enumerate(zip(present, label_ids, strict=False)) if pair[0] != pair[1]), None)
        where = (
            "" if at is None else f"; the first difference is label {at}: {label_ids[at]} measured, {present[at]} now"
        )
        raise AlignmentError(
            f"{sample_id}: {len(label_ids)} supervised tokens were measured, this encoding has {len(present)}{where}. "
            "Train with the tokenizer and template of the measurement, or run cal-precompute again with this model's"
        )
    scattered = torch.full(encoded.labels.shape, torch.nan)
    scattered[supervised] = torch.from_numpy(deltas)
    return scattered


def blank_sample(encoder: Encoder) -> EncodedSample:
    """A black picture with a word, nothing supervised: keeps vision tower and projector in the graph of every rank."""
    from PIL import Image

    turns = (Turn(role="user", content="<image>\n?"), Turn(role="assistant", content="."))
    encoded = encoder(Sample(sample_id="blank", images=(), messages=turns), [Image.new("RGB", (32, 32))])
    return EncodedSample(
        sequence_inputs=encoded.sequence_inputs,
        image_inputs=encoded.image_inputs,
        labels=torch.full_like(encoded.labels, IGNORE_INDEX),
        image_mask=encoded.image_mask,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class ExampleCollator:
    """Examples to the dict a training step takes: model inputs, and `labels`, `image_mask`, `deltas` [B, T].

    A micro-batch without a picture gets the blank sample as its last row: under data parallelism every rank then runs
    the same passes, and no parameter of the vision side is left without a gradient.
    """

    encoder: Encoder
    blank: EncodedSample

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Pads and stacks."""
        encoded = [example.encoded for example in examples]
        deltas = [example.deltas for example in examples]
        if not any(item.image_inputs for item in encoded):
            encoded.append(self.blank)
            deltas.append(torch.full((self.blank.num_tokens,), torch.nan))
        batch = collate(encoded, pad_token_id=self.encoder.pad_token_id, batch_led=self.encoder.batch_led_inputs)
        length = batch.labels.shape[1]
        padded = [torch.nn.functional.pad(item, (0, length - len(item)), value=torch.nan) for item in deltas]
        extra: Mapping[str, Tensor] = {
            "labels": batch.labels,
            "image_mask": batch.image_mask,
            "deltas": torch.stack(padded),
        }
        return {**batch.inputs, **extra}
