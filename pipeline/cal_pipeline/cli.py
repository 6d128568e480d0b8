"""Measures how much the image raises each caption token's logit, and writes annotated Parquet shards.

Checks everything that can be checked before work, then hands the shards to Ray.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from cal_pipeline.arguments import chosen, parse_config
from cal_pipeline.console import printing
from cal_pipeline.models.directory import validate_model
from cal_pipeline.output.clean import clean
from cal_pipeline.output.store import open_store
from cal_pipeline.output.verify import print_verification, verify
from cal_pipeline.runtime.config import PrecomputeConfig, maintenance_config
from cal_pipeline.runtime.faults import EXIT_DONE, EXIT_SHARDS_FAILED, fault_of
from cal_pipeline.runtime.signals import Interruption
from cal_pipeline.sources.data_paths import existing_directory
from cal_pipeline.sources.planning import Source, find_sources
from cal_schemas.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the program; exits 0 all done, 1 shards or too many rows failed, 2 refused, 130, 143 interrupted."""
    sys.exit(run(argv))


@printing()
def run(argv: Sequence[str] | None = None) -> int:
    """Runs the program and returns its exit code; what becomes of an exception is in the table of faults."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    for noisy in ("httpx", "urllib3", "filelock", "boto3", "botocore", "s3transfer"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with Interruption() as interruption:
        try:
            if chosen(PrecomputeConfig, ("verify", "clean"), argv):
                return _maintain(argv)
            config = parse_config(PrecomputeConfig, argv, program="cal-precompute", description=__doc__ or "")
            sources = validate_paths(config)
            # Here begin torch, transformers and Ray: arguments.py says why.
            from cal_pipeline.runtime import plan

            planned = plan.make_plan(config, sources)
            if config.dry_run:
                return plan.print_plan(planned)
            from cal_pipeline.runtime import execution

            return execution.execute(planned, interruption)
        except (Exception, KeyboardInterrupt) as error:
            fault = fault_of(error)
            if fault.in_driver == "stop":
                message = f"cal-precompute: {fault.driver_says.format(error=error)}"
            elif fault.in_driver == "interrupt":
                so_far = "; ".join([interruption.message, *map(str, error.args)])
                message = f"\ncal-precompute: {so_far}; run the same command to resume"
            else:
                raise
            print(message, file=sys.stderr)  # noqa: T201
            return interruption.exit_code if fault.exit_code is None else fault.exit_code


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


def _maintain(argv: Sequence[str] | None) -> int:
    """Carries out `--verify` and `--clean`, which need no model, no data and no Ray; returns the exit code."""
    config = parse_config(maintenance_config(), argv, program="cal-precompute", description=__doc__ or "")
    if config.clean and config.dry_run:
        raise ConfigError("--clean removes files, and --dry_run does nothing: give one of them")
    store = open_store(config.output_dir, "maintenance")
    if config.clean:
        removed = clean(store)
        for item in removed:
            print(f"removed {item}")  # noqa: T201
        print(f"{len(removed)} leftovers removed from {store.output_dir}")  # noqa: T201
    if not config.verify:
        return EXIT_DONE
    verification = verify(store.output_dir, config.data_path, config.data_format)
    print_verification(verification, store.output_dir)
    return EXIT_DONE if verification.ok else EXIT_SHARDS_FAILED


if __name__ == "__main__":
    main()
