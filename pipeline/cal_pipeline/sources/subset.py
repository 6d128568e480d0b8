"""Cuts a plan to a subset of its rows: the first ones, or a seeded random part of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cal_pipeline.sources.shard import Shard


def limit_rows(shards: Sequence[Shard], limit: int) -> list[Shard]:
    """The first `limit` rows of the plan; the last shard is cut and its name says so."""
    kept: list[Shard] = []
    for shard in shards:
        if limit == 0:
            break
        take = min(limit, shard.source.num_rows)
        limit -= take
        if take < shard.source.num_rows:
            start = shard.source.row_start
            source = replace(shard.source, num_rows=take, row_stop=start + take)
            shard = replace(shard, name=f"{shard.name}-first{take}", source=source)
        kept.append(shard)
    return kept


def sample_rows(shards: Sequence[Shard], fraction: float, seed: int) -> list[Shard]:
    """Every shard with a seeded random `fraction` of its rows; shards of which nothing is drawn are left out."""
    drawn = [
        replace(shard, source=replace(shard.source, sample_fraction=fraction, sample_seed=seed)) for shard in shards
    ]
    return [shard for shard in drawn if shard.num_rows or shard.problem]
