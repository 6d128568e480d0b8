"""Tells data from what `datasets` keeps beside it: in folders of `save_to_disk`, and in its caches."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cal_pipeline.sources.reading import reading
from cal_schemas.errors import ConfigError
from cal_schemas.storage.locations import Location

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_OF_DATASETS = (".arrow", ".json")
_NOTES = {_INFO, _SPLITS, "dataset_infos.json"}


def data_files(files: Sequence[Location]) -> list[Location]:
    """The files without notes about them; of a folder of `save_to_disk` the Arrow files that its state names.

    Others there are caches of `map` and `filter`, and would be rows that come twice. Raises ConfigError where a file,
    or a split, that is named is not there.
    """
    folders: dict[Location, dict[str, Location]] = {}
    for file in files:
        folders.setdefault(file.parent, {})[file.name] = file
    left_out: set[Location] = set()
    for folder, there in folders.items():
        left_out |= {file for name, file in there.items() if name in _NOTES}
        if _SPLITS in there:
            for split in _parsed(there[_SPLITS], "splits"):
                if _STATE not in folders.get(folder / str(split), {}):
                    raise ConfigError(f"{there[_SPLITS]} names the split {split!r}, and {folder / str(split)} has none")
        if {_STATE, _INFO} <= there.keys():
            named = [entry["filename"] for entry in _parsed(there[_STATE], "_data_files")]
            if missing := [name for name in named if name not in there]:
                raise ConfigError(f"{there[_STATE]} names {missing[0]}, which is not there: save the data set again")
            left_out |= {file for name, file in there.items() if file.suffix in _OF_DATASETS and name not in named}
    return [file for file in files if file not in left_out]


def _parsed(file: Location, key: str) -> list[Any]:
    with reading(file, "cannot be read"):
        text = file.read_text(encoding="utf-8")
    try:
        values = json.loads(text)[key]
        if key == "_data_files" and not all(isinstance(entry["filename"], str) for entry in values):
            raise TypeError(f"{key!r} holds no names of files")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file}: not as save_to_disk writes it ({error!r}): save the data set again") from error
    return list(values)
