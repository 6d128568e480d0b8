"""`transformers.Trainer` with CAL's loss: weighted by token, over label rows only, divided once.

B batch, T padded tokens, N supervised tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Trainer

from cal_pipeline.encode import IGNORE_INDEX
from cal_pipeline.reference import captured_position_ids
from cal_schemas.errors import ConfigError, FormatError
from cal_trainer.delta_source import DeltaSource, StepBatch, UniformWeights
from cal_trainer.label_rows import at_tokens, label_rows, supervised_ids
from cal_trainer.loss import token_nll
from cal_trainer.parameters import parameter_groups
from cal_trainer.weights import Pool, check_weighting, token_weights

Normalization = Literal["step", "sample", "micro_batch"]
_OWN_INPUTS = ("labels", "image_mask", "deltas", "contrast_inputs")
_RELEASED_EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class Weighting:
    """How deltas become weights, and what the weighted sum is divided by.

    `step`: the summed weights of the whole optimizer step, over micro-batches and ranks. `sample`: inside a sample,
    then the mean over the step's samples with a positive sum (CAL, Eq. 5). `micro_batch`: the released code.
    """

    alpha: float = 1.0
    beta: float = 5.0
    window: int = 3
    pool: Pool = "span"
    normalization: Normalization = "step"

    def __post_init__(self) -> None:
        check_weighting(alpha=self.alpha, beta=self.beta, window=self.window)

    def __call__(self, deltas: Tensor, labels: Tensor) -> Tensor:
        """Weights [B, T] of deltas [B, T]."""
        return token_weights(deltas, labels, alpha=self.alpha, beta=self.beta, window=self.window, pool=self.pool)


UNIFORM = Weighting(alpha=1.0, beta=1.0, window=1)


def check_combination(source: DeltaSource, weighting: Weighting, accumulation_steps: int) -> None:
    """ConfigError for what cannot be computed, with the reason."""
    if weighting.pool == "released" and not source.needs_forward:
        raise ConfigError(
            "pool 'released' averages the deltas of unsupervised tokens too, which a cache does not hold: "
            "use it with --delta_source online, or pool span or joined"
        )
    if source.needs_forward and accumulation_steps > 1:
        if weighting.normalization == "step":
            raise ConfigError(
                "normalization 'step' divides by the weights of all micro-batches of the step, and with online deltas "
                "those of the later ones are not known in time: use normalization micro_batch or sample, or "
                "--gradient_accumulation_steps 1"
            )
        if weighting.normalization == "sample" and weighting.alpha == 0:
            raise ConfigError("normalization 'sample' counts samples with a positive sum of weights, which with online "
                              "deltas and alpha = 0 is not known before the step's last micro-batch")  # fmt: skip


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
    (`sampling`, `streaming`) and learning-rate multipliers. Batches are those of `dataset.ExampleCollator`.
    """

    def __init__(
        self,
        *args: Any,
        delta_source: DeltaSource,
        weighting: Weighting,
        sampler: Any = None,
        lr_multipliers: Mapping[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sampler, self._lr_multipliers = sampler, dict(lr_multipliers or {})
        check_combination(delta_source, weighting, self.args.gradient_accumulation_steps)
        self._source, self._weighting = delta_source, weighting
        # Divided by the whole step's denominator here, so the Trainer must not divide by the accumulation steps too.
        self.loss_is_scaled_for_ga = True
        self._evaluated = torch.zeros(2)
        self._sums: Tensor | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return super()._get_train_sampler(train_dataset) if self._sampler is None else self._sampler

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
        batch = {key: inputs[key] for key in _OWN_INPUTS if key in inputs}
        forward = {key: value for key, value in inputs.items() if key not in _OWN_INPUTS}
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
        self._gather_metrics(weights, nll_at.detach(), labels)
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

    def _gather_metrics(self, weights: Tensor, nll: Tensor, labels: Tensor) -> None:
        supervised = F.pad(labels[:, 1:] != IGNORE_INDEX, (1, 0))
        values = (
            supervised.sum(),
            weights.sum(),
            (supervised & (weights <= self._weighting.alpha)).sum(),
            (supervised & (weights >= self._weighting.beta)).sum(),
            nll.where(supervised, 0.0).sum(),  # released pooling has values at other tokens too
            (nll * weights).sum(),
        )
        # Stays on the device until the log asks for it: a step waits for nothing.
        found = torch.stack([value.double() for value in values])
        self._sums = found if self._sums is None else self._sums + found

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds mean weight, shares at the bounds, and the loss with and without weights, of this rank's tokens."""
        if "loss" in logs and self._sums is not None:
            tokens, weight, at_alpha, at_beta, nll, weighted = self._sums.tolist()
            self._sums = None
            tokens = max(tokens, 1.0)
            logs = {
                **logs,
                "mean_weight": weight / tokens,
                "share_at_alpha": at_alpha / tokens,
                "share_at_beta": at_beta / tokens,
                "unweighted_loss": nll / tokens,
                "weighted_loss": weighted / max(weight, 1e-12),
            }
        super().log(logs, *args, **kwargs)


__all__ = ["UNIFORM", "CalTrainer", "UniformWeights", "Weighting", "check_combination"]
