"""Checks that batches and online deltas of a model mean what they say."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainingArguments

from cal_pipeline.encoding.collate import collate
from cal_pipeline.encoding.encoder import Encoder
from cal_pipeline.measuring.load_check import check_model
from cal_pipeline.measuring.self_check import encode_questions
from cal_schemas.errors import ConfigError
from cal_schemas.spec import ContrastSpec
from cal_trainer.objective.same_network import validate_determinism


def validate_batch_sizes(encoder: Encoder, arguments: TrainingArguments, *, evaluates: bool) -> None:
    """ConfigError for more than one row a forward where neighbours change its logits (`UNIFORM_SHAPE_BATCHES`).

    evaluates: whether there are batches of the evaluation's size.
    """
    sizes = {"--per_device_train_batch_size": arguments.per_device_train_batch_size}
    if evaluates:
        sizes["--per_device_eval_batch_size"] = arguments.per_device_eval_batch_size
    for flag, size in sizes.items():
        if encoder.uniform_shape_batches and size > 1:
            raise ConfigError(
                f"{flag} {size}: a model of {type(encoder.processor).__name__} takes one row at a time "
                f"({encoder.uniform_shape_batches}); give {flag} 1, and --gradient_accumulation_steps for larger steps"
            )


class SelfCheck(TrainerCallback):  # type: ignore[misc]
    """Before the first step of online training: the two passes of this model are what they claim to be.

    What cal-precompute's workers do when they load a reference, on the model as it was placed for training.

    Args:
        encoder: of the model in training.
        contrast: of the online deltas.
        name: of the model, for the message.

    `on_train_begin` raises ConfigError (see `cal_pipeline.measuring.load_check.check_model`).
    """

    def __init__(self, encoder: Encoder, contrast: ContrastSpec, name: str) -> None:
        self._encoder, self._contrast, self._name = encoder, contrast, name

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """All ranks check the same samples."""
        training = model.training
        model.eval()
        check_model(model, self._encoder, self._contrast, self._name)
        batch = collate(
            encode_questions(self._encoder, self._name, self._contrast)[:1],
            pad_token_id=self._encoder.pad_token_id,
            batch_first=self._encoder.batch_first_inputs,
        )
        parameter = next(item for item in model.parameters() if item.is_floating_point())
        placed = batch.to(parameter.device, parameter.dtype)
        # The first batch of the data, which the trainer tries too, may be one without images.
        model.train()
        validate_determinism(model, placed.inputs, placed.labels)
        model.train(training)
        if self._encoder.one_by_one and args.per_device_train_batch_size > 1:
            raise ConfigError(
                f"--per_device_train_batch_size {args.per_device_train_batch_size}: deltas of {self._name} would "
                f"depend on a row's neighbours ({self._encoder.one_by_one}); give --per_device_train_batch_size 1, and "
                "--gradient_accumulation_steps for larger steps"
            )
