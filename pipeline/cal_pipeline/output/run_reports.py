"""Reads what the reports of earlier runs, beside the shards they wrote, still know."""

from __future__ import annotations

import json
from collections.abc import Iterable

from cal_schemas.storage.locations import Location

FILTER_NAME = "filter.json"
_MAX_DEPTH = 8
"""Directories that a shard may lie below its output directory."""


def reported_model(paths: Iterable[Location]) -> str | None:
    """`--model_name_or_path` of the newest `cal-precompute` run that wrote to the directory of these shards.

    A directory that `cal-inspect filter` wrote has no run report; it repeats what that of its input says.

    `paths` are shards or directories. None where no report is found; whether the model is still there, and still the
    one that measured, is for the caller to see.
    """
    folders: set[Location] = {path if path.is_dir() else path.parent for path in (item.absolute() for item in paths)}
    above: set[Location] = {up for folder in folders for up in (folder, *folder.parents[:_MAX_DEPTH])}
    for place in sorted(above, key=str, reverse=True):
        reports: list[Location] = [*(place / ".cal" / "reports").glob("run-*.json")]
        for report in [*sorted(reports, key=str, reverse=True), place / ".cal" / FILTER_NAME]:
            try:
                value = json.loads(report.read_text(encoding="utf-8"))["config"]["model_name_or_path"]
            except (OSError, ValueError, KeyError, TypeError):
                continue  # A report that was cut names nothing; then a flag must.
            if isinstance(value, str):
                return value
    return None
