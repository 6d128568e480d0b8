"""Looks at a few rows before work, so that data of which none can be measured is known before a worker starts."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from cal_pipeline.sources.first_images import spread
from cal_pipeline.sources.shard import Shard, read_samples
from cal_schemas.counted import counted
from cal_schemas.errors import SampleError, ShardError
from cal_schemas.sample import Sample
from cal_schemas.storage.locations import location

_LOOKED_AT = 8
_log = logging.getLogger(__name__)


def look_at_rows(shards: Sequence[Shard], check: Callable[[Sample], None]) -> bool:
    """Gives up to eight rows of each data path to `check`, which raises SampleError for one that cannot be measured.

    Warns of such rows. Returns False where those of a data path are all such. Rows that lie in an object store with
    their images are not looked at: the images would come over the network with them.
    """
    of_path: dict[str, list[Shard]] = {}
    for shard in shards:
        near = not shard.embedded_bytes or isinstance(location(shard.source.uri), Path)
        if shard.problem is None and near:
            of_path.setdefault(shard.source.data_path, []).append(shard)
    fits = [_some_fit(data_path, spread(of_this_path), check) for data_path, of_this_path in of_path.items()]
    return all(fits)


def _some_fit(data_path: str, shards: Sequence[Shard], check: Callable[[Sample], None]) -> bool:
    problems: list[str] = []
    looked_at = 0
    for shard in shards:
        try:
            for sample in islice(read_samples(shard), min(-(-_LOOKED_AT // len(shards)), _LOOKED_AT - looked_at)):
                looked_at += 1
                try:
                    check(sample)
                except SampleError as error:
                    problems.append(f"{sample.sample_id}: {error.status}: {error}")
        except ShardError as error:
            _log.warning("%s: not all rows were looked at: %s", shard.name, error)  # Its worker will say so too.
    none_fits = 0 < looked_at == len(problems)
    if problems:
        which = "none of the %s looked at can" if none_fits else f"{len(problems)} of %s looked at cannot"
        _log.warning(f"%s: {which} be measured; the first: %s", data_path, counted(looked_at, "row"), problems[0])
    return not none_fits
