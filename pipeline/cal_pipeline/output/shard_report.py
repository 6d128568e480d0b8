"""Counts what became of the rows of one shard."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from cal_schemas.annotated import AnnotatedRow
from cal_schemas.errors import STATUS_OK

_NUM_QUOTED = 10
_MAX_UNREAD = 100


@dataclass(kw_only=True, slots=True)
class ShardReport:
    """Counts of one finished shard; travels to the driver and into the run report."""

    name: str
    rows: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    """Encoded tokens of the measured rows, padding not counted."""
    label_tokens: int = 0
    image_label_tokens: int = 0
    """Supervised tokens with a defined delta in rows with an image; the next two count among them."""
    at_most_alpha: int = 0
    below_beta: int = 0
    truncated: int = 0
    noted: int = 0
    """Rows whose error holds a note on what stands in the source, whatever became of them; `notes` are the first."""
    unread: dict[str, int] = field(default_factory=dict)
    """Keys of the rows that nothing was made of -> how many rows have them; the first 100."""
    unread_kept: dict[str, int] = field(default_factory=dict)
    """Of these, in how many rows they pass through as a column."""
    one_by_one: str | None = None
    """Why its rows were measured one at a time, or None where they shared batches."""
    kept_rows: int = 0
    """Rows taken over from the earlier file by a redo."""
    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("load", "encode", "forward", "write", "total"), 0.0)
    )
    """`load` (reading rows and images) and `encode` add up their threads, `write` is of its own; the others are of
    the main thread."""
    bytes: int = 0
    worker: str = ""
    device: str = ""
    """Who measured it and on what, in words; set by the driver."""
    committed: bool = False
    """False when another writer had published the shard first."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Adds the seconds of what it surrounds to those of a stage, unless it fails."""
        started = time.monotonic()
        yield
        self.seconds[stage] += time.monotonic() - started

    def count(self, rows: Sequence[AnnotatedRow]) -> None:
        """Counts rows as they will be published."""
        for row in rows:
            self._count(row)

    def _count(self, row: AnnotatedRow) -> None:
        self.rows += 1
        self.statuses[row.status] = self.statuses.get(row.status, 0) + 1
        if row.sample.note is not None:
            self.noted += 1
            if len(self.notes) < _NUM_QUOTED:
                self.notes.append(f"{row.sample.sample_id}: {row.sample.note}")
        for key in row.sample.unread:
            if key in self.unread or len(self.unread) < _MAX_UNREAD:
                self.unread[key] = self.unread.get(key, 0) + 1
                if key in row.sample.pass_through:
                    self.unread_kept[key] = self.unread_kept.get(key, 0) + 1
        if row.status != STATUS_OK and len(self.errors) < _NUM_QUOTED:
            self.errors.append(f"{row.sample.sample_id}: {row.status}: {row.error}")
        if row.measured is None:
            return
        self.label_tokens += len(row.measured.label_ids)
        if row.sample.images:
            deltas = row.measured.delta_logits
            # Comparisons with NaN are false: undefined deltas count nowhere.
            self.image_label_tokens += int((deltas == deltas).sum())
            self.at_most_alpha += int((deltas <= 1.0).sum())
            self.below_beta += int((deltas < 5.0).sum())
