"""Finds the files of a data set of the Hugging Face Hub by its name, as `load_dataset` would: configuration and split.

A name is `org/name` or `hf://datasets/org/name`, then `@revision` and `:split`, `:config` or `:config/split` where they
are wanted. `hf://datasets/org/name/FILE`, with a file, folder or glob, is a location like any other.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import cast

from cal_pipeline.sources.formats import FORMATS, format_of, known_names, known_suffix
from cal_pipeline.sources.hub_splits import Splits, configurations
from cal_pipeline.sources.saved_datasets import data_files
from cal_pipeline.sources.unread import way_out
from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.locations import Location, location
from cal_schemas.storage.object_path import ObjectPath

_NAME = re.compile(
    r"(?P<scheme>hf://datasets/)?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/@:]+))?"
    r"(?::(?P<which>[\w.-]+(?:/[\w.-]+)?))?",
    re.ASCII,
)
_SLICE = re.compile(rf"(?P<name>{_NAME.pattern})\[[^\[\]]*\]", re.ASCII)
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class HubName:
    """A data set by its name, as it was given."""

    spelled: str
    root: ObjectPath
    which: str
    """Split, configuration, or `configuration/split`; may be empty."""
    is_short: bool
    """Spelled `org/name`: it might have been meant for a path."""


def hub_name(data_path: str) -> HubName | None:
    """A data path as the name of a data set; None where it is a path, or a location with a file in it.

    What is there in the file system is that, whatever the Hub has under its name. Raises ConfigError for a slice.
    """
    if (sliced := _SLICE.fullmatch(data_path)) and sliced["which"]:
        raise ConfigError(
            f"--data_path {data_path}: slices of a split are not read; a part of {sliced['name']} is --limit or "
            "--sample"
        )
    found = _NAME.fullmatch(data_path)
    if not found or (not found["scheme"] and (Path(data_path).exists() or known_suffix(PurePosixPath(data_path)))):
        return None
    revision = "" if found["revision"] is None else f"@{found['revision']}"
    root = cast(ObjectPath, location(f"hf://datasets/{found['repo']}{revision}"))
    return HubName(spelled=data_path, root=root, which=found["which"] or "", is_short=not found["scheme"])


def find_hub_files(name: HubName) -> tuple[ObjectPath, list[Location]]:
    """(root at its commit, files) of the configuration and split that are asked for, all splits where none is.

    Raises ConfigError where there is no such, several configurations and none is asked for, or nothing that can be
    read; StoreError where the Hub does not give it.
    """
    try:
        root = name.root.pinned()
    except StoreError as error:
        if not name.is_short:
            raise
        raise ConfigError(f"--data_path {name.spelled}: no such file or directory here, and {error}") from error
    there = {item.key: item for item in cast(list[ObjectPath], data_files([*root.files()])) if not _is_hidden(item.key)}
    default, found = configurations(root, there)
    config, splits = _chosen(name, default, found)
    keys, left_out = _of_one_format(dict.fromkeys(key for of_split in splits.values() for key in of_split))
    if not keys:
        raise ConfigError(_unreadable(name, left_out))
    wanted = {*keys}
    counts = {split: sum(key in wanted for key in of_split) for split, of_split in splits.items()}
    rest = f"; not read: {_suffixes(left_out)}" if left_out else ""
    if empty := next((split for split, count in counts.items() if not count), None):
        ways = _ways(name, {config: {split: files for split, files in splits.items() if files}}, of=len(found))
        raise ConfigError(
            f"--data_path {name.spelled}: no file of its split {empty!r} is read beside those of the others{rest}; "
            f"give {ways}"
        )
    listed = ", ".join(f"{split} ({count} file{'s' * (count > 1)})" for split, count in counts.items())
    # What is beside the data matters to nobody, what looks like data does.
    level = logging.WARNING if any(known_suffix(PurePosixPath(key)) for key in left_out) else logging.INFO
    _log.log(level, "%s: data set of the Hub at commit %s, configuration %s: %s%s", name.spelled, root.commit, config,
             listed, rest)  # fmt: skip
    if len(splits) > 1:
        _log.warning("%s has several splits, and all are read: for one give %s", name.spelled,
                     _ways(name, {config: splits}, of=len(found)))  # fmt: skip
    return root, [there[key] for key in keys]


def _is_hidden(key: str) -> bool:
    return any(part.startswith((".", "__")) for part in key.split("/"))


def _chosen(name: HubName, default: str | None, found: Mapping[str, Splits]) -> tuple[str, Splits]:
    """(configuration, its splits), those that are asked for."""
    config, _, split = name.which.rpartition("/")
    if not config and split in found and not (default and split in found[default] and split != default):
        config, split = split, ""  # A single word is a split of the default configuration, or a configuration.
    config = config or default or ""
    if config not in found:
        asked = (
            f"no configuration {config!r}"
            if config
            else f"no configuration {split!r}"
            if split
            else ("several configurations and no default one")
        )
        raise ConfigError(f"--data_path {name.spelled}: {asked}; give {_ways(name, found)}")
    if split and split not in found[config]:
        raise ConfigError(f"--data_path {name.spelled}: no split {split!r}; give {_ways(name, found)}")
    return config, {split: found[config][split]} if split else found[config]


def _ways(name: HubName, found: Mapping[str, Splits], *, of: int = 0) -> str:
    """What may be given to read one split; `of` so many configurations."""
    start = name.spelled.removesuffix(f":{name.which}") if name.which else name.spelled
    ways = [
        f"{start}:{split}" if max(of, len(found)) == 1 else f"{start}:{config}/{split}"
        for config, splits in found.items() for split in splits
    ]  # fmt: skip
    return " or ".join(ways[:8]) + (f" or one of {len(ways) - 8} others" if len(ways) > 8 else "")


def _of_one_format(keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """(keys of the format that most files have, all others): a card's figures beside the data are none of its rows."""
    formats = {
        key: format_of(PurePosixPath(key), "auto").name if known_suffix(PurePosixPath(key)) else "" for key in keys
    }
    counts = Counter(name for name in formats.values() if name)
    most = max(counts, key=lambda name: (counts[name], -[*FORMATS].index(name)), default=None)
    return [key for key in formats if formats[key] == most], [key for key in formats if formats[key] != most]


def _suffixes(keys: Iterable[str]) -> str:
    counts = Counter(PurePosixPath(key).suffix or PurePosixPath(key).name for key in keys)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6))


def _unreadable(name: HubName, keys: Sequence[str]) -> str:
    """Why nothing of it can be read, and the way out."""
    to_parquet = "load_dataset(...).to_parquet(FILE) makes a file that is read"
    way = way_out(keys, unpack="fetch it with hf download, unpack it and give the folder", to_parquet=to_parquet)
    there = _suffixes(keys) or "no files"
    return f"--data_path {name.spelled}: holds {there}; read are {known_names()}: {way or to_parquet}"
