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
from typing import Any, cast

import yaml

from cal_pipeline.sources.data_paths import glob_to_regex
from cal_pipeline.sources.formats import FORMATS, format_of, known_suffix
from cal_schemas.errors import ConfigError, StoreError
from cal_schemas.storage.locations import Location, location
from cal_schemas.storage.object_path import ObjectPath

_NAME = re.compile(
    r"(?P<scheme>hf://datasets/)?(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>refs/(?:convert|pr)/\w+|[^/@:]+))?"
    r"(?::(?P<which>[\w.-]+(?:/[\w.-]+)?))?"
)
_SHARDED = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_KEYWORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
_FRONT_MATTER = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
_PACKED = (".zip", ".rar", ".7z")
_TABLES = (".csv", ".tsv", ".xlsx", ".txt")
_OTHER_MEDIA = (".mp3", ".wav", ".flac", ".ogg", ".opus", ".m4a", ".mp4", ".webm", ".mkv", ".avi", ".mov")
_log = logging.getLogger(__name__)

Splits = Mapping[str, Sequence[str]]
"""Name of a split -> keys of its files, or patterns for them."""


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

    What is there in the file system is that, whatever the Hub has under its name.
    """
    found = _NAME.fullmatch(data_path)
    if not found or (not found["scheme"] and (Path(data_path).exists() or known_suffix(Path(data_path)))):
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
    there = {item.key: item for item in root.files() if not _is_hidden(item.key)}
    default, found = _configurations(root, there)
    config, splits = _chosen(name, default, found)
    keys, left_out = _of_one_format(dict.fromkeys(key for of_split in splits.values() for key in of_split))
    if not keys:
        raise ConfigError(_unreadable(name, left_out))
    counts = ", ".join(f"{split} ({len(of_split)} files)" for split, of_split in splits.items())
    _log.info("%s: a data set of the Hub, at commit %s; configuration %s: %s%s", name.spelled, root.commit, config, counts,
              f"; not read: {_suffixes(left_out)}" if left_out else "")  # fmt: skip
    if len(splits) > 1:
        _log.warning("%s has several splits, and all are read: for one give %s", name.spelled,
                     _ways(name, {config: splits}, of=len(found)))  # fmt: skip
    return root, [there[key] for key in keys]


def _is_hidden(key: str) -> bool:
    return any(part.startswith((".", "__")) for part in key.split("/"))


def _configurations(root: ObjectPath, there: Mapping[str, ObjectPath]) -> tuple[str | None, dict[str, Splits]]:
    """(the default one, all by name) with the files of each split, as the card says, else as the files' names say."""
    listed = _card(root, there).get("configs")
    if not isinstance(listed, list) or not listed:
        repo = root.bucket.partition("@")[0]
        if (script := f"{PurePosixPath(repo).name}.py") in there:
            raise ConfigError(
                f"hf://{repo}: its rows come from a script ({script}), which is not run here; where the Hub has made "
                f"Parquet of it, give hf://{repo}@refs/convert/parquet/CONFIG/SPLIT/*.parquet"
            )
        return "default", {"default": _by_names(there)}
    found: dict[str, Splits] = {}
    default = None
    for item in listed:
        if not isinstance(item, Mapping) or not isinstance(item.get("config_name"), str):
            raise ConfigError(f"{root}: a configuration without a config_name in its README.md: {item!r:.200}")
        name = item["config_name"]
        found[name] = _of_configuration(root, item, there)
        if item.get("default") is True or name == "default":
            default = name
    return default or (next(iter(found)) if len(found) == 1 else None), found


def _card(root: ObjectPath, there: Mapping[str, ObjectPath]) -> Mapping[str, Any]:
    """The card's metadata, the YAML at the top of README.md."""
    if "README.md" not in there or not (block := _FRONT_MATTER.match(there["README.md"].read_text(errors="replace"))):
        return {}
    try:
        card = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{root}: the metadata of its README.md is no YAML: {' '.join(str(error).split())}"
        ) from error
    return card if isinstance(card, Mapping) else {}


def _of_configuration(root: ObjectPath, item: Mapping[str, Any], there: Mapping[str, ObjectPath]) -> Splits:
    inside = str(item.get("data_dir") or "").strip("/")
    below = [key for key in there if not inside or key.startswith(f"{inside}/")]
    if (patterns := _patterns(item.get("data_files"))) is None:
        return _by_names(below, inside)
    splits: dict[str, list[str]] = {}
    for split, of_split in patterns.items():
        keys: dict[str, None] = {}
        for pattern in of_split:
            if "://" in pattern:
                raise ConfigError(f"{root}: split {split!r} lies elsewhere ({pattern}): give that as --data_path")
            spelled = "/".join(part for part in (inside, pattern.removeprefix("./").strip("/")) if part)
            form = re.compile(f"(?:{glob_to_regex(spelled)})(?:/.*)?")
            keys |= dict.fromkeys(sorted(key for key in below if form.fullmatch(key)))
        splits[split] = [*keys]
    return splits


def _patterns(data_files: Any) -> dict[str, list[str]] | None:
    """Patterns by split of a card's `data_files`: one, a list of them, or entries of split and path."""
    if data_files is None:
        return None
    if isinstance(data_files, Mapping):
        return {str(split): _texts(paths) for split, paths in data_files.items()}
    if isinstance(data_files, list) and all(isinstance(entry, Mapping) for entry in data_files):
        return {str(entry.get("split", "train")): _texts(entry.get("path")) for entry in data_files}
    return {"train": _texts(data_files)}


def _texts(value: Any) -> list[str]:
    return [str(item) for item in (value if isinstance(value, list) else [value])]


def _by_names(keys: Iterable[str], inside: str = "") -> Splits:
    """Splits as names of files tell them: `data/<split>-00000-of-00001.x`, else folders, else names of files."""
    names = {key: PurePosixPath(key.removeprefix(inside).lstrip("/")) for key in keys}
    if sharded := {key: found["split"] for key, name in names.items() if (found := _SHARDED.fullmatch(str(name)))}:
        order = [*_KEYWORDS, *sorted(set(sharded.values()) - _KEYWORDS.keys())]
        return {split: of_split for split in order if (of_split := [key for key in sharded if sharded[key] == split])}
    for parts_of in (lambda name: name.parts[:-1], lambda name: (name.stem,)):
        splits = {
            split: of_split
            for split, words in _KEYWORDS.items()
            if (
                of_split := [
                    key for key, name in names.items() if any(_has_word(part, words) for part in parts_of(name))
                ]
            )
        }
        if splits:
            return splits
    return {"train": [*names]}


def _has_word(name: str, words: str) -> bool:
    return bool(re.search(rf"(?:^|[-._ 0-9])(?:{words})(?:$|[-._ 0-9])", name))


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
    formats = {key: format_of(Path(key), "auto").name if known_suffix(Path(key)) else "" for key in keys}
    counts = Counter(name for name in formats.values() if name)
    most = max(counts, key=lambda name: (counts[name], -[*FORMATS].index(name)), default=None)
    return [key for key in formats if formats[key] == most], [key for key in formats if formats[key] != most]


def _suffixes(keys: Iterable[str]) -> str:
    counts = Counter(PurePosixPath(key).suffix or PurePosixPath(key).name for key in keys)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(6))


def _unreadable(name: HubName, keys: Sequence[str]) -> str:
    """Why nothing of it can be read, and the way out."""
    suffixes = {PurePosixPath(key).suffix.lower() for key in keys}
    to_parquet = "load_dataset(...).to_parquet(FILE) makes a file that is read"
    ways = [
        (_PACKED, "fetch it with hf download, unpack it and give the folder"),
        (_OTHER_MEDIA, "only images are known, no sound and no video"),
        (_TABLES, to_parquet),
    ]
    way_out = next((way for kinds, way in ways if suffixes & {*kinds}), to_parquet)
    there = _suffixes(keys) or "no files"
    read = ", ".join(suffix for item in FORMATS.values() for suffix in item.suffixes)
    return f"--data_path {name.spelled}: holds {there}; read are {read}: {way_out}"
