"""Validates transformers' flags: refuses those that would not be obeyed, or would fail after the model is loaded."""

from __future__ import annotations

import copy
import logging
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import whoami
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks

from cal_schemas.errors import ConfigError
from cal_schemas.spec import Dtype
from cal_trainer.run.checkpoints import ADAPTERS_NAME, checkpoints

_DISOBEYED: Final = {
    "label_smoothing_factor": "the weighted loss has no smoothing",
    "neftune_noise_alpha": "noise in the embeddings would differ between the passes",
    "use_liger_kernel": "only label rows go through the head already, and its fused loss has no weights",
}
_REPLACED: Final = {
    "train_sampling_strategy": "use --group_by",
    "dataloader_drop_last": "the last step of an epoch is filled with rows that weigh nothing, and none is dropped",
    "auto_find_batch_size": "the order of an epoch is made for one batch size",
    "do_predict": "nothing is predicted; use generate on the trained model",
}
_COUNTS: Final = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
}
"""The least that each may be."""
_RATES: Final = ("learning_rate", "weight_decay", "max_grad_norm")
_LAUNCHED_ALONE: Final = {"ACCELERATE_USE_CPU", "MASTER_ADDR"}
"""Set by accelerate's launcher of one process, the second where it was asked for more."""
_METRICS: Final = (None, "loss", "eval_loss")
_log = logging.getLogger("cal-train")


def validate_trainer_arguments(arguments: TrainingArguments) -> None:
    """ConfigError for flags that a CalTrainer, however it was built, would not obey."""
    _validate_defaults(arguments, _DISOBEYED)
    if arguments.remove_unused_columns:
        raise ConfigError("--remove_unused_columns would take the deltas out of the batches: leave it false")
    if arguments.n_gpu > 1:
        raise ConfigError(
            f"{arguments.n_gpu} GPUs are visible to one process, which would split batches between them: start "
            "one process each with accelerate launch or torchrun, or set CUDA_VISIBLE_DEVICES"
        )


def validate_flags(arguments: TrainingArguments, *, dtype: Dtype, evaluates: bool) -> None:
    """ConfigError for what cannot be obeyed or cannot work in a run of cal-train.

    dtype: of the weights. evaluates: whether there is data to evaluate on.
    """
    validate_trainer_arguments(arguments)
    _validate_defaults(arguments, _REPLACED)
    if not arguments.do_train:
        raise ConfigError("--do_train false has no effect here: cal-train trains. To evaluate alone: --learning_rate 0 "
                          "--max_steps 1, with --eval_path and --eval_strategy epoch")  # fmt: skip
    _validate_numbers(arguments)
    _validate_evaluation(arguments, evaluates)
    dealing = arguments.accelerator_config
    if dealing.split_batches or dealing.dispatch_batches:
        raise ConfigError("--accelerator_config split_batches and dispatch_batches deal samples out in another order "
                          "than --group_by, --streaming and resuming count on: leave them out")  # fmt: skip
    if "num_steps" in (dealing.gradient_accumulation_kwargs or {}):
        raise ConfigError("--accelerator_config num_steps is unknown to what plans the steps of an epoch and their "
                          "loss: give --gradient_accumulation_steps instead")  # fmt: skip
    if arguments.fsdp and arguments.world_size == 1:
        raise ConfigError("--fsdp shards over several processes with a GPU each, and this is one: start them with "
                          "accelerate launch or torchrun, or leave it out")  # fmt: skip
    if os.environ.keys() >= _LAUNCHED_ALONE and "WORLD_SIZE" not in os.environ:
        raise ConfigError(
            "accelerate launch was asked for several processes and started this one alone: it starts several with "
            "--multi_gpu (also on CPUs, with --use_cpu true behind cal-train), FSDP or DeepSpeed. If one is meant, "
            "give --num_processes 1 and unset MASTER_ADDR"
        )
    _validate_upload(arguments)
    _validate_schedule(arguments)
    if (arguments.fp16 and dtype != "float32") or (arguments.bf16 and dtype == "float16"):
        flag = "--fp16" if arguments.fp16 else "--bf16"
        raise ConfigError(f"{flag} does not go with weights of --dtype {dtype}: leave one of the two out")
    try:
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--report_to {' '.join(arguments.report_to)}: {_one_line(error)}") from error


def _validate_upload(arguments: TrainingArguments) -> None:
    if not arguments.push_to_hub:
        return
    try:
        whoami(token=arguments.hub_token)
    except Exception as error:  # No token, no network, or whatever its HTTP client of the day raises.
        raise ConfigError(f"--push_to_hub: {_one_line(error)} Log in with `hf auth login`, or leave it out") from error


def _validate_schedule(arguments: TrainingArguments) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=arguments.learning_rate)
    kind, options = arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
    try:
        get_scheduler(kind, optimizer, num_warmup_steps=0, num_training_steps=1, scheduler_specific_kwargs=options)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"--lr_scheduler_type {kind.value} with --lr_scheduler_kwargs {options or {}}: {_one_line(error)}"
        ) from error


def validate_optimizer(arguments: TrainingArguments, model: Any) -> None:
    """ConfigError for an --optim whose package or arguments are missing; takes the model or its meta-device model.

    Warns of --optim_args that change nothing: most optimizers read none.
    """
    plain = copy.copy(arguments)
    plain.optim_args = None
    try:
        with_arguments = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        unchanged = arguments.optim_args and str(with_arguments) == str(
            Trainer.get_optimizer_cls_and_kwargs(plain, model)
        )
    except (ImportError, RuntimeError, ValueError) as error:
        raise ConfigError(f"--optim {arguments.optim.value}: {_one_line(error)}") from error
    if unchanged:
        _log.warning("--optim_args %s changes nothing of --optim %s", arguments.optim_args, arguments.optim.value)


def prepare_output(output_dir: str, *, resumes: bool, adapters: bool, reads: Mapping[str, Iterable[str]]) -> None:
    """Makes the directory; ConfigError unless it can be written to, a warning for an earlier run's checkpoints.

    adapters: whether they are what is trained. A whole model beside older ones is refused: `from_pretrained` would load
    those, on the base that they name, in place of the model.
    reads: by flag, what the run reads, into none of which it may write.
    """
    if not output_dir:
        raise ConfigError("--output_dir is empty: say where the model goes")
    if "://" in output_dir:
        raise ConfigError(f"--output_dir {output_dir} is a URL: train into a directory, and copy it there")
    for flag, paths in reads.items():
        if Path(output_dir).resolve() in [Path(path).resolve() for path in paths]:
            raise ConfigError(f"--output_dir {output_dir} is {flag} too: the trained model would be written over or "
                              "among what it is made of. Name another directory")  # fmt: skip
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output_dir):
            pass
    except OSError as error:
        raise ConfigError(f"--output_dir {output_dir} cannot be written to: {error.strerror or error}") from error
    names = (ADAPTERS_NAME, f"checkpoint-*/{ADAPTERS_NAME}")
    older = sorted(path for name in names for path in Path(output_dir).glob(name))
    if older and not adapters:
        raise ConfigError(
            f"--output_dir {output_dir} holds adapters of an earlier run ({older[0].relative_to(output_dir)}), which "
            "from_pretrained would load in place of this run's model: give another --output_dir, or remove them"
        )
    if not resumes and (there := checkpoints(Path(output_dir))):
        _log.warning(
            "--output_dir %s holds %s of an earlier run, and this one begins anew: --resume_from_checkpoint last would "
            "go on from there, another --output_dir would keep both", output_dir, there[0].name
        )  # fmt: skip


def _validate_defaults(arguments: TrainingArguments, instead: Mapping[str, str]) -> None:
    defaults = {field.name: field.default for field in fields(TrainingArguments)}
    for name, reason in instead.items():
        if name in defaults and getattr(arguments, name) != defaults[name]:
            raise ConfigError(f"--{name} has no effect here: {reason}")


def _validate_numbers(arguments: TrainingArguments) -> None:
    for name, least in _COUNTS.items():
        if (value := getattr(arguments, name)) < least:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")
    for name in _RATES:
        if not 0 <= (value := getattr(arguments, name)) < math.inf:
            raise ConfigError(f"--{name} must be a number from 0 on, got {value}")
    if arguments.max_steps == 0 or (arguments.max_steps < 0 and arguments.num_train_epochs <= 0):
        raise ConfigError(
            f"--max_steps {arguments.max_steps} and --num_train_epochs {arguments.num_train_epochs}: nothing would be "
            "trained; --max_steps is a positive number, or left out"
        )
    if arguments.save_strategy == "steps" and arguments.save_steps <= 0:
        raise ConfigError(f"--save_steps {arguments.save_steps} would never save: give --save_strategy no")


def _validate_evaluation(arguments: TrainingArguments, evaluates: bool) -> None:
    if evaluates == (arguments.eval_strategy == "no"):
        raise ConfigError("--eval_path says on what to evaluate and --eval_strategy when: give both, or neither")
    for name in ("do_eval", "eval_on_start"):
        if getattr(arguments, name) and not evaluates:
            raise ConfigError(f"--{name} has no effect here: say when with --eval_strategy, and on what with "
                              "--eval_path")  # fmt: skip
    chooses = arguments.load_best_model_at_end or arguments.save_strategy == "best"
    if chooses and arguments.metric_for_best_model not in _METRICS:
        raise ConfigError(f"--metric_for_best_model {arguments.metric_for_best_model}: evaluation gives eval_loss only")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
