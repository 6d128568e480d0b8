"""Gives TRL's `DPOTrainer` the reference's log-probabilities from a measurement, for rows with images.

TRL precomputes those of text alone; with images it keeps the reference in memory and runs it in every step. Needs `trl`
(the extra `trl`), and two directories that `cal-precompute --extra_columns logprobs` made, in the same order: of the
conversations that end in the chosen answer, and of those that end in the rejected one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Unpack

import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from trl import DPOConfig, DPOTrainer

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoded import EncodedSample
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.encoding.identity import input_spec
from cal_pipeline.measuring.contrast import innermost_decoder
from cal_pipeline.measuring.rotary import rows_alone
from cal_schemas.errors import STATUS_OK, AlignmentError, ConfigError
from cal_schemas.opened import AnnotatedDataset, named
from cal_schemas.spec import IGNORE_INDEX, differences_in_words
from cal_schemas.storage.locations import Location
from cal_trainer.data.alignment import RowOptions
from cal_trainer.data.dataset import AnnotatedExamples, open_self_contained
from cal_trainer.integrations.trl_settings import BATCHES, validate_fused_head, validate_settings
from cal_trainer.objective.same_network import keep_norms_still

_LOGPROBS: Final = "logprobs_with_image"
_OBEYED: Final[dict[str, tuple[object, str]]] = {
    **BATCHES,
    "precompute_ref_log_probs": (True, "the reference's log-probabilities come with the rows"),
    "ld_alpha": (None, "it weighs single tokens of the reference, and its sums are what is there"),
}
"""Fields of DPOConfig, each with the one value that holds here and the reason."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _MeasuredAnswer:
    """The last answer of a row: the row's index among those that are ok, its tokens, and their summed log-probability.

    The sum is None where one of them was not measured, and where the row may be cut.
    """

    index: int
    length: int
    logprob: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One side of a pair: a conversation whose last answer is the completion."""

    encoded: EncodedSample
    mask: Tensor
    """[T] int64, 1 at the completion's tokens: the answer with its end of turn."""
    logprob: float
    """The completion's, summed, of the reference."""


class MeasuredPairs(Dataset[tuple[Completion, Completion]]):
    """Pairs (chosen, rejected) of rows of the same place in two measurements, both ok and whole; encoded on access.

    Args:
        chosen: annotated shards with `logprobs`, of conversations that end in the chosen answer.
        rejected: the same conversations, ending in the rejected one.
        encoder: of the model to be trained.
        cache_dir: of `datasets`.
        options: how rows are read.

    Raises ConfigError for measurements without log-probabilities, of different references, different sizes or other
    inputs than `encoder` makes, and what AnnotatedExamples raises. Reading a pair raises AlignmentError for labels
    other than the measured ones, and for two rows whose tokens before the completion, or whose images, differ.
    """

    def __init__(
        self,
        chosen: Location,
        rejected: Location,
        encoder: Encoder,
        *,
        cache_dir: Path | None = None,
        **options: Unpack[RowOptions],
    ) -> None:
        if not options.get("use_deltas", True):
            raise ConfigError("use_deltas=False compares no labels, and these log-probabilities are of those measured")
        paths = (chosen, rejected)
        opened = [open_self_contained(path) for path in paths]
        if differing := opened[0].spec.differences(opened[1].spec):
            listed = "; ".join(f"{name} is {a!r} and {b!r}" for name, a, b in differing)
            raise ConfigError(f"{chosen} and {rejected} are of different measurements: {listed}")
        if differing_inputs := differences_in_words(input_spec(encoder), opened[0].spec.input):
            raise ConfigError(
                f"{chosen} was measured with other inputs than the model in training gets: {differing_inputs}. A "
                "reference's log-probabilities hold for its own inputs: give the Encoder the measurement's settings"
            )
        sides = [_completions(named(path), one) for path, one in zip(paths, opened, strict=True)]
        if len(sides[0]) != len(sides[1]):
            raise ConfigError(f"{chosen} has {len(sides[0])} rows and {rejected} {len(sides[1])}: row by row they are "
                              "the two answers to one question")  # fmt: skip
        self._examples = [AnnotatedExamples(path, encoder, cache_dir=cache_dir, **options) for path in paths]
        self.encoder = self._examples[0].encoder
        self._sides = sides
        usable = [np.array([answer is not None and answer.logprob is not None for answer in side]) for side in sides]
        self._rows = np.flatnonzero(usable[0] & usable[1])
        if not len(self._rows):
            raise ConfigError(f"{chosen} and {rejected}: of {len(sides[0])} pairs none was measured whole")
        if skipped := len(sides[0]) - len(self._rows):
            _log.warning(
                "%d of %d pairs are left out: a side is not ok, lacks a log-probability, or fills the maximum length "
                "(--truncation tail)", skipped, len(sides[0]),
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Completion, Completion]:
        row = int(self._rows[index])
        chosen, rejected = (self._side(number, row) for number in range(2))
        prompts = [side.encoded.sequence_inputs["input_ids"][: int(side.mask.argmax())] for side in (chosen, rejected)]
        images = [side.encoded.image_inputs for side in (chosen, rejected)]
        same_images = images[0].keys() == images[1].keys() and all(
            torch.equal(value, images[1][name]) for name, value in images[0].items()
        )
        if not torch.equal(*prompts) or not same_images:
            raise AlignmentError(f"row {row}: the chosen and the rejected conversation differ before their last answer "
                                 f"({'images' if torch.equal(*prompts) else 'tokens'})")  # fmt: skip
        return chosen, rejected

    def _side(self, number: int, row: int) -> Completion:
        measured = self._sides[number][row]
        assert measured is not None
        assert measured.logprob is not None
        length = measured.length
        example = self._examples[number][measured.index]
        supervised = torch.nonzero(example.encoded.labels != IGNORE_INDEX)[:, 0].numpy()
        here = _last_run(supervised)
        if example.unusable or example.encoded.truncated or here != length:
            found = "is cut" if example.encoded.truncated else f"has {here}"
            if example.unusable:
                found = "is in a row that cannot be used"
            raise AlignmentError(f"row {row}: its last answer was measured with {length} tokens, and here it {found}; "
                                 "encode with the flags and the images of the measurement")  # fmt: skip
        mask = torch.zeros_like(example.encoded.labels)
        mask[supervised[-length:]] = 1
        return Completion(encoded=example.encoded, mask=mask, logprob=measured.logprob)


def _completions(name: str, opened: AnnotatedDataset) -> list[_MeasuredAnswer | None]:
    """Reads the last answer of each row, None where it is not ok; ConfigError without log-probabilities.

    A row that was cut has the maximum length; one that has it by itself is not told apart.
    """
    if _LOGPROBS not in opened.schema.names:
        raise ConfigError(f"{name} has no column {_LOGPROBS}: measure it with cal-precompute --extra_columns logprobs")
    cut_at = opened.spec.input.max_length if opened.spec.input.truncation == "tail" else None
    found: list[_MeasuredAnswer | None] = []
    num_ok = 0
    for batch in opened.numbered_batches(["status", "num_tokens", "label_positions", _LOGPROBS]):
        for row in batch.data.to_pylist():
            if row["status"] != STATUS_OK:
                found.append(None)
                continue
            length = _last_run(np.asarray(row["label_positions"]))
            values = row[_LOGPROBS][-length:]
            whole = None not in values and row["num_tokens"] != cut_at
            found.append(_MeasuredAnswer(index=num_ok, length=length, logprob=float(np.sum(values)) if whole else None))
            num_ok += 1
    return found


def _last_run(positions: np.ndarray) -> int:
    """How many of these ascending positions [S] follow each other without a gap at the end."""
    gaps = np.flatnonzero(np.diff(positions) != 1)
    return len(positions) - (int(gaps[-1]) + 1 if len(gaps) else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class PairCollator:
    """Makes rows of the data set that TRL holds, which are numbers, into its batches: all chosen, then all rejected."""

    pairs: MeasuredPairs

    def __call__(self, rows: Sequence[dict[str, Any] | tuple[Completion, Completion]]) -> dict[str, Tensor]:
        """Takes B items of a data set of numbers, or pairs, which is what evaluation data gives.

        Gives inputs and `completion_mask` [2B, T], `ref_chosen_logps` and `ref_rejected_logps` [B] float32.
        """
        pairs = [row if isinstance(row, tuple) else self.pairs[row["row"]] for row in rows]
        sides = [pair[number] for number in range(2) for pair in pairs]
        encoder = self.pairs.encoder
        batch = collate(
            [side.encoded for side in sides], pad_token_id=encoder.pad_token_id, batch_first=encoder.batch_first_inputs
        )
        chosen, rejected = torch.tensor([side.logprob for side in sides]).chunk(2)
        return {
            **batch.inputs,
            "completion_mask": torch.nn.utils.rnn.pad_sequence([side.mask for side in sides], batch_first=True),
            "ref_chosen_logps": chosen,
            "ref_rejected_logps": rejected,
        }


class MeasuredDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer on `MeasuredPairs`; no reference is loaded.

    Takes what DPOTrainer takes, `args` with `precompute_ref_log_probs=True` and `max_length` None or the encoder's. The
    reference is whatever was measured; TRL's own would be the model that training begins with.

    Raises ConfigError for settings that would have no effect, and what reading the first pair raises, before the model
    is loaded.
    """

    def __init__(
        self, model: Any, args: DPOConfig, *, train_dataset: MeasuredPairs, eval_dataset: Any = None, **kwargs: Any
    ) -> None:
        several = eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset]
        for data in (train_dataset, *(one for one in several if one is not None)):
            if not isinstance(data, MeasuredPairs):
                raise ConfigError(f"data is {type(data).__name__}: MeasuredDPOTrainer takes MeasuredPairs")
        encoder = train_dataset.encoder
        replaced = {name: kwargs.get(name) for name in ("data_collator", "ref_model", "processing_class")}
        validate_settings(args, DPOConfig, _OBEYED, replaced, max_length=encoder.max_length)
        if encoder.uniform_shape_batches:
            raise ConfigError(
                f"a pair is two rows of a batch, and this model takes one: {encoder.uniform_shape_batches}"
            )
        chosen, _ = train_dataset[0]
        super().__init__(
            model,
            args=args,
            data_collator=PairCollator(pairs=train_dataset),
            # TRL takes only this kind of data set: it has the numbers of the pairs.
            train_dataset=datasets.Dataset.from_dict({"row": range(len(train_dataset))}),
            eval_dataset=eval_dataset,
            **{**kwargs, "processing_class": encoder.processor},
        )
        self._is_vision_dataset = True  # So it is, and `evaluate` then prepares nothing.
        encoder.pad_within(self.model.get_input_embeddings().num_embeddings)
        validate_fused_head(self.accelerator.unwrap_model(self.model), chosen.encoded, encoder)
        keep_norms_still(self.model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Leaves data as they are: they come encoded, and with the reference's log-probabilities."""
        return dataset

    _precompute_ref_logps = _prepare_dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row"]

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Computes TRL's loss; a row gets the positions' frequencies that it was measured with."""
        with rows_alone(innermost_decoder(self.accelerator.unwrap_model(model)), inputs.get("attention_mask")):
            return super()._compute_loss(model, inputs, return_outputs)
