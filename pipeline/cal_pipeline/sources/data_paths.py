"""Expands what a user gives as `--data_path` to files: a file, a directory, a glob, or numbered names in braces."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cal_schemas.errors import ConfigError
from cal_schemas.storage.locations import Location, counts_as_file, files_below, location, on_the_hub
from cal_schemas.storage.object_path import ObjectPath

_INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_MAX_NAMES = 1_000_000
_GLOB_TOKEN = re.compile(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_GLOB_MARKS = {"**/": "(?:[^/]+/)*", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def find_files(data_path: str) -> tuple[Location, list[Location]]:
    """(base, files) of one data path; names of outputs are relative to the base.

    A directory is searched recursively, as is `**` in a glob: linked folders too, each folder once, dot files left out
    (`files_below`). Braces and globs name files from their first pattern on. A dangling link counts as a file. Raises
    ConfigError when there is nothing, or when some of the names in braces are not there.
    """
    path = location(data_path)
    base, files = _find_objects(path) if isinstance(path, ObjectPath) else _find_local(path)
    if not files:
        folder, _, split = data_path.rpartition(":")
        way = f"; of a folder of splits give {folder}/{split}" if folder and Path(folder, split).is_dir() else ""
        raise ConfigError(
            f"--data_path {data_path}: no file there, no directory with files, and no glob that finds any"
            f"{on_the_hub(data_path)}{way}"
        )
    return base, files


def existing_directory(flag: str, given: str) -> Location:
    """Returns the directory that a flag names; ConfigError where there is none."""
    if not (folder := location(given)).is_dir():
        raise ConfigError(f"{flag} {folder}: no such directory")
    return folder


def expand_braces(pattern: str) -> list[str]:
    """`a-{000..012}.tar` and `a.{x,y}` as all their names, in order; a leading zero keeps the width.

    Braces without `..` or `,` are literal, as in a shell. Raises ConfigError for more than a million names.
    """
    for match in _INNERMOST_BRACES.finditer(pattern):
        inside = match[1]
        if ends := _RANGE.fullmatch(inside):
            first, last = int(ends[1]), int(ends[2])
            if abs(last - first) >= _MAX_NAMES:
                raise ConfigError(f"--data_path {pattern}: more than {_MAX_NAMES} names")
            padded = any(len(end.lstrip("-")) > 1 and end.lstrip("-").startswith("0") for end in ends.groups())
            width = max(map(len, ends.groups())) if padded else 0
            step = 1 if last >= first else -1
            parts = [f"{number:0{width}d}" for number in range(first, last + step, step)]
        elif "," in inside:
            parts = inside.split(",")
        else:
            continue
        names = []
        for part in parts:
            names += expand_braces(pattern[: match.start()] + part + pattern[match.end() :])
            if len(names) > _MAX_NAMES:
                raise ConfigError(f"--data_path {pattern}: more than {_MAX_NAMES} names")
        return names
    return [pattern]


def _literal(parts: Sequence[str]) -> Sequence[str]:
    """The parts of a path before the first that is a pattern."""
    return parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part) or "{" in part)]


def _matching(pattern: Path) -> list[Location]:
    """Files that a glob names, sorted."""
    if "**" not in pattern.parts:
        return [*sorted(item for item in map(Path, glob.glob(str(pattern))) if counts_as_file(item))]
    base = Path(*_literal(pattern.parts))
    form = re.compile(glob_to_regex(pattern.relative_to(base).as_posix()))
    return files_below(base, lambda file: bool(form.fullmatch(file.relative_to(base).as_posix())))  # type: ignore[arg-type]


def _find_local(path: Path) -> tuple[Path, list[Location]]:
    """One file, all below a directory, or those that braces and globs name."""
    if path.is_dir():
        return path, files_below(path)
    if path.is_file():
        return path.parent, [path]
    names = expand_braces(str(path))
    if len(names) == 1 and not glob.has_magic(str(path)):
        return path, []
    files: dict[Location, None] = {}
    for name in map(Path, names):
        of_name: list[Location] = [name] if name.is_file() else []
        if not of_name and glob.has_magic(str(name)):
            of_name = _matching(name)
        if not of_name and name.is_dir():
            of_name = files_below(name)
        if not of_name and len(names) > 1:
            raise ConfigError(f"--data_path {path}: of its {len(names)} names {name} is not there")
        files |= dict.fromkeys(of_name)
    return Path(*_literal(path.parts)), [*files]


def _find_objects(path: ObjectPath) -> tuple[ObjectPath, list[Location]]:
    """As in a file system: one object, all below a prefix, or those that braces and globs name."""
    path = path.pinned()
    if path.key and path.is_file():
        return path.parent, [replace(path, known=path.stat())]
    names = expand_braces(path.key)
    if len(names) == 1 and not glob.has_magic(path.key):
        return path, files_below(path)
    base = replace(path, key="/".join(_literal(path.key.split("/"))))
    # One listing serves all names.
    there = {item.key: item for item in base.files()}
    files: dict[str, ObjectPath] = {}
    for name in names:
        pattern = re.compile(glob_to_regex(name))
        keys = [name] if name in there else [key for key in there if glob.has_magic(name) and pattern.fullmatch(key)]
        keys = keys or [key for key in there if key.startswith(f"{name}/")]
        if not keys and len(names) > 1:
            raise ConfigError(f"--data_path {path}: of its {len(names)} names {name} is not there")
        files |= {key: there[key] for key in sorted(keys)}
    return base, [*files.values()]


def glob_to_regex(pattern: str) -> str:
    """A shell pattern as a regular expression: `*`, `?`, `[…]` stay within a part, `**/` spans any number of them."""
    regex = ""
    for token in _GLOB_TOKEN.findall(pattern):
        if token in _GLOB_MARKS:
            regex += _GLOB_MARKS[token]
        elif len(token) > 1:
            regex += token.replace("\\", r"\\").replace("[!", "[^", 1)
        else:
            regex += re.escape(token)
    return regex
