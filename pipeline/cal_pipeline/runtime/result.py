"""What a run came to, for those who call it from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecomputeResult:
    """What a run of `precompute`, or `cal-precompute`, came to; all counts are of this run, but for those named before.

    Attributes:
        output_dir: where the annotated shards are.
        exit_code: of the program: 0, all done and there; 1, some shards failed, or too many of the rows, or all, are
            not ok.
        shards: how many were measured.
        shards_done_before: how many had been, by earlier runs, and were left as they are.
        statuses: rows by status; all that is not `ok` has no deltas.
        statuses_before: the same of those earlier runs.
        label_tokens: supervised tokens of the rows that are ok.
        failed: shards that are not there, each with its reason.
        seconds: of wall time, workers' start included.
        report: the run's report, a JSON file; None where none was written.
    """

    output_dir: str
    exit_code: int
    shards: int = 0
    shards_done_before: int = 0
    statuses: Mapping[str, int] = field(default_factory=dict)
    statuses_before: Mapping[str, int] = field(default_factory=dict)
    label_tokens: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    report: str | None = None

    @property
    def complete(self) -> bool:
        """Whether everything is done and there (exit code 0)."""
        return self.exit_code == 0

    @property
    def rows(self) -> int:
        """Rows of this run, of any status."""
        return sum(self.statuses.values())
