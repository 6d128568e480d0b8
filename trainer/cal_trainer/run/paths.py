"""Validates the paths of a run that are seen to be wrong without torch."""

from __future__ import annotations

from cal_pipeline.models.directory import validate_model
from cal_pipeline.sources.data_paths import existing_directory
from cal_pipeline.sources.planning import find_sources
from cal_schemas.errors import ConfigError
from cal_schemas.opened import required_files
from cal_schemas.storage.locations import location
from cal_trainer.config import TrainConfig


def validate_paths(config: TrainConfig) -> None:
    """Raises ConfigError or FormatError for data, images or a model that are not there."""
    for path in (*config.data_path, *filter(None, [config.eval_path])):
        required_files(location(path))
    for path in config.source_path:
        try:
            find_sources(path, "auto")
        except ConfigError as error:
            raise ConfigError(str(error).replace("--data_path", "--source_path")) from error
    for folder in config.image_folder:
        existing_directory("--image_folder", folder)
    if config.eval_image_folder:
        existing_directory("--eval_image_folder", config.eval_image_folder)
    validate_model(str(config.model_name_or_path), config.revision)
