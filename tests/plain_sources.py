"""Source files of a few plain rows in any format, and the ids that are read from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from cal_pipeline.sources.shard import Shard, read_samples


def rows(count: int, **more: Any) -> list[dict[str, Any]]:
    talk = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    return [{"id": number, "conversations": talk, **more} for number in range(count)]


def write(path: Path, count: int = 3, **more: Any) -> Path:
    """A source of `count` rows in the format of its name; the ids are the row numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"id": pa.array(range(count)), "text": ["t"] * count, **more}), path)
        return path
    values = rows(count, **more)
    text = json.dumps(values) if ".jsonl" not in path.name else "".join(json.dumps(row) + "\n" for row in values)
    path.write_bytes(zstandard.compress(text.encode()) if path.suffix == ".zst" else text.encode())
    return path


def ids(shards: Sequence[Shard]) -> list[str]:
    return [sample.sample_id for shard in shards for sample in read_samples(shard)]
