"""`cal-train`: train a vision-language model with token weights, cached by cal-precompute or recomputed online.

Takes the flags below and all of transformers' TrainingArguments; runs alone or under `accelerate launch` / `torchrun`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from transformers.trainer_utils import get_last_checkpoint

from cal_pipeline.arguments import parse_configs
from cal_pipeline.loading import check_architecture, load_model, load_processor, model_directory
from cal_pipeline.worker import EncoderSettings
from cal_schemas.errors import CalError, ConfigError
from cal_schemas.spec import ContrastSpec
from cal_trainer.config import CalTrainingArguments, TrainConfig
from cal_trainer.dataset import AnnotatedExamples, ExampleCollator, blank_sample
from cal_trainer.delta_source import CachedDeltas, DeltaSource, OnlineDeltas, UniformWeights
from cal_trainer.drift import DriftLog
from cal_trainer.trainer import UNIFORM, CalTrainer, Weighting, check_combination

EXIT_DONE, EXIT_REFUSED = 0, 2
_DRIFT_SAMPLES = 256
_log = logging.getLogger("cal-train")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Console entry point; exits 0 trained, 2 refused, 130 interrupted."""
    sys.exit(run(argv))


def run(argv: Sequence[str] | None = None) -> int:
    """The same as an exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "datasets", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config, arguments = parse_configs(
            [TrainConfig, CalTrainingArguments], argv, program="cal-train", description=__doc__ or ""
        )
        train(config, arguments)
    except CalError as error:
        print(f"cal-train: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED
    except KeyboardInterrupt:
        message = "interrupted; --resume_from_checkpoint last goes on from the last checkpoint"
        print(f"\ncal-train: {message}", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    return EXIT_DONE


def train(config: TrainConfig, arguments: CalTrainingArguments) -> CalTrainer:
    """Everything that can be checked is checked before the model is loaded; then trains, evaluates and saves.

    Raises ConfigError, FormatError or AlignmentError with one message.
    """
    source, weighting = weights_of(config)
    check_combination(source, weighting, arguments.gradient_accumulation_steps)
    resume = _checkpoint(arguments)
    directory = model_directory(
        str(config.model_name_or_path), config.revision, trust_remote_code=config.trust_remote_code
    )
    check_architecture(directory, trust_remote_code=config.trust_remote_code)
    processor = load_processor(directory, trust_remote_code=config.trust_remote_code)
    encoder = EncoderSettings(
        template=config.template,
        image_aspect_ratio=config.image_aspect_ratio,
        max_length=config.max_length,
        truncation=config.truncation,
    ).build(processor)
    examples = _examples(config, str(config.data_path), encoder)
    evaluation = _examples(config, config.eval_path, encoder) if config.eval_path else None
    model = load_model(
        directory,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        device_map=None,
        trust_remote_code=config.trust_remote_code,
    )
    model.config.use_cache = False
    collator = ExampleCollator(encoder=encoder, blank=blank_sample(encoder))
    trainer = CalTrainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        eval_dataset=evaluation,
        data_collator=collator,
        processing_class=processor,
        delta_source=source,
        weighting=weighting,
    )
    if config.drift_every:
        size = arguments.per_device_eval_batch_size
        rows = range(min(_DRIFT_SAMPLES, len(examples)))
        batches = [collator([examples[i] for i in rows[start : start + size]]) for start in rows[::size]]
        trainer.add_callback(
            DriftLog(
                batches, contrast=examples.spec.contrast, weighting=weighting, every=config.drift_every, log=trainer.log
            )
        )
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    return trainer


def weights_of(config: TrainConfig) -> tuple[DeltaSource, Weighting]:
    """The delta source and the weighting that the flags ask for."""
    normalization: Any = config.resolved("normalization")
    if config.delta_source == "uniform":
        return UniformWeights(), Weighting(alpha=1.0, beta=1.0, window=1, normalization=normalization)
    pool: Any = config.resolved("pool")
    weighting = Weighting(
        alpha=config.alpha, beta=config.beta, window=config.window, pool=pool, normalization=normalization
    )
    condition: Any = config.resolved("contrast")
    if config.delta_source == "online":
        return OnlineDeltas(contrast=ContrastSpec(condition=condition)), weighting
    return CachedDeltas(), weighting


def _examples(config: TrainConfig, path: str, encoder: Any) -> AnnotatedExamples:
    return AnnotatedExamples(
        Path(path),
        encoder,
        image_folder=config.image_folder_path(),
        max_image_pixels=config.max_image_pixels,
        cache_dir=None if config.cache_dir is None else Path(config.cache_dir),
    )


def _checkpoint(arguments: CalTrainingArguments) -> str | None:
    """`--resume_from_checkpoint` as a path: `last` (or true) is the newest one in --output_dir."""
    wanted = arguments.resume_from_checkpoint
    if wanted is None or str(wanted).lower() == "false":
        return None
    if str(wanted).lower() in ("last", "true"):
        found = get_last_checkpoint(arguments.output_dir) if Path(arguments.output_dir).is_dir() else None
        if found is None:
            raise ConfigError(f"--resume_from_checkpoint last: no checkpoint in --output_dir {arguments.output_dir}")
        return str(found)
    if not Path(wanted).is_dir():
        raise ConfigError(f"--resume_from_checkpoint {wanted}: no such directory")
    return str(wanted)


__all__ = ["UNIFORM", "main", "run", "train"]
