"""Shards of several references as one measurement: each measured rows that it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cal_schemas.errors import FormatError
from cal_schemas.spec import MeasurementSpec, digest_json

if TYPE_CHECKING:
    from cal_schemas.annotated import ShardMetadata
    from cal_schemas.locations import Location

REFERENCE_FIELDS = ("model_id", "revision", "weights_digest")
"""Of a spec: which model measured, and nothing else."""


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


def refuse_measured_twice(files: Sequence[Location], metadata: Sequence[ShardMetadata]) -> None:
    """Raises FormatError for rows of a source file that two references measured: in a cross-fit each row has one.

    By what the shards say of their source. Copies of it under another name are not seen; of rows that `cal-inspect
    filter` took out of a shard it is not known which they were, so such shards are left to the user.
    """
    ends: dict[tuple[str, int], dict[str, tuple[int, Location]]] = {}
    """By source file and reference: the last row so far, and whose it is."""
    whole = [(item.source, item.spec.weights_digest, file) for file, item in zip(files, metadata, strict=True)
             if not item.filters]  # fmt: skip
    for source, reference, file in sorted(whole, key=lambda shard: shard[0].row_start):
        reached = ends.setdefault((source.uri, source.size), {})
        for other, (stop, earlier) in reached.items():
            if other != reference and source.row_start < stop:
                raise FormatError(
                    f"{earlier} and {file} both measured rows of {source.uri}, from {source.row_start} on: in a "
                    "cross-fit each reference measures the part that it was not trained on"
                )
        if reference not in reached or reached[reference][0] < source.row_stop:
            reached[reference] = (source.row_stop, file)
