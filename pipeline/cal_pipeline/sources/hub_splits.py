"""Says which files of a data set of the Hub each split of each configuration has: its card does, or names of files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import yaml

from cal_pipeline.sources.data_paths import glob_to_regex
from cal_pipeline.sources.formats import known_suffix
from cal_schemas.errors import ConfigError
from cal_schemas.storage.object_path import ObjectPath

_SHARDED = re.compile(r"data/(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_KEYWORDS = {
    "train": "train|training",
    "validation": "validation|valid|dev|val",
    "test": "test|testing|eval|evaluation",
}
_FRONT_MATTER = re.compile(r"\A\ufeff?---\s*\n(.*?)\n---\s*(?:\n|\Z)", re.DOTALL)
Splits = Mapping[str, Sequence[str]]
"""Name of a split -> keys of its files, or patterns for them."""


def configurations(root: ObjectPath, there: Mapping[str, ObjectPath]) -> tuple[str | None, dict[str, Splits]]:
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
        if not isinstance(item, Mapping) or not isinstance(item.get("config_name"), str | int):
            raise ConfigError(f"{root}: a configuration without a config_name in its README.md: {item!r:.200}")
        name = str(item["config_name"])
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
    folders = {key: name.parts[:-1] for key, name in names.items()}
    for parts in (folders, {key: (name.stem,) for key, name in names.items()}):
        told = {
            split: [key for key in parts if any(_has_word(part, words) for part in parts[key])]
            for split, words in _KEYWORDS.items()
        }
        if any(told.values()):
            if any(known_suffix(names[key]) for of_split in told.values() for key in of_split):
                return {split: of_split for split, of_split in told.items() if of_split}
            # One list of images that lie in folders of splits: nobody says which of its rows are of which.
            return {"all": [*names]}
    return {"train": [*names]}


def _has_word(name: str, words: str) -> bool:
    return bool(re.search(rf"(?:^|[-._ 0-9])(?:{words})(?:$|[-._ 0-9])", name))
