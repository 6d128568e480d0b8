"""Takes shards of several references for one measurement: each measured samples that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc

from cal_schemas.errors import STATUS_OK, FormatError
from cal_schemas.metadata import ShardMetadata
from cal_schemas.spec import MeasurementSpec, digest_json
from cal_schemas.storage.locations import Location
from cal_schemas.whole import open_shard

REFERENCE_FIELDS = ("model_id", "revision", "weights_digest")
"""Of a spec: which model measured, and nothing else."""
_THREADS, _BATCH_ROWS = 16, 4096
_COMPARED = 1024
"""Of the hashes that two references share: the first pair of different keys is expected after billions of rows."""


def crossfit_spec(specs: Sequence[MeasurementSpec]) -> MeasurementSpec:
    """Names every reference, sorted, whatever the order of the shards; of one reference it is its own spec.

    The specs may differ in `REFERENCE_FIELDS` only.
    """
    each = sorted(set(specs), key=lambda spec: (spec.model_id, spec.revision or "", spec.weights_digest))
    if len(each) == 1:
        return each[0]
    return replace(
        each[0],
        model_id="cross-fit of " + " and ".join(spec.model_id for spec in each),
        revision=" and ".join(spec.revision for spec in each if spec.revision) or None,
        weights_digest=digest_json([spec.weights_digest for spec in each]),
    )


def validate_measured_once(files: Sequence[Location], metadata: Sequence[ShardMetadata]) -> None:
    """Raises FormatError for a sample that two references measured: in a cross-fit each has the deltas of one.

    Samples are known by `sample_key`, wherever a copy of one lies and whatever its file is called. One reference may
    hold a sample several times, as its source does. Rows that are not ok were not measured.

    Reads two columns of every shard, about 20 bytes a row on the disk. An 8-byte hash of each row is held, and again
    while they are sorted: 212 MB more for 5 million rows, 95 MB for one million (60 of them, the threads' reading, do
    not grow). Only where hashes are equal are whole keys compared.
    """
    shards: dict[str, list[Location]] = {}
    for file, item in zip(files, metadata, strict=True):
        shards.setdefault(item.spec.weights_digest, []).append(file)
    if len(shards) == 1:
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        each = [_distinct(np.concatenate(list(pool.map(_hashes, mine)))) for mine in shards.values()]
    every = np.concatenate(each)
    every.sort()
    repeated = _distinct(every[1:][every[1:] == every[:-1]])
    wanted = set(repeated[:_COMPARED].tolist())
    first: dict[str, tuple[Location, MeasurementSpec]] = {}
    for file, item in zip(files, metadata, strict=True) if wanted else ():
        for key, sample_id in _measured(file, "sample_key", "sample_id"):
            if hash(key) not in wanted:
                continue
            earlier, spec = first.setdefault(key, (file, item.spec))
            if spec.weights_digest != item.spec.weights_digest:
                raise FormatError(
                    f"sample {sample_id!r}, one of {len(repeated)} such, was measured by {_named(spec)} in {earlier} "
                    f"and by {_named(item.spec)} in {file}: in a cross-fit each reference measures the part that it "
                    "was not trained on, so all copies of a sample lie in one part. Leave one of the two out: the "
                    f"shard, or its row (cal-inspect filter DIRECTORY \"sample_key == '{key}'\" --drop --output OTHER)"
                )


def _hashes(file: Location) -> np.ndarray:
    return np.fromiter((hash(key) for (key,) in _measured(file, "sample_key")), np.int64)


def _distinct(hashes: np.ndarray) -> np.ndarray:
    """Sorts in place; np.unique would make a hash table of some 50 bytes for each."""
    hashes.sort()
    first = np.ones(len(hashes), bool)
    first[1:] = hashes[1:] != hashes[:-1]
    return hashes[first]


def _measured(file: Location, *columns: str) -> Iterator[tuple[str, ...]]:
    """Values of these columns in the rows that are ok."""
    with open_shard(file) as shard:
        for batch in shard.iter_batches(batch_size=_BATCH_ROWS, columns=[*columns, "status"]):
            ok = batch.filter(pc.equal(batch["status"], STATUS_OK))
            yield from zip(*(ok[name].to_pylist() for name in columns), strict=True)


def _named(spec: MeasurementSpec) -> str:
    return f"{spec.model_id} (weights {spec.weights_digest[:8]})"
