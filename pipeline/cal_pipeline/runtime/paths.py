"""Validates the paths of a run that are seen to be wrong without torch; planning reads what is behind them."""

from __future__ import annotations

from cal_pipeline.models.directory import validate_model
from cal_pipeline.output.store import open_store
from cal_pipeline.runtime.config import PrecomputeConfig
from cal_pipeline.sources.data_paths import existing_directory
from cal_pipeline.sources.planning import Source, find_sources


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
