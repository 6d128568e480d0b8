"""`cal-train`: train a vision-language model with token weights, cached by cal-precompute or recomputed online.

Takes the flags below and all of transformers' TrainingArguments; runs alone or under `accelerate launch` / `torchrun`.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn

from cal_pipeline.arguments import parse_configs
from cal_pipeline.console import printing
from cal_pipeline.models.assemble import assemble, parse_assemble
from cal_schemas.errors import CalError
from cal_trainer.config import CalTrainingArguments, TrainConfig
from cal_trainer.training import train

EXIT_DONE, EXIT_REFUSED = 0, 2


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Console entry point; exits 0 trained, 2 refused, 130 interrupted."""
    sys.exit(run(argv))


@printing()
def run(argv: Sequence[str] | None = None) -> int:
    """The same as an exit code."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "datasets", "fsspec", "boto3", "botocore", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        config, arguments = parse(argv)
        if config.assemble:
            assemble(**asdict(parse_assemble(config.assemble)), output=Path(arguments.output_dir), seed=arguments.seed)
        else:
            train(config, arguments)
    except CalError as error:
        print(f"cal-train: {error}", file=sys.stderr)  # noqa: T201
        return EXIT_REFUSED
    except KeyboardInterrupt:
        message = "interrupted; --resume_from_checkpoint last goes on from the last checkpoint"
        print(f"\ncal-train: {message}", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    return EXIT_DONE


def parse(argv: Sequence[str] | None = None) -> tuple[TrainConfig, CalTrainingArguments]:
    """Flags and the file of --config; a typed --data_path takes the place of the raw data that a recipe names."""
    config, arguments = parse_configs(
        [TrainConfig, CalTrainingArguments],
        argv,
        program="cal-train",
        description=__doc__ or "",
        replaces={"data_path": ("source_path", "image_folder")},
    )
    return config, arguments


if __name__ == "__main__":
    main()
