"""Measures what it costs a reader to compare every page with its checksum.

    python benchmarks/checksums.py

Two shards of the same rows: a sidecar, and one with embedded images (of noise, which no compression makes smaller).
Each is read to its end, in batches, with verification and without; the ratios are of interleaved repeats in one run.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from cal_schemas.annotated import AnnotatedRow, MeasuredSample, annotated_schema
from cal_schemas.metadata import Carry
from cal_schemas.sample import ImageRef, Sample, Turn
from cal_schemas.storage.locations import open_parquet
from cal_schemas.writer import ShardWriter
from measuring import cpu_ratio, interleave, ratio
from reporting import add_timing_flags, begin, make_parser, print_table, write_report
from workload import synthetic_metadata

KINDS: dict[str, Carry] = {"sidecar": "none", "images": "images"}


def write_shard(path: Path, carry: Carry, *, num_rows: int, num_tokens: int, image_bytes: int) -> None:
    """Rows with deltas as a reference gives them: most small, some large, a spread of signs."""
    draw = np.random.default_rng(0)
    with ShardWriter(path, annotated_schema(carry=carry), synthetic_metadata(num_rows, carry=carry)) as writer:
        for row in range(num_rows):
            measured = MeasuredSample(
                label_ids=draw.integers(0, 32000, num_tokens, np.int32),
                label_positions=np.arange(600, 600 + num_tokens, dtype=np.int32),
                delta_logits=draw.gamma(0.6, 2.0, num_tokens).astype(np.float32),
            )
            sample = Sample(
                sample_id=f"{row:09d}",
                images=(ImageRef(data=draw.bytes(image_bytes), path=f"{row}.jpg"),),
                messages=(Turn(role="user", content="<image>\nWhat is it?"), Turn(role="assistant", content="A cup.")),
            )
            writer.write(AnnotatedRow(sample=sample, sample_key=f"{row:032x}", measured=measured, num_tokens=900))


def read(path: Path, *, verify: bool) -> int:
    with open_parquet(path, verify=verify) as file:
        return sum(batch.num_rows for batch in file.iter_batches(batch_size=1024))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rows", type=int, default=4_000, help="of a shard")
    parser.add_argument("--tokens", type=int, default=150, help="supervised tokens of a row")
    parser.add_argument("--image_bytes", type=int, default=20_000, help="of a row's image")
    add_timing_flags(parser, threads=1, repeats=15)
    flags = begin(parser)
    with tempfile.TemporaryDirectory() as folder:
        paths = {kind: Path(folder, f"{kind}.parquet") for kind in KINDS}
        for kind, path in paths.items():
            write_shard(path, KINDS[kind], num_rows=flags.rows, num_tokens=flags.tokens, image_bytes=flags.image_bytes)
        sizes = {kind: path.stat().st_size for kind, path in paths.items()}
        variants = {
            f"{kind}{'_verified' if verify else ''}": partial(read, path, verify=verify)
            for kind, path in paths.items()
            for verify in (False, True)
        }
        times = interleave(variants, flags.repeats)
    print_table(["", "median ms"], [[name, 1e3 * own.median] for name, own in times.items()])
    pairs = [(f"{kind}_verified", kind) for kind in KINDS]
    write_report(
        "checksums",
        flags,
        settings={f"{kind}_bytes": size for kind, size in sizes.items()},
        results={name: own.row() for name, own in times.items()},
        ratios={f"{top}/{bottom}": ratio(times, top, bottom) for top, bottom in pairs},
        cpu_time_ratios={f"{top}/{bottom}": cpu_ratio(times, top, bottom) for top, bottom in pairs},
    )


if __name__ == "__main__":
    main()
