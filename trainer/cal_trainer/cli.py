"""Trains a vision-language model with token weights, cached by cal-precompute or recomputed online.

Takes the flags below and all of transformers' TrainingArguments; runs alone or under `accelerate launch` / `torchrun`.

    cal-train --data_path annotated/ --model_name_or_path llava-hf/llava-1.5-7b-hf --bf16 --output_dir trained/
    cal-train --data_path annotated/ --model_name_or_path llava-hf/llava-1.5-7b-hf --lora_r 16 --output_dir adapters/
    cal-train --config train.yaml --output_dir trained/ --resume_from_checkpoint last
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from cal_pipeline.arguments import parse_configs
from cal_pipeline.console import printing
from cal_pipeline.log_lines import LogLines, log_to, say, typed_format
from cal_pipeline.quick_imports import quick_imports
from cal_pipeline.transformers_source import training_argument_flags
from cal_schemas.errors import CalError, ConfigError, DivergedError
from cal_trainer.config import TrainConfig
from cal_trainer.run.checkpoints import newest_whole
from cal_trainer.run.endings import Terminated, full_disk, let_end, one_line, raising_terminated
from cal_trainer.run.paths import validate_paths
from cal_trainer.trainer_flags import TrainerFlags

if TYPE_CHECKING:
    from cal_trainer.training_arguments import CalTrainingArguments

EXIT_DONE, EXIT_STOPPED, EXIT_REFUSED, EXIT_FULL = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the program; exits 0 trained, 1 diverged, 2 refused, 3 no space left, 130 interrupted, 143 terminated."""
    code = run(argv)
    if code > 128:
        let_end()  # The interpreter's end takes a second.
    sys.exit(code)


@printing()
@raising_terminated()
def run(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code."""
    log_to(sys.stderr, LogLines(typed_format(argv)))
    given = list(sys.argv[1:] if argv is None else argv)
    output_dir: Path | None = None
    try:
        early = _answer_early(given)
        lines = LogLines(early.log_format)
        log_to(sys.stderr, lines)
        with quick_imports():
            config, arguments = parse(given)
            if not config.assemble:
                from cal_trainer.training import quiet_bars, train
        log_to(sys.stderr, lines)  # Again: transformers is here by now, with handlers of its own.
        output_dir = Path(arguments.output_dir)
        if config.assemble:
            from cal_pipeline.models.assemble import assemble, parse_assemble

            assemble(**asdict(parse_assemble(config.assemble)), output=output_dir, seed=arguments.seed)
        else:
            if arguments.disable_tqdm or not sys.stderr.isatty():
                quiet_bars()
            train(config, arguments)
    except DivergedError as error:
        good = output_dir and newest_whole(output_dir)
        return _ended(EXIT_STOPPED, f"{error}" + (f". Saved before: {good}" if good else ""))
    except CalError as error:
        return _ended(EXIT_REFUSED, one_line(error))
    except KeyboardInterrupt:
        let_end()
        return _ended(128 + signal.SIGINT, f"interrupted; {_way_on(output_dir)}")
    except Terminated:
        let_end()
        return _ended(128 + signal.SIGTERM, f"terminated; {_way_on(output_dir)}")
    except Exception as error:
        if not (full := full_disk(error, output_dir or Path())):
            raise
        return _ended(EXIT_FULL, f"{full}. Make room; {_way_on(output_dir)}")
    return EXIT_DONE


def _way_on(output_dir: Path | None) -> str:
    if output_dir is None:  # Still importing: what the directory holds of an earlier start was not looked at.
        return "nothing had begun: the same command starts again"
    if whole := newest_whole(output_dir):
        return f"--resume_from_checkpoint last goes on from {whole}"
    return "nothing was saved to go on from: the same command begins anew"


def _ended(code: int, message: str) -> int:
    """Prints one line, on one rank where several were interrupted at once, and returns the code."""
    if code in (EXIT_REFUSED, EXIT_FULL) or os.environ.get("RANK", "0") == "0":
        say("cal-train", message, on_new_line=code == 128 + signal.SIGINT)
    return code


def parse(argv: Sequence[str]) -> tuple[TrainConfig, CalTrainingArguments]:
    """Reads flags and the file of --config; a typed --data_path takes the place of the raw data that a recipe names."""
    from cal_trainer.training_arguments import CalTrainingArguments

    config, arguments = _parsed([TrainConfig, CalTrainingArguments], argv)
    return config, arguments


def _answer_early(argv: Sequence[str]) -> TrainConfig:
    """Answers --help and mistakes in our own flags before torch is imported: arguments.py says why."""
    config, flags = _parsed([TrainConfig, TrainerFlags], argv, others=training_argument_flags())
    assert isinstance(config, TrainConfig)
    if not config.assemble:
        if find_spec("datasets") is None:
            raise ConfigError("cal-train needs datasets: pip install 'cal-vlm[train]'")
        flags.validate_reporter()
        validate_paths(config)
    return config


_parsed = partial(
    parse_configs,
    program="cal-train",
    description=__doc__ or "",
    replaces={"data_path": ("source_path", "image_folder")},
)


if __name__ == "__main__":
    main()
