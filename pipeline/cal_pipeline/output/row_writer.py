"""Makes annotated rows of measured samples, and writes them while the next ones are measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from cal_pipeline.output.shard_report import ShardReport
from cal_schemas.annotated import AnnotatedRow, MeasuredSample
from cal_schemas.errors import SampleError
from cal_schemas.sample import Sample
from cal_schemas.writer import ShardWriter

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def annotated_row(
    sample: Sample, sample_key: str, outcome: MeasuredSample | SampleError, num_tokens: int | None
) -> AnnotatedRow:
    """The row of a sample: its numbers, or the status and the message of what stood against them."""
    if isinstance(outcome, MeasuredSample):
        return AnnotatedRow(
            sample=sample, sample_key=sample_key, measured=outcome, error=sample.note, num_tokens=num_tokens
        )
    # Addresses in third-party messages differ from run to run; columns must not.
    message = _ADDRESS.sub("", " ".join(str(outcome).split()))[:1000]
    if sample.note:
        message = f"{message} ({sample.note})"
    return AnnotatedRow(
        sample=sample, sample_key=sample_key, status=outcome.status, error=message, num_tokens=num_tokens
    )


@contextmanager
def writing_behind(writer: ShardWriter, report: ShardReport) -> Iterator[Callable[[Sequence[AnnotatedRow]], None]]:
    """Gives a function that writes rows in a thread of its own, and first waits for the rows before them.

    It raises what befell those; what befalls the last rows is raised on leaving.
    """

    def write(rows: Sequence[AnnotatedRow]) -> None:
        with report.timed("write"):
            for row in rows:
                writer.write(row)

    with ThreadPoolExecutor(1) as pool:
        written: Future[None] = pool.submit(write, ())

        def write_next(rows: Sequence[AnnotatedRow]) -> None:
            nonlocal written
            written.result()
            written = pool.submit(write, rows)

        yield write_next
        written.result()
