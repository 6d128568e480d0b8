"""Joins the rows of two measurements by sample_key: the k-th row with a key to the other's k-th.

Needs about 100 bytes a row of both sides together, and 4 a token of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import pyarrow as pa

from cal_pipeline.inspect.tables.flat import FlatTokens, places, token_columns
from cal_pipeline.inspect.tables.reading import read_batches
from cal_pipeline.output.row_reader import ROW_COLUMNS, by_path
from cal_schemas.annotated import rows_from_batch
from cal_schemas.errors import STATUS_OK
from cal_schemas.opened import AnnotatedDataset
from cal_schemas.sample import sample_key
from cal_schemas.scores import Score
from cal_schemas.storage.locations import read_footer

BATCH_ROWS = 2048
"""Of a side that is compared: what is computed of a batch is a part of the memory."""
_LOOKED_AT = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Consecutive rows of one measurement, R of N tokens: what two measurements are compared by."""

    ok: np.ndarray
    """[R] bool."""
    lengths: np.ndarray
    """[R] int64, supervised tokens."""
    digests: np.ndarray
    """[R] uint64 of the label ids: equal ones are equal, others differ but for one pair in 2**64."""
    scores: np.ndarray
    """[N] float32, NaN where undefined."""

    @classmethod
    def of(cls, status: pa.Array, flat: FlatTokens) -> Rows:
        """Of the column `status` and the tokens of as many rows."""
        ok = np.asarray(status.to_pandas() == STATUS_OK, bool)
        return cls(ok=ok, lengths=flat.lengths, digests=_label_digests(flat), scores=flat.scores)

    def tokens(self, rows: np.ndarray) -> np.ndarray:
        """Scores of these rows, in their order."""
        return np.asarray(self.scores[places(self.lengths, rows)])


def _label_digests(flat: FlatTokens) -> np.ndarray:
    """[R] uint64: the sum, by row, of every label id and its place, mixed as splitmix64 does."""
    stops = np.cumsum(flat.lengths)
    place = np.arange(stops[-1] if len(stops) else 0) - np.repeat(stops - flat.lengths, flat.lengths)
    mixed = (flat.label_ids.astype(np.uint64) << np.uint64(32)) + place.astype(np.uint64) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed ^ (mixed >> np.uint64(31)), dtype=np.uint64)])
    return np.asarray(sums[stops] - sums[stops - flat.lengths])


def read_rows(opened: AnnotatedDataset, score: Score) -> Rows:
    """All rows, held."""
    # Null and empty lists count as a value each, so this is never too few; what is not written takes no memory.
    scores = np.empty(sum(map(_num_values, map(read_footer, opened.files))), np.float32)
    parts: list[Rows] = []
    stop = 0
    for batch in read_batches(opened, ["status", *token_columns(score)], BATCH_ROWS):
        part = Rows.of(batch.data.column("status"), FlatTokens.of(batch.data, score))
        start, stop = stop, stop + len(part.scores)
        scores[start:stop] = part.scores
        parts.append(Rows(ok=part.ok, lengths=part.lengths, digests=part.digests, scores=scores[:0]))
    ok, lengths, digests = (
        np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)])
        for name, kind in (("ok", bool), ("lengths", np.int64), ("digests", np.uint64))
    )
    return Rows(ok=ok, lengths=lengths, digests=digests, scores=scores[:stop])


def _num_values(footer: pa.parquet.FileMetaData) -> int:
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("delta_logits."))


def matching_rows(a: AnnotatedDataset, b: AnnotatedDataset) -> np.ndarray:
    """[rows of a] int64: the row of b that each is joined to, -1 where there is none."""
    mine, theirs = (_keys(opened) for opened in (a, b))
    if not len(theirs):
        return np.full(len(mine), -1)
    order = np.argsort(theirs, kind="stable")
    ordered = theirs[order]
    at = np.searchsorted(ordered, mine) + _repeats(mine)
    joined = (at < len(ordered)) & (ordered[np.minimum(at, len(ordered) - 1)] == mine)
    return np.where(joined, order[np.minimum(at, len(order) - 1)], -1)


def keyed_by_bytes(opened: AnnotatedDataset) -> bool | None:
    """Whether the keys count images by their bytes, or else by their paths; None where the first rows do not tell."""
    columns = [name for name in ROW_COLUMNS if name in opened.schema.names]
    for row in chain.from_iterable(map(rows_from_batch, islice(opened.batches(columns, _LOOKED_AT), 1))):
        if row.sample.images:
            # Bytes may have been embedded on the way out: the path counts then.
            if row.sample_key == sample_key(by_path(row.sample)):
                return False
            return True if row.sample_key == sample_key(row.sample) else None
    return None


def _keys(opened: AnnotatedDataset) -> np.ndarray:
    batches = read_batches(opened, ["sample_key"])
    return np.concatenate(
        [np.empty(0, "S1"), *(np.asarray(batch.data.column(0).cast(pa.binary())).astype("S") for batch in batches)]
    )


def _repeats(keys: np.ndarray) -> np.ndarray:
    """[R] int64: how many rows before each have its key."""
    order = np.argsort(keys, kind="stable")
    number = np.arange(len(keys))
    first = np.append(True, keys[order][1:] != keys[order][:-1])[: len(keys)]
    before = np.empty(len(keys), np.int64)
    before[order] = number - np.maximum.accumulate(np.where(first, number, 0))
    return before
