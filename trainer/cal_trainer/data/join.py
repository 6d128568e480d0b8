"""Joins rows of a source to rows of a sidecar by their `sample_key`."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cal_pipeline.models.precision import EXACT_TOLERANCE
from cal_schemas.errors import ConfigError
from cal_schemas.opened import AnnotatedDataset

ABSENT = -1
"""Row number where the sidecar has no row."""
_KEYS_PER_READ, _PAIRS_PER_READ = 65536, 4096


def key_array(keys: pa.ChunkedArray) -> np.ndarray:
    """Keys of 32 hex digits as [rows] S16, which sorts and compares as the digits do."""
    parts = [np.empty(0, "S16")]
    for start in range(0, len(keys), _KEYS_PER_READ):
        digits = "".join(keys.slice(start, _KEYS_PER_READ).to_pylist())
        parts.append(np.frombuffer(bytes.fromhex(digits), "S16"))
    return np.concatenate(parts)


def match_keys(wanted: np.ndarray, stored: np.ndarray, ok: np.ndarray) -> np.ndarray:
    """Row of `stored` that has each wanted key, ABSENT where none has; among rows of one key an ok one, the first.

    wanted [N], stored [M] S16; ok [M] bool. Returns [N] int64.
    """
    if not len(stored):
        return np.full(len(wanted), ABSENT, np.int64)
    order = np.concatenate([np.flatnonzero(ok), np.flatnonzero(~ok)])
    order = order[np.argsort(stored[order], kind="stable")]
    ranked = stored[order]
    at = np.minimum(np.searchsorted(ranked, wanted), len(ranked) - 1)
    return np.where(ranked[at] == wanted, order[at], ABSENT)


def named_by_path(source: pa.Table) -> np.ndarray:
    """[rows] bool: whether the key of a row knows an image by its path, and not by what it shows."""
    rows = [np.empty(0, bool)]
    for chunk in source.column("images").chunks:
        unknown = pc.is_null(chunk.flatten().field("bytes"))
        rows.append(np.bincount(pc.list_parent_indices(chunk), weights=unknown, minlength=len(chunk)) > 0)
    return np.concatenate(rows)


def validate_one_measurement(
    opened: AnnotatedDataset, sidecar: pa.Table, stored: np.ndarray, ok: np.ndarray, wanted: np.ndarray
) -> None:
    """Raises ConfigError where two rows that are ok share a key and have different deltas: whose they are is not known.

    Such rows show different images of one path. Of one folder they are one image: what other batches give in half
    precision is then no difference.

    Args:
        opened: the sidecar's shards.
        sidecar: all their rows; M.
        stored: [M] S16 keys.
        ok: [M] bool.
        wanted: row numbers of the sidecar that are to be trained, ABSENT among them; others are not looked at.
    """
    order = np.flatnonzero(ok)
    order = order[np.argsort(stored[order], kind="stable")]
    ranked = stored[order]
    repeated = np.append(False, ranked[1:] == ranked[:-1])[: len(order)]  # None is ok: there is no first one.
    leader = np.maximum.accumulate(np.where(repeated, 0, np.arange(len(order))))
    pairs = np.stack([order[leader[repeated]], order[repeated]], axis=1)
    folders = [item.source.image_folder for item in opened.metadata]
    folder_of = np.repeat([folders.index(folder) for folder in folders], opened.rows)
    exact = opened.spec.dtype == "float32" and opened.spec.quantization is None
    pairs = pairs[np.isin(pairs[:, 0], wanted) & (exact | (folder_of[pairs[:, 0]] != folder_of[pairs[:, 1]]))]
    for start in range(0, len(pairs), _PAIRS_PER_READ):
        part = pairs[start : start + _PAIRS_PER_READ]
        one, other = (sidecar.column("delta_logits").take(pa.array(part[:, side])) for side in (0, 1))
        if (at := _first_different(one, other)) is not None:
            raise ConfigError(_told_apart(opened, part[at].tolist(), stored[part[at, 0]].ljust(16, b"\0").hex()))


def _first_different(one: pa.ChunkedArray, other: pa.ChunkedArray) -> int | None:
    """Number of the first pair of lists that differ in length, in what is undefined, or by more than the tolerance."""
    lengths = [np.asarray(pc.list_value_length(column)) for column in (one, other)]
    if (unequal := lengths[0] != lengths[1]).any():
        return int(unequal.argmax())
    mine, theirs = (np.asarray(pc.list_flatten(column).to_numpy(), np.float32) for column in (one, other))
    alike = np.isclose(mine, theirs, rtol=0.0, atol=EXACT_TOLERANCE, equal_nan=True)
    return None if alike.all() else int(np.repeat(np.arange(len(lengths[0])), lengths[0])[~alike][0])


def _told_apart(opened: AnnotatedDataset, rows: list[int], key: str) -> str:
    shards = np.searchsorted(np.cumsum(opened.rows), rows, side="right").tolist()
    places = [f"{opened.files[shard]} (images in {opened.metadata[shard].source.image_folder})" for shard in shards]
    return (
        f"sample_key {key} is that of rows with different deltas, in {places[0]} and in {places[1]}: it knows images "
        "by their path alone, and these are different images of one path, so whose deltas a source row has cannot be "
        "told. Join one sidecar with its own source at a time, or run cal-precompute with --carry paths or images and "
        "train without --source_path"
    )
