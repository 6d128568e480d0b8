"""`transformers.Trainer` with CAL's loss: weighted by token, over label rows only, divided once.

B batch, T padded tokens, N supervised tokens, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from cal_pipeline.encode import IGNORE_INDEX
from cal_pipeline.reference import captured_position_ids
from cal_schemas.errors import ConfigError, FormatError
from cal_trainer.dataset import OWN_INPUTS
from cal_trainer.delta_source import DeltaSource, StepBatch
from cal_trainer.label_rows import at_tokens, label_rows, supervised_ids
from cal_trainer.loss import token_nll
from cal_trainer.parameters import layers_to_shard, parameter_groups
from cal_trainer.resuming import write_state
from cal_trainer.sampling import InOrder
from cal_trainer.step_metrics import StepMetrics
from cal_trainer.weighting import UNIFORM, Weighting, check_combination

_RELEASED_EPSILON = 1e-6


def load_checkpoint(model: Any, checkpoint: str) -> None:
    """Weights of a checkpoint into the model, through `from_pretrained`.

    transformers 5.23 saves many vision-language models under other parameter names than they have in memory, and its
    Trainer loads them back by name: nothing would match, and training would go on from the wrong weights with no more
    than a log line. Raises FormatError when a parameter is missing.
    """
    loaded, info = type(model).from_pretrained(checkpoint, dtype=model.dtype, output_loading_info=True)
    if missing := sorted(info["missing_keys"]):
        raise FormatError(f"{checkpoint} has no weights for {len(missing)} parameters ({missing[0]}, …)")
    model.load_state_dict(loaded.state_dict())


class CalTrainer(Trainer):  # type: ignore[misc]
    """Trains with token weights; evaluation is always uniform.

    Takes what `Trainer` takes, plus where deltas come from, how they become weights, the order of the global epoch
    (`sampling`, `streaming`), learning-rate multipliers, and what checkpoints remember of the run (`resuming`). Batches
    are those of `dataset.ExampleCollator`; evaluation data that does not divide among ranks answers index BLANK.
    """

    def __init__(
        self,
        *args: Any,
        delta_source: DeltaSource,
        weighting: Weighting,
        sampler: Any = None,
        lr_multipliers: Mapping[str, float] | None = None,
        run_state: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sampler, self._lr_multipliers, self._run_state = sampler, dict(lr_multipliers or {}), run_state
        check_combination(delta_source, weighting, self.args.gradient_accumulation_steps)
        self._name_layers_to_shard()
        self._source, self._weighting = delta_source, weighting
        # Divided by the whole step's denominator here, so the Trainer must not divide by the accumulation steps too.
        self.loss_is_scaled_for_ga = True
        self._evaluated = torch.zeros(2)
        self._metrics = StepMetrics(alpha=weighting.alpha, beta=weighting.beta)

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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
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
        for group in groups:
            del group["parameter_names"]
        self.optimizer: Any = kind(groups, **options)
        return self.optimizer

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer's, but DDP always looks for parameters without a gradient.

        The Trainer turns that off under gradient checkpointing, for the sake of the reentrant kind, which it does not
        use. LLaVA reads its vision tower's last layer but one: the last has no gradient, and DDP would fail in step 2.
        """
        if self.args.ddp_find_unused_parameters is None:
            self.args.ddp_find_unused_parameters = True
        super().create_accelerator_and_postprocess()

    def _name_layers_to_shard(self) -> None:
        """FSDP wraps whole layers, by class; left to itself accelerate takes names of which a model lacks some."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        wanted = self.args.fsdp or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if wanted and plugin is None:
            raise ConfigError(
                "FSDP shards over several processes with a GPU each; accelerate found "
                f"{self.accelerator.distributed_type} and would train without sharding"
            )
        if plugin is not None and "transformer" in str(plugin.auto_wrap_policy):
            plugin.transformer_cls_names_to_wrap = layers_to_shard(self.model, plugin.transformer_cls_names_to_wrap)

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
        counts = [self._known_denominator(batch) for batch in batches]
        if not counts or any(count is None for count in counts):
            return batches, None
        total = torch.stack([count for count in counts if count is not None]).sum().to(device)
        return batches, self._over_ranks(total)

    def _known_denominator(self, batch: dict[str, Tensor]) -> Tensor | None:
        labels = batch["labels"]
        if self._weighting.normalization == "micro_batch":
            # A micro-batch of fillers, at the end of an epoch, is no micro-batch of the released code's mean.
            return (labels[:, 1:] != IGNORE_INDEX).any().float()
        if self._source.needs_forward:
            # With alpha > 0 every sample with a supervised token has a positive sum, whatever its deltas will be.
            known = self._weighting.normalization == "sample" and self._weighting.alpha > 0
            return (labels[:, 1:] != IGNORE_INDEX).any(1).sum().float() if known else None
        weights = self._weights(batch, None)
        return weights.sum() if self._weighting.normalization == "step" else (weights.sum(1) > 0).sum().float()

    def _over_ranks(self, value: Tensor) -> Tensor:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(value, reduction="sum")  # type: ignore[no-any-return]

    def _weights(self, batch: dict[str, Tensor], step: StepBatch | None, with_image: Tensor | None = None) -> Tensor:
        """[B, T]; position 0 is never predicted, so it weighs nothing."""
        labels = batch["labels"]
        step = step or StepBatch(
            model=None, inputs={}, labels=labels, image_mask=batch["image_mask"], stored_deltas=batch.get("deltas"),
            contrast_inputs=None, position_ids=lambda: None,
        )  # fmt: skip
        weights = self._weighting(self._source(step, with_image), labels)
        return F.pad(weights[:, 1:], (1, 0))

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Tensor | None = None
    ) -> Any:
        """Weighted loss of one micro-batch, already divided; times the ranks, which will average their gradients."""
        own = (*OWN_INPUTS, "contrast_inputs")
        batch = {key: inputs[key] for key in own if key in inputs}
        forward = {key: value for key, value in inputs.items() if key not in own}
        labels = batch["labels"]
        base = self.accelerator.unwrap_model(model)
        training = model.training
        released = training and self._weighting.pool == "released"
        # The released code pools over unsupervised tokens too, with the delta of token id 0.
        wanted = labels.where(labels != IGNORE_INDEX, 0) if released else labels
        with captured_position_ids(base) as seen, label_rows(base, wanted):
            logits = model(**forward, use_cache=False).logits[0]
        label_ids = supervised_ids(wanted)
        nll = token_nll(logits, label_ids)
        nll_at = torch.zeros(labels.shape, dtype=nll.dtype, device=nll.device).masked_scatter(
            F.pad(wanted[:, 1:] != IGNORE_INDEX, (1, 0)), nll
        )
        if not training:
            count = (labels[:, 1:] != IGNORE_INDEX).sum()
            self._evaluated = self._evaluated.to(nll) + torch.stack([nll_at.sum(), count.to(nll.dtype)])
            loss = nll_at.sum() / count.clamp(min=1)
            return (loss, {"loss": loss}) if return_outputs else loss
        with torch.no_grad():
            with_image = at_tokens(logits.detach().gather(1, label_ids[:, None])[:, 0], wanted)
            step = StepBatch(
                model=base, inputs=forward, labels=wanted, image_mask=batch["image_mask"],
                stored_deltas=batch.get("deltas"), contrast_inputs=batch.get("contrast_inputs"),
                position_ids=lambda: seen[0],
            )  # fmt: skip
            weights = self._weights(batch, step, with_image)
        self._metrics.add(weights, nll_at.detach(), labels, batch.get("num_unusable"))
        return self._normalised(nll_at, weights, num_items_in_batch)

    def _normalised(self, nll: Tensor, weights: Tensor, known: Tensor | None) -> Tensor:
        ranks = self.accelerator.num_processes
        total: Tensor
        if self._weighting.normalization == "micro_batch":
            total = (nll * weights).sum() / (weights.sum() + _RELEASED_EPSILON)
            assert known is not None  # counted from the labels, before the forward
        elif self._weighting.normalization == "sample":
            sums = weights.sum(1)
            total = ((nll * weights).sum(1) / sums.where(sums > 0, 1.0)).where(sums > 0, 0.0).sum()
            known = self._over_ranks((sums > 0).sum().float()) if known is None else known
        else:
            total = (nll * weights).sum()
            known = self._over_ranks(weights.sum()) if known is None else known
        # A zero denominator means that nothing is weighed: loss 0, not NaN.
        loss: Tensor = total * ranks / known.where(known > 0, 1.0)
        return loss

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's, with the loss over all tokens: its mean of batch means depends on the batch size."""
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

    def count_unusable(self) -> int:
        """Rows met in training, before a resume too, that could not be used; once an epoch. All ranks call it."""
        now = self._metrics.take(self._over_ranks)["unusable_rows"] if self._metrics.pending else 0.0
        return int(self._num_unusable() + now)

    def _num_unusable(self) -> float:
        logged = (entry["unusable_rows"] for entry in reversed(self.state.log_history) if "unusable_rows" in entry)
        return next(logged, 0.0)


__all__ = ["UNIFORM", "CalTrainer", "Weighting", "check_combination"]
