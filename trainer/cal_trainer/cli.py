"""Trains a vision-language model with token weights, cached by cal-precompute or recomputed online.

Takes the flags below and all of transformers' TrainingArguments, which --help-all shows too; runs alone or under
`accelerate launch` / `torchrun`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cal_pipeline.arguments import parse_configs, training_argument_names
from cal_pipeline.console import printing
from cal_schemas.errors import CalError
from cal_trainer.config import TrainConfig
from cal_trainer.run.paths import validate_paths

if TYPE_CHECKING:
    from cal_trainer.training_arguments import CalTrainingArguments

EXIT_DONE, EXIT_REFUSED = 0, 2


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the program; exits 0 trained, 2 refused, 130 interrupted."""
    sys.exit(run(argv))


@printing()
def run(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "datasets", "fsspec", "boto3", "botocore", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--help-all" in given:
            parse(["--help"])
        _answer_early(given)
        config, arguments = parse(given)
        if config.assemble:
            from cal_pipeline.models.assemble import assemble, parse_assemble

            assemble(**asdict(parse_assemble(config.assemble)), output=Path(arguments.output_dir), seed=arguments.seed)
        else:
            from cal_trainer.training import train

            train(config, arguments)
    except CalError as error:
        print(f"cal-train: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED
    except KeyboardInterrupt:
        message = "interrupted; --resume_from_checkpoint last goes on from the last checkpoint"
        print(f"\ncal-train: {message}", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    return EXIT_DONE


def parse(argv: Sequence[str]) -> tuple[TrainConfig, CalTrainingArguments]:
    """Reads flags and the file of --config; a typed --data_path takes the place of the raw data that a recipe names."""
    from cal_trainer.training_arguments import CalTrainingArguments

    config, arguments = _parsed([TrainConfig, CalTrainingArguments], argv)
    return config, arguments


def _answer_early(argv: Sequence[str]) -> None:
    """Answers --help and mistakes in our own flags before torch is imported: arguments.py says why."""
    (config,) = _parsed([TrainConfig], argv, others=training_argument_names())
    if not config.assemble:
        validate_paths(config)


_parsed = partial(
    parse_configs,
    program="cal-train",
    description=__doc__ or "",
    replaces={"data_path": ("source_path", "image_folder")},
)


if __name__ == "__main__":
    main()
