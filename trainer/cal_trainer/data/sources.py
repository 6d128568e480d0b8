"""Tells the sources of rows apart, by name: what `--mix` draws from, and what the log says by source.

The source of an annotated row is the `--data_path` of its measurement where the shards say it (their column `source`),
else the `--data_path` that is trained on; with `--source_path` it is that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cal_pipeline.sources.shard import Shard
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.storage.locations import Location


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """Names of the S sources of a data set, and what the flags say of them."""

    names: tuple[str, ...] = ()
    shares: Mapping[str, float] | None = None
    """By name, of the rows of an epoch, 1 in all; None where every row comes once."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """By name, of every token of those whose deltas are left aside."""

    def said(self, *, exact: bool = False) -> dict[str, str | None]:
        """By flag, what is said of them; None where nothing is."""
        given = {"mix": self.shares or {}, "uniform_sources": self.weights}

        def shown(value: float) -> str:
            short = f"{value:.6g}"
            return repr(value) if exact and float(short) != value else short

        return {
            flag: " ".join(f"{name}={shown(value)}" for name, value in of_flag.items()) or None
            for flag, of_flag in given.items()
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceOfFiles:
    """Which source each file is of."""

    names: tuple[str, ...]
    index: np.ndarray
    """[files] into names."""


def sources_of_files(opened: AnnotatedDataset) -> SourceOfFiles:
    """Of annotated shards. A shard that was given itself stands for the directory that holds it."""
    if "source" in opened.schema.names:  # Of one value in a file, which its footer has too.
        return _told_apart([item.source.data_path for item in opened.metadata])
    roots = zip(opened.roots, opened.files, strict=True)
    return _told_apart([_absolute(file.parent if root == file else root) for root, file in roots])


def sources_of_shards(shards: Sequence[Shard]) -> SourceOfFiles:
    """Of the planned shards of raw data."""
    return _told_apart([shard.source.data_path for shard in shards])


def _absolute(path: Location) -> str:
    return str(path.absolute()) if isinstance(path, Path) else str(path)


def _told_apart(paths: Sequence[str]) -> SourceOfFiles:
    paths = [path.rstrip("/") for path in paths]
    distinct = list(dict.fromkeys(paths))
    number = {path: at for at, path in enumerate(distinct)}
    return SourceOfFiles(names=short_names(distinct), index=np.array([number[path] for path in paths], np.int32))


def short_names(paths: Sequence[str]) -> tuple[str, ...]:
    """Of each of these distinct paths as many of its last parts as no other path ends with; at least one."""
    parts = [path.split("/") for path in paths]
    endings = [["/".join(of_path[-count:]) for count in range(1, len(of_path))] for of_path in parts]
    times = Counter(name for names in (*endings, paths) for name in names)
    return tuple(
        next((name for name in names if times[name] == 1), path) for names, path in zip(endings, paths, strict=True)
    )


def check_sources(names: tuple[str, ...], shares: Mapping[str, float], weights: Mapping[str, float]) -> Sources:
    """What was parsed, of the sources that there are; ConfigError where a name is of none, or a share is missing."""
    there = f"the sources of this data are {', '.join(names)}" if len(names) > 1 else f"all of this data is {names[0]}"
    for flag, given in (("mix", shares), ("uniform_sources", weights)):
        if unknown := [name for name in given if name not in names]:
            raise ConfigError(f"--{flag} {unknown[0]}: no such source; {there}")
    if shares and len(names) == 1:
        raise ConfigError(f"--mix has no effect: {there}. Sources are the --data_path of the measurement or, where "
                          "that had one, those of the training")  # fmt: skip
    if missing := [name for name in names if shares and name not in shares]:
        raise ConfigError(f"--mix says no share of {', '.join(missing)}; {there}")
    total = sum(shares.values())
    return Sources(
        names=names,
        shares={name: shares[name] / total for name in names} if shares else None,
        weights={name: weights[name] for name in names if name in weights},
    )
