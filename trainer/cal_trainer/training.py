"""Runs cal-train: plans, builds the trainer, trains and saves."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import datasets
from transformers import TrainerCallback, enable_full_determinism, set_seed
from transformers.utils.logging import disable_progress_bar

from cal_pipeline.models.loading import load_model
from cal_trainer.config import TrainConfig
from cal_trainer.data.sampling import SetSamplerEpoch
from cal_trainer.objective.drift import DriftLog
from cal_trainer.planning import Plan, plan_run
from cal_trainer.run.base_model import prepare_model
from cal_trainer.run.last_step import saving_at_term
from cal_trainer.run.logged_steps import LogSteps
from cal_trainer.run.model_card import write_model_card
from cal_trainer.run.quantized import compute_dtype
from cal_trainer.run.self_check import SelfCheck
from cal_trainer.run.start_line import StartLine
from cal_trainer.trainer import CalTrainer
from cal_trainer.training_arguments import CalTrainingArguments


def quiet_bars() -> None:
    """Ends the progress bars of `datasets` and transformers, which make a line of each refresh in a file."""
    datasets.disable_progress_bars()
    disable_progress_bar()


def train(
    config: TrainConfig, arguments: CalTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> CalTrainer:
    """Trains, evaluates and saves.

    callbacks: transformers', which may also end the training early.

    Raises ConfigError, FormatError, AlignmentError or DivergedError with one message; Terminated where
    `enable_jit_checkpoint` is set and SIGTERM ended the training.
    """
    plan = plan_run(config, arguments)
    trainer = build_trainer(plan, config, arguments)
    for callback in callbacks:
        trainer.add_callback(callback)
    with saving_at_term(trainer) if arguments.enable_jit_checkpoint else nullcontext():
        run(trainer, plan)
    return trainer


def build_trainer(plan: Plan, config: TrainConfig, arguments: CalTrainingArguments) -> CalTrainer:
    """Loads the model and puts the trainer around it, with what watches the steps."""
    # The trainer does this too, but only after adapters were made; all ranks make the same ones.
    enable_full_determinism(arguments.seed) if arguments.full_determinism else set_seed(arguments.seed)
    model = load_model(
        plan.facts.base,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device_map=None if config.quantization == "none" else str(arguments.device),
        quantization=config.quantization,
        compute_dtype=compute_dtype(config, arguments),
        unquantized=plan.facts.unquantized,
        trust_remote_code=config.trust_remote_code,
    )
    trainer = CalTrainer(
        model=prepare_model(model, config),
        args=arguments,
        callbacks=[StartLine(plan.facts, plan.tokens_per_row)],  # These come before the progress bar.
        train_dataset=plan.examples,
        eval_dataset=plan.evaluation,
        data_collator=plan.collator,
        processing_class=plan.encoder.processor,
        delta_source=plan.source,
        weighting=plan.facts.weighting,
        sampler=plan.sampler,
        lr_multipliers=plan.facts.lr_multipliers,
        run_state=plan.state,
        sources=plan.facts.sources,
        stop_on_nan=config.stop_on_nan,
    )
    trainer.add_callback(SetSamplerEpoch(plan.sampler))
    if config.log_format == "json":
        trainer.add_callback(LogSteps())
    if plan.facts.contrast:
        trainer.add_callback(SelfCheck(plan.encoder, plan.facts.contrast, str(config.model_name_or_path)))
    if plan.drift:
        assert plan.facts.spec is not None  # cached deltas always have one
        drift = DriftLog(
            plan.drift,
            contrast=plan.facts.spec.contrast,
            weighting=plan.facts.weighting,
            every=config.drift_every,
            log=trainer.log,
        )
        trainer.add_callback(drift)
    return trainer


def run(trainer: CalTrainer, plan: Plan) -> None:
    """Trains, and saves model, state and model card."""
    trainer.train(resume_from_checkpoint=None if plan.resume is None else str(plan.resume))
    trainer.validate_weights()
    trainer.save_model()
    trainer.save_state()
    num_unusable = trainer.count_unusable()
    if trainer.is_world_process_zero():
        steps = trainer.state.global_step, trainer.state.max_steps
        write_model_card(plan.facts, steps=steps, num_unusable=num_unusable)
