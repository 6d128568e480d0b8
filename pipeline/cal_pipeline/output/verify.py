"""Opens every shard of an output, reads every page and says what is wrong, for `--verify`; changes nothing.

What shards promise together (one measurement, each source row once, none missing) is checked from their metadata, the
plan in `.cal/`, and the sources where they can still be reached; what each promises by itself in `verify_shard.py`.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from rich.table import Table
from rich.text import Text

from cal_pipeline.console import open_console
from cal_pipeline.output.verify_shard import ShardCheck, check_shard
from cal_pipeline.sources.planning import Source, count_rows, find_sources
from cal_pipeline.sources.reading import is_surroundings
from cal_pipeline.sources.shard import changes
from cal_schemas.counted import counted
from cal_schemas.errors import STATUS_OK, STATUSES, CalError, ConfigError, StoreError
from cal_schemas.metadata import ShardSource
from cal_schemas.opened import annotated_files
from cal_schemas.storage.locations import Location
from cal_schemas.whole import read_plan

_THREADS = 4
_SHOWN_SHARDS, _SHOWN_PROBLEMS, _SHOWN_KEYS = 40, 5, 5


@dataclass(kw_only=True, slots=True)
class Verification:
    """All of an output."""

    shards: list[ShardCheck]
    problems: list[str]
    """Of the shards together."""
    notes: list[str]
    """What a reader should know and is no fault."""
    incomplete_unseen: bool = False
    """Neither a plan nor the sources' paths say of what the shards should be: whole sources may be missing."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not any(shard.problems for shard in self.shards)


def verify(output_dir: Location, data_paths: Sequence[str] = (), data_format: str = "auto") -> Verification:
    """Checks an annotated directory; ConfigError when there is none.

    Without a plan in `.cal/`, what should be there is what `data_paths` hold.
    """
    if not (files := annotated_files(output_dir)):
        raise ConfigError(f"--output_dir {output_dir}: no annotated shards (*.parquet) here")

    def name_of(file: Location) -> str:
        return file.relative_to(output_dir).as_posix() if file != output_dir else file.name  # type: ignore[arg-type]

    with ThreadPoolExecutor(_THREADS) as pool:
        shards = list(pool.map(lambda file: check_shard(file, name_of(file)), files))
    verification = Verification(shards=shards, problems=[], notes=[])
    known = [shard for shard in shards if shard.metadata is not None]
    _check_agreement(known, verification)
    planned = _check_plan(output_dir, verification)
    given = [] if planned else [source for path in data_paths for source in find_sources(path, data_format)]
    verification.incomplete_unseen = not planned and not given
    _check_sources(known, given, verification, planned=planned)
    _note_duplicates(known, verification)
    return verification


def _check_agreement(shards: Sequence[ShardCheck], verification: Verification) -> None:
    """All shards against the first one: measurement, columns, carry."""
    for shard in shards[1:]:
        first, other = shards[0].metadata, shard.metadata
        assert first is not None
        assert other is not None
        for name, mine, theirs in first.spec.differences(other.spec):
            shard.problems.append(f"another measurement than {shards[0].name}: {name} {theirs!r}, there {mine!r}")
        if first.carry != other.carry:
            shard.problems.append(f"--carry {other.carry}, in {shards[0].name} {first.carry}")
        if shard.schema is not None and not shard.schema.equals(shards[0].schema):
            shard.problems.append(f"other columns than {shards[0].name}")
        if dict(first.library_versions) != dict(other.library_versions) and not verification.notes:
            verification.notes.append(f"{shard.name} was written by other library versions than {shards[0].name}")


def _check_plan(output_dir: Location, verification: Verification) -> bool:
    """Shards of the last run's plan that are not there; False where there is no plan."""
    if (planned := read_plan(output_dir)) is None:
        verification.notes.append(
            "no plan can be read in .cal/: whether shards are missing is judged by the sources alone"
        )
        return False
    missing = sorted(planned.keys() - {shard.name for shard in verification.shards})
    if missing:
        rows = sum(planned[name] for name in missing)
        verification.problems.append(
            f"{len(missing)} of {len(planned)} planned shards are not there ({counted(rows, 'row')}): {_some(missing)}"
            "; the same command resumes"
        )
    return True


def _check_sources(
    shards: Sequence[ShardCheck], given: Sequence[Source], verification: Verification, *, planned: bool
) -> None:
    """Each source row at most once, none missing between two shards, and the row count where the source is at hand."""
    by_uri: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    sources: dict[str, ShardSource] = {}
    formats = {str(file.resolve()): input_format.name for file, _, input_format in given}
    for shard in shards:
        assert shard.metadata is not None
        source = shard.metadata.source
        sources[source.uri], formats[source.uri] = source, source.data_format
        by_uri[source.uri].append((source.row_start, source.row_stop, shard.name))
    unreachable = []
    for uri, data_format in formats.items():
        ranges = sorted(by_uri[uri])
        for (_, stop, one), (start, _, other) in itertools.pairwise(ranges):
            if start < stop:
                verification.problems.append(f"rows {start}-{stop} of {uri} are in both {one} and {other}")
        try:
            if uri in sources and (changed := changes(sources[uri])):
                verification.problems.append(f"{uri} has changed since it was measured ({changed})")
                continue
        except (OSError, CalError):
            unreachable.append(uri)
            continue
        try:
            total = count_rows(uri, data_format)
        except CalError as error:
            # Without a plan the source alone could say that nothing is missing.
            if planned and (isinstance(error, StoreError) or is_surroundings(error.__cause__ or error)):
                unreachable.append(uri)
            else:
                verification.problems.append(f"its rows cannot be counted: {error}")
            continue
        covered = sum(stop - start for start, stop, _ in ranges)
        if (end := max((stop for _, stop, _ in ranges), default=0)) > total:
            verification.problems.append(f"{uri} has {total} rows, but {ranges[-1][2]} says {end}")
        elif covered < total:
            # With a plan, missing shards are named already, and what was never planned was not asked for.
            remarks = verification.notes if planned else verification.problems
            remarks.append(f"{uri} has {total} rows, of which {covered} are in the output")
    if unreachable:
        verification.notes.append(
            f"{counted(len(unreachable), 'source')} cannot be read from here, so their rows are not counted: "
            f"{_some(unreachable)}"
        )


def _note_duplicates(shards: Sequence[ShardCheck], verification: Verification) -> None:
    """Equal samples: a fault of the source, if one at all."""
    keys = np.concatenate([np.empty(0, "S16"), *(shard.keys for shard in shards)])
    values, counts = np.unique(keys, return_counts=True)
    twice = values[counts > 1]
    if not len(twice):
        return
    shown = []
    for key in twice[:_SHOWN_KEYS]:
        places = [f"{shard.name}:{row}" for shard in shards for row in np.flatnonzero(shard.keys == key)[:3].tolist()]
        shown.append(f"{key.ljust(16, bytes(1)).hex()} ({', '.join(places[:3])})")
    verification.notes.append(
        f"{int(counts[counts > 1].sum())} rows share their sample_key with another ({len(twice)} keys), so the source "
        f"holds these samples more than once: {'; '.join(shown)}" + (" …" if len(twice) > _SHOWN_KEYS else "")
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_PROBLEMS]) + (
        f" and {len(names) - _SHOWN_PROBLEMS} more" if len(names) > _SHOWN_PROBLEMS else ""
    )


def _well(verification: Verification) -> str:
    if verification.incomplete_unseen:
        return (
            "what is there is well; whether it is all cannot be known, as .cal/ holds no plan: give --data_path as it "
            "was measured"
        )
    return "all is well"


def print_verification(verification: Verification, output_dir: Location) -> None:
    """A line for each shard (of many only those that are wrong), then what is wrong with all of them together."""
    console = open_console()
    table = Table(title=Text(f"cal-precompute --verify: {output_dir}"), title_justify="left")
    for heading in ("shard", "rows", STATUS_OK, "not ok"):
        table.add_column(heading, justify="left" if heading == "shard" else "right", overflow="fold")
    shown = [shard for shard in verification.shards if shard.problems or len(verification.shards) <= _SHOWN_SHARDS]
    for shard in shown:
        good = shard.statuses[STATUS_OK]
        table.add_row(Text(shard.name), str(shard.rows), str(good), str(shard.rows - good))
    console.print(table)
    statuses = sum((shard.statuses for shard in verification.shards), Counter[str]())
    console.print("rows by status: " + ", ".join(f"{name} {count}" for name, count in statuses.most_common()))
    if unknown := sorted(statuses.keys() - set(STATUSES)):
        console.print(f"note: statuses that this version does not write: {', '.join(unknown)}")
    for shard in verification.shards:
        for problem in shard.problems:
            console.print(f"PROBLEM {shard.name}: {problem}")
    for problem in verification.problems:
        console.print(f"PROBLEM {problem}")
    for note in verification.notes:
        console.print(f"note: {note}")
    bad = sum(bool(shard.problems) for shard in verification.shards)
    console.print(
        f"{counted(len(verification.shards), 'shard')} with {counted(statuses.total(), 'row')}: "
        + (
            _well(verification)
            if verification.ok
            else f"{counted(bad, 'wrong shard')}, {counted(len(verification.problems), 'problem')} of the whole"
        )
    )
