"""Trains as `transformers.Trainer` does, with CAL's loss: weighted by token, over label rows only, divided once.

B batch, T padded tokens, N supervised tokens, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from cal_pipeline.measuring.contrast import innermost_decoder
from cal_pipeline.measuring.rotary import rows_alone
from cal_schemas.errors import ConfigError
from cal_schemas.spec import IGNORE_INDEX
from cal_trainer.data.collator import StepBatch
from cal_trainer.data.sampling import InOrder
from cal_trainer.data.sources import Sources
from cal_trainer.objective.delta_source import DeltaSource
from cal_trainer.objective.label_losses import LabelLosses, LabelLossRunner
from cal_trainer.objective.label_rows import at_rows
from cal_trainer.objective.loss import auxiliary_loss, known_denominator, normalized
from cal_trainer.objective.same_network import keep_norms_still
from cal_trainer.objective.source_weights import SourceWeights
from cal_trainer.objective.step_metrics import StepMetrics
from cal_trainer.objective.weighting import UNIFORM, Weighting
from cal_trainer.run.divergence import nonfinite_weights, validate_losses, validate_weights
from cal_trainer.run.parameters import parameter_groups
from cal_trainer.run.resuming import go_by_flags, load_checkpoint, write_state
from cal_trainer.run.sharding import has_state, load_schedule, name_layers_to_shard
from cal_trainer.run.validation import validate_trainer_arguments

_log = logging.getLogger(__name__)


class CalTrainer(Trainer):  # type: ignore[misc]
    """Trains with token weights; evaluation is always uniform.

    Takes what `Trainer` takes, plus where deltas come from, how they become weights, the order of the global epoch
    (`sampling`, `streaming`), learning-rate multipliers, what checkpoints remember of the run (`resuming`), the sources
    of the data (`data.sources`), and whether NaN ends it (`divergence`). Batches are those of
    `collator.ExampleCollator`; evaluation data that does not divide among ranks answers index DUMMY.
    """

    def __init__(
        self,
        *args: Any,
        delta_source: DeltaSource,
        weighting: Weighting,
        sampler: Any = None,
        lr_multipliers: Mapping[str, float] | None = None,
        run_state: Mapping[str, Any] | None = None,
        sources: Sources | None = None,
        stop_on_nan: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        validate_trainer_arguments(self.args)
        self._sampler, self._lr_multipliers, self._run_state = sampler, dict(lr_multipliers or {}), run_state
        delta_source.check(weighting, self.args.gradient_accumulation_steps)
        held = getattr(self.train_dataset, "score", None)
        if held and (wanted := getattr(delta_source, "score", held)) != held:
            raise ConfigError(f"train_dataset holds score {held}, and CachedDeltas is of {wanted}: give both the same")
        name_layers_to_shard(self.model, self.accelerator, fsdp=bool(self.args.fsdp))
        self._source, self._weighting, self._stop_on_nan = delta_source, weighting, stop_on_nan
        keep_norms_still(self.model)
        # Divided by the whole step's denominator here, so the Trainer must not divide by the accumulation steps too.
        self.loss_is_scaled_for_ga = True
        self._run_head = LabelLossRunner(chunks=not self.args.torch_compile)
        self._evaluated = torch.zeros(2)
        self._num_micro_batches = 1
        """Of the step that is under way, without those of padding rows alone at the end of an epoch."""
        self._multiplier_of_first_group = 1.0
        sources = sources or Sources()
        self._weigh = SourceWeights(weighting, sources)
        self._metrics = StepMetrics(alpha=weighting.alpha, beta=weighting.beta, sources=sources.names)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self._sampler is None else self._sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """The Trainer's, unless ranks would get the first rows a second time, to have batches of equal size."""
        step_size = self.args.eval_batch_size * self.args.world_size
        if self.args.world_size == 1 or len(eval_dataset) % step_size == 0:
            return super()._get_eval_sampler(eval_dataset)
        if not hasattr(eval_dataset, "blank"):
            raise ConfigError(
                f"{len(eval_dataset)} evaluation rows do not divide into {step_size} at a time, and "
                f"{type(eval_dataset).__name__} has no blank row to fill up with"
            )
        return InOrder(len(eval_dataset), step_size)

    def validate_weights(self) -> None:
        """DivergedError for trained weights that are no numbers, unless that is wanted; all ranks call it."""
        if self._stop_on_nan:
            validate_weights(self._over_ranks(nonfinite_weights(self.model)), self.state.global_step)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.validate_weights()
        # Before the rest: what lacks trainer_state.json, which is written last, is no whole checkpoint.
        if self._run_state is not None and self.args.should_save:
            write_state(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}", self._run_state)
        super()._save_checkpoint(model, trial)

    def create_optimizer(self, model: Any = None) -> Any:
        """Transformers' optimizer; with multipliers, parts of the model learn at their own rate."""
        if not self._lr_multipliers or getattr(self, "optimizer", None) is not None:
            return super().create_optimizer(model)
        target = self.model if model is None else model
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, target)
        groups = parameter_groups(
            target, self.args.learning_rate, self.args.weight_decay, multipliers=self._lr_multipliers
        )
        self._multiplier_of_first_group = groups[0]["multiplier"]
        for group in groups:
            del group["parameter_names"], group["multiplier"]
        self.optimizer: Any = kind(groups, **options)
        return self.optimizer

    def _get_learning_rate(self) -> float:
        """The rate to log: --learning_rate by schedule. The Trainer takes its first group's, which may have its own."""
        return float(super()._get_learning_rate()) / self._multiplier_of_first_group

    def create_accelerator_and_postprocess(self) -> None:
        """Makes the Trainer's accelerator, whose DDP always looks for parameters without a gradient.

        The Trainer turns that off under gradient checkpointing, for the sake of the reentrant kind, which it does not
        use. LLaVA reads its vision tower's last layer but one: the last has no gradient, and DDP would fail in step 2.
        """
        if self.args.ddp_find_unused_parameters is None:
            self.args.ddp_find_unused_parameters = True
        super().create_accelerator_and_postprocess()

    def _run_epoch(self, **kwargs: Any) -> None:
        """Runs the Trainer's epoch, which takes a step too many when a resumed run has had them all."""
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(**kwargs)
            return
        _log.warning("nothing is left to train: step %d of %d", self.state.global_step, self.state.max_steps)
        self.control.should_training_stop = True

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._restores_itself():
            super()._load_from_checkpoint(resume_from_checkpoint, model=model)
            return
        load_checkpoint(self.model if model is None else model, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self._restores_itself():
            load_checkpoint(self.model, str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled or has_state(self.optimizer):
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            load_schedule(self.lr_scheduler, self.optimizer, checkpoint)
        go_by_flags(self.state, self.args, self.lr_scheduler)

    def _restores_itself(self) -> bool:
        """Whole checkpoints of a whole model; adapters and sharded states have loaders of their own."""
        return not (self.is_deepspeed_enabled or self.is_fsdp_enabled or hasattr(self.model, "peft_config"))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | None]:
        """The step's micro-batches, and what its loss is divided by where that is known before the forward."""
        batches = []
        for _ in range(num_batches):
            try:
                batches.append(next(epoch_iterator))
            except StopIteration:
                break
        given = [StepBatch.of(batch) for batch in batches]
        supervised = [bool((batch.labels[:, 1:] != IGNORE_INDEX).any()) for batch in given]
        self._num_micro_batches = max(1, sum(supervised))
        counts = [
            known_denominator(
                batch.labels, self._source.known(batch), self._weighting, partial(self._weigh, batch=batch)
            )
            for batch in given
        ]
        if not counts or any(count is None for count in counts):
            return batches, None
        return batches, self._over_ranks(torch.stack([count for count in counts if count is not None]).sum().to(device))

    def _over_ranks(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(value, reduction="sum")  # type: ignore[no-any-return]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Weighted loss of one micro-batch, already divided; times the ranks, which will average their gradients."""
        batch, base = StepBatch.of(inputs), self.accelerator.unwrap_model(model)
        supervised = F.pad(batch.labels[:, 1:] != IGNORE_INDEX, (1, 0))
        self._run_head.learn(base, batch.inputs, batch.labels)
        if not model.training:
            nll = self._label_losses(model, batch, batch.labels).nll.sum()
            self._evaluated = self._evaluated.to(nll) + torch.stack([nll, supervised.sum().to(nll)])
            loss = nll / supervised.sum().clamp(min=1)
            return (loss, {"loss": loss}) if return_outputs else loss
        measured = self._weighting.measured_labels(batch.labels)
        with self._source.observing(base, batch, measured) as deltas_of:
            losses = self._label_losses(model, batch, measured, logits=self._source.reads_logits)
        auxiliary = auxiliary_loss(base, losses.output)
        with torch.no_grad():
            weights = self._weigh(deltas_of(losses), batch)
        counted, share = normalized(weights, batch.labels, self._weighting.normalization)
        of_rows = self._metrics.sources_of(batch)
        of_tokens = of_rows[:, None].expand_as(weights).float()
        factors = at_rows(torch.stack([counted, supervised.float(), weights, of_tokens]), measured)
        products = losses.nll * factors[:3]
        nll = self._metrics.by_source(products[1:].detach(), factors[3])
        self._metrics.add(weights, batch.labels, nll, batch.num_unusable, auxiliary, of_rows)
        denominator = self._over_ranks(share) if num_items_in_batch is None else num_items_in_batch
        # A zero denominator means that nothing is weighed: loss 0, not NaN.
        loss = products.sum(-1)[0] * self.accelerator.num_processes / denominator.where(denominator > 0, 1.0)
        # A mean over the step's micro-batches, as over ranks: transformers' own would grow with their number.
        return loss if auxiliary is None else loss + auxiliary.to(loss) * supervised.any() / self._num_micro_batches

    def _label_losses(self, model: Any, batch: StepBatch, labels: Tensor, *, logits: bool = False) -> LabelLosses:
        """Of one forward, for labels [B, T]."""
        base = self.accelerator.unwrap_model(model)
        with rows_alone(innermost_decoder(base), batch.inputs.get("attention_mask")):
            forward = partial(model, **batch.inputs, use_cache=False)
            return self._run_head(forward, base, labels, logits=logits)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as the Trainer does, with the loss over all tokens: its mean of means depends on the batch size."""
        self._evaluated = torch.zeros(2, device=self.args.device)
        output = super().evaluation_loop(*args, **kwargs)
        nll, tokens = self._over_ranks(self._evaluated).tolist()
        output.metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = nll / max(tokens, 1.0)
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds the step's metrics (`step_metrics`), over all ranks and all steps since the last log."""
        if "loss" in logs and self._metrics.pending:
            # All ranks log a loss after the same step, so all are here.
            before = self._num_unusable()
            logs = {**logs, **self._metrics.take(self._over_ranks)}
            logs["unusable_rows"] += before
        super().log(logs, *args, **kwargs)
        if self._stop_on_nan:
            validate_losses(logs, self.state.global_step)

    def count_unusable(self) -> int:
        """Rows met in training, before a resume too, that could not be used; once an epoch. All ranks call it."""
        now = self._metrics.take(self._over_ranks)["unusable_rows"] if self._metrics.pending else 0.0
        return int(self._num_unusable() + now)

    def _num_unusable(self) -> float:
        logged = (entry["unusable_rows"] for entry in reversed(self.state.log_history) if "unusable_rows" in entry)
        return next(logged, 0.0)


__all__ = ["UNIFORM", "CalTrainer", "Weighting"]
