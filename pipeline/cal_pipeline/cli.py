"""Measures how much the image raises each caption token's logit, and writes annotated Parquet shards.

Checks everything that can be checked before work, then hands the shards to Ray.

    cal-precompute --model_name_or_path llava-hf/llava-1.5-7b-hf --data_path data.json --image_folder images/ \
        --output_dir annotated/
    cal-precompute --model_name_or_path llava-hf/llava-1.5-7b-hf --data_path data.json --image_folder images/ \
        --output_dir annotated/ --dry_run
    cal-precompute --status annotated/
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from cal_pipeline.arguments import chosen, parse_config
from cal_pipeline.console import printing
from cal_pipeline.log_lines import LogLines, log_to, say, typed_format
from cal_pipeline.models.directory import validate_model
from cal_pipeline.output.clean import clean
from cal_pipeline.output.store import open_store
from cal_pipeline.output.verify import print_verification, verify
from cal_pipeline.quick_imports import quick_imports
from cal_pipeline.runtime.cluster import short_of_cpus
from cal_pipeline.runtime.config import JSON_ALONE, PrecomputeConfig, maintenance_config
from cal_pipeline.runtime.faults import EXIT_DONE, EXIT_SHARDS_FAILED, fault_of
from cal_pipeline.runtime.result import PrecomputeResult
from cal_pipeline.runtime.signals import Interruption
from cal_pipeline.runtime.status import print_status, status_of
from cal_pipeline.sources.data_paths import existing_directory
from cal_pipeline.sources.planning import Source, find_sources
from cal_schemas.counted import counted
from cal_schemas.errors import ConfigError

_log = logging.getLogger("cal-precompute")


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the program; exits 0 all done, 1 shards or too many rows failed, 2 refused, 130, 143 interrupted."""
    sys.exit(run(argv))


@printing()
def run(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code; what becomes of an exception is in the table of faults."""
    log_to(sys.stderr, LogLines(typed_format(argv)))
    with Interruption() as interruption:
        try:
            if asked := chosen(PrecomputeConfig, ("status", "verify", "clean"), argv):
                return _maintain(asked, argv)
            config = parse_config(PrecomputeConfig, argv, program="cal-precompute", description=__doc__ or "")
            log_to(sys.stderr, LogLines(config.log_format))
            return measure(config, interruption).exit_code
        except (Exception, KeyboardInterrupt) as error:
            fault = fault_of(error)
            if fault.in_driver == "stop":
                message = fault.driver_says.format(error=error)
            elif fault.in_driver == "interrupt":
                message = "; ".join([interruption.message, *map(str, error.args), "run the same command to resume"])
            else:
                raise
            say("cal-precompute", message, on_new_line=fault.in_driver == "interrupt")
            return interruption.exit_code if fault.exit_code is None else fault.exit_code


def measure(config: PrecomputeConfig, interruption: Interruption, *, own_process: bool = True) -> PrecomputeResult:
    """Checks everything, then measures, or with `--dry_run` says what would be; raises what the table of faults has.

    own_process: False where it is called from Python, in a process that goes on.
    """
    if short := short_of_cpus(config.num_workers, config.cpus_per_worker, config.ray_address):
        _log.warning(short)
    sources = validate_paths(config)
    # Here begin torch, transformers and Ray: arguments.py says why.
    with quick_imports(freeze=own_process):
        from cal_pipeline.runtime import plan

        if not config.dry_run:
            from cal_pipeline.runtime import execution

    planned = plan.make_plan(config, sources)
    if config.dry_run:
        from cal_pipeline.runtime.dry_run import print_plan

        return PrecomputeResult(
            output_dir=config.output_dir,
            exit_code=print_plan(planned),
            shards_done_before=len(planned.progress.done),
            statuses_before=planned.statuses_before(),
            failed={shard.name: str(shard.problem) for shard in planned.broken},
        )
    return execution.execute(planned, interruption)


def validate_paths(config: PrecomputeConfig) -> list[list[Source]]:
    """Returns the files of each data path: listing an object store is slow, and what planning starts from.

    Raises ConfigError for an output that cannot be written, and for data, images or a model that are not there.
    """
    open_store(config.output_dir, "").check_writable()
    sources = [find_sources(data_path, config.data_format) for data_path in config.data_path]
    for folder in config.image_folder:
        existing_directory("--image_folder", folder)
    validate_model(config.model_name_or_path, config.revision)
    return sources


def _maintain(asked: set[str], argv: Sequence[str] | None) -> int:
    """Carries out `--status`, or `--verify` and `--clean`, without model, data and Ray; returns the exit code."""
    config = parse_config(maintenance_config(), argv, program="cal-precompute", description=__doc__ or "")
    if "status" in asked:
        if len(asked) > 1:
            raise ConfigError("--status looks at a run that may go on, --verify and --clean do not: give one of them")
        print_status(status_of(open_store(config.status, "status")), as_json=config.json)
        return EXIT_DONE
    if config.json:
        raise ConfigError(JSON_ALONE)
    if not config.output_dir:
        raise ConfigError("the following arguments are required: --output_dir")
    if config.clean and config.dry_run:
        raise ConfigError("--clean removes files, and --dry_run does nothing: give one of them")
    store = open_store(config.output_dir, "maintenance")
    if config.clean:
        removed = clean(store)
        for item in removed:
            print(f"removed {item}")  # noqa: T201
        print(f"{counted(len(removed), 'leftover')} removed from {store.output_dir}")  # noqa: T201
    if not config.verify:
        return EXIT_DONE
    verification = verify(store.output_dir, config.data_path, config.data_format)
    print_verification(verification, store.output_dir)
    return EXIT_DONE if verification.ok else EXIT_SHARDS_FAILED


if __name__ == "__main__":
    main()
