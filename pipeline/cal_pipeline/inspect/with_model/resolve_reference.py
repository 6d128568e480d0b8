"""Resolves where the reference of annotated shards lies now: by a flag, a run report, or its name in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cal_pipeline.models.directory import model_directory
from cal_pipeline.output.run_reports import reported_model
from cal_schemas.errors import ConfigError
from cal_schemas.spec import MeasurementSpec


def resolve_reference(
    paths: Sequence[Path], spec: MeasurementSpec, named: str | None = None, *, trust_remote_code: bool = False
) -> Path:
    """The directory of the model that measured `paths`: the one `named`, else what the run report or the spec names.

    Looks, in this order, at `named` (a directory or hub id), at the newest run report that `cal-precompute` left in the
    annotated directory, and at the spec's model id as a directory or hub id. Whether the files found are the ones that
    measured is for the caller to compare (`weights_digest`, `tokenizer_digest`). Raises ConfigError naming the flag.
    """
    if named is not None:
        return model_directory(
            named, None if Path(named).is_dir() else spec.revision, trust_remote_code=trust_remote_code
        )
    reported = reported_model(paths)
    for candidate in (reported, spec.model_id):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    if "/" in spec.model_id:
        return model_directory(spec.model_id, spec.revision, trust_remote_code=trust_remote_code)
    where = f" (its run report says {reported}, which is no directory now)" if reported else ""
    raise ConfigError(
        f"{paths[0]} was measured with {spec.model_id!r}, and where that lies is not known{where}: name it with "
        "--model_name_or_path"
    )
