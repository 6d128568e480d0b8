"""Validates the paths of a run that are seen to be wrong without torch."""

from __future__ import annotations

from cal_pipeline.models.directory import validate_model
from cal_pipeline.sources.data_paths import existing_directory
from cal_pipeline.sources.hub import hub_name
from cal_pipeline.sources.planning import find_sources
from cal_schemas.errors import ConfigError, FormatError
from cal_schemas.opened import holds_annotated
from cal_schemas.storage.locations import location
from cal_trainer.config import TrainConfig


def validate_paths(config: TrainConfig) -> None:
    """Raises ConfigError or FormatError for data, images or a model that are not there."""
    for path in config.data_path:
        _validate_measured(path)
    for path in config.source_path:
        _find_raw("--source_path", path)
    if config.eval_path and not holds_annotated(location(config.eval_path)):
        _find_raw("--eval_path", config.eval_path)
    for folder in config.image_folder:
        existing_directory("--image_folder", folder)
    if config.eval_image_folder:
        existing_directory("--eval_image_folder", config.eval_image_folder)
    validate_model(str(config.model_name_or_path), config.revision)


def _find_raw(flag: str, path: str) -> None:
    try:
        find_sources(path, "auto")
    except ConfigError as error:
        raise ConfigError(str(error).replace("--data_path", flag)) from error


def _validate_measured(path: str) -> None:
    if holds_annotated(location(path)):
        return
    try:
        first = find_sources(path, "auto")[0][0]
    except ConfigError as error:
        raise FormatError(f"{path}: no annotated shards (*.parquet) here") from error
    if (name := hub_name(path)) and holds_annotated(name.root):
        raise ConfigError(f"--data_path {path} is a measurement on the Hub, all of which is read: give {name.root}")
    raise ConfigError(
        f"--data_path {path} holds raw data ({first.name}) and no measurement: measure it with cal-precompute, or "
        f"train it as it is with --source_path {path} and --delta_source uniform or online"
    )
