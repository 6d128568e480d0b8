"""Encodes rows and aligns what was measured with what is trained: the specs, then the label ids of every row."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, TypedDict

import numpy as np
import torch
from torch import Tensor

from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec, label_spec
from cal_pipeline.encoding.perturbation import encode_with_contrast
from cal_pipeline.measuring.measure import unknown_token
from cal_pipeline.sources.images import DEFAULT_MAX_IMAGE_PIXELS, decode_images, read_images
from cal_schemas.annotated import MeasuredSample, measured_from_columns, sample_from_columns
from cal_schemas.errors import (
    STATUS_OK,
    AlignmentError,
    ConfigError,
    ContrastError,
    FormatError,
    ImageError,
    SampleError,
    ShardError,
    TooLongError,
)
from cal_schemas.sample import Sample
from cal_schemas.scores import DEFAULT_SCORE, SCORES, Score
from cal_schemas.spec import IGNORE_INDEX, ContrastSpec, MeasurementSpec, differences_in_words
from cal_schemas.storage.locations import Location
from cal_trainer.data.dummy import dummy_sample

_MAX_WARNINGS = 20
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One encoded row and its deltas."""

    encoded: EncodedSample
    deltas: Tensor
    """[T] float32, or another score in their place (RowOptions.score); NaN where unsupervised or undefined."""
    unusable: bool = False
    """The dummy example in place of a row that this model's encoding cannot hold."""
    source: int = 0
    """Index of the row's source."""


def check_measurement(spec: MeasurementSpec, encoder: Encoder, where: object) -> bool:
    """Compares a measurement with the encoder of the model to be trained; True when inputs are equal too.

    A difference in what decides the labels raises ConfigError with both values and the way out; one in what decides
    the pixels and the length is logged: deltas of one model may train another.
    """
    way_out = {
        "tokenizer_digest": f"train a model with the tokenizer of {spec.model_id}, or run cal-precompute with this one",
        "chat_template_digest": "give cal-precompute and cal-train the same --template (vicuna_v1, plain), or train a "
        f"model with the chat template of {spec.model_id}",
        "template": f"give --template {spec.label.template}, or run cal-precompute with --template {encoder.template}",
        "message_normalization": "run cal-precompute again with this version",
        "date": "run cal-precompute again with this version",
    }
    mine, theirs = asdict(label_spec(encoder)), asdict(spec.label)
    differing = [name for name in theirs if mine[name] != theirs[name]]
    if "template" in differing:  # The digest of the chat template follows from it.
        differing = [name for name in differing if name != "chat_template_digest"]
    if len(differing) > 1 and "date" in differing:  # Whether there is one follows from the template.
        differing.remove("date")
    if differing:
        listed = "; ".join(f"{name} is {theirs[name]!r} there and {mine[name]!r} here" for name in differing)
        raise ConfigError(
            f"{where} was measured with other labels ({spec.model_id}): {listed}. "
            f"Way out: {'; '.join(way_out[name] for name in differing)}"
        )
    differences = differences_in_words(input_spec(encoder), spec.input)
    if differences:
        _log.warning("%s was measured with other inputs than the model in training gets: %s", where, differences)
    return not differences


def scatter_deltas(sample_id: str, encoded: EncodedSample, label_ids: Sequence[int], deltas: np.ndarray) -> Tensor:
    """Stored deltas [S] at the supervised tokens of this encoding, in order; [T] float32, NaN elsewhere.

    An encoding whose end was cut off takes the deltas of the labels it kept. Raises AlignmentError unless the
    supervised ids are exactly those that were measured.
    """
    supervised = encoded.labels != IGNORE_INDEX
    present = encoded.labels[supervised].tolist()
    kept = len(present) if encoded.truncated else max(len(present), len(label_ids))
    if present != list(label_ids)[:kept]:
        at = next((i for i, pair in enumerate(zip(present, label_ids, strict=False)) if pair[0] != pair[1]), None)
        where = (
            "" if at is None else f"; the first difference is label {at}: {label_ids[at]} measured, {present[at]} now"
        )
        raise AlignmentError(
            f"{sample_id}: {len(label_ids)} supervised tokens were measured, this encoding has {len(present)}{where}. "
            "Train with the tokenizer, template, max length and truncation of the measurement, or run cal-precompute "
            "again with this model's"
        )
    scattered = torch.full(encoded.labels.shape, torch.nan)
    scattered[supervised] = torch.from_numpy(deltas[: len(present)])
    return scattered


class RowOptions(TypedDict, total=False):
    """Options of reading rows, whatever holds them: every dataset hands them on to RowEncoder."""

    use_deltas: bool
    """False trains without them (uniform, online): nothing is compared, all deltas are NaN. True by default."""
    score: Score
    """What takes the place of the deltas, `delta_logit` by default; of one in which the model in training has a part,
    what the measurement has of it (`known_part`)."""
    max_image_pixels: int
    """As in cal-precompute."""
    num_embeddings: int | None
    """Of the model to be trained: a row with a token beyond them trains nothing. None, the default, looks at none."""


class EncodesRows:
    """A dataset whose rows become examples through `_encode`."""

    _encode: RowEncoder

    @property
    def encoder(self) -> Encoder:
        """Of the model to be trained, under the measurement's date."""
        return self._encode.encoder

    @property
    def has_deltas(self) -> bool:
        """False where nobody measured the rows, or their deltas are left aside."""
        return self._encode.has_deltas

    @property
    def score(self) -> Score:
        """What their deltas are."""
        return self._encode.score

    @property
    def blank(self) -> Example:
        """The dummy example, at index DUMMY: trains nothing."""
        return self._encode.dummy

    def contrasted(self, contrast: ContrastSpec) -> Self:
        """Gives the same rows with the perturbed images that online deltas and the drift log need under `contrast`."""
        if not contrast.perturbs:
            return self
        twin = copy.copy(self)
        twin._encode = self._encode.contrasted(contrast)
        return twin


class RowEncoder:
    """A stored row to an Example, in whatever process asks for it.

    Args:
        encoder: of the model to be trained.
        spec: of the measurement; None for rows that nobody measured.
        where: directory of the measurement, for messages.
        use_deltas, score, max_image_pixels, num_embeddings: see RowOptions.

    `contrasted` gives one that encodes perturbed images too.

    Raises ConfigError when the measurement decides labels differently.
    """

    def __init__(
        self,
        encoder: Encoder,
        spec: MeasurementSpec | None,
        *,
        where: object = "",
        use_deltas: bool = True,
        score: Score = DEFAULT_SCORE,
        max_image_pixels: int = DEFAULT_MAX_IMAGE_PIXELS,
        num_embeddings: int | None = None,
    ) -> None:
        encoder = encoder if spec is None else encoder.dated(spec.label.date)
        self.encoder, self._spec, self._use_deltas = encoder, spec, use_deltas
        self.score = score
        self.has_deltas = spec is not None and use_deltas
        self._max_image_pixels, self._num_embeddings = max_image_pixels, num_embeddings
        self._same_inputs = spec is not None and use_deltas and check_measurement(spec, encoder, where)
        dummy = dummy_sample(encoder)
        self.dummy = Example(encoded=dummy, deltas=torch.full((dummy.num_tokens,), torch.nan))
        self._contrast = ContrastSpec()
        self._num_warned = 0

    def contrasted(self, contrast: ContrastSpec) -> RowEncoder:
        """Gives an encoder whose examples also hold what a second pass under `contrast` needs of their images."""
        twin = copy.copy(self)
        twin._contrast = contrast
        twin.dummy = replace(self.dummy, encoded=dummy_sample(self.encoder, contrast))
        return twin

    def __call__(self, row: Mapping[str, Any], image_folder: Location | None) -> Example:
        """Encodes and aligns; `row` has images, messages, and label_ids and delta_logits where it was measured.

        A row that only this model cannot take (too long under other inputs, a token beyond its embeddings, or never
        measured and bad) becomes the dummy example, marked unusable, with a warning. Raises AlignmentError for labels
        other than the measured ones, FormatError for a row that says it was measured and holds nothing.
        """
        sample, measured = sample_from_columns(row), measured_from_columns(row)
        scores = known_part(self.score, measured) if self._use_deltas and measured is not None else None
        if self._use_deltas and row.get("status") == STATUS_OK and (damage := _damage(measured, scores)):
            raise FormatError(
                f"row {sample.sample_id!r} is ok and has {damage}: cal-precompute --verify lists all such rows"
            )
        key = row["sample_key"] if self._contrast.perturbs else ""
        try:
            self.encoder.check(sample)
            images = decode_images(read_images(sample.images, image_folder), self._max_image_pixels)
            encoded = encode_with_contrast(self.encoder, self._contrast, sample, images, key)
        except (SampleError, ShardError) as error:
            only_here = isinstance(error, TooLongError) and not self._same_inputs
            only_here |= isinstance(error, ContrastError)
            if isinstance(error, SampleError) and (only_here or measured is None):
                return self._unusable(sample, error)
            if measured is None:
                raise  # The folder of the images is gone, or its disk is ill: no row is to blame.
            assert self._spec is not None
            way_out = (
                "restore its images, say where they are now (--image_folder; of --eval_path --eval_image_folder)"
                if isinstance(error, ImageError | ShardError)
                else f"give the flags of the measurement (template {self._spec.label.template}, max length "
                f"{self._spec.input.max_length})"
            )
            raise AlignmentError(
                f"{sample.sample_id}: measured ok, but cannot be encoded now: {error}; {way_out}, or measure again"
            ) from error
        if self._num_embeddings is not None and (problem := unknown_token(encoded, self._num_embeddings)):
            return self._unusable(sample, problem)
        if measured is None or scores is None:
            return Example(encoded=encoded, deltas=torch.full(encoded.labels.shape, torch.nan))
        deltas = scatter_deltas(sample.sample_id, encoded, measured.label_ids.tolist(), scores)
        return Example(encoded=encoded, deltas=deltas)

    def _unusable(self, sample: Sample, error: SampleError) -> Example:
        """Logs the first few, in whatever process meets them; all are counted in the metrics of training."""
        self._num_warned += 1
        if self._num_warned <= _MAX_WARNINGS:
            more = "; further ones are counted only (unusable_rows)" if self._num_warned == _MAX_WARNINGS else ""
            _log.warning("%s trains nothing: %s: %s%s", sample.sample_id, error.status, error, more)
        return replace(self.dummy, unusable=True)


def known_part(score: Score, measured: MeasuredSample) -> np.ndarray:
    """[S] float32: the score of a row; where it needs the loss of the model in training, its one column, or 0."""
    definition = SCORES[score]
    if not definition.of_training:
        return np.asarray(definition.compute({name: getattr(measured, name) for name in definition.cached}))
    if not definition.cached:
        return np.zeros(len(measured.label_ids), np.float32)
    (name,) = definition.cached
    return np.asarray(getattr(measured, name))


def _damage(measured: MeasuredSample | None, scores: np.ndarray | None) -> str | None:
    """Returns what the numbers of a row that is ok may not be; None where they may be trained on."""
    if measured is None or scores is None:
        return "no labels"
    if len(measured.label_ids) != len(measured.delta_logits):
        return f"{len(measured.label_ids)} labels and {len(measured.delta_logits)} deltas"
    if len(measured.label_ids) != len(scores):
        return f"{len(measured.label_ids)} labels and {len(scores)} scores"
    if np.isinf(measured.delta_logits).any():
        return "an infinite delta"
    return "an infinite score" if np.isinf(scores).any() else None
