"""`cal-precompute --verify`: opens every shard of an output, reads every page, and says what is wrong. Changes nothing.

Whatever a shard promises by itself is checked row by row; what shards promise together (one measurement, each source
row once, none missing) from their metadata, the plan in `.cal/`, and the sources where they can still be reached.

Over 250 lines: one check after the other, which share what was read of a shard.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cal_pipeline.pilot import drawn_rows
from cal_pipeline.shards import count_rows
from cal_schemas.annotated import EXTRA_COLUMNS, ShardMetadata, annotated_files, read_shard_metadata
from cal_schemas.errors import STATUS_OK, STATUSES, CalError, ConfigError, StoreError
from cal_schemas.locations import Location, location, open_parquet

_LISTS = ("label_ids", "label_positions", "delta_logits", *(name for names in EXTRA_COLUMNS.values() for name in names))
_MAY_BE_NULL = ("delta_logits", *(name for names in EXTRA_COLUMNS.values() for name in names))
_FILLED = ("sample_id", "sample_key", "status", *_LISTS)
_KEY = re.compile(r"[0-9a-f]{32}")
_THREADS = 4
_SHOWN_SHARDS, _SHOWN_PROBLEMS, _SHOWN_KEYS = 40, 5, 5


@dataclass(kw_only=True, slots=True)
class ShardCheck:
    """What one file turned out to be."""

    name: str
    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    metadata: ShardMetadata | None = None
    schema: pa.Schema | None = None
    keys: np.ndarray = field(default_factory=lambda: np.empty(0, "S16"))
    """[rows] S16."""


@dataclass(kw_only=True, slots=True)
class Verification:
    """All of an output."""

    shards: list[ShardCheck]
    problems: list[str]
    """Of the shards together."""
    notes: list[str]
    """What a reader should know and is no fault."""

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not any(shard.problems for shard in self.shards)


def verify(output_dir: Location) -> Verification:
    """Checks an annotated directory; ConfigError when there is none."""
    if not (files := annotated_files(output_dir)):
        raise ConfigError(f"--output_dir {output_dir}: no annotated shards (*.parquet) here")

    def name_of(file: Location) -> str:
        return file.relative_to(output_dir).as_posix() if file != output_dir else file.name  # type: ignore[arg-type]

    with ThreadPoolExecutor(_THREADS) as pool:
        shards = list(pool.map(lambda file: check_shard(file, name_of(file)), files))
    found = Verification(shards=shards, problems=[], notes=[])
    known = [shard for shard in shards if shard.metadata is not None]
    _check_agreement(known, found)
    planned = _check_plan(output_dir, found)
    _check_sources(known, found, planned=planned)
    _note_duplicates(known, found)
    return found


def check_shard(file: Location, name: str) -> ShardCheck:
    """Reads one file to its end. A store that gives no answer is raised: it says nothing about the file."""
    check = ShardCheck(name=name)
    try:
        with open_parquet(file, verify=True) as parquet:
            check.metadata = read_shard_metadata(file, parquet.metadata)
            check.schema = parquet.schema_arrow.remove_metadata()
            check.problems += _metadata_problems(parquet.metadata, check.metadata, name)
            if lacking := [column for column in _FILLED[:6] if column not in check.schema.names]:
                check.problems.append(f"lacks the columns {', '.join(lacking)}")
                return check
            _check_rows(parquet, check)
        expected = int(drawn_rows(check.metadata.source).sum())
        filtered = bool(check.metadata.filters)
        if check.rows > expected or (check.rows < expected and not filtered):
            check.problems.append(f"{check.rows} rows, but its source gave {expected}")
    except StoreError:
        raise
    except CalError as error:
        check.problems.append(str(error))
    except (pa.ArrowException, OSError, ValueError) as error:
        check.problems.append(f"broken after row {check.rows}: {' '.join(str(error).split())[:300]}")
    return check


def _metadata_problems(footer: pq.FileMetaData, metadata: ShardMetadata, name: str) -> Iterator[str]:
    pairs = footer.metadata or {}
    if (stored := pairs.get(b"cal.fingerprint", b"").decode()) != metadata.spec.fingerprint():
        yield f"its fingerprint {stored} is not that of its measurement, {metadata.spec.fingerprint()}"
    source = metadata.source
    if source.row_stop - source.row_start != source.num_rows:
        yield f"says rows {source.row_start}-{source.row_stop} of its source and {source.num_rows} rows"
    if (named := re.search(r"-r(\d{9,})-(\d{9,})(?:-first\d+)?\.parquet$", name)) and int(named[1]) != source.row_start:
        yield f"its name says row {int(named[1])}, its metadata {source.row_start}: was it renamed?"


def _check_rows(parquet: pq.ParquetFile, check: ShardCheck) -> None:
    keys: list[np.ndarray] = []
    counts: Counter[str] = Counter()
    for number in range(parquet.num_row_groups):
        # All columns: pictures too are read, and every page has a checksum.
        for batch in parquet.iter_batches(batch_size=1024, row_groups=[number]):
            batch.validate(full=True)
            counts.update(_batch_problems(batch))
            check.statuses.update(
                {item["values"]: item["counts"] for item in pc.value_counts(batch["status"]).to_pylist()}
            )
            good = [key if key and _KEY.fullmatch(key) else "0" * 32 for key in batch["sample_key"].to_pylist()]
            keys.append(np.frombuffer(bytes.fromhex("".join(good)), "S16"))
            check.rows += batch.num_rows
    check.keys = np.concatenate([check.keys, *keys])
    check.problems += [f"{count} rows {what}" for what, count in counts.items()]


def _batch_problems(batch: pa.RecordBatch) -> dict[str, int]:
    """What is wrong -> in how many rows of the batch."""
    found: dict[str, int] = {}

    def count(what: str, mask: Any) -> None:
        if number := int(np.asarray(pc.fill_null(mask, True), bool).sum()):
            found[what] = number

    names = [name for name in _LISTS if name in batch.schema.names]
    for name in (*_FILLED[:3], *names):
        count(f"have no {name}", pc.is_null(batch[name]))
    lengths = pc.list_value_length(batch["label_ids"])
    for name in names[1:]:
        count(
            f"have lists of different lengths (label_ids, {name})",
            pc.not_equal(pc.list_value_length(batch[name]), lengths),
        )
    for name in names:
        parents = pc.list_parent_indices(batch[name])
        values = batch[name].flatten()

        def rows_with(mask: Any, parents: Any = parents) -> Any:
            rows = np.zeros(batch.num_rows, bool)
            rows[np.asarray(parents)[np.asarray(pc.fill_null(mask, False), bool)]] = True
            return pa.array(rows)

        if name not in _MAY_BE_NULL:
            count(f"have null in {name}", rows_with(pc.is_null(values)))
        if pa.types.is_floating(values.type):
            count(f"have NaN or infinity in {name}", rows_with(pc.invert(pc.is_finite(values))))
    ok = pc.equal(batch["status"], STATUS_OK)
    count("are ok and have no labels", pc.and_(ok, pc.equal(lengths, 0)))
    count("are not ok and have labels", pc.and_(pc.invert(ok), pc.greater(lengths, 0)))
    if "error" in batch.schema.names:
        count("are not ok and do not say why", pc.and_(pc.invert(ok), pc.is_null(batch["error"])))
    bad_keys = [key is not None and not _KEY.fullmatch(key) for key in batch["sample_key"].to_pylist()]
    count("have a sample_key that is no digest", pa.array(bad_keys, pa.bool_()))
    return found


def _check_agreement(shards: Sequence[ShardCheck], found: Verification) -> None:
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
        if dict(first.library_versions) != dict(other.library_versions) and not found.notes:
            found.notes.append(f"{shard.name} was written by other library versions than {shards[0].name}")


def _check_plan(output_dir: Location, found: Verification) -> bool:
    """Shards of the last run's plan that are not there; False where there is no plan."""
    try:
        plan = json.loads((output_dir / ".cal" / "plan.json").read_text(encoding="utf-8"))
        planned = {f"{item['name']}.parquet": int(item["source"]["num_rows"]) for item in plan}
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, TypeError):
        found.notes.append("no plan can be read in .cal/: whether shards are missing is judged by the sources alone")
        return False
    missing = sorted(planned.keys() - {shard.name for shard in found.shards})
    if missing:
        rows = sum(planned[name] for name in missing)
        found.problems.append(
            f"{len(missing)} of {len(planned)} planned shards are not there ({rows} rows): {_some(missing)}; "
            "the same command resumes"
        )
    return True


def _check_sources(shards: Sequence[ShardCheck], found: Verification, *, planned: bool) -> None:
    """Each source row at most once, none missing between two shards, and the row count where the source is at hand."""
    by_uri: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    sources = {}
    for shard in shards:
        assert shard.metadata is not None
        source = shard.metadata.source
        sources[source.uri] = source
        by_uri[source.uri].append((source.row_start, source.row_stop, shard.name))
    unreachable = []
    for uri, ranges in by_uri.items():
        ranges.sort()
        for (_, stop, one), (start, _, other) in itertools.pairwise(ranges):
            if start < stop:
                found.problems.append(f"rows {start}-{stop} of {uri} are in both {one} and {other}")
        source, end = sources[uri], max(stop for _, stop, _ in ranges)
        try:
            stat = location(uri).stat()
        except (OSError, CalError):
            unreachable.append(uri)
            continue
        changed = stat.st_size != source.size
        changed |= source.etag != getattr(stat, "etag", None) or (
            not source.etag and stat.st_mtime_ns != source.mtime_ns
        )
        if changed:
            found.problems.append(f"{uri} has changed since it was measured (size {source.size}, now {stat.st_size})")
            continue
        try:
            total = count_rows(source)
        except CalError as error:
            found.problems.append(f"its rows cannot be counted: {error}")
            continue
        covered = sum(stop - start for start, stop, _ in ranges)
        if end > total:
            found.problems.append(f"{uri} has {total} rows, but {ranges[-1][2]} says {end}")
        elif covered < total:
            # With a plan, missing shards are named already, and what was never planned is a pilot's business.
            said = found.notes if planned else found.problems
            said.append(f"{uri} has {total} rows, of which {covered} are in the output")
    if unreachable:
        found.notes.append(f"{len(unreachable)} sources cannot be reached from here, so their rows are not counted: "
                           f"{_some(unreachable)}")  # fmt: skip


def _note_duplicates(shards: Sequence[ShardCheck], found: Verification) -> None:
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
    found.notes.append(
        f"{int(counts[counts > 1].sum())} rows share their sample_key with another ({len(twice)} keys), so the source "
        f"holds these samples more than once: {'; '.join(shown)}" + (" …" if len(twice) > _SHOWN_KEYS else "")
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN_PROBLEMS]) + (
        f" and {len(names) - _SHOWN_PROBLEMS} more" if len(names) > _SHOWN_PROBLEMS else ""
    )


def print_verification(found: Verification, output_dir: Location) -> None:
    """A line for each shard (of many only those that are wrong), then what is wrong with all of them together."""
    console = Console(soft_wrap=True, highlight=False)
    table = Table(title=Text(f"cal-precompute --verify: {output_dir}"), title_justify="left")
    for heading in ("shard", "rows", STATUS_OK, "not ok", "problems"):
        table.add_column(heading, justify="left" if heading in ("shard", "problems") else "right", overflow="fold")
    shown = [shard for shard in found.shards if shard.problems or len(found.shards) <= _SHOWN_SHARDS]
    for shard in shown:
        good = shard.statuses[STATUS_OK]
        table.add_row(
            Text(shard.name), str(shard.rows), str(good), str(shard.rows - good), Text("; ".join(shard.problems) or "-")
        )
    console.print(table)
    statuses = sum((shard.statuses for shard in found.shards), Counter[str]())
    console.print(
        "rows by status: " + ", ".join(f"{name} {count}" for name, count in statuses.most_common()), markup=False
    )
    if unknown := sorted(statuses.keys() - set(STATUSES)):
        console.print(f"note: statuses that this version does not write: {', '.join(unknown)}", markup=False)
    for shard in found.shards:
        for problem in shard.problems:
            console.print(f"PROBLEM {shard.name}: {problem}", markup=False)
    for problem in found.problems:
        console.print(f"PROBLEM {problem}", markup=False)
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    bad = sum(bool(shard.problems) for shard in found.shards)
    console.print(
        f"{len(found.shards)} shards with {statuses.total()} rows: "
        + ("all is well" if found.ok else f"{bad} shards are wrong, {len(found.problems)} problems of the whole"),
        markup=False,
    )
