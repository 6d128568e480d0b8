"""`ShardReport`: what became of the rows of one shard."""

from __future__ import annotations

from dataclasses import dataclass, field


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
