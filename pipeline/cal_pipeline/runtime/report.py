"""Reports the end of a run: a table for people, a JSON file for programs, warnings that say what to do."""

from __future__ import annotations

import json
import logging
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from cal_pipeline.console import open_console
from cal_pipeline.output.shard_report import ShardReport
from cal_pipeline.runtime.progress import duration
from cal_schemas.counted import are, counted
from cal_schemas.errors import STATUS_OK, STATUSES
from cal_schemas.redaction import redacted_in
from cal_schemas.storage.locations import Location

_MOSTLY_AT_MOST_ALPHA = 0.95
_RARELY_BELOW_BETA = 0.80
_SHOWN_ERRORS = 10
_SHOWN_KEYS = 30
_MANY_LOST = 0.2
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """Holds everything said about one run of `cal-precompute`."""

    run_id: str
    config: dict[str, Any]
    fingerprint: str
    started: str
    seconds: float
    """Wall time from the first shard handed out to the last one done, workers' start included."""
    workers: Sequence[str]
    devices: dict[str, int]
    """What the workers computed on -> how many of them."""
    seconds_to_first_worker: float
    """Of those: until the first model was loaded and checked."""
    shards_done_before: int
    statuses_before: dict[str, int]
    """Their rows by status, without those shards that were measured again."""
    shards: Sequence[ShardReport]
    failed: dict[str, str]
    aborted: str | None
    retries: int
    failed_starts: int
    """Of workers."""
    seconds_short: float
    """For so long there were fewer workers than asked for, because starts failed."""

    def statuses(self) -> Counter[str]:
        """Counts the rows of this run by status."""
        return sum((Counter(report.statuses) for report in self.shards), Counter[str]())

    def none_is_ok(self) -> bool:
        """Tells whether there are rows, of this run or else of those before it, and not one of them is ok."""
        statuses = self.statuses() or Counter(self.statuses_before)
        return statuses.total() > 0 and not statuses[STATUS_OK]

    def total(self, name: str) -> int:
        """Sums one count over the shards."""
        return sum(getattr(report, name) for report in self.shards)

    def unread(self) -> tuple[list[str], list[str]]:
        """Lists keys of the rows that nothing was made of, by name: those kept as columns, those left out of rows."""
        kept = {key for shard in self.shards for key in shard.unread_kept}
        left_out = {
            key for shard in self.shards for key, rows in shard.unread.items() if rows > shard.unread_kept.get(key, 0)
        }
        return sorted(kept), sorted(left_out)

    def write(self, folder: Location) -> Location | None:
        """Writes the JSON file and returns its path; None, with a warning, where it cannot be written (disk full)."""
        path = folder / f"run-{self.run_id}.json"
        value = redacted_in(asdict(self)) | {"host": platform.node(), "statuses": dict(self.statuses())}
        try:
            path.write_text(json.dumps(value, indent=1, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            _log.warning("no report was written to %s: %s", folder, error)
            with suppress(OSError):
                path.unlink(missing_ok=True)
            return None
        return path

    def warnings(self) -> list[str]:
        """Lists what the deltas' distribution and the row counts ask the user to look at."""
        notices = []
        if self.failed_starts:
            notices.append(
                f"{counted(self.failed_starts, 'start')} of workers failed (the log says why): for "
                f"{duration(self.seconds_short)} there were fewer than the {self.config['num_workers']} asked for"
            )
        rows, lost = self.total("rows"), self.total("rows") - self.statuses()[STATUS_OK]
        if rows and lost / rows > _MANY_LOST:
            status, count = max(
                ((s, c) for s, c in self.statuses().items() if s != STATUS_OK), key=lambda pair: pair[1]
            )
            notices.append(f"{lost / rows:.0%} of the rows are not ok, {count} of them {status}: see the column error")
        if len(self.devices) > 1 and self.config.get("dtype") != "float32":
            notices.append(
                f"{len(self.devices)} kinds of device measured ({', '.join(self.devices)}): in {self.config['dtype']} "
                "their deltas differ a little; the run report says which shard is whose"
            )
        tokens = self.total("image_label_tokens")
        if tokens:
            at_most_alpha, below = self.total("at_most_alpha") / tokens, self.total("below_beta") / tokens
            if at_most_alpha > _MOSTLY_AT_MOST_ALPHA:
                notices.append(
                    f"{at_most_alpha:.1%} of deltas are at or under alpha = 1: the weights will be almost uniform. Is "
                    "the reference fit for these images, and --template and --image_aspect_ratio those it was trained "
                    "with?"
                )
            if below < _RARELY_BELOW_BETA:
                notices.append(
                    f"only {below:.1%} of deltas are below beta = 5 (the paper finds about 90 %): alpha and beta were "
                    "chosen on LLaVA's logit scale; choose others for training from this model's quantiles"
                )
        if reason := next((shard.one_by_one for shard in self.shards if shard.one_by_one), None):
            notices.append(f"rows were measured one at a time, which takes longer: {reason}")
        if before := not_ok(self.statuses_before):
            notices.append(f"of the rows in shards that were done before {before}")
        if cut := self.total("truncated"):
            notices.append(f"{counted(cut, 'row')} cut at --max_length (--truncation tail)")
        if long := self.statuses()["too_long"]:
            notices.append(
                f"{counted(long, 'row')} too_long: raise --max_length, or cut their ends with --truncation tail"
            )
        if noted := self.total("noted"):
            first = next(note for shard in self.shards for note in shard.notes)
            notices.append(f"{counted(noted, 'row')} with a note in the column error; the first: {first}")
        return notices


def not_ok(statuses: Mapping[str, int]) -> str:
    """Says how many rows are not ok, by status, and what measures them again; empty where all are."""
    lost = {status: count for status, count in statuses.items() if status != STATUS_OK and count}
    if not lost:
        return ""
    listed = ", ".join(f"{count} {status}" for status, count in sorted(lost.items()))
    known = ",".join(sorted(lost.keys() & set(STATUSES)))
    return (
        f"{(bad := sum(lost.values())):,} of {sum(statuses.values()):,} {are(bad)} not ok ({listed}): the column error "
        f"says why, and --redo_status {known} measures them again"
    )


def print_report(report: RunReport, output_dir: object, path: object) -> None:
    """Prints the final table, on standard output."""
    console = open_console()
    statuses, rows = report.statuses(), report.total("rows")
    if not report.shards and not report.failed and not report.aborted:
        bad = not_ok(report.statuses_before)
        rest = f"; of their rows {bad}" if bad else ""
        done = report.shards_done_before
        shards = "the only shard" if done == 1 else f"all {done:,} shards"
        console.print(f"nothing to do: {shards} in {output_dir} {are(done)} done{rest}")
        return
    table = Table(title=Text(f"cal-precompute: {output_dir}"), title_justify="left")
    for name in ("status", "rows", "share"):
        table.add_column(name, justify="left" if name == "status" else "right")
    for status, count in sorted(statuses.items(), key=lambda item: (item[0] != STATUS_OK, -item[1])):
        table.add_row(status, str(count), f"{count / rows:.1%}")
    console.print(table)
    console.print(
        f"{counted(len(report.shards), 'shard')} with {counted(rows, 'row')} and "
        f"{counted(report.total('label_tokens'), 'supervised token')} in {duration(report.seconds)}, "
        f"{duration(report.seconds_to_first_worker)} of it until the first worker was ready; "
        f"{counted(report.shards_done_before, 'shard')} done before; {report.total('bytes') / 1e6:.1f} MB written"
    )
    if kept := report.total("kept_rows"):
        console.print(f"{kept:,} of those rows taken over unchanged (--redo_status)")
    if late := sum(not shard.committed for shard in report.shards):
        console.print(f"{late:,} of those shards had been published by another driver meanwhile; its files stay")
    errors = [error for shard in report.shards for error in shard.errors]
    for error in errors[:_SHOWN_ERRORS]:
        console.print(f"  {error}")
    if (others := rows - statuses[STATUS_OK] - min(len(errors), _SHOWN_ERRORS)) > 0:
        console.print(f"  and {counted(others, 'more row')} not ok: see the columns status and error")
    kinds = ("pass through as columns", "are left out (so are all of JSON, CSV, archives and turns)")
    for unread, what in zip(report.unread(), kinds, strict=True):
        if unread:
            more = f" and {len(unread) - _SHOWN_KEYS} more" if len(unread) > _SHOWN_KEYS else ""
            listed = ", ".join(key if key.isprintable() else repr(key) for key in unread[:_SHOWN_KEYS]) + more
            console.print(f"nothing was made of these keys, which {what}: {listed}")
    for name, reason in report.failed.items():
        console.print(f"FAILED {name}: {reason}")
    for warning in report.warnings():
        console.print(f"WARNING: {warning}")
    if path:
        console.print(f"report: {path}")


def projection(report: RunReport, rows_of_all: int) -> str:
    """Projects from a subset the time and bytes of the whole input; workers' start counts once."""
    rows = report.total("rows")
    start = report.seconds_to_first_worker
    steady = max(report.seconds - start, 1e-9)
    size = report.total("bytes") * rows_of_all / rows
    return (
        f"subset: {rows:,} of {counted(rows_of_all, 'row')}; the whole would take about "
        f"{duration(start + steady * rows_of_all / rows)} with the same workers and "
        + (f"{size / 1e9:.3g} GB" if size >= 1e9 else f"{size / 1e6:.3f} MB")
    )
