"""Trains with cached weights in TRL: `SFTTrainer` with rows of ours, each token's log-probability times its weight.

B rows of a micro-batch, T padded tokens. Needs `trl` (the extra `trl`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
import trl
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from cal_pipeline.measuring.contrast import innermost_decoder
from cal_pipeline.measuring.rotary import rows_alone
from cal_schemas.errors import ConfigError
from cal_schemas.maps import Map, check_score
from cal_schemas.scores import SCORES
from cal_trainer.data.alignment import EncodesRows, Example
from cal_trainer.data.collator import ExampleCollator, StepBatch
from cal_trainer.data.dataset import AnnotatedExamples
from cal_trainer.data.factory import validate_rows
from cal_trainer.data.sidecar import SidecarExamples
from cal_trainer.data.source import SourceExamples
from cal_trainer.integrations.trl_settings import BATCHES, ENCODED, ONE_ROW, validate_fused_head, validate_settings
from cal_trainer.objective.delta_source import CachedDeltas
from cal_trainer.objective.loss import known_denominator, normalized
from cal_trainer.objective.same_network import keep_norms_still
from cal_trainer.objective.step_metrics import StepMetrics
from cal_trainer.objective.weighting import Weighting
from cal_trainer.run.self_check import validate_batch_sizes

MappedRows: TypeAlias = AnnotatedExamples | SidecarExamples | SourceExamples

_SUPERVISED: Final = "the supervised tokens are those that were measured"
_OBEYED: Final[dict[str, tuple[object, str]]] = {
    **BATCHES,
    "packing": (False, ONE_ROW),
    "eval_packing": (None, ONE_ROW),
    "assistant_only_loss": (False, _SUPERVISED),
    "completion_only_loss": (None, _SUPERVISED),
    "dataset_text_field": ("text", ENCODED),
    "dataset_kwargs": (None, ENCODED),
    "shuffle_dataset": (False, "the sampler shuffles in every epoch"),
    "chat_template_path": (None, f"{ENCODED}: its processor has the template"),
    "eos_token": (None, f"{ENCODED}: its processor has the tokenizer"),
    "loss_type": ("nll", "the weights are the deltas' alone"),
    "label_smoothing_factor": (0.0, "the weighted loss has no smoothing"),
    "average_tokens_across_devices": (True, "a step is divided once, by what all processes weigh"),
}
"""Fields of SFTConfig, each with the one value that holds here and the reason."""
_REPLACED: Final = ("data_collator", "formatting_func", "compute_loss_func")


@dataclass(frozen=True, kw_only=True, slots=True)
class RowCollator:
    """Makes rows of the data set that TRL holds, which are numbers, into batches of `ExampleCollator`.

    Numbers become examples here, so in the loader's workers, aligned with their measurement one by one.
    """

    examples: MappedRows
    collate: ExampleCollator

    def __call__(self, rows: Sequence[dict[str, Any] | Example]) -> dict[str, Any]:
        """Takes items of a data set of numbers, or examples, which is what evaluation data gives."""
        return self.collate([row if isinstance(row, Example) else self.examples[row["row"]] for row in rows])


class CalSFTTrainer(SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with token weights; evaluation is uniform, and averaged over batches as TRL does.

    Takes what SFTTrainer takes: a model or its name, `peft_config`, callbacks, optimizers. Its log also has the metrics
    of `StepMetrics`, and its processor is that of the examples' encoder.

    Args:
        model: as in SFTTrainer.
        args: an SFTConfig, with `max_length` None or the encoder's.
        train_dataset: rows with the deltas of a measurement; without them only weights that do not depend on deltas.
        weighting: how deltas become weights, and what a step's weighted sum is divided by.
        eval_dataset: examples, or several by name.
        kwargs: of SFTTrainer.

    Raises ConfigError for settings that would have no effect, or another one, and what reading rows raises: the first
    rows are read before the model is loaded.
    """

    loss_is_scaled_for_ga = True  # Divided by the whole step's denominator.

    def __init__(
        self,
        model: Any,
        args: SFTConfig,
        *,
        train_dataset: MappedRows,
        weighting: Weighting,
        eval_dataset: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(train_dataset, MappedRows):
            raise ConfigError(
                f"train_dataset is {type(train_dataset).__name__}: CalSFTTrainer takes AnnotatedExamples or "
                "SidecarExamples, which know their weights (StreamedExamples need the sampler of cal-train)"
            )
        encoder = train_dataset.encoder
        replaced = {name: kwargs.get(name) for name in _REPLACED}
        validate_settings(args, SFTConfig, _OBEYED, replaced, max_length=encoder.max_length)
        if kwargs.setdefault("processing_class", encoder.processor) is not encoder.processor:
            raise ConfigError("processing_class is not the processor of the examples' Encoder, which decides the "
                              "tokens: leave it out")  # fmt: skip
        if SCORES[train_dataset.score].of_training:
            raise ConfigError(
                f"score {train_dataset.score} changes with the model in training, and CalSFTTrainer takes cached ones: "
                "use cal-train"
            )
        check_score(train_dataset.score, Map.parse(weighting.map))
        self._source, self._weighting = CachedDeltas(score=train_dataset.score), weighting
        self._source.check(weighting, args.gradient_accumulation_steps)
        if not train_dataset.has_deltas and weighting.alpha != weighting.beta:
            raise ConfigError(
                f"{type(train_dataset).__name__} without deltas: weights from {weighting.alpha} to {weighting.beta} "
                "need those of a measurement; Weighting(alpha=1, beta=1) does not"
            )
        validate_batch_sizes(encoder, args, evaluates=eval_dataset is not None)
        validate_rows(train_dataset)
        self._step_metrics = StepMetrics(alpha=weighting.alpha, beta=weighting.beta)
        self._compared = False
        # TRL takes only this kind of data set: it has the numbers of the rows, and what grouping by length asks for.
        self._numbers = Dataset.from_dict(
            {"row": range(len(train_dataset)), args.length_column_name: train_dataset.lengths()}
        )
        super().__init__(
            model,
            args,
            data_collator=RowCollator(
                examples=train_dataset, collate=ExampleCollator(encoder=encoder, dummy=train_dataset.blank.encoded)
            ),
            train_dataset=self._numbers,
            eval_dataset=eval_dataset,
            **kwargs,
        )
        if self.get_tp_size() * self.get_cp_size() * self.get_sp_size() > 1:
            raise ConfigError("weights are of whole rows on one device: tensor, context and sequence parallelism are "
                              "not supported")  # fmt: skip
        encoder.pad_within(self.model.get_input_embeddings().num_embeddings)
        validate_fused_head(self.accelerator.unwrap_model(self.model), train_dataset.blank.encoded, encoder)
        keep_norms_still(self.model)

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """Leaves data as they are: they come encoded."""
        if dataset is not self._numbers and not isinstance(dataset, EncodesRows):
            raise ConfigError(f"evaluation data is {type(dataset).__name__}: give examples of the same Encoder, "
                              "AnnotatedExamples or SourceExamples")  # fmt: skip
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns = ["row", self.args.length_column_name]

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """What the step is divided by, over all its micro-batches and processes."""
        batches = [StepBatch.of(batch) for batch in batch_samples]
        counts = [known_denominator(batch.labels, self._source.known(batch), self._weighting) for batch in batches]
        total = torch.zeros((), device=device)
        for count in counts:
            assert count is not None  # cached deltas are known
            total += count.to(device)
        return self._over_ranks(total)

    def _over_ranks(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="sum")  # type: ignore[no-any-return]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """TRL's loss and metrics, of log-probabilities times weights over the step's denominator."""
        batch = StepBatch.of(inputs)
        given = {**batch.inputs, "labels": batch.labels}
        decoder = innermost_decoder(self.accelerator.unwrap_model(model))
        with rows_alone(decoder, batch.inputs.get("attention_mask")):
            if not self.model.training:
                return super().compute_loss(model, given, return_outputs)
            scores = self._source.known(batch)
            assert scores is not None  # of a measurement, whole
            weights = self._weighting(scores, batch.labels)
            counted, share = normalized(weights, batch.labels, self._weighting.normalization)
            denominator = self._over_ranks(share) if num_items_in_batch is None else num_items_in_batch
            # A zero denominator means that nothing is weighed: loss 0, not NaN.
            scaled = counted / denominator.where(denominator > 0, 1.0)

            asked: list[tuple[Tensor, Any]] = []

            def weighted(**forward: Any) -> Any:
                outputs = model(**forward)
                nll = -outputs.log_probs.detach()  # [B, T - 1], 0 where unsupervised
                sums = torch.stack([nll.sum(), (nll * weights[:, 1:]).sum()])
                self._step_metrics.add(weights, batch.labels, sums, batch.num_unusable)
                outputs.log_probs = outputs.log_probs * scaled[:, 1:]
                asked.append((-outputs.log_probs.detach().sum(), getattr(outputs, "aux_loss", None)))
                return outputs

            # Divided already, so TRL divides by 1; it multiplies by the processes, which average their gradients.
            found = super().compute_loss(weighted, given, return_outputs, num_items_in_batch=torch.ones_like(share))
            if not self._compared:
                self._compare(found[0] if return_outputs else found, asked)
            return found

    def _compare(self, loss: Tensor, asked: list[tuple[Tensor, Any]]) -> None:
        """Once: ConfigError where TRL's loss is not of the log-probabilities that it was given.

        asked: for each time that it asked for them their weighted sum, and what it adds for a mixture of experts.
        """
        self._compared = True
        sums = [expected * self.accelerator.num_processes for expected, _ in asked]
        if len(sums) == 1 and isinstance(asked[0][1], Tensor):
            return
        if len(sums) != 1 or not torch.allclose(loss.detach().float(), sums[0].float(), 1e-3, 1e-6, equal_nan=True):
            raise ConfigError(
                f"trl {trl.__version__} gives a loss of {float(loss.detach()):g}, and the weighted one is "
                f"{[float(value) for value in sums]}: it does not take it from the log-probabilities as trl 1.16 does; "
                "use that"
            )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the step's metrics (`step_metrics`), over all processes and all steps since the last log."""
        if "loss" in logs and self._step_metrics.pending:
            # All ranks log a loss after the same step, so all are here.
            logged = (entry["unusable_rows"] for entry in reversed(self.state.log_history) if "unusable_rows" in entry)
            logs |= self._step_metrics.take(self._over_ranks)
            logs["unusable_rows"] += next(logged, 0.0)
        super().log(logs, *args, **kwargs)
